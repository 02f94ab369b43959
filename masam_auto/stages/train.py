"""Train one fold: windows in, checkpoints out."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from masam_auto.core.dataset import DatasetDescription, read_description
from masam_auto.core.errors import Interrupted, ModelError
from masam_auto.core.log import log_to_file, stop_logging_to
from masam_auto.core.paths import Paths
from masam_auto.core.plan import Configuration, Plan
from masam_auto.core.sam_files import SamWeights
from masam_auto.learning.batches import BatchLoader, cache_memory, make_batch, open_batches
from masam_auto.learning.beginning import new_learner, restore_learner
from masam_auto.learning.checkpoint import (
    Checkpoint,
    ModelHeader,
    TrainingState,
    differences,
    load_checkpoint,
    plan_digest,
    save_checkpoint,
)
from masam_auto.learning.device import available_cores, default_workers, torch_settings
from masam_auto.learning.epoch import Clock, EpochResult, Learner, judge_windows, peak_memory_gib, train_epoch
from masam_auto.learning.folder import claim_folder, fold_cases, splits_of
from masam_auto.learning.interruption import StopRequest, stop_requests
from masam_auto.learning.loss import choose_loss
from masam_auto.learning.progress import (
    EpochMetrics,
    describe,
    draw_progress,
    mean_dice,
    read_metrics,
    smooth_dice,
    write_metrics,
)
from masam_auto.learning.prompts import box_draws
from masam_auto.learning.sam_weights import sam_of_model, sam_to_start_from
from masam_auto.learning.sampling import CaseStore, Sampling, find_case_files, find_holders
from masam_auto.learning.schedule import Budget, parse_budget, rate_share
from masam_auto.network.build import build_network, learning_summary
from masam_auto.network.masam import MaSam
from masam_auto.stages.preprocess import check_preprocessed

logger = logging.getLogger(__name__)

# A forward pass costs a third of a training step: a tenth of the windows is about three per cent of the time.
VALIDATION_SHARE = 0.1
VALIDATION_FOREGROUND = 0.5
# Drawing the picture may take a fiftieth of the time.
PICTURE_SHARE = 0.02


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """All that is fixed during the training of one fold."""

    folder: Path
    fold: str
    plan: Plan
    configuration: Configuration
    description: DatasetDescription
    training: Sampling
    validation: Sampling
    device: torch.device
    workers: int


def train_fold(
    paths: Paths,
    dataset_name: str,
    plan: Plan,
    configuration: Configuration,
    fold: int | str,
    *,
    device: torch.device,
    resume: bool = False,
    overwrite: bool = False,
    workers: int | None = None,
    budget: str | None = None,
    threads: int | None = None,
    sam_checkpoint: Path | None = None,
    build: Callable[..., MaSam] = build_network,
) -> Path:
    """Train one fold of one configuration on its preprocessed data.

    Saves the latest and the best checkpoint after every epoch; metrics.jsonl, progress.png and training.log tell how
    it went. With a budget of steps or epochs, one seed gives one result on one machine, bit for bit on a CPU, whether
    or not the training was interrupted and however many workers prepare the windows.

    Args:
        paths: root folders.
        dataset_name: DatasetXXX_Name.
        plan: its training, network and, of the configuration, everything.
        configuration: which one.
        fold: a number, or "all" to train and look at all cases.
        device: where to compute.
        resume: continue from the latest checkpoint (`--c`).
        overwrite: remove what an earlier training of this fold left.
        workers: processes that prepare windows, 0 for none; chosen by device and cores where None.
        budget: as `learning.schedule.parse_budget` reads it; the plan's epochs, or when resuming the earlier budget,
            where None.
        threads: of torch, in this process; torch's own choice where None.
        sam_checkpoint: the SAM file to start from; the encoder's in the weights folder where None.
        build: makes the network; replaced in tests.

    Returns:
        The fold's folder.

    Raises:
        PlanError: no preprocessed data, or of another plan; unknown fold; unknown names in the plan.
        OutputError: there is a training already and neither resume nor overwrite is given, or no space is left.
        ModelError: nothing to resume, finished already, checkpoint of another plan, folds that changed since another
            one was trained, SAM weights that are missing, of another encoder or, when resuming, changed; or the loss
            went astray.
        Interrupted: SIGINT or SIGTERM came.
    """
    parse_budget(budget, plan.training)
    job = _prepare(paths, dataset_name, plan, configuration, fold, device=device, workers=workers, resume=resume)
    source = paths.preprocessed / dataset_name
    with torch_settings(threads, device):
        # all that can be wrong with the plan is found before an earlier training is removed
        _try_out(job)
        checkpoint = _checkpoint_to_resume(job) if resume else None
        if checkpoint is None:
            sam = sam_to_start_from(plan.network, file=sam_checkpoint, folder=paths.weights)
        else:
            sam = sam_of_model(checkpoint.header, job.folder, file=sam_checkpoint, folder=paths.weights)
        learner = new_learner(plan, configuration, job.description, device=device, sam=sam, build=build)
        claim_folder(job.folder, plan, configuration, source, resume=resume, overwrite=overwrite)
        log_handler = log_to_file(job.folder / "training.log")
        try:
            with stop_requests() as stop:
                _train(job, learner, _header(job, sam, checkpoint), checkpoint, budget_text=budget, stop=stop)
        finally:
            stop_logging_to(log_handler)
    return job.folder


def _train(
    job: Job,
    learner: Learner,
    header: ModelHeader,
    checkpoint: Checkpoint | None,
    *,
    budget_text: str | None,
    stop: StopRequest,
) -> None:
    """The loop over epochs, from the beginning or from a checkpoint."""
    if checkpoint is not None:
        restore_learner(learner, checkpoint, origin=str(job.folder))
    state = TrainingState() if checkpoint is None else checkpoint.state
    state = replace(state, budget=budget_text or state.budget, finished=False)
    budget = parse_budget(state.budget, job.plan.training)
    clock = Clock(earlier_wall=state.wall_seconds, earlier_cpu=state.cpu_seconds)
    if budget.progress(steps=state.step, wall=clock.wall, cpu=clock.cpu) >= 1:
        raise ModelError(
            f"{job.folder}: this training is finished ({state.epoch} epochs). Give a larger --budget to go on, or "
            "--overwrite to start anew."
        )
    metrics = read_metrics(job.folder / "metrics.jsonl", epochs=state.epoch)
    store = CaseStore(cases=job.training.cases, memory=cache_memory(job.workers))
    validation_store = CaseStore(cases=job.validation.cases, memory=cache_memory(4))
    _announce(job, state, budget)
    logger.info(learning_summary(learner.network))
    picture_cost, picture_time = 0.0, -float("inf")

    def check_stop() -> None:
        if stop.signal_number is not None:
            saved = f"{state.epoch} epochs are saved; continue with --c" if state.epoch else "no epoch was finished yet"
            raise Interrupted(
                f"training of fold {job.fold} stopped in epoch {state.epoch}: {saved}.",
                signal_number=stop.signal_number,
            )

    with open_batches(_loader(job, store, first_epoch=state.epoch), job.workers) as batches:
        clock.watch_workers()
        while not state.finished:
            result = train_epoch(
                learner, batches, job.plan.training, job.configuration, job.description.labels,
                epoch=state.epoch, first_step=state.step, budget=budget, clock=clock, check_stop=check_stop,
            )  # fmt: skip
            dice = judge_windows(
                learner, validation_store, job.validation, job.description.labels,
                precision=job.plan.training.precision, batch_size=job.configuration.batch_size,
                batches=_validation_batches(job), check_stop=check_stop,
            )  # fmt: skip
            state, best = _advance(state, result, dice, clock, budget)
            metrics.append(_metrics(state, result, dice, job.device))
            write_metrics(job.folder / "metrics.jsonl", metrics)
            save_checkpoint(job.folder, _checkpoint(header, state, learner), best=best)
            done = budget.progress(steps=state.step, wall=clock.wall, cpu=clock.cpu)
            logger.info(describe(metrics[-1], best=best, progress=done))
            if state.finished or time.perf_counter() - picture_time >= picture_cost / PICTURE_SHARE:
                picture_time = time.perf_counter()
                draw_progress(job.folder / "progress.png", metrics, title=f"{job.folder.parent.name}, fold {job.fold}")
                picture_cost = time.perf_counter() - picture_time
    logger.info("training of fold %s finished: %s", job.fold, job.folder)


def _prepare(
    paths: Paths,
    dataset_name: str,
    plan: Plan,
    configuration: Configuration,
    fold: int | str,
    *,
    device: torch.device,
    workers: int | None,
    resume: bool,
) -> Job:
    """Check and gather what the training needs, without writing anything."""
    folder = paths.configuration_folder(dataset_name, configuration.name)
    check_preprocessed(folder, configuration)
    description = read_description(folder.parent / "dataset.json", name=dataset_name)
    model_folder = paths.model_folder(dataset_name, plan.name, configuration.name)
    splits_file = splits_of(model_folder, folder.parent) if resume else folder.parent / "splits.json"
    split = fold_cases(splits_file, fold, description, folder)
    check_preprocessed(folder, configuration, {*split.train, *split.val}, labels=description.labels)
    training, validation = (find_case_files(folder, names) for names in (split.train, split.val))
    return Job(
        folder=model_folder / f"fold_{fold}",
        fold=str(fold),
        plan=plan,
        configuration=configuration,
        description=description,
        training=Sampling(
            cases=training,
            holders=find_holders(training),
            configuration=configuration,
            foreground_fraction=plan.training.foreground_fraction,
            augmentation=plan.training.augmentation,
            seed=plan.training.seed,
            boxes=box_draws(plan.network, plan.training, description.labels),
        ),
        validation=Sampling(
            cases=validation,
            holders=find_holders(validation),
            configuration=configuration,
            foreground_fraction=VALIDATION_FOREGROUND,
            augmentation=None,
            seed=plan.training.seed,
        ),
        device=device,
        workers=default_workers(device, available_cores()) if workers is None else workers,
    )


def _try_out(job: Job) -> None:
    """Schedule, loss and one window, as the first step will ask for them. Raises PlanError for unknown names."""
    training, labels = job.plan.training, job.description.labels
    rate_share(training, 1.0)
    loss = choose_loss(training.loss)
    store = CaseStore(cases=job.training.cases, memory=0)
    target = torch.from_numpy(make_batch(store, job.training, 0, 0, 1)["target"])
    batch, window, height, width = target.shape
    loss(torch.zeros(batch, window, labels.num_outputs, height, width), target, labels, training.loss_weights)


def _header(job: Job, sam: SamWeights | None, resumed: Checkpoint | None) -> ModelHeader:
    """What the checkpoints will say; a model that needs its SAM file no more still says which one it began with."""
    if sam is None and resumed is not None:
        file, sha256 = resumed.header.sam_file, resumed.header.sam_sha256
    else:
        file, sha256 = (None, None) if sam is None else (str(sam.path), sam.sha256)
    return ModelHeader(
        dataset_name=job.description.name,
        configuration=job.configuration.name,
        fold=job.fold,
        plan_digest=plan_digest(job.plan, job.configuration),
        sam_file=file,
        sam_sha256=sha256,
        epoch=0,
        network=job.plan.network,
        canvas=job.configuration.canvas,
        in_channels=job.description.num_channels,
        num_outputs=job.description.labels.num_outputs,
    )


def _checkpoint_to_resume(job: Job) -> Checkpoint:
    """The latest checkpoint. Raises ModelError where there is none, or one of another plan or an older version."""
    checkpoint = load_checkpoint(job.folder)
    if checkpoint.header.version < 2:
        raise ModelError(
            f"{job.folder} was trained by an older version of masam_auto, whose trainings cannot be continued. Its model "
            "predicts as it is; give --overwrite to start anew."
        )
    found = differences(
        checkpoint.header,
        job.plan.network,
        canvas=job.configuration.canvas,
        in_channels=job.description.num_channels,
        num_outputs=job.description.labels.num_outputs,
    )
    if found or checkpoint.header.plan_digest != plan_digest(job.plan, job.configuration):
        raise ModelError(
            f"{job.folder} was trained with another plan ({'; '.join(found) or 'its training or configuration differ'}). "
            "Continue with the plan it was started with, without other --set, or give --overwrite to start anew."
        )
    return checkpoint


def _loader(job: Job, store: CaseStore, *, first_epoch: int) -> BatchLoader:
    per_epoch = job.plan.training.steps_per_epoch * job.configuration.accumulation
    return BatchLoader(
        store,
        job.training,
        batch_size=job.configuration.batch_size,
        per_epoch=per_epoch,
        first=first_epoch * per_epoch,
        workers=job.workers,
    )


def _validation_batches(job: Job) -> int:
    return max(2, round(VALIDATION_SHARE * job.plan.training.steps_per_epoch * job.configuration.accumulation))


def _advance(
    state: TrainingState, result: EpochResult, dice: dict[str, float | None], clock: Clock, budget: Budget
) -> tuple[TrainingState, bool]:
    """The state after an epoch, and whether it is the best so far."""
    smoothed = smooth_dice(state.smoothed_dice, mean_dice(dice))
    best = state.best_dice is None or (smoothed is not None and smoothed > state.best_dice)
    step = state.step + result.steps
    advanced = replace(
        state,
        epoch=state.epoch + 1,
        step=step,
        wall_seconds=clock.wall,
        cpu_seconds=clock.cpu,
        finished=budget.progress(steps=step, wall=clock.wall, cpu=clock.cpu) >= 1,
        smoothed_dice=smoothed,
        best_dice=smoothed if best else state.best_dice,
    )
    return advanced, best


def _checkpoint(header: ModelHeader, state: TrainingState, learner: Learner) -> Checkpoint:
    return Checkpoint(
        header=replace(header, epoch=state.epoch),
        state=state,
        model=learner.average.tensors,
        weights=learner.tensors,
        optimizers=tuple(optimizer.state_dict()["state"] for optimizer in learner.optimizers),
    )


def _metrics(
    state: TrainingState, result: EpochResult, dice: dict[str, float | None], device: torch.device
) -> EpochMetrics:
    return EpochMetrics(
        epoch=state.epoch - 1,
        step=state.step,
        learning_rate=result.learning_rate,
        loss=result.loss,
        dice=dice,
        mean_dice=mean_dice(dice),
        smoothed_dice=state.smoothed_dice,
        windows_per_second=result.windows / max(result.seconds, 1e-9),
        wait_share=result.waited / max(result.seconds, 1e-9),
        seconds=state.wall_seconds,
        cpu_seconds=state.cpu_seconds,
        memory_gib=peak_memory_gib(device),
    )


def _announce(job: Job, state: TrainingState, budget: Budget) -> None:
    unit = {"steps": "steps", "wall": "seconds", "cpu": "CPU-seconds"}[budget.kind]
    logger.info(
        "%s fold %s of %s, configuration %s: %s training and %s validation cases, %.0f %s, on %s with %s workers",
        "continuing" if state.epoch else "training", job.fold, job.description.name, job.configuration.name,
        len(job.training.cases), len(job.validation.cases), budget.amount, unit, job.device, job.workers,
    )  # fmt: skip
