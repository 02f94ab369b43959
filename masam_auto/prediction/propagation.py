"""Follow objects through the slices of a volume: the mask of one slice gives the next one's box."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from masam_auto.core.boxes import Edges

# Measured on sarcomas and left ventricles (documentation/benchmarks.md).
SLACK = 4 / 256  # of the slice's longer side: how far an object may reach beyond its mask in the slice before
SMALLEST_SHARE = 0.05  # of the largest mask so far; where less is found, the object has ended
LOWEST_QUALITY = 0.6  # overlap with the object that the network predicts; below, the object has ended
REACH = 0.1  # of the first box's side: how far an object may reach beyond that box in the other slices


@dataclass(frozen=True, kw_only=True, slots=True)
class SliceBox:
    """A box in one slice. Ends are measured from the slice's edge: pixel i covers i to i + 1."""

    rows: Edges
    columns: Edges

    def grown(self, rows: float, columns: float) -> "SliceBox":
        """The box with its sides moved outwards."""
        (top, bottom), (left, right) = self.rows, self.columns
        return SliceBox(rows=(top - rows, bottom + rows), columns=(left - columns, right + columns))

    def cut(self, mask: np.ndarray) -> np.ndarray:
        """A (h, w) mask without what is outside the box."""
        inside = np.zeros_like(mask)
        window = tuple(slice(max(0, round(low)), max(0, round(high))) for low, high in (self.rows, self.columns))
        inside[window] = mask[window]
        return inside

    def within(self, other: "SliceBox") -> "SliceBox":
        """The part inside another box, which it must touch."""
        pairs = ((self.rows, other.rows), (self.columns, other.columns))
        rows, columns = ((max(low, first), min(high, last)) for (low, high), (first, last) in pairs)
        return SliceBox(rows=rows, columns=columns)


@dataclass(frozen=True, kw_only=True, slots=True)
class SlicePoints:
    """Points in one slice, (row, column) from its edge: on the object, and beside it."""

    on: tuple[Edges, ...]
    beside: tuple[Edges, ...] = ()


SlicePrompt = SliceBox | SlicePoints


@dataclass(frozen=True, kw_only=True, slots=True)
class Track:
    """An object: shown by `prompt` in each of `slices`, and followed beyond them if `beyond`. `value` is its class."""

    value: int
    prompt: SlicePrompt
    slices: range
    beyond: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class SliceMask:
    """What was found of an object in a slice: logits (h, w), and the predicted overlap with the object."""

    logits: torch.Tensor
    quality: float


Decode = Callable[[int, Sequence[SlicePrompt]], Sequence[SliceMask]]
"""Called with a slice's number and the prompts of its objects. Returns a mask for each."""

Found = tuple[int, int, SliceMask]
"""Number of the track, number of the slice, and the mask."""


@dataclass(kw_only=True, slots=True)
class _Followed:
    """An object on its way: where it was seen last, its largest area so far, and the box that it may not leave."""

    last: int
    box: SliceBox
    largest: int
    bounds: SliceBox

    @classmethod
    def start(cls, z: int, track: Track, mask: np.ndarray) -> "_Followed | None":
        """From its (h, w) mask in the last slice that the prompt shows; None if nothing was found there."""
        first = track.prompt if isinstance(track.prompt, SliceBox) else mask_box(mask)
        if first is None:
            return None
        (top, bottom), (left, right) = first.rows, first.columns
        slack = SLACK * max(mask.shape)
        bounds = first.grown(slack + REACH * (bottom - top), slack + REACH * (right - left))
        part = largest_part(bounds.cut(mask))
        seen = mask_box(part)
        return None if seen is None else cls(last=z, box=seen, largest=int(part.sum()), bounds=bounds)

    def next_box(self, shape: tuple[int, int]) -> SliceBox:
        """Where to look in a neighbouring slice of (h, w) pixels."""
        slack = SLACK * max(shape)
        whole = SliceBox(rows=(0.0, float(shape[0])), columns=(0.0, float(shape[1])))
        return self.box.grown(slack, slack).within(self.bounds).within(whole)

    def goes_on(self, z: int, mask: np.ndarray, quality: float) -> bool:
        """Take the mask of the next slice. False if the object has ended before it."""
        area = int(mask.sum())
        seen = mask_box(mask)
        if seen is None or quality < LOWEST_QUALITY or area < SMALLEST_SHARE * self.largest:
            return False
        self.last, self.box, self.largest = z, seen, max(self.largest, area)
        return True


def found_objects(tracks: Sequence[Track], shape: tuple[int, int, int], decode: Decode) -> Iterator[Found]:
    """What is found of objects, slice by slice.

    The volume is passed upwards, with the slices that prompts show, and then downwards. So each slice is decoded at
    most twice, with all of its objects at once.

    Args:
        tracks: the objects.
        shape: of the volume, slice axis first.
        decode: the network.
    """
    up: dict[int, _Followed] = {}
    down: dict[int, _Followed] = {}
    for z in range(shape[0]):
        shown = [number for number, track in enumerate(tracks) if z in track.slices]
        yield from _follow(z, up, shape, decode)
        if not shown:
            continue
        for number, mask in zip(shown, decode(z, [tracks[number].prompt for number in shown]), strict=True):
            yield number, z, mask
            track = tracks[number]
            for followed, end in ((down, track.slices[0]), (up, track.slices[-1])):
                if track.beyond and z == end and (start := _Followed.start(z, track, _above(mask))):
                    followed[number] = start
    for z in range(shape[0] - 1, -1, -1):
        yield from _follow(z, down, shape, decode)


def _follow(z: int, followed: dict[int, _Followed], shape: tuple[int, int, int], decode: Decode) -> Iterator[Found]:
    """The objects that were last seen in a slice beside this one. Those that have ended are removed."""
    numbers = [number for number, one in followed.items() if abs(one.last - z) == 1]
    if not numbers:
        return
    boxes = [followed[number].next_box(shape[1:]) for number in numbers]
    for number, mask in zip(numbers, decode(z, boxes), strict=True):
        part = largest_part(followed[number].bounds.cut(_above(mask)))
        if followed[number].goes_on(z, part, mask.quality):
            inside = torch.from_numpy(part).to(mask.logits.device)
            yield number, z, SliceMask(logits=mask.logits.masked_fill(~inside, -torch.inf), quality=mask.quality)
        else:
            del followed[number]


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


def _above(mask: SliceMask) -> np.ndarray:
    return (mask.logits > 0).cpu().numpy()


def ahead_of(z: int, tracks: Iterable[Track], count: int) -> list[int]:
    """The next slices after `z` that prompts show, at most `count`."""
    return sorted({other for track in tracks for other in track.slices if other > z})[:count]
