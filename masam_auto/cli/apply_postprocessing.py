"""masam_apply_postprocessing: remove small or stray components from segmentations."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from masam_auto.cli.common import add_workers, make_parser, run, start_without_roots
from masam_auto.cli.model_options import report_outcome


def main(arguments: Sequence[str] | None = None) -> int:
    """Postprocess a folder of segmentations."""
    parsed = _make_parser().parse_args(arguments)
    start_without_roots(parsed)

    from masam_auto.core.postprocessing import read_postprocessing
    from masam_auto.evaluation.postprocess import postprocess_folder

    postprocessing = read_postprocessing(parsed.postprocessing)
    outcome = postprocess_folder(
        parsed.input, parsed.output, postprocessing, overwrite=parsed.overwrite, workers=parsed.workers
    )
    print(f"{len(outcome.predicted)} postprocessed ({postprocessing}): {parsed.output}")
    return report_outcome(outcome, done="postprocessed")


def _make_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "masam_apply_postprocessing",
        "Remove connected components from segmentations, by the rules that masam_find_best_configuration found.",
        roots=False,
    )
    parser.add_argument("-i", "--input", type=Path, required=True, metavar="SEGS", help="folder of segmentations")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="folder for the results")
    parser.add_argument(
        "-pp",
        "--postprocessing",
        type=Path,
        required=True,
        metavar="FILE",
        help="postprocessing.json; masam_find_best_configuration writes it to RESULTS/DATASET/crossval_results/...",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    add_workers(parser)
    return parser


def entry() -> None:
    """The installed command."""
    sys.exit(run(main))


if __name__ == "__main__":
    entry()
