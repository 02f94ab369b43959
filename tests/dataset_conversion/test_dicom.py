"""DICOM studies: which series and annotations are taken, and that what was drawn lies where it was drawn."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataset_conversion.convert import convert
from dataset_conversion.dicom import find_dicom, list_rois
from masam_auto.cli.common import run
from masam_auto.cli.convert_dataset import main
from masam_auto.core.errors import CaseErrors, DatasetError, MasamError, PlanError
from masam_auto.core.geometry import Geometry
from masam_auto.formats.dicom import read_series
from masam_auto.formats.dicom_seg import write_dicom_seg
from masam_auto.formats.io import read_geometry, read_image, read_labels
from tests import dicom_files, raw_data

SHAPE = (6, 9, 8)
AXIAL = Geometry(shape=SHAPE, spacing=(3.0, 0.7, 0.9), origin=(-10.0, 20.0, 30.5))
STORED = np.random.default_rng(0).integers(-1000, 1500, SHAPE)
SECRET = {"PatientID": "SECRET-17", "PatientName": "Secret^Doe", "PatientBirthDate": "19610203"}


def box(low: tuple[int, int, int], high: tuple[int, int, int], grid: Geometry) -> list[np.ndarray]:
    """Contours, a slice each, around the voxels (z, y, x) from low to high, without high."""
    (z0, y0, x0), (z1, y1, x1) = low, high
    corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    voxels = [np.array([(x - 0.5, y - 0.5, z) for x, y in corners]) for z in range(z0, z1)]
    return [points @ grid.affine[:3, :3].T + grid.affine[:3, 3] for points in voxels]


def filled(low: tuple[int, int, int], high: tuple[int, int, int]) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    return mask


LIVER, KIDNEY = ((1, 2, 1), (5, 7, 5)), ((2, 5, 4), (4, 9, 7))


@pytest.fixture
def study(tmp_path: Path) -> Callable[..., list[Path]]:
    """Write the CT series of a study into tmp_path/download/FOLDER; name and study are the folder's."""

    def write(folder: str, grid: Geometry = AXIAL, *, name: str = "", **tags: Any) -> list[Path]:
        tags = {"StudyInstanceUID": dicom_files.uid(folder), "PatientID": folder, **tags}
        place = tmp_path / "download" / folder
        return dicom_files.write_series(place, STORED, grid, name=name or folder, order=(3, 0, 5, 1, 4, 2), **tags)

    return write


@pytest.fixture
def structures(tmp_path: Path) -> Callable[..., Path]:
    """Write an RTSTRUCT beside the series of a study. It names no patient, unless told to."""

    def write(folder: str, rois: dict[str, list[np.ndarray]], *, file: str = "rs", **options: Any) -> Path:
        given = {"series": folder, "PatientID": None, **options}
        return dicom_files.write_structures(tmp_path / "download" / folder / file, rois, **given)

    return write


@pytest.fixture
def download(tmp_path: Path, study: Callable, structures: Callable) -> Path:
    """Two studies with two ROIs each, called differently, and one without."""
    for folder, (liver, kidney) in {"p1/ct": ("Liver", "Kidney L"), "p2": (" LIVER_1", "kidney  l")}.items():
        study(folder, **SECRET, SeriesDescription="thin")
        structures(folder, {kidney: box(*KIDNEY, AXIAL), liver: box(*LIVER, AXIAL), "Couch": box(*LIVER, AXIAL)})
    study("p3")
    return tmp_path / "download"


@pytest.fixture
def roi_map(tmp_path: Path) -> Path:
    path = tmp_path / "map.json"
    path.write_text('{"liver_1": "Liver"}')
    return path


def test_rois_become_labels_on_the_series_own_grid(download: Path, roi_map: Path, converted: Callable) -> None:
    folder, record = converted(find_dicom(download, name="CT", rois=["liver", "Kidney L"], roi_map=roi_map))
    assert folder.name == "Dataset050_CT"
    description = json.loads((folder / "dataset.json").read_text())
    assert description["labels"] == {"background": 0, "liver": 1, "kidney l": 2}
    assert description["channel_names"] == {"0": "CT"}
    expected = np.where(filled(*KIDNEY), 2, filled(*LIVER).astype(int))
    for name in ("p1_ct", "p2"):
        labels, grid = read_labels(folder / "labelsTr" / f"{name}.nii.gz")
        assert np.array_equal(labels, expected)
        image, of_image = read_image(folder / "imagesTr" / f"{name}_0000.nii.gz")
        assert np.array_equal(image[0], STORED)
        assert grid == of_image
        assert AXIAL.difference(grid, tolerance=1e-6) is None
    assert [path.name for path in (folder / "imagesTs").iterdir()] == ["p3_0000.nii.gz"]
    overlap = np.count_nonzero(filled(*KIDNEY) & filled(*LIVER))
    assert f"p2: kidney l: overwrites {overlap} voxels of earlier ROIs" in record.case_notes
    assert record.notes[:3] == (
        "ROI couch: in 2 of 2 series, written Couch: left out",
        "ROI kidney l: in 2 of 2 series, written Kidney L, kidney  l",
        "ROI liver: in 2 of 2 series, written LIVER_1, Liver",
    )


def test_nothing_of_the_patients_tags_is_written(download: Path, converted: Callable) -> None:
    folder, _ = converted(find_dicom(download))
    written = b"".join(path.read_bytes() for path in folder.rglob("*.*") if path.suffix in (".json", ".txt"))
    assert b"SECRET-17" not in written and b"Secret" not in written and b"1961" not in written
    assert b"p1_ct" in written


def test_all_rois_by_name(download: Path, structures: Callable) -> None:
    structures("p1/ct", {"": box(*LIVER, AXIAL), "Background": box(*LIVER, AXIAL), "spleen": []}, file="rs2")
    (conversion,) = find_dicom(download)
    assert list(conversion.labels) == ["background", "couch", "kidney l", "liver", "liver_1"]
    assert "ROI background: in 1 of 2 series, written Background: left out" in conversion.notes
    assert list_rois(download)[:3] == (
        "couch: in 2 of 2 series, written Couch",
        "kidney l: in 2 of 2 series, written Kidney L, kidney  l",
        "(without a name): in 1 of 2 series, written ",
    )
    for roi in ("spleen", "background"):
        with pytest.raises(DatasetError, match=rf"no ROI is called {roi}\. There are: .*, kidney l, liver, liver_1\."):
            find_dicom(download, rois=[roi])


@pytest.mark.parametrize("direction", ["oblique", "sheared"])
def test_other_directions(
    direction: str, study: Callable, structures: Callable, converted: Callable, tmp_path: Path
) -> None:
    """Also that the label file lies on the image's grid after both have been written."""
    matrix = np.reshape(raw_data.oblique_direction(), (3, 3))
    matrix[:, 2] = np.cross(matrix[:, 0], matrix[:, 1])
    sheared = (1.0, 0, 0, 0, 1.0, 0.2588190451, 0, 0, 0.9659258263)
    cosines = tuple(map(float, matrix.ravel())) if direction == "oblique" else sheared
    grid = Geometry(shape=SHAPE, spacing=(5.0, 0.6, 0.8), origin=(3.0, -7.0, 11.0), direction=cosines)
    files = study("a", grid)
    of_series = read_series(files).geometry
    structures("a", {"liver": box(*LIVER, of_series)})
    folder, record = converted(find_dicom(tmp_path / "download"))
    labels, found = read_labels(folder / "labelsTr" / "a.nii.gz")
    assert np.array_equal(labels == 1, filled(*LIVER))
    assert of_series.difference(found, tolerance=1e-5) is None
    assert read_geometry(folder / "imagesTr" / "a_0000.nii.gz") == found
    assert record.case_notes == []


def test_segmentation_objects(study: Callable, structures: Callable, converted: Callable, tmp_path: Path) -> None:
    """A SEG is taken where it is newer, and an RTSTRUCT for what the SEG has not."""
    pytest.importorskip("highdicom", reason="the optional library highdicom (extra `dicom`) is not installed")
    files = study("a", FrameOfReferenceUID="1.2.3")
    values = np.where(filled(*LIVER), 1, 0)
    write_dicom_seg(tmp_path / "download" / "a" / "seg.dcm", values, read_series(files).geometry, files, {1: "LIVER"})
    structures("a", {"liver": box(*KIDNEY, AXIAL), "kidney": box(*KIDNEY, AXIAL)})
    folder, record = converted(find_dicom(tmp_path / "download", rois=["kidney", "liver"]))
    labels, _ = read_labels(folder / "labelsTr" / "a.nii.gz")
    assert np.array_equal(labels, np.where(filled(*LIVER), 2, filled(*KIDNEY).astype(int)))
    assert any(note.endswith("rs: liver left out; a newer annotation of the series has it") for note in record.notes)


def test_which_series(study: Callable, structures: Callable, tmp_path: Path) -> None:
    """The one that is referred to; else, of a study without annotation, the one of the most files."""
    study("a", StudyInstanceUID="1.5")
    study("a/second", StudyInstanceUID="1.5", PatientID="a")
    structures("a", {"liver": box(*LIVER, AXIAL)}, series="a/second")
    study("b/less", StudyInstanceUID="1.6", PatientID="b")
    (tmp_path / "download" / "b" / "less" / "IM0005").unlink()
    study("b/more", StudyInstanceUID="1.6", PatientID="b")
    study("c", Modality="MR", StudyInstanceUID="1.7")
    (conversion,) = find_dicom(tmp_path / "download")
    assert [(case.identifier, case.test) for case in conversion.cases] == [("a_second", False), ("b_more", True)]
    beside = [
        note for note in conversion.notes if note.startswith("left out, because another series of its study is used")
    ]
    assert len(beside) == 2 and "/download/a, series 1" in beside[0] and "/download/b/less, series 1" in beside[1]


@pytest.mark.parametrize("kind", ["SEG", "RTSTRUCT"])
def test_annotations_that_name_images_only_belong_to_their_series(
    study: Callable, structures: Callable, tmp_path: Path, kind: str
) -> None:
    """Two series of one study and one frame of reference: only the images say which is meant."""
    pydicom = pytest.importorskip("pydicom")
    study("a/first", name="a1", StudyInstanceUID="1.5", PatientID="a", FrameOfReferenceUID="1.2.3")
    files = study("a/second", name="a2", StudyInstanceUID="1.5", PatientID="a", FrameOfReferenceUID="1.2.3")
    drawn = tmp_path / "download" / "a" / "drawn"
    if kind == "SEG":
        pytest.importorskip("highdicom", reason="the optional library highdicom (extra `dicom`) is not installed")
        write_dicom_seg(drawn, filled(*LIVER).astype(int), read_series(files).geometry, files, {1: "liver"})
        tags = pydicom.dcmread(drawn)
        del tags.ReferencedSeriesSequence
    else:
        structures("a", {"liver": box(*LIVER, AXIAL)}, file="drawn", series=None)
        tags = pydicom.dcmread(drawn)
        image = pydicom.Dataset()
        image.ReferencedSOPInstanceUID = pydicom.dcmread(files[2]).SOPInstanceUID
        for contour in tags.ROIContourSequence[0].ContourSequence:
            contour.ContourImageSequence = [image]
    tags.save_as(drawn)
    (conversion,) = find_dicom(tmp_path / "download")
    assert [case.identifier for case in conversion.cases if not case.test] == ["a_second"]
    shutil.rmtree(tmp_path / "download" / "a" / "second")
    with pytest.raises(DatasetError, match=rf"drawn: the series that this {kind} refers to"):
        find_dicom(tmp_path / "download")  # not put on the other one of its frame of reference


def test_several_series_are_chosen_from(study: Callable, structures: Callable, tmp_path: Path) -> None:
    place = tmp_path / "download"
    study("a/venous", name="a1", SeriesDescription="Venous phase", StudyInstanceUID="1.5")
    study("a/mr", name="a2", Modality="MR", StudyInstanceUID="1.5")
    structures("a", {"liver": box(*LIVER, AXIAL)}, series=None)
    with pytest.raises(
        DatasetError, match=r"Not usable: .*refers to several series \(.*mr, series 1.*; .*Venous phase"
    ):
        find_dicom(place)
    for chosen in ({"modality": "ct"}, {"series_description": "venous  PHASE"}):
        (conversion,) = find_dicom(place, **chosen)
        assert [case.identifier for case in conversion.cases] == ["a_venous"]
        assert conversion.channel_names == ("CT",)
    structures("a", {"liver": box(*LIVER, AXIAL)}, series="a1", file="rs1")
    structures("a", {"liver": box(*LIVER, AXIAL)}, series="a2", file="rs2")
    with pytest.raises(
        DatasetError, match=r"ROIs are drawn on CT \(1 series\), MR \(1 series\)\. Choose one with --mod"
    ):
        find_dicom(place)
    (conversion,) = find_dicom(place, modality="MR")
    assert conversion.channel_names == ("MR",)
    assert any(note.endswith("rs1: left out, because its series was not asked for") for note in conversion.notes)


def test_a_series_that_is_not_there(download: Path, structures: Callable, converted: Callable, tmp_path: Path) -> None:
    structures("p3", {"liver": []}, series="elsewhere", file="empty")
    assert f"{download}/p3/empty: left out, because nothing is drawn in it" in find_dicom(download)[0].notes
    structures("p3", {"liver": box(*LIVER, AXIAL)}, series="elsewhere")
    with pytest.raises(DatasetError, match=r"is not complete:\n  - p3/rs: the series that this RTSTRUCT refers to\n"):
        converted(find_dicom(download))
    _, record = converted(find_dicom(download), allow_missing=True)
    assert record.missing == (f"{download}/p3/rs: the series that this RTSTRUCT refers to",)
    for path in [*download.glob("p[12]/**/rs")]:
        path.unlink()
    with pytest.raises(
        DatasetError, match=r"no DICOM series with an RTSTRUCT or SEG .*\. Not usable: .*p3/rs: the series"
    ):
        find_dicom(download)
    with pytest.raises(DatasetError, match=r"nothing: folder not found"):
        find_dicom(tmp_path / "nothing")


def test_contours_that_do_not_fit_name_file_and_roi(
    study: Callable, structures: Callable, converted: Callable, tmp_path: Path
) -> None:
    study("a")
    far = Geometry(shape=SHAPE, spacing=AXIAL.spacing, origin=(0.0, 0.0, 900.0))
    structures("a", {"liver": box(*LIVER, far)})
    with pytest.raises(CaseErrors, match=r'a/rs: ROI "liver": all its contours are outside the slices of its image'):
        converted(find_dicom(tmp_path / "download"))


def test_missing_empty_and_parted_rois(
    study: Callable, structures: Callable, converted: Callable, tmp_path: Path
) -> None:
    study("a")
    study("b")
    sliver = box((1, 1, 1), (2, 2, 2), AXIAL)[0]
    structures(
        "a", {"gtv 1": box(*LIVER, AXIAL), "GTV 2": box((5, 0, 0), (6, 2, 2), AXIAL), "oar": box(*KIDNEY, AXIAL)}
    )
    structures("b", {"oar": [(sliver - sliver.mean(axis=0)) * 0.1 + sliver.mean(axis=0) + (0.3, 0.3, 0)]})
    study("c")
    structures("c", {"couch": box(*LIVER, AXIAL)})
    path = tmp_path / "map.json"
    path.write_text('{"gtv 1": "gtv", "gtv 2": "gtv"}')
    folder, record = converted(find_dicom(tmp_path / "download", rois=["oar", "gtv"], roi_map=path))
    labels, _ = read_labels(folder / "labelsTr" / "a.nii.gz")
    assert np.array_equal(labels == 2, filled(*LIVER) | filled((5, 0, 0), (6, 2, 2)))
    assert "b: oar: drawn, but contains no voxel" in record.case_notes
    assert "b: gtv: not drawn" in record.case_notes
    assert "c: a test case, because it has none of the ROIs" in record.notes
    assert list(record.cases) == ["a", "b", "c"] and record.cases["c"].test


def test_a_patients_cases_stay_together(
    study: Callable, structures: Callable, converted: Callable, tmp_path: Path
) -> None:
    place = tmp_path / "download"
    for number in range(6):
        study(f"s{number}", PatientID=f"patient {number // 2}")
        structures(f"s{number}", {"liver": box(*LIVER, AXIAL)})
    folder, _ = converted(find_dicom(place))
    patients = {f"s{number}": f"patient_{number // 2 + 1:03d}" for number in range(6)}
    assert json.loads((folder / "patients.json").read_text()) == patients
    folds = json.loads((folder / "splits.json").read_text())
    assert len(folds) == 3
    for fold in folds:
        assert sorted(fold["train"] + fold["val"]) == sorted(patients)
        assert len({patients[name] for name in fold["val"]}) == 1
    for number in range(6):
        study(f"s{number}", PatientID="ANONYMOUS")
    (conversion,) = find_dicom(place)
    assert not conversion.patients
    assert "all cases have the same PatientID, so folds may split patients" in conversion.notes


def test_resumed_and_moved(download: Path, structures: Callable, converted: Callable, tmp_path: Path) -> None:
    """A slice that is newer makes its case again; a test case that is annotated later is a test case no more."""
    folder, _ = converted(find_dicom(download, rois=["couch"]))
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.nii.gz")}
    convert(find_dicom(download, rois=["couch"]), tmp_path / "raw", workers=0)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*.nii.gz")}
    os.utime(download / "p2" / "IM0003")
    structures("p3", {"couch": box(*LIVER, AXIAL)})
    converted(find_dicom(download, rois=["couch"]))
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*.nii.gz")}
    assert {path.name for path in after if before.get(path) != after[path]} == {
        "p2.nii.gz",
        "p2_0000.nii.gz",
        "p3.nii.gz",
        "p3_0000.nii.gz",
    }
    assert not (folder / "imagesTs" / "p3_0000.nii.gz").exists()


def test_values_beyond_int16_stay(study: Callable, structures: Callable, converted: Callable, tmp_path: Path) -> None:
    study("a", RescaleSlope=0.5)
    structures("a", {"liver": box(*LIVER, AXIAL)})
    folder, _ = converted(find_dicom(tmp_path / "download"))
    image, _ = read_image(folder / "imagesTr" / "a_0000.nii.gz")
    assert np.array_equal(image[0], STORED * 0.5)


def test_what_cannot_be_read_is_told(download: Path, roi_map: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for content, words in (
        ("[]", "must map names to names"),
        ('{"a": 1}', "must map names to names"),
        ("{", "is not valid JSON"),
    ):
        roi_map.write_text(content)
        with pytest.raises((DatasetError, PlanError), match=rf"map\.json:? {words}"):
            find_dicom(download, roi_map=roi_map)
    with pytest.raises(DatasetError, match=r'--name: "a b" cannot be part of a folder'):
        find_dicom(download, name="a b")
    path = download / "p2" / "rs"
    path.write_bytes(path.read_bytes()[:-100])
    (conversion,) = find_dicom(download)
    assert [case.identifier for case in conversion.cases if not case.test] == ["p1_ct"]
    assert len(conversion.missing) == 1 and "p2/rs: this DICOM file is damaged" in conversion.missing[0]
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(
        MasamError, match=r"reading DICOM needs pydicom\. Install it \(pip install 'masam_auto\[dicom\]'\)"
    ):
        find_dicom(download)


def test_command(download: Path, roi_map: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments: list[str] = ["dicom", "-i", str(download), "--roi_map", str(roi_map)]
    assert main([*arguments, "--list_rois"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "couch: in 2 of 2 series, written Couch",
        "kidney l: in 2 of 2 series, written Kidney L, kidney  l",
        "liver: in 2 of 2 series, written LIVER_1, Liver",
    ]
    arguments += ["-o", str(tmp_path / "raw"), "--name", "Mine", "-d", "77", "--workers", "0"]
    assert main([*arguments, "--rois", "kidney l", "LIVER"]) == 0
    folder = tmp_path / "raw" / "Dataset077_Mine"
    assert json.loads((folder / "dataset.json").read_text())["labels"] == {"background": 0, "kidney l": 1, "liver": 2}
    capsys.readouterr()
    assert run(main, [*arguments, "--rois", "liver"]) == 2
    assert "was converted with other settings (labels" in capsys.readouterr().err


def test_patients_of_equal_uids_keep_what_is_drawn_on_them(
    tmp_path: Path, study: Callable, structures: Callable, converted: Callable
) -> None:
    """Careless anonymisation: two patients whose series and studies have the same UIDs."""
    where = {"a": LIVER, "b": KIDNEY}
    for folder, box_of in where.items():
        study(folder, name="series", StudyInstanceUID="1.5", PatientID=folder)
        structures(folder, {"organ": box(*box_of, AXIAL)}, series="series", PatientID=folder, StudyInstanceUID="1.5")
    folder, _ = converted(find_dicom(tmp_path / "download"))
    for name, box_of in where.items():
        assert np.array_equal(read_labels(folder / "labelsTr" / f"{name}.nii.gz")[0], filled(*box_of).astype(int))


def test_what_is_drawn_on_another_patient_is_not_taken(tmp_path: Path, study: Callable, structures: Callable) -> None:
    study("a", name="series")
    structures("a", {"organ": box(*LIVER, AXIAL)}, series="series", PatientID="b")
    with pytest.raises(DatasetError, match="the series that this RTSTRUCT refers to"):
        find_dicom(tmp_path / "download")
