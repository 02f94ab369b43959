"""DICOM series: what is found and what is left out."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from masam_auto.core.errors import DatasetError, ImageError
from masam_auto.core.geometry import Geometry
from masam_auto.formats.dicom import read_series
from masam_auto.formats.dicom_series import find_dicom_files, find_series, name_series
from tests import dicom_files

STORED = np.random.default_rng(0).integers(0, 3000, (7, 5, 6))
STRAIGHT = Geometry(shape=(7, 5, 6), spacing=(2.5, 0.7, 0.9), origin=(-10.0, 20.0, 30.5))


def test_series_in_one_folder_and_below(tmp_path: Path) -> None:
    dicom_files.write_series(tmp_path / "a", STORED, STRAIGHT, name="first", number=2, SeriesDescription="thin")
    for file in dicom_files.write_series(tmp_path / "other", STORED, STRAIGHT, name="second", number=1):
        file.rename(tmp_path / "a" / f"second_{file.name}.dcm")
    dicom_files.write_series(tmp_path / "b" / "c", STORED, STRAIGHT, name="third")
    (tmp_path / "a" / "notes.txt").write_text("no DICOM")
    (tmp_path / "a" / ".hidden").write_bytes((tmp_path / "a" / "IM0000").read_bytes())
    series, left_out = find_series(find_dicom_files(tmp_path))
    places = [(str(one.folder.relative_to(tmp_path)), one.number, one.description, len(one.files)) for one in series]
    assert places == [("a", 1, "", 7), ("a", 2, "thin", 7), ("b/c", 1, "", 7)]
    assert not left_out


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    dicom_files.write_series(tmp_path / "elsewhere", STORED, STRAIGHT)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "patient").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "self").symlink_to(tmp_path / "in")
    (series,), left_out = find_series(find_dicom_files(tmp_path / "in"))
    assert series.folder == tmp_path / "in" / "patient" and len(series.files) == 7 and not left_out


def test_a_series_spread_over_folders_and_copied_is_one(tmp_path: Path) -> None:
    files = dicom_files.write_series(tmp_path / "a", STORED, STRAIGHT)
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    (tmp_path / "b").mkdir()
    files[3].rename(tmp_path / "b" / "moved")
    (series,), left_out = find_series(find_dicom_files(tmp_path))
    assert len(series.files) == 7 and series.folder == tmp_path and not left_out
    np.testing.assert_array_equal(read_series(series.files).array[0], STORED)


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "a localizer"),
        ({"SamplesPerPixel": 3}, "colour pictures (CT)"),
        ({"Modality": "SEG"}, "not an image (SEG)"),
        ({"ImageOrientationPatient": None, "SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "a secondary capture"),
        ({"ImageOrientationPatient": None, "Modality": "US"}, "no place in space (US)"),
    ],
)
def test_what_is_no_volume_is_left_out(tmp_path: Path, tags: dict, reason: str) -> None:
    dicom_files.write_series(tmp_path, STORED, STRAIGHT, number=4, SeriesDescription="odd", **tags)
    dicom_files.write_series(tmp_path / "good", STORED, STRAIGHT, name="good")
    series, (sentence,) = find_series(find_dicom_files(tmp_path))
    assert [one.folder.name for one in series] == ["good"]
    assert sentence == f'{tmp_path}, series 4 "odd" (7 files): {reason}'


def test_few_slices_structures_and_scouts_are_left_out(tmp_path: Path) -> None:
    dicom_files.write_series(tmp_path / "two", STORED, STRAIGHT, name="two", order=[0, 1])
    dicom_files.write_series(tmp_path / "one", STORED, STRAIGHT, name="one", order=[0])
    across = Geometry(shape=(7, 5, 6), spacing=(2.5, 0.7, 0.9), direction=(0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0))
    dicom_files.write_series(tmp_path / "scout" / "a", STORED, STRAIGHT, name="scout")
    dicom_files.write_series(tmp_path / "scout" / "b", STORED, across, name="scout", SOPInstanceUID=None)
    dicom_files.write_series(
        tmp_path / "rt", STORED, STRAIGHT, name="rt", order=[0], Rows=None, Columns=None, PixelData=None, Modality="OT"
    )
    series, left_out = find_series(find_dicom_files(tmp_path))
    assert not series
    told = {sentence.partition(", ")[0].rpartition("/")[2]: sentence.rpartition(": ")[2] for sentence in left_out}
    assert told == {
        "two": "2 slices only",
        "one": "1 slice only",
        "scout": "slices in several directions, as scout views have",
        "rt": "not an image (OT)",
    }


def test_localizers_within_a_series_are_left_out(tmp_path: Path) -> None:
    dicom_files.write_series(tmp_path / "s", STORED, STRAIGHT)
    dicom_files.write_series(
        tmp_path / "l",
        STORED,
        STRAIGHT,
        order=[2],
        SOPInstanceUID="2.25.1",
        ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"],
    )
    (series,), (sentence,) = find_series(find_dicom_files(tmp_path))
    assert len(series.files) == 7 and sentence.endswith("(7 files): only its 1 x a localizer")


def test_absent_pydicom_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dicom_files.write_series(tmp_path, STORED, STRAIGHT)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(DatasetError, match=r"pip install 'masam_auto\[dicom\]'"):
        find_series(find_dicom_files(tmp_path))


@pytest.mark.parametrize("change", ["header", "value", "kind", "count", "pixels"])
def test_a_damaged_file_spoils_the_series_of_its_folder(tmp_path: Path, change: str) -> None:
    files = dicom_files.write_series(tmp_path / "bad", STORED, STRAIGHT, name="bad")
    dicom_files.write_series(tmp_path / "good", STORED, STRAIGHT, name="good")
    content = files[6].read_bytes()  # the last: the others would pass for a whole volume
    spoilt = {
        "header": content[:200],
        "value": content.replace(b"1.0\\0.0\\0.0", b"1.0\\x.0\\0.0"),
        "kind": content.replace(b"\x20\x00\x37\x00DS", b"\x20\x00\x37\x00ZZ"),
        "count": content.replace(b"1.0\\0.0\\0.0", b"1.0 0.0\\0.0"),
        "pixels": content[: content.index(b"MONOCHROME2")],
    }
    files[6].write_bytes(spoilt[change])
    (bad, good), left_out = find_series(find_dicom_files(tmp_path))
    assert not left_out and len(read_series(good.files).array[0]) == 7
    with pytest.raises(ImageError, match=r"IM0006: (.* damaged|.*must be six numbers)"):
        read_series(bad.files)


def test_a_damaged_file_alone_is_told(tmp_path: Path) -> None:
    (file,) = dicom_files.write_series(tmp_path, STORED, STRAIGHT, order=[0])
    file.write_bytes(file.read_bytes()[:200])
    series, (sentence,) = find_series([file])
    assert not series and "IM0000: this DICOM file is damaged" in sentence


def test_a_directory_file_is_no_series(tmp_path: Path) -> None:
    files = dicom_files.write_series(tmp_path, STORED, STRAIGHT)
    dicom_files.write_series(
        tmp_path / "x", STORED, STRAIGHT, order=[0], SeriesInstanceUID=None, SOPClassUID="1.2.840.10008.1.3.10"
    )
    (series,), left_out = find_series(find_dicom_files(tmp_path))
    assert set(series.files) == set(files) and not left_out


def test_scanners_own_files() -> None:
    folder = Path(dicom_files.pydicom().__file__).parent / "data" / "test_files" / "dicomdirtests"
    if not (folder / "98892001" / "CT5N").is_dir():
        pytest.skip(f"pydicom's test files are not at {folder}")
    (series,), left_out = find_series(find_dicom_files(folder / "98892001"))
    assert series.description == "SmartScore - Gated 0.5 sec" and series.number == 5
    assert len(left_out) == 1 and left_out[0].endswith('CT2N, series 4 "Scout" (2 files): a localizer')
    raw = read_series(series.files)
    assert raw.geometry.shape == (5, 16, 16) and raw.geometry.spacing == (2.5, 0.488281, 0.488281)
    assert raw.array.min() == -888  # Hounsfield units
    _, pilots = find_series(find_dicom_files(folder / "98892003" / "MR2"))
    assert sum(sentence.endswith("slices in several directions, as scout views have") for sentence in pilots) == 2


def test_two_patients_of_the_same_uids_are_two_series(tmp_path: Path) -> None:
    for patient in ("a", "b"):
        dicom_files.write_series(tmp_path / patient, STORED, STRAIGHT, PatientID=patient)
    series, left_out = find_series(find_dicom_files(tmp_path))
    assert [one.folder.name for one in series] == ["a", "b"] and not left_out
    assert len({one.key for one in series}) == 2 and len(name_series(series, tmp_path)) == 2


def test_a_copy_has_the_same_place_and_pixels(tmp_path: Path) -> None:
    files = dicom_files.write_series(tmp_path / "a", STORED, STRAIGHT)
    (tmp_path / "b").mkdir()
    for file in files:
        (tmp_path / "b" / file.name).write_bytes(file.read_bytes())
    (series,), _ = find_series(find_dicom_files(tmp_path))
    assert len(series.files) == len(files)
    other = dicom_files.write_series(tmp_path / "c", STORED + 1, STRAIGHT)
    (series,), _ = find_series([*files, *other])
    assert len(series.files) == 2 * len(files), "equal UIDs, other pixels: reading them says that two lie at one place"
    with pytest.raises(ImageError, match="two slices at one place"):
        read_series(series.files)


def test_slices_of_one_uid_at_several_places_are_all_kept(tmp_path: Path) -> None:
    dicom_files.write_series(tmp_path, STORED, STRAIGHT, SOPInstanceUID="1.2.3")
    (series,), _ = find_series(find_dicom_files(tmp_path))
    assert len(series.files) == len(STORED)


def test_a_series_without_its_uid_is_named(tmp_path: Path) -> None:
    files = dicom_files.write_series(tmp_path, STORED, STRAIGHT, SeriesInstanceUID=None)
    series, left_out = find_series(files)
    assert not series and len(left_out) == len(files) and "SeriesInstanceUID (0020,000E)" in left_out[0]


def test_without_patient_and_frame_of_reference_a_series_is_one(tmp_path: Path) -> None:
    dicom_files.write_series(tmp_path, STORED, STRAIGHT, PatientID=None, FrameOfReferenceUID=None)
    (series,), _ = find_series(find_dicom_files(tmp_path))
    assert len(series.files) == len(STORED) and (series.patient, series.frame) == ("", "")
