import pytest
import torch
from torch import nn

from masam_auto.network.adapter import Adapter3D, convolve_across_slices


@pytest.mark.parametrize("num_slices", [1, 2, 5])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_the_3d_convolution(num_slices, bias):
    torch.manual_seed(0)
    conv = nn.Conv3d(4, 6, (3, 1, 1), padding="same", bias=bias)
    x = torch.randn(2 * num_slices, 3, 5, 4)
    volume = x.view(2, num_slices, 3, 5, 4).permute(0, 4, 1, 2, 3)
    expected = conv(volume).permute(0, 2, 3, 4, 1).reshape(2 * num_slices, 3, 5, 6)
    assert torch.allclose(convolve_across_slices(conv, x, num_slices), expected, atol=1e-5)


def test_zero_start_is_the_identity_and_reference_start_is_not():
    x = torch.randn(3, 2, 2, 8)
    assert torch.equal(Adapter3D(dim=8, channels=4, start="zero")(x, 3), x)
    assert not torch.equal(Adapter3D(dim=8, channels=4, start="reference")(x, 3), x)


def test_looks_at_the_neighbouring_slices_of_its_window_only():
    torch.manual_seed(0)
    adapter = Adapter3D(dim=8, channels=4, start="reference")
    x = torch.randn(6, 2, 2, 8)  # two windows of three slices
    changed = x.clone()
    changed[0] += torch.randn(2, 2, 8)
    moved = (adapter(changed, 3) - adapter(x, 3)).flatten(1).abs().amax(1) > 0
    assert moved.tolist() == [True, True, False, False, False, False]


def test_published_shapes():
    shapes = {name: tuple(p.shape) for name, p in Adapter3D(dim=8, channels=4, start="zero").named_parameters()}
    assert shapes["conv.weight"] == (4, 4, 3, 1, 1) and shapes["down.weight"] == (4, 8)
    assert "down.bias" not in shapes and "up.bias" not in shapes and shapes["conv.bias"] == (4,)
