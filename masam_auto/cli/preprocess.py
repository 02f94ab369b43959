"""masam_preprocess: preprocess raw data sets as their plans say."""

import sys
from collections.abc import Sequence

from masam_auto.cli.common import DONE, add_datasets, add_executor, make_parser, run, start
from masam_auto.cli.planning import add_preprocess_options, preprocess_step
from masam_auto.preprocessing.dataset_files import read_dataset_plan


def main(arguments: Sequence[str] | None = None) -> int:
    """Preprocess each data set as its plan.json says."""
    parser = make_parser("masam_preprocess", "Preprocess raw data sets as their plan.json says.")
    add_datasets(parser)
    add_preprocess_options(parser)
    add_executor(parser)
    parsed = parser.parse_args(arguments)
    paths = start(parsed)

    from masam_auto.core.dataset import open_dataset

    datasets = [
        open_dataset(paths, identifier) for identifier in parsed.dataset
    ]  # report a wrong name before the first one runs
    for dataset in datasets:
        preprocess_step(dataset, read_dataset_plan(paths, dataset.name), paths, parsed)
    return DONE


def entry() -> None:
    """The installed command."""
    sys.exit(run(main))


if __name__ == "__main__":
    entry()
