"""Updates whose numbers overflow: left out, or the end of the training with the layer named; never learned from."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from masam_auto.core.errors import ModelError
from masam_auto.core.plan import Plan
from masam_auto.formats.storage import array_files, open_array, write_array
from masam_auto.models.checkpoint import LATEST, load_checkpoint
from masam_auto.training import update as module
from masam_auto.training.learner import Learner
from masam_auto.training.loss import LOSSES, ce_dice
from masam_auto.training.optimizer import build_optimizers
from masam_auto.training.train import train_fold
from masam_auto.training.training_job import TrainingOptions
from masam_auto.training.update import LIMIT, count_left_out, update
from masam_auto.training.weight_average import WeightAverage
from tests import tiny_training as tiny

Change = Callable[[torch.Tensor], torch.Tensor]
STEPS = 4


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Train a tiny network with a loss whose value is changed in the steps of chosen numbers."""
    tiny.without_pictures(monkeypatch)

    def run(
        where: str = "one",
        *,
        change: Change = lambda loss: loss,
        steps: range = range(0),
        image: float = 0.0,
        **plan: Any,
    ) -> Path:
        calls: list[None] = []

        def disturbed(logits: torch.Tensor, *rest: Any) -> torch.Tensor:
            calls.append(None)
            here = len(calls) - 2 in steps  # the first call tries the loss out
            return ce_dice(change(logits) if here else logits, *rest)

        monkeypatch.setitem(LOSSES, "disturbed", disturbed)
        settings: Plan = tiny.make_plan(**{"num_epochs": 1, "steps_per_epoch": STEPS, "loss": "disturbed", **plan})
        configuration = settings.configuration(None)
        paths = tiny.write_preprocessed(tmp_path / where, configuration)
        if image:
            for case in "abcd":
                file = array_files(paths.configuration_folder(tiny.DATASET, configuration.name), case).image
                write_array(file, np.full(open_array(file).shape, image, np.float32))
        options = TrainingOptions(device=torch.device("cpu"), workers=0, threads=1)
        return train_fold(paths, tiny.DATASET, settings, configuration, 0, options)

    return run


def infinite_gradient(logits: torch.Tensor) -> torch.Tensor:
    """The same numbers, but their gradient is infinite."""
    same = logits * 1.0
    same.register_hook(lambda gradient: gradient * float("inf"))
    return same


def test_a_loss_that_is_not_finite_ends_the_training_and_saves_nothing_of_it(train, tmp_path):
    with pytest.raises(
        ModelError,
        match=r"^the loss is nan at step 2; every layer's output is finite, the loss itself overflows\. The last saved "
        "epoch",
    ):
        train(change=lambda logits: logits * float("nan"), steps=range(2, 3))
    (folder,) = tmp_path.rglob("fold_0")
    assert not (folder / LATEST).exists()


def test_an_extreme_image_is_named(train):
    with pytest.raises(ModelError, match=r"^the loss is nan at step 0; it starts in the network's input: "):
        train(image=float("inf"))


def test_a_step_whose_gradients_overflow_is_left_out(train, caplog):
    with caplog.at_level(logging.WARNING, logger="masam_auto"):
        left_out = train("one", change=infinite_gradient, steps=range(STEPS - 1, STEPS), schedule="constant")
    assert "step 3 is left out: the gradient is not finite from mask_decoder.head.bias backwards" in caplog.text
    assert load_checkpoint(left_out).state.step == STEPS
    expected = train("two", steps_per_epoch=STEPS - 1, schedule="constant")
    found, wanted = (load_file(folder / LATEST / "training.safetensors") for folder in (left_out, expected))
    learned = [name for name in wanted if "running" not in name and "num_batches" not in name]
    assert [name for name in learned if not torch.equal(found[name], wanted[name])] == []


def test_gradients_that_stay_infinite_end_the_training(train, monkeypatch):
    monkeypatch.setattr(module, "LIMIT", 3)
    with pytest.raises(
        ModelError,
        match=r"^the gradient is not finite from mask_decoder\.head\.bias backwards at step 2; 3 steps in a row",
    ):
        train(change=infinite_gradient, steps=range(9))


def make_learner(network: torch.nn.Module, plan: Plan) -> Learner:
    tensors = dict(network.named_parameters())
    return Learner(
        network=network,  # type: ignore[arg-type]
        tensors={name: value.detach() for name, value in tensors.items()},
        optimizers=build_optimizers(network, plan.training),
        average=WeightAverage(tensors, decay=0.5),
    )


@pytest.mark.parametrize("clip", [1.0, 0.0])
@pytest.mark.parametrize(
    ("gradient", "fault"),
    [
        (float("nan"), "the gradient is not finite from weight backwards"),
        (3e38, "the gradients' norm overflows float32"),
    ],
)
def test_nothing_is_taken_in_of_gradients_that_are_not_finite(gradient, fault, clip):
    network = torch.nn.Linear(2, 1, bias=False)
    learner = make_learner(network, replace(tiny.make_plan()))
    before = network.weight.detach().clone()
    network.weight.grad = torch.full((1, 2), gradient)
    assert update(learner, clip, 1) == fault
    assert torch.equal(network.weight, before)
    assert network.weight.grad is None
    network.weight.grad = torch.ones(1, 2)
    assert update(learner, clip, 1) is None
    assert not torch.equal(network.weight, before)


def test_what_was_left_out_is_counted_from_zero_after_a_good_step():
    assert count_left_out(LIMIT - 1, None, step=7) == 0
    assert count_left_out(2, "a fault", step=7) == 3
    with pytest.raises(ModelError, match=f"a fault at step 7; {LIMIT} steps in a row"):
        count_left_out(LIMIT - 1, "a fault", step=7)
