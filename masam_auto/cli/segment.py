"""masam_segment: segment what boxes or points show, with pretrained weights and without training."""

import argparse
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
from masam_auto.cli.model_options import report_outcome

if TYPE_CHECKING:
    from masam_auto.formats.box_files import Prompts


def main(arguments: Sequence[str] | None = None) -> int:
    """Segment a folder of images, or one image, from prompts alone."""
    parser = _make_parser()
    parsed = parser.parse_args(arguments)
    if parsed.relaxation is not None and parsed.protocol != "relaxed":
        parser.error("--relaxation needs --protocol relaxed")
    if parsed.protocol is not None and parsed.boxes_from_labels is None:
        parser.error("--protocol needs --boxes_from_labels")
    if parsed.boxes_from_labels is not None and parsed.dataset_json is None:
        parsed.dataset_json = parsed.boxes_from_labels.absolute().parent / "dataset.json"
    paths = start(parsed)

    from masam_auto.prediction.segment_folder import SegmentOptions, segment_folder
    from masam_auto.prediction.segmenter import Segmenter, SegmentSettings, pretrained_file

    settings = SegmentSettings(
        axis=parsed.axis,
        propagate=parsed.propagate,
        channels=None if parsed.channel is None else (parsed.channel,),
        window=None if parsed.intensity is None else tuple(parsed.intensity),
    )
    options = SegmentOptions(
        overwrite=parsed.overwrite,
        continue_prediction=parsed.continue_prediction,
        output_format=parsed.output_format,
        dataset_json=parsed.dataset_json,
        labels=tuple(parsed.labels),
        video=parsed.video,
    )
    weights = parsed.sam_checkpoint or pretrained_file(paths.weights, parsed.backbone)
    segmenter = Segmenter.from_weights(
        weights, parsed.device, canvas=parsed.canvas, pixels=parsed.pixels, settings=settings
    )
    prompts = parsed.boxes or _boxes_of_references(parsed)
    outcome = segment_folder(segmenter, parsed.input, parsed.output, prompts, options)
    kept = f", {len(outcome.skipped)} kept" if outcome.skipped else ""
    print(f"{len(outcome.predicted)} segmented{kept}: {parsed.output}")
    return report_outcome(outcome, done="segmented") or DONE


def _boxes_of_references(parsed: argparse.Namespace) -> "Prompts":
    from masam_auto.core.dataset import read_description
    from masam_auto.evaluation.box_protocol import RELAXATION, BoxProtocol, reference_prompts

    file = parsed.dataset_json
    protocol = BoxProtocol(kind=parsed.protocol or "tight", relaxation=parsed.relaxation or RELAXATION)
    description = read_description(file, name=file.absolute().parent.name)
    return reference_prompts(parsed.input, parsed.boxes_from_labels, description, protocol)


def _make_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "masam_segment",
        "Segment what boxes or points show, with pretrained SAM weights and without training. The segmentations can be "
        "trained on.",
    )
    parser.add_argument(
        "-i",
        "--input",
        type=Path,
        required=True,
        metavar="IMAGES",
        help="folder of images, DICOM series or videos, or one file, named as for masam_predict",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="folder for the segmentations and their dataset.json. If it is called labelsTr, the dataset.json goes "
        "beside it; one that is there says what the channels and classes are.",
    )
    _add_prompts(parser)
    _add_model(parser)
    _add_reading(parser)
    parser.add_argument(
        "--output_format",
        metavar="ENDING",
        help="file ending of the segmentations: .nii.gz, .nrrd, .mha, .png, ... (default: as the images; .dcm, a DICOM "
        "SEG, for DICOM images)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing segmentations")
    parser.add_argument(
        "--continue_prediction", action="store_true", help="keep existing segmentations and segment the rest"
    )
    add_device(parser)
    return parser


def _add_prompts(parser: argparse.ArgumentParser) -> None:
    """What shows the objects."""
    prompts = parser.add_mutually_exclusive_group(required=True)
    prompts.add_argument(
        "--boxes",
        type=Path,
        metavar="FILE",
        help="boxes or points: boxes.json, a .mrk.json of 3D Slicer, or a folder of ID.mrk.json. Cases without any are "
        "left out.",
    )
    prompts.add_argument(
        "--boxes_from_labels",
        type=Path,
        metavar="FOLDER",
        help="to measure how good it is: boxes of each class in these reference segmentations, whose dataset.json is "
        "beside the folder or given by --dataset_json",
    )
    parser.add_argument(
        "--protocol",
        choices=("tight", "relaxed", "slice"),
        help="boxes from labels are tight (the default), relaxed, or on the middle slice alone",
    )
    parser.add_argument(
        "--relaxation",
        type=positive_number,
        metavar="SHARE",
        help="how far relaxed boxes reach outwards, as a share of the box's length (default: 0.2)",
    )


def _add_model(parser: argparse.ArgumentParser) -> None:
    """Which weights, and how they see slices."""
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument(
        "--sam_checkpoint", type=Path, metavar="PATH", help="pretrained weights, .pth, .pt or .safetensors"
    )
    weights.add_argument(
        "-backbone",
        "--backbone",
        default="lite_medsam",
        metavar="NAME",
        help="use the weights of this encoder in the weights folder",
    )
    parser.add_argument(
        "--canvas",
        type=counting_number,
        metavar="PX",
        help="side that slices are scaled to (default: 256 for lite_medsam, 1024 for the others, as they were "
        "trained). 128 is several times as fast.",
    )
    parser.add_argument(
        "--pixels",
        choices=("unit", "sam"),
        help="unit: images in 0..1, as MedSAM and LiteMedSAM were trained; sam: minus SAM's mean, divided by its "
        "deviation (default: by the encoder; MedSAM's file is known)",
    )


def _add_reading(parser: argparse.ArgumentParser) -> None:
    """How objects are followed, and how images are read."""
    parser.add_argument(
        "--propagate",
        choices=("single", "all", "none"),
        default="single",
        help="follow objects into the slices beyond their box: those whose box is on a single slice, all, or none",
    )
    parser.add_argument(
        "--axis",
        type=int,
        choices=(0, 1, 2),
        help="axis of the stored array (Z, Y, X) across slices (default: along which all boxes are on a single slice, "
        "else the coarsest, else along the body)",
    )
    parser.add_argument("--channel", type=whole_number, metavar="N", help="channel to use (default: 0, or colours)")
    parser.add_argument(
        "--intensity",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        help="intensities to tell apart (default: for CT -160 to 240 HU, soft tissue; else the 0.5 and 99.5 "
        "percentiles above zero). For lungs give -1350 150, for bones -500 1300.",
    )
    parser.add_argument(
        "--labels",
        nargs="+",
        default=[],
        metavar="NAME",
        help="names of the classes 1, 2, ... (default: those in the boxes, in their order, else object)",
    )
    parser.add_argument(
        "--dataset_json",
        type=Path,
        metavar="FILE",
        help="dataset.json of the data set that the images belong to, for its channels and classes. It is copied to "
        "the output.",
    )
    parser.add_argument(
        "--video", action="store_true", help="pictures are frames of videos, grouped by sequences.json or their names"
    )


def entry() -> None:
    """The installed command."""
    sys.exit(run(main))


if __name__ == "__main__":
    entry()
