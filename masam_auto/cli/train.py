"""masam_train: train one fold, then validate it."""

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from masam_auto.cli.common import (
    DONE,
    add_device,
    add_overrides,
    add_sam_choice,
    add_workers,
    fold,
    known_dataset,
    make_parser,
    run,
    start,
    whole_number,
)
from masam_auto.cli.planning import read_dataset_plan
from masam_auto.cli.tables import print_summary
from masam_auto.core.errors import MasamError
from masam_auto.core.paths import Paths

if TYPE_CHECKING:
    from masam_auto.core.plan import Plan

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train a fold, predict and evaluate its validation cases, and print the result."""
    parsed = _make_parser().parse_args(arguments)
    paths = start(parsed)
    name = known_dataset(paths, parsed.dataset)
    plan = _read_plan(paths, name, parsed)
    configuration = plan.configuration(parsed.configuration)

    from masam_auto.core.dataset import read_description
    from masam_auto.learning.device import choose_device
    from masam_auto.stages.train import train_fold
    from masam_auto.stages.validate import open_raw_data, validate_fold

    device = choose_device(parsed.device)
    folder = paths.model_folder(name, plan.name, configuration.name) / f"fold_{parsed.fold}"
    if not parsed.val and not (parsed.c and _is_finished(folder, parsed.budget)):
        try:
            open_raw_data(paths, name)
        except MasamError as error:  # training needs no raw data; the validation after it does
            logger.warning("%s\nTraining goes on without; validate later with --val.", error)
        train_fold(
            paths, name, plan, configuration, parsed.fold, device=device, workers=parsed.workers,
            budget=parsed.budget, resume=parsed.c, overwrite=parsed.overwrite, sam_checkpoint=parsed.sam_checkpoint,
        )  # fmt: skip
    summary = validate_fold(
        paths, name, plan, configuration, parsed.fold,
        device=device, checkpoint=parsed.checkpoint, redo=parsed.val, workers=parsed.workers,
        sam_checkpoint=parsed.sam_checkpoint,
    )  # fmt: skip
    print_summary(summary, read_description(paths.preprocessed / name / "dataset.json", name=name).labels)
    print(f"predictions and summary.json: {folder / 'validation'}")
    print(f"progress: {folder / 'progress.png'}")
    print(f"next: masam_predict -i IMAGES -o SEGMENTATIONS -d {name} -c {configuration.name} -p {plan.name}")
    return DONE


def _make_parser() -> argparse.ArgumentParser:
    parser = make_parser("masam_train", "Train one fold and validate it.")
    parser.add_argument("dataset", metavar="DATASET", help="number (1, 001), name (Dataset001_Name) or path")
    parser.add_argument("fold", type=fold, metavar="FOLD", help="0, 1, ... (or fold0, ...), or all for all cases")
    parser.add_argument(
        "-c", "--configuration", metavar="NAME", help="axis0, 2d, ... (default: the plan's default_configuration)"
    )
    parser.add_argument(
        "-p", "--plan", metavar="NAME",
        help="name under which this training is kept, so that variants of a plan do not meet (default: the plan's name)",
    )  # fmt: skip
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--c", "--continue", action="store_true", dest="c", help="go on with an interrupted training")
    how.add_argument("--val", action="store_true", help="only validate, all cases anew")
    how.add_argument("--overwrite", action="store_true", help="start again where a training is already")
    parser.add_argument(
        "--budget", metavar="AMOUNT",
        help="train for so long instead of the plan's epochs: 1000cpus (CPU-seconds), 600s, 30min, 2h, 20epochs, "
        "500steps",
    )  # fmt: skip
    parser.add_argument("--seed", type=whole_number, metavar="N", help="short for --set training.seed=N")
    parser.add_argument("-chk", "--checkpoint", choices=("best", "latest"), default="best", help="what to validate")
    add_sam_choice(parser)
    add_overrides(parser)
    add_device(parser)
    add_workers(parser)
    return parser


def _read_plan(paths: Paths, name: str, parsed: argparse.Namespace) -> "Plan":
    """The data set's plan with the command line's changes; with --val and --c the model's own plan."""
    from masam_auto.core.jsonio import read_json
    from masam_auto.core.plan import Plan, override

    plan = read_dataset_plan(paths, name)
    plan = replace(plan, name=parsed.plan or plan.name)
    if parsed.val or parsed.c:
        folder = paths.model_folder(name, plan.name, plan.configuration(parsed.configuration).name)
        trained: Path = folder / "plan.json"
        plan = read_json(trained, Plan, what="plan of a trained model") if trained.is_file() else plan
    scratch = ["network.weights=none", "network.trained=all"] if parsed.from_scratch else []
    changes = [*parsed.overrides, *scratch, *([f"training.seed={parsed.seed}"] if parsed.seed is not None else [])]
    return override(plan, changes)


def _is_finished(fold_folder: Path, budget: str | None) -> bool:
    """Whether a training to be continued has nothing left to do but its validation."""
    from masam_auto.core.jsonio import read_json
    from masam_auto.learning.checkpoint import LATEST, STATE_FILE, TrainingState

    file = fold_folder / LATEST / STATE_FILE
    if not file.is_file():
        return False
    state = read_json(file, TrainingState, what="checkpoint")
    return state.finished and budget in (None, state.budget)


def entry() -> None:
    """The installed command."""
    sys.exit(run(main))
