import pytest
import torch

from masam_auto.network import attention
from masam_auto.network.attention import Attention, attend
from masam_auto.network.fact import FacTIncrements
from masam_auto.network.sam import _modeling

SamAttention = _modeling.image_encoder.Attention
window_partition = _modeling.image_encoder.window_partition
window_unpartition = _modeling.image_encoder.window_unpartition


def pair(grid, dim=24, heads=2, windowed=False):
    """Our attention and SAM's with the same random weights."""
    torch.manual_seed(1)
    theirs = SamAttention(dim, num_heads=heads, use_rel_pos=True, input_size=grid)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ours = Attention(dim=dim, heads=heads, grid=grid, windowed=windowed)
    ours.load_state_dict(theirs.state_dict())
    return ours.double(), theirs.double()


@pytest.mark.parametrize("grid", [(5, 3), (1, 4), (4, 4)])
@pytest.mark.parametrize("plain", [True, False])
def test_equals_sams_attention_with_gradients(grid, plain, monkeypatch):
    monkeypatch.setattr(attention, "PLAIN_SCORES", 2**26 if plain else 0)
    ours, theirs = pair(grid)
    x = torch.randn(3, *grid, 24, dtype=torch.float64)
    ours(x, None, 0).square().sum().backward()
    theirs(x).square().sum().backward()
    assert torch.allclose(ours(x, None, 0), theirs(x))
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(mine.grad, other.grad)


@pytest.mark.parametrize("size", [(6, 5), (8, 4), (3, 9)])
@pytest.mark.parametrize("plain", [True, False])
def test_windows_equal_sams_with_padding(size, plain, monkeypatch):
    monkeypatch.setattr(attention, "PLAIN_SCORES", 2**26 if plain else 0)
    ours, theirs = pair((4, 4), windowed=True)
    x = torch.randn(2, *size, 24, dtype=torch.float64)
    windows, padded = window_partition(x, 4)
    expected = window_unpartition(theirs(windows), 4, padded, size)
    assert torch.allclose(ours(x, None, 0), expected)
    ours(x, None, 0).square().sum().backward()
    expected.square().sum().backward()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(mine.grad, other.grad)


def test_a_whole_grid_must_have_its_size():
    with pytest.raises(AssertionError, match="tables for"):
        pair((4, 4))[0](torch.zeros(1, 4, 5, 24, dtype=torch.float64), None, 0)


@pytest.mark.parametrize("windowed", [False, True])
def test_folded_increments_equal_computed_ones(windowed):
    ours, _ = pair((4, 4), windowed=windowed)
    increments = FacTIncrements(dim=24, depth=2, rank=3, scale=0.7, dropout=0.0).double()
    torch.nn.init.normal_(increments.v.weight)
    x = torch.randn(2, *((6, 5) if windowed else (4, 4)), 24, dtype=torch.float64)
    computed, folded = ours(x, increments.train(), 1), ours(x, increments.eval(), 1)
    assert torch.allclose(computed, folded) and not torch.allclose(computed, ours(x, None, 1))


def test_both_ways_of_attending_agree_for_narrow_values(monkeypatch):
    q, k, v = torch.randn(2, 3, 7, 10), torch.randn(2, 3, 7, 10), torch.randn(2, 3, 7, 4)
    plain = attend(q, k, v)
    monkeypatch.setattr(attention, "PLAIN_SCORES", 0)
    assert torch.allclose(attend(q, k, v)[..., :4], plain, atol=1e-5)
