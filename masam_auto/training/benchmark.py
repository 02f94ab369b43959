"""Measure how fast this machine trains and predicts: times, memory, and the share of its peak arithmetic rate.

Weights and images are random; no data set and no SAM file is needed.
"""

import gc
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from masam_auto.compute.device import autocast, computes_in_bf16
from masam_auto.core.labels import Labels, parse_labels
from masam_auto.core.plan import Configuration, InferencePlan, NetworkPlan, NormalizationPlan, TrainingPlan
from masam_auto.network.build import build_network, encoder_of
from masam_auto.network.masam import MaSam
from masam_auto.network.volume import predict_volume
from masam_auto.planning.memory import Load, prediction_bytes, training_bytes
from masam_auto.training.loss import choose_loss
from masam_auto.training.optimizer import build_optimizers
from masam_auto.training.weight_average import WeightAverage

SMALLEST = NetworkPlan(encoder="vit_t", decoder="multiscale", weights="none", trained="all")
MATRIX = 2048  # side of the matrices whose product tells the machine's rate


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """The setting to measure: `batch` windows of `window` slices on a canvas (height, width); `num_outputs` is K."""

    network: NetworkPlan
    training: TrainingPlan
    canvas: tuple[int, int]
    window: int
    batch: int = 1
    in_channels: int = 1
    num_outputs: int = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One pass over `slices` slices. `seconds` is a median; `flops` counts matrix products and convolutions.

    `rate` is the FLOP/s of one large matrix product of the same type. Bytes exclude what the process or the device's
    libraries used before; None if the system does not report them.
    """

    slices: int
    seconds: float
    flops: float
    rate: float
    peak_bytes: float | None
    predicted_bytes: float

    @property
    def share(self) -> float:
        """Share of the machine's rate that was reached."""
        return self.flops / self.seconds / self.rate


def measure_prediction(setting: Setting, device: torch.device, *, rounds: int) -> Measured:
    """A volume of one window, as prediction does it; memory with a flip, whose logits are added up."""
    _load_libraries(setting, device)
    before = memory_in_use(device)
    reset_peak(device)
    network = _network(setting, device, lean=False).eval()
    image = np.random.default_rng(0).normal(size=(setting.in_channels, setting.window, *setting.canvas))

    def predict(mirror: bool) -> None:
        predict_here(network, image.astype(np.float32), setting, device, mirror=mirror)

    seconds = median_seconds(lambda: predict(mirror=False), device, rounds=rounds)
    predict(mirror=True)
    return Measured(
        slices=setting.window,
        seconds=seconds,
        flops=count_flops(setting, batch=1, training=False),
        rate=matmul_rate(device, computing_type(setting, device)),
        peak_bytes=_difference(peak_memory(device), before),
        predicted_bytes=prediction_bytes(load_of(setting, device), slices=setting.window),
    )


def predict_here(
    network: nn.Module, image: np.ndarray, setting: Setting, device: torch.device, *, mirror: bool = False
) -> torch.Tensor:
    """Logits of a (C, Z, Y, X) image as large as the canvas, its depth as few windows."""
    configuration = Configuration(
        name="axis0",
        axis_order=(0, 1, 2),
        spacing=(1.0, 1.0, 1.0),
        median_shape=(image.shape[1], *setting.canvas),
        normalization=(NormalizationPlan(scheme="none"),),
        separate_slices=False,
        window=setting.window - 1 + setting.window % 2,  # plans have odd windows
        canvas=setting.canvas,
        magnification=1.0,
        mirror_axes=(2,),
        batch_size=1,
    )
    inference = InferencePlan(mirror=mirror)
    return predict_volume(
        [network], image, configuration, inference, num_outputs=setting.num_outputs, device=device,
        precision=setting.training.precision,
    )  # fmt: skip


def measure_training(setting: Setting, device: torch.device, *, rounds: int) -> Measured:
    """A training step: forward, loss, backward and optimiser, without reading data."""
    _load_libraries(setting, device)
    before = memory_in_use(device)
    reset_peak(device)
    network = _network(setting, device, lean=True)
    step = training_step(network, setting, device)
    seconds = median_seconds(step, device, rounds=rounds)
    return Measured(
        slices=setting.batch * setting.window,
        seconds=seconds,
        flops=count_flops(setting, batch=setting.batch, training=True),
        rate=matmul_rate(device, computing_type(setting, device)),
        peak_bytes=_difference(peak_memory(device), before),
        predicted_bytes=training_bytes(
            load_of(setting, device), batch=setting.batch, checkpointing=setting.training.activation_checkpointing
        ),
    )


def training_step(network: nn.Module, setting: Setting, device: torch.device) -> Callable[[], None]:
    """A function that trains `network` by one step on random windows."""
    labels = _labels(setting.num_outputs)
    optimizers = build_optimizers(network, setting.training)
    learning = {name: value for name, value in network.named_parameters() if value.requires_grad}
    average = WeightAverage(learning, decay=setting.training.weight_average)
    loss = choose_loss(setting.training.loss)
    shape = (setting.batch, setting.window)
    image = torch.randn(*shape, setting.in_channels, *setting.canvas, device=device)
    target = torch.randint(setting.num_outputs, (*shape, *setting.canvas), device=device)

    def step() -> None:
        with autocast(device, setting.training.precision):
            logits = network(image)
        loss(logits, target, labels, setting.training.loss_weights).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        average.update(learning, step=1)

    return step


def count_flops(setting: Setting, *, batch: int, training: bool) -> float:
    """Floating-point operations of matrix products and convolutions, two for a multiplication and its addition.

    Counted by torch on a network without weights; the backward pass only goes where something learns.
    """
    network = build_network(
        setting.network,
        canvas=setting.canvas,
        in_channels=setting.in_channels,
        num_outputs=setting.num_outputs,
        device="meta",
    ).train(training)
    if not training:
        network.requires_grad_(False)
    image = torch.empty(batch, setting.window, setting.in_channels, *setting.canvas, device="meta")
    with torch.set_grad_enabled(training), FlopCounterMode(display=False) as counter:
        logits = network(image)
        if training:
            logits.sum().backward()
    return float(counter.get_total_flops())


def matmul_rate(device: torch.device, dtype: torch.dtype, *, side: int = MATRIX) -> float:
    """FLOP/s of a product of two large matrices: what the network could reach at best."""
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / min(seconds_of(lambda: left @ right, device) for _ in range(5))


def computing_type(setting: Setting, device: torch.device) -> torch.dtype:
    """The type that matrices are multiplied in there."""
    return torch.bfloat16 if setting.training.precision == "bf16" and computes_in_bf16(device) else torch.float32


def load_of(setting: Setting, device: torch.device) -> Load:
    """The input of the memory model."""
    return Load(
        encoder=encoder_of(setting.network),
        network=setting.network,
        canvas=setting.canvas,
        window=setting.window,
        in_channels=setting.in_channels,
        num_outputs=setting.num_outputs,
        precision_bytes=computing_type(setting, device).itemsize,
        fused=device.type != "cpu",
    )


def median_seconds(function: Callable[[], object], device: torch.device, *, rounds: int) -> float:
    """Median over `rounds` calls, after one that is not counted."""
    function()
    return statistics.median(seconds_of(function, device) for _ in range(rounds))


def seconds_of(function: Callable[[], object], device: torch.device) -> float:
    """Wall-clock seconds of one call."""
    _wait(device)
    started = time.perf_counter()
    function()
    _wait(device)
    return time.perf_counter() - started


def memory_in_use(device: torch.device) -> float | None:
    """Bytes that tensors hold on a GPU, else those of this process; None where the system does not tell."""
    gc.collect()
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else _resident("VmRSS")


def reset_peak(device: torch.device) -> None:
    """Reset the measured peak."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> float | None:
    """Most bytes since `reset_peak`, counted as in `memory_in_use`."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _resident("VmHWM")


def _load_libraries(setting: Setting, device: torch.device) -> None:
    """Run one step at the smallest size, so that loading torch's libraries does not count as memory used."""
    side = encoder_of(SMALLEST).token_stride
    small = replace(setting, canvas=(side, side), window=2, batch=1, network=SMALLEST)
    training_step(_network(small, device, lean=True), small, device)()


def _network(setting: Setting, device: torch.device, *, lean: bool) -> MaSam:
    """A network with random weights; `lean`: frozen matrices in bf16 where it computes in bf16, as in training."""
    return build_network(
        setting.network,
        canvas=setting.canvas,
        in_channels=setting.in_channels,
        num_outputs=setting.num_outputs,
        activation_checkpointing=setting.training.activation_checkpointing,
        frozen_dtype=computing_type(setting, device) if lean else torch.float32,
        device=device,
    )


def _labels(num_outputs: int) -> Labels:
    return parse_labels({"background": 0} | {f"class{value}": value for value in range(1, num_outputs)}, None)


def _resident(name: str) -> float | None:
    if sys.platform != "linux":
        return None
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return 1024.0 * int(line.split()[1])
    return None


def _difference(peak: float | None, before: float | None) -> float | None:
    # A process that gives memory back in between can end below where it began.
    return None if peak is None or before is None else max(0.0, peak - before)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
