"""masam_predict: segment images with a trained model."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from masam_auto.cli.common import (
    DONE,
    add_device,
    counting_number,
    make_parser,
    positive_number,
    run,
    start,
    whole_number,
)
from masam_auto.cli.model_options import add_model_choice, load_model, report_outcome
from masam_auto.core.errors import MasamError
from masam_auto.core.paths import Paths

if TYPE_CHECKING:
    from masam_auto.compute.shared_cases import SharedCases


def main(arguments: Sequence[str] | None = None) -> int:
    """Predict a folder of images, or one image, with a trained model."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    parsed = _make_parser().parse_args(given)
    if not parsed.part_id < parsed.num_parts:
        raise MasamError(
            f"-part_id {parsed.part_id} is too high: the parts of -num_parts {parsed.num_parts} are 0 to "
            f"{parsed.num_parts - 1}."
        )
    paths = start(parsed)

    from masam_auto.compute.distributed import device_of, read_world
    from masam_auto.compute.machine import available_cores
    from masam_auto.compute.shared_cases import shared_cases

    world = read_world(os.environ)
    device = device_of(world, parsed.device)
    if parsed.num_gpus > 1 and "RANK" not in os.environ:
        from masam_auto.compute.case_launcher import launch_for_cases
        from masam_auto.compute.launcher import check_processes

        check_processes(device, parsed.num_gpus)
        threads = {"OMP_NUM_THREADS": str(max(1, available_cores() // parsed.num_gpus))}
        return launch_for_cases("masam_auto.cli.predict", given, threads | os.environ, processes=parsed.num_gpus)
    parsed.device = str(device)
    with shared_cases(world) as shared:
        return _predict(parsed, paths, shared)


def _predict(parsed: argparse.Namespace, paths: Paths, shared: "SharedCases") -> int:
    from masam_auto.prediction.predict_folder import PredictionOptions, predict_folder, read_case_boxes

    if (code := shared.ended()) is not None:
        return code
    predictor = load_model(parsed, paths)
    predictor = predictor.changed(step_size=parsed.step_size, mirror=False if parsed.disable_tta else None)
    boxes = read_case_boxes(predictor, parsed.input, parsed.boxes) if parsed.boxes else None
    options = PredictionOptions(
        overwrite=parsed.overwrite,
        continue_prediction=parsed.continue_prediction,
        part=(parsed.part_id, parsed.num_parts),
        output_format=parsed.output_format,
        save_probabilities=parsed.save_probabilities,
    )
    outcome = predict_folder(predictor, parsed.input, parsed.output, options, boxes=boxes, shared=shared)
    if not shared.world.first:
        return DONE
    kept = f", {len(outcome.skipped)} kept" if outcome.skipped else ""
    print(f"{len(outcome.predicted)} predicted{kept}: {parsed.output}")
    return shared.ended(report_outcome(outcome)) or DONE


def _make_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "masam_predict",
        "Segment images with a trained model. If no option names a model: the choice of "
        "masam_find_best_configuration, else the only model.",
    )
    parser.add_argument(
        "-i",
        "--input",
        type=Path,
        required=True,
        metavar="IMAGES",
        help="folder of images, DICOM series or videos, or one file. Images are named ID_0000.ext, ID_0001.ext, ..., "
        "one per channel, or ID.ext if there is one.",
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FOLDER", help="folder for the segmentations"
    )
    parser.add_argument(
        "--output_format",
        metavar="ENDING",
        help="file ending of the segmentations: .nii.gz, .nrrd, .mha, .png, ... (default: as the training data; "
        ".dcm, a DICOM SEG, for DICOM images)",
    )
    parser.add_argument("-d", "--dataset", metavar="DATASET", help="use the model of this data set: number or name")
    add_model_choice(parser)
    parser.add_argument(
        "--boxes",
        type=Path,
        metavar="FILE",
        help="segment within boxes: boxes.json, a .mrk.json of 3D Slicer, or a folder of ID.mrk.json. Needs a model "
        "trained with network.prompt=box.",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing segmentations")
    parser.add_argument(
        "--continue_prediction", action="store_true", help="keep existing segmentations and predict the rest"
    )
    parser.add_argument(
        "--save_probabilities",
        "--npz",
        action="store_true",
        help="also write the probabilities of each case as ID.npz (float16, on the image's grid)",
    )
    parser.add_argument("--disable_tta", action="store_true", help="do not average over mirrored images")
    parser.add_argument(
        "-step_size",
        "--step_size",
        type=positive_number,
        metavar="SHARE",
        help="step between windows and between tiles as a share of their length, 0.05 to 1 (default: as the plan says)",
    )
    parser.add_argument(
        "-num_parts",
        "--num_parts",
        type=counting_number,
        default=1,
        metavar="N",
        help="split the cases into N parts and predict only one of them, for separately started commands",
    )
    parser.add_argument(
        "-part_id", "--part_id", type=whole_number, default=0, metavar="K", help="part to predict: 0, 1, ..., N - 1"
    )
    parser.add_argument(
        "-num_gpus",
        "--num_gpus",
        type=counting_number,
        default=1,
        metavar="N",
        help="processes that share the cases on this machine, one per GPU (with -device cpu: on the CPU)",
    )
    add_device(parser)
    return parser


def entry() -> None:
    """The installed command."""
    sys.exit(run(main))


if __name__ == "__main__":
    entry()
