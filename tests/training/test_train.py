"""Training one fold: what it leaves behind, that it can be interrupted, and what it refuses."""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from masam_auto.compute.interruption import STOP_SIGNALS
from masam_auto.core.claims import claimed
from masam_auto.core.errors import Interrupted, MasamError, ModelError, OutputError, PlanError
from masam_auto.core.jsonio import digest, read_json, write_json
from masam_auto.core.labels import parse_labels
from masam_auto.core.plan import Plan
from masam_auto.models.checkpoint import BEST, LATEST, load_checkpoint
from masam_auto.training import session
from masam_auto.training import train as module
from masam_auto.training.loss import LOSSES
from masam_auto.training.train import train_fold
from masam_auto.training.training_job import Job, TrainingOptions
from tests import tiny_training as tiny

Train = Callable[..., Path]


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """Train fold 0 of a tiny data set in tmp_path, or in a folder of it; without the picture, unless asked for."""

    def run(
        where: str = "one", *, plan: Plan | None = None, fold: int | str = 0, picture: bool = False, **options: Any
    ) -> Path:
        if not picture:
            tiny.without_pictures(monkeypatch)
        plan = plan or tiny.make_plan()
        configuration = plan.configuration(None)
        paths = tiny.write_preprocessed(tmp_path / where, configuration)
        options = {"device": torch.device("cpu"), "workers": 0, "threads": 1, **options}
        return train_fold(paths, tiny.DATASET, plan, configuration, fold, TrainingOptions(**options))

    return run


def results(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the latest checkpoint."""
    return {
        f"{file}/{name}": tensor
        for file in ("model.safetensors", "training.safetensors")
        for name, tensor in load_file(folder / LATEST / file).items()
    }


def assert_equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    different = [name for name in left if not torch.equal(left[name], right[name])]
    assert different == []


def test_it_leaves_all_that_the_design_names(train: Train, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="masam_auto")
    folder = train(picture=True)
    assert folder.name == "fold_0"
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [BEST, LATEST, "augmentation.png", "metrics.jsonl", "progress.png", "training.log"]
    )
    assert sorted(path.name for path in folder.parent.iterdir()) == sorted(
        ["fold_0", "plan.json", "dataset.json", "splits.json"]
    )
    assert read_json(folder.parent / "plan.json", Plan, what="plan") == tiny.make_plan()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1]
    assert lines[-1]["step"] == 6
    assert set(lines[-1]["dice"]) == {"organ", "lesion"}
    assert all(np.isfinite(line["loss"]) and 0 <= line["wait_share"] <= 1 for line in lines)
    checkpoint = load_checkpoint(folder)
    assert checkpoint.state.finished
    assert checkpoint.header.epoch == 2
    assert "epoch 1" in (folder / "training.log").read_text()


def test_a_class_is_learned(train: Train, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="masam_auto")
    plan = tiny.make_plan(num_epochs=2, steps_per_epoch=25, learning_rate=2e-2, weight_average=0.9)
    folder = train(plan=plan)
    first, last = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert "steps left take about" in (folder / "training.log").read_text()
    assert last["loss"] < first["loss"]
    assert last["dice"]["organ"] > 0.7


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_one_seed_gives_one_result_and_another_seed_another(train: Train, optimizer: str) -> None:
    first = results(train("one", plan=tiny.make_plan(optimizer=optimizer)))
    assert_equal(first, results(train("two", plan=tiny.make_plan(optimizer=optimizer))))
    other = results(train("three", plan=tiny.make_plan(optimizer=optimizer, seed=1)))
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_resumed_equals_uninterrupted(train: Train, monkeypatch: pytest.MonkeyPatch, optimizer: str) -> None:
    plan = tiny.make_plan(num_epochs=3, steps_per_epoch=2, optimizer=optimizer)
    whole = train("whole", plan=plan)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        tiny.before_look(patch, 2, tiny.interrupt)
        train("parts", plan=plan)
    parts = train("parts", plan=plan, resume=True)
    assert_equal(results(whole), results(parts))
    losses = [
        [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (whole, parts)
    ]
    assert losses[0] == losses[1]


def test_accumulation_and_tiles_and_all_cases(train: Train) -> None:
    configuration = tiny.make_configuration(accumulation=2, batch_size=1, canvas=(16, 16), magnification=2.0)
    folder = train(plan=tiny.make_plan(configuration, num_epochs=1), fold="all")
    assert folder.name == "fold_all"
    assert load_checkpoint(folder).state.step == 3


def send(number: signal.Signals = signal.SIGTERM) -> None:
    """Send a signal to this process."""
    os.kill(os.getpid(), number)


def losses(folder: Path) -> list[tuple[float, float]]:
    """Loss and learning rate of the epochs."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["loss"], line["learning_rate"]) for line in lines]


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_saves_the_very_step(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    tiny.before_step(monkeypatch, 5, lambda: send(number))
    with pytest.raises(Interrupted, match="in epoch 1: all 5 steps are saved; continue with `resume`") as stopped:
        train()
    assert stopped.value.signal_number == number
    monkeypatch.undo()
    (folder,) = tmp_path.rglob("fold_0")
    state = load_checkpoint(folder).state
    assert (state.epoch, state.step, state.unfinished.steps) == (1, 5, 2)
    state = load_checkpoint(train(resume=True)).state
    assert (state.epoch, state.step, state.unfinished.steps) == (2, 6, 0)
    assert not list(folder.glob(".partial-*"))


@pytest.mark.parametrize(("workers", "stops"), [(0, (1, 2, 5)), (2, (5,))])
def test_resumed_at_any_step_equals_uninterrupted(
    train: Train, monkeypatch: pytest.MonkeyPatch, workers: int, stops: tuple[int, ...]
) -> None:
    """With dropout, boxes and accumulation; the last stop is after three steps of the second epoch, before the look."""
    configuration = tiny.make_configuration(batch_size=1, accumulation=2)
    plan = tiny.make_plan(configuration, num_epochs=2, steps_per_epoch=3)
    plan = replace(plan, network=replace(plan.network, prompt="box", increment="fact"))
    whole = train("whole", plan=plan)
    made = 0
    for stop in stops:
        tiny.before_step(monkeypatch, stop - made, send)
        with pytest.raises(Interrupted, match=f"all {stop} steps"):
            train("parts", plan=plan, resume=made > 0, workers=workers)
        monkeypatch.undo()
        made = stop
    parts = train("parts", plan=plan, resume=True, workers=workers)
    assert_equal(results(whole), results(parts))
    assert losses(whole) == losses(parts)


def test_a_stop_during_the_look_at_validation_repeats_only_the_look(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train("whole")
    tiny.before_look(monkeypatch, 1, lambda: send(signal.SIGUSR1))
    with pytest.raises(Interrupted, match="in epoch 0: all 3 steps"):
        train("parts")
    monkeypatch.undo()
    parts = train("parts", resume=True)
    assert_equal(results(whole), results(parts))
    assert losses(whole) == losses(parts)


def test_a_stop_after_the_last_step_of_the_budget_can_be_continued(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train("whole", budget="4steps")
    tiny.before_step(monkeypatch, 4, send)
    with pytest.raises(Interrupted, match="in epoch 1: all 4 steps"):
        train("parts", budget="4steps")
    monkeypatch.undo()
    parts = train("parts", resume=True)
    assert_equal(results(whole), results(parts))
    assert losses(whole) == losses(parts)


def test_a_stop_before_the_first_step_can_be_continued(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train("whole")
    monkeypatch.setattr(module, "learning_summary", lambda network: send() or "said before the first step")
    with pytest.raises(Interrupted, match="all 0 steps"):
        train("parts")
    monkeypatch.undo()
    assert_equal(results(whole), results(train("parts", resume=True)))


def test_budgets_end_the_training_and_are_remembered(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = train(budget="4steps")  # one epoch and a third
    checkpoint = load_checkpoint(folder)
    assert (checkpoint.state.epoch, checkpoint.state.step, checkpoint.state.finished) == (2, 4, True)
    assert checkpoint.state.budget == "4steps"
    with pytest.raises(ModelError, match="finished"):
        train(resume=True)
    assert load_checkpoint(train(resume=True, budget="9steps")).state.step == 9
    seconds = iter(range(1000))
    monkeypatch.setattr(session.Clock, "cpu", property(lambda self: float(next(seconds))))
    timed = load_checkpoint(train("timed", budget="10cpus"))
    assert timed.state.finished
    assert 1 <= timed.state.step < 10


@pytest.fixture
def cpu_of_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock by which every step takes one CPU-second and all else nothing."""
    set_rate, made = module.set_rate, [0]

    def counted(*arguments: Any) -> None:
        made[0] += 1
        set_rate(*arguments)

    monkeypatch.setattr(module, "set_rate", counted)

    class StepClock(session.Clock):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.first = made[0]

        @property
        def cpu(self) -> float:
            return self.earlier_cpu + made[0] - self.first

    monkeypatch.setattr(session, "Clock", StepClock)


@pytest.mark.usefixtures("cpu_of_steps")
def test_a_budget_of_time_has_epochs_enough_to_choose_from(train: Train) -> None:
    folder = train(plan=tiny.make_plan(steps_per_epoch=100), budget="64cpus")
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == [*range(3, 61, 3), 64]
    state = load_checkpoint(folder).state
    assert (state.epoch, state.step, state.look_steps, state.left_out) == (21, 64, 3, 21 * 100 - 64)


@pytest.mark.usefixtures("cpu_of_steps")
def test_a_training_by_time_resumed_at_any_step_equals_one_by_steps(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shortened epochs leave no window out and show none twice, and neither does an interruption."""
    plan = tiny.make_plan(num_epochs=2, steps_per_epoch=30)
    plan = replace(plan, network=replace(plan.network, increment="fact"))
    by_steps = results(train("steps", plan=plan, budget="50steps"))
    assert_equal(by_steps, results(train("time", plan=plan, budget="50cpus")))
    made = 0
    for stop in (1, 4, 33):
        with monkeypatch.context() as patch:
            tiny.before_step(patch, stop - made, send)
            with pytest.raises(Interrupted, match=f"all {stop} steps"):
                train("parts", plan=plan, budget=None if made else "50cpus", resume=made > 0)
        made = stop
    parts = train("parts", plan=plan, resume=True)
    assert_equal(by_steps, results(parts))
    assert load_checkpoint(parts).state.epoch > 15


def test_time_that_runs_out_between_two_epochs_leaves_no_empty_epoch(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = [0.0]
    describe = session.describe

    def late(*arguments: Any, **options: Any) -> str:
        used[0] = 100.0  # what is written after the first epoch takes the rest
        return describe(*arguments, **options)

    monkeypatch.setattr(session.Clock, "cpu", property(lambda self: used[0]))
    monkeypatch.setattr(session, "describe", late)
    folder = train(budget="50cpus")
    (line,) = (folder / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["loss"] > 0
    state = load_checkpoint(folder).state
    assert (state.epoch, state.step, state.finished) == (1, 3, True)


@pytest.mark.usefixtures("cpu_of_steps")
def test_a_training_by_time_interrupted_while_it_looks_at_validation_goes_on_exactly(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = tiny.make_plan(num_epochs=2, steps_per_epoch=30)
    whole = train("whole", plan=plan, budget="50cpus")
    tiny.before_look(monkeypatch, 3, lambda: send(signal.SIGUSR1))
    with pytest.raises(Interrupted, match="in epoch 2"):
        train("parts", plan=plan, budget="50cpus")
    assert_equal(results(whole), results(train("parts", plan=plan, resume=True)))


def test_a_state_of_an_older_version_continues_exactly(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train("whole")
    tiny.before_step(monkeypatch, 5, send)
    with pytest.raises(Interrupted):
        train("parts")
    monkeypatch.undo()
    (file,) = (path for path in whole.parents[4].rglob(f"{LATEST}/checkpoint.json") if "parts" in path.parts)
    state = json.loads(file.read_text())
    for later in ("left_out", "judged", "look_steps"):
        del state[later]
    file.write_text(json.dumps(state))
    parts = train("parts", resume=True)
    assert_equal(results(whole), results(parts))
    assert losses(whole) == losses(parts)


def test_it_refuses_to_overwrite_and_to_continue_nothing(train: Train) -> None:
    with pytest.raises(ModelError, match="no checkpoint to continue"):
        train(resume=True)
    folder = train()
    with pytest.raises(OutputError, match="`overwrite`"):
        train()
    with pytest.raises(ModelError, match="finished"):
        train(resume=True)
    (folder / "validation").mkdir()
    train(overwrite=True)
    assert not (folder / "validation").exists()


def test_it_refuses_checkpoints_of_another_plan(train: Train) -> None:
    train()
    with pytest.raises(ModelError, match="another plan"):
        train(resume=True, plan=tiny.make_plan(num_epochs=5))
    with pytest.raises(
        OutputError, match=r"share one: repeat the changes that were made .* another name \(`plan_name=NAME`\)"
    ):
        train(fold="all", plan=tiny.make_plan(num_epochs=5))
    assert train(fold="all").name == "fold_all"


def test_a_damaged_latest_checkpoint_continues_from_the_best(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = train(budget="3steps")
    (folder / LATEST / "training.safetensors").unlink()
    (folder / LATEST / "training.safetensors").write_bytes(b"half")
    assert load_checkpoint(train(resume=True, budget="6steps")).state.step == 6


def test_it_refuses_missing_or_other_preprocessed_data(train: Train, tmp_path: Path) -> None:
    paths = tiny.write_preprocessed(tmp_path / "one", tiny.make_configuration())
    plan = tiny.make_plan()
    elsewhere = tiny.make_configuration(name="other")
    with pytest.raises(PlanError, match="no preprocessed data"):
        train_fold(paths, tiny.DATASET, plan, elsewhere, 0, TrainingOptions(device=torch.device("cpu")))
    changed = tiny.make_configuration(spacing=(2.0, 1.0, 1.0))
    with pytest.raises(PlanError, match="another plan"):
        train_fold(
            paths, tiny.DATASET, tiny.make_plan(changed), changed, 0, TrainingOptions(device=torch.device("cpu"))
        )
    folder = paths.configuration_folder(tiny.DATASET, "axis0")
    (folder / "a.b2nd").unlink()
    with pytest.raises(PlanError, match="not preprocessed"):
        train_fold(paths, tiny.DATASET, plan, plan.configuration(None), 0, TrainingOptions(device=torch.device("cpu")))
    assert not paths.results.exists()


def test_it_refuses_unknown_folds_and_names(train: Train) -> None:
    with pytest.raises(PlanError, match="fold 7"):
        train(fold=7)
    with pytest.raises(PlanError, match="budget"):
        train(budget="soon")
    for field, value in (("loss", "none"), ("schedule", "none"), ("optimizer", "none")):
        with pytest.raises(PlanError, match=field):
            train(plan=tiny.make_plan(**{field: value}), overwrite=True)


@pytest.mark.parametrize(
    "wrong", [{"loss": "foo"}, {"schedule": "foo"}, {"optimizer": "foo"}, {"canvas": (20, 22)}, {"network": "foo"}]
)
def test_an_error_in_the_plan_leaves_the_earlier_training(train: Train, wrong: dict) -> None:
    folder = train()
    before = results(folder)
    if "canvas" in wrong:
        plan = tiny.make_plan(tiny.make_configuration(**wrong))
    elif "network" in wrong:
        plan = tiny.make_plan()
        plan = replace(plan, network=replace(plan.network, decoder="foo"))
    else:
        plan = tiny.make_plan(**wrong)
    with pytest.raises(PlanError):
        train(plan=plan, overwrite=True)
    assert_equal(before, results(folder))
    assert read_json(folder.parent / "plan.json", Plan, what="plan") == tiny.make_plan()


def seen_cases(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], list[str]]]:
    """Identifiers of training and validation cases of every training that follows."""
    seen: list[tuple[list[str], list[str]]] = []

    def note(job: Job) -> None:
        training, validation = ([case.image.name[0] for case in s.cases] for s in (job.training, job.validation))
        seen.append((training, validation))
        try_out(job)

    try_out = module.try_out
    monkeypatch.setattr(module, "try_out", note)
    return seen


def test_changed_folds_do_not_leak_into_a_training_or_beside_it(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = seen_cases(monkeypatch)
    write = tiny.write_preprocessed

    def write_other_folds(*arguments: Any) -> Any:
        paths = write(*arguments)
        write_json(
            paths.preprocessed / tiny.DATASET / "splits.json",
            [{"train": ["b", "c", "d"], "val": ["a"]}, {"train": ["a", "b"], "val": ["c", "d"]}],
        )
        return paths

    folder = train(budget="3steps")
    monkeypatch.setattr(tiny, "write_preprocessed", write_other_folds)
    train(resume=True, budget="6steps")
    assert seen == [(["a", "b", "c"], ["d"])] * 2
    for fold in (1, "all"):
        with pytest.raises(ModelError, match=r"changed since fold_0 was trained.*cp .*another plan name"):
            train(fold=fold)
    assert json.loads((folder.parent / "splits.json").read_text())[0]["val"] == ["d"]
    train(overwrite=True)  # the only fold may start anew, by the new folds
    assert seen[-1] == (["b", "c", "d"], ["a"])
    assert train(fold=1).name == "fold_1"


def test_incomplete_preprocessing_is_not_blamed_on_the_folds(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    write = tiny.write_preprocessed

    def write_less(*arguments: Any) -> Any:
        paths = write(*arguments)
        for file in paths.configuration_folder(tiny.DATASET, "axis0").glob("b*"):
            file.unlink()
        return paths

    monkeypatch.setattr(tiny, "write_preprocessed", write_less)
    for fold in (0, "all"):
        with pytest.raises(PlanError, match=r"not preprocessed \(b\).*masam_preprocess") as caught:
            train(fold=fold)
        assert "Delete" not in str(caught.value)


def test_all_takes_cases_that_no_fold_has(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = seen_cases(monkeypatch)
    write = tiny.write_preprocessed

    def write_few_folds(*arguments: Any) -> Any:
        paths = write(*arguments)
        write_json(paths.preprocessed / tiny.DATASET / "splits.json", [{"train": ["a"], "val": ["b"]}])
        return paths

    monkeypatch.setattr(tiny, "write_preprocessed", write_few_folds)
    train(fold="all", budget="1steps")
    assert seen == [(["a", "b", "c", "d"],) * 2]


def test_a_loss_that_is_no_number_stops_with_a_remedy(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> torch.Tensor:
        return torch.tensor(float("nan"), requires_grad=True)

    monkeypatch.setitem(LOSSES, "ce_dice", broken)
    with pytest.raises(ModelError, match=r"step 0; .*learning_rate"):
        train()


def test_an_unwritable_results_folder_is_one_clear_line(train: Train, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "results").write_text("a file, not a folder")
    with pytest.raises(MasamError, match="results"):
        train()


def test_regions_and_ignore_are_trained(train: Train, tmp_path: Path) -> None:
    plan = tiny.make_plan(num_epochs=1)
    paths = tiny.write_preprocessed(tmp_path / "regions", plan.configuration(None))
    labels = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    write_json(
        paths.preprocessed / tiny.DATASET / "dataset.json",
        {"channel_names": {"0": "MR"}, "labels": labels, "regions_class_order": [1, 2], "file_ending": ".nii.gz"},
    )
    record = paths.configuration_folder(tiny.DATASET, "axis0") / "preprocessing.json"
    options = {"device": torch.device("cpu"), "workers": 0}
    with pytest.raises(PlanError, match="other labels"):
        train_fold(paths, tiny.DATASET, plan, plan.configuration(None), 0, TrainingOptions(**options))
    made_with = digest(parse_labels(labels, [1, 2]))
    write_json(record, {**json.loads(record.read_text()), "labels_digest": made_with})
    folder = train_fold(paths, tiny.DATASET, plan, plan.configuration(None), 0, TrainingOptions(**options))
    line = json.loads((folder / "metrics.jsonl").read_text())
    assert set(line["dice"]) == {"whole", "core"}


def test_a_second_training_of_the_fold_touches_nothing(train: Train, tmp_path: Path) -> None:
    folder = train()
    with claimed(folder.parent, folder.name):
        before = {path: path.read_bytes() for path in folder.parent.rglob("*") if path.is_file()}
        for options in ({"overwrite": True}, {"resume": True}, {}):
            with pytest.raises(OutputError, match=r"another process works on fold_0 there .*nothing has been changed"):
                train(**options)
        assert {path: path.read_bytes() for path in folder.parent.rglob("*") if path.is_file()} == before


def test_a_link_in_the_folds_place_is_not_trained_into(train: Train, tmp_path: Path) -> None:
    folder = train()
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    before = sorted((tmp_path / "elsewhere").rglob("*"))
    with pytest.raises(OutputError, match="is a link, and links are not written to"):
        train(overwrite=True)
    assert sorted((tmp_path / "elsewhere").rglob("*")) == before
