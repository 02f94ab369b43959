"""masam_evaluate: segmentations against references."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from masam_auto.cli.common import DONE, add_workers, make_parser, positive_number, run, start
from masam_auto.cli.tables import print_summary
from masam_auto.core.errors import MasamError
from masam_auto.core.paths import Paths

if TYPE_CHECKING:
    from masam_auto.core.dataset import DatasetDescription


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare two folders of segmentations, write summary.json, and print the means."""
    parser = make_parser("masam_evaluate", "Compare segmentations with references; writes summary.json beside them.")
    parser.add_argument("predictions", type=Path, metavar="PRED", help="folder of segmentations")
    parser.add_argument("references", type=Path, metavar="REF", help="folder of reference segmentations")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--labels", type=Path, metavar="FILE",
        help="dataset.json that names the labels (default: the one in PRED, in REF or in REF's parent folder)",
    )  # fmt: skip
    which.add_argument("-d", "--dataset", metavar="DATASET", help="take the labels of this data set")
    parser.add_argument(
        "--tolerance", type=positive_number, default=2.0, metavar="MM",
        help="distance within which two surfaces agree, in mm, for the normalised surface Dice",
    )  # fmt: skip
    add_workers(parser)
    parsed = parser.parse_args(arguments)
    paths = start(parsed)

    from masam_auto.imaging.io import label_ending
    from masam_auto.imaging.workers import workers_for
    from masam_auto.stages.evaluate import BYTES_PER_VOXEL, evaluate_folder

    description = _find_labels(parsed, paths)
    ending = label_ending(description.file_ending)
    references = sorted(parsed.references.glob(f"*{ending}"))
    workers = workers_for(references, bytes_per_voxel=BYTES_PER_VOXEL, asked=parsed.workers)
    summary = evaluate_folder(
        parsed.predictions, parsed.references, description.labels, ending,
        tolerance=parsed.tolerance, workers=workers,
    )  # fmt: skip
    print_summary(summary, description.labels)
    print(f"summary: {parsed.predictions / 'summary.json'}")
    return DONE


def _find_labels(parsed: argparse.Namespace, paths: Paths) -> "DatasetDescription":
    from masam_auto.core.dataset import find_raw_folder, read_description

    if parsed.dataset:
        file = find_raw_folder(paths, parsed.dataset) / "dataset.json"
    elif parsed.labels:
        file = parsed.labels
    else:
        places = [parsed.predictions, parsed.references, parsed.references.absolute().parent]
        found = [place / "dataset.json" for place in places if (place / "dataset.json").is_file()]
        if not found:
            raise MasamError(
                f"no dataset.json in {', '.join(map(str, places))}: say with --labels FILE or -d DATASET which labels these are"
            )
        file = found[0]
    return read_description(file, name=file.absolute().parent.name)


def entry() -> None:
    """The installed command."""
    sys.exit(run(main))
