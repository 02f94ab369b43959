"""The runner's own decisions, with a stand-in for nnU-Net's trainer; nnU-Net itself is not needed."""

import json
import math
import multiprocessing
import subprocess
import sys
import time
from pathlib import Path
from pickle import UnpicklingError
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from masam_auto.baselines import nnunet_runner as runner
from masam_auto.training.clock import peak_memory_gib


class Trainer:
    """Counts what is asked of it, as nnU-Net's trainer would be asked; its only weight is the number of its
    iterations."""

    num_epochs, num_iterations_per_epoch, batch_size = 1000, 4, 2
    device = torch.device("cpu")
    configuration_manager = SimpleNamespace(patch_size=[4, 6])

    def __init__(self, output_folder: str = "", **_: Any) -> None:
        self.output_folder = output_folder
        self.current_epoch, self.epochs, self.ended = 0, 0, 0
        self.schedule: list[float] = []
        self.losses: list[int] = []
        self.saved: list[str] = []
        self.my_init_kwargs: dict[str, Any] = {}
        self.lr_scheduler = SimpleNamespace(step=self.schedule.append)
        self.dataloader_train = iter(range(1000))
        self.network = torch.nn.Linear(1, 1)
        torch.nn.init.zeros_(self.network.weight)

    def run_training(self) -> None:
        self.on_train_start()
        for epoch in range(self.current_epoch, 3):
            self.current_epoch = epoch
            self.train_step(0)
            self.save_checkpoint(str(Path(self.output_folder) / runner.LATEST))
        self.on_train_end()

    def on_train_start(self) -> None:
        assert not self.epochs

    def on_train_epoch_start(self) -> None:
        self.epochs += 1

    def train_step(self, batch: int) -> dict[str, float]:
        with torch.no_grad():
            self.network.weight += 1
        return {"loss": float(batch)}

    def on_train_epoch_end(self, losses: list[Any]) -> None:
        self.losses.append(len(losses))

    def print_to_log_file(self, text: str) -> None:
        assert math.isfinite(float(text.split()[1].rstrip(",")))

    def save_checkpoint(self, file: str) -> None:
        self.saved.append(Path(file).name)
        state = {
            "weights": self.network.state_dict(),
            "init_args": self.my_init_kwargs,
            "epoch": self.current_epoch + 1,
            "logging": [np.float32(0.5), np.float64(0.5), np.int64(3)],
        }
        torch.save(state, file)

    def load_checkpoint(self, file: str) -> None:
        state = torch.load(file, weights_only=False)  # as nnU-Net does
        self.network.load_state_dict(state["weights"])
        self.my_init_kwargs, self.current_epoch = state["init_args"], state["epoch"]

    def on_train_end(self) -> None:
        self.ended += 1
        if self.output_folder:
            (Path(self.output_folder) / runner.LATEST).unlink(missing_ok=True)


def test_the_schedule_is_compressed_to_the_budget() -> None:
    trainer, account = Trainer(), runner.Account()
    runner._train_within(trainer, account, kind="steps", amount=10)
    assert account.iterations == 10
    assert trainer.schedule == pytest.approx([100.0 * number for number in range(10)])
    assert (trainer.losses, trainer.epochs, trainer.current_epoch, trainer.ended) == ([4, 4, 2], 3, 3, 1)


def test_a_budget_that_ends_with_an_epoch_begins_no_other() -> None:
    trainer = Trainer()
    runner._train_within(trainer, runner.Account(), kind="steps", amount=8)
    assert (trainer.losses, trainer.epochs) == ([4, 4], 2)


@pytest.mark.parametrize(("kind", "clock"), [("cpu", "_cpu_seconds"), ("wall", "perf_counter")])
def test_the_clock_is_looked_at_between_iterations(kind: str, clock: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(runner if kind == "cpu" else runner.time, clock, lambda: now[0])
    trainer, account = Trainer(), runner.Account(iterations=1, seconds=3.0, cpu_seconds=3.0)
    step = trainer.train_step

    def slow_step(batch: int) -> dict[str, float]:
        now[0] += 3
        return step(batch)

    trainer.train_step = slow_step  # type: ignore[method-assign]
    runner._train_within(trainer, account, kind=kind, amount=12.0)
    assert trainer.schedule == pytest.approx([250, 500, 750]), "an earlier session used a quarter"
    assert account.iterations == 4
    assert account.used()["seconds" if kind == "wall" else "cpu_seconds"] == 12


def test_cpu_seconds_count_workers() -> None:
    """Those that live, and those that have ended: batches are made by them."""
    before, end = runner._cpu_seconds(), multiprocessing.Event()
    worker = multiprocessing.Process(target=_work, args=(end,), daemon=True)
    worker.start()
    own = time.process_time()
    while runner._cpu_seconds() - before - (time.process_time() - own) < 0.1:
        time.sleep(0.02)
    alive = runner._cpu_seconds()
    end.set()
    worker.join()
    assert runner._cpu_seconds() >= alive - 0.02


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="only Linux hands the peak on")
def test_peak_memory_is_not_that_of_the_process_that_started_it() -> None:
    """Neither masam_train's nor nnU-Net's: both are started by masam_compare, which may have been larger."""
    ballast = np.ones(120 * 2**20, np.uint8)
    code = f"""
import resource, sys, types
sys.path.insert(0, {str(Path(runner.__file__).parent)!r})
sys.modules["torch"] = types.ModuleType("torch")
import nnunet_runner
handed_on = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(nnunet_runner._peak_memory_gib(types.SimpleNamespace(type="cpu")), handed_on)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    own, handed_on = map(float, said.split())
    assert 0 < own < 0.1 < ballast.nbytes / 2**30 < handed_on
    assert runner._peak_memory_gib(torch.device("cpu")) == pytest.approx(peak_memory_gib(torch.device("cpu")), rel=0.1)


def test_on_a_gpu_nnunet_is_set_up_as_by_its_own_commands(job: runner.Job, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    plans = Path(job["folders"]["preprocessed"], job["dataset"], "nnUNetPlans.json")
    runner._make_trainer(job, plans)
    assert not threads and not torch.backends.cudnn.benchmark
    runner._make_trainer({**job, "device": "cuda"}, plans)
    assert threads == [1] and torch.backends.cudnn.benchmark


def _work(end: Any) -> None:
    while not end.is_set():
        sum(range(1000))


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> runner.Job:
    """A job on plans of one configuration, and a trainer class that keeps what it is made with."""
    folder = tmp_path / "preprocessed" / "Dataset001_Toy"
    folder.mkdir(parents=True)
    (folder / "nnUNetPlans.json").write_text(json.dumps({"configurations": {"2d": {"batch_size": 9}}}))
    (folder / "dataset.json").write_text("{}")
    output = tmp_path / "results" / "fold_3"
    output.mkdir(parents=True)
    module = ModuleType("some_trainers")
    module.nnUNetTrainer = lambda **given: SimpleNamespace(**given)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "some_trainers", module)
    monkeypatch.setitem(runner.TRAINERS, "nnUNetTrainer", "some_trainers")
    folders = {name: str(tmp_path / name) for name in ("raw", "preprocessed", "results")}
    for name in (*(f"nnUNet_{name}" for name in folders), "TORCH_FORCE_WEIGHTS_ONLY_LOAD"):
        monkeypatch.setenv(name, "")  # given back after the test
    return {
        "folders": folders,
        "dataset": "Dataset001_Toy",
        "configuration": "2d",
        "trainer": "nnUNetTrainer",
        "fold": 3,
        "device": "cpu",
        "batch": None,
        "budget": None,
        "result": str(tmp_path / "result.json"),
    }


@pytest.fixture
def trainers(job: runner.Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Trainer]:
    """The trainers that jobs make, `Trainer`s that save after every iteration."""
    made: list[Trainer] = []

    def make(**_: Any) -> Trainer:
        made.append(Trainer(str(tmp_path / "results" / "fold_3")))
        return made[-1]

    monkeypatch.setattr(sys.modules["some_trainers"], "nnUNetTrainer", make)
    monkeypatch.setattr(runner, "SAVE_SECONDS", 0.0)
    return made


def _interrupt(trainers: list[Trainer], monkeypatch: pytest.MonkeyPatch, *, after: int) -> None:
    """The step after so many raises."""
    step = Trainer.train_step

    def failing(self: Trainer, batch: int) -> dict[str, float]:
        if len(trainers) == 1 and self.network.weight.item() == after:
            raise KeyboardInterrupt
        return step(self, batch)

    monkeypatch.setattr(Trainer, "train_step", failing)


@pytest.mark.parametrize(("budget", "iterations"), [({"kind": "steps", "amount": 5}, 5), (None, 4000)])
def test_an_interrupted_training_goes_on(
    job: runner.Job, trainers: list[Trainer], monkeypatch: pytest.MonkeyPatch, budget: Any, iterations: int
) -> None:
    """With a budget of ours and with nnU-Net's own loop, whose epochs have one step here."""
    job |= {"budget": budget, "request": {"budget": budget}}
    _interrupt(trainers, monkeypatch, after=2)
    with pytest.raises(KeyboardInterrupt):
        runner.train(job)
    result = runner.train(job)
    first, second = trainers
    assert first.saved == [f"{runner.LATEST}.partial"] * 2
    assert second.network.weight.item() == (5 if budget else 3)
    assert result["iterations"] == iterations
    if budget:
        assert second.schedule == pytest.approx([400, 600, 800])
    assert result["seconds"] > second.my_init_kwargs["used"]["seconds"] > 0
    weights = torch.load(Path(second.output_folder) / runner.WEIGHTS, weights_only=True)
    assert weights["weight"].item() == second.network.weight.item()
    assert not list(Path(second.output_folder).glob("*.partial"))


def test_a_checkpoint_that_would_run_code_is_not_taken_up(
    job: runner.Job, trainers: list[Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    job |= {"budget": {"kind": "steps", "amount": 5}, "request": {}}
    _interrupt(trainers, monkeypatch, after=2)
    with pytest.raises(KeyboardInterrupt):
        runner.train(job)
    torch.save({"weights": Path("anything")}, Path(trainers[0].output_folder) / runner.LATEST)
    with pytest.raises(UnpicklingError, match="pathlib"):
        runner.train(job)


def test_another_training_is_not_taken_up(
    job: runner.Job, trainers: list[Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    job |= {"budget": {"kind": "steps", "amount": 5}, "request": {"batch": 9}}
    _interrupt(trainers, monkeypatch, after=2)
    with pytest.raises(KeyboardInterrupt):
        runner.train(job)
    result = runner.train(job | {"request": {"batch": 2}})
    assert trainers[1].network.weight.item() == result["iterations"] == 5
    assert len(trainers[1].schedule) == 5


@pytest.mark.parametrize(("limit", "batch"), [(None, 9), (2, 2), (64, 9)])
def test_the_batch_is_cut_and_never_raised(job: runner.Job, limit: int | None, batch: int) -> None:
    plans = Path(job["folders"]["preprocessed"], job["dataset"], "nnUNetPlans.json")
    trainer, planned = runner._make_trainer({**job, "batch": limit}, plans)
    assert planned == 9
    assert trainer.plans["configurations"]["2d"]["batch_size"] == batch
    assert (trainer.fold, trainer.configuration, trainer.plans["continue_training"]) == (3, "2d", False)


def test_what_nnunet_did_not_plan_is_told(job: runner.Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "")
    (tmp_path / "job.json").write_text(json.dumps({**job, "action": "train", "configuration": "3d_fullres"}))
    runner.main(str(tmp_path / "job.json"))
    answer = json.loads((tmp_path / "result.json").read_text())
    assert answer == {"refused": "nnU-Net planned no 3d_fullres for this data, only 2d"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["job.json", "preprocessed", "result.json", "results"]
