"""masam_predict: images to segmentations."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from masam_auto.cli.common import DONE, FAILED, PARTLY, add_device, fold, make_parser, run, start


def main(arguments: Sequence[str] | None = None) -> int:
    """Predict a folder of images, or one image, with a trained model."""
    parsed = _make_parser().parse_args(arguments)
    paths = start(parsed)

    from masam_auto.learning.device import choose_device
    from masam_auto.learning.models import choose_model
    from masam_auto.stages.predict import load_predictor, predict_folder

    model = choose_model(
        paths.results,
        dataset=parsed.dataset,
        configuration=parsed.configuration,
        plan_name=parsed.plan,
        folder=parsed.model,
    )
    predictor = load_predictor(
        model, folds=parsed.folds, checkpoint=parsed.checkpoint, device=choose_device(parsed.device)
    )
    outcome = predict_folder(
        predictor,
        parsed.input,
        parsed.output,
        overwrite=parsed.overwrite,
        continue_prediction=parsed.continue_prediction,
    )
    kept = f", {len(outcome.skipped)} kept" if outcome.skipped else ""
    print(f"{len(outcome.predicted)} predicted{kept}: {parsed.output}")
    if not outcome.problems:
        return DONE
    print(f"error: {len(outcome.problems)} not predicted:", file=sys.stderr)
    print("\n".join(f"  - {problem}" for problem in outcome.problems), file=sys.stderr)
    return PARTLY if outcome.predicted or outcome.skipped else FAILED


def _make_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "masam_predict", "Segment images with a trained model. Without -d, -c, -p or -m: the only one there is."
    )
    parser.add_argument(
        "-i", "--input", type=Path, required=True, metavar="IMAGES",
        help="folder of images (ID_0000.ext, ID_0001.ext, ..., or ID.ext for one channel), or one image",
    )  # fmt: skip
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="where segmentations go")
    parser.add_argument("-d", "--dataset", metavar="DATASET", help="the model of this data set: number or name")
    parser.add_argument("-c", "--configuration", metavar="NAME", help="the model of this configuration")
    parser.add_argument("-p", "--plan", metavar="NAME", help="the model of the plan of this name")
    parser.add_argument("-m", "--model", type=Path, metavar="FOLDER", help="the model's own folder")
    parser.add_argument(
        "-f", "--folds", nargs="+", type=fold, metavar="FOLD", help="folds to average (default: all that are trained)"
    )
    parser.add_argument("-chk", "--checkpoint", choices=("best", "latest"), default="best", help="which one of a fold")
    parser.add_argument("--overwrite", action="store_true", help="replace segmentations that are there")
    parser.add_argument(
        "--continue_prediction", action="store_true", help="keep segmentations that are there, predict the others"
    )
    add_device(parser)
    return parser


def entry() -> None:
    """The installed command."""
    sys.exit(run(main))
