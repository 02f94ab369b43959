"""masam_plan_and_preprocess: raw data sets to fingerprints, plans and preprocessed arrays."""

import sys
from collections.abc import Sequence

from masam_auto.cli.common import DONE, add_datasets, add_executor, make_parser, run, start
from masam_auto.cli.planning import (
    add_plan_options,
    add_preprocess_options,
    add_verify_options,
    fingerprint_step,
    plan_step,
    preprocess_step,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, measure, plan and preprocess each data set."""
    parser = make_parser("masam_plan_and_preprocess", "Measure data sets, decide how to train, and preprocess them.")
    add_datasets(parser)
    add_verify_options(parser)
    add_plan_options(parser)
    add_preprocess_options(parser)
    parser.add_argument("--no_pp", action="store_true", help="stop after the plan, without preprocessing")
    add_executor(parser)
    parsed = parser.parse_args(arguments)
    paths = start(parsed)

    from masam_auto.core.dataset import open_dataset

    for identifier in parsed.dataset:
        dataset = open_dataset(paths, identifier)
        fingerprint = fingerprint_step(dataset, paths, parsed)
        plan = plan_step(fingerprint, paths, parsed)
        if not parsed.no_pp:
            preprocess_step(dataset, plan, paths, parsed)
            print(f"next: masam_train {dataset.name} 0")
    return DONE


def entry() -> None:
    """The installed command."""
    sys.exit(run(main))


if __name__ == "__main__":
    entry()
