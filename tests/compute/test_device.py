"""Devices."""

import pytest
import torch

from masam_auto.compute.device import autocast, choose_device, default_workers, torch_settings
from masam_auto.compute.machine import available_cores
from masam_auto.core.errors import MasamError

CPU = torch.device("cpu")


def test_devices_by_name() -> None:
    assert choose_device("cpu") == CPU
    assert choose_device(None).type in ("cpu", "cuda", "mps")


@pytest.mark.parametrize("name", ["cuda:999", "toaster", "meta"])
def test_absent_devices_are_refused(name: str) -> None:
    with pytest.raises(MasamError, match="device"):
        choose_device(name)


def test_float32_is_kept_where_it_is_asked_for() -> None:
    layer = torch.nn.Linear(4, 4)
    with autocast(CPU, "float32"):
        assert layer(torch.ones(1, 4)).dtype == torch.float32


def test_workers_only_beside_a_gpu() -> None:
    assert default_workers(CPU, 64) == 0
    assert default_workers(torch.device("cuda"), 1) == 1
    assert default_workers(torch.device("cuda"), 64) == 12
    assert available_cores() >= 1


def test_the_callers_threads_and_generator_come_back() -> None:
    before, expected = torch.get_num_threads(), torch.random.get_rng_state()
    with torch_settings(1, CPU):
        torch.manual_seed(5)
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
    assert torch.equal(torch.random.get_rng_state(), expected)
