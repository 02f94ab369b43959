"""What a header asks for is weighed before anything is allocated; what lies beyond it is not read."""

import gzip
import shutil
import struct
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from PIL import Image

from masam_auto.compute import machine
from masam_auto.core.errors import ImageError
from masam_auto.formats import volumes
from masam_auto.formats.io import read_geometry, read_image
from masam_auto.formats.raw_image import check_room

SHAPE = (4, 6, 5)


def write(path: Path) -> Path:
    if path.suffix in (".png", ".bmp", ".jpg"):
        Image.fromarray(np.zeros((64, 64), np.uint8)).save(path)
    elif path.suffix == ".tif":
        tifffile.imwrite(path, np.zeros(SHAPE, np.uint8), photometric="minisblack")
    elif path.suffix == ".mgz":
        nibabel.save(nibabel.MGHImage(np.zeros(SHAPE, np.float32), np.eye(4)), path)
    else:
        sitk.WriteImage(sitk.GetImageFromArray(np.zeros(SHAPE, np.int16)), str(path))
    return path


ENDINGS = [".nii", ".nii.gz", ".mgz", ".mha", ".nrrd", ".mhd", ".png", ".bmp", ".jpg", ".tif"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_more_than_there_is_memory_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    path = write(tmp_path / f"a{ending}")
    read_image(path)
    monkeypatch.setattr(machine, "free_memory", lambda: 10)
    with pytest.raises(MemoryError, match=rf"a\{ending} needs \d+ bytes, and 10 bytes are free"):
        read_image(path)


def enlarged_nifti(path: Path) -> None:
    content = bytearray(path.read_bytes())
    struct.pack_into("<3h", content, 42, 30000, 30000, 30000)
    path.write_bytes(bytes(content))


def test_a_volume_that_its_file_cannot_hold_is_refused(tmp_path: Path) -> None:
    enlarged_nifti(write(tmp_path / "a.nii"))
    with pytest.raises(ImageError, match=r"a\.nii: its header asks for 50291\.4 GiB, which \d+ bytes cannot hold"):
        read_image(tmp_path / "a.nii")


@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
def test_an_itk_header_that_its_file_cannot_hold_is_refused(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"a{ending}")
    content = path.read_bytes().replace(b"5 6 4", b"30000 30000 30000")
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"its header asks for .* cannot hold"):
        read_image(path)


def test_a_picture_that_its_file_cannot_hold_is_refused(tmp_path: Path) -> None:
    head = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", len(head)) + b"IHDR" + head + struct.pack(">I", zlib.crc32(b"IHDR" + head))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT")
    for read in (read_image, read_geometry):
        with pytest.raises(ImageError, match=r"a\.png: its header asks for 3\.4 GiB"):
            read(tmp_path / "a.png")


def test_reading_stops_where_the_header_ends(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii")
    content = path.read_bytes()
    with gzip.open(tmp_path / "b.nii.gz", "wb") as file:
        file.write(content)
        for _ in range(32):
            file.write(bytes(1 << 20))
    assert len(volumes._read_whole(tmp_path / "b.nii.gz", len(content))) == len(content) + volumes.TRAILING_BYTES
    np.testing.assert_array_equal(read_image(tmp_path / "b.nii.gz")[0], read_image(path)[0])


def test_a_wrong_checksum_is_damage(tmp_path: Path) -> None:
    content = bytearray(gzip.compress(write(tmp_path / "a.nii").read_bytes()))
    content[-6] ^= 1
    (tmp_path / "b.nii.gz").write_bytes(bytes(content))
    with pytest.raises(ImageError, match="truncated or damaged"):
        read_image(tmp_path / "b.nii.gz")


@pytest.mark.parametrize(
    "start", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"GIF89a" + bytes(20), b"nonsense"]
)
def test_pictures_of_other_kinds_are_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: bytes) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: pytest.fail(f"{name} would be run"))
    (tmp_path / "a.png").write_bytes(start)
    with pytest.raises(ImageError, match=r"a\.png: is not a PNG, BMP or JPEG picture"):
        read_image(tmp_path / "a.png")


def test_what_is_packed_as_tightly_as_can_be_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(bytes(1000))
    check_room(tmp_path / "a.bin", 1_032_000)
    with pytest.raises(ImageError):
        check_room(tmp_path / "a.bin", 10_000_001)
