"""formats.io: reading and writing by file ending, cases, broken and real files."""

import dataclasses
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from PIL import Image

from masam_auto.core.dataset import Case, DatasetDescription, open_dataset, parse_description
from masam_auto.core.errors import ImageError, OutputError
from masam_auto.core.file_names import IMAGE_ENDINGS
from masam_auto.core.geometry import Geometry
from masam_auto.core.paths import Paths
from masam_auto.formats.io import (
    label_ending,
    read_case,
    read_case_labels,
    read_geometry,
    read_image,
    read_labels,
    write_labels,
)
from tests import dicom_files, raw_data

SHAPE = (4, 6, 5)


def numbers(shape: tuple[int, ...] = SHAPE, kind: Any = np.float32) -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(kind)


def description(channels: int = 1, ending: str = ".nii.gz", **extra: object) -> DatasetDescription:
    names = {str(i): f"channel{i}" for i in range(channels)}
    labels = {"background": 0, "organ": 1}
    return parse_description({"channel_names": names, "labels": labels, "file_ending": ending, **extra}, name="D")


def case_of(*files: Path, labels: tuple[Path, ...] | None = None) -> Case:
    return Case(identifier="a", frames=("a",), images=(files,), labels=labels)


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha", ".mgz", ".png", ".tif", ".jpg", ".bmp"])
@pytest.mark.parametrize("damage", ["half", "tail", "empty", "text"])
def test_broken_files_give_one_line_that_names_them(tmp_path: Path, ending: str, damage: str) -> None:
    path = tmp_path / f"broken{ending}"
    noise = np.random.default_rng(0).integers(0, 255, (8, 16, 14)).astype(np.uint8)
    if ending in (".png", ".jpg", ".bmp"):
        Image.fromarray(noise[0]).save(path)
    elif ending == ".tif":
        tifffile.imwrite(path, noise, compression="zlib", photometric="minisblack")
    elif ending == ".mgz":
        write_labels(path, noise, raw_data.oblique_geometry(noise.shape))
    else:
        raw_data.write_volume(path, noise)
    content = path.read_bytes()
    if damage == "tail" and ending in (".jpg", ".tif", ".png"):
        pytest.skip("the last bytes of this format are no pixels")
    broken = {
        "half": content[: len(content) // 2],
        "tail": content[:-5],
        "empty": b"",
        "text": b"no image at all " * 40,
    }
    path.write_bytes(broken[damage])
    with pytest.raises(ImageError, match="broken") as caught:
        read_image(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_truncated_gzip_is_named_although_itk_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    raw_data.write_volume(path, np.random.default_rng(0).integers(0, 255, (8, 16, 14)).astype(np.uint8))
    path.write_bytes(path.read_bytes()[:1000])
    assert sitk.ReadImage(str(path)).GetSize() == (14, 16, 8), "the reason why voxels are not read by ITK"
    with pytest.raises(ImageError, match=r"truncated or damaged .*Copy or download the file again"):
        read_image(path)


def test_missing_and_unknown_files(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"a.nii.gz: file not found"):
        read_image(tmp_path / "a.nii.gz")
    with pytest.raises(ImageError, match=r"a.dcm: unknown kind of file; known endings: .nii.gz"):
        read_geometry(tmp_path / "a.dcm")


def test_singular_orientation_is_refused(tmp_path: Path) -> None:
    content = nibabel.Nifti2Image(numbers().T, np.eye(4)).to_bytes()
    header = np.frombuffer(content[:540], nibabel.nifti2.header_dtype).copy()
    header["sform_code"] = 1
    for row in ("srow_x", "srow_y", "srow_z"):
        header[row] = 0
    (tmp_path / "a.nii").write_bytes(header.tobytes() + content[540:])
    with pytest.raises(ImageError, match=r"a.nii: the header's orientation matrix"):
        read_image(tmp_path / "a.nii")


def test_labels_must_be_whole_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    for array in (numbers(kind=np.float64), numbers(kind=np.uint32), numbers(kind=np.int8)):
        raw_data.write_volume(path, array)
        found, _ = read_labels(path)
        assert found.dtype == np.int16
        np.testing.assert_array_equal(found, array)
    for value, words in (
        (1.5, "there is 1.5"),
        (np.nan, "there is nan"),
        (np.inf, "range from"),
        (70000, "range from"),
    ):
        array = numbers()
        array[1, 1, 1] = value
        raw_data.write_volume(path, array)
        with pytest.raises(ImageError, match=words):
            read_labels(path)


def test_labels_must_have_one_channel(tmp_path: Path) -> None:
    colours = numbers((6, 5, 3), np.uint8)
    Image.fromarray(colours).save(tmp_path / "a.png")
    sitk.WriteImage(sitk.GetImageFromArray(colours, isVector=True), str(tmp_path / "a.nrrd"))
    for name in ("a.png", "a.nrrd"):
        with pytest.raises(ImageError, match=f"{name}: has 3 colours or channels, but labels need one"):
            read_labels(tmp_path / name)


def test_jpeg_holds_no_labels(tmp_path: Path) -> None:
    geometry = Geometry(shape=(1, 6, 5), spacing=(1, 1, 1), dimensions=2)
    with pytest.raises(ImageError, match=r"Store labels as .png"):
        read_labels(tmp_path / "a.jpg")
    with pytest.raises(ImageError, match=r"Write labels as .png"):
        write_labels(tmp_path / "a.jpeg", np.zeros((1, 6, 5), np.uint8), geometry)
    assert [label_ending(e) for e in (".jpg", ".JPEG", ".png", ".nii.gz")] == [".png", ".png", ".png", ".nii.gz"]


def test_channels_are_stacked(tmp_path: Path, raw_dataset: Callable[..., Path]) -> None:
    raw = raw_dataset(channels=2, cases=2).parent
    dataset = open_dataset(Paths(raw=raw, preprocessed=raw, results=raw, weights=raw), "1")
    case = dataset.cases[1]
    image, geometry = read_case(case, dataset.description)
    for channel, path in enumerate(case.images[0]):
        np.testing.assert_array_equal(image[channel], read_image(path)[0][0])
    labels, where = read_case_labels(case, dataset.description)
    assert labels.shape == geometry.shape == image.shape[1:] and where.difference(geometry) is None
    with pytest.raises(ImageError, match=r"case_001: has 1 channel in 1 file, but 2 channels \(CT, MR\) are expected"):
        read_case(dataclasses.replace(case, images=(case.images[0][:1],)), dataset.description)
    with pytest.raises(ImageError, match=r"case_001: has no label file \(labelsTr/case_001.nii.gz\)"):
        read_case_labels(dataclasses.replace(case, labels=None), dataset.description)


def test_channels_must_share_a_grid(tmp_path: Path) -> None:
    files = (tmp_path / "a_0000.nii.gz", tmp_path / "a_0001.nii.gz")
    raw_data.write_volume(files[0], numbers())
    for array, options, words in (
        (numbers((4, 6, 6)), {}, "shape"),
        (numbers(), {"spacing": (3.0, 1.0, 0.9)}, "spacing"),
        (numbers(), {"oblique": False}, "direction"),
    ):
        raw_data.write_volume(files[1], array, **options)
        with pytest.raises(ImageError, match=f"a: a_0001.nii.gz does not lie on the grid of a_0000.nii.gz: {words}"):
            read_case(case_of(*files), description(2))
    raw_data.write_volume(files[1], numbers(), origin=(0.0, 0.0, 0.0))
    assert read_case(case_of(*files), description(2))[0].shape == (2, *SHAPE)


def test_a_colour_picture_is_three_channels(tmp_path: Path) -> None:
    Image.fromarray(numbers((6, 5, 3), np.uint8)).save(tmp_path / "a_0000.png")
    image, _ = read_case(case_of(tmp_path / "a_0000.png"), description(3, ".png"))
    assert image.shape == (3, 1, 6, 5)
    with pytest.raises(ImageError, match="has 3 channels in 1 file, but 1 channel"):
        read_case(case_of(tmp_path / "a_0000.png"), description(1, ".png"))


def test_video_frames_lie_along_z(tmp_path: Path, video_dataset: Callable[..., Path]) -> None:
    raw = video_dataset(frames=3).parent
    dataset = open_dataset(Paths(raw=raw, preprocessed=raw, results=raw, weights=raw), "2")
    case = dataset.cases[0]
    image, geometry = read_case(case, dataset.description)
    labels, where = read_case_labels(case, dataset.description)
    assert image.shape == (3, 3, 24, 20) and geometry.shape == labels.shape == (3, 24, 20)
    assert geometry.spacing == (1.0, 1.0, 1.0) and geometry.dimensions == 3 and where == geometry
    for t, files in enumerate(case.images):
        np.testing.assert_array_equal(image[:, t : t + 1], read_image(files[0])[0])
    Image.fromarray(np.zeros((10, 20, 3), np.uint8)).save(case.images[1][0])
    with pytest.raises(
        ImageError, match=r"clip0: frame clip0_frame001 is 10 x 20 pixels, but the first frame is 24 x 20"
    ):
        read_case(case, dataset.description)


def test_a_volume_is_no_frame(tmp_path: Path) -> None:
    files = []
    for name in ("f0", "f1"):
        raw_data.write_volume(tmp_path / f"{name}_0000.nii.gz", numbers())
        files.append((tmp_path / f"{name}_0000.nii.gz",))
    case = Case(identifier="clip", frames=("f0", "f1"), images=tuple(files))
    with pytest.raises(ImageError, match="clip: frame f0 is a volume of 4 slices, not a picture"):
        read_case(case, description())


def test_longer_endings_come_first() -> None:
    assert IMAGE_ENDINGS.index(".nii.gz") < IMAGE_ENDINGS.index(".nii")


@pytest.mark.parametrize("ending", [".nii.gz", ".mha", ".nhdr", ".png", ".tif"])
def test_unwritable_folder(tmp_path: Path, ending: str) -> None:
    (tmp_path / "file").write_text("not a folder")
    geometry = Geometry(shape=(1, 6, 5), spacing=(1, 1, 1), dimensions=2)
    with pytest.raises(OutputError, match="cannot write"):
        write_labels(tmp_path / "file" / f"a{ending}", np.zeros((1, 6, 5), np.uint8), geometry)


@pytest.mark.parametrize("ending", [".nii.gz", ".png", ".tif"])
def test_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    geometry = Geometry(shape=(1, 6, 5), spacing=(1, 1, 1), dimensions=2)
    path = tmp_path / f"a{ending}"
    write_labels(path, np.ones((1, 6, 5), np.uint8), geometry)

    def full(self: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match="Free some space"):
        write_labels(path, np.zeros((1, 6, 5), np.uint8), geometry)
    assert read_labels(path)[0].all() and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("ending", [".nrrd", ".mhd"])
def test_full_disk_with_itk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    geometry = Geometry(shape=SHAPE, spacing=(1, 1, 1))
    path = tmp_path / f"a{ending}"
    write_labels(path, np.ones(SHAPE, np.uint8), geometry)

    def full(image: sitk.Image, name: str, **options: object) -> None:
        Path(name).write_bytes(b"half")
        raise RuntimeError(
            "Exception thrown\nITK ERROR: Io(0x5): File cannot be written\nReason: No space left on device"
        )

    monkeypatch.setattr(sitk, "WriteImage", full)
    with pytest.raises(OutputError, match=r"cannot write .*No space left on device. Is the disk full"):
        write_labels(path, np.zeros(SHAPE, np.uint8), geometry)
    assert read_labels(path)[0].all() and list(tmp_path.iterdir()) == [path]


REFUSED = {
    "complex.nii.gz": "complex voxels",
    "example_nifti2.nii.gz": "4D, 2 volumes of 32 x 20 x 12",
    "pcasl.nii.gz": "4D, 10 volumes of 52 x 68 x 20",
    "1-001.dcm": "unknown kind of file",
    "1-002.dcm": "unknown kind of file",
    "1-003.dcm": "unknown kind of file",
}


def test_odd_real_files(shared_data: Path, tmp_path: Path) -> None:
    files = sorted(path for path in (shared_data / "odd").rglob("*") if path.is_file())
    assert files
    for path in files:
        if path.name in REFUSED:
            with pytest.raises(ImageError, match=REFUSED[path.name]):
                read_image(path)
            continue
        image, geometry = read_image(path)
        assert image.shape == (3 if path.name == "ct_perfusion.nii.gz" else 1, *geometry.shape)
        assert np.isfinite(image).all() and read_geometry(path) == geometry
        if path.suffix != ".mgz":
            expected = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
            np.testing.assert_array_equal(image[0], expected[..., 0] if expected.ndim == 4 else expected)
        small = dataclasses.replace(geometry, shape=(2, 3, 4))
        write_labels(tmp_path / "labels.nii.gz", np.ones((2, 3, 4), np.uint8), small)
        np.testing.assert_allclose(read_geometry(tmp_path / "labels.nii.gz").affine, geometry.affine, atol=1e-4)
    sheared = read_geometry(shared_data / "odd" / "shear.nii.gz")
    assert np.abs(sheared.affine[:3, :3].T @ sheared.affine[:3, :3])[1, 2] > 0.1, "the gantry tilt is kept"


def test_real_video_frames(shared_data: Path) -> None:
    for clip in sorted((shared_data / "video").iterdir()):
        frame, geometry = read_image(sorted((clip / "frames").iterdir())[0])
        mask, where = read_labels(sorted((clip / "masks").iterdir())[0])
        assert frame.shape == (3, 1, 480, 854) and mask.shape == (1, 480, 854) and geometry == where
        assert set(np.unique(mask)) <= {0, 255}


def dicom_case(folder: Path, *grids: Geometry) -> Case:
    written = [
        tuple(dicom_files.write_series(folder / f"a_{i:04d}", numbers(grid.shape) + 1000 * i, grid, name=str(i)))
        for i, grid in enumerate(grids)
    ]
    return Case(identifier="a", frames=("a",), images=(tuple(files[0] for files in written),), series=tuple(written))


def test_dicom_channels(tmp_path: Path) -> None:
    grid = Geometry(shape=SHAPE, spacing=(3.0, 1.0, 0.8))
    image, geometry = read_case(dicom_case(tmp_path, grid, grid), description(2))
    np.testing.assert_array_equal(image, np.stack([numbers(), numbers() + 1000]))
    assert image.dtype == np.float32 and geometry.difference(grid) is None


@pytest.mark.parametrize("change", [{"origin": (0.0, 0.0, 5.0)}, {"spacing": (2.0, 1.0, 0.8)}, {"shape": (5, 6, 5)}])
def test_dicom_channels_on_other_grids(tmp_path: Path, change: dict[str, Any]) -> None:
    grid = Geometry(shape=SHAPE, spacing=(3.0, 1.0, 0.8))
    case = dicom_case(tmp_path, grid, dataclasses.replace(grid, **change))
    with pytest.raises(ImageError, match=rf"a: the series in .*a_0001 does not lie .* a_0000: {next(iter(change))}"):
        read_case(case, description(2))


def test_video_files(tmp_path: Path) -> None:
    av = pytest.importorskip("av", reason="the optional library PyAV (extra `video`) is not installed")
    with av.open(tmp_path / "a.avi", "w") as file:
        stream = file.add_stream("ffv1", rate=10)
        stream.height, stream.width, stream.pix_fmt = 6, 5, "bgr0"
        for value in range(4):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((6, 5, 3), value, np.uint8), format="rgb24")))
        file.mux(stream.encode())
    image, geometry = read_case(case_of(tmp_path / "a.avi"), description(3, ".png"))
    np.testing.assert_array_equal(image[:, :, 0, 0], [[0, 1, 2, 3]] * 3)
    assert image.dtype == np.float32 and geometry.shape == SHAPE
    with pytest.raises(ImageError, match=r"b\.avi: file not found"):
        read_case(case_of(tmp_path / "b.avi"), description(3, ".png"))


def test_channels_of_one_grid_at_another_place_are_joined_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    geometry = Geometry(
        shape=(2, 3, 4),
        spacing=(1.0, 1.0, 1.0),
        origin=(0.0, 0.0, 0.0),
        direction=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0),
    )
    files = (tmp_path / "x_0000.nii.gz", tmp_path / "x_0001.nii.gz")
    for file, place in zip(files, (0.0, 40.0), strict=True):
        write_labels(file, np.ones((2, 3, 4), np.int16), dataclasses.replace(geometry, origin=(place, 0.0, 0.0)))
    description = parse_description(
        {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz"},
        name="X",
    )
    case = Case(identifier="x", frames=("x",), images=(files,))
    for _ in range(2):
        assert read_case(case, description)[0].shape == (2, 2, 3, 4)
    assert (
        caplog.text.count("x_0001.nii.gz: origin") == 1 and "in x_0000.nii.gz, treated as the same place" in caplog.text
    )


def test_no_permission_is_not_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw_data.write_volume(tmp_path / "a.nii.gz", np.zeros((2, 3, 4), np.int16))
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may read everything
    with pytest.raises(ImageError, match=r"a\.nii\.gz: no permission to read it"):
        read_image(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".mha", ".nrrd", ".gipl", ".mgz", ".png", ".tif"])
def test_names_that_are_no_utf8_end_no_process(tmp_path: Path, ending: str) -> None:
    folder = tmp_path / "M\udcfcller"  # as a disk has it on which names are Latin-1
    folder.mkdir()
    labels = np.arange(12, dtype=np.int16).reshape((1, 3, 4) if ending == ".png" else (2, 3, 2))
    geometry = Geometry(shape=labels.shape, spacing=(1.0, 1.0, 1.0))
    write_labels(tmp_path / f"a{ending}", labels, geometry)
    (folder / f"a{ending}").write_bytes((tmp_path / f"a{ending}").read_bytes())
    if ending in (".mgz", ".png", ".tif"):
        np.testing.assert_array_equal(read_labels(folder / f"a{ending}")[0], labels)
        return
    for read in (read_image, read_labels, read_geometry):
        with pytest.raises(ImageError, match=r"a\..* not UTF-8"):
            read(folder / f"a{ending}")
