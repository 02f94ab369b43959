"""formats.bitmaps: grey, colour, palette and 16-bit pictures."""

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from masam_auto.core.errors import ImageError
from masam_auto.core.geometry import Geometry
from masam_auto.formats.io import (
    read_geometry,
    read_image,
    read_labels,
    write_labels,
)
from tests import raw_data


def numbers(shape: tuple[int, ...], kind: Any = np.uint8) -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(kind)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_grey_png(tmp_path: Path, kind: type) -> None:
    pixels = numbers((6, 5), kind) * (200 if kind is np.uint16 else 1)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image, geometry = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(image, pixels[None, None])
    assert geometry == Geometry(shape=(1, 6, 5), spacing=(1, 1, 1), dimensions=2, oriented=False)
    assert read_geometry(tmp_path / "a.png") == geometry
    np.testing.assert_array_equal(read_labels(tmp_path / "a.png")[0], pixels[None])


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("samples", [2, 3, 4])
def test_colours_are_channels_and_alpha_is_dropped(tmp_path: Path, kind: type, samples: int) -> None:
    pixels = numbers((6, 5, samples), kind) * (300 if kind is np.uint16 else 2)
    if kind is np.uint16:
        sitk.WriteImage(sitk.GetImageFromArray(pixels, isVector=True), str(tmp_path / "a.png"))
    else:
        Image.fromarray(pixels).save(tmp_path / "a.png")
    if kind is np.uint16 and samples == 2:
        with pytest.raises(ImageError, match="Save it without alpha"):
            read_image(tmp_path / "a.png")
        return
    image, _ = read_image(tmp_path / "a.png")
    kept = 1 if samples == 2 else 3
    np.testing.assert_array_equal(image, np.moveaxis(pixels[..., :kept], -1, 0)[:, None])


def test_palette_and_two_level_pictures(tmp_path: Path) -> None:
    indices = numbers((2, 2), np.uint8)
    for name, palette, channels in (
        ("grey", [0, 0, 0, 9, 9, 9, 50, 50, 50, 90, 90, 90], 1),
        ("red", [0, 0, 0, 200, 0, 0] * 2, 3),
    ):
        picture = Image.fromarray(indices)
        picture.putpalette(palette)
        picture.save(tmp_path / f"{name}.png")
        image, _ = read_image(tmp_path / f"{name}.png")
        assert image.shape == (channels, 1, 2, 2)
        np.testing.assert_array_equal(image[0, 0].ravel(), palette[::3])
        np.testing.assert_array_equal(read_labels(tmp_path / f"{name}.png")[0][0], indices)
    Image.fromarray(indices > 1).save(tmp_path / "two.png")
    assert set(np.unique(read_image(tmp_path / "two.png")[0])) == {0, 255}
    assert set(np.unique(read_labels(tmp_path / "two.png")[0])) == {0, 1}


def test_jpeg_and_bmp(tmp_path: Path) -> None:
    pixels = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    for name in ("a.jpg", "b.bmp"):
        Image.fromarray(pixels).save(tmp_path / name)
        image, _ = read_image(tmp_path / name)
        assert image.shape == (3, 1, 16, 16)
        np.testing.assert_allclose(image[:, 0, 0, 0], (200, 100, 50), atol=3)
    Image.fromarray(pixels).convert("CMYK").save(tmp_path / "print.jpg")
    assert read_image(tmp_path / "print.jpg")[0].shape == (3, 1, 16, 16)


@pytest.mark.parametrize("ending", [".png", ".bmp", ".tif"])
def test_picture_labels_round_trip(tmp_path: Path, ending: str) -> None:
    geometry = Geometry(shape=(1, 6, 5), spacing=(1, 1, 1), dimensions=2, oriented=False)
    labels = numbers((1, 6, 5), np.int16)
    write_labels(tmp_path / f"a{ending}", labels, geometry)
    found, where = read_labels(tmp_path / f"a{ending}")
    np.testing.assert_array_equal(found, labels)
    assert where == geometry
    labels[0, 0, 0] = 300
    if ending == ".bmp":
        with pytest.raises(ImageError, match="label 300 does not fit"):
            write_labels(tmp_path / f"a{ending}", labels, geometry)
    else:
        write_labels(tmp_path / f"a{ending}", labels, geometry)
        assert read_labels(tmp_path / f"a{ending}")[0].max() == 300


def test_a_picture_holds_one_slice(tmp_path: Path) -> None:
    geometry = Geometry(shape=(2, 6, 5), spacing=(1, 1, 1))
    with pytest.raises(ImageError, match="hold one slice, but there are 2"):
        write_labels(tmp_path / "a.png", np.zeros((2, 6, 5), np.uint8), geometry)


SHOWN = np.zeros((16, 24), np.uint8)
SHOWN[:8, :6] = 200  # in the upper left corner


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_read_as_viewers_show_them(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    for ending in (".jpg", ".png"):
        file = tmp_path / f"photo{ending}"
        Image.fromarray(np.ascontiguousarray(raw_data.HELD[orientation](SHOWN))).save(file, exif=exif)
        array, geometry = read_image(file)
        assert geometry.shape == read_geometry(file).shape == (1, 16, 24)
        assert np.abs(array[0, 0] - SHOWN).mean() < 8


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_photos_are_read_as_viewers_show_them(tmp_path: Path, orientation: int) -> None:
    colours = np.stack([SHOWN, SHOWN, SHOWN + 1], axis=-1).astype(np.uint16) * 200
    stored = sitk.GetImageFromArray(np.ascontiguousarray(raw_data.HELD[orientation](colours)), isVector=True)
    sitk.WriteImage(stored, str(tmp_path / "photo.png"))
    exif = Image.Exif()
    exif[0x0112] = orientation
    content, chunk = (tmp_path / "photo.png").read_bytes(), b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    packed = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "photo.png").write_bytes(content[:33] + packed + content[33:])  # behind the header
    array, geometry = read_image(tmp_path / "photo.png", channels=3)
    assert geometry.shape == read_geometry(tmp_path / "photo.png").shape == (1, 16, 24)
    np.testing.assert_array_equal(array[:, 0], np.moveaxis(colours, -1, 0))


def test_grey_saved_in_colours_is_one_channel_and_real_colours_are_not(tmp_path: Path) -> None:
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8)
    Image.fromarray(np.stack([grey] * 3, axis=-1)).save(tmp_path / "grey.png")
    assert read_image(tmp_path / "grey.png")[0].shape == (1, 1, 6, 8)
    assert read_image(tmp_path / "grey.png", channels=3)[0].shape == (3, 1, 6, 8)
    Image.fromarray(np.stack([grey, grey, grey + 1], axis=-1)).save(tmp_path / "colour.png")
    assert read_image(tmp_path / "colour.png")[0].shape == (3, 1, 6, 8)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_masks_of_few_bits_hold_their_labels(tmp_path: Path, bits: int) -> None:
    labels = np.arange(30, dtype=np.uint8).reshape(6, 5) % 2**bits
    rows = b"".join(
        b"\0" + np.packbits(np.unpackbits(row[:, None], axis=1)[:, -bits:].ravel()).tobytes() for row in labels
    )
    head = struct.pack(">IIBBBBB", 5, 6, bits, 0, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    packed = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))
    np.testing.assert_array_equal(read_labels(tmp_path / "a.png")[0][0], labels)
