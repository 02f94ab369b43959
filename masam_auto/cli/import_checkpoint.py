"""masam_import_checkpoint: make a model for masam_predict from a published MA-SAM checkpoint."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from masam_auto.cli.common import (
    DONE,
    add_overrides,
    add_sam_checkpoint,
    known_dataset,
    make_parser,
    positive_number,
    run,
    start,
    whole_number,
)
from masam_auto.core.errors import DatasetError
from masam_auto.core.paths import DATASET_NAME, Paths
from masam_auto.preprocessing.dataset_files import read_dataset_plan

if TYPE_CHECKING:
    from masam_auto.core.dataset import DatasetDescription
    from masam_auto.core.plan import Configuration


def main(arguments: Sequence[str] | None = None) -> int:
    """Import one checkpoint."""
    parser = _make_parser()
    parsed = parser.parse_args(arguments)
    if parsed.canvas is not None and len(parsed.canvas) > 2:
        parser.error("argument --canvas: one or two numbers")
    paths = start(parsed)

    from masam_auto.models.import_checkpoint import (
        CANVAS,
        Published,
        import_checkpoint,
        reference_configuration,
        reference_normalization,
    )
    from masam_auto.models.sam_files import weights_to_start_from

    description = _read_description(paths, parsed)
    sam = parsed.sam_checkpoint
    folder = import_checkpoint(
        Published(checkpoint=parsed.checkpoint, scale=parsed.scale, prompt=parsed.prompt),
        weights_to_start_from("", file=sam, folder=paths.weights) if sam else None,
        description,
        reference_configuration(
            _planned(paths, parsed, description.name),
            normalization=reference_normalization(
                description.channel_names,
                scheme=parsed.normalization,
                intensity=tuple(parsed.intensity) if parsed.intensity else None,
            ),
            spacing=tuple(parsed.spacing) if parsed.spacing else None,
            axis=parsed.axis,
            canvas=(parsed.canvas[0], parsed.canvas[-1]) if parsed.canvas else CANVAS,
            window=parsed.window,
        ),
        paths.results,
        weights_folder=paths.weights,
        name=parsed.plan,
        overrides=parsed.overrides,
        overwrite=parsed.overwrite,
    )
    print(f"model: {folder}")
    print(f"next: masam_predict -i IMAGES -o SEGMENTATIONS -m {shlex.quote(str(folder))}")
    return DONE


def _make_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "masam_import_checkpoint",
        "Make a model folder from a checkpoint of MA-SAM's reference implementation and the SAM checkpoint under it. "
        "Encoder, rank, adapters, decoder and number of classes come from the tensors. All other settings are the "
        "reference's unless an option changes them.",
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="the adapted checkpoint, .pth")
    add_sam_checkpoint(parser)
    parser.add_argument(
        "-d",
        "--dataset",
        required=True,
        metavar="DATASET",
        help="data set of the model: number or name of an existing one, or a new DatasetXXX_Name",
    )
    parser.add_argument(
        "--dataset_json",
        type=Path,
        metavar="FILE",
        help="labels and channel names in nnU-Net's format (default: the data set's, with the geometry of its plan)",
    )
    parser.add_argument(
        "-c", "--configuration", metavar="NAME", help="take the geometry from this configuration of the data set's plan"
    )
    parser.add_argument("-p", "--plan", default="imported", metavar="NAME", help="name of the model's plan")
    parser.add_argument(
        "--spacing",
        nargs=3,
        type=positive_number,
        metavar=("Z", "Y", "X"),
        help="median voxel spacing of the training volumes in mm, in the file's axis order. Needed if the data set "
        "has no plan.",
    )
    parser.add_argument("--axis", type=int, choices=(0, 1, 2), help="slice axis of the file (default: 0)")
    parser.add_argument(
        "--canvas",
        nargs="+",
        type=whole_number,
        metavar="PIXELS",
        help="input size in pixels: side, or height and width (default: 512)",
    )
    parser.add_argument("--window", type=whole_number, metavar="N", help="slices per input window (default: 5)")
    parser.add_argument(
        "--intensity",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        help="clip intensities to this range and scale them to 0..1 (default for CT: -200 250)",
    )
    parser.add_argument(
        "--normalization",
        metavar="SCHEME",
        help="normalisation of all channels, e.g. quantile_to_0_1 (the default of channels other than CT)",
    )
    parser.add_argument("--scale", type=positive_number, default=1.0, metavar="S", help="factor on the FacT increments")
    parser.add_argument("--prompt", choices=("none", "box"), default="none", help="prompts in its training")
    add_overrides(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace an existing imported model")
    return parser


def _read_description(paths: Paths, parsed: argparse.Namespace) -> "DatasetDescription":
    from masam_auto.core.dataset import read_description

    full = Path(parsed.dataset).name
    name = full if DATASET_NAME.fullmatch(full) else known_dataset(paths, parsed.dataset)
    if parsed.dataset_json is not None:
        return read_description(parsed.dataset_json, name=name)
    for root in (paths.preprocessed, paths.raw):
        if (root / name / "dataset.json").is_file():
            return read_description(root / name / "dataset.json", name=name)
    raise DatasetError(
        f"no dataset.json of {name} in {paths.preprocessed} or {paths.raw}. Give one with --dataset_json FILE."
    )


def _planned(paths: Paths, parsed: argparse.Namespace, name: str) -> "Configuration | None":
    """The configuration of the data set's plan. None without a plan, or if the labels come from elsewhere."""
    own = parsed.dataset_json is None and (paths.preprocessed / name / "plan.json").is_file()
    if not own and parsed.configuration is None:
        return None
    return read_dataset_plan(paths, name).configuration(parsed.configuration)


def entry() -> None:
    """The installed command."""
    sys.exit(run(main))


if __name__ == "__main__":
    entry()
