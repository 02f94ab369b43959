"""Endings, names and files of segmentations."""

import importlib.util
from pathlib import Path

import nibabel
import numpy as np
import pytest

from masam_auto.core.dataset import Case, DatasetDescription, parse_description
from masam_auto.core.errors import OutputError
from masam_auto.core.geometry import Geometry
from masam_auto.core.labels import parse_labels
from masam_auto.formats.io import read_geometry, read_labels
from masam_auto.formats.outputs import OUTPUT_FORMATS, choose_endings, output_files, segment_names, write_segmentation
from tests import dicom_files

LABELS = parse_labels({"background": 0, "liver": 1, "lesion": 2}, None)
OBLIQUE = Geometry(
    shape=(4, 5, 6), spacing=(3.0, 1.0, 0.8), origin=(4.0, 5.0, 6.0), direction=(0.0, 0.0, 1.0, 1.0, 0, 0, 0, 1.0, 0)
)
SEGMENTATION = np.random.default_rng(0).integers(0, 3, (4, 5, 6)).astype(np.int16)


def describe(ending: str = ".nii.gz") -> DatasetDescription:
    raw = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1, "lesion": 2}, "file_ending": ending}
    return parse_description(raw, name="Dataset001_Toy")


def case(name: str, file: str, *, dicom: bool = False) -> Case:
    series = ((Path(file),),) if dicom else ()
    return Case(identifier=name, frames=(name,), images=((Path(file),),), series=series)


CASES = (case("volume", "volume_0000.nii.gz"), case("scan", "IM1", dicom=True), case("film", "film.mp4"))


def test_usual_endings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    usual = choose_endings(CASES, describe(".jpg"), None)
    assert usual == {"volume": ".png", "scan": ".dcm", "film": ".png"}
    assert choose_endings(CASES, describe(), ".nrrd") == dict.fromkeys(("volume", "scan", "film"), ".nrrd")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert choose_endings(CASES, describe(), ".nrrd")["scan"] == ".nrrd"
    with pytest.raises(OutputError, match="highdicom"):
        choose_endings(CASES, describe(), None)


@pytest.mark.parametrize("chosen", [".jpg", "nii.gz", ".xyz"])
def test_unknown_endings(chosen: str) -> None:
    with pytest.raises(OutputError, match=r"known endings are \.nii\.gz, .*\.dcm"):
        choose_endings(CASES, describe(), chosen)


def test_seg_is_for_dicom_only() -> None:
    with pytest.raises(OutputError, match="only written for DICOM images, and volume is not one"):
        choose_endings(CASES, describe(), ".dcm")


@pytest.mark.parametrize(
    "ending", [e for e in OUTPUT_FORMATS if e not in (".png", ".bmp", ".tif", ".tiff", ".gipl", ".dcm")]
)
def test_every_volume_format_keeps_the_grid(tmp_path: Path, ending: str) -> None:
    write_segmentation(CASES[0], SEGMENTATION, OBLIQUE, tmp_path, ending, LABELS)
    assert tuple(path.name for path in tmp_path.iterdir()) == output_files(CASES[0], ending)
    labels, geometry = read_labels(tmp_path / f"volume{ending}")
    np.testing.assert_array_equal(labels, SEGMENTATION)
    assert geometry.difference(OBLIQUE, tolerance=1e-5) is None


def write_coded(path: Path, shape: tuple[int, ...]) -> None:
    """An image whose header says "MNI"."""
    image = nibabel.Nifti1Image(np.zeros(shape[::-1], np.float32), np.diag([1.0, 1.0, 2.0, 1.0]))
    image.set_sform(image.affine, code=4)
    nibabel.save(image, path)


def test_a_segmentation_says_where_it_lies_as_its_image_does(tmp_path: Path) -> None:
    write_coded(tmp_path / "volume_0000.nii.gz", (4, 5, 6))
    volume = case("volume", str(tmp_path / "volume_0000.nii.gz"))
    geometry = read_geometry(tmp_path / "volume_0000.nii.gz")
    write_segmentation(volume, SEGMENTATION, geometry, tmp_path, ".nii.gz", LABELS)
    assert nibabel.load(tmp_path / "volume.nii.gz").header["sform_code"] == 4


def test_frames_say_where_they_lie_as_their_images_do(tmp_path: Path) -> None:
    frames = ("f1", "f2", "f3", "f4")
    for frame in frames:
        write_coded(tmp_path / f"{frame}_0000.nii.gz", (5, 6))
    sequence = Case(identifier="s", frames=frames, images=tuple((tmp_path / f"{f}_0000.nii.gz",) for f in frames))
    write_segmentation(sequence, SEGMENTATION, OBLIQUE, tmp_path, ".nii.gz", LABELS)
    for number, frame in enumerate(frames):
        found = nibabel.load(tmp_path / f"{frame}.nii.gz")
        assert found.header["sform_code"] == 4
        np.testing.assert_array_equal(np.asarray(found.dataobj).T, SEGMENTATION[number])


def test_dicom_as_nifti(tmp_path: Path) -> None:
    write_segmentation(CASES[1], SEGMENTATION, OBLIQUE, tmp_path, ".nii.gz", LABELS)
    assert read_geometry(tmp_path / "scan.nii.gz").difference(OBLIQUE, tolerance=1e-5) is None


def write_film(path: Path) -> Case:
    av = pytest.importorskip("av", reason="the optional library PyAV (extra `video`) is not installed")
    with av.open(path, "w") as file:
        stream = file.add_stream("ffv1", rate=10)
        stream.height, stream.width, stream.pix_fmt = 5, 6, "bgr0"
        for _ in range(4):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((5, 6, 3), np.uint8), format="rgb24")))
        file.mux(stream.encode())
    return case("film", str(path))


def test_video_files_get_a_folder_of_masks_and_an_overlay(tmp_path: Path) -> None:
    film, out = write_film(tmp_path / "film.avi"), tmp_path / "out"
    grid = Geometry(shape=(4, 5, 6), spacing=(1.0, 1.0, 1.0))
    write_segmentation(film, SEGMENTATION, grid, out, ".png", LABELS)
    assert sorted(path.name for path in out.iterdir()) == sorted(output_files(film, ".png"))
    assert sorted(path.name for path in (out / "film").iterdir()) == [f"frame{i:06d}.png" for i in range(4)]
    read = [read_labels(out / "film" / f"frame{i:06d}.png")[0][0] for i in range(4)]
    np.testing.assert_array_equal(read, SEGMENTATION)
    (out / "film" / "frame000007.png").touch()  # of a longer film
    write_segmentation(film, 0 * SEGMENTATION, grid, out, ".png", LABELS)
    assert len(list((out / "film").iterdir())) == 4 and not read_labels(out / "film" / "frame000000.png")[0].any()


def test_a_folder_that_cannot_be_replaced(tmp_path: Path) -> None:
    film, out = write_film(tmp_path / "film.avi"), tmp_path / "out"
    out.mkdir()
    (out / "film").touch()
    with pytest.raises(OutputError, match=r"film is a file, so it was not replaced"):
        write_segmentation(film, SEGMENTATION, Geometry(shape=(4, 5, 6), spacing=(1.0, 1.0, 1.0)), out, ".png", LABELS)
    assert not [path for path in out.iterdir() if path.name.startswith(".partial")]


def test_a_folder_of_the_users_is_kept(tmp_path: Path) -> None:
    film, out = write_film(tmp_path / "film.avi"), tmp_path / "out"
    grid = Geometry(shape=(4, 5, 6), spacing=(1.0, 1.0, 1.0))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    out.mkdir()
    (out / "film").symlink_to(tmp_path / "mine")
    with pytest.raises(OutputError, match="film is a link"):
        write_segmentation(film, SEGMENTATION, grid, out, ".png", LABELS)
    (out / "film").unlink()
    (tmp_path / "mine").rename(out / "film")
    with pytest.raises(OutputError, match=r"film contains notes\.txt, which is not a mask"):
        write_segmentation(film, SEGMENTATION, grid, out, ".png", LABELS)
    assert (out / "film" / "notes.txt").read_text() == "mine"


def test_names_of_segments() -> None:
    assert segment_names(LABELS) == {1: "liver", 2: "lesion"}
    regions = parse_labels({"background": 0, "whole": [1, 2, 3], "core": [2, 3], "rim": 3}, [1, 2, 3])
    assert segment_names(regions) == {1: "whole", 2: "core", 3: "rim"}
    gap = parse_labels({"background": 0, "whole": [1, 2], "core": 3}, [1, 3])
    assert segment_names(gap) == {1: "whole", 2: "label 2", 3: "core"}


def test_seg_of_a_series(tmp_path: Path) -> None:
    highdicom = pytest.importorskip("highdicom")
    straight = Geometry(shape=(4, 5, 6), spacing=(3.0, 1.0, 0.8))
    files = tuple(dicom_files.write_series(tmp_path / "in", 10 * SEGMENTATION, straight))
    scan = Case(identifier="scan", frames=("scan",), images=((files[0],),), series=(files,))
    write_segmentation(scan, SEGMENTATION, straight, tmp_path / "out", ".dcm", LABELS)
    segmentation = highdicom.seg.segread(tmp_path / "out" / output_files(scan, ".dcm")[0])
    assert [str(one.SegmentLabel) for one in segmentation.SegmentSequence] == ["liver", "lesion"]
