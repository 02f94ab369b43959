"""One process of a tiny training, as torchrun starts it: training_rank.py SETTINGS.json.

The settings: `folder` (with preprocessed data), `plan` (changes of the training plan), `configuration` (changes),
`prompt`, `norm`, `resume`, `workers`, `pretrained` (a folder), `record` (whether to give TensorBoard, by a stand-in,
what each rank records), and `disturb`: {"step", "rank", "what"}, where `what` is "kill", "error", "ended" (by a signal
that is not waited for), "nan", "stop" (the file that ends a training) or a signal's name; rank -1 means all.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from masam_auto.cli.common import run_rank
from masam_auto.compute.distributed import World, joined, read_world
from masam_auto.core.errors import ModelError, Terminated
from masam_auto.core.log import setup_logging
from masam_auto.core.paths import Paths
from masam_auto.models.checkpoint import has_checkpoint
from masam_auto.training import batches, session
from masam_auto.training import train as stage
from masam_auto.training.loss import LOSSES
from masam_auto.training.training_job import TrainingOptions
from tests import tiny_training as tiny


class Aborts:
    """What aborts the process when the interpreter is taken down, as threads of gloo do now and then."""

    def __del__(self, abort: Callable[[], object] = os.abort) -> None:  # `os` may be gone
        abort()


TAKEN_DOWN: list[Aborts] = []


def disturb(folder: Path, world: World, *, step: int, rank: int, what: str) -> None:
    """Before update `step` of this session, once."""
    if rank not in (world.rank, -1) or world.restarts:
        return
    set_rate = stage.set_rate
    made: list[None] = []

    def disturbed(*arguments: Any) -> None:
        made.append(None)
        if len(made) == step + 1:
            TAKEN_DOWN.append(Aborts())
            if what == "error":
                raise ModelError("something to mend")
            if what == "ended":
                raise Terminated(signal.SIGUSR1)
            if what == "nan":
                LOSSES["ce_dice"] = lambda logits, *rest: logits.sum() * float("nan")
                return
            if what == "stop":
                (next(folder.glob("results/*/*/fold_0")) / "stop").touch()
                return
            os.kill(os.getpid(), signal.SIGKILL if what == "kill" else getattr(signal, what))
        set_rate(*arguments)

    vars(stage)["set_rate"] = disturbed


def record_windows(folder: Path, world: World) -> None:
    """Write what every window of this rank is made from: its epoch and its number."""
    make_window = batches.make_window

    def recorded(store: Any, sampling: Any, epoch_number: int, number: int) -> Any:
        made = make_window(store, sampling, epoch_number, number)
        if sampling.augmentation is not None:
            with (folder / f"windows_{world.size}_{world.rank}.txt").open("a") as file:
                file.write(f"{epoch_number} {number} {float(made[0].double().sum())!r}\n")
        return made

    vars(batches)["make_window"] = recorded


def record_gradients(folder: Path, world: World) -> None:
    """Write the gradients' norm of every update."""
    get_total_norm = torch.nn.utils.get_total_norm

    def recorded(*arguments: Any, **options: Any) -> torch.Tensor:
        norm = get_total_norm(*arguments, **options)
        with (folder / f"norms_{world.size}_{world.rank}.txt").open("a") as file:
            file.write(f"{norm.item()!r}\n")
        return norm

    torch.nn.utils.get_total_norm = recorded


def stand_in_for_tensorboard(folder: Path, world: World) -> None:
    """Have what a rank records written to a file of its own."""
    file = folder / f"recorded_{world.rank}.txt"

    def add_scalar(name: str, value: float, epoch_number: int) -> None:
        with file.open("a") as lines:
            lines.write(f"{epoch_number} {name}\n")

    writer = SimpleNamespace(add_scalar=add_scalar, flush=lambda: None, close=lambda: None)
    package = SimpleNamespace(SummaryWriter=lambda *arguments, **options: writer)
    sys.modules["torch.utils.tensorboard"] = package  # type: ignore[assignment]


def main(arguments: Any = None) -> int:
    """Train, and say nothing."""
    settings = json.loads(Path(sys.argv[1]).read_text())
    folder = Path(settings["folder"])
    configuration = tiny.make_configuration(**settings.get("configuration", {}))
    plan = tiny.make_plan(configuration, **settings.get("plan", {}))
    encoder = {"batch": "tiny", "instance": "tiny_instance"}[settings.get("norm", "instance")]
    plan = replace(plan, network=replace(plan.network, encoder=encoder, prompt=settings.get("prompt", "none")))
    paths = Paths(**{name: folder / name for name in ("raw", "preprocessed", "results", "weights")})
    vars(session)["draw_progress"] = lambda *arguments, **more: None
    setup_logging()
    device = torch.device("cpu")
    with joined(read_world(os.environ), device) as world:
        if "disturb" in settings:
            disturb(folder, world, **settings["disturb"])
        record_windows(folder, world)
        record_gradients(folder, world)
        stand_in_for_tensorboard(folder, world)
        fold = paths.model_folder(tiny.DATASET, plan.name, configuration.name) / "fold_0"
        options = TrainingOptions(
            device=device,
            threads=1,
            workers=settings.get("workers", 0),
            log_to=("tensorboard",) if settings.get("record") else (),
            pretrained_weights=Path(settings["pretrained"]) if "pretrained" in settings else None,
            resume=settings.get("resume", False) or (world.has_begun() and has_checkpoint(fold)),
        )
        stage.train_fold(paths, tiny.DATASET, plan, configuration, 0, options, world=world)
    return 0


if __name__ == "__main__":
    run_rank(main)
