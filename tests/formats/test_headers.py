"""NRRD, MetaImage and GIPL: damage is told, headers that lie or name other files are refused, and whole files are
read."""

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from masam_auto.core.errors import ImageError
from masam_auto.formats.io import read_geometry, read_image

ENDINGS = [".mha", ".mhd", ".nrrd", ".nhdr", ".gipl"]


def numbers(kind: Any = np.int16, shape: tuple[int, ...] = (4, 6, 5)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 100, shape).astype(kind)


def write(path: Path, array: np.ndarray, *, packed: bool = False, vector: bool = False) -> Path:
    image = sitk.GetImageFromArray(array, isVector=vector)
    sitk.WriteImage(image, str(path), useCompression=packed)
    return path


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    ("packed", "kind"), [(False, np.uint8), (True, np.int16), (False, np.uint16), (True, np.float32)]
)
def test_whole_files_are_read(tmp_path: Path, ending: str, packed: bool, kind: Any) -> None:
    array = numbers(kind)
    path = write(tmp_path / f"a{ending}", array, packed=packed and ending != ".gipl")
    np.testing.assert_array_equal(read_image(path)[0][0], array)


@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
def test_vectors_and_pictures_are_read(tmp_path: Path, ending: str) -> None:
    vectors = numbers(np.float32, (4, 6, 5, 3))
    found = read_image(write(tmp_path / f"v{ending}", vectors, vector=True), channels=3)[0]
    np.testing.assert_array_equal(found, np.moveaxis(vectors, -1, 0))
    assert read_image(write(tmp_path / f"p{ending}", numbers(shape=(6, 5))))[0].shape == (1, 1, 6, 5)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("packed", [False, True])
def test_what_is_cut_short_is_told(tmp_path: Path, ending: str, packed: bool) -> None:
    write(tmp_path / f"a{ending}", numbers(shape=(8, 60, 50)), packed=packed and ending != ".gipl")
    largest = max(tmp_path.iterdir(), key=lambda file: file.stat().st_size)
    content = largest.read_bytes()
    for part in (0.5, 0.95):
        largest.write_bytes(content[: int(part * len(content))])
        with pytest.raises(ImageError, match=r"a\.\w+: is damaged or truncated"):
            read_image(tmp_path / f"a{ending}")


@pytest.mark.parametrize("ending", [".mha", ".mhd", ".nrrd", ".nhdr"])
def test_no_flipped_byte_of_packed_data_is_read_as_another_voxel(tmp_path: Path, ending: str) -> None:
    array = numbers(shape=(4, 20, 20))
    write(tmp_path / f"a{ending}", array, packed=True)
    largest = max(tmp_path.iterdir(), key=lambda file: file.stat().st_size)
    content = largest.read_bytes()
    for place in range(len(content) - 900, len(content), 23):
        largest.write_bytes(content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :])
        try:
            found = read_image(tmp_path / f"a{ending}")[0][0]
        except ImageError:
            continue
        np.testing.assert_array_equal(found, array)


META = b"ObjectType = Image\nNDims = 3\nDimSize = 5 6 4\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"LOCAL", b"/etc/passwd", "names '/etc/passwd' for its data"),
        (b"LOCAL", b"%s%n%s%n.raw 1 2 1", "for its data"),
        (b"LOCAL", b"LIST\nb.raw", "names 'LIST'"),
        (b"LOCAL", b"b.raw", "its data in the file itself"),
        (b"NDims = 3", b"NDims = 100", "has 100 axes"),
        (b"NDims = 3", b"NDims = -3", "has -3 axes"),
        (b"5 6 4", b"5 6", "do not fit 3 axes"),
        (b"5 6 4", b"5 6 -4", "do not fit 3 axes"),
        (b"5 6 4", b"5 6 99999999999999999999", "DimSize is"),
        (b"5 6 4", b"99999 99999 99999", "cannot hold"),
        (b"MET_UCHAR", b"MET_OTHER", "ElementType is MET_OTHER"),
    ],
)
def test_metaimage_headers_that_lie(tmp_path: Path, old: bytes, new: bytes, message: str) -> None:
    (tmp_path / "b.raw").write_bytes(bytes(120))
    (tmp_path / "a.mha").write_bytes(META + bytes(120))
    assert read_image(tmp_path / "a.mha")[0].shape == (1, 4, 6, 5)
    (tmp_path / "a.mha").write_bytes(META.replace(old, new) + bytes(120))
    with pytest.raises(ImageError, match=message):
        read_image(tmp_path / "a.mha")


@pytest.mark.parametrize("named", ["../b.raw", "/etc/passwd", "LIST", "%s%n", "gone.raw", ".hidden"])
@pytest.mark.parametrize("ending", [".mhd", ".nhdr"])
def test_detached_headers_name_a_file_beside_them(tmp_path: Path, named: str, ending: str) -> None:
    write(tmp_path / f"a{ending}", numbers())
    header = (tmp_path / f"a{ending}").read_text()
    (data,) = (file.name for file in tmp_path.iterdir() if file.suffix != ending)
    (tmp_path / f"a{ending}").write_text(header.replace(data, named))
    for read in (read_image, read_geometry):
        with pytest.raises(ImageError, match=r"for its data|is missing"):
            read(tmp_path / f"a{ending}")


NRRD = b"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 5 6 4\nencoding: raw\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"data file: /etc/passwd\n", "its data in the file itself"),
        (b"data file: LIST\n", "its data in the file itself"),
        (b"line skip: 3\n", "skips lines"),
    ],
)
def test_nrrd_headers_that_point_elsewhere(tmp_path: Path, line: bytes, message: str) -> None:
    (tmp_path / "a.nrrd").write_bytes(NRRD + b"\n" + bytes(120))
    assert read_image(tmp_path / "a.nrrd")[0].shape == (1, 4, 6, 5)
    (tmp_path / "a.nrrd").write_bytes(NRRD + line + b"\n" + bytes(120))
    with pytest.raises(ImageError, match=message):
        read_image(tmp_path / "a.nrrd")


def test_packed_data_of_more_than_is_asked_for_is_not_unpacked_to_its_end(tmp_path: Path) -> None:
    header = META.replace(b"ElementDataFile", b"CompressedData = True\nElementDataFile")
    (tmp_path / "a.mha").write_bytes(header + zlib.compress(bytes(64 << 20)))
    assert read_image(tmp_path / "a.mha")[0].shape == (1, 4, 6, 5)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([META, NRRD + b"\n"]), st.lists(st.tuples(st.integers(0, 110), st.integers(0, 255)), max_size=6))
def test_any_header_is_read_or_refused(tmp_path: Path, header: bytes, changes: list[tuple[int, int]]) -> None:
    content = bytearray(header + bytes(120))
    for place, value in changes:
        content[min(place, len(header) - 1)] = value
    path = tmp_path / ("a.mha" if header is META else "a.nrrd")
    path.write_bytes(bytes(content))
    for read in (read_image, read_geometry):
        try:
            read(path)
        except ImageError as error:
            assert path.name in str(error)
