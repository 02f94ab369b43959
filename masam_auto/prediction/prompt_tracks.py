"""Prompts in the slices of an image: which axis is across slices, and what is followed from where."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from masam_auto.core.boxes import GivenPoints, Prompt, points_in_voxels, reaches_beyond
from masam_auto.core.errors import DatasetError, ModelError
from masam_auto.core.geometry import Box, Geometry
from masam_auto.core.turning import Turn
from masam_auto.prediction.box_prompts import place_boxes
from masam_auto.prediction.propagation import SliceBox, SlicePoints, SlicePrompt, Track

Propagation = Literal["single", "all", "none"]
"""Which objects are followed beyond the slices that their prompts show: those shown in a single slice, all, or none."""

COARSER = 1.2  # times the next spacing, for an axis to be the slices' (as in planning.slice_axes)
LARGEST_VALUE = (1 << 15) - 1

Placed = Box | tuple[np.ndarray, np.ndarray]
"""A box in voxels, or the voxels of points on the object and beside it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlacedPrompts:
    """The prompts of one image as objects to follow, in the order of the prompts. `axis` is across slices."""

    axis: int
    tracks: tuple[Track, ...]

    @property
    def turn(self) -> Turn:
        """From the stored array to one with the slice axis first."""
        first, second = (other for other in range(3) if other != self.axis)
        return Turn(order=(self.axis, first, second))


def place_prompts(
    prompts: Sequence[Prompt], geometry: Geometry, *, axis: int | None, propagate: Propagation, identifier: str
) -> PlacedPrompts:
    """Find the slices of prompts.

    Args:
        prompts: at least one; labels are values.
        geometry: of the image.
        axis: across slices; None chooses (`slice_axis_of`).
        propagate: which objects are followed.
        identifier: of the case, for messages.

    Raises:
        DatasetError: a prompt outside the image, or points of one object in several slices.
        ModelError: a class that is no value.
    """
    named = [f"case {identifier}" + (f", prompt {n}" if len(prompts) > 1 else "") for n in range(1, len(prompts) + 1)]
    placed = [_place(prompt, geometry, where=where) for prompt, where in zip(prompts, named, strict=True)]
    empty = PlacedPrompts(axis=slice_axis_of(geometry, placed) if axis is None else axis, tracks=())
    tracks = (
        _track(prompt, place, empty.turn, geometry, propagate, where=where)
        for prompt, place, where in zip(prompts, placed, named, strict=True)
    )
    return PlacedPrompts(axis=empty.axis, tracks=tuple(tracks))


def slice_axis_of(geometry: Geometry, placed: Sequence[Placed]) -> int:
    """The axis of a stored array (Z, Y, X) across slices.

    That of a single slice; that along which all boxes are one voxel thin; the one with the clearly largest spacing;
    the one along the body, if the file says so; else the first.
    """
    if geometry.shape.count(1) == 1:
        return geometry.shape.index(1)
    sizes = [[high - low for low, high in place] for place in placed if len(place) == 3]
    thin = [axis for axis in range(3) if sizes and all(size[axis] == 1 for size in sizes)]
    if len(thin) == 1:
        return thin[0]
    first, second, _ = sorted(range(3), key=lambda axis: -geometry.spacing[axis])
    if geometry.spacing[first] >= COARSER * geometry.spacing[second]:
        return first
    axes = geometry.axes
    return 0 if axes is None else 2 - next(place for place, letter in enumerate(axes) if letter in "SI")


def left_out(prompt: Prompt, track: Track, found: set[int], geometry: Geometry) -> list[str]:
    """What of a prompt was not used or not found; `found` are the slices where something was."""
    beyond = not isinstance(prompt.shape, GivenPoints) and reaches_beyond(prompt.shape, geometry)
    cut = ["it reaches beyond the image and was cut to it"] if beyond else []
    empty = [z for z in track.slices if z not in found]
    if not found:
        return [*cut, "nothing was found"]
    return [*cut, f"nothing was found in {len(empty)} of its {len(track.slices)} slices"] if empty else cut


def _place(prompt: Prompt, geometry: Geometry, *, where: str) -> Placed:
    """A prompt in the image's voxels: a box, or points on and beside the object."""
    if isinstance(prompt.shape, GivenPoints):
        return points_in_voxels(prompt.shape, geometry, where=where)
    return place_boxes([prompt.shape], geometry, identifier=where.removeprefix("case "))[0]


def _track(
    prompt: Prompt,
    place: Placed,
    turn: Turn,
    geometry: Geometry,
    propagate: Propagation,
    *,
    where: str,
) -> Track:
    """A prompt on the volume whose first axis goes across slices."""
    value = 1 if prompt.label is None else prompt.label
    if not isinstance(value, int) or not 0 < value <= LARGEST_VALUE:
        raise ModelError(f"{where}: its class must be a value from 1 on, got {value!r}")
    shown: SlicePrompt
    if len(place) == 3:
        (first, last), rows, columns = turn.ranges(place, geometry.shape)
        shown = SliceBox(rows=(float(rows[0]), float(rows[1])), columns=(float(columns[0]), float(columns[1])))
    else:
        on, beside = (points[:, list(turn.order)] for points in place)
        numbers = sorted({round(float(number)) for number in (*on[:, 0], *beside[:, 0])})
        if len(numbers) > 1:
            raise DatasetError(
                f"{where}: its points are in several slices ({', '.join(map(str, numbers))}). Give the points of one "
                "slice, and further entries of the same class for others."
            )
        first, last = numbers[0], numbers[0] + 1
        shown = SlicePoints(on=_edges(on), beside=_edges(beside))
    beyond = propagate == "all" or (propagate == "single" and last - first == 1)
    return Track(value=value, prompt=shown, slices=range(first, last), beyond=beyond)


def _edges(points: np.ndarray) -> tuple[tuple[float, float], ...]:
    """Rows and columns of (N, 3) voxel indices, measured from the slice's edge."""
    return tuple((float(row) + 0.5, float(column) + 0.5) for _, row, column in points)
