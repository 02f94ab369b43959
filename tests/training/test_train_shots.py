"""Few-shot training: the chosen cases are the model's own, also when it is continued."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from masam_auto.core.errors import ModelError, OutputError
from masam_auto.core.jsonio import write_json
from masam_auto.core.plan import Plan
from masam_auto.models.checkpoint import LATEST
from masam_auto.training.train import train_fold
from masam_auto.training.training_job import TrainingOptions
from tests import tiny_training as tiny

Train = Callable[..., Path]


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """Train fold 0 of a tiny data set with six cases, without pictures."""
    tiny.without_pictures(monkeypatch)

    def run(where: str = "one", *, plan: Plan | None = None, fold: int | str = 0, **options: Any) -> Path:
        plan = plan or tiny.make_plan(num_epochs=1)
        configuration = plan.configuration(None)
        paths = tiny.write_preprocessed(tmp_path / where, configuration, cases=6)
        folds = [{"train": list("abcde"), "val": ["f"]}, {"train": list("bcdef"), "val": ["a"]}]
        write_json(paths.preprocessed / tiny.DATASET / "splits.json", folds)
        options = {"device": torch.device("cpu"), "workers": 0, "threads": 1, **options}
        return train_fold(paths, tiny.DATASET, plan, configuration, fold, TrainingOptions(**options))

    return run


def fold_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder.parent / "splits.json").read_text())[0]


def test_few_cases_train_and_the_model_says_which(train: Train, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="masam_auto")
    folder = train(shots=2)
    own = fold_of(folder)
    assert (len(own["train"]), own["val"], own["shots"]) == (2, ["f"], 2)
    assert "2 training and 1 validation cases" in (folder / "training.log").read_text()
    others = {
        tuple(fold_of(train(f"seed{seed}", plan=tiny.make_plan(num_epochs=1, seed=seed), shots=2))["train"])
        for seed in range(1, 5)
    }
    assert len(others) > 1


def test_resumed_equals_uninterrupted(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = tiny.make_plan(num_epochs=2, steps_per_epoch=2)
    whole = train("whole", plan=plan, shots=1)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        tiny.before_step(patch, 3, tiny.interrupt)
        train("parts", plan=plan, shots=1)
    parts = train("parts", plan=plan, resume=True)
    assert fold_of(whole) == fold_of(parts)
    tensors = [load_file(folder / LATEST / "model.safetensors") for folder in (whole, parts, train("all", plan=plan))]
    assert all(torch.equal(tensor, tensors[1][name]) for name, tensor in tensors[0].items())
    assert any(not torch.equal(tensor, tensors[2][name]) for name, tensor in tensors[0].items())


def test_it_stays_apart_from_other_trainings(train: Train) -> None:
    folder = train()
    with pytest.raises(OutputError, match="holds a training already"):
        train(shots=2)
    with pytest.raises(ModelError, match=r"fold_0 was trained without `shots`.*another name with `plan_name`"):
        train(fold=1, shots=2)
    assert "shots" not in fold_of(folder)
    train(shots=2, overwrite=True)
    assert fold_of(folder)["shots"] == 2
    for fold in (1, "all"):
        with pytest.raises(ModelError, match="fold_0 was trained with `shots=2`"):
            train(fold=fold)
    assert train(fold=1, shots=2).name == "fold_1"
