"""The network beside a plain MA-SAM of the same weights, in one process: a window, a training step, a whole volume.

`python -m tests.benchmarks.network_speed forward|training|volume [--encoder vit_b] [--canvas 448] [--rounds 3] ...`

Times are medians of interleaved calls (plain, ours, plain, ours, ...). On a CPU they are CPU-seconds, so that other
work on the machine disturbs less; on a GPU, wall clock. Peak memory is that of a process of its own for each variant:
on Linux the resident set's peak less what it was before the network was built, on a GPU what torch allocated.
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from masam_auto.compute.device import autocast
from masam_auto.network.build import build_network
from masam_auto.planning.planned_encoders import PLANNED_ENCODERS
from masam_auto.planning.recipes import ADAPTED, choose_network
from masam_auto.training import benchmark
from masam_auto.training.benchmark import Setting
from tests.network.plain_masam import plain_twin, predict_plainly

ROOT = Path(__file__).resolve().parents[2]
DEPTH = 100
OUTPUTS = 13  # twelve classes, as in the paper's BTCV
PLAIN = "plain float32"
VARIANTS = {  # precision, activation checkpointing, torch.compile
    PLAIN: ("float32", False, False),
    "float32": ("float32", False, False),
    "bf16": ("bf16", False, False),
    "bf16, checkpointing": ("bf16", True, False),
    "bf16, compiled": ("bf16", False, True),
}


def measure(data: Path | None = None) -> dict[str, str]:
    """All three at 448 px, and the window and the step at 512 px; `data` is not used. About an hour on one core."""
    rows: dict[str, str] = {}
    encoders = ("vit_b", "vit_l", "vit_h") if torch.cuda.is_available() else ("vit_b",)
    for encoder in encoders:
        for what, side in (("forward", 448), ("training", 448), ("volume", 448), ("forward", 512), ("training", 512)):
            rows |= dict(compare(what, make_setting(encoder, side, 5), rounds=3, windows=2, memory=True))
    return rows


def make_setting(encoder: str, side: int, window: int) -> Setting:
    """One window of the paper's network on a square canvas."""
    network, _ = choose_network(PLANNED_ENCODERS[encoder], "")
    return Setting(network=network, training=ADAPTED, canvas=(side, side), window=window, num_outputs=OUTPUTS)


def compare(what: str, setting: Setting, *, rounds: int, windows: int, memory: bool) -> Iterator[tuple[str, str]]:
    """(description, result) of every variant, the plain one first."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    names = [name for name in VARIANTS if fits(name, what, device)]
    calls = {name: prepare(name, what, setting, device, windows) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds + 1):  # the first is not counted
        for name, (call, scale) in calls.items():
            spent = scale * cpu_seconds(call, device)
            if turn or rounds == 0:
                times[name].append(spent)
    calls.clear()
    flops = benchmark.count_flops(setting, batch=1, training=what == "training")
    if what == "volume":
        flops *= DEPTH / setting.window
    for name in names:
        median = statistics.median(times[name])
        ratio = statistics.median(times[PLAIN]) / median
        half = VARIANTS[name][0] == "bf16"
        rate = benchmark.matmul_rate(device, torch.bfloat16 if half else torch.float32)
        peak = f"{peak_mib(name, what, setting):.0f} MiB, " if memory else ""
        side, encoder = setting.canvas[0], setting.network.encoder
        yield (
            f"{what}, {encoder}, {side} px, N = {setting.window}, {name}",
            f"{median:.2f} s ({min(times[name]):.2f} to {max(times[name]):.2f}), {ratio:.2f} x plain, {peak}"
            f"floor {flops / rate:.2f} s ({flops / 1e9:.0f} GFLOP at {rate / 1e9:.0f} GFLOP/s)",
        )


def fits(name: str, what: str, device: torch.device) -> bool:
    """Whether a variant is worth measuring there: compiling on GPUs, checkpointing in training."""
    _, checkpointing, compiled = VARIANTS[name]
    if name == "float32" and what == "volume":
        return False
    return (not compiled or device.type == "cuda") and (not checkpointing or what == "training")


def prepare(
    name: str, what: str, setting: Setting, device: torch.device, windows: int
) -> tuple[Callable[[], Any], float]:
    """A call of one variant, and what its time is to be multiplied by."""
    precision, checkpointing, compiled = VARIANTS[name]
    training = dataclasses.replace(setting.training, precision=precision, activation_checkpointing=checkpointing)
    setting = dataclasses.replace(setting, training=training)
    network: nn.Module = make_network(name, setting, device)
    if what == "training":
        network.train()
        return benchmark.training_step(torch.compile(network) if compiled else network, setting, device), 1
    network.eval()
    if compiled:
        network = torch.compile(network)  # type: ignore[assignment]
    generator = np.random.default_rng(0)
    depth = DEPTH if what == "volume" else setting.window
    image = generator.normal(size=(setting.in_channels, depth, *setting.canvas)).astype(np.float32)
    slices = torch.from_numpy(image).transpose(0, 1).to(device)

    @torch.inference_mode()
    def one_window() -> None:
        with autocast(device, precision):
            network(slices[None])

    def whole_volume() -> None:
        benchmark.predict_here(network, image, setting, device)

    if what == "forward":
        return one_window, 1
    if name == PLAIN:
        return lambda: predict_plainly(network, slices[:windows], setting.window), DEPTH / windows
    return whole_volume, 1


def make_network(name: str, setting: Setting, device: torch.device) -> nn.Module:
    """The network of a variant; the same seed gives all of them the same weights."""
    network = build_network(
        setting.network,
        canvas=setting.canvas,
        in_channels=setting.in_channels,
        num_outputs=setting.num_outputs,
        activation_checkpointing=setting.training.activation_checkpointing,
        frozen_dtype=torch.bfloat16 if setting.training.precision == "bf16" else torch.float32,
        device=device,
    )
    return plain_twin(network).to(device) if name == PLAIN else network


def cpu_seconds(call: Callable[[], Any], device: torch.device) -> float:
    """CPU-seconds of this process on a CPU, else wall clock."""
    if device.type != "cpu":
        return benchmark.seconds_of(call, device)
    started = time.process_time()
    call()
    return time.process_time() - started


def peak_mib(name: str, what: str, setting: Setting) -> float:
    """Peak memory of a variant in a process of its own."""
    asked = json.dumps([name, what, setting.network.encoder, setting.canvas[0], setting.window])
    code = f"from tests.benchmarks.network_speed import peak_here; peak_here(*{asked})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    return float(done.stdout.splitlines()[-1]) / 2**20


def peak_here(name: str, what: str, encoder: str, side: int, window: int) -> None:
    """Run a variant twice (a volume once) in this process and print its peak bytes."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    before = benchmark.memory_in_use(device)
    call, _ = prepare(name, what, make_setting(encoder, side, window), device, windows=1)
    benchmark.reset_peak(device)  # the plain one was built from another
    for _ in range(1 if what == "volume" else 2):
        call()
    peak = benchmark.peak_memory(device)
    assert peak is not None and before is not None, "peak memory is measured on Linux and on GPUs"
    print(peak - before)


def main() -> None:
    """Print one comparison as Markdown rows."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.network_speed", description=__doc__)
    parser.add_argument("what", choices=("forward", "training", "volume"))
    parser.add_argument("--encoder", default="vit_b", choices=[n for n, e in PLANNED_ENCODERS.items() if e.sam])
    parser.add_argument("--canvas", type=int, default=448, metavar="PX")
    parser.add_argument("--window", type=int, default=5, metavar="N")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="0: one call each, nothing to warm up")
    parser.add_argument(
        "--windows",
        type=int,
        default=2,
        metavar="N",
        help=f"windows that the plain side computes of a volume's {DEPTH}; its time is scaled up",
    )
    parser.add_argument("--memory", action="store_true", help="measure peak memory too, each in another process")
    parsed = parser.parse_args()
    setting = make_setting(parsed.encoder, parsed.canvas, parsed.window)
    for what, result in compare(
        parsed.what, setting, rounds=parsed.rounds, windows=parsed.windows, memory=parsed.memory
    ):
        print(f"| {what} | {result} |", flush=True)


if __name__ == "__main__":
    main()
