"""From preprocessed slices to the network's canvas, and from canvas logits back.

A slice of h x w preprocessed pixels, magnified, covers `extent` canvas pixels. Where that fits, it is centred on the
canvas and zero-padded; where it does not, several tiles of the canvas's size cover it. Canvas pixel centre u shows
preprocessed coordinate (u - (W - 1) / 2) / magnification + c, where c is the centre of what the tile shows.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from masam_auto.core.windows import covering_starts, gaussian_weights


@dataclass(frozen=True, kw_only=True, slots=True)
class CanvasLayout:
    """Where slices of one size lie on canvases.

    `size` (h, w) is in preprocessed pixels; `canvas`, `extent` (height, width) and `tiles` are in canvas pixels.
    `tiles` are the (row, column) starts of the canvases on the magnified slice: negative where there is padding.
    """

    size: tuple[int, int]
    canvas: tuple[int, int]
    magnification: float
    extent: tuple[int, int]
    tiles: tuple[tuple[int, int], ...]


def lay_out(
    size: tuple[int, int], canvas: tuple[int, int], magnification: float, *, tile_overlap: float
) -> CanvasLayout:
    """Decide which canvases show a slice.

    Args:
        size: (h, w) of the preprocessed slice.
        canvas: (H, W) of the network's input.
        magnification: canvas pixels per preprocessed pixel.
        tile_overlap: share of a tile's side that neighbours have in common, within [0, 1).
    """
    rows, row_starts = _lay_out_axis(size[0], canvas[0], magnification, tile_overlap)
    columns, column_starts = _lay_out_axis(size[1], canvas[1], magnification, tile_overlap)
    tiles = tuple((row, column) for row in row_starts for column in column_starts)
    return CanvasLayout(size=size, canvas=canvas, magnification=magnification, extent=(rows, columns), tiles=tiles)


def place(window: torch.Tensor, layout: CanvasLayout, tile: tuple[int, int]) -> torch.Tensor:
    """Show preprocessed slices on a canvas: bilinear where magnified, else an exact crop; zero outside the slices.

    Args:
        window: (N, C, h, w).
        layout: made for (h, w).
        tile: one of `layout.tiles`.

    Returns:
        (N, C, H, W).
    """
    if layout.magnification == 1:
        (top, left), (height, width) = tile, layout.canvas
        (h, w) = layout.size
        shown = window[..., max(0, top) : top + height, max(0, left) : left + width]
        before = (max(0, -top), max(0, -left))
        after = (max(0, top + height - h), max(0, left + width - w))
        return F.pad(shown, (before[1], after[1], before[0], after[0]))
    rows = _preprocessed_coordinates(layout, 0, np.arange(layout.canvas[0]) + tile[0])
    columns = _preprocessed_coordinates(layout, 1, np.arange(layout.canvas[1]) + tile[1])
    return _sample(window, rows, columns, padding="zeros")


def canvas_box(
    rows: tuple[float, float], columns: tuple[float, float], layout: CanvasLayout, tile: tuple[int, int]
) -> tuple[float, float, float, float] | None:
    """Where a box on preprocessed slices lies on a canvas, cut to it.

    Args:
        rows, columns: where the box begins and ends, measured from the slice's edge: pixel i reaches from i to i + 1.
        layout: made for the slices.
        tile: one of `layout.tiles`.

    Returns:
        x0, y0, x1, y1 in canvas pixels, measured from the canvas's edge; None where the box does not touch the canvas.
    """
    sides = []
    for axis, edges in enumerate((rows, columns)):
        low, high = (
            (edge - layout.size[axis] / 2) * layout.magnification + layout.extent[axis] / 2 - tile[axis]
            for edge in edges
        )
        sides.append((max(0.0, low), min(float(layout.canvas[axis]), high)))
    if any(low >= high for low, high in sides):
        return None
    (y0, y1), (x0, x1) = sides
    return (x0, y0, x1, y1)


def collect(tiles: Iterable[torch.Tensor], layout: CanvasLayout) -> Iterator[torch.Tensor]:
    """Bring the logits of all tiles back to the preprocessed grid; overlaps are averaged with Gaussian weights.

    Tiles are taken one by one and slices are given one by one, so that neither exist all at once.

    Args:
        tiles: (N, K, H, W) logits, one for each of `layout.tiles`, in that order.
        layout: as given to `place`.

    Yields:
        (K, h, w) logits of each of the N slices; bilinear where the slices were magnified, else exact.
    """
    if len(layout.tiles) == 1:
        (merged,) = tiles
        start = layout.tiles[0]
    else:
        merged, start = _merge(tiles, layout), (0, 0)
    for logits in merged:
        yield _to_preprocessed(logits[None], layout, start=start)[0]


def _merge(tiles: Iterable[torch.Tensor], layout: CanvasLayout) -> torch.Tensor:
    """(N, K, *extent) weighted mean of overlapping tiles."""
    total: torch.Tensor | None = None
    for (top, left), logits in zip(layout.tiles, tiles, strict=True):
        if total is None:
            weights = torch.as_tensor(gaussian_weights(*layout.canvas), dtype=logits.dtype, device=logits.device)
            total, covered = logits.new_zeros((*logits.shape[:2], *layout.extent)), logits.new_zeros(layout.extent)
        rows = slice(max(0, top), min(layout.extent[0], top + layout.canvas[0]))
        columns = slice(max(0, left), min(layout.extent[1], left + layout.canvas[1]))
        within = (
            ...,
            slice(rows.start - top, rows.stop - top),
            slice(columns.start - left, columns.stop - left),
        )
        total[..., rows, columns].addcmul_(logits[within], weights[within])
        covered[rows, columns] += weights[within]
    assert total is not None
    return total.div_(covered)


def _lay_out_axis(size: int, side: int, magnification: float, overlap: float) -> tuple[int, tuple[int, ...]]:
    extent = math.ceil(size * magnification - 1e-6)
    if extent > side:
        return extent, covering_starts(extent, side, max(1, round(side * (1 - overlap))))
    if magnification != 1 and (side - extent) % 2:
        extent += 1  # then the slice's centre is the canvas's centre to the pixel fraction
    return extent, (-((side - extent) // 2),)


def _preprocessed_coordinates(layout: CanvasLayout, axis: int, places: np.ndarray) -> np.ndarray:
    """Preprocessed coordinates of places on the magnified slice (both count pixel centres from 0)."""
    centre = (layout.size[axis] - 1) / 2
    return (places - (layout.extent[axis] - 1) / 2) / layout.magnification + centre


def _to_preprocessed(logits: torch.Tensor, layout: CanvasLayout, *, start: tuple[int, int]) -> torch.Tensor:
    """Read (N, K, ...) logits, whose first pixel lies at `start` on the magnified slice, at the preprocessed pixels."""
    if layout.magnification == 1:
        (h, w) = layout.size
        return logits[..., -start[0] : h - start[0], -start[1] : w - start[1]]
    places = []
    for axis in (0, 1):
        offset = np.arange(layout.size[axis]) - (layout.size[axis] - 1) / 2
        places.append(offset * layout.magnification + (layout.extent[axis] - 1) / 2 - start[axis])
    return _sample(logits, places[0], places[1], padding="border")


def _sample(images: torch.Tensor, rows: np.ndarray, columns: np.ndarray, *, padding: str) -> torch.Tensor:
    """Bilinear values of (N, C, h, w) images on the product of row and column coordinates (pixel centres)."""
    height, width = images.shape[-2:]
    y = torch.as_tensor((2 * rows + 1) / height - 1, dtype=images.dtype, device=images.device)
    x = torch.as_tensor((2 * columns + 1) / width - 1, dtype=images.dtype, device=images.device)
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
    grid = grid.expand(images.shape[0], -1, -1, -1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode=padding, align_corners=False)
