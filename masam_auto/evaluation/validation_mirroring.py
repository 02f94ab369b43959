"""Whether the validation cases of a fold are predicted with flips, which multiply its cost; and what is noted of it."""

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
# Flips are left out where validating all cases with them would take more than this share of the training's time.
MIRRORING_SHARE = 0.2


def read_record(output: Path) -> dict[str, Any]:
    """What a fold's validation was done with: predicted_with.json; nothing where there is none. Raises PlanError.

    Older versions did not note "mirror": they did as the plan said.
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
    """How the model's other folds were validated: the figures of all are to be comparable. None where they are not
    alike."""
    folds = sorted(output.parents[1].glob(f"fold_*/validation/{RECORD_NAME}"))
    others = {file.parents[1].name: read_record(file.parent).get("mirror", True) for file in folds}
    others.pop(output.parent.name, None)
    if len(set(others.values())) != 1:
        return None
    return next(iter(others.values())), f"as {', '.join(others)}, so that the folds' figures can be compared"


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
    """Whether to average over the flips that the configuration allows, and why.

    A checkpoint is validated again as it was before. A training by steps or epochs is reproducible, and so is its
    validation: as planned. After a training by time, the folds of a model follow each other, and for the first one the
    cost is measured.

    Args:
        plan, configuration: of the model.
        output: fold_K/validation.
        checkpoint: checkpoint.json of what predicts.
        sizes: identifier -> voxels of the preprocessed cases.
        asked: what the user wants; None leaves it to the above.
        predict: predicts a case without flips, for its time.
        processes: that share the cases.
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
            f"{text}, which is more than {MIRRORING_SHARE:.0%}; `validate mirror` validates with them all the same",
        )
    return True, f"{text}; up to {MIRRORING_SHARE:.0%} are fine"
