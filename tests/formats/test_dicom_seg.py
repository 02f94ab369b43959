"""DICOM SEG: read back, labels lie where they were drawn and point to their slices."""

import importlib.util
import warnings
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from masam_auto.core.errors import ImageError, OutputError
from masam_auto.core.geometry import Geometry
from masam_auto.formats.dicom import read_series
from masam_auto.formats.dicom_seg import check_can_write_seg, write_dicom_seg
from tests import dicom_files

highdicom = pytest.importorskip("highdicom", reason="the optional library highdicom (extra `dicom`) is not installed")

STORED = np.arange(7 * 5 * 6).reshape(7, 5, 6)
NAMES = {1: "liver", 2: "a name of more than sixty-four letters, which is what DICOM allows for it", 3: "label 3"}


def make_labels() -> np.ndarray:
    labels = np.zeros((7, 5, 6), np.int16)
    labels[2:4, 1:3, 1:4] = 1
    labels[3, 3:, 4:] = 3
    return labels


def read_back(path: Path, source: list[Path]) -> np.ndarray:
    """(Z, Y, X) labels in the order of the source files."""
    segmentation = highdicom.seg.segread(path)
    places = segmentation.get_source_image_uids()
    asked = [highdicom.imread(file).SOPInstanceUID for file in source]
    assert {uid for _, _, uid in places} <= set(asked)
    return np.asarray(
        segmentation.get_pixels_by_source_instance(
            source_sop_instance_uids=asked, combine_segments=True, assert_missing_frames_are_empty=True
        )
    )


def test_a_patient_called_by_a_number_is_no_reason_to_warn(tmp_path: Path) -> None:
    grid = Geometry(shape=(7, 5, 6), spacing=(2.5, 0.7, 0.9))
    files = dicom_files.write_series(tmp_path / "in", STORED, grid, PatientName="P-001")
    with warnings.catch_warnings(record=True) as said:
        write_dicom_seg(tmp_path / "seg.dcm", make_labels(), grid, files, NAMES)
    assert not said


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4, 5, 6), (3, 0, 6, 1, 5, 2, 4)])
@pytest.mark.parametrize("tilt", [0.0, 15.0])
def test_round_trip(tmp_path: Path, order: tuple[int, ...], tilt: float) -> None:
    y, z = float(np.sin(np.radians(tilt))), float(np.cos(np.radians(tilt)))
    grid = Geometry(
        shape=(7, 5, 6), spacing=(2.5, 0.7, 0.9), origin=(5.0, 6.0, 7.0), direction=(1.0, 0, 0, 0, 1.0, y, 0, 0, z)
    )
    files = dicom_files.write_series(tmp_path / "in", STORED, grid, order=order)
    raw = read_series(files)
    path = tmp_path / "out" / "case.dcm"
    write_dicom_seg(path, make_labels(), raw.geometry, files, NAMES)
    assert [file.name for file in path.parent.iterdir()] == ["case.dcm"]  # no partial file is left
    np.testing.assert_array_equal(read_back(path, files), make_labels()[list(order)])

    segmentation = highdicom.seg.segread(path)
    assert [str(d.SegmentLabel) for d in segmentation.SegmentSequence] == [name[:64] for name in NAMES.values()]
    assert [d.SegmentNumber for d in segmentation.SegmentSequence] == [1, 2, 3]
    assert segmentation.SegmentationType == "BINARY" and segmentation.PatientID == "p1"
    assert segmentation.FrameOfReferenceUID == dicom_files.uid("frame of reference")
    positions = {
        tuple(np.round(f.PlanePositionSequence[0].ImagePositionPatient, 4))
        for f in segmentation.PerFrameFunctionalGroupsSequence
    }
    assert positions == {tuple(np.round(dicom_files.position(grid, index), 4)) for index in (2, 3)}
    found = sitk.GetArrayFromImage(sitk.ReadImage(str(path))).astype(bool).ravel()
    whole = len(found) // 8 * 8  # GDCM leaves the bits of the last, broken byte to chance; here two, both of a segment
    assert (len(found) - whole, found[:whole].sum()) == (2, (make_labels() > 0).sum() - 2)


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4, 5, 6), (3, 0, 6, 1, 5, 2, 4)])
def test_enhanced_source(tmp_path: Path, order: tuple[int, ...]) -> None:
    grid = Geometry(shape=(7, 5, 6), spacing=(2.5, 0.7, 0.9))
    file = dicom_files.write_enhanced(tmp_path / "in.dcm", STORED, grid, order=order)
    raw = read_series([file])
    write_dicom_seg(tmp_path / "out.dcm", make_labels(), raw.geometry, [file], NAMES)
    segmentation = highdicom.seg.segread(tmp_path / "out.dcm")
    found = segmentation.get_pixels_by_source_frame(
        source_sop_instance_uid=highdicom.imread(file).SOPInstanceUID,
        source_frame_numbers=range(1, 8),
        combine_segments=True,
        assert_missing_frames_are_empty=True,
    )
    np.testing.assert_array_equal(found, make_labels()[list(order)])


def test_nothing_found_is_written_all_the_same(tmp_path: Path) -> None:
    grid = Geometry(shape=(7, 5, 6), spacing=(2.5, 0.7, 0.9))
    files = dicom_files.write_series(tmp_path / "in", STORED, grid)
    write_dicom_seg(tmp_path / "out.dcm", np.zeros((7, 5, 6), np.int16), grid, files, NAMES)
    assert not read_back(tmp_path / "out.dcm", files).any()


def test_a_source_without_frame_of_reference(tmp_path: Path) -> None:
    grid = Geometry(shape=(7, 5, 6), spacing=(2.5, 0.7, 0.9))
    files = dicom_files.write_series(tmp_path / "in", STORED, grid, FrameOfReferenceUID=None)
    with pytest.raises(ImageError, match=r"IM0000: has no FrameOfReferenceUID.*`output_format=.nii.gz`"):
        write_dicom_seg(tmp_path / "out.dcm", make_labels(), grid, files, NAMES)


def test_a_source_that_highdicom_refuses(tmp_path: Path) -> None:
    grid = Geometry(shape=(7, 5, 6), spacing=(2.5, 0.7, 0.9))
    files = dicom_files.write_series(tmp_path / "in", STORED, grid, StudyInstanceUID=None)
    with pytest.raises(ImageError, match=r"in: cannot make a DICOM SEG for this series .*StudyInstanceUID"):
        write_dicom_seg(tmp_path / "out.dcm", make_labels(), grid, files, NAMES)
    assert not (tmp_path / "out.dcm").exists()


@pytest.mark.parametrize("damage", [b"zz", b"1x"])
def test_a_source_with_a_damaged_tag(tmp_path: Path, damage: bytes) -> None:
    grid = Geometry(shape=(7, 5, 6), spacing=(2.5, 0.7, 0.9))
    files = dicom_files.write_series(tmp_path / "in", STORED, grid, SliceThickness=987654.5)
    for file in files:
        file.write_bytes(file.read_bytes().replace(b"987654.5", damage + b"7654.5"))
    with pytest.raises(ImageError, match="damaged"):
        write_dicom_seg(tmp_path / "out.dcm", make_labels(), grid, files, NAMES)


def test_absent_highdicom_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(OutputError, match=r"pip install 'masam_auto\[dicom\]'"):
        check_can_write_seg()
