"""masam_evaluate: compare segmentations with reference segmentations."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from masam_auto.cli.common import DONE, add_device, add_executor, make_parser, positive_number, run, start
from masam_auto.cli.model_options import add_model_choice, load_model, report_outcome
from masam_auto.cli.tables import print_summary
from masam_auto.core.errors import MasamError
from masam_auto.core.paths import Paths

if TYPE_CHECKING:
    from masam_auto.core.dataset import DatasetDescription
    from masam_auto.core.label_map import LabelMap
    from masam_auto.core.labels import Labels
    from masam_auto.evaluation.evaluate import Scoring
    from masam_auto.prediction.predict import Predictor


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare two folders of segmentations, write summary.json and print the means. With boxes, predict first."""
    parser = _make_parser()
    parsed = parser.parse_args(arguments)
    _check_combination(parsed, parser)
    _check_folders(parsed)
    paths = start(parsed)

    from masam_auto.evaluation.evaluate import BYTES_PER_VOXEL, check_classes, evaluate_folder, subsets_of
    from masam_auto.formats.io import label_ending
    from masam_auto.formats.workers import workers_for

    label_map = _read_map(parsed.label_map) if parsed.label_map else None
    predictor = load_model(parsed, paths) if parsed.boxes_from_labels else None
    description = _find_labels(parsed, paths, predictor)
    labels = label_map.labels if label_map else description.labels
    scoring = _scoring(parsed, labels, label_map)
    check_classes(scoring, labels)  # before hours of prediction
    code, protocol = _predict(parsed, predictor) if predictor else (DONE, None)
    if code != DONE:
        return code
    ending = label_ending((predictor.description if predictor else description).file_ending)
    references = sorted(parsed.references.glob(f"*{ending}"))
    workers = workers_for(references, bytes_per_voxel=BYTES_PER_VOXEL, asked=parsed.workers)
    summary = evaluate_folder(
        parsed.predictions,
        parsed.references,
        labels,
        ending,
        scoring=scoring,
        subsets=subsets_of(description, ending),
        workers=workers,
        protocol=protocol,
    )
    print_summary(summary, labels)
    print(f"summary: {parsed.predictions / 'summary.json'}")
    return DONE


def _make_parser() -> argparse.ArgumentParser:
    parser = make_parser("masam_evaluate", "Compare segmentations with references. Writes PRED/summary.json.")
    parser.add_argument("predictions", type=Path, metavar="PRED", help="folder of segmentations")
    parser.add_argument("references", type=Path, metavar="REF", help="folder of reference segmentations")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--labels",
        type=Path,
        metavar="FILE",
        help="dataset.json with the labels (default: the one in PRED, REF or REF's parent folder)",
    )
    which.add_argument("-d", "--dataset", metavar="DATASET", help="use the labels (and the model) of this data set")
    parser.add_argument(
        "--label_map",
        metavar="MAP",
        help="score a model of one data set on another: a JSON file that matches their labels, or the name of a "
        "built-in one (btcv_to_amos22)",
    )
    parser.add_argument(
        "--tolerance",
        type=_tolerance,
        nargs="+",
        default=[],
        metavar="MM",
        help="tolerance of the normalised surface Dice in mm (default: 2). Set it for single classes with, e.g., "
        "liver=3 spleen=1.",
    )
    parser.add_argument(
        "--lesions",
        nargs="+",
        default=[],
        metavar="CLASS",
        help="count found, false and missed lesions (connected components) of these classes; all: every class",
    )
    parser.add_argument(
        "--metrics", nargs="+", default=[], metavar="NAME", help="also compute these metrics from plug-ins"
    )
    add_executor(parser)
    group = parser.add_argument_group(
        "prediction with boxes",
        "First segment IMAGES into PRED. Each case gets a box made from its reference.",
    )
    group.add_argument(
        "--boxes_from_labels",
        choices=("tight", "relaxed"),
        help="tight: box around all foreground of the reference; relaxed: a larger one",
    )
    group.add_argument(
        "--relaxation",
        type=positive_number,
        metavar="SHARE",
        help="how far each side of a relaxed box moves outwards, as a share of the box's length (default: 0.2)",
    )
    group.add_argument("-i", "--input", type=Path, metavar="IMAGES", help="folder of images")
    group.add_argument("--overwrite", action="store_true", help="replace existing segmentations")
    add_model_choice(group)
    add_device(parser)
    return parser


def _check_combination(parsed: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Check that the options of a prediction with boxes are complete. Raises MasamError."""
    if parsed.boxes_from_labels and parsed.input is None:
        raise MasamError("--boxes_from_labels predicts the images first. Give their folder with -i IMAGES.")
    if parsed.relaxation is not None and parsed.boxes_from_labels != "relaxed":
        raise MasamError("--relaxation needs --boxes_from_labels relaxed")
    names = ("input", "overwrite", "configuration", "plan", "model", "folds", "checkpoint", "device")
    given = [name for name in names if getattr(parsed, name) != parser.get_default(name)]
    if given and not parsed.boxes_from_labels:
        raise MasamError(
            f"--{given[0]} is for a prediction with boxes. Give --boxes_from_labels tight or relaxed, or leave it out."
        )


def _check_folders(parsed: argparse.Namespace) -> None:
    """Check that both folders exist and that the output is not inside the raw data. Raises MasamError.

    An output inside the raw data is the usual sign that the two folders were swapped.
    """
    from masam_auto.core.paths import is_in_raw_data

    for folder in (parsed.references,) if parsed.boxes_from_labels else (parsed.predictions, parsed.references):
        if not folder.is_dir():
            raise MasamError(
                f"{folder} is no folder. Give the folder of segmentations first, then the folder of references."
            )
    if is_in_raw_data(parsed.predictions):
        raise MasamError(
            f"{parsed.predictions} is part of a raw data set, where summary.json must not be written. Give the folder "
            "of segmentations first, then the folder of references."
        )


def _predict(parsed: argparse.Namespace, predictor: "Predictor") -> tuple[int, dict[str, Any]]:
    """Predict within the references' boxes. Returns the exit code and the boxes for the summary."""
    from masam_auto.evaluation.box_protocol import RELAXATION, BoxProtocol, predict_with_reference_boxes

    relaxation = RELAXATION if parsed.relaxation is None else parsed.relaxation
    outcome, record = predict_with_reference_boxes(
        predictor,
        parsed.input,
        parsed.references,
        parsed.predictions,
        BoxProtocol(kind=parsed.boxes_from_labels, relaxation=relaxation),
        overwrite=parsed.overwrite,
    )
    return report_outcome(outcome), record


def _tolerance(text: str) -> tuple[str, float]:
    """argparse type: `3` for all classes (name ""), or `liver=3`."""
    name, _, number = text.rpartition("=")
    return name, positive_number(number)


def _scoring(parsed: argparse.Namespace, labels: "Labels", label_map: "LabelMap | None") -> "Scoring":
    from masam_auto.evaluation.evaluate import Scoring

    tolerances = dict(parsed.tolerance)
    scoring = Scoring(
        tolerance=tolerances.pop("", Scoring().tolerance),
        tolerances=tolerances,
        lesions=tuple(labels.foreground) if parsed.lesions == ["all"] else tuple(parsed.lesions),
        metrics=tuple(parsed.metrics),
    )
    if label_map is None:
        return scoring
    return replace(scoring, prediction_values=label_map.prediction, reference_values=label_map.reference)


def _read_map(name: str) -> "LabelMap":
    """A label map by its file, or by its name in dataset_conversion/label_maps. Raises MasamError."""
    import dataset_conversion
    from masam_auto.core.label_map import read_label_map

    shipped = Path(dataset_conversion.__file__).parent / "label_maps"
    file = shipped / f"{name}.json"
    if not file.is_file():
        file = Path(name)
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in shipped.glob("*.json")))
        raise MasamError(f"--label_map {name}: no such file. Give a JSON file, or one of: {known}")
    return read_label_map(file)


def _find_labels(parsed: argparse.Namespace, paths: Paths, predictor: "Predictor | None") -> "DatasetDescription":
    """The dataset.json with the labels. A predictor is about to write its dataset.json, so it counts. Raises
    MasamError.
    """
    from masam_auto.core.dataset import find_raw_folder, read_description

    if parsed.dataset:
        file = find_raw_folder(paths, parsed.dataset) / "dataset.json"
    elif parsed.labels:
        file = parsed.labels
    else:
        places = [parsed.predictions, parsed.references, parsed.references.absolute().parent]
        if parsed.label_map:  # classes come from the map, sites and videos from the references
            places = [*places[1:], places[0]]
        found = [place / "dataset.json" for place in places if (place / "dataset.json").is_file()]
        if predictor and not (parsed.label_map and found):
            return predictor.description
        if not found:
            raise MasamError(
                f"no dataset.json in {', '.join(map(str, places))}. Name the labels with --labels FILE or -d DATASET."
            )
        file = found[0]
    return read_description(file, name=file.absolute().parent.name)


def entry() -> None:
    """The installed command."""
    sys.exit(run(main))


if __name__ == "__main__":
    entry()
