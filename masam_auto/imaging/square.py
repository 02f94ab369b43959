"""Slices on a square canvas as SAM's authors lay them there: scaled to its longer side, in the upper left corner."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True, kw_only=True, slots=True)
class SquareFit:
    """Slices of `size` (h, w) cover `inside` (rows, columns) of a canvas of `side` x `side` px from its corner."""

    size: tuple[int, int]
    inside: tuple[int, int]
    side: int

    def to_square(self, place: float, axis: int) -> float:
        """A place on the slice (from its edge, along axis 0 or 1) on the canvas."""
        return place * self.inside[axis] / self.size[axis]

    def to_slice(self, place: float, axis: int) -> float:
        """A place on the canvas on the slice."""
        return place * self.size[axis] / self.inside[axis]


def square_fit(size: tuple[int, int], spacing: tuple[float, float], side: int) -> SquareFit:
    """Where slices of (h, w) pixels go. Pixels become square: the side that is longer in mm fills the canvas.

    Example:
        >>> from masam_auto.imaging.square import square_fit
        >>> square_fit((512, 400), (0.7, 0.7), 256).inside  # (rows, columns)
        (256, 200)
    """
    lengths = (size[0] * spacing[0], size[1] * spacing[1])
    rows, columns = (max(1, round(side * length / max(lengths))) for length in lengths)
    return SquareFit(size=size, inside=(rows, columns), side=side)


def onto_square(slices: torch.Tensor, fit: SquareFit, padding: Sequence[float]) -> torch.Tensor:
    """(S, C, h, w) slices on the canvas, (S, C, side, side); channel c is `padding[c]` beside them."""
    if tuple(slices.shape[2:]) != fit.inside:
        slices = F.interpolate(slices, size=fit.inside, mode="bilinear", align_corners=False, antialias=True)
    canvas = slices.new_tensor(padding)[None, :, None, None].repeat(len(slices), 1, fit.side, fit.side)
    canvas[:, :, : fit.inside[0], : fit.inside[1]] = slices
    return canvas


def from_square(logits: torch.Tensor, fit: SquareFit) -> torch.Tensor:
    """(P, side, side) logits of the canvas as (P, h, w) logits of the slice, bilinear."""
    inside = logits[:, None, : fit.inside[0], : fit.inside[1]]
    if fit.inside != fit.size:
        inside = F.interpolate(inside, size=fit.size, mode="bilinear", align_corners=False)
    return inside[:, 0]
