"""Steps whose numbers are not finite: computed again in float32, left out, or the end of the training.

The weights never take in a value that is not finite: a loss is looked at before its gradients are computed, and the
gradients' norm before they are used. bf16 reaches as far as float32 (3.4e38), so that what overflows in one nearly always
overflows in the other too; only what lies within half a per cent of that limit, or the difference of two such values,
does not. What usually makes numbers infinite is a training that diverges, or an extreme value in an image.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from masam_auto.core.errors import ModelError
from masam_auto.network.build import frozen_in_float32
from masam_auto.network.finite import find_nonfinite, keep_buffers, nonfinite_gradient
from masam_auto.network.masam import MaSam

logger = logging.getLogger(__name__)

# So many steps in a row are no accident. The counts start anew with each epoch, so that a resumed training counts alike.
LIMIT = 10


@dataclass(kw_only=True)
class Overflows:
    """What one epoch has seen: `rescued` and `skipped` are how many steps in a row, up to the present one.

    `agree` tells whether something holds in all processes that train together.
    """

    rescued: int = 0
    skipped: int = 0
    agree: Callable[[bool], bool] = bool

    def backward(
        self,
        network: MaSam,
        loss: Callable[[str], torch.Tensor],
        *,
        precision: str,
        step: int,
        rate: float,
        alone: Callable[[str], torch.Tensor] | None = None,
    ) -> float:
        """Add the gradients of one batch to those at hand.

        Where the loss in bf16 is not finite, it is computed again in float32, with a warning in the log.

        Args:
            network: what learns.
            loss: computes the loss in a precision, "bf16" or "float32"; in the same way each time but for dropout.
            precision: the one that is used: what the plan wants where the device computes in it.
            step, rate: for messages.
            alone: computes the loss of what is in this process, without the others; `loss` where None.

        Returns:
            the loss.

        Raises:
            ModelError: the loss is not finite in float32 either, or `LIMIT` times in a row only there. The layer is
                named; weights and running statistics are as before the batch.
        """
        restore = keep_buffers(network)
        first = loss(precision)
        value = first.item()
        if self.agree(math.isfinite(value)):
            first.backward()
            self.rescued = 0
            return value
        restore()
        alone = alone or loss
        if precision != "float32":
            culprit = _culprit(network, alone, precision)
            restore()
            with frozen_in_float32(network):
                again = loss("float32")
                if self.agree(bool(torch.isfinite(again))):
                    again.backward()
                    self._count_rescue(step, culprit)
                    return again.item()
                restore()
                culprit = _culprit(network, alone, "float32")
        else:
            culprit = _culprit(network, alone, "float32")
        restore()
        raise ModelError(
            f"the loss is {'not finite in another process' if math.isfinite(value) else value} at step {step} (learning rate {rate:.2g}), also in float32; {culprit}. The last "
            f"saved epoch is unharmed. Train with a lower rate (--set training.learning_rate={rate / 3:.1g}); if it "
            "happens at once, look for extreme values in the images (masam_plan_and_preprocess "
            "--verify_dataset_integrity)."
        )

    def may_update(self, network: MaSam, norm: torch.Tensor, step: int) -> bool:
        """Whether the gradients, of that norm, may be used: not where they are not finite. Then the step is left out.

        Raises:
            ModelError: `LIMIT` steps in a row.
        """
        if bool(torch.isfinite(norm)):
            self.skipped = 0
            return True
        name = nonfinite_gradient(network)
        what = (
            f"the gradient is not finite from {name} backwards"
            if name
            else "the gradients' norm is beyond float32's range"
        )
        self.skipped += 1
        if self.skipped >= LIMIT:
            raise ModelError(
                f"{what} at step {step}; {LIMIT} steps in a row had to be left out. "
                "The last saved epoch is unharmed. Train with a lower --set training.learning_rate, or with "
                "--set training.precision=float32."
            )
        logger.warning("step %s is left out: %s", step, what)
        return False

    def _count_rescue(self, step: int, culprit: str) -> None:
        self.rescued += 1
        if self.rescued >= LIMIT:
            raise ModelError(
                f"the loss is finite in float32 but not in bf16, in {LIMIT} batches in a row up to step {step}; "
                f"{culprit}. The last saved epoch is unharmed. Train with --set training.precision=float32."
            )
        logger.warning(
            "step %s is computed in float32, because in bf16 the loss is not finite: %s. If this repeats, train with "
            "--set training.precision=float32.", step, culprit,
        )  # fmt: skip


def _culprit(network: MaSam, loss: Callable[[str], torch.Tensor], precision: str) -> str:
    found = find_nonfinite(network, lambda: loss(precision))
    return f"it starts in {found}" if found else "every layer's output is finite, the loss itself overflows"
