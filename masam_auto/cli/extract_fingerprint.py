"""masam_extract_fingerprint: check and measure raw data sets."""

import sys
from collections.abc import Sequence

from masam_auto.cli.common import DONE, add_datasets, add_executor, make_parser, run, start
from masam_auto.cli.planning import add_verify_options, fingerprint_step


def main(arguments: Sequence[str] | None = None) -> int:
    """Check and measure each data set."""
    parser = make_parser("masam_extract_fingerprint", "Check and measure raw data sets. Writes fingerprint.json.")
    add_datasets(parser)
    add_verify_options(parser)
    add_executor(parser)
    parsed = parser.parse_args(arguments)
    paths = start(parsed)

    from masam_auto.core.dataset import open_dataset

    datasets = [
        open_dataset(paths, identifier) for identifier in parsed.dataset
    ]  # report a wrong name before the first one runs
    for dataset in datasets:
        fingerprint_step(dataset, paths, parsed)
        print(f"fingerprint: {paths.preprocessed / dataset.name / 'fingerprint.json'}")
    return DONE


def entry() -> None:
    """The installed command."""
    sys.exit(run(main))


if __name__ == "__main__":
    entry()
