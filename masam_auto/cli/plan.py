"""masam_plan: plan the training of data sets from their fingerprints."""

import sys
from collections.abc import Sequence

from masam_auto.cli.common import DONE, add_datasets, known_dataset, make_parser, run, start
from masam_auto.cli.planning import add_plan_options, plan_step


def main(arguments: Sequence[str] | None = None) -> int:
    """Plan each data set from its fingerprint.json."""
    parser = make_parser("masam_plan", "Plan how to train, from fingerprint.json. Writes plan.json.")
    add_datasets(parser)
    add_plan_options(parser)
    parsed = parser.parse_args(arguments)
    paths = start(parsed)

    from masam_auto.preprocessing.fingerprint import read_fingerprint

    for identifier in parsed.dataset:
        name = known_dataset(paths, identifier)
        plan_step(read_fingerprint(paths.preprocessed / name / "fingerprint.json"), paths, parsed)
    return DONE


def entry() -> None:
    """The installed command."""
    sys.exit(run(main))


if __name__ == "__main__":
    entry()
