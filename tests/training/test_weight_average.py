"""The running average of the weights."""

import pytest
import torch

from masam_auto.training.weight_average import WeightAverage


def test_the_average_follows_and_counters_are_copied() -> None:
    tensors = {"w": torch.zeros(3), "n": torch.tensor(0)}
    average = WeightAverage(tensors, decay=0.9)
    tensors["w"].fill_(1)
    tensors["n"].fill_(7)
    average.update(tensors, 1)
    torch.testing.assert_close(average.tensors["w"], torch.full((3,), 1 - 2 / 11))
    assert average.tensors["n"] == 7
    for step in range(2, 200):
        average.update(tensors, step)
    torch.testing.assert_close(average.tensors["w"], torch.ones(3))


def test_decay_nought_is_the_newest() -> None:
    tensors = {"w": torch.zeros(3)}
    average = WeightAverage(tensors, decay=0)
    tensors["w"].fill_(5)
    average.update(tensors, 1)
    assert torch.equal(average.tensors["w"], tensors["w"])


def test_it_is_shown_for_a_while_and_then_taken_back_exactly() -> None:
    layer = torch.nn.BatchNorm2d(2)
    tensors = layer.state_dict()
    average = WeightAverage(tensors, decay=0.5)
    with torch.no_grad():
        layer.weight.fill_(3)
    with pytest.raises(ZeroDivisionError), average.shown_by(tensors):
        assert layer.weight.tolist() == [1, 1]
        raise ZeroDivisionError
    assert layer.weight.tolist() == [3, 3]
