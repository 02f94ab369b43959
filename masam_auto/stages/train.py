"""Train one fold: windows in, checkpoints out."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from masam_auto.core.dataset import DatasetDescription, read_description
from masam_auto.core.errors import Interrupted, ModelError
from masam_auto.core.log import log_to_file, stop_logging_to
from masam_auto.core.paths import Paths
from masam_auto.core.plan import Configuration, Plan
from masam_auto.core.sam_files import SamWeights
from masam_auto.learning.augmentation_picture import draw_augmentation
from masam_auto.learning.batches import BatchLoader, cache_memory, make_batch, open_batches
from masam_auto.learning.beginning import new_learner, restore_learner
from masam_auto.learning.checkpoint import (
    Checkpoint,
    EpochSoFar,
    ModelHeader,
    TrainingState,
    differences,
    load_checkpoint,
    plan_digest,
    save_checkpoint,
)
from masam_auto.learning.device import available_cores, default_workers, torch_settings
from masam_auto.learning.distributed import ALONE, World, learn_together, share_of
from masam_auto.learning.epoch import NOTHING_YET, Clock, Learner, judge_windows, peak_memory_gib, train_epoch
from masam_auto.learning.folder import claim_folder, fold_cases, splits_of
from masam_auto.learning.interruption import StopRequest, stop_requests
from masam_auto.learning.loss import choose_loss
from masam_auto.learning.out_of_memory import explain_out_of_memory
from masam_auto.learning.pretrained import start_from
from masam_auto.learning.progress import (
    EpochMetrics,
    describe,
    draw_progress,
    mean_dice,
    read_metrics,
    seconds_left,
    smooth_dice,
    write_metrics,
)
from masam_auto.learning.prompts import box_draws
from masam_auto.learning.records import Run, check_sinks, open_records
from masam_auto.learning.sam_weights import sam_of_model, sam_to_start_from
from masam_auto.learning.sampling import CaseStore, Sampling, find_case_files, find_holders
from masam_auto.learning.schedule import Budget, parse_budget, rate_share
from masam_auto.learning.stopping import reason_to_end, remove_stop_file, stop_file_is_there
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
    world: World
    log_to: tuple[str, ...]


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
    pretrained_weights: Path | None = None,
    log_to: Sequence[str] = (),
    build: Callable[..., MaSam] = build_network,
    world: World = ALONE,
) -> Path:
    """Train one fold of one configuration on its preprocessed data.

    Saves the latest and the best checkpoint after every epoch, and the latest where a signal (SIGINT, SIGTERM, SIGUSR1)
    stops it between two steps; metrics.jsonl, progress.png and training.log tell how it went. With a budget of steps or
    epochs, one seed gives one result on one machine, bit for bit on a CPU, whether or not the training was interrupted
    and however many workers prepare the windows.

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
        pretrained_weights: a trained model to start from, as `learning.pretrained.find_model` reads it; not when resuming.
        log_to: names of `learning.records.SINKS` to record to.
        build: makes the network; replaced in tests.
        world: the processes that train together, joined already; only the first writes files.

    Returns:
        The fold's folder.

    Raises:
        PlanError: no preprocessed data, or of another plan; unknown fold; unknown names in the plan.
        OutputError: there is a training already and neither resume nor overwrite is given, or no space is left.
        ModelError: nothing to resume, finished already, checkpoint of another plan, folds that changed since another
            one was trained, SAM weights that are missing, of another encoder or, when resuming, changed; or the loss
            went astray.
        Interrupted: SIGINT, SIGTERM or SIGUSR1 came; the present step is saved.
    """
    assert pretrained_weights is None or not resume
    parse_budget(budget, plan.training)
    check_sinks(log_to)
    job = _prepare(
        paths, dataset_name, plan, configuration, fold, device=device, workers=workers, resume=resume,
        world=world, log_to=tuple(log_to),
    )  # fmt: skip
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
        header, taken = _header(job, sam, checkpoint), None
        if pretrained_weights is not None:
            origin, taken = start_from(learner, pretrained_weights, sam=sam)
            header = replace(header, pretrained_weights=origin)
        learner = replace(learner, together=learn_together(learner.network, world, configuration))
        if world.first:
            claim_folder(job.folder, plan, configuration, source, resume=resume, overwrite=overwrite)
            world.begin()
        world.meet()
        explained = explain_out_of_memory(
            plan, configuration, encoder=learner.network.spec, in_channels=job.description.num_channels,
            num_outputs=job.description.labels.num_outputs, device=device,
        )  # fmt: skip
        with _logged(job), stop_requests(repeated=world.size > 1) as stop, explained:
            if taken is not None:
                logger.info(taken)
            _train(job, learner, header, checkpoint, budget_text=budget, stop=stop)
        world.meet()  # the others must not look for what the first has not written yet
    return job.folder


@contextlib.contextmanager
def _logged(job: Job) -> Iterator[None]:
    """Write the log into the fold's folder, too."""
    if not job.world.first:
        yield
        return
    handler = log_to_file(job.folder / "training.log")
    try:
        yield
    finally:
        stop_logging_to(handler)


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
    # what ended for want of patience, and is continued all the same, gets as much again
    best_epoch = state.best_epoch if state.ended is None else state.epoch
    state = replace(state, budget=budget_text or state.budget, finished=False, ended=None, best_epoch=best_epoch)
    budget = parse_budget(state.budget, job.plan.training)
    clock = Clock(earlier_wall=state.wall_seconds, earlier_cpu=state.cpu_seconds, processes=job.world.size)
    if budget.progress(steps=state.step, wall=clock.wall, cpu=clock.cpu) >= 1 and not state.unfinished.steps:
        raise ModelError(
            f"{job.folder}: this training is finished ({state.epoch} epochs). Give a larger --budget to go on, or "
            "--overwrite to start anew."
        )
    metrics = read_metrics(job.folder / "metrics.jsonl", epochs=state.epoch)
    store = CaseStore(cases=job.training.cases, memory=cache_memory(max(job.workers, 1) * job.world.local_size))
    validation_store = CaseStore(cases=job.validation.cases, memory=cache_memory(4 * job.world.local_size))
    _announce(job, state, budget)
    logger.info(learning_summary(learner.network))
    name = f"{job.folder.parent.name}/{job.folder.name}"
    if checkpoint is None and job.world.first:
        draw_augmentation(job.folder, job.training, job.description.labels, title=name)
    run = Run(folder=job.folder, dataset_name=job.description.name, name=name, plan=job.plan, first_epoch=state.epoch)
    sinks = job.log_to if job.world.first else ()
    picture_cost, picture_time = 0.0, -float("inf")

    def ask(step: int) -> tuple[float, bool]:
        used = budget.progress(steps=step, wall=clock.wall, cpu=clock.cpu)
        progress, number = job.world.largest(used, stop.signal_number or 0)
        stop.signal_number = stop.signal_number or int(number) or None
        return progress, number > 0

    with open_batches(_loader(job, store, state), job.workers) as batches, open_records(sinks, run) as record:
        clock.watch_workers()
        while not state.finished:
            epoch, stopped = train_epoch(
                learner, batches, job.plan.training, job.configuration, job.description.labels,
                epoch=state.epoch, first_step=state.step - state.unfinished.steps, ask=ask, so_far=state.unfinished,
            )  # fmt: skip
            state = replace(state, step=state.step + epoch.steps - state.unfinished.steps, unfinished=epoch)
            dice = None if stopped else judge_windows(
                learner, validation_store, job.validation, job.description.labels,
                precision=job.plan.training.precision, batch_size=job.configuration.batch_size,
                batches=_validation_batches(job), stop_asked=lambda: ask(0)[1],
            )  # fmt: skip
            if dice is None:
                state = replace(state, wall_seconds=clock.wall, cpu_seconds=clock.cpu)
                if job.world.first:
                    save_checkpoint(job.folder, _checkpoint(header, state, learner), best=False)
                job.world.meet()
                raise _interrupted(job, state, stop)
            done, asked = job.world.largest(
                budget.progress(steps=state.step, wall=clock.wall, cpu=clock.cpu),
                float(job.world.first and stop_file_is_there(job.folder)),
            )
            state, best = _advance(state, dice, clock, finished=done >= 1)
            if not state.finished and (reason := reason_to_end(state, job.plan.training, asked=asked > 0)):
                state = replace(state, finished=True, ended=reason)
            if not job.world.first:
                continue
            metrics.append(_metrics(job, state, epoch, dice, progress=done))
            write_metrics(job.folder / "metrics.jsonl", metrics)
            save_checkpoint(job.folder, _checkpoint(header, state, learner), best=best)
            logger.info(describe(metrics[-1], best=best))
            record(metrics[-1])
            if state.finished:
                remove_stop_file(job.folder)
            if state.finished or time.perf_counter() - picture_time >= picture_cost / PICTURE_SHARE:
                picture_time = time.perf_counter()
                draw_progress(job.folder / "progress.png", metrics, title=f"{job.folder.parent.name}, fold {job.fold}")
                picture_cost = time.perf_counter() - picture_time
    early = f" early, after {state.epoch} epochs: {state.ended}" if state.ended else ""
    logger.info("training of fold %s finished%s: %s", job.fold, early, job.folder)


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
    world: World,
    log_to: tuple[str, ...],
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
        workers=default_workers(device, available_cores() // world.local_size) if workers is None else workers,
        world=world,
        log_to=log_to,
    )


def _try_out(job: Job) -> None:
    """Schedule, loss and one window, as the first step will ask for them. Raises PlanError for unknown names."""
    training, labels = job.plan.training, job.description.labels
    share_of(job.world, job.configuration)
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
        pretrained_weights=None if resumed is None else resumed.header.pretrained_weights,
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


def _loader(job: Job, store: CaseStore, state: TrainingState) -> BatchLoader:
    share = share_of(job.world, job.configuration)
    per_epoch = job.plan.training.steps_per_epoch * share.batches
    return BatchLoader(
        store,
        job.training,
        share=share,
        per_epoch=per_epoch,
        first=state.epoch * per_epoch + state.unfinished.steps * share.batches,
        workers=job.workers,
    )


def _validation_batches(job: Job) -> int:
    return max(2, round(VALIDATION_SHARE * job.plan.training.steps_per_epoch * job.configuration.accumulation))


def _interrupted(job: Job, state: TrainingState, stop: StopRequest) -> Interrupted:
    assert stop.signal_number is not None
    return Interrupted(
        f"training of fold {job.fold} stopped in epoch {state.epoch}: all {state.step} steps are saved; continue with "
        "--c.",
        signal_number=stop.signal_number,
    )


def _advance(
    state: TrainingState, dice: dict[str, float | None], clock: Clock, *, finished: bool
) -> tuple[TrainingState, bool]:
    """The state after all steps of an epoch and their validation, and whether it is the best so far."""
    smoothed = smooth_dice(state.smoothed_dice, mean_dice(dice))
    best = state.best_dice is None or (smoothed is not None and smoothed > state.best_dice)
    advanced = replace(
        state,
        epoch=state.epoch + 1,
        unfinished=NOTHING_YET,
        wall_seconds=clock.wall,
        cpu_seconds=clock.cpu,
        finished=finished,
        smoothed_dice=smoothed,
        best_dice=smoothed if best else state.best_dice,
        best_epoch=state.epoch + 1 if best else state.best_epoch,
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
    job: Job, state: TrainingState, epoch: EpochSoFar, dice: dict[str, float | None], *, progress: float
) -> EpochMetrics:
    windows = epoch.steps * job.configuration.accumulation * job.configuration.batch_size
    return EpochMetrics(
        epoch=state.epoch - 1,
        step=state.step,
        learning_rate=epoch.learning_rate,
        loss=float(np.mean(epoch.losses)) if epoch.losses else 0.0,
        dice=dice,
        mean_dice=mean_dice(dice),
        smoothed_dice=state.smoothed_dice,
        windows_per_second=windows / max(epoch.seconds, 1e-9),
        wait_share=epoch.waited / max(epoch.seconds, 1e-9),
        seconds=state.wall_seconds,
        cpu_seconds=state.cpu_seconds,
        memory_gib=peak_memory_gib(job.device),
        seconds_left=0.0 if state.finished else seconds_left(state.wall_seconds, progress),
        ended=state.ended,
    )


def _announce(job: Job, state: TrainingState, budget: Budget) -> None:
    unit = {"steps": "steps", "wall": "seconds", "cpu": "CPU-seconds"}[budget.kind]
    logger.info(
        "%s fold %s of %s, configuration %s: %s training and %s validation cases, %.0f %s, on %s with %s workers%s",
        "continuing" if state.step else "training", job.fold, job.description.name, job.configuration.name,
        len(job.training.cases), len(job.validation.cases), budget.amount, unit, job.device, job.workers,
        f" each, in {job.world.size} processes" if job.world.size > 1 else "",
    )  # fmt: skip
