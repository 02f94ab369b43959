"""Sinks for an epoch's metrics, with packages that stand for the real ones: nothing here reaches a network."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from masam_auto.core.errors import ModelError
from masam_auto.training import trackers as module
from masam_auto.training.progress import EpochMetrics
from masam_auto.training.trackers import SINKS, Run, check_sinks, open_records, values_of
from tests import tiny_training as tiny

Calls = list[tuple[Any, ...]]


def metrics(epoch: int) -> EpochMetrics:
    return EpochMetrics(
        epoch=epoch,
        step=10,
        learning_rate=1e-3,
        loss=0.5,
        dice={"organ (left)": 0.75, "lesion": None},
        mean_dice=0.75,
        smoothed_dice=0.7,
        windows_per_second=3.0,
        wait_share=0.01,
        seconds=9.0,
        cpu_seconds=4.0,
        memory_gib=1.0,
    )


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Run]:
    def make(first_epoch: int = 0) -> Run:
        return Run(
            folder=tmp_path,
            dataset_name="Dataset001_Toy",
            name="masam__axis0/fold_0",
            plan=tiny.make_plan(),
            first_epoch=first_epoch,
        )

    return make


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """What the made-up packages were asked for."""
    seen: Calls = []

    def note(name: str) -> Callable[..., None]:
        return lambda *arguments, **options: seen.append((name, *arguments, *options.items()))

    def writer(folder: str, purge_step: int) -> SimpleNamespace:
        seen.append(("writer", Path(folder).name, purge_step))
        return SimpleNamespace(
            add_scalar=lambda name, value, epoch: seen.append(("values", {name: value}, epoch)),
            flush=lambda: None,
            close=note("end"),
        )

    def init(*, id: str | None, **options: Any) -> SimpleNamespace:
        seen.append(("init", id, options["project"], options["name"], options["config"]["name"]))
        return SimpleNamespace(
            id=id or "new", log=lambda values, step: seen.append(("values", values, step)), finish=note("end")
        )

    def start_run(run_id: str | None = None, run_name: str | None = None) -> SimpleNamespace:
        seen.append(("init", run_id, run_name))
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id or "new"))

    mlflow = SimpleNamespace(
        set_experiment=note("experiment"),
        start_run=start_run,
        end_run=note("end"),
        log_params=lambda given: seen.append(("parameters", given["learning_rate"])),
        log_metrics=lambda values, step: seen.append(("values", values, step)),
    )
    for name, package in (
        ("torch.utils.tensorboard", SimpleNamespace(SummaryWriter=writer)),
        ("wandb", SimpleNamespace(init=init)),
        ("mlflow", mlflow),
    ):
        monkeypatch.setitem(sys.modules, name, package)  # type: ignore[arg-type]
    return seen


@pytest.mark.parametrize("name", SINKS)
def test_every_sink_gets_the_values_of_each_epoch_and_its_end(name: str, run: Callable[..., Run], calls: Calls) -> None:
    with open_records([name], run()) as record:
        record(metrics(0))
        record(metrics(1))
    for epoch in (0, 1):
        got: dict[str, float] = {}
        for call in calls:
            if call[0] == "values" and call[2] == epoch:
                got |= call[1]
        assert got == values_of(metrics(epoch))
    assert calls[-1] == ("end",)


def test_a_continued_training_goes_on_in_its_run(run: Callable[..., Run], calls: Calls) -> None:
    for first in (0, 3):
        with open_records(list(SINKS), run(first)):
            pass
    assert [call[1] for call in calls if call[0] == "init"] == [None, None, "new", "new"]
    assert [call[2] for call in calls if call[0] == "writer"] == [0, 3]
    assert [call for call in calls if call[0] == "parameters"] == [("parameters", 2e-3)], "once, for MLflow"


def test_values_are_numbers_under_plain_names() -> None:
    values = values_of(metrics(4))
    assert values["dice/organ _left_"] == 0.75
    assert "dice/lesion" not in values
    assert "epoch" not in values
    assert {"loss", "learning_rate", "windows_per_second", "wait_share", "memory_gib"} <= values.keys()
    assert all(isinstance(value, float) for value in values.values())


@pytest.mark.parametrize("name", SINKS)
def test_a_missing_package_is_one_clear_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module._MODULES[name], None)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=f"`log_to={name}` needs the package {name}.*pip install") as caught:
        check_sinks([name])
    assert "\n" not in str(caught.value)


def test_an_unknown_sink_is_refused() -> None:
    with pytest.raises(ModelError, match="choose among tensorboard, wandb, mlflow"):
        check_sinks(["paper"])


def test_a_sink_that_fails_is_left_out_and_the_others_go_on(
    run: Callable[..., Run], calls: Calls, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unreachable(values: dict[str, float], step: int) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(sys.modules["mlflow"], "log_metrics", unreachable)
    with open_records(["mlflow", "wandb"], run()) as record:
        record(metrics(0))
        record(metrics(1))
    assert caplog.text.count("`log_to=mlflow` failed (no route to host)") == 1
    assert [call[2] for call in calls if call[0] == "values"] == [0, 1]


def test_without_names_nothing_is_imported_or_written(run: Callable[..., Run], calls: Calls, tmp_path: Path) -> None:
    with open_records([], run()) as record:
        record(metrics(0))
    assert calls == []
    assert list(tmp_path.iterdir()) == []
