"""Read and write images and label files by file ending, as arrays with their geometry."""

import contextlib
import dataclasses
import functools
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from masam_auto.core.atomic import atomic_path
from masam_auto.core.dataset import Case, DatasetDescription
from masam_auto.core.errors import ImageError, MasamError
from masam_auto.core.file_names import image_endings
from masam_auto.core.geometry import Geometry
from masam_auto.core.plugins import find_entry
from masam_auto.formats import bitmaps, tiff, volumes
from masam_auto.formats.dicom import read_series
from masam_auto.formats.raw_image import RawImage
from masam_auto.formats.videos import is_video, read_video
from masam_auto.imaging.placement import SAME_PLACE, turned_to_place

logger = logging.getLogger(__name__)

LABEL_TOLERANCE = 1e-3
SAME_GRID = "Resample it onto that grid, or correct its header."
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Reader:
    """How to read files of one ending and write label files. `write` is None if the format would alter labels."""

    read: Callable[[Path], RawImage]
    geometry: Callable[[Path], Geometry]
    read_labels: Callable[[Path], RawImage] | None
    write: Callable[[Path, np.ndarray, Geometry], None] | None


_NIFTI = Reader(
    read=volumes.read_nifti,
    geometry=volumes.read_nifti_geometry,
    read_labels=volumes.read_nifti,
    write=volumes.write_nifti,
)
_ITK = Reader(
    read=volumes.read_itk, geometry=volumes.read_itk_geometry, read_labels=volumes.read_itk, write=volumes.write_itk
)
_MGH = Reader(
    read=volumes.read_mgh, geometry=volumes.read_mgh_geometry, read_labels=volumes.read_mgh, write=volumes.write_mgh
)
_BITMAP = Reader(
    read=bitmaps.read_bitmap,
    geometry=bitmaps.read_bitmap_geometry,
    read_labels=bitmaps.read_bitmap_labels,
    write=bitmaps.write_bitmap,
)
_JPEG = Reader(read=bitmaps.read_bitmap, geometry=bitmaps.read_bitmap_geometry, read_labels=None, write=None)
_TIFF = Reader(
    read=tiff.read_tiff, geometry=tiff.read_tiff_geometry, read_labels=tiff.read_tiff_labels, write=tiff.write_tiff
)

READERS: dict[str, Reader] = {
    **dict.fromkeys((".nii.gz", ".nii"), _NIFTI),
    **dict.fromkeys((".nrrd", ".nhdr", ".mha", ".mhd", ".gipl"), _ITK),
    **dict.fromkeys((".mgz", ".mgh"), _MGH),
    **dict.fromkeys((".png", ".bmp"), _BITMAP),
    **dict.fromkeys((".jpg", ".jpeg"), _JPEG),
    **dict.fromkeys((".tif", ".tiff"), _TIFF),
}
NIFTI_ENDINGS = tuple(ending for ending, reader in READERS.items() if reader is _NIFTI)


def is_image(path: Path) -> bool:
    """Whether a file has the ending of a readable image, in upper or lower case."""
    return path.name.lower().endswith(image_endings())


def read_image(path: Path, *, channels: int = 1) -> tuple[np.ndarray, Geometry]:
    """Read an image.

    Values are the file's, scale slope and intercept applied. Not-a-number stays (`preprocessing.verify` reports it).
    The array is oriented as by `SimpleITK.GetArrayFromImage`.

    Args:
        path: the file; its ending decides the reader.
        channels: a 4D file is accepted if it has exactly this many volumes, which become channels. With 1, a colour
            picture with only grey pixels is read as grey.

    Returns:
        float32 (C, Z, Y, X) and its geometry. Colour pictures and vector images have several channels.

    Raises:
        ImageError: missing, unreadable, truncated, unknown ending, complex voxels, or 4D.

    Example:
        >>> from masam_auto.formats.io import read_image
        >>> image, geometry = read_image(dataset.folder / "imagesTr" / "case_000_0000.nii.gz")
        >>> image.shape, image.dtype  # (C, Z, Y, X)
        ((1, 5, 16, 14), dtype('float32'))
        >>> geometry.shape, geometry.spacing  # (Z, Y, X); mm
        ((5, 16, 14), (3.0, 1.0, 0.75))
    """
    raw = _guarded(path, find_reader(path).read)
    if channels == 1 and _is_grey_in_colour(raw):
        raw = dataclasses.replace(raw, array=raw.array[:1])
    if raw.is_series and raw.array.shape[0] != channels:
        raise volumes_error(path, raw, channels)
    with np.errstate(over="ignore", invalid="ignore"):
        return np.ascontiguousarray(raw.array, dtype=np.float32), raw.geometry


def read_labels(path: Path) -> tuple[np.ndarray, Geometry]:
    """Read a label file.

    Returns:
        int16 (Z, Y, X) and its geometry. Palette pictures give their indices.

    Raises:
        ImageError: as `read_image`; also for colours, JPEG, and values that are not whole numbers within int16.

    Example:
        >>> from masam_auto.formats.io import read_labels
        >>> labels, geometry = read_labels(dataset.folder / "labelsTr" / "case_000.nii.gz")
        >>> labels.shape, labels.dtype, np.unique(labels)  # (Z, Y, X)
        ((5, 16, 14), dtype('int16'), array([0, 1, 2], dtype=int16))
    """
    reader = find_reader(path)
    if reader.read_labels is None:
        raise ImageError(f"{path}: {_no_labels(path, 'Store')}")
    raw = _guarded(path, reader.read_labels)
    if raw.is_series:
        raise volumes_error(path, raw, 1)
    if raw.array.shape[0] != 1:
        raise ImageError(
            f"{path}: has {raw.array.shape[0]} colours or channels, but labels need one whole number per pixel. "
            "Convert it: one grey value for each class."
        )
    return _whole_numbers(path, raw), raw.geometry


def label_values(labels: np.ndarray) -> list[int]:
    """Sorted values of an int16 label array. Marks values instead of sorting, which is slow for large volumes."""
    seen = np.zeros(1 << 16, bool)
    seen[labels.view(np.uint16)] = True
    return sorted(np.flatnonzero(seen).astype(np.uint16).view(np.int16).tolist())


def read_geometry(path: Path) -> Geometry:
    """Geometry of an image or label file; reads only the header. Raises ImageError."""
    return _guarded(path, find_reader(path).geometry)


def read_case(case: Case, description: DatasetDescription) -> tuple[np.ndarray, Geometry]:
    """Read all channels of a case, and all frames of a video.

    Args:
        case: its files: images, a DICOM series for each channel, or one video file.
        description: gives the expected number of channels.

    Returns:
        float32 (C, Z, Y, X) with C = `description.num_channels`, and the first channel's geometry. Channels at the same
        place but with other axes are turned to the first one's. A video has its frames along Z, with spacing 1.

    Raises:
        ImageError: a file cannot be read, channels or frames are not on the same grid, or their number is wrong.

    Example:
        >>> from masam_auto.formats.io import read_case
        >>> image, geometry = read_case(dataset.cases[1], dataset.description)
        >>> image.shape  # (C, Z, Y, X)
        (1, 6, 16, 14)
    """
    if case.series:
        return _read_series_channels(case, description)
    if is_video(case.images[0][0]):
        raw = _guarded(case.images[0][0], lambda path: read_video(path, description.num_channels))
        return raw.array.astype(np.float32), raw.geometry
    frames = [read_frame(files, description, name) for files, name in zip(case.images, case.frames, strict=True)]
    if not case.is_sequence:
        return frames[0]
    arrays = [array for array, _ in frames]
    return _stacked(case, arrays, axis=1), _sequence_geometry(frames[0][1], len(frames))


def read_case_labels(case: Case, description: DatasetDescription) -> tuple[np.ndarray, Geometry]:
    """Read the labels of a case; a video has its frames along Z.

    Returns:
        int16 (Z, Y, X) and the geometry of the label file (or of the first frame, stacked).

    Raises:
        ImageError: the case has no labels, a file cannot be read, or frames differ in shape.
    """
    if case.labels is None:
        raise ImageError(f"{case.identifier}: has no label file (labelsTr/{case.identifier}{description.file_ending})")
    frames = [read_labels(path) for path in case.labels]
    if not case.is_sequence:
        return frames[0]
    return _stacked(case, [array for array, _ in frames], axis=0), _sequence_geometry(frames[0][1], len(frames))


def _read_series_channels(case: Case, description: DatasetDescription) -> tuple[np.ndarray, Geometry]:
    """Read one DICOM series per channel. Scanners write true positions, so the origins must match as well."""
    channels = [(raw.array, raw.geometry) for raw in map(read_series, case.series)]
    channels = [turned_to_place(*channel, channels[0][1]) for channel in channels]
    folders = tuple(file.parent for file in case.images[0])
    for folder, (_, geometry) in zip(folders, channels, strict=True):
        if problem := geometry.difference(channels[0][1]):
            raise ImageError(
                f"{case.identifier}: the series in {folder} does not lie on the grid of that in {folders[0].name}: "
                f"{problem}. Resample it onto that grid."
            )
    return _channels_together(folders, channels, description, case.identifier)


def read_frame(files: tuple[Path, ...], description: DatasetDescription, name: str) -> tuple[np.ndarray, Geometry]:
    """Read the channel files of one image. Returns and raises like `read_case`; `name` is for messages."""
    expected = description.num_channels
    read = [read_image(path, channels=expected if len(files) == 1 else 1) for path in files]
    read = [turned_to_place(*channel, read[0][1]) for channel in read]
    return _channels_together(files, read, description, name)


def _channels_together(
    files: tuple[Path, ...], read: list[tuple[np.ndarray, Geometry]], description: DatasetDescription, name: str
) -> tuple[np.ndarray, Geometry]:
    """Join channels read from `files`; raises like `read_case`."""
    expected = description.num_channels
    for path, (_, geometry) in zip(files, read, strict=True):
        if problem := grid_difference(geometry, read[0][1]):
            raise ImageError(f"{name}: {path.name} does not lie on the grid of {files[0].name}: {problem}. {SAME_GRID}")
        if shift := geometry.difference(read[0][1]):
            _warn_once(f"{path}: {shift} in {files[0].name}, treated as the same place. Do they overlap in a viewer?")
    found = sum(array.shape[0] for array, _ in read)
    if found != expected:
        raise ImageError(
            f"{name}: has {_count(found, 'channel')} in {_count(len(files), 'file')}, but "
            f"{_count(expected, 'channel')} ({', '.join(description.channel_names)}) are expected, in files like "
            f"{name}_0000{description.file_ending}."
        )
    arrays = [array for array, _ in read]
    return (arrays[0] if len(arrays) == 1 else np.concatenate(arrays)), read[0][1]


@functools.lru_cache(maxsize=1024)
def _warn_once(text: str) -> None:
    """Warn only once: a case is read several times, for the fingerprint, for preprocessing and so on."""
    logger.warning("warning: %s", text)


def grid_difference(expected: Geometry, found: Geometry) -> str | None:
    """Describe how the shape, spacing or direction of two grids differ; None if they do not.

    The origin may differ. So may the direction, if no voxel moves by more than half its size when the centres are
    aligned.
    """
    found = dataclasses.replace(found, origin=expected.origin)
    problem = expected.difference(found)
    if problem and not expected.difference(dataclasses.replace(found, direction=expected.direction)):
        return problem if expected.shift(found, about_middle=True) > SAME_PLACE else None
    return problem


def write_labels(path: Path, labels: np.ndarray, geometry: Geometry, *, like: Path | None = None) -> None:
    """Write a label file, atomically and compressed, in the smallest type that fits.

    Args:
        path: its ending decides the format. TIFF gets its spacing as OME metadata.
        labels: whole numbers (Z, Y, X), shape as `geometry`.
        geometry: of the labels; reading the file returns it, shear included.
        like: the labelled image. If both are NIfTI, the label file copies its position fields exactly.

    Raises:
        ImageError: unknown ending, or a format that cannot store these labels.
        OutputError: the folder is not writable or the disk is full.

    Example:
        >>> from masam_auto.core.geometry import Geometry
        >>> from masam_auto.formats.io import read_labels, write_labels
        >>> geometry = Geometry(shape=(3, 4, 5), spacing=(2.0, 1.0, 1.0))  # (Z, Y, X)
        >>> write_labels(Path("labels.nii.gz"), np.ones((3, 4, 5), np.int16), geometry)
        >>> read_labels(Path("labels.nii.gz"))[1] == geometry
        True
    """
    assert labels.shape == geometry.shape, f"labels {labels.shape} on a grid of {geometry.shape}"
    reader = find_reader(path)
    writer = reader.write
    if writer is None:
        raise ImageError(f"{path}: {_no_labels(path, 'Write')}")
    low, high = (int(labels.min()), int(labels.max())) if labels.size else (0, 0)
    smallest = np.uint8 if low >= 0 and high <= 255 else np.uint16 if low >= 0 else np.int16
    if reader is _NIFTI and like is not None and _is_nifti_file(like):
        writer = functools.partial(volumes.write_nifti, like=like)
    own = reader in READERS.values()  # our own writers are atomic
    with contextlib.nullcontext(Path(path)) if own else atomic_path(path) as place:
        writer(place, np.ascontiguousarray(labels, dtype=smallest), geometry)


def _no_labels(path: Path, verb: str) -> str:
    if READERS.get(path.suffix.lower()) is _JPEG:
        return f"JPEG changes label values when it compresses. {verb} labels as .png."
    return f"the reader of {path.suffix} cannot handle labels. {verb} them in another format, such as .nii.gz or .png."


def _is_nifti_file(path: Path) -> bool:
    with contextlib.suppress(OSError):  # the name may be too long
        return path.name.lower().endswith(NIFTI_ENDINGS) and path.is_file()
    return False


def label_ending(file_ending: str) -> str:
    """The ending for label files of a data set: its own, or .png if its images are JPEG."""
    return ".png" if file_ending.lower() in (".jpg", ".jpeg") else file_ending


def find_reader(path: Path) -> Reader:
    """Find the reader of a file by its ending. Raises ImageError that lists the known ones."""
    name = Path(path).name.lower()
    endings = image_endings()
    for ending in endings:
        if name.endswith(ending):
            return find_entry("readers", ending, READERS, field=f"{path}: its ending", form=Reader)
    raise ImageError(f"{path}: unknown kind of file; known endings: {', '.join(endings)}. Convert it to one of these.")


def volumes_error(path: Path, raw: RawImage, expected: int) -> ImageError:
    """The error for a 4D file with another number of volumes than expected."""
    z, y, x = raw.geometry.shape
    count = raw.array.shape[0]
    wanted = "one volume is" if expected == 1 else f"one volume, or {expected} channels, are"
    return ImageError(
        f"{path}: is 4D, {count} volumes of {x} x {y} x {z} voxels, but {wanted} expected. "
        "Split it into one file per channel (ID_0000, ID_0001, ...) or into one case per time point."
    )


def _is_grey_in_colour(raw: RawImage) -> bool:
    """Whether a picture is stored as red, green and blue that are equal in every pixel."""
    picture = raw.array.shape[0] == 3 and raw.geometry.dimensions == 2 and not raw.is_series
    return picture and all(np.array_equal(raw.array[0], raw.array[channel]) for channel in (1, 2))


def _guarded(path: Path, function: Callable[[Path], T]) -> T:
    """Call a reader and turn any error from a broken file into one ImageError that names the file."""
    path = Path(path)
    if not path.is_file():
        raise ImageError(f"{path}: file not found. Put it there, or remove the case from the data set.")
    if not os.access(path, os.R_OK):
        raise ImageError(f"{path}: no permission to read it. Change its permissions (chmod) or its owner.")
    try:
        if path.stat().st_size == 0:
            raise ImageError(f"{path}: the file is empty (0 bytes). Copy or download it again.")
        return function(path)
    except MasamError as error:
        if path.name in str(error):
            raise
        raise ImageError(f"{path}: {error}") from error
    except MemoryError:
        raise
    except Exception as error:  # decoders raise almost anything for a broken file; the cause is kept
        raise ImageError(
            f"{path}: cannot be read ({_cause(error)}). The file is damaged or does not match its ending; replace it."
        ) from error


def _cause(error: Exception) -> str:
    if isinstance(error, RuntimeError) and "ERROR:" in str(error):
        return volumes.itk_cause(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())
    return text[:200] if text else type(error).__name__


def _whole_numbers(path: Path, raw: RawImage) -> np.ndarray:
    """int16 copy of label values.

    Some programs store scaled labels (nibabel, with a slope of 1/65535 of their range), which gives 1.00001526 for 1.
    So a value counts as a whole number if it differs by at most half a step of the scale, or 0.001 if that is more.

    Raises:
        ImageError: fractions, not-a-number, and values outside int16.
    """
    array = raw.array[0]
    if array.dtype.kind == "f":
        whole = np.rint(array)
        with np.errstate(invalid="ignore"):
            odd = ~(np.abs(array - whole) <= max(LABEL_TOLERANCE, raw.step / 2))  # also true for not-a-number
        odd &= np.isfinite(array) | np.isnan(array)  # the range check below catches infinity
        if odd.any():
            raise ImageError(
                f"{path}: labels must be whole numbers, but there is {array[odd].flat[0]!s}. "
                "Was it interpolated when resampled, or is it an image? Resample labels with nearest neighbour."
            )
        array = whole
    low, high = (array.min(), array.max()) if array.size else (0, 0)
    limits = np.iinfo(np.int16)
    if low < limits.min or high > limits.max:
        raise ImageError(f"{path}: labels must be within 0 and {limits.max}, but range from {low:g} to {high:g}.")
    return np.ascontiguousarray(array, dtype=np.int16)


def _stacked(case: Case, frames: list[np.ndarray], *, axis: int) -> np.ndarray:
    """Join the frames of a video along Z. Raises ImageError if they differ in shape or are volumes."""
    for name, frame in zip(case.frames, frames, strict=True):
        if frame.shape[axis] != 1:
            raise ImageError(
                f"{case.identifier}: frame {name} is a volume of {frame.shape[axis]} slices, not a picture"
            )
        if frame.shape != frames[0].shape:
            raise ImageError(
                f"{case.identifier}: frame {name} is {frame.shape[-2]} x {frame.shape[-1]} pixels, but the first frame "
                f"is {frames[0].shape[-2]} x {frames[0].shape[-1]}. All frames of a sequence must have the same size."
            )
    return np.concatenate(frames, axis=axis)


def _sequence_geometry(frame: Geometry, length: int) -> Geometry:
    _, y, x = frame.shape
    return dataclasses.replace(frame, shape=(length, y, x), spacing=(1.0, *frame.spacing[1:]), dimensions=3)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
