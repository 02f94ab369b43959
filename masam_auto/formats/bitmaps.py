"""Plain pictures: PNG, BMP and JPEG, grey or colour, 8 or 16 bit. They have no geometry; the spacing is 1."""

import contextlib
import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from masam_auto.core.atomic import write_bytes
from masam_auto.core.errors import ImageError
from masam_auto.core.geometry import Geometry
from masam_auto.formats.raw_image import RawImage, check_room
from masam_auto.formats.volumes import read_itk

Image.MAX_IMAGE_PIXELS = None  # very large pictures, such as whole slides, are normal data here

BITMAP_ENDINGS = (".png", ".bmp", ".jpg", ".jpeg")
KINDS = ("PNG", "BMP", "JPEG")
FORMATS = {".png": "PNG", ".bmp": "BMP"}
ALPHA_MODES = ("LA", "La", "RGBA", "RGBa", "PA")
ORIENTATION, LYING = 0x0112, (5, 6, 7, 8)  # tag of EXIF and TIFF, and its values that swap width and height
REVERSED_AXES = {2: (-1,), 3: (-2, -1), 4: (-2,), 6: (-1,), 7: (-2, -1), 8: (-2,)}  # by its values, after the swap
GREY, GREY_WITH_ALPHA = 0, 4  # colour types in a PNG's header
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def read_bitmap(path: Path) -> RawImage:
    """Read a picture as one (grey) or three (colour) channels; alpha is dropped, palettes are resolved."""
    if _is_deep_png(path):
        return _read_deep(path)
    with _open(path) as file:
        picture = _plain(ImageOps.exif_transpose(file))
        return _from_pixels(np.asarray(picture), alpha=picture.mode in ALPHA_MODES)


def read_bitmap_labels(path: Path) -> RawImage:
    """Read a picture as labels: palette pictures give their indices, two-level ones 0 and 1."""
    if _is_deep_png(path):
        return _read_deep(path)
    with _open(path) as file:
        picture = ImageOps.exif_transpose(file)
        pixels = np.asarray(picture) // _stretched(path)
        return _from_pixels(pixels, alpha=picture.mode in ALPHA_MODES)


def read_bitmap_geometry(path: Path) -> Geometry:
    """Read only the header of a picture."""
    with _open(path) as picture:
        width, height = picture.size
        if picture.getexif().get(ORIENTATION) in LYING:
            width, height = height, width
    return bitmap_geometry(height, width)


def bitmap_geometry(height: int, width: int) -> Geometry:
    """The grid of a picture of unknown pixel size."""
    return Geometry(shape=(1, height, width), spacing=(1.0, 1.0, 1.0), dimensions=2, oriented=False)


def write_bitmap(path: Path, labels: np.ndarray, geometry: Geometry) -> None:
    """Write labels (1, Y, X) as PNG (8 or 16 bit) or BMP (8 bit), atomically.

    Raises:
        ImageError: the labels do not fit in the format.
    """
    kind = FORMATS[path.suffix.lower()]
    if labels.shape[0] != 1:
        raise ImageError(
            f"{path}: {kind} files hold one slice, but there are {labels.shape[0]}. Write .nii.gz or .tif."
        )
    if labels.dtype not in ((np.uint8, np.uint16) if kind == "PNG" else (np.uint8,)):
        raise ImageError(f"{path}: label {labels.max()} does not fit in a {kind} file. Write .png or .nii.gz.")
    packed = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(labels[0])).save(packed, format=kind)
    write_bytes(path, packed.getvalue())


def _open(path: Path) -> Image.Image:
    """Open a picture of the kinds decoded here, by its content, not its name. Pixels are not read yet.

    Without a list of kinds, Pillow would pass PostScript files to another program.

    Raises:
        ImageError: another kind, or more pixels than the file can hold.
        MemoryError: more pixels than fit in memory.
    """
    try:
        picture = Image.open(path, formats=KINDS)
    except UnidentifiedImageError as error:
        raise ImageError(
            f"{path}: is not a {', '.join(KINDS[:-1])} or {KINDS[-1]} picture. Replace it, or convert it."
        ) from error
    with contextlib.ExitStack() as stack:
        stack.enter_context(picture)
        check_room(
            path, picture.width * picture.height * len(picture.getbands()) * (4 if picture.mode in ("I", "F") else 1)
        )
        stack.pop_all()
    return picture


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn (..., Y, X) pixels to the way viewers show them, because masks are drawn on what is seen.

    Cameras and phones store how they were held.

    Args:
        pixels: as stored.
        orientation: value of the tag Orientation; unknown values turn nothing.

    Source: TIFF 6.0, section 8, Orientation; EXIF uses the same.
    """
    turned = np.swapaxes(pixels, -1, -2) if orientation in LYING else pixels
    return np.flip(turned, REVERSED_AXES.get(orientation, ()))


def _plain(picture: Image.Image) -> Image.Image:
    """Convert two-level, palette and print pictures to grey or red-green-blue (with or without alpha)."""
    if picture.mode == "1":
        return picture.convert("L")
    if picture.mode in ("CMYK", "YCbCr", "HSV", "LAB"):
        return picture.convert("RGB")
    if picture.mode not in ("P", "PA"):
        return picture
    colours = picture.convert("RGB")
    red, green, blue = colours.split()
    return red if red.tobytes() == green.tobytes() == blue.tobytes() else colours


def _stretched(path: Path) -> int:
    """Pillow's factor on the values of a grey PNG of 2 or 4 bits, which fills a byte; 1 for all other pictures."""
    depth, kind = _png_kind(path)
    return 255 // (2**depth - 1) if depth in (2, 4) and kind == GREY else 1


def _png_kind(path: Path) -> tuple[int, int]:
    """Bits per sample and colour type of a PNG; (0, 0) for other files."""
    with open(path, "rb") as handle:
        start = handle.read(26)
    return (start[24], start[25]) if start[:8] == PNG_SIGNATURE and len(start) == 26 else (0, 0)


def _is_deep_png(path: Path) -> bool:
    """Whether the file is a 16-bit PNG that Pillow would cut to 8 bits because it has colours or alpha."""
    depth, kind = _png_kind(path)
    return depth == 16 and kind != GREY


def _read_deep(path: Path) -> RawImage:
    if _png_kind(path)[1] == GREY_WITH_ALPHA:
        raise ImageError(f"{path}: 16-bit grey pictures with an alpha channel cannot be read. Save it without alpha.")
    with _open(path) as picture:
        orientation = picture.getexif().get(ORIENTATION, 1)
    array = upright(read_itk(path).array, orientation)
    return _from_pixels(np.moveaxis(array[:, 0], 0, -1), alpha=array.shape[0] == 4)


def _from_pixels(pixels: np.ndarray, *, alpha: bool) -> RawImage:
    """RawImage from (Y, X) or (Y, X, samples)."""
    samples = pixels[..., None] if pixels.ndim == 2 else pixels
    samples = samples[..., :-1] if alpha else samples
    array = np.moveaxis(samples, -1, 0)[:, None]
    return RawImage(array=array, geometry=bitmap_geometry(*array.shape[2:]))
