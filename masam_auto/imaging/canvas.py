"""The map between preprocessed slices and the network's canvas, and moving images, boxes and logits along it.

A slice of h x w preprocessed pixels, once magnified, covers `extent` canvas pixels. If that fits, it is centred on the
canvas and zero-padded. If not, several tiles cover it, which are shifted maps.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd

from masam_auto.core.windows import covering_starts, gaussian_weights

Places = TypeVar("Places", float, np.ndarray)


@dataclass(frozen=True, kw_only=True, slots=True)
class CanvasMap:
    """Where a canvas is on a magnified slice. Positions are pixel centres, from 0, along axis 0 (rows) or 1 (columns).

    `size` (h, w) is in preprocessed pixels; `canvas` (H, W), `extent` and `start` (row, column) are in canvas pixels.
    `extent` is the size of the magnified slice. `start` is where the canvas begins on it, negative if there is padding.
    `magnification` is canvas pixels per preprocessed pixel.
    """

    size: tuple[int, int]
    canvas: tuple[int, int]
    magnification: float
    extent: tuple[int, int]
    start: tuple[int, int]

    def to_slice(self, places: Places, axis: int) -> Places:
        """Convert positions on the canvas to slice coordinates."""
        middle = (self.extent[axis] - 1) / 2
        return (places + self.start[axis] - middle) / self.magnification + (self.size[axis] - 1) / 2

    def to_canvas(self, places: Places, axis: int) -> Places:
        """Convert positions on the slice to canvas coordinates."""
        middle = (self.extent[axis] - 1) / 2
        return (places - (self.size[axis] - 1) / 2) * self.magnification + middle - self.start[axis]

    def shifted(self, start: tuple[int, int]) -> "CanvasMap":
        """The same slice under a canvas with another start."""
        return replace(self, start=start)

    @property
    def centre(self) -> tuple[float, float]:
        """Slice coordinates (row, column) of the centre of the canvas."""
        row, column = (self.to_slice((self.canvas[axis] - 1) / 2, axis) for axis in (0, 1))
        return row, column


def canvas_map(size: tuple[int, int], canvas: tuple[int, int], magnification: float) -> CanvasMap:
    """The map of a slice centred on the canvas. Along axes where the slice is larger, both begin at the same place.

    Args:
        size: (h, w) of the preprocessed slice.
        canvas: (H, W) of the network's input.
        magnification: canvas pixels per preprocessed pixel.

    Example:
        >>> from masam_auto.imaging.canvas import canvas_map
        >>> tile = canvas_map((100, 80), (256, 256), 2.0)  # (rows, columns)
        >>> tile.extent, tile.start  # the slice is 200 x 160 px on the canvas, with padding before it
        ((200, 160), (-28, -48))
    """
    (rows, top), (columns, left) = (_fit_axis(size[axis], canvas[axis], magnification) for axis in (0, 1))
    return CanvasMap(size=size, canvas=canvas, magnification=magnification, extent=(rows, columns), start=(top, left))


def tiles_of(fitted: CanvasMap, overlap: float) -> tuple[CanvasMap, ...]:
    """The canvases that together cover a slice, row by row; a single one if it fits.

    Args:
        fitted: from `canvas_map`.
        overlap: share of a tile's side that overlaps with its neighbour, within [0, 1).

    Example:
        >>> from masam_auto.imaging.canvas import canvas_map, tiles_of
        >>> tiles = tiles_of(canvas_map((300, 200), (256, 256), 1.0), 0.5)
        >>> [tile.start for tile in tiles]  # (row, column)
        [(0, -28), (44, -28)]
    """
    rows, columns = (_starts(fitted, axis, overlap) for axis in (0, 1))
    return tuple(fitted.shifted((row, column)) for row in rows for column in columns)


def place(window: torch.Tensor, tile: CanvasMap) -> torch.Tensor:
    """Put preprocessed slices on a canvas: bilinear if magnified, else an exact crop; zero outside the slices.

    Args:
        window: (N, C, h, w).
        tile: made for (h, w).

    Returns:
        (N, C, H, W), contiguous: convolutions in bf16 round otherwise in another memory layout.

    Example:
        >>> from masam_auto.imaging.canvas import canvas_map, place
        >>> tile = canvas_map((100, 80), (256, 256), 2.0)
        >>> place(torch.ones(5, 1, 100, 80), tile).shape  # (N, C, H, W)
        torch.Size([5, 1, 256, 256])
    """
    if tile.magnification == 1:
        box = [[low, low + side] for low, side in zip(tile.start, tile.canvas, strict=True)]
        return crop_and_pad_nd(window, box).contiguous()
    rows, columns = (tile.to_slice(np.arange(tile.canvas[axis]), axis) for axis in (0, 1))
    return _sample(window, rows, columns, padding="zeros")


def canvas_box(
    rows: tuple[float, float], columns: tuple[float, float], tile: CanvasMap
) -> tuple[float, float, float, float] | None:
    """Convert a box on preprocessed slices to a canvas, and cut it to the canvas.

    Args:
        rows, columns: begin and end of the box, measured from the slice's edge: pixel i covers i to i + 1.
        tile: made for the slices.

    Returns:
        x0, y0, x1, y1 in canvas pixels, measured from the canvas's edge; None if the box does not touch the canvas.
    """
    sides = []
    for axis, edges in enumerate((rows, columns)):
        low, high = (tile.to_canvas(edge - 0.5, axis) + 0.5 for edge in edges)
        sides.append((max(0.0, low), min(float(tile.canvas[axis]), high)))
    if any(low >= high for low, high in sides):
        return None
    (y0, y1), (x0, x1) = sides
    return (x0, y0, x1, y1)


def collect(logits: Iterable[torch.Tensor], tiles: Sequence[CanvasMap]) -> Iterator[torch.Tensor]:
    """Bring the logits of all tiles back to the preprocessed grid. Overlaps are averaged with Gaussian weights.

    Tiles are taken and slices returned one by one, so that they are never all in memory at once.

    Args:
        logits: (N, K, H, W) per tile.
        tiles: as given to `place`.

    Yields:
        (K, h, w) logits of each of the N slices; bilinear if the slices were magnified, else exact.

    Example:
        >>> from masam_auto.imaging.canvas import canvas_map, collect, tiles_of
        >>> tiles = tiles_of(canvas_map((300, 200), (256, 256), 1.0), 0.5)
        >>> logits = [torch.zeros(5, 3, 256, 256) for tile in tiles]  # (N, K, H, W) of each tile
        >>> [part.shape for part in collect(logits, tiles)][0]  # (K, h, w) of each slice
        torch.Size([3, 300, 200])
    """
    if len(tiles) == 1:
        (merged,), whole = logits, tiles[0]
    else:
        merged, whole = _merge(logits, tiles), tiles[0].shifted((0, 0))
    for one in merged:
        yield _to_preprocessed(one[None], whole)[0]


def _merge(logits: Iterable[torch.Tensor], tiles: Sequence[CanvasMap]) -> torch.Tensor:
    """(N, K, *extent) weighted mean of overlapping tiles."""
    total: torch.Tensor | None = None
    for tile, part in zip(tiles, logits, strict=True):
        (top, left), extent = tile.start, tile.extent
        if total is None:
            weights = torch.as_tensor(gaussian_weights(*tile.canvas), dtype=part.dtype, device=part.device)
            total, covered = part.new_zeros((*part.shape[:2], *extent)), part.new_zeros(extent)
        rows = slice(max(0, top), min(extent[0], top + tile.canvas[0]))
        columns = slice(max(0, left), min(extent[1], left + tile.canvas[1]))
        within = (
            ...,
            slice(rows.start - top, rows.stop - top),
            slice(columns.start - left, columns.stop - left),
        )
        total[..., rows, columns].addcmul_(part[within], weights[within])
        covered[rows, columns] += weights[within]
    assert total is not None
    return total.div_(covered)


def _fit_axis(size: int, side: int, magnification: float) -> tuple[int, int]:
    """Extent of a magnified slice along an axis, and where the canvas begins on it."""
    extent = math.ceil(size * magnification - 1e-6)
    if extent > side:
        return extent, 0
    if magnification != 1 and (side - extent) % 2:
        extent += 1  # then the slice's centre is the canvas's centre to the pixel fraction
    return extent, -((side - extent) // 2)


def _starts(fitted: CanvasMap, axis: int, overlap: float) -> tuple[int, ...]:
    extent, side = fitted.extent[axis], fitted.canvas[axis]
    if extent <= side:
        return (fitted.start[axis],)
    return covering_starts(extent, side, max(1, round(side * (1 - overlap))))


def _to_preprocessed(logits: torch.Tensor, whole: CanvasMap) -> torch.Tensor:
    """Read (N, K, ...) logits, which start at the first pixel of `whole`, at the preprocessed pixels."""
    if whole.magnification == 1:
        (h, w), (top, left) = whole.size, whole.start
        return logits[..., -top : h - top, -left : w - left]
    rows, columns = (whole.to_canvas(np.arange(whole.size[axis]), axis) for axis in (0, 1))
    return _sample(logits, rows, columns, padding="border")


def _sample(images: torch.Tensor, rows: np.ndarray, columns: np.ndarray, *, padding: str) -> torch.Tensor:
    """Bilinear values of (N, C, h, w) images on the product of row and column coordinates (pixel centres)."""
    height, width = images.shape[-2:]
    y = torch.as_tensor((2 * rows + 1) / height - 1, dtype=images.dtype, device=images.device)
    x = torch.as_tensor((2 * columns + 1) / width - 1, dtype=images.dtype, device=images.device)
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
    grid = grid.expand(images.shape[0], -1, -1, -1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode=padding, align_corners=False)
