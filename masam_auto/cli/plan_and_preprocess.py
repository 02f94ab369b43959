"""masam_plan_and_preprocess: measure, plan and preprocess raw data sets."""

import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from masam_auto.cli.common import DONE, add_datasets, add_executor, make_parser, run, start
from masam_auto.cli.planning import (
    add_plan_options,
    add_preprocess_options,
    add_verify_options,
    fingerprint_step,
    plan_step,
    preprocess_step,
)

if TYPE_CHECKING:
    from masam_auto.core.plan import Plan


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, measure, plan and preprocess each data set."""
    parser = make_parser("masam_plan_and_preprocess", "Measure raw data sets, plan their training and preprocess them.")
    add_datasets(parser)
    add_verify_options(parser)
    add_plan_options(parser)
    add_preprocess_options(parser)
    parser.add_argument("--no_pp", action="store_true", help="stop after the plan; do not preprocess")
    add_executor(parser)
    parsed = parser.parse_args(arguments)
    paths = start(parsed)

    from masam_auto.core.dataset import open_dataset

    datasets = [
        open_dataset(paths, identifier) for identifier in parsed.dataset
    ]  # report a wrong name before the first one runs
    for dataset in datasets:
        fingerprint = fingerprint_step(dataset, paths, parsed)
        plan = plan_step(fingerprint, paths, parsed)
        if not parsed.no_pp:
            preprocess_step(dataset, plan, paths, parsed)
            print(
                f"next: masam_train {shlex.quote(dataset.name)} 0{_configuration_option(plan, parsed.configurations)}"
            )
    return DONE


def _configuration_option(plan: "Plan", preprocessed: Sequence[str] | None) -> str:
    """The -c that masam_train needs if the plan's default configuration was not preprocessed."""
    return f" -c {preprocessed[0]}" if preprocessed and plan.default_configuration not in preprocessed else ""


def entry() -> None:
    """The installed command."""
    sys.exit(run(main))


if __name__ == "__main__":
    entry()
