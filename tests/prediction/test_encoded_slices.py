"""Slices are encoded once, together where that is faster, and few are kept."""

import numpy as np
import pytest
import torch

from masam_auto.imaging.square import square_fit
from masam_auto.prediction import encoded_slices
from masam_auto.prediction.encoded_slices import EncodedSlices
from masam_auto.prediction.propagation import SliceBox, Track
from tests.bright_inside import BrightInside

BOX = SliceBox(rows=(2, 8), columns=(1, 7))
TRACK = Track(value=1, prompt=BOX, slices=range(1, 7), beyond=False)  # begins in slice 4


def make() -> EncodedSlices:
    volume = np.random.default_rng(0).uniform(0, 50, (1, 9, 12, 10)).astype(np.float32)
    return EncodedSlices(
        network=BrightInside(24, "unit"),  # type: ignore[arg-type]
        device=torch.device("cpu"),
        volume=volume,
        range=(10.0, 40.0),
        fit=square_fit((12, 10), (1.0, 1.0), 24),
        tracks=[TRACK],
    )


def test_a_kept_slice_is_not_encoded_again() -> None:
    slices = make()
    first, again = (slices.decode(4, [BOX])[0].logits for _ in range(2))
    assert torch.equal(first, again) and slices.network.encoded == [1]
    assert first.shape == (12, 10) and (first[:, 8:] < 0).all()


def test_slices_that_are_certain_to_come_are_encoded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    one_by_one = [make().decode(z, [BOX])[0].logits for z in (4, 5, 6)]
    monkeypatch.setattr(encoded_slices, "AT_ONCE", {})
    slices = make()
    together = [slices.decode(z, [BOX])[0].logits for z in (4, 5, 6)]
    assert slices.network.encoded == [3]
    for one, other in zip(one_by_one, together, strict=True):
        torch.testing.assert_close(one, other)


def test_few_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoded_slices, "KEPT_BYTES", 1)
    slices = make()
    for z in (4, 5, 6, 4):
        slices.decode(z, [BOX])
    assert slices.network.encoded == [1, 1, 1, 1] and list(slices.kept) == [6, 4]


def test_many_prompts_are_decoded_in_groups() -> None:
    boxes = [SliceBox(rows=(0, 12), columns=(float(left % 5), 10)) for left in range(40)]
    slices = make()
    found = slices.decode(3, boxes)
    assert len(found) == 40
    for box, mask in zip(boxes[:5], found, strict=False):
        assert torch.equal(slices.decode(3, [box])[0].logits, mask.logits)
