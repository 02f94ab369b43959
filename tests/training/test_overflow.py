"""Steps that overflow: computed again, left out, or ended with the layer named; never learned from."""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from masam_auto.core.errors import ModelError
from masam_auto.core.labels import parse_labels
from masam_auto.models.checkpoint import EpochSoFar
from masam_auto.network.build import trainable_state_dict
from masam_auto.training import epoch as module
from masam_auto.training import overflow
from masam_auto.training.epoch import Learner, train_epoch
from masam_auto.training.optimizer import build_optimizers
from masam_auto.training.weight_average import WeightAverage
from tests import tiny_training as tiny

LABELS = parse_labels({"background": 0, "organ": 1, "lesion": 2}, None)
STEPS = 4
Change = Callable[[torch.Tensor], torch.Tensor]


@pytest.fixture
def bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute in bf16, whatever this machine's processor would choose."""

    def autocast(device: torch.device, precision: str) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")

    monkeypatch.setattr(module, "computes_in_bf16", lambda device: True)
    monkeypatch.setattr(module, "autocast", autocast)


class Trial:
    """A tiny network in training whose decoder's output is changed in the forward passes of chosen numbers."""

    def __init__(self, *training: Any) -> None:
        self.plan = tiny.make_plan(**{"steps_per_epoch": STEPS, "precision": "bf16", **training})
        network = tiny.build_tiny(self.plan.network, canvas=(16, 16), in_channels=1, num_outputs=3, seed=2)
        tensors = trainable_state_dict(network)
        self.learner = Learner(
            network=network,
            tensors=tensors,
            optimizers=build_optimizers(network, self.plan.training),
            average=WeightAverage(tensors, decay=self.plan.training.weight_average),
        )
        self.passes = 0

    def disturb(self, change: Change, passes: range) -> None:
        """Change the output of the decoder's head in these forward passes."""

        def hook(layer: torch.nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
            self.passes += 1
            return change(output) if self.passes - 1 in passes else output

        self.learner.network.mask_decoder.head.register_forward_hook(hook)

    def run(self, before_step: Callable[[], None] = lambda: None, *, epoch: int = 0) -> EpochSoFar:
        def ask(step: int) -> tuple[float, bool]:
            before_step()
            return step / 100, False

        result, stopped = train_epoch(
            self.learner,
            batches(),
            self.plan.training,
            next(iter(self.plan.configurations.values())),
            LABELS,
            epoch=epoch,
            first_step=epoch * STEPS,
            ask=ask,
        )
        assert not stopped
        return result

    def state(self) -> dict[str, torch.Tensor]:
        """All that a checkpoint would hold of the weights."""
        average = {f"average.{name}": value for name, value in self.learner.average.tensors.items()}
        return {name: value.clone() for name, value in {**self.learner.network.state_dict(), **average}.items()}


def batches() -> Iterator[dict[str, np.ndarray]]:
    generator = np.random.default_rng(0)
    while True:
        target = generator.integers(0, 3, (2, 3, 16, 16)).astype(np.int16)
        yield {"data": target[:, :, None].astype(np.float32), "target": target}


def beyond_bf16(output: torch.Tensor) -> torch.Tensor:
    """Infinite minus infinite in bf16, which ends at 3.39e38; nothing at all in float32, which ends at 3.40e38."""
    large = torch.full((), 3.4e38).to(output.dtype)
    return output + (large - large)


def infinite_gradient(output: torch.Tensor) -> torch.Tensor:
    """The same numbers, but their gradient is infinite."""
    output.register_hook(lambda gradient: gradient * float("inf"))
    return output


def test_a_step_that_overflows_in_bf16_is_computed_in_float32(bf16, caplog):
    trial = Trial()
    trial.disturb(beyond_bf16, range(2, 4))  # of the third step: bf16, then the search for the layer
    with caplog.at_level(logging.WARNING):
        result = trial.run()
    assert result.steps == STEPS and np.isfinite(result.losses).all()
    assert all(value.isfinite().all() for value in trial.state().values())
    (record,) = caplog.records
    assert record.message.startswith(
        "step 2 is computed in float32, because in bf16 the loss is not finite: it starts in mask_decoder.head (Conv2d): "
    )
    assert "training.precision=float32" in record.message


def test_a_rescued_training_is_the_same_each_time(bf16):
    def run() -> dict[str, torch.Tensor]:
        trial = Trial()
        trial.disturb(beyond_bf16, range(2, 4))
        trial.run()
        return trial.state()

    first, second = run(), run()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_going_on_after_a_rescue_equals_never_having_stopped(bf16):
    whole, first = Trial(), Trial()
    for trial in (whole, first):
        trial.disturb(beyond_bf16, range(3, 5))  # of the last step of the first epoch
        trial.run()
    later = Trial()
    later.learner.network.load_state_dict(first.learner.network.state_dict())
    later.learner.average.tensors.update({name: v.clone() for name, v in first.learner.average.tensors.items()})
    for new, old in zip(later.learner.optimizers, first.learner.optimizers, strict=True):
        new.load_state_dict(old.state_dict())
    for trial in (whole, later):
        trial.run(epoch=1)
    expected = whole.state()
    assert all(torch.equal(value, expected[name]) for name, value in later.state().items())


@pytest.mark.parametrize("precision", ["bf16", "float32"])
def test_what_overflows_in_float32_too_ends_the_training_unharmed(bf16, precision):
    trial = Trial(precision=precision)
    before = trial.state()
    trial.disturb(lambda output: output * float("nan"), range(9))
    with pytest.raises(
        ModelError, match=r"^the loss is nan at step 0 .* also in float32; it starts in mask_decoder\.head \(Conv2d\)"
    ):
        trial.run()
    assert all(torch.equal(value, before[name]) for name, value in trial.state().items())


def test_an_extreme_image_is_named_and_leaves_no_trace_in_the_statistics(bf16, monkeypatch):
    trial = Trial()
    before = trial.state()
    assert any("running_mean" in name for name in before)
    good = batches()

    def spoilt() -> Iterator[dict[str, np.ndarray]]:
        for batch in good:
            batch["data"][0, 1, 0, 3, 3] = np.inf
            yield batch

    monkeypatch.setitem(globals(), "batches", spoilt)
    with pytest.raises(ModelError, match=r"it starts in the network's input: 1 of 1536 values are not finite"):
        trial.run()
    assert all(torch.equal(value, before[name]) for name, value in trial.state().items())


def test_a_loss_that_alone_overflows_is_told_apart(monkeypatch):
    trial = Trial(precision="float32")
    monkeypatch.setattr(module, "choose_loss", lambda name: lambda logits, *rest: logits.sum() * float("inf"))
    with pytest.raises(ModelError, match="every layer's output is finite, the loss itself overflows"):
        trial.run()


@pytest.mark.parametrize("clip", [1.0, 0.0])
def test_a_step_whose_gradients_overflow_is_left_out(caplog, clip):
    trial = Trial(precision="float32", gradient_clip=clip)
    trial.disturb(infinite_gradient, range(STEPS - 1, STEPS))
    before_each: list[dict[str, torch.Tensor]] = []
    with caplog.at_level(logging.WARNING):
        result = trial.run(lambda: before_each.append(trial.state()))
    assert result.steps == STEPS and np.isfinite(result.losses).all()
    assert "step 3 is left out: the gradient is not finite from mask_decoder.head.bias backwards" in caplog.text
    kept = {name for name, _ in trial.learner.network.named_parameters()}
    for name, value in trial.state().items():
        if name in kept or name.startswith("average."):
            assert torch.equal(value, before_each[3][name]), name
    assert any(not torch.equal(before_each[3][name], before_each[2][name]) for name in kept)


def test_a_gradient_that_is_no_number_is_named_where_it_starts(caplog):
    trial = Trial(precision="float32")
    name, parameter = next(iter(trial.learner.network.named_parameters()))
    parameter.register_hook(lambda gradient: gradient * float("nan"))
    with caplog.at_level(logging.WARNING):
        trial.run()
    assert f"step 0 is left out: the gradient is not finite from {name} backwards" in caplog.text


def test_gradients_that_stay_infinite_end_the_training_before_the_weights_are_spoilt(monkeypatch):
    monkeypatch.setattr(overflow, "LIMIT", 3)
    trial = Trial(precision="float32")
    weights = {name: p.detach().clone() for name, p in trial.learner.network.named_parameters()}
    trial.disturb(infinite_gradient, range(9))
    with pytest.raises(
        ModelError,
        match=r"^the gradient is not finite from mask_decoder\.head\.bias backwards at step 2; 3 steps in a row",
    ):
        trial.run()
    assert all(torch.equal(p, weights[name]) for name, p in trial.learner.network.named_parameters())


def test_overflows_in_bf16_that_do_not_stop_end_the_training(bf16, monkeypatch):
    monkeypatch.setattr(overflow, "LIMIT", 3)
    trial = Trial()
    trial.disturb(beyond_bf16, range(99))
    with pytest.raises(
        ModelError, match=r"finite in float32 but not in bf16, in 3 batches in a row up to step 2; .*precision=float32"
    ):
        trial.run()


def test_counts_start_anew_after_a_good_step():
    overflows = overflow.Overflows(rescued=overflow.LIMIT - 1, skipped=overflow.LIMIT - 1)
    network: Any = torch.nn.Linear(1, 1)
    overflows.backward(network, lambda precision: network(torch.ones(1)).sum(), precision="bf16", step=0, rate=1e-3)
    assert overflows.rescued == 0
    assert overflows.may_update(network, torch.tensor(1.0), 0)
    assert overflows.skipped == 0


def test_a_norm_beyond_float32_is_no_layers_fault():
    network: Any = torch.nn.Linear(2, 1)
    network.weight.grad = torch.full((1, 2), 3e38)
    overflows = overflow.Overflows()
    norm = torch.nn.utils.get_total_norm([network.weight.grad])
    assert not overflows.may_update(network, norm, 0)
    assert overflows.skipped == 1
