"""Following objects through slices, with a network that sees exactly what is there."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from masam_auto.prediction.propagation import (
    SliceBox,
    SliceMask,
    SlicePoints,
    SlicePrompt,
    Track,
    ahead_of,
    found_objects,
    largest_part,
    mask_box,
)

SHAPE = (20, 64, 64)


def ball(middle: tuple[float, float, float], radius: float, lean: float = 0.0) -> np.ndarray:
    """A ball whose slices move along rows by `lean` px each."""
    z, y, x = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    return (z - middle[0]) ** 2 + (y - middle[1] - lean * (z - middle[0])) ** 2 + (x - middle[2]) ** 2 < radius**2


class Seeing:
    """Decodes what of a volume is inside a box, or all of a slice for points; counts its calls."""

    def __init__(self, truth: np.ndarray) -> None:
        self.truth = truth
        self.qualities: dict[int, float] = {}
        self.calls: list[tuple[int, tuple[SlicePrompt, ...]]] = []

    def __call__(self, z: int, prompts: Sequence[SlicePrompt]) -> list[SliceMask]:
        self.calls.append((z, tuple(prompts)))
        return [self.mask(z, prompt) for prompt in prompts]

    @property
    def shown(self) -> list[tuple[int, SlicePrompt]]:
        """All that was asked for."""
        return [(z, prompt) for z, prompts in self.calls for prompt in prompts]

    def mask(self, z: int, prompt: SlicePrompt) -> SliceMask:
        logits = np.full(SHAPE[1:], -5.0, np.float32)
        inside: tuple[Any, ...] = (slice(None), slice(None))
        if isinstance(prompt, SliceBox):
            inside = tuple(slice(max(0, round(a)), round(b)) for a, b in (prompt.rows, prompt.columns))
        logits[inside] = np.where(self.truth[z][inside], 5.0, -5.0)
        return SliceMask(logits=torch.from_numpy(logits), quality=self.qualities.get(z, 0.9))


def segmented(tracks: list[Track], decode: Seeing) -> np.ndarray:
    volume = np.zeros(SHAPE, np.uint8)
    for number, z, mask in found_objects(tracks, SHAPE, decode):
        volume[z][mask.logits.numpy() > 0] = tracks[number].value
    return volume


def shown(truth: np.ndarray, slices: range, *, beyond: bool, value: int = 1) -> Track:
    box = mask_box(truth[slices.start : slices.stop].any(0))
    assert box is not None
    return Track(value=value, prompt=box, slices=slices, beyond=beyond)


@pytest.mark.parametrize("lean", [0.0, 0.5])
@pytest.mark.parametrize("z", [5, 9, 13])
def test_an_object_shown_in_one_slice_is_found_in_all(z: int, lean: float) -> None:
    truth = ball((9, 30, 30), 9, lean)
    decode = Seeing(truth)
    found = segmented([shown(truth, range(z, z + 1), beyond=True)], decode)
    assert np.array_equal(found > 0, truth)
    assert not (found > truth).any()
    assert max(np.bincount([at for at, _ in decode.calls])) <= 2


def test_nothing_is_looked_for_outside_the_slices_of_a_box() -> None:
    truth = ball((9, 30, 30), 9)
    decode = Seeing(truth)
    found = segmented([shown(truth, range(7, 12), beyond=False)], decode)
    assert sorted({z for z, _ in decode.calls}) == [7, 8, 9, 10, 11] == np.flatnonzero(found.any((1, 2))).tolist()
    assert np.array_equal(found[7:12] > 0, truth[7:12])


def test_within_its_box_an_object_may_vanish_and_come_back() -> None:
    truth = ball((9, 30, 30), 9)
    track = shown(truth, range(4, 15), beyond=False)
    truth[11] = False
    assert np.array_equal(segmented([track], Seeing(truth))[4:15] > 0, truth[4:15])


@pytest.mark.parametrize("first", [0.4, 0.95])
def test_it_ends_where_the_network_is_less_sure_than_in_the_first_slice(first: float) -> None:
    truth = ball((9, 30, 30), 9)
    decode = Seeing(truth)
    decode.qualities = dict.fromkeys(range(8, 12), first) | {12: 0.81 * first, 7: 0.79 * first, 13: 0.79 * first}
    found = segmented([shown(truth, range(9, 10), beyond=True)], decode)
    assert np.flatnonzero(found.any((1, 2))).tolist() == [8, 9, 10, 11, 12]


def test_a_small_rest_is_the_end() -> None:
    truth = np.zeros(SHAPE, bool)
    truth[5:9, 10:50, 10:50] = True
    truth[9:, 20:24, 20:24] = True  # a vessel that leaves it
    assert np.flatnonzero(segmented([shown(truth, range(6, 7), beyond=True)], Seeing(truth)).any((1, 2))).tolist() == [
        5,
        6,
        7,
        8,
    ]


def test_several_objects_are_decoded_together() -> None:
    first, second = ball((6, 20, 16), 7), ball((12, 40, 44), 7)
    decode = Seeing(first | second)
    tracks = [shown(first, range(6, 7), beyond=True, value=1), shown(second, range(12, 13), beyond=True, value=2)]
    found = segmented(tracks, decode)
    assert (found == 1).sum() > 0.9 * first.sum() and (found == 2).sum() > 0.9 * second.sum()
    assert not (found[~(first | second)]).any() and not (found == 1)[second].any()
    assert max(np.bincount([z for z, _ in decode.calls])) <= 2
    assert {len(prompts) for _, prompts in decode.calls} == {1, 2}


def test_points_show_their_slice_only_and_boxes_follow() -> None:
    truth = ball((9, 30, 30), 9)
    decode = Seeing(truth)
    points = SlicePoints(on=((30.5, 30.5),))
    found = segmented([Track(value=1, prompt=points, slices=range(9, 10), beyond=True)], decode)
    assert (found > 0).sum() > 0.9 * truth.sum()
    assert [z for z, prompts in decode.calls if points in prompts] == [9]


def test_nothing_found_is_not_followed() -> None:
    decode = Seeing(np.zeros(SHAPE, bool))
    box = SliceBox(rows=(3, 9), columns=(4, 9))
    assert not segmented([Track(value=1, prompt=box, slices=range(9, 10), beyond=True)], decode).any()
    assert [z for z, _ in decode.calls] == [9]


def test_the_next_box_stays_in_the_slice_and_in_a_given_box() -> None:
    truth = np.zeros(SHAPE, bool)
    truth[:, :30, 5:60] = True
    decode = Seeing(truth)
    tight = SliceBox(rows=(0, 20), columns=(6, 40))
    segmented([Track(value=1, prompt=tight, slices=range(8, 12), beyond=True)], decode)
    for z, prompts in decode.calls:
        for prompt in prompts:
            assert isinstance(prompt, SliceBox)
            bounds = tight if 8 <= z < 12 else SliceBox(rows=(0, 64), columns=(0, 64))
            assert prompt.within(bounds) == prompt


@pytest.mark.parametrize("whole_quality", [0.9, 0.96])
def test_the_whole_box_wins_where_the_network_rates_it_higher(whole_quality: float) -> None:
    truth = np.zeros(SHAPE, bool)
    truth[:, 20:30, 20:30] = True
    truth[10:, 20:30, 20:50] = True  # suddenly wider
    track = shown(truth, range(4, 16), beyond=False)
    track = Track(value=1, prompt=track.prompt, slices=range(4, 14), beyond=False)  # begins in slice 9

    class Preferring(Seeing):
        def mask(self, z: int, prompt: SlicePrompt) -> SliceMask:
            quality = whole_quality if prompt == track.prompt else 0.9
            return replace(super().mask(z, prompt), quality=quality)

    found = segmented([track], Preferring(truth))
    assert np.array_equal(found[4:14] > 0, truth[4:14]) == (whole_quality > 0.9)
    assert np.array_equal(found[4:10] > 0, truth[4:10])


def test_the_largest_part_and_its_box() -> None:
    mask = np.zeros((9, 9), bool)
    mask[1:4, 2:5], mask[7, 7] = True, True
    assert largest_part(mask).sum() == 9
    assert mask_box(largest_part(mask)) == SliceBox(rows=(1, 4), columns=(2, 5))
    assert mask_box(np.zeros((3, 3), bool)) is None


def test_slices_that_are_certain_to_come() -> None:
    box = SliceBox(rows=(0, 1), columns=(0, 1))
    tracks = [
        Track(value=1, prompt=box, slices=range(4, 9), beyond=False),
        Track(value=1, prompt=box, slices=range(12, 13), beyond=True),
    ]
    assert ahead_of(2, tracks, 9) == [6, 7, 8, 12] and ahead_of(6, tracks, 1) == [7] and ahead_of(12, tracks, 3) == []
