"""Check headers of NRRD, MetaImage and GIPL files before ITK reads them.

ITK trusts headers: it fills missing data with zeros, accepts damaged voxels, opens any file that a header names, and
some headers make it write beyond its memory. So this module reads the header as text. The data must be as long as the
header says and unpack without an error. Other files are accepted only by a plain name in the same folder.
"""

import gzip
import math
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from masam_auto.core.errors import ImageError
from masam_auto.formats.raw_image import check_room

HEADER_LIMIT = 1 << 20
BLOCK = 1 << 20
DIMENSIONS = range(2, 5)

META_TYPES = {
    "MET_CHAR": 1, "MET_UCHAR": 1, "MET_SHORT": 2, "MET_USHORT": 2, "MET_INT": 4, "MET_UINT": 4, "MET_LONG": 4,
    "MET_ULONG": 4, "MET_LONG_LONG": 8, "MET_ULONG_LONG": 8, "MET_FLOAT": 4, "MET_DOUBLE": 8,
}  # fmt: skip
NRRD_TYPES = {
    "signed char": 1, "int8": 1, "int8_t": 1, "uchar": 1, "unsigned char": 1, "uint8": 1, "uint8_t": 1,
    "short": 2, "short int": 2, "signed short": 2, "signed short int": 2, "int16": 2, "int16_t": 2, "ushort": 2,
    "unsigned short": 2, "unsigned short int": 2, "uint16": 2, "uint16_t": 2, "int": 4, "signed int": 4, "int32": 4,
    "int32_t": 4, "uint": 4, "unsigned int": 4, "uint32": 4, "uint32_t": 4, "longlong": 8, "long long": 8,
    "long long int": 8, "signed long long": 8, "signed long long int": 8, "int64": 8, "int64_t": 8, "ulonglong": 8,
    "unsigned long long": 8, "unsigned long long int": 8, "uint64": 8, "uint64_t": 8, "float": 4, "double": 8,
}  # fmt: skip
GIPL_TYPES = {7: 1, 8: 1, 15: 2, 16: 2, 31: 4, 32: 4, 64: 4, 65: 8}
GIPL_HEADER, GIPL_MAGIC = 256, (719555000, 4026526128)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Data:
    """Where the voxels are: the file, the first byte, the packing, and the number of bytes."""

    file: Path
    start: int
    packing: str
    size: int


def check_file(path: Path) -> None:
    """Check header and data of a NRRD, MetaImage or GIPL file. The data is unpacked once and discarded.

    Raises:
        ImageError: not such a file, truncated, damaged, or naming files in other folders.
        MemoryError: the voxels do not fit in memory.
    """
    data = CHECKS[path.suffix.lower()](path)
    check_room(path, data.size, on_disk=data.file.stat().st_size)
    there = 0
    try:
        with data.file.open("rb") as file:
            file.seek(data.start)
            for length in _lengths(file, data):
                there += length
                if there > data.size + BLOCK:  # more than the header asks for is not needed
                    break
    except (zlib.error, EOFError, OSError) as error:
        raise _damaged(path, f"its data cannot be unpacked: {error}") from error
    if there < data.size:
        raise _damaged(path, f"it has {there} of the {data.size} bytes that its header asks for")


def _lengths(file: IO[bytes], data: _Data) -> Iterator[int]:
    """Lengths of the unpacked data, block by block."""
    if data.packing == "raw":
        yield data.file.stat().st_size - data.start
        return
    if data.packing == "zlib":
        unpack = zlib.decompressobj()
        while not unpack.eof:
            block = unpack.unconsumed_tail or file.read(BLOCK)
            if not block:
                raise EOFError("it ends too early")
            yield len(unpack.decompress(block, BLOCK))
        return
    stream = gzip.GzipFile(fileobj=file)
    while block := stream.read(BLOCK):
        yield len(block)


def _meta(path: Path) -> _Data:
    fields, end = _fields(path, rb"(?im)^\s*ElementDataFile\s*=[^\n]*\n?", "=")
    kind = fields.get("elementtype", "")
    if kind not in META_TYPES:
        raise _damaged(path, f"ElementType is {kind or 'missing'}")
    sizes = _whole(path, "DimSize", fields.get("dimsize"))
    _check_dimensions(path, _whole(path, "NDims", fields.get("ndims")), sizes)
    channels = _whole(path, "ElementNumberOfChannels", fields.get("elementnumberofchannels", "1"))[0]
    file, start = _data_file(
        path, fields.get("elementdatafile", ""), "LOCAL", end, detached=path.suffix.lower() == ".mhd"
    )
    size = math.prod(sizes) * channels * META_TYPES[kind]
    if (skipped := _whole(path, "HeaderSize", fields.get("headersize", "0"))[0]) == -1:
        start = max(0, file.stat().st_size - size)
    elif file != path:
        start = skipped
    packed = fields.get("compresseddata", "").lower() in ("true", "1", "yes")
    return _Data(file=file, start=start, packing="zlib" if packed else "raw", size=size)


def _nrrd(path: Path) -> _Data:
    fields, end = _fields(path, rb"\r?\n\r?\n", ":")
    kind = fields.get("type", "").lower()
    if not fields["magic"].startswith("NRRD") or kind not in NRRD_TYPES:
        raise _damaged(path, f"its type is {kind or 'missing'}")
    sizes = _whole(path, "sizes", fields.get("sizes"))
    dimension = _whole(path, "dimension", fields.get("dimension"))
    _check_dimensions(path, dimension, sizes)
    named = fields.get("data file", fields.get("datafile", ""))
    file, start = _data_file(path, named, "", end, detached=path.suffix.lower() == ".nhdr")
    size = math.prod(sizes) * NRRD_TYPES[kind]
    packing = {"raw": "raw", "gzip": "gzip", "gz": "gzip"}.get(fields.get("encoding", "").lower())
    if packing is None:
        raise ImageError(f"{path}: its encoding is {fields.get('encoding') or 'missing'}. Save it as raw or gzip.")
    skip = _whole(path, "byte skip", fields.get("byte skip", fields.get("byteskip", "0")))[0]
    if (
        any(fields.get(name, "0") != "0" for name in ("line skip", "lineskip"))
        or skip < -1
        or (skip and packing != "raw")
    ):
        raise ImageError(f"{path}: skips lines or bytes before its data. Save it again without this.")
    start = file.stat().st_size - size if skip == -1 else start + skip
    return _Data(file=file, start=max(0, start), packing=packing, size=size)


def _gipl(path: Path) -> _Data:
    with path.open("rb") as file:
        header = file.read(GIPL_HEADER)
    if len(header) < GIPL_HEADER or int.from_bytes(header[252:256], "big") not in GIPL_MAGIC:
        raise _damaged(path, "it has no GIPL header")
    sizes = [int.from_bytes(header[place : place + 2], "big") for place in range(0, 8, 2)]
    kind = int.from_bytes(header[8:10], "big")
    if kind not in GIPL_TYPES:
        raise _damaged(path, f"its type is {kind}")
    size = math.prod(max(length, 1) for length in sizes) * GIPL_TYPES[kind]
    return _Data(file=path, start=GIPL_HEADER, packing="raw", size=size)


CHECKS: dict[str, Callable[[Path], _Data]] = {
    ".mha": _meta, ".mhd": _meta, ".nrrd": _nrrd, ".nhdr": _nrrd, ".gipl": _gipl,
}  # fmt: skip


def _fields(path: Path, last: bytes, separator: str) -> tuple[Mapping[str, str], int]:
    """Header lines `name SEPARATOR value` by lower-case name, and where the header ends: after the match of `last`."""
    with path.open("rb") as file:
        start = file.read(HEADER_LIMIT)
    match = re.search(last, start)
    end = match.end() if match else len(start)
    lines = start[:end].decode("latin-1").splitlines()
    fields = {"magic": lines[0] if lines else ""}
    for line in lines:
        name, found, value = line.partition(separator)
        if found and not line.startswith("#"):
            fields[name.strip().lower()] = value.strip()
    return fields, end


def _whole(path: Path, name: str, text: str | None) -> list[int]:
    if text is None or not re.fullmatch(r"-?\d{1,9}(\s+-?\d{1,9})*", text):
        raise _damaged(path, f"{name} is {text[:40] if text else 'missing'}")
    return [int(part) for part in text.split()]


def _check_dimensions(path: Path, dimensions: list[int], sizes: list[int]) -> None:
    if dimensions[0] not in DIMENSIONS:
        raise ImageError(f"{path}: has {dimensions[0]} axes; 2 to 4 can be read.")
    if len(sizes) != dimensions[0] or min(sizes) < 1:
        raise _damaged(path, f"its sizes {sizes} do not fit {dimensions[0]} axes")


def _data_file(path: Path, named: str, within: str, end: int, *, detached: bool) -> tuple[Path, int]:
    """The file with the data, and where the data starts. Raises ImageError if it is neither this file nor in its
    folder.
    """
    if named == within:
        return path, end
    if (
        not detached
        or not re.fullmatch(r"[^/\\%\x00-\x1f]+", named)
        or named.startswith(".")
        or named.upper().startswith("LIST")
    ):
        beside = "the plain name of a file in its folder" if detached else "its data in the file itself"
        raise ImageError(f"{path}: names {named[:80]!a} for its data; it must have {beside}. Save it as one file.")
    file = path.with_name(named)
    if not file.is_file():
        raise ImageError(f"{path}: its data file {named} is missing. Put it in the same folder.")
    return file, 0


def _damaged(path: Path, what: str) -> ImageError:
    return ImageError(f"{path}: is damaged or truncated: {what}. Copy or download the file again.")
