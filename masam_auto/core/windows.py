"""Windows of adjacent slices and in-plane tiles that cover a volume."""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True, slots=True)
class SliceWindow:
    """`length` adjacent slices starting at `start`. Beyond the volume's ends the nearest slice is repeated."""

    start: int
    length: int

    def indices(self, depth: int) -> np.ndarray:
        """(length,) slice numbers within a volume of `depth` slices."""
        return np.clip(np.arange(self.start, self.start + self.length), 0, depth - 1)

    def inside(self, depth: int) -> slice:
        """Positions within the window that are real slices of the volume."""
        return slice(max(0, -self.start), min(self.length, depth - self.start))


def covering_windows(depth: int, length: int, stride: int) -> tuple[SliceWindow, ...]:
    """Windows of `length` slices that cover `depth` slices, with starts at most `stride` apart.

    A volume shorter than the window gets one window centred on it. Starts are spread evenly, so that the overlap is
    the same everywhere and the last window ends with the volume.
    """
    if not 1 <= stride <= length:
        raise ValueError(f"stride must be within 1..{length}, got {stride}")
    if depth <= length:
        return (SliceWindow(start=-((length - depth) // 2), length=length),)
    return tuple(SliceWindow(start=start, length=length) for start in covering_starts(depth, length, stride))


def covering_starts(size: int, tile: int, stride: int) -> tuple[int, ...]:
    """Evenly spread starts of tiles that cover an axis; a single 0 when the axis fits in one tile."""
    if size <= tile:
        return (0,)
    count = math.ceil((size - tile) / stride) + 1
    return tuple(round(i * (size - tile) / (count - 1)) for i in range(count))


def triangular_weights(length: int) -> np.ndarray:
    """(length,) float32 weights along the slices of a window: highest in the middle, never zero."""
    distance = np.abs(np.arange(length) - (length - 1) / 2)
    return ((length + 1) / 2 - distance).astype(np.float32) / ((length + 1) / 2)


def gaussian_weights(height: int, width: int) -> np.ndarray:
    """(height, width) float32 weights of a tile, sigma an eighth of each side, 1 in the middle, at least 0.001.

    Source: sigma of 1/8 of the patch is nnU-Net's sliding-window importance weighting.
    """
    rows = np.exp(-0.5 * ((np.arange(height) - (height - 1) / 2) / (height / 8)) ** 2)
    columns = np.exp(-0.5 * ((np.arange(width) - (width - 1) / 2) / (width / 8)) ** 2)
    return np.maximum(np.outer(rows, columns), 1e-3).astype(np.float32)
