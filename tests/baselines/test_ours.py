"""Our own pipeline as a method: which training it takes over, and how it calls masam_train."""

from pathlib import Path
from typing import Any

import pytest
import torch

from masam_auto.baselines import ours
from masam_auto.baselines.compared_method import Method
from masam_auto.baselines.ours import BASELINES
from masam_auto.core.atomic import write_bytes
from masam_auto.core.errors import ModelError
from masam_auto.core.jsonio import write_json
from masam_auto.core.paths import Paths
from masam_auto.core.plan import Plan
from masam_auto.models.checkpoint import LATEST, PREVIOUS, STATE_FILE, TrainingState
from masam_auto.planning.overrides import override
from tests import tiny_training as tiny


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return tiny.write_preprocessed(tmp_path, tiny.make_configuration())  # type: ignore[no-any-return]


def method(paths: Paths, name: str = "ours", budget: str | None = "9steps") -> Method:
    return ours.our_method(name, paths, make_plan(), None, 0, budget=budget, device=torch.device("cpu"))


def make_plan() -> Plan:
    """The tiny plan with an encoder whose parameters can be counted by its name."""
    return override(tiny.make_plan(), ["network.encoder=vit_t"])


def leave_state(paths: Paths, model: str = "masam__axis0", **state: Any) -> Path:
    folder = paths.results / tiny.DATASET / model / "fold_0"
    write_json(folder / LATEST / STATE_FILE, TrainingState(**state))
    return folder


def leave_plan(folder: Path, *changes: str) -> None:
    write_json(folder.parent / "plan.json", override(make_plan(), changes))
    source = folder.parents[3] / "preprocessed" / tiny.DATASET / "dataset.json"
    write_bytes(folder.parent / "dataset.json", source.read_bytes())


@pytest.mark.parametrize(("trained", "asked"), [("8steps", "9steps"), (None, "9steps"), ("9steps", None)])
def test_a_training_of_another_budget_is_not_taken_over(paths: Paths, trained: str | None, asked: str | None) -> None:
    leave_state(paths, budget=trained, finished=True)
    with pytest.raises(ModelError, match=r"was trained with .* but the comparison asks for .* -p NAME"):
        method(paths, budget=asked).train()
    leave_state(paths, "samed__axis0", budget=trained, finished=True)
    with pytest.raises(ModelError, match=r"budget, or remove it to train it again"):  # -p is not for baselines
        method(paths, "samed", budget=asked).train()


def test_a_training_on_other_folds_is_not_taken_over(paths: Paths) -> None:
    folder = leave_state(paths, budget="9steps", finished=True)
    write_json(folder.parent / "splits.json", [{"train": ["a"], "val": ["b"]}])
    with pytest.raises(ModelError, match="was trained on other folds"):
        method(paths).train()


@pytest.mark.parametrize("interrupted", [False, True])
def test_masam_train_is_asked_for_the_rest(paths: Paths, monkeypatch: pytest.MonkeyPatch, interrupted: bool) -> None:
    if interrupted:
        folder = leave_state(paths, "samed__axis0", budget="9steps")
        leave_plan(folder, *BASELINES["samed"].overrides)
    called: list[list[str]] = []

    def fail(words: list[str]) -> int:
        called.append(words)
        return 2

    monkeypatch.setattr(ours, "run_program", fail)
    with pytest.raises(ModelError, match="masam_train failed with exit code 2"):
        method(paths, "samed").train()
    text = " ".join(called[0])
    assert f"-m masam_auto.cli.train {tiny.DATASET} 0 -c axis0 -p samed -device cpu" in text
    assert "--budget 9steps" in text
    assert (" --c" in text.replace(" --checkpoint", "")) == interrupted
    assert ("network.increment=lora" in text) == (not interrupted)


def test_a_training_killed_between_two_checkpoints_is_continued(paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a moment there is only the previous one."""
    folder = leave_state(paths, budget="9steps")
    (folder / LATEST).rename(folder / PREVIOUS)
    called: list[list[str]] = []
    monkeypatch.setattr(ours, "run_program", lambda words: called.append(words) or 2)
    with pytest.raises(ModelError, match="masam_train failed"):
        method(paths).train()
    assert "--c" in called[0]


def test_a_baseline_of_another_plan_is_not_taken_over(paths: Paths) -> None:
    folder = leave_state(paths, "samed__axis0", budget="9steps", finished=True)
    leave_plan(folder, *BASELINES["samed"].overrides)
    assert method(paths, "samed").train() == method(paths, "samed").trained()
    leave_plan(folder, *BASELINES["samed"].overrides, "training.learning_rate=0.5")
    with pytest.raises(ModelError, match="with another plan than this baseline gets"):
        method(paths, "samed").train()


def test_what_a_finished_training_used(paths: Paths) -> None:
    assert method(paths).trained() is None
    used = {"wall_seconds": 3.5, "cpu_seconds": 2.5, "step": 7}
    folder = leave_state(paths, budget="9steps", **used)
    leave_plan(folder)
    assert method(paths).trained() is None, "not finished"
    leave_state(paths, budget="9steps", finished=True, ended="patience is out", **used)
    found = method(paths).trained()
    assert found is not None
    assert (found.seconds, found.cpu_seconds, found.iterations, found.memory_gib) == (3.5, 2.5, 7, 0.0)
    assert found.remarks[-2:] == ("final weights", "ended early: patience is out")
    assert method(paths).train() == found


def test_a_request_names_what_was_asked(paths: Paths) -> None:
    assert method(paths).request == {"budget": "9steps", "model": "masam__axis0", "device": "cpu"}
    assert method(paths, "decoder_only").request["model"] == "decoder_only__axis0"
