"""masam_find_best_configuration: find the best model or pair of models of a data set by cross-validation."""

import argparse
import sys
from collections.abc import Sequence

from masam_auto.cli.common import DONE, add_workers, fold, known_dataset, make_parser, run, start
from masam_auto.cli.wording import worded
from masam_auto.core.jsonio import write_bytes
from masam_auto.core.selection import TEXT_NAME


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare the trained models of a data set. Print the best one and how to predict with it."""
    parsed = _make_parser().parse_args(arguments)
    paths = start(parsed)

    from masam_auto.evaluation.find_best_configuration import find_best_configuration, instructions

    name = known_dataset(paths, parsed.dataset)
    selection = find_best_configuration(
        paths,
        name,
        configurations=parsed.configurations,
        plan_names=parsed.plans,
        folds=parsed.folds,
        workers=parsed.workers,
    )
    text = worded(instructions(selection, paths))
    file = paths.results / name / TEXT_NAME
    write_bytes(file, text.encode())
    print(text)
    print(f"written: {file}, and as .json for masam_predict")
    return DONE


def _make_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "masam_find_best_configuration",
        "Compare a data set's trained models, and pairs of them, on held-out cases, and find the postprocessing of "
        "the best. masam_predict then uses the result.",
    )
    parser.add_argument("dataset", metavar="DATASET", help="number (1, 001), name (Dataset001_Name) or path")
    parser.add_argument(
        "-c",
        "--configurations",
        nargs="+",
        metavar="NAME",
        help="compare only these configurations (default: all trained ones)",
    )
    parser.add_argument(
        "-p", "--plans", nargs="+", metavar="NAME", help="compare only models of these plans (default: all)"
    )
    parser.add_argument(
        "-f",
        "--folds",
        nargs="+",
        type=fold,
        metavar="FOLD",
        help="use only these folds (default: all validated ones)",
    )
    add_workers(parser)
    return parser


def entry() -> None:
    """The installed command."""
    sys.exit(run(main))


if __name__ == "__main__":
    entry()
