"""Options that choose the trained model, and the report of what was predicted."""

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from masam_auto.cli.common import DONE, FAILED, PARTLY, add_sam_checkpoint, fold
from masam_auto.core.log import shown
from masam_auto.core.paths import Paths, find_dataset_name
from masam_auto.core.selection import CHECKPOINTS, SELECTION_NAME, Selection, read_selection

if TYPE_CHECKING:
    from masam_auto.prediction.predict import Predictor
    from masam_auto.prediction.predict_folder import Outcome

logger = logging.getLogger(__name__)


def add_model_choice(parser: argparse._ActionsContainer) -> None:
    """The options of `add_which_model`, and --sam_checkpoint."""
    add_which_model(parser)
    add_sam_checkpoint(parser)


def add_which_model(parser: argparse._ActionsContainer) -> None:
    """-c, -p, -m, -f, -chk. Commands add -d themselves, because it may mean more than the model."""
    parser.add_argument("-c", "--configuration", metavar="NAME", help="use the model of this configuration")
    parser.add_argument("-p", "--plan", metavar="NAME", help="use the model of this plan")
    parser.add_argument("-m", "--model", type=Path, metavar="FOLDER", help="folder of the model")
    parser.add_argument(
        "-f", "--folds", nargs="+", type=fold, metavar="FOLD", help="folds to average (default: all trained ones)"
    )
    parser.add_argument(
        "-chk", "--checkpoint", choices=tuple(CHECKPOINTS), help="checkpoint of each fold (default: best)"
    )


def load_model(parsed: argparse.Namespace, paths: Paths) -> "Predictor":
    """Load the model that the options of `add_model_choice`, -d and -device name.

    Without -c, -p, -m, -f and -chk, load the choice of `masam_find_best_configuration`, if it was run.

    Raises:
        ModelError: as `choose_model` and `load_selection`.
        PlanError: the selection is damaged or of a newer version.
    """
    from masam_auto.compute.device import choose_device
    from masam_auto.models.trained_model import choose_folds, choose_model
    from masam_auto.prediction.predict import Predictor, load_selection

    device = choose_device(parsed.device)
    if selection := find_selection(parsed, paths):
        logger.info(
            "predicting with %s, postprocessing: %s, as chosen in %s",
            selection.name,
            selection.postprocessing,
            paths.results / selection.dataset_name / SELECTION_NAME,
        )
        return load_selection(
            selection, paths.results, device=device, sam_checkpoint=parsed.sam_checkpoint, weights=paths.weights
        )
    model = choose_model(
        paths.results,
        dataset=parsed.dataset,
        configuration=parsed.configuration,
        plan_name=parsed.plan,
        folder=parsed.model,
    )
    checkpoint = parsed.checkpoint or "best"
    folds = ", ".join(folder.parent.name for folder in choose_folds(model, parsed.folds, checkpoint))
    logger.info("predicting with %s: %s, checkpoint %s", model.folder, folds, checkpoint)
    return Predictor.from_folder(
        model.folder,
        device,
        folds=parsed.folds,
        checkpoint=checkpoint,
        sam_checkpoint=parsed.sam_checkpoint,
        weights=paths.weights,
    )


def report_outcome(outcome: "Outcome", *, done: str = "predicted") -> int:
    """Print the cases that failed, if any. Returns the exit code."""
    if not outcome.problems:
        return DONE
    print(f"error: {len(outcome.problems)} not {done}:", file=sys.stderr)
    print("\n".join(f"  - {shown(problem)}" for problem in outcome.problems), file=sys.stderr)
    return PARTLY if outcome.predicted or outcome.skipped else FAILED


def find_selection(parsed: argparse.Namespace, paths: Paths) -> Selection | None:
    """The data set's selection if no option names a model, else None."""
    explicit = (parsed.configuration, parsed.plan, parsed.model, parsed.folds, parsed.checkpoint)
    if any(value is not None for value in explicit):
        return None
    if parsed.dataset is not None:
        name = find_dataset_name(Path(parsed.dataset).name, [paths.results])
    else:
        from masam_auto.models.trained_model import find_models

        names = {model.dataset_name for model in find_models(paths.results)}
        if len(names) != 1:
            return None
        (name,) = names
    file = paths.results / name / SELECTION_NAME
    return read_selection(file) if file.is_file() else None
