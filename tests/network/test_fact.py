import pytest
import torch

from masam_auto.network.attention import Attention
from masam_auto.network.fact import INCREMENTS


def make(name, dropout=0.0):
    torch.manual_seed(2)
    increments = INCREMENTS[name](dim=12, depth=2, rank=3, scale=0.7, dropout=dropout)
    for parameter in increments.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return increments


@pytest.mark.parametrize("name", ["fact", "lora"])
@pytest.mark.parametrize("block", [0, 1])
def test_folded_equals_unfolded(name, block):
    increments = make(name)
    layer = Attention(dim=12, heads=2, grid=(3, 4))
    x = torch.randn(2, 3, 4, 12)
    unfolded = layer(x, increments.train(), block)
    folded = layer(x, increments.eval(), block)
    assert torch.allclose(folded, unfolded, atol=1e-5)
    assert not torch.allclose(folded, layer(x, None, block), atol=1e-2)


@pytest.mark.parametrize("name", ["fact", "lora"])
def test_dropout_only_in_training(name):
    increments = make(name, dropout=0.5)
    layer = Attention(dim=12, heads=2, grid=(2, 2))
    x = torch.randn(1, 2, 2, 12)
    increments.train()
    assert not torch.equal(layer(x, increments, 0), layer(x, increments, 0))
    increments.eval()
    assert torch.equal(layer(x, increments, 0), layer(x, increments, 0))


@pytest.mark.parametrize("name", ["fact", "lora"])
def test_start_adds_nothing(name):
    increments = INCREMENTS[name](dim=12, depth=2, rank=3, scale=1.0, dropout=0.1)
    x = torch.randn(5, 12)
    assert torch.equal(increments(1, x, torch.ones(5, 36)), torch.ones(5, 36))
    assert all(not part.any() for part in increments.weights(1))


def test_fact_shares_its_outer_matrices():
    names = dict(make("fact").named_parameters())
    assert set(names) == {"u.weight", "v.weight"} | {f"{p}_cores.{i}.weight" for p in "qv" for i in (0, 1)}


def test_none_is_none():
    assert INCREMENTS["none"](dim=12, depth=2, rank=3, scale=1.0, dropout=0.1) is None
