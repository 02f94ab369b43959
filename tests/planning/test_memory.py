"""The memory model against the network itself: parameters exactly, kept activations of SAM's encoder within 5 %."""

import dataclasses

import pytest
import torch

from masam_auto.core.encoders import ENCODERS
from masam_auto.network.build import build_network
from masam_auto.planning.memory import (
    LIBRARIES,
    Load,
    Parameters,
    available_bytes,
    fitting_batch,
    fitting_slices,
    parameters_of,
    prediction_bytes,
    training_bytes,
)
from masam_auto.planning.planned_encoders import PLANNED_ENCODERS
from masam_auto.planning.recipes import choose_network


def make_load(name: str, canvas: tuple[int, int], window: int, **options) -> Load:
    shape = PLANNED_ENCODERS[name]
    settings = {"in_channels": 1, "num_outputs": 3, "precision_bytes": 4, "fused": False} | options
    return Load(encoder=shape.spec, network=choose_network(shape, "")[0], canvas=canvas, window=window, **settings)


VARIANTS = (
    {},
    {"decoder": "sam", "increment": "lora", "adapters": "before"},
    {"decoder": "multiscale", "prompt": "box", "increment": "none"},
    {"decoder": "progressive", "prompt": "box", "adapters": "none"},
    {"trained": "all"},
    {"trained": "none"},  # neither increments nor adapters are built
    {"trained": "adapted", "neck_trained": True},
)


@pytest.mark.parametrize("name", PLANNED_ENCODERS)
@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_parameters_are_those_of_the_network(name, channels, variant):
    load = make_load(name, (224, 448), 3, in_channels=channels)
    load = dataclasses.replace(load, network=dataclasses.replace(load.network, **variant))
    network = build_network(load.network, canvas=load.canvas, in_channels=channels, num_outputs=3, device="meta")
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    total = sum(p.numel() for p in network.parameters())
    assert parameters_of(load) == Parameters(trained=trained, frozen=total - trained)


def kept_bytes(load: Load, batch: int = 1) -> int:
    """Bytes that autograd keeps of so many windows, without the parameters' own."""
    network = build_network(load.network, canvas=load.canvas, in_channels=1, num_outputs=load.num_outputs)
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network(torch.zeros(batch, load.window, 1, *load.canvas))
    return sum(kept.values())


def a_windows_bytes(load: Load) -> float:
    """What one more window takes where activations, not the optimiser, decide the peak."""
    fewer, more = (training_bytes(load, batch=batch, checkpointing=False) for batch in (98, 99))
    return more - fewer


def test_kept_activations_of_the_small_encoder():
    load = make_load("vit_t", (64, 48), 3)
    assert a_windows_bytes(load) == pytest.approx(kept_bytes(load), rel=0.25)


@pytest.mark.parametrize("name", ["dinov2_vits14", "dinov3_vits16"])
@pytest.mark.parametrize("variant", [{}, {"adapters": "none"}, {"trained": "all"}, {"trained": "none"}], ids=str)
def test_kept_activations_of_dino(name, variant, monkeypatch):
    planned = PLANNED_ENCODERS[name]
    spec = dataclasses.replace(planned.spec, depth=4, taps=tuple(range(len(planned.spec.taps))))
    monkeypatch.setitem(ENCODERS, name, spec)
    monkeypatch.setitem(PLANNED_ENCODERS, name, dataclasses.replace(planned, spec=spec))
    load = make_load(name, (112, 112), 3)
    load = dataclasses.replace(load, network=dataclasses.replace(load.network, **variant))
    tolerance = 0.25 if variant == {"trained": "none"} else 0.12  # then only the decoder's are left
    assert a_windows_bytes(load) == pytest.approx(kept_bytes(load, batch=2) - kept_bytes(load), rel=tolerance)


@pytest.mark.slow
def test_kept_activations_of_sam():
    load = make_load("vit_b", (224, 224), 1)
    assert a_windows_bytes(load) == pytest.approx(kept_bytes(load, batch=2) - kept_bytes(load), rel=0.08)


def test_memory_grows_with_everything_that_costs():
    load = make_load("vit_b", (224, 224), 5)
    base = training_bytes(load, batch=1, checkpointing=False)
    for change in (
        {"canvas": (448, 224)},
        {"window": 7},
        {"num_outputs": 30},
        {"encoder": ENCODERS["vit_l"]},
    ):
        assert training_bytes(dataclasses.replace(load, **change), batch=1, checkpointing=False) > base
    assert training_bytes(load, batch=2, checkpointing=False) > base
    assert training_bytes(load, batch=1, checkpointing=True) < base
    assert training_bytes(dataclasses.replace(load, precision_bytes=2), batch=1, checkpointing=False) < base
    assert prediction_bytes(load, slices=5) < base


def test_fitting_counts_are_the_largest_that_fit():
    load = make_load("vit_b", (224, 224), 5, precision_bytes=2, fused=True)
    for gpu in (4, 8, 24):
        for checkpointing in (False, True):
            fits = fitting_batch(load, gpu_memory_gb=gpu, checkpointing=checkpointing)
            assert training_bytes(load, batch=fits, checkpointing=checkpointing) <= available_bytes(gpu)
            assert training_bytes(load, batch=fits + 1, checkpointing=checkpointing) > available_bytes(gpu)
        slices = fitting_slices(load, gpu_memory_gb=gpu)
        assert prediction_bytes(load, slices=slices) <= available_bytes(gpu) < prediction_bytes(load, slices=slices + 1)


def test_nothing_fits_a_device_without_memory():
    load = make_load("vit_b", (224, 224), 5)
    assert fitting_batch(load, gpu_memory_gb=0, checkpointing=True) == 0
    assert fitting_slices(load, gpu_memory_gb=0.5) == 0
    assert training_bytes(load, batch=0, checkpointing=True) > LIBRARIES
