"""What preparing a window costs, and whether many ranks that share their cores are kept fed by it.

The data path is the real one: stored arrays, draws, augmentation, loader, worker processes and their pipes. The network
is a sleep. So that 8 and 64 ranks can be looked at on few cores, the sleep is as much longer as a rank has fewer cores
here
than it is taken to have: what the ranks need of the cores together is then what they would need there. All ranks wait
for the slowest after each step, as they do when they average gradients.

`python -m tests.benchmarks.data_path --ranks 8 64 --cores 4 --network 0.02`
"""

import argparse
import contextlib
import itertools
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from masam_auto.compute.distributed import World, share_of
from masam_auto.compute.machine import available_cores
from masam_auto.core.labels import parse_labels
from masam_auto.core.plan import AugmentationPlan, Configuration, NormalizationPlan
from masam_auto.core.windows import SliceWindow
from masam_auto.formats.storage import find_locations, write_array, write_locations
from masam_auto.training import batches
from masam_auto.training.augmentation import (
    AUGMENTATIONS,
    IDENTITY,
    Augmentation,
    apply_augmentation,
    draw_augmentation,
)
from masam_auto.training.batches import BatchLoader, make_batch, open_batches
from masam_auto.training.sampling import CaseStore, Sampling, find_case_files, find_holders, map_of

LABELS = parse_labels({"background": 0, "organ": 1, "lesion": 2}, None)
STRENGTHS = {"gamma": 1.3, "contrast": 0.8, "brightness": 0.2, "sharpness": 0.7, "posterise": 16.0, "noise": 0.1}
CASES, DEPTH = 4, 24
SIDES = (256, 448, 512)
WINDOW = 5
WARM_UP, STEPS = 3, 8


def measure(data: Path | None = None) -> dict[str, str]:
    """CPU-milliseconds a window of five slices costs, by canvas, and of them each change; `data` is not used."""
    torch.set_num_threads(1)
    found = {}
    for side in SIDES:
        with tempfile.TemporaryDirectory() as name:
            sampling = make_sampling(Path(name), side)
            found |= {
                f"{what}, {WINDOW} x {side} x {side}": f"{1000 * s:.1f} ms" for what, s in costs(sampling).items()
            }
    return found


def costs(sampling: Sampling, rounds: int = 21) -> dict[str, float]:
    """CPU-seconds a window takes, by what is done: medians of single calls."""
    full, empty = (CaseStore(cases=sampling.cases, memory=memory) for memory in (1e12, 0.0))
    plain = replace(sampling, augmentation=None)
    configuration = sampling.configuration
    image, labels = full.read(0, SliceWindow(start=8, length=configuration.window))
    pixels, classes = torch.from_numpy(image), torch.from_numpy(labels.astype(np.int16))
    view = map_of(sampling.cases[0], configuration)
    numbers = iter(range(1_000_000))
    work: dict[str, Callable[[], Any]] = {
        "whole window, arrays in memory": lambda: make_batch(full, sampling, 0, next(numbers), 1),
        "whole window, from files": lambda: make_batch(empty, sampling, 0, next(numbers), 1),
        "without augmentation, arrays in memory": lambda: make_batch(full, plain, 0, next(numbers), 1),
        "laying on the canvas": lambda: apply_augmentation(pixels, classes, view, IDENTITY),
        "rotating, shearing, scaling": lambda: apply_augmentation(
            pixels, classes, view, Augmentation(rotation=10.0, shear=5.0, scale=1.1)
        ),
    }
    generator = np.random.default_rng(0)
    for name, change in AUGMENTATIONS.items():
        work[name] = lambda change=change, name=name: change(pixels, STRENGTHS[name], generator)  # type: ignore[misc]
    work["drawing"] = lambda: draw_augmentation(AugmentationPlan(), (2,), generator)
    for number in range(len(sampling.cases)):  # so that the arrays are in memory
        full.read(number, SliceWindow(start=0, length=1))
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, do in work.items():
            started = time.process_time()
            do()
            times[name].append(time.process_time() - started)
    # a whole window's changes are drawn: its mean counts, as many windows cost as many times that
    return {name: (statistics.fmean if "whole" in name else statistics.median)(t) for name, t in times.items()}


def make_sampling(folder: Path, side: int, *, batch_size: int = 1) -> Sampling:
    """Noise with two classes, preprocessed at the canvas's own size."""
    configuration = Configuration(
        name="axis0",
        axis_order=(0, 1, 2),
        spacing=(3.0, 1.0, 1.0),
        median_shape=(DEPTH, side, side),
        normalization=(NormalizationPlan(scheme="zscore"),),
        separate_slices=True,
        window=WINDOW,
        canvas=(side, side),
        magnification=1.0,
        mirror_axes=(2,),
        batch_size=batch_size,
    )
    generator = np.random.default_rng(0)
    names = [f"case{number}" for number in range(CASES)]
    for name in names:
        volume = np.zeros((DEPTH, side, side), np.int8)
        volume[4:20, side // 4 : side // 2, side // 4 : side // 2] = 1
        volume[8:12, side // 2 : side // 2 + 20, side // 2 : side // 2 + 20] = 2
        image = (generator.normal(0, 0.3, (1, *volume.shape)) + volume).astype(np.float32)
        write_array(folder / f"{name}.b2nd", image)
        write_array(folder / f"{name}_seg.b2nd", volume)
        write_locations(folder / f"{name}_locations.npz", find_locations(volume, LABELS))
    cases = find_case_files(folder, names)
    return Sampling(
        cases=cases,
        holders=find_holders(cases),
        configuration=configuration,
        foreground_fraction=0.5,
        augmentation=AugmentationPlan(),
        seed=0,
    )


def simulate(
    sampling: Sampling, *, ranks: int, cores: float, network: float, workers: int, steps: int
) -> dict[str, float]:
    """Train without a network: every rank prepares its share of each step's windows, one a rank, and sleeps.

    Args:
        sampling: what to prepare.
        ranks: how many there are.
        cores: that a rank is taken to have for its workers.
        network: seconds that the network takes for one window.
        workers: processes that prepare a rank's windows.
        steps: to measure, after `WARM_UP`.

    Returns:
        "efficiency": a step in which the same ranks only meet and sleep / a step with data; "wait": the mean share that
        a rank waits for its batch; "sleep" in seconds; "load": what the ranks and their workers took of the cores.
    """
    sleep = network * cores * ranks / available_cores()
    sampling = replace(sampling, configuration=replace(sampling.configuration, batch_size=ranks))
    idle = _run(sampling, ranks, sleep, 0, steps)
    found = _run(sampling, ranks, sleep, workers, steps)
    numbers = sorted(number for result in found for number in result["windows"])
    assert numbers == list(range((WARM_UP + steps) * ranks)), "every window of every step belongs to one rank"
    step, bare = (max(result["seconds"] for result in results) / steps for results in (found, idle))
    return {
        "efficiency": bare / step,
        "wait": statistics.fmean(result["waited"] for result in found) / (steps * step),
        "sleep": sleep,
        "load": sum(result["cpu"] for result in found) / (steps * step * available_cores()),
    }


def _run(sampling: Sampling, ranks: int, sleep: float, workers: int, steps: int) -> list[dict[str, Any]]:
    """What each rank measured; without workers they have no data."""
    context = multiprocessing.get_context("fork")  # 256 processes that each import torch are not what is measured
    meeting, results = Meeting(ranks), context.SimpleQueue()
    processes = [
        context.Process(target=_rank, args=(sampling, rank, ranks, sleep, workers, steps, meeting, results))
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    for _ in range(WARM_UP + steps + 1):
        meeting.let_in()
    found = [results.get() for _ in processes]
    for process in processes:
        process.join()
    return found


class Meeting:
    """Where ranks wait for one another, each by one byte of a pipe: 64 that hand on a lock wait for its handing on."""

    def __init__(self, ranks: int) -> None:
        self.ranks, self.come, self.go = ranks, os.pipe(), os.pipe()

    def let_in(self) -> None:
        """Called by the process that started the ranks: wait for all, and let them go."""
        there = 0
        while there < self.ranks:
            there += len(os.read(self.come[0], self.ranks))
        os.write(self.go[1], bytes(self.ranks))

    def wait(self) -> None:
        """Called by each rank."""
        os.write(self.come[1], b".")
        os.read(self.go[0], 1)


def _rank(
    sampling: Sampling, rank: int, ranks: int, sleep: float, workers: int, steps: int, meeting: Meeting, results: Any
) -> None:
    share = share_of(World(rank=rank, size=ranks), sampling.configuration)
    loader = BatchLoader(
        CaseStore(cases=sampling.cases, memory=0), sampling, share=share, per_epoch=1_000_000, first=0, workers=workers
    )
    vars(batches)["_spawning"] = contextlib.nullcontext  # the worker is forked, too
    waited, windows, started, before = 0.0, [], 0.0, 0.0
    with open_batches(loader, workers) if workers else contextlib.nullcontext(itertools.repeat(None)) as source:
        me = psutil.Process()
        own = [me, *me.children()]
        for worker in own[1:]:
            worker.nice(10)  # beside its workers a rank has a core for itself, which it has not here
        for step in range(WARM_UP + steps):
            meeting.wait()
            if step == WARM_UP:
                waited, started, before = 0.0, time.perf_counter(), _cpu(own)
            asked = time.perf_counter()
            next(source)
            waited += time.perf_counter() - asked
            windows += [share.first_window(step) + place for place in range(share.windows)]
            time.sleep(sleep)
        meeting.wait()
        seconds, cpu = time.perf_counter() - started, _cpu(own) - before
    results.put({"seconds": seconds, "waited": waited, "windows": windows, "cpu": cpu})


def _cpu(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def main() -> int:
    """Simulate, and print a row for each number of ranks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--cores", type=float, default=4.0, help="of a rank, for its workers")
    parser.add_argument("--network", type=float, default=0.02, metavar="SECONDS", help="of a window")
    parser.add_argument("--workers", type=int, default=3, help="of a rank")
    parser.add_argument("--canvas", type=int, default=448, metavar="PX")
    parser.add_argument("--steps", type=int, default=STEPS)
    parsed = parser.parse_args()
    torch.set_num_threads(1)
    print(
        "| ranks | network, stretched | efficiency | waiting for data | load of the cores by it "
        "|\n|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as name:
        sampling = make_sampling(Path(name), parsed.canvas)
        for ranks in parsed.ranks:
            found = simulate(
                sampling,
                ranks=ranks,
                cores=parsed.cores,
                network=parsed.network,
                workers=parsed.workers,
                steps=max(parsed.steps, 100 // ranks),
            )
            print(
                f"| {ranks} | {found['sleep']:.2f} s | {found['efficiency']:.1%} | {found['wait']:.1%} | "
                f"{found['load']:.1%} |",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
