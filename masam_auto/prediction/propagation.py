"""Follow objects through the slices of a volume: the mask of one slice gives the next one's box."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import ndimage

from masam_auto.core.boxes import Edges

# Measured on sarcomas and left ventricles (documentation/benchmarks.md).
SLACK = 3 / 256  # of the slice's longer side: how far an object may reach beyond its mask in the slice before
SMALLEST_SHARE = 0.1  # of the largest mask so far; where less is found, the object has ended
LOWEST_QUALITY = 0.8  # of the overlap with the object that the network predicts in the first slice; below, it has ended
LEAD, SOFTNESS = 0.03, 0.05  # of predicted overlaps, where the masks of the followed box and of the whole one are mixed


@dataclass(frozen=True, kw_only=True, slots=True)
class SliceBox:
    """A box in one slice. Ends are measured from the slice's edge: pixel i covers i to i + 1."""

    rows: Edges
    columns: Edges

    def grown(self, by: float) -> "SliceBox":
        """The box with its sides moved outwards."""
        (top, bottom), (left, right) = self.rows, self.columns
        return SliceBox(rows=(top - by, bottom + by), columns=(left - by, right + by))

    def within(self, other: "SliceBox") -> "SliceBox | None":
        """The part inside another box; None if they do not touch."""
        pairs = ((self.rows, other.rows), (self.columns, other.columns))
        rows, columns = ((max(low, first), min(high, last)) for (low, high), (first, last) in pairs)
        return None if rows[0] >= rows[1] or columns[0] >= columns[1] else SliceBox(rows=rows, columns=columns)


@dataclass(frozen=True, kw_only=True, slots=True)
class SlicePoints:
    """Points in one slice, (row, column) from its edge: on the object, and beside it."""

    on: tuple[Edges, ...]
    beside: tuple[Edges, ...] = ()


SlicePrompt = SliceBox | SlicePoints


@dataclass(frozen=True, kw_only=True, slots=True)
class Track:
    """An object that `prompt` shows.

    It is in each of `slices`, within the prompt if that is a box. It is followed beyond them if `beyond`. `value` is
    its class.
    """

    value: int
    prompt: SlicePrompt
    slices: range
    beyond: bool

    @property
    def first(self) -> int:
        """The slice to begin with: the middle one, where objects are usually well seen."""
        return self.slices[len(self.slices) // 2]


@dataclass(frozen=True, kw_only=True, slots=True)
class SliceMask:
    """What was found of an object in a slice: logits (h, w), and the predicted overlap with the object."""

    logits: torch.Tensor
    quality: float


Decode = Callable[[int, Sequence[SlicePrompt]], Sequence[SliceMask]]
"""Called with a slice's number and the prompts of its objects. Returns a mask for each."""

Found = tuple[int, int, SliceMask]
"""Number of the track, number of the slice, and the mask."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Followed:
    """An object on its way: the slice it was looked for last, its box there (None: nowhere), its largest area, and the
    predicted overlap in the first slice.
    """

    track: Track
    last: int
    box: SliceBox | None = None
    largest: int = 1
    quality: float | None = None

    def may_be_in(self, z: int) -> bool:
        """Whether a slice is worth looking at."""
        return z in self.track.slices or (self.track.beyond and self.box is not None)

    def prompts(self, z: int, shape: tuple[int, int]) -> tuple[SlicePrompt, ...]:
        """What to look for in a slice of (h, w) pixels beside the last one; the whole given box comes last."""
        shown = z in self.track.slices
        whole = SliceBox(rows=(0.0, float(shape[0])), columns=(0.0, float(shape[1])))
        bounds = self.track.prompt if shown else whole
        if self.box is None or isinstance(bounds, SlicePoints):
            return (bounds,)
        near = self.box.grown(SLACK * max(shape)).within(bounds)
        return (bounds,) if near is None else (near, bounds) if shown else (near,)

    def taken(self, z: int, mask: SliceMask) -> "_Followed | None":
        """With the mask of the next slice; None if the object has ended before it."""
        part = largest_part((mask.logits > 0).cpu().numpy())
        area = int(part.sum())
        first = mask.quality if self.quality is None else self.quality
        lost = mask.quality < LOWEST_QUALITY * first or area < SMALLEST_SHARE * self.largest
        if lost and z not in self.track.slices:
            return None
        return replace(self, last=z, box=mask_box(part), largest=max(self.largest, area), quality=first)


def found_objects(tracks: Sequence[Track], shape: tuple[int, int, int], decode: Decode) -> Iterator[Found]:
    """What is found of objects, slice by slice.

    Each object begins in the middle of the slices that its prompt shows and is followed from there to both sides. The
    volume is passed upwards and then downwards, so each slice is decoded at most twice, with all of its objects at
    once.

    Args:
        tracks: the objects.
        shape: of the volume, slice axis first.
        decode: the network.
    """
    up: dict[int, _Followed] = {}
    down: dict[int, _Followed] = {}
    for z in range(shape[0]):
        begun = [number for number, track in enumerate(tracks) if track.first == z]
        up |= {number: _Followed(track=tracks[number], last=z - 1) for number in begun}
        yield from _step(z, z - 1, up, shape, decode)
        down |= {number: up[number] for number in begun}
    for z in range(shape[0] - 1, -1, -1):
        yield from _step(z, z + 1, down, shape, decode)


def _step(
    z: int, before: int, followed: dict[int, _Followed], shape: tuple[int, int, int], decode: Decode
) -> Iterator[Found]:
    """Take slice z of the objects that came as far as the slice `before` it."""
    here = {number: one for number, one in followed.items() if one.last == before and one.may_be_in(z)}
    prompts = {number: one.prompts(z, shape[1:]) for number, one in here.items()}
    masks = iter(decode(z, list(itertools.chain.from_iterable(prompts.values()))) if here else ())
    for number, one in here.items():
        mask = _mixed(*itertools.islice(masks, len(prompts[number])))
        if (taken := one.taken(z, mask)) is not None:
            followed[number] = taken
            yield number, z, mask


def _mixed(near: SliceMask, whole: SliceMask | None = None) -> SliceMask:
    """The mean of the logits of two boxes of one object, where the mask that the network rates higher counts more."""
    if whole is None:
        return near
    share = 1 / (1 + math.exp((whole.quality - near.quality - LEAD) / SOFTNESS))
    return SliceMask(logits=torch.lerp(whole.logits, near.logits, share), quality=max(near.quality, whole.quality))


def mask_box(mask: np.ndarray) -> SliceBox | None:
    """The box around a (h, w) mask; None if it is empty."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if len(rows) == 0:
        return None
    return SliceBox(rows=(float(rows[0]), float(rows[-1] + 1)), columns=(float(columns[0]), float(columns[-1] + 1)))


def largest_part(mask: np.ndarray) -> np.ndarray:
    """The largest connected part of a (h, w) mask: specks beside the object would widen the next box."""
    numbers, count = ndimage.label(mask)
    return mask if count < 2 else numbers == 1 + np.bincount(numbers.ravel())[1:].argmax()


def ahead_of(z: int, tracks: Iterable[Track], count: int) -> list[int]:
    """The next slices after `z` that objects are certain to be looked for in, at most `count`."""
    certain = {other for track in tracks for other in track.slices[len(track.slices) // 2 :] if other > z}
    return sorted(certain)[:count]
