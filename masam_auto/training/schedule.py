"""The share of the full learning rate along a training."""

import math
from collections.abc import Callable

from masam_auto.core.plan import TrainingPlan
from masam_auto.core.plugins import find_entry

Schedule = Callable[[float, float], float]


def poly(progress: float, exponent: float) -> float:
    """Polynomial decay (1 - progress) ** exponent. Source: reference MA-SAM, exponent 7; nnU-Net uses 0.9."""
    return (1 - progress) ** exponent


def cosine(progress: float, exponent: float) -> float:
    """Half a cosine from 1 to 0; `exponent` is not used."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def constant(progress: float, exponent: float) -> float:
    """Always 1; `exponent` is not used."""
    return 1.0


SCHEDULES: dict[str, Schedule] = {"poly": poly, "cosine": cosine, "constant": constant}


def rate_share(training: TrainingPlan, progress: float) -> float:
    """The share of the full learning rate after a share `progress` of the training, both within [0, 1].

    A linear warm-up comes first. Its share of the training is that of `warmup_steps` in the planned number of steps, so
    a training shortened by a budget also has a shorter warm-up.

    Raises:
        PlanError: the plan's schedule is unknown.

    Example:
        >>> from dataclasses import replace
        >>> from masam_auto.training.schedule import rate_share
        >>> training = replace(plan.training, warmup_steps=0, schedule="cosine")
        >>> [round(rate_share(training, progress), 2) for progress in (0.0, 0.5, 1.0)]
        [1.0, 0.5, 0.0]
    """
    shape = find_entry("schedules", training.schedule, SCHEDULES, field="training.schedule")
    progress = min(max(progress, 0.0), 1.0)
    planned = training.num_epochs * training.steps_per_epoch
    warmup = min(training.warmup_steps / planned, 1.0)
    if progress < warmup:
        return (progress + 1 / planned) / (warmup + 1 / planned)
    left = (progress - warmup) / (1 - warmup) if warmup < 1 else 0.0
    return shape(left, training.schedule_exponent)
