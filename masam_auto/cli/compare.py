"""masam_compare: train nnU-Net and other methods on the same fold and budget, and score them alike."""

import argparse
import functools
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from masam_auto.cli.common import (
    DONE,
    add_device,
    add_workers,
    fold,
    known_dataset,
    make_parser,
    run,
    start,
)
from masam_auto.cli.planning import BYTES_PER_VOXEL
from masam_auto.cli.tables import print_table
from masam_auto.core.errors import MasamError
from masam_auto.core.paths import Paths
from masam_auto.preprocessing.dataset_files import check_is_preprocessed, read_dataset_plan

if TYPE_CHECKING:
    import torch

    from masam_auto.baselines.compared_method import Method
    from masam_auto.baselines.nnunet import NnUNet
    from masam_auto.core.dataset import Dataset

logger = logging.getLogger(__name__)

# VARIANTS of baselines.nnunet, and BASELINES of baselines.ours
OTHERS = (
    "nnunet_3d_fullres",
    "nnunet_3d_fullres_nomirror",
    "nnunet_2d",
    "nnunet_2d_nomirror",
    "samed",
    "2d",
    "decoder_only",
)
ENVIRONMENT = Path(".nnunet_env/bin/python")  # where `make nnunet-env` puts it


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the methods that are not finished yet, write the comparison, and print the mean scores."""
    parsed = _make_parser().parse_args(arguments)
    if parsed.fold == "all":
        raise MasamError("a comparison needs held-out cases. Give the number of a fold instead of all.")
    paths = start(parsed)
    name = known_dataset(paths, parsed.dataset)
    read_dataset_plan(paths, name)
    check_is_preprocessed(paths, name, "splits.json")

    from masam_auto.baselines.compare import compare_methods
    from masam_auto.baselines.nnunet import evaluate_with_nnunet
    from masam_auto.baselines.results import MEAN, SHOWN
    from masam_auto.compute.device import choose_device
    from masam_auto.core.summary import mean_of_known
    from masam_auto.evaluation.evaluate import BYTES_PER_VOXEL as EVALUATION_BYTES
    from masam_auto.evaluation.validate import open_raw_data, validation_cases
    from masam_auto.formats.workers import workers_for

    device = choose_device(parsed.device)
    dataset = open_raw_data(paths, name)
    preprocessed, root = paths.preprocessed / name, paths.results / name / "comparison"
    cases = validation_cases(dataset, parsed.fold, preprocessed / "splits.json", preprocessed)
    nnunet = _open_nnunet(parsed, root / "nnunet", device)
    methods = _methods(parsed, paths, dataset, nnunet, device)
    references = [reference for case in cases for reference in case.labels or ()]
    results = compare_methods(
        methods,
        dataset,
        cases,
        root / f"fold_{parsed.fold}",
        heading=[
            f"{name}, fold {parsed.fold}: {len(cases)} validation cases",
            f"Budget of each training: {parsed.budget or 'its own default'}.",
        ],
        hardware=_hardware(device),
        second_opinion=None if nnunet is None else functools.partial(evaluate_with_nnunet, nnunet, dataset),
        workers=workers_for(references, bytes_per_voxel=EVALUATION_BYTES, asked=parsed.workers),
    )
    print_table(
        ["method", *SHOWN],
        [[result.name, *(f"{mean_of_known(result.values(MEAN, name)):.4f}" for name in SHOWN)] for result in results],
    )
    print(f"comparison: {root / f'fold_{parsed.fold}' / 'comparison.md'}")
    return DONE


def _make_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "masam_compare",
        "Train MA-SAM and other methods on the same fold and compare their scores. Run it again to continue: finished "
        "methods are kept.",
    )
    parser.add_argument("dataset", metavar="DATASET", help="number (1, 001), name (Dataset001_Name) or path")
    parser.add_argument("fold", type=fold, metavar="FOLD", help="0, 1, ... (or fold0, ...)")
    parser.add_argument(
        "--with",
        nargs="+",
        required=True,
        choices=OTHERS,
        dest="others",
        metavar="METHOD",
        help=f"methods to compare with: {', '.join(OTHERS)}",
    )
    parser.add_argument(
        "-c",
        "--configuration",
        metavar="NAME",
        help="our configuration: axis0, 2d, ... (default: the plan's default_configuration)",
    )
    parser.add_argument("-p", "--plan", metavar="NAME", help="name of our training (default: the plan's name)")
    parser.add_argument(
        "--budget",
        metavar="AMOUNT",
        help="training budget of every method: 1000cpus (CPU-seconds), 600s, 30min, 2h, 500steps or 20epochs "
        "(default: each method's usual number of epochs)",
    )
    parser.add_argument(
        "--nnunet_python",
        type=Path,
        metavar="PATH",
        help=f"Python with nnU-Net v2 (default: MASAM_NNUNET_PYTHON, else {ENVIRONMENT} from `make nnunet-env`)",
    )
    parser.add_argument(
        "--nnunet_batch",
        nargs="+",
        type=_batch,
        default=[],
        action="extend",
        metavar="CONFIGURATION=N",
        help="batch size of nnU-Net in patches, e.g. 3d_fullres=2 2d=64 (default: what nnU-Net plans)",
    )
    add_device(parser)
    add_workers(parser)
    return parser


def _batch(text: str) -> tuple[str, int]:
    """argparse type: 3d_fullres=2."""
    name, _, number = text.partition("=")
    if name not in ("3d_fullres", "2d") or not number.isdigit() or int(number) < 1:
        raise argparse.ArgumentTypeError(f"must be 3d_fullres=N or 2d=N with N from 1 on, got {text!r}")
    return name, int(number)


def _hardware(device: "torch.device") -> str:
    import torch

    from masam_auto.compute.machine import available_cores

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"{name}, {available_cores()} CPU cores, threads: {os.environ.get('OMP_NUM_THREADS', 'all')}"


def _open_nnunet(parsed: argparse.Namespace, folder: Path, device: "torch.device") -> "NnUNet | None":
    """nnU-Net, if it is asked for or installed."""
    from masam_auto.baselines.nnunet import environment_for, open_nnunet

    given = parsed.nnunet_python or os.environ.get("MASAM_NNUNET_PYTHON")
    python = Path(given or ENVIRONMENT).expanduser()
    needed = given is not None or any(name.startswith("nnunet_") for name in parsed.others)
    if not needed and not python.is_file():
        return None
    try:
        return open_nnunet(python, folder, environment_for(device, os.environ))
    except MasamError as error:
        if needed:
            raise
        logger.warning("Without nnU-Net's evaluation: %s", error)
        return None


def _methods(
    parsed: argparse.Namespace, paths: Paths, dataset: "Dataset", nnunet: "NnUNet | None", device: "torch.device"
) -> "list[Method]":
    """Ours first, then the others in the order given."""
    from masam_auto.baselines.nnunet import VARIANTS, nnunet_method
    from masam_auto.baselines.ours import OURS, our_method
    from masam_auto.core.budget import parse_budget
    from masam_auto.formats.workers import workers_for

    plan = read_dataset_plan(paths, dataset.name)
    parse_budget(parsed.budget, plan.training)  # report a typo before anything runs
    plan = replace(plan, name=parsed.plan or plan.name)
    images = [case.images[0][0] for case in dataset.cases]
    processes = max(workers_for(images, bytes_per_voxel=BYTES_PER_VOXEL, asked=parsed.workers), 1)
    batches = dict(parsed.nnunet_batch)
    found = []
    for name in dict.fromkeys([OURS, *parsed.others]):
        if name not in VARIANTS:
            found.append(
                our_method(name, paths, plan, parsed.configuration, parsed.fold, budget=parsed.budget, device=device)
            )
            continue
        assert nnunet is not None
        method = nnunet_method(
            nnunet,
            name,
            dataset,
            paths.preprocessed / dataset.name / "splits.json",
            parsed.fold,
            budget=parsed.budget,
            batch=batches.get(VARIANTS[name][0]),
            device=device.type,
            processes=processes,
        )
        found.append(method)
    return found


def entry() -> None:
    """The installed command."""
    sys.exit(run(main))


if __name__ == "__main__":
    entry()
