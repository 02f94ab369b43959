"""Preprocessed arrays on disk, compressed slice by slice, and the locations of each class.

Nothing here is ever unpickled: arrays are plain blosc2 frames, locations plain npz.
"""

import logging
import math
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blosc2
import numpy as np

from masam_auto.core.atomic import atomic_path, write_bytes
from masam_auto.core.errors import DatasetError, ImageError
from masam_auto.core.labels import Labels
from masam_auto.core.partial import NAME_MAX
from masam_auto.formats.raw_image import check_room

logger = logging.getLogger(__name__)

# Measured on a resampled CT, one thread: zstd level 3 stores 1.28 : 1 (labels 40 : 1) and reads about 450 MB/s, lz4
# 1.18 : 1 (18 : 1) and 900 MB/s; higher levels only cost time. A window of 5 x 512 x 512 is 5 MB: 12 ms.
COMPRESSION = {
    "codec": blosc2.Codec.ZSTD,
    "clevel": 3,
    "filters": [blosc2.Filter.SHUFFLE],
    "nthreads": 1,
}
MAX_LOCATIONS = 10_000
LOCATIONS = "_locations.npz"
# Ignores case, as many file systems do. Names with the mark get another one, so that no two cases share a name.
TAKEN = re.compile(r"(_seg|^preprocessing)@*$", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class ArrayFiles:
    """The preprocessed files of one case, in the order of writing."""

    image: Path
    labels: Path
    locations: Path
    properties: Path

    def __iter__(self) -> Iterator[Path]:
        return iter((self.image, self.labels, self.locations, self.properties))


def array_files(folder: Path, identifier: str) -> ArrayFiles:
    """Paths of the preprocessed files of a case. No two cases share one, whatever their names.

    A case gets a mark if its name ends like another's labels or equals that of the folder's record: the image of
    "a_seg" is a_seg@.b2nd, because a_seg.b2nd has the labels of "a".
    """
    stem = f"{identifier}@" if TAKEN.search(identifier) else identifier
    return ArrayFiles(
        image=folder / f"{stem}.b2nd",
        labels=folder / f"{stem}_seg.b2nd",
        locations=folder / f"{stem}{LOCATIONS}",
        properties=folder / f"{stem}.json",
    )


def check_name_length(identifier: str) -> None:
    """Raise DatasetError if the names of a case's preprocessed files would be too long for file systems."""
    longest = max(len(file.name.encode()) for file in array_files(Path(), identifier))
    if longest > NAME_MAX:
        most = len(identifier.encode()) - (longest - NAME_MAX)
        raise DatasetError(
            f"{identifier}: this name is too long: its preprocessed files would have names of {longest} bytes, and the "
            f"limit is {NAME_MAX}. Rename its files to at most {most} bytes without channel and ending."
        )


def stored_cases(folder: Path) -> tuple[str, ...]:
    """Identifiers of the cases whose class locations are in a folder, sorted."""
    stems = (path.name.removesuffix(LOCATIONS) for path in folder.glob(f"*{LOCATIONS}"))
    return tuple(sorted(stem[:-1] if stem.endswith("@") and TAKEN.search(stem[:-1]) else stem for stem in stems))


def write_array(path: Path, array: np.ndarray) -> None:
    """Write an array atomically, in chunks of one slice.

    Args:
        path: ends in ".b2nd".
        array: (C, Z, Y, X) or (Z, Y, X); a chunk is one (Y, X) slice of one channel.

    Raises:
        OutputError: the folder is not writable or the disk is full.
    """
    chunks = (1,) * (array.ndim - 2) + array.shape[-2:]
    parameters = {**COMPRESSION, "typesize": array.dtype.itemsize}
    stored = blosc2.asarray(np.ascontiguousarray(array), chunks=chunks, blocks=chunks, cparams=parameters)
    # compressed in memory and written by us, because blosc2 does not report why writing failed
    write_bytes(path, stored.to_cframe())


class StoredArray:
    """An array on disk. Indexing reads and decompresses only the requested slices.

    It holds no data itself. Any number of processes may open the same file; between processes, only its path is sent.
    """

    def __init__(self, path: Path) -> None:
        """Open a file written by `write_array`. Raises ImageError, or MemoryError if a slice does not fit in memory."""
        self.path = Path(path)
        try:
            stored = blosc2.open(str(self.path), mode="r", mmap_mode="r", dparams={"nthreads": 1})
        except FileNotFoundError as error:
            raise ImageError(f"{self.path} is missing. Run the preprocessing again.") from error
        except Exception as error:  # blosc2 has no specific exception for a damaged file
            raise ImageError(self._damaged()) from error
        if not isinstance(stored, blosc2.NDArray):
            raise ImageError(self._damaged())
        self._stored = stored
        self.shape: tuple[int, ...] = tuple(stored.shape)
        self.dtype: np.dtype = stored.dtype
        # a slice of zeros takes no space on the disk
        check_room(self.path, math.prod(self.shape[-2:]) * self.dtype.itemsize, on_disk=sys.maxsize)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        try:
            return np.asarray(self._stored[key])
        except RuntimeError as error:
            raise ImageError(self._damaged()) from error

    def __reduce__(self) -> tuple[type["StoredArray"], tuple[Path]]:
        return (StoredArray, (self.path,))

    def _damaged(self) -> str:
        return f"{self.path} is damaged. Delete it and run the preprocessing again; only missing files are made."


def open_array(path: Path) -> StoredArray:
    """Open an array written by `write_array`, without reading it.

    Raises:
        ImageError: missing or damaged (a damaged slice is noticed when it is read).

    Example:
        >>> from masam_auto.formats.storage import open_array
        >>> image = open_array(paths.configuration_folder(dataset.name, "axis0") / "case_000.b2nd")
        >>> image.shape, image[:, 2:4].shape  # (C, Z, Y, X); only two slices are read
        ((1, 5, 14, 12), (1, 2, 14, 12))
    """
    return StoredArray(path)


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassLocations:
    """Where one class or region is in a preprocessed label array.

    `voxels` is (n, 3) int32 (Z, Y, X): all of them, or MAX_LOCATIONS drawn at random. `slices` is (m,) int32: every
    slice along Z that contains the class, sorted.
    """

    voxels: np.ndarray
    slices: np.ndarray


def find_locations(
    volume: np.ndarray, labels: Labels, *, seed: int = 0, maximum: int = MAX_LOCATIONS
) -> dict[str, ClassLocations]:
    """Find each class or region in a label array.

        labels: the meaning of the values.
        volume: (Z, Y, X) label values.
        labels: what they mean.
        seed: to choose among more than `maximum` voxels.
        maximum: most voxels kept per class.

    Returns:
        Class or region name -> its locations; absent classes have empty arrays.
    """
    generator = np.random.default_rng(seed)
    width = volume.shape[2]
    # find all foreground voxels once: usually a small share of the volume
    positions = np.flatnonzero(volume)
    values = volume.reshape(-1)[positions]
    found = {}
    for name, members in labels.foreground.items():
        chosen = positions[np.isin(values, members)] if len(members) > 1 else positions[values == members[0]]
        slices = np.flatnonzero(np.bincount(chosen // (volume.shape[1] * width), minlength=len(volume)))
        if len(chosen) > maximum:
            chosen = chosen[np.sort(generator.choice(len(chosen), maximum, replace=False, shuffle=False))]
        voxels = np.stack(np.unravel_index(chosen, volume.shape), axis=1)
        found[name] = ClassLocations(voxels=voxels.astype(np.int32), slices=slices.astype(np.int32))
    return found


def write_locations(path: Path, locations: Mapping[str, ClassLocations]) -> None:
    """Write the result of `find_locations` as npz, atomically. Raises OutputError."""
    # classes are numbered, because a zip entry's name cannot have every character
    arrays: dict[str, np.ndarray] = {"names": np.array(list(locations), dtype=np.str_)}
    for number, entry in enumerate(locations.values()):
        arrays[f"voxels_{number}"] = entry.voxels
        arrays[f"slices_{number}"] = entry.slices
    with atomic_path(path) as temporary, open(temporary, "wb") as handle:
        np.savez(handle, **arrays)  # type: ignore[arg-type]  # the stubs mistake the keywords for options


def read_locations(path: Path) -> dict[str, ClassLocations]:
    """Read locations written by `write_locations`.

    Raises:
        ImageError: missing or damaged.
    """
    try:
        # given a path, numpy would leave a damaged archive open
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return {
                str(name): ClassLocations(voxels=stored[f"voxels_{number}"], slices=stored[f"slices_{number}"])
                for number, name in enumerate(stored["names"])
            }
    except FileNotFoundError as error:
        raise ImageError(f"{path} is missing. Run the preprocessing again.") from error
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ImageError(
            f"{path} is damaged. Delete it and run the preprocessing again; only missing files are made."
        ) from error
