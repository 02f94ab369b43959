"""Options and steps shared by masam_plan_and_preprocess, masam_extract_fingerprint, masam_plan and masam_preprocess."""

import argparse
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from masam_auto.cli.common import add_overrides, add_sam_choice, positive_number
from masam_auto.compute.cluster import Cluster, check_answers
from masam_auto.core.atomic import write_bytes
from masam_auto.core.errors import PlanError
from masam_auto.core.jsonio import digest, read_plain, write_json
from masam_auto.core.paths import Paths

if TYPE_CHECKING:  # only for annotations: these need torch, which --help must not wait for
    from masam_auto.core.dataset import Dataset
    from masam_auto.core.fingerprint import Fingerprint
    from masam_auto.core.plan import Plan, Speed

logger = logging.getLogger(__name__)

BYTES_PER_VOXEL = 24  # and channel, while a case is measured: six float32 copies


def add_plan_options(parser: argparse.ArgumentParser) -> None:
    """The options that shape a new plan."""
    parser.add_argument(
        "-gpu_memory_target",
        "--gpu_memory_target",
        type=memory,
        metavar="GB",
        help="GPU memory to plan for in GB; 0 for no GPU (default: this machine's)",
    )
    parser.add_argument(
        "-overwrite_target_spacing",
        "--overwrite_target_spacing",
        nargs=3,
        type=positive_number,
        metavar=("Z", "Y", "X"),
        help="target voxel spacing in mm, in the file's axis order (default: from the data)",
    )
    parser.add_argument(
        "-backbone",
        "--backbone",
        metavar="NAME",
        help="image encoder: vit_t, vit_b, vit_l, vit_h, or another one of documentation/weights.md (default: the "
        "largest that fits in memory)",
    )
    parser.add_argument(
        "--budget",
        metavar="AMOUNT",
        help="plan for this much training per fold, e.g. 2h or 20epochs, as for masam_train --budget. The plan stores "
        "it.",
    )
    add_sam_choice(parser)
    add_overrides(parser)


def memory(text: str) -> float:
    """argparse type: GPU memory in GB, 0 for no GPU."""
    return 0.0 if text.strip() in ("0", "0.0") else positive_number(text)


def add_verify_options(parser: argparse.ArgumentParser) -> None:
    """The options that decide whether the raw data are checked first."""
    parser.add_argument(
        "--verify_dataset_integrity",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="check the raw data first (default)",
    )
    parser.add_argument(
        "--no_verify",
        action="store_false",
        dest="verify_dataset_integrity",
        help="same as --no-verify_dataset_integrity (default: check)",
    )


def add_preprocess_options(parser: argparse.ArgumentParser) -> None:
    """The options that decide what is preprocessed."""
    parser.add_argument(
        "-c", "--configurations", nargs="+", metavar="NAME", help="configurations to preprocess (default: all)"
    )
    parser.add_argument(
        "--overwrite",
        "--clean",
        action="store_true",
        dest="overwrite",
        help="preprocess all cases again (default: keep finished ones)",
    )


def fingerprint_step(dataset: "Dataset", paths: Paths, parsed: argparse.Namespace) -> "Fingerprint":
    """Check a raw data set, measure it, and write fingerprint.json."""
    from masam_auto.formats.workers import workers_for
    from masam_auto.preprocessing.fingerprint import extract_fingerprint, write_fingerprint
    from masam_auto.preprocessing.verify import verify_dataset

    frames = max(len(case.frames) for case in dataset.cases)
    workers = workers_for(
        [case.images[0][0] for case in dataset.cases],
        bytes_per_voxel=BYTES_PER_VOXEL * dataset.description.num_channels * frames,
        asked=parsed.workers,
    )
    if parsed.verify_dataset_integrity:
        verify_dataset(dataset, workers=workers)
    fingerprint = extract_fingerprint(dataset, workers=workers)
    write_fingerprint(paths.preprocessed / dataset.name / "fingerprint.json", fingerprint)
    return fingerprint


def plan_step(fingerprint: "Fingerprint", paths: Paths, parsed: argparse.Namespace) -> "Plan":
    """Plan, write plan.json and print its table. A different old plan is kept as plan.previous.json."""
    from masam_auto.models.sam_files import sam_encoders
    from masam_auto.planning.make_plan import make_plan, plan_table
    from masam_auto.training.plan_names import check_names

    named = _encoder_of(parsed)
    with_weights = (named,) if named else sam_encoders(paths.weights)
    gpu_memory_gb = detect_gpu_memory() if parsed.gpu_memory_target is None else parsed.gpu_memory_target
    plan = make_plan(
        fingerprint,
        gpu_memory_gb=gpu_memory_gb,
        backbone=named or parsed.backbone,
        sam_weights=with_weights,
        from_scratch=parsed.from_scratch,
        target_spacing=tuple(parsed.overwrite_target_spacing) if parsed.overwrite_target_spacing else None,
        speeds=_speeds(paths.preprocessed, with_weights) if gpu_memory_gb <= 0 else {},
        overrides=[*([f"training.budget={parsed.budget}"] if parsed.budget else []), *parsed.overrides],
    )
    check_names(plan)
    for assignment in parsed.overrides:
        if (field := assignment.partition("=")[0].strip()).endswith(".spacing"):
            logger.warning(
                "warning: %s is set by hand, but median shape, canvas and window were planned for another spacing. "
                "To plan all of it for this spacing, use --overwrite_target_spacing Z Y X.",
                field,
            )
    path = paths.preprocessed / fingerprint.dataset_name / "plan.json"
    if path.is_file() and _is_another(path, plan):
        write_bytes(path.with_name("plan.previous.json"), path.read_bytes())
        logger.info("%s is replaced; the old one is kept as plan.previous.json", path)
    write_json(path, plan)
    print(plan_table(plan))
    print(f"plan: {path}")
    return plan


def _speeds(folder: Path, with_weights: Sequence[str]) -> dict[str, "Speed"]:
    """How fast this machine trains the encoders that need no GPU, from scratch or with weights that are here."""
    from masam_auto.planning.planned_encoders import PLANNED_ENCODERS
    from masam_auto.training.speed import speed_of_machine

    usable = [shape for shape in PLANNED_ENCODERS.values() if not shape.sam or shape.name in with_weights]
    return {shape.name: speed_of_machine(folder, shape.name) for shape in usable if shape.without_gpu is not None}


def _is_another(path: Path, plan: "Plan") -> bool:
    """Whether a file holds anything but this plan, even a broken one."""
    try:
        return digest(read_plain(path, what="plan")) != digest(plan)
    except PlanError:
        return True


def _encoder_of(parsed: argparse.Namespace) -> str | None:
    """The encoder of --sam_checkpoint, if given. The plan is made for it."""
    if parsed.sam_checkpoint is None:
        return None
    from masam_auto.models.sam_weights import encoder_of_file

    encoder = encoder_of_file(parsed.sam_checkpoint)
    if parsed.backbone not in (None, encoder):
        raise PlanError(
            f"--sam_checkpoint {parsed.sam_checkpoint} holds {encoder}, but -backbone is {parsed.backbone}. Leave "
            "one of them out."
        )
    return encoder


def preprocess_step(dataset: "Dataset", plan: "Plan", paths: Paths, parsed: argparse.Namespace) -> None:
    """Preprocess a data set as planned."""
    from masam_auto.preprocessing.preprocess import preprocess_dataset

    names = [plan.configuration(name).name for name in parsed.configurations or plan.configurations]
    if parsed.overwrite:
        if isinstance(parsed.workers, Cluster):
            check_answers(parsed.workers)
        for name in names:
            shutil.rmtree(paths.configuration_folder(dataset.name, name), ignore_errors=True)
    preprocess_dataset(dataset, plan, paths, configurations=names, workers=parsed.workers)
    print(f"preprocessed: {', '.join(str(paths.configuration_folder(dataset.name, name)) for name in names)}")


def detect_gpu_memory() -> float:
    """Memory of the first GPU in GB, 0 without a GPU."""
    import torch  # heavy: not before the arguments are parsed

    if not torch.cuda.is_available():
        return 0.0
    return round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1)
