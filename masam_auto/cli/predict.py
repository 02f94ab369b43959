"""masam_predict: images to segmentations."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from masam_auto.cli.common import add_device, make_parser, run, start
from masam_auto.cli.model_options import add_model_choice, load_model, report_outcome


def main(arguments: Sequence[str] | None = None) -> int:
    """Predict a folder of images, or one image, with a trained model."""
    parsed = _make_parser().parse_args(arguments)
    paths = start(parsed)

    from masam_auto.stages.predict import predict_folder, read_case_boxes

    predictor = load_model(parsed, paths)
    boxes = read_case_boxes(predictor, parsed.input, parsed.boxes) if parsed.boxes else None
    outcome = predict_folder(
        predictor,
        parsed.input,
        parsed.output,
        overwrite=parsed.overwrite,
        continue_prediction=parsed.continue_prediction,
        boxes=boxes,
    )
    kept = f", {len(outcome.skipped)} kept" if outcome.skipped else ""
    print(f"{len(outcome.predicted)} predicted{kept}: {parsed.output}")
    return report_outcome(outcome)


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
    add_model_choice(parser)
    parser.add_argument(
        "--boxes", type=Path, metavar="FILE",
        help="segment within boxes: boxes.json, a .mrk.json of 3D Slicer, or a folder of ID.mrk.json; "
        "needs a model trained with network.prompt=box",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace segmentations that are there")
    parser.add_argument(
        "--continue_prediction", action="store_true", help="keep segmentations that are there, predict the others"
    )
    add_device(parser)
    return parser


def entry() -> None:
    """The installed command."""
    sys.exit(run(main))
