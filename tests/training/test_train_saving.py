"""Trainings that end while a checkpoint is being written: what is on the disk can always be continued, exactly."""

import errno
import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from masam_auto.core.errors import Interrupted, OutputError
from masam_auto.core.plan import Plan
from masam_auto.models import checkpoint as checkpoint_module
from masam_auto.models.checkpoint import LATEST, Checkpoint, load_checkpoint
from masam_auto.training import checkpoint_writer as writer_module
from masam_auto.training import session
from masam_auto.training.train import train_fold
from masam_auto.training.training_job import TrainingOptions
from tests import tiny_training as tiny

# Trains in a process of its own, which writes a checkpoint after every step, and which SIGKILL ends before step `last`.
KILLED_WITHIN_AN_EPOCH = """
import os, signal, sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[1])
import tiny_training as tiny
from masam_auto.training import checkpoint_writer, session, train
from masam_auto.training.training_job import TrainingOptions
session.draw_progress = train.draw_augmented_windows = lambda *arguments, **more: None
checkpoint_writer.SAVE_SECONDS, checkpoint_writer.SAVE_SHARE = 0.0, 1e9
save = checkpoint_writer.CheckpointWriter.save
def written(writer, *arguments, **options):
    save(writer, *arguments, **options)
    writer.finish()
checkpoint_writer.CheckpointWriter.save = written
set_rate, made = train.set_rate, []
def killed(*arguments):
    made.append(arguments)
    if len(made) == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    set_rate(*arguments)
train.set_rate = killed
plan = tiny.make_plan(num_epochs=2, steps_per_epoch=6)
configuration = plan.configuration(None)
paths = tiny.write_preprocessed(Path(sys.argv[2]), configuration)
options = TrainingOptions(device=torch.device("cpu"), workers=0, threads=1)
train.train_fold(paths, tiny.DATASET, plan, configuration, 0, options)
"""
# Trains in a process of its own, which SIGKILL ends when file number `last` of its checkpoints is to be written.
KILLED = """
import os, signal, sys
from pathlib import Path
import torch
sys.path.insert(0, sys.argv[1])
import tiny_training as tiny
from masam_auto.models import checkpoint
from masam_auto.training import session, train
from masam_auto.training.training_job import TrainingOptions
session.draw_progress = train.draw_augmented_windows = lambda *arguments, **more: None
save_file, files = checkpoint.save_file, []
def killed(*arguments, **options):
    files.append(arguments)
    if len(files) == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    save_file(*arguments, **options)
checkpoint.save_file = killed
plan = tiny.make_plan(num_epochs=3, steps_per_epoch=2)
configuration = plan.configuration(None)
paths = tiny.write_preprocessed(Path(sys.argv[2]), configuration)
options = TrainingOptions(device=torch.device("cpu"), workers=0, threads=1)
train.train_fold(paths, tiny.DATASET, plan, configuration, 0, options)
"""


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> Plan:
    tiny.without_pictures(monkeypatch)
    return tiny.make_plan(num_epochs=3, steps_per_epoch=2)


def train(plan: Plan, folder: Path, **options: Any) -> Path:
    configuration = plan.configuration(None)
    paths = tiny.write_preprocessed(folder, configuration)
    given = TrainingOptions(device=torch.device("cpu"), workers=0, threads=1, **options)
    return train_fold(paths, tiny.DATASET, plan, configuration, 0, given)


def outcome(folder: Path) -> tuple[dict[str, list[float]], list[tuple[int, float]]]:
    """Every tensor of the latest checkpoint, and each epoch's loss."""
    files = (load_file(folder / LATEST / name) for name in ("model.safetensors", "training.safetensors"))
    tensors = {f"{n} {name}": tensor.tolist() for n, file in enumerate(files) for name, tensor in file.items()}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return tensors, [(line["epoch"], line["loss"]) for line in lines]


def test_killed_while_writing_it_continues_from_the_epoch_before_exactly(plan: Plan, tmp_path: Path) -> None:
    tests = str(Path(__file__).resolve().parents[1])
    command = [sys.executable, "-c", KILLED, tests, str(tmp_path / "parts"), "4"]  # in the second epoch's checkpoint
    killed = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (folder,) = (tmp_path / "parts").rglob("fold_0")
    assert load_checkpoint(folder).state.epoch == 1
    parts = train(plan, tmp_path / "parts", resume=True)
    assert not list(parts.glob(".partial-*"))
    assert outcome(parts) == outcome(train(plan, tmp_path / "whole"))


def test_a_disk_that_fills_up_while_writing_ends_the_training_which_continues_exactly(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file, files = checkpoint_module.save_file, []

    def full(*arguments: Any, **options: Any) -> None:
        files.append(arguments)
        if len(files) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        save_file(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_module, "save_file", full)
        with pytest.raises(OutputError, match=r"No space left.*has been kept\. Then continue with `resume`"):
            train(plan, tmp_path / "parts")
    (folder,) = (tmp_path / "parts").rglob("fold_0")
    assert load_checkpoint(folder).state.epoch == 1
    parts = train(plan, tmp_path / "parts", resume=True)
    assert outcome(parts) == outcome(train(plan, tmp_path / "whole"))


@pytest.mark.parametrize(("last", "epoch", "steps"), [(4, 0, 3), (9, 1, 2)])
def test_killed_within_a_long_epoch_it_continues_within_it_exactly(
    plan: Plan, tmp_path: Path, last: int, epoch: int, steps: int
) -> None:
    """The first time before any epoch has ended, the second time after one has."""
    plan = tiny.make_plan(num_epochs=2, steps_per_epoch=6)
    tests = str(Path(__file__).resolve().parents[1])
    command = [sys.executable, "-c", KILLED_WITHIN_AN_EPOCH, tests, str(tmp_path / "parts"), str(last)]
    killed = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (folder,) = (tmp_path / "parts").rglob("fold_0")
    state = load_checkpoint(folder).state
    assert (state.epoch, state.unfinished.steps, state.step) == (epoch, steps, last - 1)
    with pytest.raises(OutputError, match="Continue it with `resume`"):
        train(plan, tmp_path / "parts")
    parts = train(plan, tmp_path / "parts", resume=True)
    assert outcome(parts) == outcome(train(plan, tmp_path / "whole"))


def test_checkpoints_within_an_epoch_change_nothing(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(plan, tmp_path / "whole")
    monkeypatch.setattr(writer_module, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(writer_module, "SAVE_SHARE", 1e9)
    saved: list[tuple[int, int]] = []
    write = writer_module.save_checkpoint

    def noted(folder: Path, checkpoint: Checkpoint, *, best: bool) -> None:
        saved.append((checkpoint.state.epoch, checkpoint.state.unfinished.steps))
        write(folder, checkpoint, best=best)

    monkeypatch.setattr(writer_module, "save_checkpoint", noted)
    assert outcome(train(plan, tmp_path / "often")) == outcome(whole)
    assert (0, 1) in saved and (3, 0) in saved


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
@pytest.mark.parametrize("moment", ["write_metrics", "describe", "draw_progress"])
def test_a_signal_after_the_last_step_stops_all_the_same(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, number: int
) -> None:
    """It used to be noted and forgotten, and the validation of all cases began."""
    real = getattr(session, moment)

    def signalled(*arguments: Any, **options: Any) -> Any:
        signal.raise_signal(number)
        return real(*arguments, **options)

    plan = replace(plan, training=replace(plan.training, num_epochs=1))
    monkeypatch.setattr(session, moment, signalled)
    with pytest.raises(Interrupted, match="is finished and saved; its validation has not begun") as stopped:
        train(plan, tmp_path)
    assert stopped.value.signal_number == number
    (folder,) = tmp_path.rglob("fold_0")
    assert load_checkpoint(folder).state.finished
