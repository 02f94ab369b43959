"""masam_train: train one fold, then validate it."""

import argparse
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from masam_auto.cli.common import (
    DONE,
    add_device,
    add_overrides,
    add_sam_choice,
    add_workers,
    counting_number,
    fold,
    known_dataset,
    make_parser,
    run_rank,
    start,
    whole_number,
)
from masam_auto.cli.tables import print_summary
from masam_auto.core.errors import MasamError, ModelError
from masam_auto.core.paths import Paths
from masam_auto.core.selection import CHECKPOINTS
from masam_auto.preprocessing.dataset_files import read_dataset_plan

if TYPE_CHECKING:
    import torch

    from masam_auto.compute.distributed import World
    from masam_auto.core.plan import Plan

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train a fold, predict and score its validation cases, and print the result."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    parsed = _make_parser().parse_args(given)
    if parsed.shots is not None and (parsed.c or parsed.val):
        raise ModelError("--shots only works at the start of a training. Leave it out with --c and --val.")
    if parsed.shots is not None and parsed.fold == "all":
        raise MasamError("--shots chooses from the training cases of a fold. Give the fold's number instead of all.")
    if parsed.pretrained_weights and (parsed.c or parsed.val):
        raise ModelError("-pretrained_weights only works at the start of a training. Leave it out with --c and --val.")
    paths = start(parsed)

    from masam_auto.compute.distributed import device_of, joined, read_world
    from masam_auto.compute.machine import available_cores

    world = read_world(os.environ)
    device = device_of(world, parsed.device)
    if parsed.num_gpus > 1 and "RANK" not in os.environ:
        from masam_auto.compute.launcher import check_processes, launch

        check_processes(device, parsed.num_gpus)
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // parsed.num_gpus)))
        return launch(
            "masam_auto.cli.train", given, os.environ, processes=parsed.num_gpus, restarts=parsed.max_restarts
        )
    with joined(world, device) as world:
        return _train_and_validate(parsed, paths, device, world)


def _train_and_validate(parsed: argparse.Namespace, paths: Paths, device: "torch.device", world: "World") -> int:
    name = known_dataset(paths, parsed.dataset)
    plan = _read_plan(paths, name, parsed, device)
    configuration = plan.configuration(parsed.configuration)

    from masam_auto.core.dataset import read_description
    from masam_auto.evaluation.validate import ValidationOptions, open_raw_data, validate_fold
    from masam_auto.models.checkpoint import has_checkpoint
    from masam_auto.training.train import train_fold
    from masam_auto.training.training_job import TrainingOptions

    folder = paths.model_folder(name, plan.name, configuration.name) / f"fold_{parsed.fold}"
    resume = parsed.c or (world.has_begun() and has_checkpoint(folder))
    finished = resume and _is_finished(folder, parsed.budget)
    if finished and world.first:
        logger.info("the training is finished; finishing its validation")
    if not parsed.val and not finished:
        try:
            open_raw_data(paths, name)
        except MasamError as error:  # training needs no raw data; the validation after it does
            logger.warning("%s\nTraining continues without it; validate later with --val.", error)
        options = TrainingOptions(
            device=device,
            workers=parsed.workers,
            budget=parsed.budget,
            resume=resume,
            overwrite=parsed.overwrite,
            sam_checkpoint=parsed.sam_checkpoint,
            log_to=tuple(parsed.log_to),
            pretrained_weights=None if resume else parsed.pretrained_weights,
            shots=None if resume else parsed.shots,
        )
        train_fold(paths, name, plan, configuration, parsed.fold, options, world=world)
    how = ValidationOptions(
        device=device,
        checkpoint=parsed.checkpoint,
        redo=parsed.val,
        workers=parsed.workers,
        sam_checkpoint=parsed.sam_checkpoint,
        save_probabilities=parsed.save_probabilities,
        mirror=_asked_mirroring(parsed, plan),
    )
    summary = validate_fold(paths, name, plan, configuration, parsed.fold, how, world=world)
    if not world.first:
        return DONE
    print_summary(summary, read_description(paths.preprocessed / name / "dataset.json", name=name).labels)
    if plan.inference.mirror and not summary["protocol"]["mirror"]:
        print(
            "validated without flips, although masam_predict averages over them; to validate with them: --val --mirror"
        )
    print(f"predictions and summary.json: {folder / 'validation'}")
    print(f"progress: {folder / 'progress.png'}")
    print(
        f"next: masam_predict -i IMAGES -o SEGMENTATIONS -d {shlex.quote(name)} -c {configuration.name} -p {plan.name}"
    )
    return DONE


def _make_parser() -> argparse.ArgumentParser:
    parser = make_parser("masam_train", "Train one fold, then validate it.")
    parser.add_argument("dataset", metavar="DATASET", help="number (1, 001), name (Dataset001_Name) or path")
    parser.add_argument(
        "fold", type=fold, metavar="FOLD", help="0, 1, ... (or fold0, ...), or all to train on all cases"
    )
    parser.add_argument(
        "-c",
        "--configuration",
        metavar="NAME",
        help="configuration: axis0, 2d, ... (default: the plan's default_configuration)",
    )
    parser.add_argument(
        "-p",
        "--plan",
        metavar="NAME",
        help="name of this training (default: the plan's name). A new name keeps the results of a variant apart.",
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--c", "--continue", action="store_true", dest="c", help="continue an interrupted training")
    how.add_argument("--val", action="store_true", help="only validate; predict all cases again")
    how.add_argument("--overwrite", action="store_true", help="replace an existing training")
    parser.add_argument(
        "--budget",
        metavar="AMOUNT",
        help="train this much instead of the plan's epochs: 1000cpus (CPU-seconds), 600s, 30min, 2h, 20epochs or "
        "500steps",
    )
    parser.add_argument("--seed", type=whole_number, metavar="N", help="random seed; same as --set training.seed=N")
    parser.add_argument(
        "-chk",
        "--checkpoint",
        choices=tuple(CHECKPOINTS),
        default="best",
        help="checkpoint to validate; final: the averaged weights at the end of a training",
    )
    parser.add_argument(
        "--mirror",
        action=argparse.BooleanOptionalAction,
        help="average over the plan's flips in validation (default: yes, but no after a --budget of time if they would "
        "take over a fifth of the training's time)",
    )
    parser.add_argument(
        "--save_probabilities",
        "--npz",
        action="store_true",
        help="also write the validation cases' probabilities as validation/ID.npz (float16, on the image's grid)",
    )
    parser.add_argument(
        "-pretrained_weights",
        "--pretrained_weights",
        type=Path,
        metavar="PATH",
        help="start from a trained model: a model.safetensors, or the folder of a checkpoint or fold",
    )
    parser.add_argument(
        "--shots",
        type=_at_least_one,
        metavar="K",
        help="few-shot training: use only so many of the fold's cases that each class occurs in K of them. The seed "
        "chooses them.",
    )
    parser.add_argument(
        "--log_to",
        nargs="+",
        default=[],
        choices=("tensorboard", "wandb", "mlflow"),
        help="also log the epochs there; needs the tool's package (default: nowhere, nothing is sent)",
    )
    parser.add_argument(
        "-num_gpus",
        "--num_gpus",
        type=counting_number,
        default=1,
        metavar="N",
        help="processes that train together on this machine, one per GPU (with -device cpu: on the CPU)",
    )
    parser.add_argument(
        "--max_restarts",
        type=whole_number,
        default=0,
        metavar="N",
        help="with -num_gpus: how often to restart from the last checkpoint after a process has died",
    )
    add_sam_choice(parser)
    add_overrides(parser)
    add_device(parser)
    add_workers(parser)
    return parser


def _at_least_one(text: str) -> int:
    """argparse type: 1, 2, ..."""
    number = whole_number(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, got {text!r}")
    return number


def _read_plan(paths: Paths, name: str, parsed: argparse.Namespace, device: "torch.device") -> "Plan":
    """The data set's plan with the command line's changes, shaped for its budget. With --val and --c, the model's
    plan."""
    from masam_auto.core.jsonio import read_json
    from masam_auto.core.plan import Plan
    from masam_auto.planning.overrides import override

    plan = read_dataset_plan(paths, name)
    plan = replace(plan, name=parsed.plan or plan.name)
    if parsed.val or parsed.c:
        folder = paths.model_folder(name, plan.name, plan.configuration(parsed.configuration).name)
        trained: Path = folder / "plan.json"
        plan = read_json(trained, Plan, what="plan of a trained model") if trained.is_file() else plan
    scratch = ["network.weights=none", "network.trained=all"] if parsed.from_scratch else []
    changes = [*parsed.overrides, *scratch, *([f"training.seed={parsed.seed}"] if parsed.seed is not None else [])]
    plan = override(plan, changes)
    if parsed.val or parsed.c:
        return plan
    from masam_auto.training.training_job import plan_for_budget

    chosen = plan.configuration(parsed.configuration).name
    fold_folder = paths.model_folder(name, plan.name, chosen) / f"fold_{parsed.fold}"
    return plan_for_budget(plan, chosen, parsed.budget, fold_folder, device)


def _asked_mirroring(parsed: argparse.Namespace, plan: "Plan") -> bool | None:
    """Whether the command line asks to validate with flips. None: their cost decides."""
    if parsed.mirror is not None:
        return bool(parsed.mirror)
    named = any(assignment.partition("=")[0].strip() == "inference.mirror" for assignment in parsed.overrides)
    return plan.inference.mirror if named else None


def _is_finished(fold_folder: Path, budget: str | None) -> bool:
    """Whether only the validation is left to do in a training to be continued."""
    from masam_auto.core.jsonio import read_json
    from masam_auto.models.checkpoint import LATEST, STATE_FILE, TrainingState

    file = fold_folder / LATEST / STATE_FILE
    if not file.is_file():
        return False
    state = read_json(file, TrainingState, what="checkpoint")
    return state.finished and budget in (None, state.budget)


def entry() -> None:
    """The installed command."""
    run_rank(main)


if __name__ == "__main__":
    entry()
