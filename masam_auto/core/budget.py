"""How long a training runs: a number of steps or epochs, or a time."""

import re
from dataclasses import dataclass
from typing import Literal

from masam_auto.core.errors import PlanError
from masam_auto.core.plan import TrainingPlan

# A time budget is planned as this many epochs. About 20 really happen: each runs to the end of its last step, and the
# validation and checkpoint between epochs take time too, at most BETWEEN_SHARE of the total.
EPOCHS_OF_A_BUDGET = 25
BETWEEN_SHARE = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """What a training may use: `amount` steps, seconds of wall clock, or CPU-seconds of all its processes."""

    kind: Literal["steps", "wall", "cpu"]
    amount: float

    def progress(self, *, steps: int, wall: float, cpu: float) -> float:
        """Share of the budget used so far, within [0, 1]."""
        used = {"steps": float(steps), "wall": wall, "cpu": cpu}[self.kind]
        return min(used / self.amount, 1.0)

    def ends_epoch(self, now: float, *, begun: float, between: float) -> bool:
        """Whether to end an epoch before its planned steps. Short time budgets thus also have epochs to choose from.

        Budgets of steps and epochs always use the plan's epochs.

        Args:
            now, begun: share of the budget used now, and at the start of the epoch.
            between: share used between the last two epochs, for validation windows and the checkpoint.
        """
        if self.kind == "steps":
            return False
        least = max(1 / EPOCHS_OF_A_BUDGET, between * (1 - BETWEEN_SHARE) / BETWEEN_SHARE)
        return now - begun >= least and 1 - now >= least / 2


FORMS = "1000cpus (CPU-seconds), 600s, 30min, 2h (wall clock), 20epochs or 500steps"


def parse_budget(text: str | None, training: TrainingPlan) -> Budget:
    """Read `--budget`. None gives the plan's own budget or, if that is empty, its number of epochs.

    Budgets of steps and epochs are reproducible bit by bit. With a time budget the learning rate follows the clock, so
    two runs differ.

    Raises:
        PlanError: not one of the known forms.

    Example:
        >>> from masam_auto.core.budget import parse_budget
        >>> parse_budget("2h", plan.training)  # seconds
        Budget(kind='wall', amount=7200.0)
        >>> parse_budget(None, plan.training)  # the plan's epochs, as steps
        Budget(kind='steps', amount=2)
    """
    text = training.budget or None if text is None else text
    if text is None:
        return Budget(kind="steps", amount=training.num_epochs * training.steps_per_epoch)
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(cpus|s|min|h|epochs?|steps?)\s*", text)
    if match is None or float(match[1]) <= 0:
        raise PlanError(f"budget {text!r} is not valid. Give one like {FORMS}.")
    amount, unit = float(match[1]), match[2].rstrip("s") if match[2].startswith(("ep", "st")) else match[2]
    if unit == "cpus":
        return Budget(kind="cpu", amount=amount)
    if unit in ("epoch", "step"):
        steps = amount * (training.steps_per_epoch if unit == "epoch" else 1)
        return Budget(kind="steps", amount=max(1.0, float(round(steps))))
    return Budget(kind="wall", amount=amount * {"s": 1, "min": 60, "h": 3600}[unit])
