"""Which trained model a command predicts with, how it predicts, and what it says of the outcome."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from masam_auto.cli.common import DONE, FAILED, PARTLY, add_sam_checkpoint, fold
from masam_auto.core.paths import Paths

if TYPE_CHECKING:
    from masam_auto.stages.predict import Outcome, Predictor


def add_model_choice(parser: argparse._ActionsContainer) -> None:
    """-c, -p, -m, -f, -chk, --sam_checkpoint; -d, which may mean more than the model, is the command's own."""
    parser.add_argument("-c", "--configuration", metavar="NAME", help="the model of this configuration")
    parser.add_argument("-p", "--plan", metavar="NAME", help="the model of the plan of this name")
    parser.add_argument("-m", "--model", type=Path, metavar="FOLDER", help="the model's own folder")
    parser.add_argument(
        "-f", "--folds", nargs="+", type=fold, metavar="FOLD", help="folds to average (default: all that are trained)"
    )
    parser.add_argument(
        "-chk", "--checkpoint", choices=("best", "latest", "final"), default="best", help="which one of a fold"
    )
    add_sam_checkpoint(parser)


def load_model(parsed: argparse.Namespace, paths: Paths) -> "Predictor":
    """Load what the options of `add_model_choice`, -d and -device name. Raises ModelError as `choose_model`."""
    from masam_auto.learning.device import choose_device
    from masam_auto.learning.models import choose_model
    from masam_auto.stages.predict import load_predictor

    model = choose_model(
        paths.results,
        dataset=parsed.dataset,
        configuration=parsed.configuration,
        plan_name=parsed.plan,
        folder=parsed.model,
    )
    return load_predictor(
        model, folds=parsed.folds, checkpoint=parsed.checkpoint, device=choose_device(parsed.device),
        sam_checkpoint=parsed.sam_checkpoint, weights=paths.weights,
    )  # fmt: skip


def report_outcome(outcome: "Outcome") -> int:
    """Print the cases that failed, if any; the exit code."""
    if not outcome.problems:
        return DONE
    print(f"error: {len(outcome.problems)} not predicted:", file=sys.stderr)
    print("\n".join(f"  - {problem}" for problem in outcome.problems), file=sys.stderr)
    return PARTLY if outcome.predicted or outcome.skipped else FAILED
