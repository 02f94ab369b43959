"""DICOM series as arrays: the grid is right however the files lie, and what cannot be right is told."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from masam_auto.core.errors import ImageError
from masam_auto.core.geometry import Geometry
from masam_auto.formats.dicom import is_dicom, read_series
from masam_auto.formats.dicom_series import Series, find_dicom_files, find_series
from tests import dicom_files, raw_data

STORED = np.random.default_rng(0).integers(0, 3000, (7, 5, 6))
STRAIGHT = Geometry(shape=(7, 5, 6), spacing=(2.5, 0.7, 0.9), origin=(-10.0, 20.0, 30.5))


@pytest.fixture
def oblique() -> Geometry:
    matrix = np.reshape(raw_data.oblique_direction(), (3, 3))
    matrix[:, 2] = np.cross(matrix[:, 0], matrix[:, 1])
    direction = tuple(float(v) for v in matrix.ravel())
    return Geometry(shape=(7, 5, 6), spacing=(2.5, 0.7, 0.9), origin=(-10.0, 20.0, 30.5), direction=direction)


def sheared(degrees: float) -> Geometry:
    """Slices across z, each shifted along y: a tilted gantry."""
    angle = np.radians(degrees)
    direction = (1.0, 0.0, 0.0, 0.0, 1.0, float(np.sin(angle)), 0.0, 0.0, float(np.cos(angle)))
    return Geometry(shape=(7, 5, 6), spacing=(2.5, 0.7, 0.9), direction=direction)


def only(folder: Path) -> Series:
    (series,), left_out = find_series(find_dicom_files(folder))
    assert not left_out
    return series


@pytest.mark.parametrize("order", [range(7), range(6, -1, -1), (3, 0, 6, 1, 5, 2, 4)], ids=["up", "down", "mixed"])
def test_the_grid_comes_from_the_positions_not_the_names(tmp_path: Path, oblique: Geometry, order: Any) -> None:
    dicom_files.write_series(tmp_path, STORED, oblique, order=list(order))
    raw = read_series(only(tmp_path).files)
    assert raw.array.dtype == np.float32
    np.testing.assert_array_equal(raw.array[0], STORED)
    assert raw.geometry.difference(oblique, tolerance=1e-6) is None
    assert read_series(only(tmp_path).files).geometry == raw.geometry


def test_agrees_with_itk(tmp_path: Path, oblique: Geometry) -> None:
    dicom_files.write_series(tmp_path, STORED, oblique, order=[4, 2, 0, 1, 3, 6, 5], slope=2.0, intercept=-1024.0)
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path))
    image = sitk.ReadImage(names)
    raw = read_series(only(tmp_path).files)
    np.testing.assert_array_equal(raw.array[0], sitk.GetArrayFromImage(image))
    np.testing.assert_allclose(raw.geometry.spacing, image.GetSpacing()[::-1], atol=1e-5)
    np.testing.assert_allclose(raw.geometry.origin, image.GetOrigin(), atol=1e-5)
    np.testing.assert_allclose(raw.geometry.direction, image.GetDirection(), atol=1e-6)


@pytest.mark.parametrize(("slope", "intercept"), [(1.0, -1024.0), (2.0, 3.0), (0.5, 0.25)])
def test_values_are_rescaled(tmp_path: Path, slope: float, intercept: float) -> None:
    dicom_files.write_series(tmp_path, STORED, STRAIGHT, slope=slope, intercept=intercept)
    np.testing.assert_allclose(read_series(only(tmp_path).files).array[0], STORED * slope + intercept, rtol=1e-6)


def test_a_slope_of_each_slice(tmp_path: Path) -> None:
    for index in range(7):
        dicom_files.write_series(tmp_path / str(index), STORED, STRAIGHT, order=[index], slope=index + 0.5)
    expected = STORED * (np.arange(7) + 0.5)[:, None, None]
    np.testing.assert_allclose(read_series(only(tmp_path).files).array[0], expected, rtol=1e-6)


def test_signed_and_unsigned_values(tmp_path: Path) -> None:
    dicom_files.write_series(tmp_path / "signed", STORED - 1500, STRAIGHT, name="signed")
    dicom_files.write_series(tmp_path / "unsigned", STORED + 40000, STRAIGHT, name="unsigned", unsigned=True)
    np.testing.assert_array_equal(read_series(only(tmp_path / "signed").files).array[0], STORED - 1500)
    np.testing.assert_array_equal(read_series(only(tmp_path / "unsigned").files).array[0], STORED + 40000)


def test_a_tilted_gantry_shears_the_grid(tmp_path: Path) -> None:
    dicom_files.write_series(tmp_path, STORED, sheared(15))
    assert read_series(only(tmp_path).files).geometry.difference(sheared(15), tolerance=1e-6) is None


def test_rounded_positions_leave_axes_at_right_angles(tmp_path: Path) -> None:
    dicom_files.write_series(tmp_path, STORED, sheared(0.01))
    matrix = np.reshape(read_series(only(tmp_path).files).geometry.direction, (3, 3))
    np.testing.assert_allclose(matrix.T @ matrix, np.eye(3), atol=1e-12)


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4, 5, 6), (6, 5, 4, 3, 2, 1, 0), (3, 0, 6, 1, 5, 2, 4)])
def test_enhanced_files_have_their_frames_sorted(tmp_path: Path, oblique: Geometry, order: tuple[int, ...]) -> None:
    dicom_files.write_enhanced(tmp_path / "one.dcm", STORED, oblique, order=order, slopes=(2.0,))
    raw = read_series(only(tmp_path).files)
    np.testing.assert_array_equal(raw.array[0], STORED * 2 - 5)
    assert raw.geometry.difference(oblique, tolerance=1e-6) is None


def test_enhanced_files_with_a_slope_of_each_frame(tmp_path: Path) -> None:
    file = dicom_files.write_enhanced(tmp_path / "one.dcm", STORED, STRAIGHT, order=range(7), slopes=(2.0, 3.0))
    with pytest.raises(ImageError, match=r"one\.dcm: its frames have different rescale slopes"):
        read_series([file])


def failing(tmp_path: Path) -> str:
    with pytest.raises(ImageError) as caught:
        read_series(list(find_dicom_files(tmp_path)))
    return str(caught.value)


def test_a_missing_slice(tmp_path: Path) -> None:
    dicom_files.write_series(tmp_path, STORED, STRAIGHT, order=[0, 1, 2, 5, 6])
    assert "IM0002 and IM0003: 2 slices are missing between them (7.5 mm apart, elsewhere 2.5 mm)" in failing(tmp_path)


def test_two_slices_at_one_place(tmp_path: Path) -> None:
    dicom_files.write_series(tmp_path, STORED, STRAIGHT, order=[0, 1, 2, 3, 4, 5, 6, 3])
    assert "two slices at one place (of 8 in the series)" in failing(tmp_path)


def test_two_time_points_in_a_series(tmp_path: Path) -> None:
    dicom_files.write_series(tmp_path, STORED, STRAIGHT, order=[0, 1, 2, 0, 1, 2])
    assert "Keep only one time point" in failing(tmp_path)


@pytest.mark.filterwarnings("ignore:Invalid value for VR DS")
@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"ImagePositionPatient": [-10.0, 20.0, 33.7]}, "slices are uneven between them"),
        ({"ImagePositionPatient": [-9.6, 20.0, 33.0]}, "mm against the line through"),
        ({"ImagePositionPatient": [-10.0, 25.0, 33.0]}, "mm against the line through"),
        ({"ImagePositionPatient": [-10.0, 20.0, 1e300]}, "is not a valid place"),
        ({"PixelSpacing": ["inf", 0.9]}, "is not a valid place"),
        ({"ImageOrientationPatient": [0.0, 1.0, 0.0, 1.0, 0.0, 0.0]}, "have different directions"),
        ({"ImageOrientationPatient": [1.0, 0.0, 0.0, 1.0, 0.0, 0.0]}, "not two orthogonal unit vectors"),
        ({"PixelSpacing": [0.7, 0.8]}, "differ in pixel spacing"),
        ({"PixelSpacing": None}, "has no PixelSpacing"),
        ({"Rows": 6, "Columns": 5}, "differ in size"),
    ],
)
def test_one_odd_slice(tmp_path: Path, tags: dict, message: str) -> None:
    dicom_files.write_series(tmp_path, STORED, STRAIGHT, order=[0, 2, 3, 4, 5, 6])
    dicom_files.write_series(tmp_path / "odd", STORED, STRAIGHT, order=[1], **tags)
    assert message in failing(tmp_path) and "IM000" in failing(tmp_path)


@pytest.mark.parametrize("kept", [400, 140])
def test_truncated_files(tmp_path: Path, kept: int) -> None:
    files = dicom_files.write_series(tmp_path, STORED, STRAIGHT)
    files[2].write_bytes(files[2].read_bytes()[: -60 if kept == 400 else kept])
    with pytest.raises(ImageError, match=r"IM0002: (the pixels cannot be read|has no|this DICOM file)") as caught:
        read_series(files)
    assert "0x" not in str(caught.value)


@pytest.mark.parametrize("frames", [1, 100_000])
def test_more_pixels_than_a_file_can_hold_are_not_made_room_for(frames: int, tmp_path: Path) -> None:
    files = dicom_files.write_series(tmp_path, STORED, STRAIGHT, Rows=65535, Columns=65535, NumberOfFrames=frames)
    with pytest.raises(
        ImageError, match=r"IM0000: (its header asks for .* GiB, which .* bytes cannot hold|does not give the position)"
    ):
        read_series(files)


def test_compressed_pixels(tmp_path: Path) -> None:
    volume = np.arange(3 * 16 * 16).reshape(3, 16, 16)
    files = dicom_files.write_series(tmp_path, volume, Geometry(shape=volume.shape, spacing=(1.0, 1.0, 1.0)))
    for file in files:
        instance = dicom_files.pydicom().dcmread(file)
        instance.compress("1.2.840.10008.1.2.5")  # run lengths
        instance.save_as(file)
    np.testing.assert_array_equal(read_series(files).array[0], volume)


def test_files_are_known_by_content(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(b"x" * 200)
    assert not is_dicom(tmp_path / "a.dcm") and not is_dicom(tmp_path / "absent") and not is_dicom(tmp_path)


def test_slices_that_are_nearly_even_pass(tmp_path: Path) -> None:
    dicom_files.write_series(tmp_path, STORED, STRAIGHT, order=[0, 2, 3, 4, 5, 6])
    dicom_files.write_series(tmp_path / "moved", STORED, STRAIGHT, order=[1], ImagePositionPatient=[-9.8, 20.1, 33.1])
    assert read_series(list(find_dicom_files(tmp_path))).geometry.difference(STRAIGHT) is None


def test_enhanced_files_with_fewer_places_than_frames(tmp_path: Path) -> None:
    file = dicom_files.write_enhanced(tmp_path / "one.dcm", STORED, STRAIGHT, order=range(7))
    instance = dicom_files.pydicom().dcmread(file)
    instance.PerFrameFunctionalGroupsSequence.pop()
    instance.save_as(file)
    with pytest.raises(
        ImageError, match=r"one\.dcm: has 6 slices of \(5, 6\) pixels by its header, but \(7, 5, 6\) are"
    ):
        read_series([file])


@pytest.mark.parametrize("unsigned", [True, False])
def test_monochrome1_gives_the_values_that_were_stored(tmp_path: Path, unsigned: bool) -> None:
    """It says that low values are shown white, and nothing of what they mean."""
    tags = {"slope": 2.0, "intercept": -1024.0, "unsigned": unsigned, "PhotometricInterpretation": "MONOCHROME1"}
    files = dicom_files.write_series(tmp_path, STORED, STRAIGHT, **tags)
    assert np.array_equal(read_series(files).array[0], 2.0 * STORED - 1024)


@pytest.mark.parametrize("in_groups", [True, False])
def test_monochrome1_of_several_frames_is_rescaled_wherever_it_says_so(tmp_path: Path, in_groups: bool) -> None:
    import pydicom

    file = dicom_files.write_enhanced(tmp_path / "e", STORED, STRAIGHT, order=range(len(STORED)), slopes=(2.0,))
    tags = pydicom.dcmread(file)
    tags.PhotometricInterpretation = "MONOCHROME1"
    if not in_groups:
        tags.RescaleSlope, tags.RescaleIntercept = 2.0, -5.0
        for frame in tags.PerFrameFunctionalGroupsSequence:
            del frame.PixelValueTransformationSequence
    tags.save_as(file)
    assert np.array_equal(read_series([file]).array[0], 2.0 * STORED - 5)


def test_files_without_a_preamble_are_dicom(tmp_path: Path) -> None:
    import pydicom

    files = dicom_files.write_series(tmp_path, STORED, STRAIGHT)
    for file in files:
        tags = pydicom.dcmread(file)
        del tags.file_meta
        pydicom.dcmwrite(file, tags, implicit_vr=True, little_endian=True, enforce_file_format=False)
    assert all(map(is_dicom, files)) and len(list(find_dicom_files(tmp_path))) == len(files)
    (series,), _ = find_series(files)
    assert np.array_equal(read_series(series.files).array[0], STORED)


@pytest.mark.parametrize("content", [b"", b"\x08\x00\x05\x00", b"\x08\x00" + bytes(200), b"P5 4 4 255\n", bytes(400)])
def test_other_files_are_not_dicom(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    assert not is_dicom(tmp_path / "x")


def test_positions_that_were_rounded_are_even_and_missing_slices_are_not(tmp_path: Path) -> None:
    import pydicom

    def place(files: list[Path], heights: list[float]) -> None:
        for file, height in zip(files, heights, strict=True):
            tags = pydicom.dcmread(file)
            tags.ImagePositionPatient = [-10.0, 20.0, height]
            tags.save_as(file)

    files = dicom_files.write_series(tmp_path, STORED, STRAIGHT)
    even = [5 + 0.625 * index for index in range(len(files))]
    place(files, [round(height + 1e-9, 1) for height in even])
    assert read_series(files).geometry.spacing[0] == pytest.approx(0.625, abs=0.02)
    place(files, [*even[:4], *(height + 0.625 for height in even[4:])])
    with pytest.raises(ImageError, match="1 slice is missing"):
        read_series(files)
    place(files, [height + 0.2 * (index == 3) for index, height in enumerate(even)])
    with pytest.raises(ImageError, match="slices are uneven"):
        read_series(files)
