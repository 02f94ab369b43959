"""What masam_benchmark measures: plausible numbers at the smallest size, and honest counts."""

import dataclasses

import pytest
import torch

from masam_auto.network.build import build_network
from masam_auto.planning.planned_encoders import PLANNED_ENCODERS
from masam_auto.planning.recipes import ADAPTED, choose_network
from masam_auto.training.benchmark import (
    Setting,
    count_flops,
    load_of,
    matmul_rate,
    measure_prediction,
    measure_training,
    median_seconds,
    predict_here,
    training_step,
)

CPU = torch.device("cpu")


def make_setting(encoder: str = "vit_t", **fields) -> Setting:
    network, _ = choose_network(PLANNED_ENCODERS[encoder], "")
    base = {"network": network, "training": ADAPTED, "canvas": (16, 16), "window": 2}
    return Setting(**{**base, **fields})


@pytest.mark.parametrize("measure", [measure_prediction, measure_training])
def test_a_measurement_is_of_this_machine(measure):
    measured = measure(make_setting(batch=2), CPU, rounds=1)
    assert measured.slices == (4 if measure is measure_training else 2)
    assert measured.seconds > 0 and measured.flops > 0 and measured.rate > 1e8
    assert 0 < measured.share < 1
    assert measured.peak_bytes is None or 0 <= measured.peak_bytes < 2**30
    assert measured.predicted_bytes > 0


def test_flops_of_vit_b_are_those_of_its_layers():
    tokens, dim, inner = 784, 768, 384
    block = 12 * dim**2 + 2 * (2 * dim * inner + 3 * inner**2)  # multiplications a token, without the products
    counted = count_flops(make_setting("vit_b", canvas=(448, 448), window=1), batch=1, training=False)
    assert 2 * 12 * block * tokens < counted < 1.25 * 2 * 12 * block * tokens


def test_training_takes_two_to_three_times_the_arithmetic():
    for encoder, canvas in (("vit_t", (32, 32)), ("vit_b", (224, 224))):
        setting = make_setting(encoder, canvas=canvas)
        once = count_flops(setting, batch=1, training=False)
        assert 2 * once < count_flops(setting, batch=1, training=True) < 3.2 * once
        assert count_flops(setting, batch=2, training=True) > 1.9 * count_flops(setting, batch=1, training=True)


def test_a_step_trains_what_learns_and_nothing_else():
    setting = make_setting(network=dataclasses.replace(make_setting().network, trained="none"))
    network = build_network(setting.network, canvas=(16, 16), in_channels=1, num_outputs=3)
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    training_step(network, setting, CPU)()
    changed = {name for name, value in network.named_parameters() if not torch.equal(value, before[name])}
    assert changed and all(network.get_parameter(name).requires_grad for name in changed)


def test_a_volume_of_any_depth_is_predicted():
    setting = make_setting(window=4)
    network = build_network(setting.network, canvas=(16, 16), in_channels=1, num_outputs=3).eval()
    image = torch.zeros(1, 7, 16, 16).numpy()
    assert predict_here(network, image, setting, CPU, mirror=True).shape == (3, 7, 16, 16)


def test_the_load_is_that_of_the_setting():
    load = load_of(make_setting(training=dataclasses.replace(ADAPTED, precision="float32")), CPU)
    assert (load.precision_bytes, load.fused, load.canvas, load.num_outputs) == (4, False, (16, 16), 3)


def test_the_first_call_is_not_counted():
    calls = []
    assert median_seconds(lambda: calls.append(1), CPU, rounds=3) >= 0 and len(calls) == 4
    assert matmul_rate(CPU, torch.float32, side=64) > 0
