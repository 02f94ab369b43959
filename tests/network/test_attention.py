import pytest
import torch

from masam_auto.network import attention
from masam_auto.network.attention import Attention, attend, attend_in_windows
from masam_auto.network.sam import _modeling

SamAttention = _modeling.image_encoder.Attention


def pair(grid, dim=24, heads=2):
    """Our attention and SAM's with the same random weights."""
    torch.manual_seed(1)
    theirs = SamAttention(dim, num_heads=heads, use_rel_pos=True, input_size=grid)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ours = Attention(dim=dim, heads=heads, grid=grid)
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


def test_windows_equal_sams_with_padding():
    ours, theirs = pair((4, 4))
    x = torch.randn(2, 6, 5, 24, dtype=torch.float64)
    windows, padded = attention.window_partition(x, 4)
    expected = attention.window_unpartition(theirs(windows), 4, padded, (6, 5))
    assert torch.allclose(attend_in_windows(ours, x, None, 0), expected)


def test_both_ways_of_attending_agree_for_narrow_values(monkeypatch):
    q, k, v = torch.randn(2, 3, 7, 10), torch.randn(2, 3, 7, 10), torch.randn(2, 3, 7, 4)
    plain = attend(q, k, v)
    monkeypatch.setattr(attention, "PLAIN_SCORES", 0)
    assert torch.allclose(attend(q, k, v), plain, atol=1e-5)
