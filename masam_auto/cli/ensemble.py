"""masam_ensemble: average the saved probabilities of several models and segment by the mean."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from masam_auto.cli.common import add_workers, make_parser, run, start_without_roots
from masam_auto.cli.model_options import report_outcome


def main(arguments: Sequence[str] | None = None) -> int:
    """Average folders of probabilities."""
    parsed = _make_parser().parse_args(arguments)
    start_without_roots(parsed)

    from masam_auto.evaluation.ensemble import ensemble_folders

    outcome = ensemble_folders(
        parsed.input,
        parsed.output,
        save_probabilities=parsed.save_probabilities,
        overwrite=parsed.overwrite,
        workers=parsed.workers,
    )
    print(f"{len(outcome.predicted)} averaged over {len(parsed.input)} folders: {parsed.output}")
    return report_outcome(outcome, done="averaged")


def _make_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "masam_ensemble", "Average the saved probabilities of several models and segment by the mean.", roots=False
    )
    parser.add_argument(
        "-i",
        "--input",
        type=Path,
        nargs="+",
        required=True,
        metavar="FOLDER",
        help="two or more folders with ID.npz of the same cases, written by masam_predict or masam_train with "
        "--save_probabilities",
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FOLDER", help="folder for the segmentations"
    )
    parser.add_argument(
        "--save_probabilities", "--npz", action="store_true", help="also write the mean probabilities as ID.npz"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    add_workers(parser)
    return parser


def entry() -> None:
    """The installed command."""
    sys.exit(run(main))


if __name__ == "__main__":
    entry()
