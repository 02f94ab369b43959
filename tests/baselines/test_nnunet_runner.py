"""The runner's own decisions, with a stand-in for nnU-Net's trainer; nnU-Net itself is not needed."""

import json
import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from masam_auto.baselines import nnunet_runner as runner


class Trainer:
    """Counts what is asked of it, as nnU-Net's trainer would be asked."""

    num_epochs, num_iterations_per_epoch = 1000, 4

    def __init__(self) -> None:
        self.current_epoch, self.epochs, self.ended = 0, 0, 0
        self.schedule: list[float] = []
        self.losses: list[int] = []
        self.lr_scheduler = SimpleNamespace(step=self.schedule.append)
        self.dataloader_train = iter(range(1000))

    def on_train_epoch_start(self) -> None:
        self.epochs += 1

    def train_step(self, batch: int) -> dict[str, float]:
        return {"loss": float(batch)}

    def on_train_epoch_end(self, losses: list[Any]) -> None:
        self.losses.append(len(losses))

    def print_to_log_file(self, text: str) -> None:
        assert math.isfinite(float(text.split()[1].rstrip(",")))

    def on_train_end(self) -> None:
        self.ended += 1


def test_the_schedule_is_compressed_to_the_budget() -> None:
    trainer = Trainer()
    assert runner._train_within(trainer, kind="steps", amount=10) == 10
    assert trainer.schedule == pytest.approx([100.0 * number for number in range(10)])
    assert (trainer.losses, trainer.epochs, trainer.current_epoch, trainer.ended) == ([4, 4, 2], 3, 3, 1)


def test_a_budget_that_ends_with_an_epoch_begins_no_other() -> None:
    trainer = Trainer()
    assert runner._train_within(trainer, kind="steps", amount=8) == 8
    assert (trainer.losses, trainer.epochs) == ([4, 4], 2)


@pytest.mark.parametrize(("kind", "clock"), [("cpu", "process_time"), ("wall", "perf_counter")])
def test_the_clock_is_looked_at_between_iterations(kind: str, clock: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([100.0, 103.0, 106.0, 109.0, 112.0])
    monkeypatch.setattr(runner.time, clock, lambda: next(ticks))
    trainer = Trainer()
    assert runner._train_within(trainer, kind=kind, amount=9.0) == 3
    assert trainer.schedule == pytest.approx([0, 1000 / 3, 2000 / 3])


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> runner.Job:
    """A job on plans of one configuration, and a trainer class that keeps what it is made with."""
    folder = tmp_path / "preprocessed" / "Dataset001_Toy"
    folder.mkdir(parents=True)
    (folder / "nnUNetPlans.json").write_text(json.dumps({"configurations": {"2d": {"batch_size": 9}}}))
    (folder / "dataset.json").write_text("{}")
    module = ModuleType("some_trainers")
    module.nnUNetTrainer = SimpleNamespace  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "some_trainers", module)
    monkeypatch.setitem(runner.TRAINERS, "nnUNetTrainer", "some_trainers")
    folders = {name: str(tmp_path / name) for name in ("raw", "preprocessed", "results")}
    for name in folders:
        monkeypatch.setenv(f"nnUNet_{name}", "")  # given back after the test
    return {
        "folders": folders, "dataset": "Dataset001_Toy", "configuration": "2d", "trainer": "nnUNetTrainer", "fold": 3,
        "device": "cpu", "batch": None, "budget": None, "result": str(tmp_path / "result.json"),
    }  # fmt: skip


@pytest.mark.parametrize(("limit", "batch"), [(None, 9), (2, 2), (64, 9)])
def test_the_batch_is_cut_and_never_raised(job: runner.Job, limit: int | None, batch: int) -> None:
    trainer, planned = runner._make_trainer({**job, "batch": limit})
    assert planned == 9
    assert trainer.plans["configurations"]["2d"]["batch_size"] == batch
    assert (trainer.fold, trainer.configuration, trainer.plans["continue_training"]) == (3, "2d", False)


def test_what_nnunet_did_not_plan_is_told(job: runner.Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "")
    (tmp_path / "job.json").write_text(json.dumps({**job, "action": "train", "configuration": "3d_fullres"}))
    runner.main(str(tmp_path / "job.json"))
    answer = json.loads((tmp_path / "result.json").read_text())
    assert answer == {"refused": "nnU-Net planned no 3d_fullres for this data; it planned 2d"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["job.json", "preprocessed", "result.json"]
