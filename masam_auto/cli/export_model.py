"""masam_export_model: pack a trained model, or a selected pair, into one file."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from masam_auto.cli.common import DONE, make_parser, run, start
from masam_auto.cli.model_options import add_which_model, find_selection
from masam_auto.core.paths import Paths
from masam_auto.core.selection import Selection

if TYPE_CHECKING:
    from masam_auto.models.export_model import ExportedModel


def main(arguments: Sequence[str] | None = None) -> int:
    """Export one model, or the data set's selection."""
    parsed = _make_parser().parse_args(arguments)
    paths = start(parsed)

    from masam_auto.models.export_model import export_model

    members, selection = _find_members(parsed, paths)
    manifest = export_model(
        members,
        parsed.output,
        selection=selection,
        licence=parsed.licence,
        case_names=parsed.case_names,
        overwrite=parsed.overwrite,
    )
    print(
        f"{parsed.output}: {', '.join(manifest.models)} of {manifest.dataset_name}, "
        f"{parsed.output.stat().st_size / 1e6:.1f} MB"
    )
    return DONE


def _make_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "masam_export_model",
        "Pack a trained model and its model card into one file for masam_install_model. If no option names a model: "
        "the choice of masam_find_best_configuration, else the only model.",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.zip", help="the archive to write")
    parser.add_argument("-d", "--dataset", metavar="DATASET", help="export the model of this data set: number or name")
    add_which_model(parser)
    parser.add_argument("--licence", metavar="TEXT", help="licence in the model card, e.g. CC-BY-4.0")
    parser.add_argument(
        "--case_names",
        action="store_true",
        help="also include the training cases of each fold and the scores of every case. Their names may identify "
        "patients.",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing archive")
    return parser


def _find_members(parsed: argparse.Namespace, paths: Paths) -> tuple[list["ExportedModel"], Selection | None]:
    from masam_auto.models.export_model import ExportedModel
    from masam_auto.models.trained_model import choose_model, describe_model

    if selection := find_selection(parsed, paths):
        folder = paths.results / selection.dataset_name
        members = [
            ExportedModel(
                model=describe_model(folder / member.folder_name), folds=member.folds, checkpoint=member.checkpoint
            )
            for member in selection.members
        ]
        return members, selection
    model = choose_model(
        paths.results,
        dataset=parsed.dataset,
        configuration=parsed.configuration,
        plan_name=parsed.plan,
        folder=parsed.model,
    )
    return [ExportedModel(model=model, folds=parsed.folds, checkpoint=parsed.checkpoint or "best")], None


def entry() -> None:
    """The installed command."""
    sys.exit(run(main))


if __name__ == "__main__":
    entry()
