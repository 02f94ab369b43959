"""TIFF: pictures and stacks, with spacing from ImageJ, OME or nnU-Net's side-car file."""

import contextlib
import io
import logging
import math
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import tifffile

from masam_auto.compute.machine import check_memory
from masam_auto.core.atomic import write_bytes
from masam_auto.core.errors import ImageError, first_few
from masam_auto.core.geometry import Geometry, Triple
from masam_auto.core.jsonio import parse_json, read_bounded
from masam_auto.formats.bitmaps import LYING, ORIENTATION, upright
from masam_auto.formats.raw_image import RawImage, check_room
from masam_auto.formats.volumes import axes_error, read_itk

MILLIMETRES = {
    "nm": 1e-6, "micron": 1e-3, "microns": 1e-3, "um": 1e-3, "\u00b5m": 1e-3, "\u03bcm": 1e-3, "mm": 1.0, "cm": 10.0,
    "m": 1000.0, "inch": 25.4,
}  # fmt: skip
DAMAGE = re.compile(
    r"invalid page offset|invalid offset to page|corrupted|failed to reshape|zeroed|invalid value offset|index out of"
)
"""tifffile only logs these, and returns the rest of the file."""

PAGE_LIMIT = 100_000
UNKNOWN_SPACING = (1.0, 1.0, 1.0)
UPRIGHT = 1
ALPHA = (1, 2)  # values of ExtraSamples that mean alpha


def read_tiff(path: Path) -> RawImage:
    """Read a TIFF: a picture, a stack, or a stack with channels.

    Alpha is dropped. If 0 is white, values are inverted, so that bright is high as in other pictures. The Orientation
    tag is applied.

    Raises:
        ImageError: other axes than channels, one stack axis, height and width; images of several kinds; a truncated
            file; or a compression that only ITK reads in a picture that is not plain grey or colour.
    """
    return _read(path, as_shown=True)


def read_tiff_labels(path: Path) -> RawImage:
    """Like `read_tiff`, for labels. They are classes, not shades, so they stay as stored unless there are only two."""
    return _read(path, as_shown=False)


def _read(path: Path, *, as_shown: bool) -> RawImage:
    with _opened(path) as file:
        axes, size = _layout(path, file)
        page = file.series[0].keyframe
        needed = math.prod(size) * (np.dtype(page.dtype).itemsize if page.dtype is not None else 1)
        bilevel = page.bitspersample == 1
        check_room(path, needed // 8 if bilevel else needed)  # an empty line of a fax is a bit
        check_memory(str(path), needed)
        try:
            one_series = len(file.series) == 1
            whole = file.series[0].asarray() if one_series else np.stack([one.asarray() for one in file.pages])
        except ValueError as error:
            if "imagecodecs" not in str(error):
                raise
            _check_plain(path, file, page, error)
            return _read_rare_compression(path, _spacing(path, file), bilevel=bilevel)
        stored: np.ndarray = whole
        # a sample without a stated purpose may be a channel
        alpha = "S" in axes and any(int(extra) in ALPHA for extra in page.extrasamples)
        if as_shown and page.photometric == tifffile.PHOTOMETRIC.PALETTE and page.colormap is not None:
            stored, axes, size = _coloured(stored, axes, page.colormap)
        if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE and (as_shown or page.bitspersample == 1):
            stored = _turned_round(stored, page.bitspersample)
        array, has_stack = _ordered(path, stored, axes, size, alpha=alpha)
        array = upright(array, _orientation(file))
        return RawImage(array=array, geometry=_geometry(array.shape, _spacing(path, file), flat=not has_stack))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tifffile.TiffFile]:
    """Open a file with a complete image. Raises ImageError if it refers to other files, is too long, or is damaged."""
    # Micro-Manager's two forms are ordinary stacks, but their metadata makes tifffile open neighbouring files
    with _no_damage(path), tifffile.TiffFile(path, is_mmstack=False, is_ndtiff=False, _multifile=False) as file:
        with contextlib.suppress(IndexError):
            file.pages[PAGE_LIMIT]
            raise ImageError(f"{path}: has more than {PAGE_LIMIT} pages. Cut it into several stacks.")
        if file.ome_metadata:
            with contextlib.suppress(ElementTree.ParseError):
                _check_ome(path, ElementTree.fromstring(file.ome_metadata))
        yield file


def _check_ome(path: Path, root: ElementTree.Element) -> None:
    """Raise ImageError if OME metadata says that planes are in other files, or too many."""
    parts = {element.text for element in root.iter() if element.tag.endswith("}UUID")}
    if len(parts) > 1 or (parts and root.get("UUID") not in (None, *parts)) or root.find("./{*}BinaryOnly") is not None:
        raise ImageError(f"{path}: its OME metadata says it is only part of its image. Save the image as one file.")
    for element in root.iter():
        sizes = [element.get(f"Size{axis}", "1") for axis in "ZCT"]
        counts = [element.get(name, "1") for name in ("PlaneCount", "NumPlanes", "FirstZ", "FirstC", "FirstT", "IFD")]
        numbers = [int(text) for text in (*sizes, *counts) if re.fullmatch(r"\d{1,9}", text)]
        if len(numbers) < len(sizes) + len(counts) or math.prod(numbers[:3]) > PAGE_LIMIT or max(numbers) > PAGE_LIMIT:
            raise ImageError(
                f"{path}: its OME metadata asks for more than {PAGE_LIMIT} pages. Save it again, or cut it."
            )


def _layout(path: Path, file: tifffile.TiffFile) -> tuple[str, tuple[int, ...]]:
    """tifffile's axes and their lengths. Pages of one size and kind form one stack, even if stored differently.

    Raises:
        ImageError: images of several kinds, so it is unclear which one is meant.
    """
    if len(file.series) == 1:
        return file.series[0].axes, file.series[0].shape
    kinds = {(page.shape, page.axes, page.dtype, page.aspage().photometric) for page in file.pages}
    if len(kinds) > 1:
        listed = first_few(sorted(f"{'x'.join(map(str, shape))} {dtype}" for shape, _, dtype, _ in kinds))
        raise ImageError(
            f"{path}: has images of different size or kind ({listed}). Save only the one you need, or a stack of "
            "pages of one kind."
        )
    ((shape, axes, _, _),) = kinds
    return f"Q{axes}", (len(file.pages), *shape)


def _check_plain(path: Path, file: tifffile.TiffFile, page: tifffile.TiffPage, error: ValueError) -> None:
    """Raise ImageError for properties that ITK, the only reader of this compression here, would ignore."""
    odd = (
        (_orientation(file) != UPRIGHT, "has a rotation (tag Orientation)"),
        (page.photometric == tifffile.PHOTOMETRIC.MINISWHITE, "stores white as zero"),
        (page.photometric == tifffile.PHOTOMETRIC.PALETTE, "has a palette"),
        (len(file.series) > 1, "has pages of several compressions"),
    )
    if said := [text for holds, text in odd if holds]:
        raise ImageError(
            f"{path}: {said[0]}, which cannot be read together with its compression "
            f"({tifffile.COMPRESSION(page.compression).name}). Save it without "
            "compression, or with zlib's (deflate)."
        ) from error


def _coloured(stored: np.ndarray, axes: str, palette: np.ndarray) -> tuple[np.ndarray, str, tuple[int, ...]]:
    """Convert palette indices to their colours (16 bits in TIFF); one channel if all of them are grey."""
    colours = palette >> 8 if not (palette & 0xFF).any() or (palette == (palette >> 8) * 257).all() else palette
    if (colours == colours[:1]).all():
        return colours[0][stored], axes, stored.shape
    shown = np.moveaxis(colours[:, stored], 0, -1)
    return shown, f"{axes}S", shown.shape


def _turned_round(stored: np.ndarray, bits: int) -> np.ndarray:
    """Invert values so that white is high; values with a sign or fraction have no white and stay."""
    if stored.dtype.kind == "b":
        return ~stored
    return 2**bits - 1 - stored if stored.dtype.kind == "u" else stored


def read_tiff_geometry(path: Path) -> Geometry:
    """Read only the header of a TIFF."""
    with _opened(path) as file:
        axes, size = _layout(path, file)
        array, has_stack = _ordered(path, np.broadcast_to(np.uint8(0), size), axes, size, alpha=False)
        array = upright(array, _orientation(file))
        return _geometry(array.shape, _spacing(path, file), flat=not has_stack)


def write_tiff(path: Path, labels: np.ndarray, geometry: Geometry) -> None:
    """Write labels (Z, Y, X), or (1, Y, X) as a picture, atomically, with the spacing as OME metadata."""
    metadata: dict[str, object] = {"axes": "YX" if geometry.dimensions == 2 else "ZYX"}
    if geometry.spacing != UNKNOWN_SPACING:
        for axis, size in zip("ZYX", geometry.spacing, strict=True):
            if axis in str(metadata["axes"]):
                metadata |= {f"PhysicalSize{axis}": size, f"PhysicalSize{axis}Unit": "mm"}
    packed = io.BytesIO()
    tifffile.imwrite(
        packed,
        labels[0] if geometry.dimensions == 2 else labels,
        ome=True,
        photometric="minisblack",
        compression="zlib",
        metadata=metadata,
    )
    write_bytes(path, packed.getvalue())


class _Messages(logging.Handler):
    """Keeps messages."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@contextlib.contextmanager
def _no_damage(path: Path) -> Iterator[None]:
    """Raise ImageError if tifffile found damage but still returned something."""
    messages = _Messages()
    logger = logging.getLogger("tifffile")
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(messages)
    try:
        yield
    finally:
        logger.removeHandler(messages)
        logger.propagate = propagate
    if found := [text for text in messages.texts if DAMAGE.search(text)]:
        raise ImageError(f"{path}: is truncated or damaged ({found[0][:150]}). Copy or download the file again.")


def _ordered(
    path: Path, stored: np.ndarray, axes: str, size: tuple[int, ...], *, alpha: bool
) -> tuple[np.ndarray, bool]:
    """Bring tifffile's axes to (C, Z, Y, X); also returns whether the file has a stack axis."""
    if alpha:
        stored = np.take(stored, range(stored.shape[axes.index("S")] - 1), axis=axes.index("S"))
    kept = [i for i, name in enumerate(axes) if name in "YX" or stored.shape[i] > 1]
    stack = [i for i in kept if axes[i] not in "YXSC"]
    channels = [i for i in kept if axes[i] in "SC"]
    if len(stack) > 1 or len(channels) > 1:
        raise axes_error(path, size[::-1])
    order = channels + stack + [axes.index("Y"), axes.index("X")]
    dropped = [i for i in range(stored.ndim) if i not in order]
    array = np.transpose(stored, dropped + order).reshape([stored.shape[i] for i in order])
    array = array if channels else array[None]
    has_stack = bool(stack) or any(axes[i] in "ZQI" for i in dropped)
    return (array if stack else array[:, None]), has_stack


def _read_rare_compression(path: Path, spacing: Triple, *, bilevel: bool) -> RawImage:
    """Read LZW and similar, which tifffile leaves to an optional package, with ITK."""
    raw = read_itk(path)
    array = raw.array[:-1] if raw.array.shape[0] in (2, 4) and not raw.is_series else raw.array
    if bilevel and not raw.is_series:  # ITK returns grey values, 0 and 255
        array = (array[:1] > 0).astype(np.uint8)
    if raw.is_series:
        raise axes_error(path, array.shape[::-1])
    return RawImage(array=array, geometry=_geometry(array.shape, spacing, flat=raw.geometry.dimensions == 2))


def _geometry(shape: tuple[int, ...], spacing: Triple, *, flat: bool) -> Geometry:
    z, y, x = shape[1:]
    return Geometry(
        shape=(z, y, x),
        spacing=(1.0, *spacing[1:]) if flat else spacing,
        dimensions=2 if flat and z == 1 else 3,
        oriented=False,
    )


def _orientation(file: tifffile.TiffFile) -> int:
    tag = file.pages.first.tags.get(ORIENTATION)
    return UPRIGHT if tag is None else int(tag.value)


def _spacing(path: Path, file: tifffile.TiffFile) -> Triple:
    """Spacing (Z, Y, X) in mm of the upright picture; 1 if unknown."""
    z, y, x = _stored_spacing(path, file)
    return (z, x, y) if _orientation(file) in LYING else (z, y, x)


def _stored_spacing(path: Path, file: tifffile.TiffFile) -> Triple:
    """From nnU-Net's side-car, OME or ImageJ metadata."""
    side_car = _side_car_spacing(path)
    if side_car is not None:
        return side_car
    if file.ome_metadata:
        with contextlib.suppress(ElementTree.ParseError):
            return _ome_spacing(file.ome_metadata)
    if file.imagej_metadata:
        return _imagej_spacing(file)
    return UNKNOWN_SPACING


def _side_car_spacing(path: Path) -> Triple | None:
    """Spacing from ID.json in the folder of ID_0000.tif or ID.tif.

    Source: place and form as documented for 3D TIFF in nnU-Net's Tiff3DIO.
    """
    for stem in dict.fromkeys((re.sub(r"_\d{4}$", "", path.stem), path.stem)):
        file = path.with_name(f"{stem}.json")
        if not file.is_file():
            continue
        try:
            z, y, x = parse_json(read_bounded(file))["spacing"]
            return (float(z), float(y), float(x))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ImageError(
                f'{file}: must hold {{"spacing": [z, y, x]}} in mm for {path.name}. Correct it.'
            ) from error
    return None


def _ome_spacing(xml: str) -> Triple:
    pixels = next((e for e in ElementTree.fromstring(xml).iter() if e.tag.endswith("}Pixels")), None)
    if pixels is None:
        return UNKNOWN_SPACING
    values = []
    for axis in "ZYX":
        size = pixels.get(f"PhysicalSize{axis}")
        unit = pixels.get(f"PhysicalSize{axis}Unit", "\u00b5m")  # OME's default
        values.append(_positive(float(size)) * MILLIMETRES.get(unit, 1.0) if size else 1.0)
    return (values[0], values[1], values[2])


def _imagej_spacing(file: tifffile.TiffFile) -> Triple:
    """ImageJ stores the slice distance in its metadata and pixels per unit in the resolution tags."""
    metadata = file.imagej_metadata or {}
    depth = _positive(float(metadata.get("spacing", 1.0)))
    scale = MILLIMETRES.get(str(metadata.get("unit", "pixel")).replace("\\u00B5", "\u00b5"))
    if scale is None:
        return (depth, 1.0, 1.0)

    tags = file.pages.first.tags

    def size(tag: str) -> float:
        if tag not in tags:
            return 1.0
        pixels, units = tags[tag].value
        return _positive(units / pixels if pixels else 0.0)

    return (depth * scale, size("YResolution") * scale, size("XResolution") * scale)


def _positive(value: float) -> float:
    """A length, or 1 if the file's value makes no sense."""
    return value if math.isfinite(value) and value > 0 else 1.0
