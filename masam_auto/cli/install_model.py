"""masam_install_model: install the models of a file from masam_export_model."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from masam_auto.cli.common import DONE, make_parser, run, start


def main(arguments: Sequence[str] | None = None) -> int:
    """Install the models of one archive."""
    parsed = _make_parser().parse_args(arguments)
    paths = start(parsed)

    from masam_auto.models.install_model import install_model

    models = install_model(parsed.archive, paths.results, weights=paths.weights, overwrite=parsed.overwrite)
    for model in models:
        print(f"model: {model}")
    which = f"-m {shlex.quote(str(models[0].folder))}" if len(models) == 1 else f"-d {models[0].dataset_name}"
    print(f"next: masam_predict -i IMAGES -o SEGMENTATIONS {which}")
    return DONE


def _make_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "masam_install_model",
        "Check an archive from masam_export_model and install its models. Then read README.md in the model's folder.",
    )
    parser.add_argument("archive", type=Path, metavar="FILE", help="archive from masam_export_model")
    parser.add_argument("--overwrite", action="store_true", help="replace models of the same name with all their folds")
    return parser


def entry() -> None:
    """The installed command."""
    sys.exit(run(main))


if __name__ == "__main__":
    entry()
