"""formats.tiff: layouts, spacing, truncation."""

import json
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from PIL import Image, TiffImagePlugin

from masam_auto.core.errors import ImageError
from masam_auto.core.geometry import Geometry
from masam_auto.formats import tiff
from masam_auto.formats.io import (
    read_geometry,
    read_image,
    read_labels,
    write_labels,
)
from tests import raw_data

SHAPE = (4, 6, 5)


def numbers(shape: tuple[int, ...] = SHAPE, kind: Any = np.float32) -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(kind)


@pytest.mark.parametrize(
    ("shape", "options", "expected"),
    [
        ((6, 5), {}, (1, 1, 6, 5)),
        ((6, 5, 3), {"photometric": "rgb"}, (3, 1, 6, 5)),
        ((6, 5, 4), {"photometric": "rgb", "extrasamples": ["unassalpha"]}, (3, 1, 6, 5)),
        ((4, 6, 5), {"photometric": "minisblack"}, (1, 4, 6, 5)),
        ((1, 6, 5), {"photometric": "minisblack"}, (1, 1, 6, 5)),
        ((4, 6, 5, 3), {"photometric": "rgb"}, (3, 4, 6, 5)),
        ((4, 2, 6, 5), {"imagej": True, "metadata": {"axes": "ZCYX"}}, (2, 4, 6, 5)),
    ],
)
def test_tiff_layouts(
    tmp_path: Path, shape: tuple[int, ...], options: dict[str, Any], expected: tuple[int, ...]
) -> None:
    array = numbers(shape, np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", array, **options)
    image, geometry = read_image(tmp_path / "a.tif")
    assert image.shape == expected and geometry.shape == expected[1:]
    assert geometry.dimensions == (2 if len(shape) == 2 or (shape[-1] in (3, 4) and len(shape) == 3) else 3)
    assert read_geometry(tmp_path / "a.tif") == geometry
    first = image[0].ravel()[:3]
    np.testing.assert_array_equal(first, array.reshape(-1)[:: shape[-1] if shape[-1] in (3, 4) else 1][:3])


def test_too_many_tiff_axes(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", numbers((2, 3, 6, 5), np.uint8), imagej=True, metadata={"axes": "TZYX"})
    with pytest.raises(ImageError, match=r"a.tif: has 4 axes"):
        read_image(tmp_path / "a.tif")


def test_tiff_spacing_from_imagej_ome_and_side_car(tmp_path: Path) -> None:
    stack = numbers(SHAPE, np.uint8)
    path = tmp_path / "a_0000.tif"
    resolution = (1 / 0.5, 1 / 0.25)  # pixels per unit along x and y
    tifffile.imwrite(
        path, stack, imagej=True, resolution=resolution, metadata={"spacing": 2.0, "unit": "um", "axes": "ZYX"}
    )
    np.testing.assert_allclose(read_geometry(path).spacing, (2e-3, 0.25e-3, 0.5e-3))
    tifffile.imwrite(path, stack, imagej=True, metadata={"spacing": 2.0, "axes": "ZYX"})
    assert read_geometry(path).spacing == (2.0, 1.0, 1.0)
    sizes = {"PhysicalSizeX": 500.0, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.25, "PhysicalSizeZ": 2.0}
    tifffile.imwrite(path, stack, ome=True, photometric="minisblack", metadata={"axes": "ZYX", **sizes})
    np.testing.assert_allclose(read_geometry(path).spacing, (2e-3, 0.25e-3, 0.5e-3))
    (tmp_path / "a.json").write_text(json.dumps({"spacing": [5, 4, 3]}))
    assert read_image(path)[1].spacing == (5.0, 4.0, 3.0)
    (tmp_path / "a.json").write_text(json.dumps({"spacing": [5, 4]}))
    with pytest.raises(ImageError, match=r'a.json: must hold \{"spacing": \[z, y, x\]\}'):
        read_image(path)


def test_tiff_stack_labels_keep_their_spacing(tmp_path: Path) -> None:
    geometry = Geometry(shape=SHAPE, spacing=(2.0, 0.5, 0.25), oriented=False)
    write_labels(tmp_path / "a.tif", numbers(kind=np.uint8), geometry)
    found, where = read_labels(tmp_path / "a.tif")
    np.testing.assert_array_equal(found, numbers())
    assert where == geometry


def ome_stack(path: Path, planes: str, root: str = "") -> None:
    """A stack of two planes, with other words about where its planes lie."""
    tifffile.imwrite(path, np.ones((2, 4, 5), np.uint8), ome=True, photometric="minisblack", metadata={"axes": "ZYX"})
    with tifffile.TiffFile(path) as file:
        text = file.ome_metadata
    text = re.sub(r'UUID="[^"]*"', root, re.sub(r"<TiffData[^>]*/>", planes, text))
    tifffile.imwrite(
        path, np.ones((2, 4, 5), np.uint8), description=text.encode(), photometric="minisblack", metadata=None
    )


IN_FILE = '<TiffData FirstZ="{z}" IFD="{i}" PlaneCount="1"><UUID FileName="{name}">urn:uuid:{uuid}</UUID></TiffData>'


@pytest.mark.parametrize("root", ["", 'UUID="urn:uuid:1"'])
def test_a_file_that_was_renamed_is_still_all_of_its_image(root: str, tmp_path: Path) -> None:
    planes = "".join(IN_FILE.format(z=z, i=z, name="as_it_was.ome.tif", uuid=1) for z in (0, 1))
    ome_stack(tmp_path / "a.tif", planes, root)
    assert read_image(tmp_path / "a.tif")[0].shape == (1, 2, 4, 5)


@pytest.mark.parametrize(
    ("planes", "root", "problem"),
    [
        (
            IN_FILE.format(z=0, i=0, name="a.tif", uuid=1) + IN_FILE.format(z=1, i=0, name="b.tif", uuid=2),
            "",
            "only part",
        ),
        (IN_FILE.format(z=0, i=0, name="../b.tif", uuid=2), 'UUID="urn:uuid:1"', "is only part of its image"),
        (f'<TiffData IFD="0" PlaneCount="{10**9}"/>', "", "asks for more than 100000 pages"),
        (f'<TiffData IFD="0" PlaneCount="{10**12}"/>', "", "asks for more than 100000 pages"),
        (f'<TiffData IFD="0" FirstZ="{10**9 - 1}"/>', "", "asks for more than 100000 pages"),
        ('<TiffData IFD="7" PlaneCount="1"/>', "", "index out of range"),
    ],
)
def test_planes_elsewhere_are_not_looked_for(planes: str, root: str, problem: str, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "b.tif", np.full((2, 4, 5), 9, np.uint8))
    ome_stack(tmp_path / "a.tif", planes, root)
    for read in (read_image, read_geometry):
        with pytest.raises(ImageError, match=rf"a\.tif: .*{problem}"):
            read(tmp_path / "a.tif")


def pages(count: int, *, back_to: int | None = None) -> bytes:
    """A TIFF of small pages that share their pixels; the last may point to one before."""
    tags = [(256, 8), (257, 8), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, 8), (279, 64)]
    start, size = 8 + 64, 2 + 12 * len(tags) + 4
    last = 0 if back_to is None else start + size * back_to
    follow = [*(start + size * (page + 1) for page in range(count - 1)), last]
    page = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", start) + bytes(64) + b"".join(page + struct.pack("<I", to) for to in follow)


def test_pages_without_end_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(pages(150))
    assert read_image(tmp_path / "a.tif")[0].shape == (1, 150, 8, 8)
    for content in (pages(150, back_to=140), pages(tiff.PAGE_LIMIT + 1)):
        (tmp_path / "a.tif").write_bytes(content)
        for read in (read_image, read_geometry):
            with pytest.raises(ImageError, match=r"a\.tif: has more than 100000 pages"):
                read(tmp_path / "a.tif")


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("kind", ["imagej", "ome", "shaped", "plain"])
def test_a_truncated_stack_is_never_read_in_part(tmp_path: Path, kind: str, compression: str | None) -> None:
    stack = np.random.default_rng(0).integers(0, 255, (8, 16, 14)).astype(np.uint8)
    kinds: dict[str, dict[str, Any]] = {
        "imagej": {"imagej": True, "metadata": {"axes": "ZYX"}},
        "ome": {"ome": True},
        "plain": {"metadata": None},
    }
    options = kinds.get(kind, {})
    if kind == "imagej" and compression:
        pytest.skip("ImageJ's own stacks are not compressed")
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="minisblack", compression=compression, **options)
    content = (tmp_path / "a.tif").read_bytes()
    for length in range(len(content) // 10, len(content), len(content) // 10):
        (tmp_path / "a.tif").write_bytes(content[:length])
        try:
            found = read_image(tmp_path / "a.tif")[0]
        except ImageError as error:
            assert "a.tif" in str(error)
        else:
            np.testing.assert_array_equal(found[0], stack)  # only trailing metadata was lost


@pytest.mark.parametrize("compression", ["group3", "group4", "tiff_lzw", "packbits", "tiff_deflate", None])
def test_masks_of_one_bit_are_labels_however_compressed(compression: str | None, tmp_path: Path) -> None:
    mask = np.random.default_rng(0).random((20, 30)) > 0.5
    Image.fromarray(mask).save(tmp_path / "a.tif", compression=compression)
    np.testing.assert_array_equal(read_labels(tmp_path / "a.tif")[0][0], mask)
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif")[0][0, 0] > 0, mask)


def test_a_large_empty_mask_is_no_bomb(tmp_path: Path) -> None:
    Image.new("1", (6000, 5000)).save(tmp_path / "a.tif", compression="group4")
    assert (tmp_path / "a.tif").stat().st_size < 3000
    assert read_labels(tmp_path / "a.tif")[0].shape == (1, 5000, 6000)


def test_lzw_tiff_is_read(tmp_path: Path) -> None:
    for shape in (SHAPE, SHAPE[1:]):
        writer = sitk.ImageFileWriter()
        writer.SetFileName(str(tmp_path / "a.tif"))
        writer.UseCompressionOn()
        writer.SetCompressor("LZW")
        writer.Execute(sitk.GetImageFromArray(numbers(shape, np.uint8)))
        image, geometry = read_image(tmp_path / "a.tif")
        np.testing.assert_array_equal(image.reshape(shape), numbers(shape))
        assert geometry.dimensions == len(shape)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_where_zero_is_white_bright_is_high_and_labels_stay(tmp_path: Path, dtype: type) -> None:
    stored = np.arange(12, dtype=dtype).reshape(3, 4)
    tifffile.imwrite(tmp_path / "x.tif", stored, photometric="miniswhite")
    assert np.array_equal(read_image(tmp_path / "x.tif")[0][0, 0], np.iinfo(dtype).max - stored.astype(np.float32))
    if dtype == np.uint8:
        assert np.array_equal(read_labels(tmp_path / "x.tif")[0][0], stored)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("depth", [1, 3])
def test_pictures_are_read_as_viewers_show_them(tmp_path: Path, orientation: int, depth: int) -> None:
    shown = np.arange(depth * 4 * 6, dtype=np.uint8).reshape(depth, 4, 6)
    stored = np.stack([raw_data.HELD[orientation](one) for one in shown])
    tag = (274, "H", 1, orientation, True)
    tifffile.imwrite(tmp_path / "a.tif", stored if depth > 1 else stored[0], extratags=[tag], photometric="minisblack")
    spacing = [5.0, 2.0, 3.0] if orientation in (5, 6, 7, 8) else [5.0, 3.0, 2.0]
    (tmp_path / "a.json").write_text(json.dumps({"spacing": spacing}))  # of the pixels as they are stored
    array, geometry = read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(array[0], shown)
    assert read_geometry(tmp_path / "a.tif") == geometry
    assert geometry.spacing[1:] == (3.0, 2.0)
    np.testing.assert_array_equal(read_labels(tmp_path / "a.tif")[0], shown)


def test_what_only_itk_reads_must_be_upright(tmp_path: Path) -> None:
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[274] = 6
    Image.fromarray(np.ones((4, 6), np.uint8)).save(tmp_path / "a.tif", compression="tiff_lzw", tiffinfo=info)
    with pytest.raises(ImageError, match=r"a\.tif: has a rotation .*compression \(LZW\)\. Save it without compression"):
        read_image(tmp_path / "a.tif")


def write_pages(path: Path, pages: list[np.ndarray], **options: Any) -> None:
    with tifffile.TiffWriter(path) as file:
        for number, page in enumerate(pages):
            compression = "zlib" if number % 2 else None
            file.write(page, compression=compression, contiguous=False, metadata=None, **options)


def test_pages_that_are_stored_differently_are_one_stack(tmp_path: Path) -> None:
    stack = numbers(kind=np.uint8)
    write_pages(tmp_path / "a.tif", list(stack), photometric="minisblack")
    array, geometry = read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(array[0], stack)
    assert geometry == read_geometry(tmp_path / "a.tif") and geometry.shape == SHAPE
    np.testing.assert_array_equal(read_labels(tmp_path / "a.tif")[0], stack)


@pytest.mark.parametrize("other", [np.zeros((6, 5), np.uint16), np.zeros((3, 4), np.uint8)])
def test_images_of_several_kinds_are_refused(tmp_path: Path, other: np.ndarray) -> None:
    """A part of what the file holds would be taken for all."""
    write_pages(tmp_path / "a.tif", [np.zeros((6, 5), np.uint8), other], photometric="minisblack")
    for read in (read_image, read_geometry, read_labels):
        with pytest.raises(ImageError, match=r"a\.tif: has images of different size or kind"):
            read(tmp_path / "a.tif")


def test_palettes_give_colours_and_as_labels_their_indices(tmp_path: Path) -> None:
    stored = np.arange(30, dtype=np.uint8).reshape(6, 5)
    grey = np.tile(np.arange(255, -1, -1, dtype=np.uint16) * 257, (3, 1))
    coloured = grey.copy()
    coloured[0] = 7 * 257
    for palette in (grey, coloured):
        tifffile.imwrite(tmp_path / "a.tif", stored, photometric="palette", colormap=palette)
        shown = read_image(tmp_path / "a.tif")[0][:, 0]
        expected = [255 - stored] if palette is grey else [np.full_like(stored, 7), 255 - stored, 255 - stored]
        np.testing.assert_array_equal(shown, expected)
        np.testing.assert_array_equal(read_labels(tmp_path / "a.tif")[0][0], stored)


@pytest.mark.parametrize(("samples", "extra", "channels"), [(2, 0, 2), (4, 0, 4), (2, 2, 1), (4, 1, 3)])
def test_only_what_is_called_alpha_is_dropped(tmp_path: Path, samples: int, extra: int, channels: int) -> None:
    photometric = "rgb" if samples == 4 and extra else "minisblack"
    extras = [extra] * (1 if photometric == "rgb" or samples == 2 else samples - 1)
    tifffile.imwrite(
        tmp_path / "a.tif",
        np.ones((6, 5, samples), np.uint8),
        photometric=photometric,
        planarconfig="contig",
        extrasamples=extras,
    )
    assert read_image(tmp_path / "a.tif", channels=channels)[0].shape == (channels, 1, 6, 5)


@pytest.mark.parametrize(("photometric", "said"), [(0, "stores white as zero"), (3, "has a palette")])
def test_what_itk_would_read_otherwise_is_refused(tmp_path: Path, photometric: int, said: str) -> None:
    picture = Image.fromarray(np.ones((4, 6), np.uint8))
    picture = picture.convert("P") if photometric == 3 else picture
    picture.save(tmp_path / "a.tif", compression="tiff_lzw", tiffinfo={262: photometric})
    with pytest.raises(ImageError, match=said):
        read_image(tmp_path / "a.tif")
