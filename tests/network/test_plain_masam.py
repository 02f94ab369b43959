"""The fused network against the plain one: the same function of the same tensors."""

import dataclasses

import pytest
import torch

from masam_auto.network.build import assemble
from tests.network import plain_masam
from tests.network.small_networks import SPECS, make_network, network_plan

CASES = {  # canvas, N, channels, batch
    "windows that fit": ((64, 64), 5, 1, 1),
    "padded windows": ((96, 48), 3, 1, 2),
    "one slice": ((48, 80), 1, 3, 2),
    "even window": ((80, 64), 4, 2, 1),
}


def drawn(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def twins(network, dtype):
    """A network and its plain twin, computing in a type (but for SAM's prompt encoder, which knows float32 only)."""
    plain = plain_masam.plain_twin(network)
    for one in (network, plain):
        one.to(dtype).prompt_encoder.float()
    return network, plain


def largest_difference(network, case, dtype):
    """Between the two networks' logits, as a share of the largest logit."""
    canvas, num_slices, channels, batch = CASES[case]
    windows, boxes = drawn((batch, num_slices, channels, *canvas)), None
    if network.plan.prompt == "box":
        box = torch.tensor([0.2 * canvas[1], 0.1 * canvas[0], 0.8 * canvas[1], 0.7 * canvas[0]])
        boxes = box + drawn((batch, num_slices, 4))
    network, plain = twins(network.eval(), dtype)
    with torch.inference_mode():
        expected = plain(windows.to(dtype), boxes)
        logits = network(windows.to(dtype), boxes)
    return (logits - expected).abs().max() / expected.abs().max()


@pytest.mark.parametrize("prompt", ["none", "box"])
@pytest.mark.parametrize("case", CASES)
def test_logits_are_the_plain_networks(case, prompt):
    # In float64: norms over the small network's two channels blow float32's rounding up.
    canvas, _, channels, _ = CASES[case]
    network = make_network(canvas=canvas, in_channels=channels, randomised=True, prompt=prompt)
    assert largest_difference(network, case, torch.float64) <= 1e-6


@pytest.mark.parametrize("prompt", ["none", "box"])
def test_logits_are_the_plain_networks_in_float32(prompt):
    canvas, _, channels, _ = CASES["padded windows"]
    spec = dataclasses.replace(SPECS["sam"], dim=64, embedding=256)  # SAM's width in the decoder
    plan = network_plan(prompt=prompt, adapter_start="reference")
    network = assemble(spec, plan, canvas=canvas, in_channels=channels, num_outputs=3)
    network.image_encoder.increments.v.weight.data.normal_(generator=torch.Generator().manual_seed(0), std=0.2)
    assert largest_difference(network, "padded windows", torch.float32) <= 2e-5


def test_gradients_are_the_plain_networks():
    network = make_network(canvas=(96, 48), randomised=True, increment_dropout=0.0)
    network, plain = twins(network, torch.float64)
    windows = drawn((1, 3, 1, 96, 48)).double()
    weights = drawn((1, 3, 3, 96, 48), seed=1).double()
    (network(windows) * weights).mean().backward()
    (plain(windows) * weights).mean().backward()
    expected = {name: parameter.grad for name, parameter in plain.named_parameters() if parameter.requires_grad}
    learning = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert learning <= set(expected)
    for name in learning:
        error = (network.get_parameter(name).grad - expected[name]).abs().max()
        assert error <= 1e-6 * expected[name].abs().max() + 1e-15, name


def test_plain_prediction_averages_the_windows_of_each_slice():
    slices = drawn((4, 1, 2, 2))

    def first_slice_of_the_window(windows):
        return windows[:, :1].expand(-1, 3, -1, -1, -1) * torch.tensor([1.0, 0.0])[:, None, None]

    found = plain_masam.predict_plainly(first_slice_of_the_window, slices, window=3)
    of = [torch.stack([s[0], torch.zeros(2, 2)]).softmax(0) for s in slices]
    # Windows start at slices 0 (repeated), 0, 1 and 2.
    assert torch.allclose(found[0], of[0])
    assert torch.allclose(found[1], (2 * of[0] + of[1]) / 3)
    assert torch.allclose(found[3], (of[1] + of[2]) / 2)


def test_the_plain_network_is_only_the_papers():
    with pytest.raises(AssertionError):
        plain_masam.plain_twin(make_network(decoder="sam"))
