"""The planner's memory model beside measured peaks, each in a process of its own.

Measured is the resident set's peak of two training steps, or of two predictions, less what the process held before the
network was built, with one thread; the C library gives freed blocks back at once, so that live tensors are what counts.
`python -m tests.benchmarks.memory_model` runs on CPUs (Linux) in about five minutes; on a GPU it takes torch's count.
"""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from masam_auto.compute.device import choose_device
from masam_auto.planning.planned_encoders import PLANNED_ENCODERS
from masam_auto.planning.recipes import ADAPTED, choose_network
from masam_auto.training.benchmark import Measured, Setting, measure_prediction, measure_training

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_ARENA_MAX": "1"}

# encoder, canvas, N, batch, outputs, precision, what else differs
TRAINING: tuple[tuple[Any, ...], ...] = (
    ("vit_t", (48, 56), 15, 2, 3, "float32", {}),
    ("vit_t", (48, 56), 15, 2, 3, "bf16", {}),
    ("vit_t", (128, 128), 9, 4, 3, "float32", {}),
    ("vit_t", (256, 256), 5, 2, 14, "float32", {}),
    ("vit_t", (256, 256), 5, 2, 3, "bf16", {}),
    ("vit_t", (256, 256), 5, 2, 3, "bf16", {"checkpointing": True}),
    ("vit_b", (224, 224), 3, 1, 3, "float32", {}),
    ("vit_b", (224, 224), 3, 1, 3, "bf16", {}),
    ("vit_b", (224, 224), 3, 2, 13, "bf16", {}),
    ("vit_b", (224, 224), 3, 1, 3, "float32", {"checkpointing": True}),
    ("vit_b", (224, 224), 5, 2, 3, "bf16", {"checkpointing": True}),
    ("vit_b", (256, 320), 3, 1, 3, "bf16", {}),
    ("vit_b", (448, 448), 1, 1, 3, "float32", {}),
    ("vit_b", (448, 448), 3, 1, 13, "bf16", {}),
    ("vit_b", (224, 224), 3, 1, 3, "bf16", {"decoder": "sam"}),
    ("vit_b", (224, 224), 3, 1, 3, "bf16", {"decoder": "multiscale"}),
    ("vit_b", (224, 224), 3, 1, 3, "bf16", {"adapters": "none"}),
    ("vit_b", (224, 224), 3, 1, 3, "bf16", {"trained": "all"}),
    ("vit_l", (224, 224), 3, 1, 3, "bf16", {}),
    ("vit_l", (224, 224), 3, 1, 3, "bf16", {"checkpointing": True}),
    ("vit_h", (224, 224), 3, 1, 3, "bf16", {}),
    ("vit_h", (224, 224), 3, 1, 3, "bf16", {"checkpointing": True}),
)
PREDICTION: tuple[tuple[Any, ...], ...] = (
    ("vit_t", (48, 56), 64, 1, 3, "float32", {}),
    ("vit_t", (256, 256), 16, 1, 14, "float32", {}),
    ("vit_t", (256, 256), 32, 1, 14, "bf16", {}),
    ("vit_b", (224, 224), 5, 1, 3, "float32", {}),
    ("vit_b", (224, 224), 32, 1, 13, "bf16", {}),
    ("vit_b", (448, 448), 3, 1, 13, "float32", {}),
    ("vit_b", (448, 448), 12, 1, 13, "bf16", {}),
    ("vit_l", (224, 224), 5, 1, 3, "bf16", {}),
    ("vit_h", (224, 224), 5, 1, 3, "bf16", {}),
)


def measure(data: Path | None = None) -> dict[str, str]:
    """Model, measurement and their ratio for every row; `data` is not used."""
    return {
        describe(kind, row): f"{found['predicted']:.0f} / {found['measured']:.0f} MiB, {found['ratio']:.2f}"
        for kind, rows in (("training", TRAINING), ("prediction", PREDICTION))
        for row in rows
        for found in (measure_apart(kind, row),)
    }


def describe(kind: str, row: tuple[Any, ...]) -> str:
    """A row in words."""
    encoder, (height, width), window, batch, outputs, precision, other = row
    more = "".join(f", {name} {value}" for name, value in other.items())
    return f"{kind}, {encoder}, {height} x {width}, N = {window}, batch {batch}, {outputs} outputs, {precision}{more}"


def measure_apart(kind: str, row: tuple[Any, ...]) -> dict[str, float]:
    """{"predicted", "measured"} in MiB and their "ratio", from a process of its own."""
    code = f"from tests.benchmarks.memory_model import measure_here; measure_here({kind!r}, {row!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | ENVIRONMENT, check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def measure_here(kind: str, row: tuple[Any, ...]) -> None:
    """Measure in this process and print the result as JSON."""
    device = choose_device()
    measured: Measured = (measure_training if kind == "training" else measure_prediction)(
        make_setting(row), device, rounds=1
    )
    assert measured.peak_bytes is not None, "peaks are measured on Linux and on GPUs"
    print(
        json.dumps(
            {
                "predicted": measured.predicted_bytes / 2**20,
                "measured": measured.peak_bytes / 2**20,
                "ratio": measured.predicted_bytes / measured.peak_bytes,
            }
        )
    )


def make_setting(row: tuple[Any, ...]) -> Setting:
    """The setting of a row."""
    encoder, canvas, window, batch, outputs, precision, other = row
    variant = {name: value for name, value in other.items() if name != "checkpointing"}
    network, _ = choose_network(PLANNED_ENCODERS[encoder], "")
    return Setting(
        network=dataclasses.replace(network, **variant),
        training=dataclasses.replace(
            ADAPTED, precision=precision, activation_checkpointing=other.get("checkpointing", False)
        ),
        canvas=canvas,
        window=window,
        batch=batch,
        num_outputs=outputs,
    )


if __name__ == "__main__":
    for kind, rows in (("training", TRAINING), ("prediction", PREDICTION)):
        for row in rows:
            print(describe(kind, row), measure_apart(kind, row), flush=True)
