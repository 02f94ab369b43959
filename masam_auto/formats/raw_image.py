"""An image as stored in its file, and a check that its header's size is possible in the file and in memory."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from masam_auto.compute.machine import check_memory, shown_bytes
from masam_auto.core.errors import ImageError
from masam_auto.core.geometry import Geometry

# Deflate packs at most 1032 : 1 (zlib's documentation); JPEG and LZW less. Ten times that cannot be a picture.
LARGEST_RATIO = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class RawImage:
    """An image as stored in its file.

    `array` is (C, Z, Y, X) in the file's type, scale slope and intercept applied. `is_series`: the first axis counts
    the volumes of a 4D file, which may be channels or times. `step`: the scale slope, the distance between two values
    that the file can store; 0 without scaling.
    """

    array: np.ndarray
    geometry: Geometry
    is_series: bool = False
    step: float = 0.0


def check_room(path: Path, size: int, *, on_disk: int | None = None) -> None:
    """Check the size that a header asks for.

    Args:
        path: the file.
        size: the least memory, in bytes, that reading takes.
        on_disk: bytes of the packed voxels; by default those of the file.

    Raises:
        ImageError: a file of this size cannot contain so much.
        MemoryError: there is not enough free memory.
    """
    packed = path.stat().st_size if on_disk is None else on_disk
    if size > LARGEST_RATIO * packed:
        raise ImageError(
            f"{path}: its header asks for {shown_bytes(size)}, which {shown_bytes(packed)} cannot hold. It is damaged; "
            "copy or download it again."
        )
    check_memory(str(path), size)
