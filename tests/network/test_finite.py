"""The first layer with values that are not finite is found and named."""

import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from masam_auto.core.errors import ModelError
from masam_auto.network.finite import find_nonfinite, finite_logits, nonfinite_parameter
from tests.network.small_networks import make_network

WINDOWS = torch.randn(1, 2, 1, 96, 64, generator=torch.Generator().manual_seed(0))


class Scale(nn.Module):
    """Multiplies in the type that comes in."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


def spoil(parameter: torch.Tensor) -> None:
    parameter.data.flatten()[3] = float("nan")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("place", "layer", "says"),
    [
        (
            "image_encoder.patch_embed.proj.weight",
            r"image_encoder\.patch_embed\.proj \(Conv2d\)",
            "its parameter weight",
        ),
        (
            "image_encoder.pos_embed",
            r"image_encoder \(SliceEncoder\), what it gives to blocks\.0",
            "its parameter pos_embed",
        ),
        (
            "image_encoder.blocks.1.mlp.lin2.bias",
            r"image_encoder\.blocks\.1\.mlp\.lin2 \(Linear\)",
            "its parameter bias",
        ),
        (
            "image_encoder.blocks.2.attn.rel_pos_h",
            r"image_encoder\.blocks\.2\.attn \(Attention\)",
            "its parameter rel_pos_h",
        ),
        (
            "image_encoder.blocks.0.adapter_after.up.weight",
            r"blocks\.0\.adapter_after\.up \(Linear\)",
            "its parameter weight",
        ),
        (
            "mask_decoder.transformer.layers.1.mlp.lin1.weight",
            r"layers\.1\.mlp\.lin1 \(Linear\)",
            "its parameter weight",
        ),
    ],
)
def test_the_layer_of_a_spoilt_parameter_is_named(training, place, layer, says):
    network = make_network(randomised=True).train(training)
    call = lambda: network(WINDOWS)  # noqa: E731
    assert find_nonfinite(network, call) is None
    spoil(network.get_parameter(place))
    found = find_nonfinite(network, call)
    assert found is not None
    assert re.match(rf"\S*{layer}", found), found
    assert says in found
    assert nonfinite_parameter(network) == place


def test_increments_are_blamed_in_evaluation_where_they_are_part_of_the_weights():
    network = make_network(randomised=True).eval()
    spoil(network.get_parameter("image_encoder.increments.v.weight"))
    found = find_nonfinite(network, lambda: network(WINDOWS))
    assert found.startswith("image_encoder.blocks.0.attn (Attention), what it gives to proj: ")
    assert found.endswith("; the network's parameter image_encoder.increments.v.weight is not finite")


def test_the_input_is_blamed_first_and_missing_boxes_never():
    network = make_network(prompt="box", randomised=True)
    spoilt = WINDOWS.clone()
    spoilt[0, 1, 0, 5, 7] = float("inf")
    found = find_nonfinite(network, lambda: network(spoilt))
    assert found == (
        "the network's input: 1 of 12288 values are not finite, the first at [0, 1, 0, 5, 7] of 1 x 2 x 1 x 96 x 64 "
        "float32"
    )
    boxes = torch.tensor([[[4.0, 6.0, 40.0, 50.0], [float("nan")] * 4]])
    assert find_nonfinite(network, lambda: network(WINDOWS, boxes)) is None


def test_an_overflow_is_told_with_its_type_and_the_size_of_what_went_in():
    network = nn.Sequential(nn.Identity(), Scale(1e3), Scale(1e-3))
    x = torch.full((1, 4), 100.0, dtype=torch.float16)
    assert find_nonfinite(network, lambda: network(x)) == (
        "1 (Scale): 4 of 4 values are not finite, the first at [0, 0] of 1 x 4 float16; its input reaches 100; "
        "all parameters are finite"
    )
    assert find_nonfinite(network, lambda: network(x.float())) is None


def test_a_layer_that_changes_its_input_is_told_with_what_went_in():
    class InPlace(nn.Module):
        def forward(self, x):
            return x.mul_(1e3)

    network = nn.Sequential(InPlace())
    x = torch.full((1, 4), 100.0, dtype=torch.float16)
    assert "its input reaches 100;" in find_nonfinite(network, lambda: network(x))


def test_looking_leaves_nothing_behind():
    network = make_network()
    before = network.eval()(WINDOWS)
    find_nonfinite(network, lambda: network(WINDOWS * float("nan")))
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in network.modules())
    assert torch.equal(network(WINDOWS), before)


def test_what_other_threads_pass_through_the_network_is_not_looked_at():
    network = nn.Sequential(Scale(2.0), Scale(3.0))
    with ThreadPoolExecutor(1) as other:

        def call() -> None:
            assert not torch.isfinite(other.submit(network, torch.tensor([float("nan")])).result()).all()
            network(torch.tensor([1.0]))

        assert find_nonfinite(network, call) is None


@pytest.mark.parametrize("low", [True, False])
def test_prediction_ends_with_the_layer_named_where_float32_overflows_too(low):
    network = nn.Sequential(nn.Linear(1, 1), Scale(float("inf")))
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=low),
        pytest.raises(ModelError, match=r"it starts in 1 \(Scale\): 2 of 2"),
    ):
        finite_logits(network, torch.ones(2, 1))


def test_logits_whose_sum_alone_overflows_are_finite():
    x = torch.full((2, 1), 3e38)
    assert torch.equal(finite_logits(nn.Identity(), x), x)
