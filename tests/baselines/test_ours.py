"""Our own pipeline as a method: which training it takes over, and how it calls masam_train."""

from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from masam_auto.baselines import ours
from masam_auto.baselines.method import Method
from masam_auto.core.errors import ModelError
from masam_auto.core.jsonio import write_json
from masam_auto.core.paths import Paths
from masam_auto.learning.checkpoint import LATEST, STATE_FILE, TrainingState


@pytest.fixture
def paths(tmp_path: Path, tiny: ModuleType) -> Paths:
    return tiny.write_preprocessed(tmp_path, tiny.make_configuration())  # type: ignore[no-any-return]


def method(paths: Paths, tiny: ModuleType, name: str = "ours", budget: str | None = "9steps") -> Method:
    return ours.our_method(name, paths, tiny.make_plan(), None, 0, budget=budget, device=torch.device("cpu"))


def leave_state(paths: Paths, tiny: ModuleType, model: str = "masam__axis0", **state: Any) -> Path:
    folder = paths.results / tiny.DATASET / model / "fold_0"
    write_json(folder / LATEST / STATE_FILE, TrainingState(**state))
    return folder


@pytest.mark.parametrize(("trained", "asked"), [("8steps", "9steps"), (None, "9steps"), ("9steps", None)])
def test_a_training_of_another_budget_is_not_taken_over(
    paths: Paths, tiny: ModuleType, trained: str | None, asked: str | None
) -> None:
    leave_state(paths, tiny, budget=trained, finished=True)
    with pytest.raises(ModelError, match=r"was trained with .* but the comparison asks for .* -p NAME"):
        method(paths, tiny, budget=asked).train()


def test_a_training_on_other_folds_is_not_taken_over(paths: Paths, tiny: ModuleType) -> None:
    folder = leave_state(paths, tiny, budget="9steps", finished=True)
    write_json(folder.parent / "splits.json", [{"train": ["a"], "val": ["b"]}])
    with pytest.raises(ModelError, match="was trained on other folds"):
        method(paths, tiny).train()


@pytest.mark.parametrize("interrupted", [False, True])
def test_masam_train_is_asked_for_the_rest(
    paths: Paths, tiny: ModuleType, monkeypatch: pytest.MonkeyPatch, interrupted: bool
) -> None:
    if interrupted:
        leave_state(paths, tiny, "samed__axis0", budget="9steps")
    called: list[list[str]] = []

    def fail(words: list[str], **_: Any) -> SimpleNamespace:
        called.append(words)
        return SimpleNamespace(returncode=2)

    monkeypatch.setattr(ours.subprocess, "run", fail)
    with pytest.raises(ModelError, match="masam_train ended with exit code 2"):
        method(paths, tiny, "samed").train()
    text = " ".join(called[0])
    assert f"-m masam_auto.cli.train {tiny.DATASET} 0 -c axis0 -p samed -device cpu" in text
    assert "--budget 9steps" in text
    assert (" --c" in text.replace(" --checkpoint", "")) == interrupted
    assert ("network.increment=lora" in text) == (not interrupted)


def test_a_request_names_what_was_asked(paths: Paths, tiny: ModuleType) -> None:
    assert method(paths, tiny).request == {"budget": "9steps", "model": "masam__axis0", "device": "cpu"}
    assert method(paths, tiny, "decoder_only").request["model"] == "decoder_only__axis0"
