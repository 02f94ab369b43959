"""Segments lie on the image's grid, however the object stores them."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataset_conversion.dicom_segments import read_segments, segment_mask
from masam_auto.core.errors import DatasetError, ImageError
from masam_auto.core.geometry import Geometry
from masam_auto.formats.dicom import read_series
from masam_auto.formats.dicom_seg import write_dicom_seg
from tests import dicom_files, raw_data

pytest.importorskip("highdicom", reason="the optional library highdicom (extra `dicom`) is not installed")
pydicom = pytest.importorskip("pydicom", reason="the optional library pydicom (extra `dicom`) is not installed")

SHAPE = (7, 5, 6)
STORED = np.arange(7 * 5 * 6).reshape(SHAPE)
TILTED = (1.0, 0, 0, 0, 1.0, 0.2588190451, 0, 0, 0.9659258263)


@pytest.fixture
def labels() -> np.ndarray:
    """Two segments with empty slices before, between and after them."""
    labels = np.zeros(SHAPE, np.int16)
    labels[1, 1:3, 1:4] = 1
    labels[5, 3:, 4:] = 2
    labels[5, 0, 0] = 1
    return labels


@pytest.fixture
def written(tmp_path: Path, labels: np.ndarray) -> Callable[..., tuple[Path, Geometry]]:
    """Write a series and its segmentation, and give the file and the grid of the image."""

    def write(grid: Geometry) -> tuple[Path, Geometry]:
        files = dicom_files.write_series(tmp_path / "in", STORED, grid, order=(3, 0, 6, 1, 5, 2, 4))
        geometry = read_series(files).geometry
        write_dicom_seg(tmp_path / "seg.dcm", labels, geometry, files, {1: "liver", 2: "spleen"})
        return tmp_path / "seg.dcm", geometry

    return write


def changed(file: Path, change: Callable[[Any], None]) -> Path:
    tags = pydicom.dcmread(file)
    change(tags)
    tags.save_as(file)
    return file


def masks(file: Path, grid: Geometry) -> tuple[list[np.ndarray], set[str]]:
    segments = read_segments(file, grid)
    found = [segment_mask(segments, [number], grid, where="x") for number in (1, 2)]
    return [mask for mask, _ in found], {note for _, notes in found for note in notes}


@pytest.mark.parametrize("direction", ["straight", "tilted gantry", "oblique"])
def test_on_the_grid_of_the_image(
    written: Callable[..., tuple[Path, Geometry]], labels: np.ndarray, direction: str
) -> None:
    matrix = np.reshape(raw_data.oblique_direction(), (3, 3))
    matrix[:, 2] = np.cross(matrix[:, 0], matrix[:, 1])
    directions = {"straight": tuple(np.eye(3).ravel()), "tilted gantry": TILTED, "oblique": tuple(matrix.ravel())}
    grid = Geometry(shape=SHAPE, spacing=(2.5, 0.7, 0.9), origin=(5.0, 6.0, 7.0), direction=directions[direction])
    file, geometry = written(grid)
    (liver, spleen), notes = masks(file, geometry)
    assert np.array_equal(liver, labels == 1)
    assert np.array_equal(spleen, labels == 2)
    assert notes == set()
    both, _ = segment_mask(read_segments(file, geometry), [1, 2], geometry, where="x")
    assert np.array_equal(both, labels > 0)


@pytest.mark.parametrize("kept", [0, 1])
def test_one_frame_alone(written: Callable[..., tuple[Path, Geometry]], labels: np.ndarray, kept: int) -> None:
    """A single slice still knows how thick it is."""
    file, geometry = written(Geometry(shape=SHAPE, spacing=(2.5, 0.7, 0.9), direction=TILTED))

    def keep(tags: Any) -> None:
        size = tags.Rows * tags.Columns
        bits = tags.pixel_array[kept].ravel()
        tags.PixelData = np.packbits(np.pad(bits, (0, -size % 16)), bitorder="little").tobytes()
        tags.PerFrameFunctionalGroupsSequence = [tags.PerFrameFunctionalGroupsSequence[kept]]
        tags.NumberOfFrames = 1

    (liver, spleen), notes = masks(changed(file, keep), geometry)
    assert np.array_equal(liver, (labels == 1) & (np.arange(7) == (5, 1)[kept])[:, None, None])
    assert not spleen.any()
    assert notes == set()


@pytest.mark.parametrize("kind", ["FRACTIONAL", "LABELMAP"])
def test_other_types(written: Callable[..., tuple[Path, Geometry]], labels: np.ndarray, kind: str) -> None:
    file, geometry = written(Geometry(shape=SHAPE, spacing=(2.5, 0.7, 0.9)))

    def alter(tags: Any) -> None:
        pixels = tags.pixel_array
        numbers = [
            frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber
            for frame in tags.PerFrameFunctionalGroupsSequence
        ]
        tags.SegmentationType, tags.BitsAllocated, tags.BitsStored, tags.HighBit = kind, 8, 8, 7
        if kind == "FRACTIONAL":
            tags.MaximumFractionalValue = 200
            stored = np.where(pixels, 100, 99)
        else:
            stored = pixels * np.array(numbers)[:, None, None]
            for frame in tags.PerFrameFunctionalGroupsSequence:
                del frame.SegmentIdentificationSequence
        tags.PixelData = stored.astype(np.uint8).tobytes()

    (liver, spleen), notes = masks(changed(file, alter), geometry)
    assert np.array_equal(liver, labels == 1)
    assert np.array_equal(spleen, labels == 2)
    assert notes == set()


def test_on_part_of_the_image_or_another_grid(
    written: Callable[..., tuple[Path, Geometry]], labels: np.ndarray
) -> None:
    file, geometry = written(Geometry(shape=SHAPE, spacing=(2.0, 0.5, 0.5), origin=(5.0, 6.0, 7.0)))
    larger = Geometry(shape=(9, 8, 9), spacing=geometry.spacing, origin=(4.0, 5.5, 5.0))
    (liver, _), notes = masks(file, larger)
    assert np.array_equal(liver, np.pad(labels == 1, ((1, 1), (1, 2), (2, 1))))
    assert notes == set()
    finer = Geometry(shape=(7, 10, 12), spacing=(2.0, 0.25, 0.25), origin=(4.875, 5.875, 7.0))
    (liver, _), notes = masks(file, finer)
    assert np.array_equal(liver, (labels == 1).repeat(2, axis=1).repeat(2, axis=2))
    assert notes == {"resampled to its image's grid by the nearest voxel"}
    turned = Geometry(
        shape=(5, 7, 6), spacing=(0.5, 2.0, 0.5), origin=(5.0, 6.0, 19.0), direction=(1.0, 0, 0, 0, 0, 1.0, 0, -1.0, 0)
    )
    (liver, _), notes = masks(file, turned)
    assert np.array_equal(liver, (labels == 1)[::-1].transpose(1, 0, 2))
    assert notes == set()


def test_elsewhere_or_uneven(written: Callable[..., tuple[Path, Geometry]]) -> None:
    file, geometry = written(Geometry(shape=SHAPE, spacing=(2.5, 0.7, 0.9)))
    far = Geometry(shape=SHAPE, spacing=(2.5, 0.7, 0.9), origin=(100.0, 0.0, 0.0))
    with pytest.raises(ImageError, match=r'^a: segment "b": is outside its image'):
        segment_mask(read_segments(file, geometry), [1], far, where='a: segment "b"')

    def move(frame: int, axis: int, by: float) -> Callable[[Any], None]:
        def alter(tags: Any) -> None:
            place = tags.PerFrameFunctionalGroupsSequence[frame].PlanePositionSequence[0]
            moved = [float(v) for v in place.ImagePositionPatient]
            moved[axis] += by
            place.ImagePositionPatient = moved

        return alter

    with pytest.raises(ImageError, match=r"seg\.dcm: its frames are neither on the slices .* nor 2\.5 mm apart"):
        read_segments(changed(file, move(1, 2, -1.1)), geometry)
    with pytest.raises(ImageError, match=r"seg\.dcm: its frames are shifted against each other"):
        read_segments(changed(changed(file, move(1, 2, 1.1)), move(0, 0, 3.0)), geometry)


def test_damage_and_absence(written: Callable[..., tuple[Path, Geometry]], monkeypatch: pytest.MonkeyPatch) -> None:
    file, geometry = written(Geometry(shape=SHAPE, spacing=(2.5, 0.7, 0.9)))
    whole = file.read_bytes()
    file.write_bytes(whole[:-6])
    with pytest.raises(ImageError, match=r"seg\.dcm: this DICOM file is damaged"):
        read_segments(file, geometry)
    file.write_bytes(whole)

    def empty(tags: Any) -> None:
        del tags.PerFrameFunctionalGroupsSequence

    with pytest.raises(ImageError, match=r"seg\.dcm: does not give the position of each frame"):
        read_segments(changed(file, empty), geometry)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(DatasetError, match=r"seg\.dcm: reading DICOM needs pydicom"):
        read_segments(file, geometry)


def test_an_object_without_a_preamble_is_read(written: Callable[..., tuple[Path, Geometry]]) -> None:
    import pydicom

    file, grid = written(Geometry(shape=SHAPE, spacing=(2.5, 0.7, 0.9)))
    before = masks(file, grid)
    tags = pydicom.dcmread(file)
    del tags.file_meta
    pydicom.dcmwrite(file, tags, implicit_vr=True, little_endian=True, enforce_file_format=False)
    after = masks(file, grid)
    assert before[1] == after[1] and all(np.array_equal(a, b) for a, b in zip(before[0], after[0], strict=True))
