"""One update of the weights: the loss of a batch, the check that numbers are finite, and the step.

Weights never become infinite or not-a-number. If the loss is not finite, the training ends with an error that names the
layer where it starts. If the gradients are not finite, the update is left out; too many of these in a row end the
training. Repeating a step in float32 would not help: bf16 has the same range (3.4e38). The cause is a training that
diverges, or an extreme value in an image.
"""

import logging
from collections.abc import Mapping

import numpy as np
import torch

from masam_auto.compute.device import autocast
from masam_auto.core.errors import ModelError
from masam_auto.core.labels import Labels
from masam_auto.core.plan import TrainingPlan
from masam_auto.network.finite import find_nonfinite, nonfinite_gradient
from masam_auto.training.learner import Learner
from masam_auto.training.loss import choose_loss

logger = logging.getLogger(__name__)

# The training ends after so many left-out updates in a row.
LIMIT = 10


def batch_loss(
    learner: Learner, batch: Mapping[str, torch.Tensor], training: TrainingPlan, labels: Labels
) -> torch.Tensor:
    """The loss of one batch, over all processes that share it. Scalar, with its gradient.

    Args:
        learner: whose network computes.
        batch: data (B, N, C, H, W), target (B, N, H, W) and, for box prompts, boxes (B, N, 4).
        training: which loss, its weights, and the precision.
        labels: of the data set.
    """
    together = learner.together
    with autocast(batch["data"].device, training.precision):
        logits = (together.parallel or learner.network)(batch["data"], batch.get("boxes"))
    loss = choose_loss(training.loss)
    return loss(logits, batch["target"], labels, training.loss_weights, together.team_total)


def check_loss(
    loss: torch.Tensor, learner: Learner, batch: Mapping[str, torch.Tensor], training: TrainingPlan, *, step: int
) -> float:
    """The value of a batch's loss, looked at before its gradients are computed.

    Raises:
        ModelError: it is not finite, here or in a process that trains along; the layer where it starts is named.
    """
    value = loss.item()
    if learner.together.world.agree(bool(np.isfinite(value))):
        return value
    network, device = learner.network, batch["data"].device
    with autocast(device, training.precision):
        layer = find_nonfinite(network, lambda: network(batch["data"], batch.get("boxes")))
    what = "not finite in another process" if np.isfinite(value) else str(value)
    where = f"it starts in {layer}" if layer else "every layer's output is finite, the loss itself overflows"
    rate = training.learning_rate
    raise ModelError(
        f"the loss is {what} at step {step}; {where}. The last saved epoch is unharmed. Train with a lower rate "
        f"(`training.learning_rate={rate / 3:.1g}`) or in float32 (`training.precision=float32`); if it happens at "
        "once, look for extreme values in the images (`masam_plan_and_preprocess verify_dataset_integrity`)."
    )


def update(learner: Learner, gradient_clip: float, step: int) -> str | None:
    """One update from the gradients at hand: clip, step, average. `step` counts from 1; clip 0 switches clipping off.

    Returns:
        None, or why the update was left out: gradients that are not finite are dropped, and weights, optimisers and
        average stay as they are.
    """
    learning = [parameter for parameter in learner.network.parameters() if parameter.grad is not None]
    gradients = [parameter.grad for parameter in learning if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients, foreach=True)
    fault = None if bool(torch.isfinite(norm)) else _gradient_fault(learner)
    if (
        fault is None and gradient_clip > 0
    ):  # only now: clipping by a norm that is not-a-number would spoil every gradient
        torch.nn.utils.clip_grads_with_norm_(learning, gradient_clip, norm, foreach=True)
    for optimizer in learner.optimizers:
        if fault is None:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    if fault is None:
        learner.together.average_statistics(learner.network)
        learner.average.update(learner.tensors, step)
    return fault


def count_left_out(before: int, fault: str | None, *, step: int) -> int:
    """Updates left out in a row, up to this one; `before` without it.

    Raises:
        ModelError: there are `LIMIT`.
    """
    if fault is None:
        return 0
    if before + 1 >= LIMIT:
        raise ModelError(
            f"{fault} at step {step}; {LIMIT} steps in a row had to be left out. The last saved epoch is unharmed. "
            "Train with a lower `training.learning_rate`, or with `training.precision=float32`."
        )
    logger.warning("step %s is left out: %s", step, fault)
    return before + 1


def seed_dropout(*numbers: int) -> None:
    """Seed torch's generators by numbers that name one step of one process."""
    torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))


def _gradient_fault(learner: Learner) -> str:
    name = nonfinite_gradient(learner.network)
    return f"the gradient is not finite from {name} backwards" if name else "the gradients' norm overflows float32"
