"""A DICOM series as an array with its geometry.

pydicom (an optional library) reads the tags, SimpleITK (GDCM) the pixels, so every compression that GDCM knows works.
The grid is computed from the slices' own positions, not from their number, thickness or file names.
"""

import contextlib
import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import SimpleITK as sitk

from masam_auto.compute.machine import check_memory
from masam_auto.core.errors import DatasetError, ImageError, MasamError
from masam_auto.core.file_names import utf8_name
from masam_auto.core.geometry import Geometry
from masam_auto.formats.apart import read_apart
from masam_auto.formats.raw_image import RawImage, check_room
from masam_auto.formats.volumes import itk_cause

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

logger = logging.getLogger(__name__)

PREAMBLE, MAGIC = 128, b"DICM"
# Possible first tags of a file without a preamble: a group's length, a character set, an image type, a SOP class.
FIRST_TAGS = tuple(
    bytes((group, 0, element, 0)) for group, element in ((2, 0), (2, 2), (8, 0), (8, 5), (8, 8), (8, 0x16))
)
FARTHEST = 1e6  # millimetres
SAME_DIRECTION = 1e-3
"""Difference of direction cosines; scanners write six digits."""

EVEN_STEP = 0.05
"""Slice distances may differ by this share of the usual one."""

OFF_LINE = 0.5
"""Slices may be off the line from the first to the last by this share of a pixel."""

TILT_COSINE = 1 - 1e-6
"""Slices within 0.08 degrees of their normal count as not tilted."""

GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
SHOWN_TAGS = (
    "PhotometricInterpretation",
    "PixelRepresentation",
    "BitsStored",
    "NumberOfFrames",
    "RescaleSlope",
    "RescaleIntercept",
    *GROUPS,
)
SLICE_TAGS = (
    "Rows", "Columns", "NumberOfFrames", "ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing",
    "SliceThickness", "SpacingBetweenSlices", *GROUPS,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """One slice: its file, its frame in the file, and its position.

    `position` (x, y, z) is the centre of the first pixel; it, `rows_along` and `columns_along` are in LPS mm as in the
    file. `spacing` is between rows, then between columns. `depth` is the distance to the next slice given in the file.
    """

    file: Path
    frame: int
    position: np.ndarray
    rows_along: np.ndarray
    columns_along: np.ndarray
    spacing: tuple[float, float]
    depth: float
    shape: tuple[int, int]


def is_dicom(path: Path) -> bool:
    """Whether a file starts like DICOM, under any name. Old files have no preamble and begin with their tags."""
    try:
        with open(path, "rb") as handle:
            start = handle.read(1024)
    except OSError:
        return False
    return start[PREAMBLE : PREAMBLE + len(MAGIC)] == MAGIC or _starts_with_tags(start)


def _starts_with_tags(start: bytes) -> bool:
    """Whether bytes start with a tag of group 2 or 8 and a length that leads to another tag of these groups."""
    if start[:4] not in FIRST_TAGS:
        return False
    explicit = start[4:6].isalpha() and start[4:6].isupper()
    length = int.from_bytes(start[6:8] if explicit else start[4:8], "little")
    return start[8 + length : 10 + length] in (b"\x02\x00", b"\x08\x00")


def read_series(files: Sequence[Path]) -> RawImage:
    """Read a series, or one enhanced multi-frame file.

    Args:
        files: all slices, in any order.

    Returns:
        float32 (1, Z, Y, X), rescale slope and intercept applied. Z ascends along the slices' normal, as in ITK.

    Raises:
        ImageError: as `read_slices`; also for damaged pixels or an unknown compression.
        DatasetError: pydicom is not installed.
    """
    slices = read_slices(files)
    geometry = _stack_geometry(slices)
    for file, count in Counter(one.file for one in slices).items():
        check_room(file, count * math.prod(geometry.shape[1:]))
    check_memory(str(slices[0].file), 4 * math.prod(geometry.shape))
    array = np.empty((1, *geometry.shape), np.float32)
    places: dict[Path, list[tuple[int, int]]] = {}
    for index, one in enumerate(slices):
        places.setdefault(one.file, []).append((index, one.frame))
    for file, pairs in places.items():
        pixels = _read_pixels(file)
        if pixels.shape != (len(pairs), *geometry.shape[1:]):
            raise ImageError(
                f"{file}: has {len(pairs)} slices of {geometry.shape[1:]} pixels by its header, but {pixels.shape} are "
                "in the data. Export it again."
            )
        for index, frame in pairs:
            array[0, index] = pixels[frame]
    return RawImage(array=array, geometry=geometry)


def read_slices(files: Sequence[Path]) -> list[Slice]:
    """Slices of a series, ascending along their normal.

    Raises:
        ImageError: slices differ in size, spacing or direction, two are at one place, some are missing, unevenly spaced
            or shifted against each other, or a tag is missing.
        DatasetError: pydicom is not installed.
    """
    slices = [one for file in files for one in slices_of(file)]
    first = slices[0]
    for one in slices[1:]:
        check_alike(first, one)
    normal = np.cross(first.rows_along, first.columns_along)
    slices.sort(key=lambda one: float(one.position @ normal))
    _check_steps(slices, normal)
    return slices


def read_tags(file: Path, names: Sequence[str] | None = None) -> "Dataset":
    """Read some tags of a DICOM file, or, with None, all but the pixels.

    Raises:
        DatasetError: pydicom is not installed.
        ImageError: the file is damaged.
    """
    try:
        import pydicom  # optional: extra `dicom`
    except ImportError as error:
        raise DatasetError(
            f"{file}: reading DICOM needs pydicom. Install it (pip install 'masam_auto[dicom]'), or convert to .nii.gz."
        ) from error
    with telling_damage(file):
        wanted = None if names is None else list(names)
        return pydicom.dcmread(
            file, stop_before_pixels=True, specific_tags=wanted, force=True
        )  # also without a preamble


@contextlib.contextmanager
def telling_damage(file: Path) -> Iterator[None]:
    """Turn errors of pydicom into an ImageError that names the file.

    For damaged files it raises almost anything, also later, because it converts values only when they are used.
    """
    try:
        yield
    except (MasamError, MemoryError):
        raise
    except Exception as error:  # the cause is kept
        cause = " ".join(str(error).split())[:200]
        raise ImageError(f"{file}: this DICOM file is damaged ({cause}). Copy or export it again.") from error


def frame_groups(tags: "Dataset") -> Iterator[tuple["Dataset", ...]]:
    """Where to look for each frame's tags: its own and the shared groups or, in an ordinary file, the file."""
    if "PerFrameFunctionalGroupsSequence" not in tags:
        if int(tags.get("NumberOfFrames") or 1) == 1:
            yield (tags,)
        return
    shared = tuple(tags.get("SharedFunctionalGroupsSequence") or ())
    for frame in tags.PerFrameFunctionalGroupsSequence:
        yield (frame, *shared)


def from_groups(groups: "Sequence[Dataset]", sequence: str, name: str) -> Any:
    """A tag's value from the first group that has it; None if none has it."""
    for group in groups:
        items = group.get(sequence)
        holder = items[0] if items else group
        if holder.get(name) is not None:
            return holder.get(name)
    return None


def slices_of(file: Path) -> list[Slice]:
    """The slices of one file, in frame order. Raises like `read_tags`, and ImageError if a tag is missing."""
    tags = read_tags(file, SLICE_TAGS)
    with telling_damage(file):
        slices = list(_slices_in(file, tags))
    if not slices:
        raise ImageError(
            f"{file}: does not give the position of each frame. Export it again, or convert it to .nii.gz."
        )
    return slices


def _slices_in(file: Path, tags: "Dataset") -> Iterator[Slice]:
    frames = list(frame_groups(tags))
    if len({_rescaling(groups) for groups in frames}) > 1:
        raise ImageError(
            f"{file}: its frames have different rescale slopes, which GDCM ignores. Convert it to .nii.gz."
        )
    for frame, groups in enumerate(frames):
        direction = _numbers(file, groups, "PlaneOrientationSequence", "ImageOrientationPatient", 6)
        rows, columns = _orthonormal(file, direction)
        down, across = _numbers(file, groups, "PixelMeasuresSequence", "PixelSpacing", 2)
        depths = (from_groups(groups, "PixelMeasuresSequence", n) for n in ("SpacingBetweenSlices", "SliceThickness"))
        yield Slice(
            file=file,
            frame=frame,
            position=_numbers(file, groups, "PlanePositionSequence", "ImagePositionPatient", 3),
            rows_along=rows,
            columns_along=columns,
            spacing=(float(down), float(across)),
            depth=next((abs(float(depth)) for depth in depths if depth), 1.0),
            shape=(int(tags.Rows), int(tags.Columns)),
        )


def _rescaling(groups: "Sequence[Dataset]") -> tuple[Any, ...]:
    return tuple(
        from_groups(groups, "PixelValueTransformationSequence", n) for n in ("RescaleSlope", "RescaleIntercept")
    )


def _numbers(file: Path, groups: "Sequence[Dataset]", sequence: str, name: str, count: int) -> np.ndarray:
    found = from_groups(groups, sequence, name)
    if found is None or len(found) != count:
        raise ImageError(
            f"{file}: has no {name}, so its place in space is unknown: it is damaged or not a slice. Export it again."
        )
    numbers = np.asarray(found, dtype=np.float64)
    if np.abs(numbers).max() > FARTHEST or not np.isfinite(numbers).all():
        raise ImageError(f"{file}: {name} is {numbers.tolist()}, which is not a valid place. Export it again.")
    return numbers


def _orthonormal(file: Path, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors along rows and columns, with the file's rounding removed."""
    along, down = direction[:3], direction[3:]
    lengths = np.linalg.norm(along), np.linalg.norm(down)
    if max(abs(lengths[0] - 1), abs(lengths[1] - 1), abs(along @ down)) > 10 * SAME_DIRECTION:
        raise ImageError(
            f"{file}: ImageOrientationPatient {direction.tolist()} is not two orthogonal unit vectors. Export it again."
        )
    along = along / lengths[0]
    down = down - along * (along @ down)
    return along, down / np.linalg.norm(down)


def check_alike(first: Slice, other: Slice) -> None:
    """Raise ImageError if two slices differ in size, direction or spacing."""
    pairs = f"{first.file} and {other.file.name}"
    if first.shape != other.shape:
        raise ImageError(f"{pairs} differ in size: {first.shape} and {other.shape} pixels. Keep one kind in a series.")
    turned = np.abs([first.rows_along - other.rows_along, first.columns_along - other.columns_along]).max()
    if turned > SAME_DIRECTION:
        raise ImageError(f"{pairs} have different directions. Keep slices of one direction in a series.")
    if not np.allclose(first.spacing, other.spacing, rtol=1e-3):
        raise ImageError(f"{pairs} differ in pixel spacing: {first.spacing} and {other.spacing} mm. Keep one kind.")


def _check_steps(slices: Sequence[Slice], normal: np.ndarray) -> None:
    """Raise ImageError if two slices are at one place, or if some are missing, uneven or not on a straight line."""
    if len(slices) < 2:
        return
    positions = np.stack([one.position for one in slices])
    steps = np.diff(positions @ normal)
    usual = float(np.median(steps))
    rounded = _is_rounding(positions, normal)
    for before, after, step in zip(slices, slices[1:], steps, strict=False):
        pair = f"{before.file} and {after.file.name}" + (
            f", frames {before.frame} and {after.frame}" if before.file == after.file else ""
        )
        if step < 0.01 * usual or step < 1e-3:
            raise ImageError(
                f"{pair}: two slices at one place (of {len(slices)} in the series). Keep only one time point, echo or "
                "reconstruction in a folder."
            )
        if abs(step - usual) > EVEN_STEP * usual and not rounded:
            missing = round(step / usual) - 1
            what = f"{missing} slice{'s are' if missing > 1 else ' is'} missing" if missing > 0 else "slices are uneven"
            raise ImageError(
                f"{pair}: {what} between them ({step:g} mm apart, elsewhere {usual:g} mm). Export the whole series "
                "again."
            )
    straight = np.linspace(positions[0], positions[-1], len(slices))
    sideways = np.abs((positions - straight) @ np.stack([slices[0].rows_along, slices[0].columns_along], axis=1))
    if sideways.max() > OFF_LINE * min(slices[0].spacing):
        worst = slices[int(sideways.max(axis=1).argmax())]
        raise ImageError(
            f"{worst.file}: is shifted by {sideways.max():.3g} mm against the line through the other slices of its "
            "series. Remove it, or export the series again."
        )


def _is_rounding(positions: np.ndarray, normal: np.ndarray) -> bool:
    """Whether (slices, 3) positions are evenly spaced apart from rounding to one or two decimals."""
    along = positions @ normal
    off = np.abs(along - np.linspace(along[0], along[-1], len(along))).max()
    for unit in (0.1, 0.01):
        if np.allclose(positions / unit, np.rint(positions / unit), atol=1e-4):
            # half a unit in each coordinate, and the same again for the ends of the line
            return bool(
                off <= unit * np.abs(normal).sum() + 1e-6 and off < abs(along[-1] - along[0]) / (len(along) - 1) / 3
            )
    return False


def _stack_geometry(slices: Sequence[Slice]) -> Geometry:
    """The grid of ordered slices. A tilted gantry shears it: the third axis runs from slice to slice."""
    first, last = slices[0], slices[-1]
    normal = np.cross(first.rows_along, first.columns_along)
    way = last.position - first.position
    length = float(np.linalg.norm(way))
    axis, depth = normal, first.depth
    if len(slices) > 1:
        upright = float(way @ normal) / length
        axis, depth = (normal, float(way @ normal)) if upright > TILT_COSINE else (way / length, length)
        depth /= len(slices) - 1
        if axis is not normal:
            logger.info("%s: slices are tilted by %.1f degrees", first.file.parent, np.degrees(np.arccos(upright)))
    direction = np.stack([first.rows_along, first.columns_along, axis], axis=1)
    try:
        return Geometry(
            shape=(len(slices), *first.shape),
            spacing=(depth, *first.spacing),
            origin=(float(first.position[0]), float(first.position[1]), float(first.position[2])),
            direction=tuple(direction.ravel().tolist()),
        )
    except ImageError as error:
        raise ImageError(f"{first.file}: {error}") from error


def decode_pixels(file: Path) -> RawImage:
    """(1, frames, Y, X) from GDCM, in this process; their geometry means nothing. Raises RuntimeError."""
    array = sitk.GetArrayFromImage(sitk.ReadImage(utf8_name(file), imageIO="GDCMImageIO"))
    array = array if array.ndim == 3 else array[None]
    return RawImage(array=array[None], geometry=Geometry(shape=array.shape[:3], spacing=(1.0, 1.0, 1.0)))


def _read_pixels(file: Path) -> np.ndarray:
    """(frames, Y, X), rescaled. Raises ImageError."""
    try:
        array = read_apart("gdcm", file).array[0]
    except RuntimeError as error:
        raise ImageError(f"{file}: the pixels cannot be read ({itk_cause(error)}). Export it again.") from error
    tags = read_tags(file, SHOWN_TAGS)
    with telling_damage(file):
        return _as_stored(array, tags) if tags.get("PhotometricInterpretation") == "MONOCHROME1" else array


def _as_stored(array: np.ndarray, tags: "Dataset") -> np.ndarray:
    """Stored values, rescaled. For MONOCHROME1, which only concerns display, GDCM inverts the values; undo that.

    Source: DICOM PS3.3 C.7.6.3.1.2. GDCM gives (the largest value that can be stored - stored); for signed pixels this
    is -1 - stored.
    """
    given = zip(_rescaling(next(iter(frame_groups(tags)))), ("RescaleSlope", "RescaleIntercept"), strict=True)
    # for multi-frame files, GDCM also applies the rescaling at the top of the file
    slope, intercept = (tags.get(name) if value is None else value for value, name in given)
    slope, intercept = float(1 if slope is None else slope), float(intercept or 0)
    largest = -1 if int(tags.get("PixelRepresentation") or 0) else 2 ** int(tags.BitsStored) - 1
    return slope * largest + 2 * intercept - array.astype(np.float64)
