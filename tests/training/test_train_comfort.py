"""Around the training of a fold: how it ends early, what it starts from, what it records, and a full GPU."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from masam_auto.core.encoders import ENCODERS
from masam_auto.core.errors import ModelError
from masam_auto.core.jsonio import write_json
from masam_auto.core.plan import Plan
from masam_auto.models.checkpoint import BEST, LATEST, load_checkpoint, read_model
from masam_auto.training import train as module
from masam_auto.training import training_job
from masam_auto.training.train import train_fold
from masam_auto.training.training_job import TrainingOptions
from tests import tiny_training as tiny

CPU = torch.device("cpu")
Train = Callable[..., Path]


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """Train fold 0 of a tiny data set in a folder of tmp_path; `labels` and `channels` change the data set."""
    monkeypatch.setattr("masam_auto.training.session.draw_progress", lambda *arguments, **more: None)
    monkeypatch.setitem(ENCODERS, "vit_b", tiny.TINY_SAM)

    def run(
        where: str = "one",
        *,
        plan: Plan | None = None,
        labels: dict[str, int] | None = None,
        sam_seed: int = 0,
        **options: Any,
    ) -> Path:
        plan = plan or tiny.make_plan()
        configuration = plan.configuration(None)
        paths = tiny.write_preprocessed(tmp_path / where, configuration)
        if plan.network.weights == "sam":
            tiny.write_sam_file(paths.weights / "vit_b.safetensors", seed=sam_seed)
        if labels:
            monkeypatch.setattr(training_job, "check_preprocessed", lambda *arguments, **more: None)
            description = {"channel_names": {"0": "MR"}, "labels": labels, "file_ending": ".nii.gz"}
            write_json(paths.preprocessed / tiny.DATASET / "dataset.json", description)
        options = {"device": CPU, "workers": 0, "threads": 1, **options}
        return train_fold(paths, tiny.DATASET, plan, configuration, 0, TrainingOptions(**options))

    return run


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def model(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / LATEST / "model.safetensors")


@pytest.fixture
def falling(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Dice on the validation windows: what is in the list, one after another."""
    values = [0.5, 0.6, 0.4, 0.3, 0.2, 0.1, 0.9, 0.9]

    def judge(*arguments: Any, **more: Any) -> dict[str, float]:
        return {"organ": values.pop(0)}

    monkeypatch.setattr("masam_auto.training.session.judge_windows", judge)
    return values


def test_patience_ends_a_training_as_finished(
    train: Train, falling: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="masam_auto")
    folder = train(plan=tiny.make_plan(num_epochs=8, patience=2))
    assert [line["ended"] is None for line in lines(folder)] == [True, True, True, False]
    assert lines(folder)[-1]["seconds_left"] == 0
    state = load_checkpoint(folder).state
    assert (state.finished, state.epoch, state.best_epoch) == (True, 4, 2)
    assert "finished early, after 4 epochs: no better validation Dice for 2 epochs" in caplog.text
    assert len(falling) == 4


def test_patience_counts_on_over_an_interruption_and_anew_after_an_end(train: Train, falling: list[float]) -> None:
    plan = tiny.make_plan(num_epochs=8, patience=2)
    train(plan=plan, budget="3epochs")
    folder = train(plan=plan, resume=True, budget="8epochs")
    assert load_checkpoint(folder).state.epoch == 4
    train(plan=plan, resume=True)
    assert load_checkpoint(folder).state.epoch == 6
    assert load_checkpoint(folder).state.ended is not None


def test_a_stop_file_ends_the_training_after_the_epoch_and_goes(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = train(budget="1epochs")
    tiny.before_look(monkeypatch, 1, (folder / "stop").touch)
    train(plan=tiny.make_plan(), resume=True, budget="9epochs")
    assert load_checkpoint(folder).state.epoch == 2
    assert load_checkpoint(folder).state.finished
    assert "the file stop asked for it" in lines(folder)[-1]["ended"]
    assert not (folder / "stop").exists()


def test_the_picture_is_drawn_once_before_the_first_epoch(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Path] = []
    monkeypatch.setattr(module, "draw_augmented_windows", lambda folder, *rest, **more: drawn.append(folder))
    folder = train(budget="1epochs")
    train(resume=True, budget="2epochs")
    assert drawn == [folder]


def test_a_full_gpu_is_explained(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(loss: torch.Tensor, *arguments: Any, **options: Any) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(module, "check_loss", full)
    with pytest.raises(ModelError, match=r"The plan's estimate is .* GiB.*axis0\.batch_size=1"):
        train()


def test_it_records_where_it_is_asked_to(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    session = SimpleNamespace(id="x", log=lambda values, step: seen.append(step), finish=lambda: seen.append(-1))
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **options: session))  # type: ignore[arg-type]
    train(log_to=["wandb"])
    assert seen == [0, 1, -1]


def test_a_missing_package_is_said_before_a_training_is_removed(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = train(budget="1steps")
    monkeypatch.setitem(sys.modules, "mlflow", None)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="needs the package mlflow"):
        train(log_to=["mlflow"], overwrite=True)
    assert (folder / LATEST).is_dir()


def test_it_starts_from_a_trained_model(train: Train, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="masam_auto")
    first = train("one")
    still = tiny.make_plan(learning_rate=1e-30, weight_decay=0.0, weight_average=0.0, seed=9)
    second = train("two", plan=still, pretrained_weights=first / LATEST, budget="1steps")
    given, taken = model(first), model(second)
    parameters = [name for name in given if "running" not in name and "num_batches" not in name]
    assert all(torch.allclose(given[name], taken[name], atol=1e-6) for name in parameters)
    assert f"{len(given)} of {len(given)} learned tensors" in caplog.text
    assert read_model(second / LATEST)[0].pretrained_weights == str(first / LATEST)
    train("two", plan=still, resume=True, budget="2steps")
    assert read_model(second / LATEST)[0].pretrained_weights == str(first / LATEST)


@pytest.mark.parametrize("decoder", ["multiscale", "progressive"])
def test_other_classes_start_anew_and_are_named(train: Train, caplog: pytest.LogCaptureFixture, decoder: str) -> None:
    caplog.set_level("INFO", logger="masam_auto")
    plan = tiny.make_sam_plan(decoder=decoder)
    first = train("one", plan=plan, budget="2steps")
    more = {**tiny.LABELS, "cyst": 3}
    still = replace(plan, training=replace(plan.training, learning_rate=1e-30, weight_average=0.0, weight_decay=0.0))
    second = train("two", plan=still, labels=more, pretrained_weights=first, budget="1steps")
    fresh = train("three", plan=still, labels=more, budget="1steps")
    best, taken, anew = load_file(first / BEST / "model.safetensors"), model(second), model(fresh)
    of_classes = ("mask_decoder.mask_tokens", "mask_decoder.output_hyper", "mask_decoder.iou_pred", "mask_decoder.head")
    named = {name for name in taken if name.startswith(of_classes)}
    assert 0 < len(named) < len(taken)
    for name in taken:
        assert torch.allclose(taken[name], (anew if name in named else best)[name], atol=1e-6), name
    assert f"{len(named)} start from random values" in caplog.text
    assert "because the classes differ" in caplog.text


def test_another_canvas_resizes_the_position_tables(train: Train, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="masam_auto")
    plan = tiny.make_sam_plan(weights="none", trained="all")
    first = train("one", plan=plan, budget="1steps")
    larger = tiny.make_sam_plan(tiny.make_configuration(canvas=(48, 32)), weights="none", trained="all")
    train("two", plan=larger, pretrained_weights=first, budget="1steps")
    assert "2 position tables are resized" in caplog.text
    assert "start from random values" not in caplog.text


def test_what_does_not_fit_is_one_clear_line(train: Train) -> None:
    sam = train("sam", plan=tiny.make_sam_plan(), budget="1steps")
    scratch_plan = tiny.make_sam_plan(weights="none", trained="all")
    scratch = train("scratch", plan=scratch_plan, budget="1steps")
    for plan, given, text, options in (
        (tiny.make_plan(), sam, "has the encoder vit_b, the plan has tiny", {}),
        (tiny.make_sam_plan(), scratch, "learned all of its encoder.*trained=all` `network.weights=none`", {}),
        (
            tiny.make_sam_plan(),
            sam,
            "stands on the SAM weights .*Give that file with `sam_checkpoint`",
            {"sam_seed": 1},
        ),
        (scratch_plan, sam, "but the plan starts from scratch", {}),
        (scratch_plan, sam.parent, "give one of them: fold_0", {}),
        (scratch_plan, sam / "nowhere", "holds no trained model", {}),
    ):
        with pytest.raises(ModelError, match=text):
            train("other", plan=plan, pretrained_weights=given, budget="1steps", **options)


def test_other_channels_are_refused(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    first = train("one", budget="1steps")
    header, tensors = read_model(first / LATEST)
    monkeypatch.setattr(
        "masam_auto.training.pretrained.read_model", lambda folder: (replace(header, in_channels=4), tensors)
    )
    with pytest.raises(ModelError, match="was trained with 4 input channels, the data set has 1"):
        train("two", pretrained_weights=first, budget="1steps")
