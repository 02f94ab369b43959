"""An image as its file has it, and whether what its header asks for can be in the file and in memory."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from masam_auto.compute.machine import check_memory, shown_bytes
from masam_auto.core.errors import ImageError
from masam_auto.core.geometry import Geometry

# Deflate packs 1032 : 1 at best (zlib's documentation); JPEG and LZW less. Ten times that is no picture.
LARGEST_RATIO = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class RawImage:
    """An image as its file has it.

    `array` is (C, Z, Y, X) in the file's type, scale slope and intercept applied. `is_series`: the first axis counts
    the volumes of a 4D file, which may be channels or times. `step`: the scale slope, between two values that it can
    hold; 0 where the values are as they were stored.
    """

    array: np.ndarray
    geometry: Geometry
    is_series: bool = False
    step: float = 0.0


def check_room(path: Path, size: int, *, on_disk: int | None = None) -> None:
    """Check what a header asks for.

    Args:
        path: the file.
        size: bytes in memory that reading it takes at least.
        on_disk: bytes that its voxels are packed into; the file's by default.

    Raises:
        ImageError: no file of this size can hold so much.
        MemoryError: there is not so much free memory.
    """
    packed = path.stat().st_size if on_disk is None else on_disk
    if size > LARGEST_RATIO * packed:
        raise ImageError(
            f"{path}: its header asks for {shown_bytes(size)}, which {shown_bytes(packed)} cannot hold. It is damaged; "
            "copy or download it again."
        )
    check_memory(str(path), size)
