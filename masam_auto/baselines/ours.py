"""Our pipeline as one of the compared methods: masam_train on the fold, and predictions from the raw images.

Baselines are other plans in the same pipeline, with the same arrays, folds and budget.
"""

import functools
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from masam_auto.baselines.compared_method import Method, PredictionCost, Training
from masam_auto.baselines.external_program import run_program
from masam_auto.core.dataset import Case
from masam_auto.core.errors import ModelError
from masam_auto.core.jsonio import read_json, read_plain
from masam_auto.core.log import progress
from masam_auto.core.paths import Paths
from masam_auto.core.plan import Plan
from masam_auto.formats.io import label_ending, read_case
from masam_auto.formats.outputs import write_segmentation
from masam_auto.models.checkpoint import LATEST, STATE_FILE, TrainingState, has_checkpoint, plan_digest
from masam_auto.models.trained_model import TrainedModel, describe_model, open_model
from masam_auto.network.build import build_network, count_parameters
from masam_auto.planning.overrides import override
from masam_auto.prediction.predict import Predictor
from masam_auto.training.fold_folder import splits_of
from masam_auto.training.progress import read_metrics
from masam_auto.training.training_job import plan_for_budget

logger = logging.getLogger(__name__)

OURS = "ours"
# Not "best": that checkpoint is chosen on the cases that are scored here. nnU-Net also predicts with its last weights.
CHECKPOINT = "final"


@dataclass(frozen=True, kw_only=True, slots=True)
class Baseline:
    """A plan's name and configuration (None: those of the given plan), and its `--set` changes."""

    plan_name: str | None = None
    configuration: str | None = None
    overrides: tuple[str, ...] = ()


# Source: SAMed (Zhang and Liu, arXiv 2304.13785): LoRA of rank 4 without dropout in the image encoder, SAM's own mask
# decoder, slices one by one.
BASELINES = {
    "samed": Baseline(
        plan_name="samed",
        overrides=(
            "network.increment=lora",
            "network.increment_rank=4",
            "network.increment_dropout=0",
            "network.adapters=none",
            "network.decoder=sam",
        ),
    ),
    "2d": Baseline(configuration="2d"),
    "decoder_only": Baseline(plan_name="decoder_only", overrides=("network.trained=none",)),
}


def our_method(
    name: str,
    paths: Paths,
    plan: Plan,
    configuration: str | None,
    fold: int,
    *,
    budget: str | None,
    device: torch.device,
) -> Method:
    """Our training of a fold, or one of `BASELINES` in the same pipeline.

    A finished training is used as it is, and an interrupted one is continued. An existing training of a baseline must
    match the baseline's plan.

    Args:
        name: "ours", or one of `BASELINES`.
        paths: root folders.
        plan: plan of the data set.
        configuration: configuration of the plan; None for its default.
        fold: its number.
        budget: as `--budget` of masam_train; None for the plan's epochs.
        device: where to compute.

    Raises:
        PlanError: the plan has no such configuration.
    """
    baseline = BASELINES.get(name, Baseline())
    chosen = plan.configuration(baseline.configuration or configuration).name
    folder = paths.model_folder(plan.dataset_name, baseline.plan_name or plan.name, chosen)
    model = describe_model(folder)
    expected = None
    if baseline.plan_name:
        changed = override(plan, baseline.overrides)
        expected = plan_for_budget(changed, chosen, budget, folder / f"fold_{fold}", device)
    return Method(
        name=name,
        train=functools.partial(_train, model, fold, paths, baseline.overrides, expected, budget, device),
        predict=functools.partial(_predict, model, fold, paths, device),
        trained=functools.partial(_finished, model, fold),
        request={"budget": budget, "model": folder.name, "device": device.type},
    )


def _train(
    model: TrainedModel,
    fold: int,
    paths: Paths,
    overrides: Sequence[str],
    expected: Plan | None,
    budget: str | None,
    device: torch.device,
) -> Training:
    """Train a fold, or continue or reuse its training. Returns its cost."""
    folder = model.folder / f"fold_{fold}"
    state = _read_state(folder)
    if state is not None:
        _check_taken_over(model, folder, state, paths.preprocessed / model.dataset_name, expected, budget)
    found = _finished(model, fold)
    if found is not None:
        logger.info("%s: trained already with %s", folder, _said(budget))
        return found
    _run_training(model, fold, paths, overrides, budget, device, resume=has_checkpoint(folder))
    found = _finished(model, fold)
    assert found is not None
    return found


def _check_taken_over(
    model: TrainedModel, folder: Path, state: TrainingState, source: Path, expected: Plan | None, budget: str | None
) -> None:
    """Raises ModelError if an existing training is not the one to compare."""
    remedy = "or train under another name: -p NAME." if expected is None else "or remove it to train it again."
    if state.budget != budget:
        raise ModelError(
            f"{folder} was trained with {_said(state.budget)}, but the comparison asks for {_said(budget)}. Compare "
            f"with that budget, {remedy}"
        )
    own, given = splits_of(model.folder, source), source / "splits.json"
    if read_plain(own, what="splits file") != read_plain(given, what="splits file"):
        raise ModelError(
            f"{folder} was trained on other folds ({own}) than those of the comparison ({given}). Restore its folds, "
            f"{remedy}"
        )
    if expected is None:
        return
    there, name = open_model(model)[0], model.configuration
    if plan_digest(there, there.configuration(name)) != plan_digest(expected, expected.configuration(name)):
        raise ModelError(
            f"{model.folder} was trained with another plan than this baseline gets from the data set's current plan. "
            "Remove it to train it again."
        )


def _finished(model: TrainedModel, fold: int) -> Training | None:
    """The cost of a fold's training; None if it is not finished."""
    folder = model.folder / f"fold_{fold}"
    state = _read_state(folder)
    if state is None or not state.finished:
        return None
    plan, description = open_model(model)
    configuration = plan.configuration(model.configuration)
    network = build_network(
        plan.network,
        canvas=configuration.canvas,
        in_channels=description.num_channels,
        num_outputs=description.labels.num_outputs,
        device="meta",
    )
    ended = (f"ended early: {state.ended}",) if state.ended else ()
    return Training(
        seconds=state.wall_seconds,
        cpu_seconds=state.cpu_seconds,
        memory_gib=max(
            (metrics.memory_gib for metrics in read_metrics(folder / "metrics.jsonl", epochs=state.epoch)), default=0.0
        ),
        parameters=count_parameters(network)["total"][1],
        iterations=state.step,
        batch=configuration.batch_size * configuration.accumulation,
        planned_batch=configuration.batch_size * configuration.accumulation,
        remarks=(*_remarks(plan, configuration.window), *ended),
    )


def _run_training(
    model: TrainedModel,
    fold: int,
    paths: Paths,
    overrides: Sequence[str],
    budget: str | None,
    device: torch.device,
    *,
    resume: bool,
) -> None:
    """Run masam_train in a separate process, so that its peak memory can be measured. Raises ModelError."""
    roots = {name: str(getattr(paths, name)) for name in ("raw", "preprocessed", "results", "weights")}
    command = [
        sys.executable, "-m", "masam_auto.cli.train", model.dataset_name, str(fold), "-c", model.configuration,
        "-p", model.plan_name, "-device", str(device),
        *(word for name, folder in roots.items() for word in (f"--{name}", folder)),
        *(["--budget", budget] if budget else []),
        *(["--c"] if resume else []),
        *(["--set", *overrides] if overrides and not resume else []),
    ]  # fmt: skip
    code = run_program(command)
    if code != 0:
        raise ModelError(
            f"masam_train failed with exit code {code}; see its messages above. The command was: {' '.join(command)}"
        )


def _predict(
    model: TrainedModel, fold: int, paths: Paths, device: torch.device, cases: Sequence[Case], output: Path
) -> PredictionCost:
    """Segment the raw images as masam_predict does. Returns the time of each case."""
    predictor = Predictor.from_folder(model.folder, device, folds=[fold], checkpoint=CHECKPOINT, weights=paths.weights)
    seconds, cpu_seconds = {}, {}
    ending = label_ending(predictor.description.file_ending)
    for case in progress(cases, what=f"predicting with {model.folder.name}"):
        started, started_cpu = time.perf_counter(), time.process_time()
        image, geometry = read_case(case, predictor.description)
        segmentation = predictor.predict_array(image, geometry, identifier=case.identifier).labels
        assert segmentation is not None
        write_segmentation(case, segmentation, geometry, output, ending, predictor.description.labels)
        seconds[case.identifier] = time.perf_counter() - started
        cpu_seconds[case.identifier] = time.process_time() - started_cpu
    return PredictionCost(seconds=seconds, cpu_seconds=cpu_seconds)


def _read_state(folder: Path) -> TrainingState | None:
    file = folder / LATEST / STATE_FILE
    return read_json(file, TrainingState, what="checkpoint") if file.is_file() else None


def _said(budget: str | None) -> str:
    return f"a budget of {budget}" if budget else "the plan's epochs"


def _remarks(plan: Plan, window: int) -> tuple[str, ...]:
    network = plan.network
    remarks = [f"{network.encoder}, windows of {window} slice{'s' if window > 1 else ''}"]
    if network.weights == "none":
        start = "learns from scratch" if network.trained == "all" else "is random and frozen"
        remarks.append(f"no SAM weights: its encoder {start}")
    remarks.append(f"{CHECKPOINT} weights")
    return tuple(remarks)
