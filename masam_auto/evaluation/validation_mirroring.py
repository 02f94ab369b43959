"""Decide whether a validation averages over flips, which multiply its cost, and read how earlier ones did."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from masam_auto.core.budget import parse_budget
from masam_auto.core.jsonio import decode, read_json, read_plain
from masam_auto.core.plan import Configuration, Plan
from masam_auto.models.checkpoint import LATEST, STATE_FILE, TrainingState
from masam_auto.training.progress import duration

RECORD_NAME = "predicted_with.json"
# No flips if validating all cases with them would take more than this share of the training's time.
MIRRORING_SHARE = 0.2


def read_record(output: Path) -> dict[str, Any]:
    """How a fold was validated, from predicted_with.json; empty if there is none. Raises PlanError.

    Older versions did not write "mirror". They followed the plan.
    """
    file = output / RECORD_NAME
    if not file.is_file():
        return {}
    return decode(read_plain(file, what="record of the validation"), dict[str, Any], where=str(file))


def _known_mirroring(output: Path, checkpoint: Path) -> tuple[bool, str] | None:
    """How this checkpoint was validated before, or None."""
    own, epoch = read_record(output), read_plain(checkpoint, what="checkpoint").get("epoch")
    if (own.get("checkpoint"), own.get("epoch")) == (checkpoint.parent.name, epoch):
        return own.get("mirror", True), own.get("why", "as before")
    return None


def _mirroring_of_other_folds(output: Path) -> tuple[bool, str] | None:
    """How the model's other folds were validated, so that all scores are comparable. None if they differ."""
    folds = sorted(output.parents[1].glob(f"fold_*/validation/{RECORD_NAME}"))
    others = {file.parents[1].name: read_record(file.parent).get("mirror", True) for file in folds}
    others.pop(output.parent.name, None)
    if len(set(others.values())) != 1:
        return None
    return next(iter(others.values())), f"as {', '.join(others)}, so that the folds' scores can be compared"


def choose_validation_mirroring(
    plan: Plan,
    configuration: Configuration,
    output: Path,
    checkpoint: Path,
    sizes: Mapping[str, int],
    *,
    asked: bool | None,
    predict: Callable[[str], object],
    processes: int = 1,
) -> tuple[bool, str]:
    """Decide whether to average over the flips that the configuration allows. Returns the decision and the reason.

    A checkpoint is validated as it was before. A training by steps or epochs is reproducible, so its validation follows
    the plan. After a training by time, the cost is measured for the first fold, and the other folds do the same.

    Args:
        plan, configuration: of the model.
        output: fold_K/validation.
        checkpoint: checkpoint.json of the predicting weights.
        sizes: identifier -> voxels of the preprocessed cases.
        asked: what the user wants; None applies the rules above.
        predict: predicts a case without flips, to time it.
        processes: number of processes that share the cases.
    """
    if asked is not None:
        return asked, "as asked for"
    flips = 2 ** sum(axis > 0 or configuration.window > 1 for axis in configuration.mirror_axes)
    if not plan.inference.mirror or flips == 1:
        return plan.inference.mirror, "as planned"
    if (known := _known_mirroring(output, checkpoint)) is not None:
        return known
    file = output.parent / LATEST / STATE_FILE
    state = read_json(file, TrainingState, what="checkpoint") if file.is_file() else TrainingState()
    if parse_budget(state.budget, plan.training).kind == "steps" or not state.wall_seconds or not sizes:
        return True, "as planned"
    if (others := _mirroring_of_other_folds(output)) is not None:
        return others
    timed = sorted(sizes, key=lambda name: (sizes[name], name))[len(sizes) // 2]
    started = time.perf_counter()
    predict(timed)
    seconds = flips * (time.perf_counter() - started) * sum(sizes.values()) / sizes[timed] / processes
    text = (
        f"{len(sizes)} cases in {flips} flips each take about {duration(seconds)}, {seconds / state.wall_seconds:.0%} "
        f"of the training's {duration(state.wall_seconds)}"
    )
    if seconds > MIRRORING_SHARE * state.wall_seconds:
        return (
            False,
            f"{text}, which is more than {MIRRORING_SHARE:.0%}; `validate mirror` uses them anyway",
        )
    return True, f"{text}; up to {MIRRORING_SHARE:.0%} is fine"
