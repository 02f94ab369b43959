"""Files of class probabilities: compressed .npz, read with numpy only and without unpickling."""

import contextlib
import json
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from masam_auto.core.atomic import atomic_path, scratch_folder
from masam_auto.core.errors import ImageError, MasamError
from masam_auto.core.geometry import Box, Geometry
from masam_auto.core.jsonio import decode, parse_json, to_plain
from masam_auto.core.partial import partial_path
from masam_auto.formats.scratch import reserve, scratch_array

ENDING = ".npz"
VALUES = "probabilities.npy"
BLOCK = 1 << 24  # bytes compressed at a time


@dataclass(frozen=True, kw_only=True, slots=True)
class Probabilities:
    """The content of a file.

    `values` are (K, z, y, x) float16 on the image's own grid, in its box `crop`; outside the box is only background.
    `outputs` are the names of the K: "background" and the classes or, with `has_regions`, the regions.
    """

    values: np.ndarray
    crop: Box
    geometry: Geometry
    outputs: tuple[str, ...]
    has_regions: bool


@contextlib.contextmanager
def new_probabilities(
    path: Path, *, crop: Box, geometry: Geometry, outputs: tuple[str, ...], has_regions: bool
) -> Iterator[np.ndarray]:
    """Give a zero array (K, z, y, x) float16 to fill. It is written to `path` if the block ends without an error.

    The array is in a temporary file in the folder of `path`, so memory holds only the part in use.

    Args:
        path: the .npz file.
        crop, geometry, outputs, has_regions: see `Probabilities`.

    Raises:
        OutputError: no space or no permission; an existing file is kept.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (len(outputs), *(high - low for low, high in crop))
    facts: dict[str, Any] = {
        "crop": np.asarray(crop, np.int64),
        "geometry": np.asarray(json.dumps(to_plain(geometry))),
        "outputs": np.asarray(outputs),
        "has_regions": np.asarray(has_regions),
    }
    with scratch_folder(partial_path(path.with_name("scratch"))) as folder, atomic_path(path) as temporary:
        raw = folder / VALUES
        values = np.lib.format.open_memmap(raw, mode="w+", dtype=np.float16, shape=shape)
        with raw.open("r+b") as file:
            reserve(file, raw.stat().st_size, path.parent)  # before the array is written to
        yield values
        values.flush()
        del values
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            with raw.open("rb") as source, archive.open(VALUES, "w", force_zip64=True) as target:
                while block := source.read(BLOCK):
                    target.write(block)
            for name, value in facts.items():
                with archive.open(f"{name}.npy", "w") as target:
                    np.lib.format.write_array(target, value, allow_pickle=False)


def read_probabilities(path: Path) -> Probabilities:
    """Read one file into memory.

    Raises:
        ImageError: missing, damaged or another kind of file.

    Example:
        >>> from masam_auto.formats.probability_files import read_probabilities
        >>> found = read_probabilities(predictions / "case_000.npz")
        >>> found.outputs, found.values.shape, found.crop  # (K, z, y, x) of the box `crop` of the image
        (('background', 'organ1', 'organ2'), (3, 5, 14, 12), ((0, 5), (1, 15), (1, 13)))
    """
    with _opened(path) as found:
        return _described(found["probabilities"], found, path)


@contextlib.contextmanager
def open_probabilities(path: Path) -> Iterator[Probabilities]:
    """Give the content of a file. The values are in memory or, if large, in a temporary file (`formats.scratch`).

    Raises:
        ImageError: missing, damaged or another kind of file.
        OutputError: the disk of the temporary files has not enough space.
    """
    with contextlib.ExitStack() as stack:
        with _opened(path) as found, found.zip.open(VALUES) as stream:
            np.lib.format.read_magic(stream)
            shape, by_columns, kind = np.lib.format.read_array_header_1_0(stream)
            if by_columns or kind != np.float16:
                raise ValueError(f"probabilities of type {kind}")
            values = stack.enter_context(scratch_array(shape))
            _fill(values, stream)
            result = _described(values, found, path)
        yield result


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The arrays of a file by name. Given a path, numpy would leave a damaged archive open."""
    with _explained(path), path.open("rb") as file, np.load(file, allow_pickle=False) as found:
        yield found


def values_bytes(path: Path) -> int:
    """Bytes that the probabilities of a file take in memory. Raises ImageError like `read_probabilities`."""
    with _explained(path), zipfile.ZipFile(path) as archive:
        return archive.getinfo(VALUES).file_size


def _fill(values: np.ndarray, stream: IO[bytes]) -> None:
    """Read the bytes of an array from a stream. Raises EOFError if there are too few."""
    rest = memoryview(values.reshape(-1).view(np.uint8))  # type: ignore[arg-type]  # an array is a buffer
    while len(rest):
        block = stream.read(min(BLOCK, len(rest)))
        if not block:
            raise EOFError("it ends too early")
        rest[: len(block)] = block
        rest = rest[len(block) :]


def _described(values: np.ndarray, found: Any, path: Path) -> Probabilities:
    """Values with the facts of an open file. Raises ValueError or KeyError if they do not fit together."""
    first, second, third = ((low, high) for low, high in found["crop"].tolist())
    outputs = tuple(found["outputs"].tolist())
    if values.shape != (len(outputs), *(high - low for low, high in (first, second, third))):
        raise ValueError(f"probabilities of shape {values.shape}")
    geometry = decode(parse_json(str(found["geometry"])), Geometry, where=str(path))
    crop = (first, second, third)
    if not all(0 <= low <= high <= size for (low, high), size in zip(crop, geometry.shape, strict=True)):
        raise ValueError(f"their part {crop} is outside the image of shape {geometry.shape}")
    return Probabilities(
        values=values,
        crop=crop,
        geometry=geometry,
        outputs=outputs,
        has_regions=bool(found["has_regions"]),
    )


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn any error that numpy raises for another kind of file into one ImageError."""
    try:
        yield
    except MasamError:
        raise
    except (OSError, EOFError, ValueError, TypeError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise ImageError(
            f"{path}: cannot be read as probabilities ({error}). Write it again: `masam_train ... validate "
            "save_probabilities`, or `masam_predict ... save_probabilities`"
        ) from error
