import pytest
import torch

from masam_auto.core.encoder_sizes import ConvSpec
from masam_auto.network.stem import NORMS, ConvBlock, Stem


@pytest.mark.parametrize("norm", NORMS)
def test_levels_halve(norm):
    stem = Stem(2, (4, 6, 8), spec=ConvSpec(norm=norm, across=True))
    levels = stem(torch.randn(6, 2, 12, 20), 3)
    assert [tuple(level.shape) for level in levels] == [(6, 4, 12, 20), (6, 6, 6, 10), (6, 8, 3, 5)]


@pytest.mark.parametrize("across", [True, False])
def test_neighbouring_slices_are_seen_only_when_asked_for(across):
    torch.manual_seed(0)
    block = ConvBlock(1, 4, spec=ConvSpec(norm="instance", across=across)).eval()
    x = torch.randn(3, 1, 6, 6)
    changed = x.clone()
    changed[0] += torch.randn(1, 6, 6)
    moved = (block(changed, 3) - block(x, 3)).flatten(1).abs().amax(1) > 0
    assert moved.tolist() == [True, across, False]
