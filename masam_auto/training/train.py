"""Train one fold: windows in, checkpoints out."""

import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from masam_auto.compute.device import torch_settings
from masam_auto.compute.distributed import ALONE, World, learn_together
from masam_auto.compute.interruption import StopRequest, stop_requests
from masam_auto.core.budget import Budget, parse_budget
from masam_auto.core.claims import claimed
from masam_auto.core.errors import Interrupted, ModelError
from masam_auto.core.log import log_to_file, stop_logging_to
from masam_auto.core.paths import Paths
from masam_auto.core.plan import Configuration, Plan
from masam_auto.models.checkpoint import Checkpoint, EpochSoFar, ModelHeader, TrainingState
from masam_auto.models.sam_weights import sam_of_model, sam_to_start_from
from masam_auto.network.build import learning_summary
from masam_auto.training.augmentation_picture import draw_augmented_windows
from masam_auto.training.batches import cache_memory, open_batches
from masam_auto.training.checkpoint_writer import open_writer
from masam_auto.training.early_stop import reason_to_end, remove_stop_file, stop_file_is_there
from masam_auto.training.epoch import Clock, Learner, judge_windows, peak_memory_gib, train_epoch
from masam_auto.training.fold_folder import claim_folder
from masam_auto.training.new_learner import checkpoint_of, new_learner, restore_learner
from masam_auto.training.out_of_memory import explain_out_of_memory
from masam_auto.training.pace import Pace
from masam_auto.training.pretrained import start_from
from masam_auto.training.progress import (
    EpochMetrics,
    advance,
    describe,
    draw_progress,
    mean_of_classes,
    read_metrics,
    seconds_left,
    write_metrics,
)
from masam_auto.training.sampling import CaseStore
from masam_auto.training.trackers import Run, check_sinks, open_records
from masam_auto.training.training_job import (
    Job,
    TrainingOptions,
    checkpoint_to_resume,
    header_of,
    loader_of,
    prepare_job,
    try_out,
    validation_batches,
)

logger = logging.getLogger(__name__)

# Drawing the picture may take a fiftieth of the time.
PICTURE_SHARE = 0.02


def train_fold(
    paths: Paths,
    dataset_name: str,
    plan: Plan,
    configuration: Configuration,
    fold: int | str,
    options: TrainingOptions,
    *,
    world: World = ALONE,
) -> Path:
    """Train one fold of one configuration on its preprocessed data.

    Saves the latest and the best checkpoint after every epoch, and the latest within a long epoch every few minutes and
    where a signal (SIGINT, SIGTERM, SIGUSR1) stops it between two steps; metrics.jsonl, progress.png and training.log
    tell how it went. A budget of time shortens the epochs so that it has about 20. With a budget of steps or
    epochs, one seed gives one result on one machine, bit for bit on a CPU, whether or not the training was interrupted
    and however many workers prepare the windows.

    Args:
        paths: root folders.
        dataset_name: DatasetXXX_Name.
        plan: its training, network and, of the configuration, everything.
        configuration: which one.
        fold: a number, or "all" to train and look at all cases.
        options: where to compute, for how long, and what to start from.
        world: the processes that train together, joined already; only the first writes files.

    Returns:
        The fold's folder.

    Raises:
        PlanError: no preprocessed data, or of another plan; unknown fold; unknown names in the plan.
        OutputError: there is a training already and neither resume nor overwrite is given, another process is at it, or no
            space is left.
        ModelError: nothing to resume, finished already, checkpoint of another plan, folds that changed since another
            one was trained, SAM weights that are missing, of another encoder or, when resuming, changed; or the loss
            went astray.
        Interrupted: SIGINT, SIGTERM or SIGUSR1 came; the present step, or the end, is saved.
    """
    assert options.shots is None or fold != "all"
    parse_budget(options.budget, plan.training)
    check_sinks(options.log_to)
    device, resume = options.device, options.resume
    job = prepare_job(paths, dataset_name, plan, configuration, fold, options, world)
    source = paths.preprocessed / dataset_name
    alone = claimed(job.folder.parent, job.folder.name) if world.first else contextlib.nullcontext()
    with torch_settings(options.threads, device), alone:
        # all that can be wrong with the plan is found before an earlier training is removed
        try_out(job)
        checkpoint = checkpoint_to_resume(job) if resume else None
        if checkpoint is None:
            sam = sam_to_start_from(plan.network, file=options.sam_checkpoint, folder=paths.weights)
        else:
            sam = sam_of_model(checkpoint.header, job.folder, file=options.sam_checkpoint, folder=paths.weights)
        learner = new_learner(plan, configuration, job.description, device=device, sam=sam)
        header, taken = header_of(job, sam, checkpoint), None
        if options.pretrained_weights is not None:
            origin, taken = start_from(learner, options.pretrained_weights, sam=sam)
            header = replace(header, pretrained_weights=origin)
        learner = replace(learner, together=learn_together(learner.network, world, configuration))
        if world.first:
            claim_folder(
                job.folder, plan, configuration, source,
                resume=resume, overwrite=options.overwrite, few_shot=job.few_shot,
            )  # fmt: skip
            world.begin()
        world.meet()
        explained = explain_out_of_memory(
            plan, configuration, encoder=learner.network.spec, in_channels=job.description.num_channels,
            num_outputs=job.description.labels.num_outputs, device=device,
        )  # fmt: skip
        with _logged(job), stop_requests(repeated=world.size > 1) as stop, explained:
            if taken is not None:
                logger.info(taken)
            _train(job, learner, header, checkpoint, budget_text=options.budget, stop=stop)
        _, number = world.largest(0.0, stop.signal_number or 0)
        if number:  # it came when no step was left to be stopped after
            raise Interrupted(
                f"training of fold {fold} is finished and saved; its validation has not begun: --c does it.",
                signal_number=int(number),
            )
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
        draw_augmented_windows(job.folder, job.training, job.description.labels, title=name)
    run = Run(folder=job.folder, dataset_name=job.description.name, name=name, plan=job.plan, first_epoch=state.epoch)
    sinks = job.log_to if job.world.first else ()
    picture_cost, picture_time = 0.0, -float("inf")
    pace = Pace(budget=budget, per_epoch=job.plan.training.steps_per_epoch)
    ended = 0.0

    def ask(step: int) -> tuple[float, bool]:
        used = budget.progress(steps=step, wall=clock.wall, cpu=clock.cpu)
        progress, number = job.world.largest(used, stop.signal_number or 0)
        stop.signal_number = stop.signal_number or int(number) or None
        return progress, number > 0

    with (
        open_batches(loader_of(job, store, state), job.workers) as batches,
        open_records(sinks, run) as record,
        open_writer(job.folder) as writer,
    ):
        clock.watch_workers()

        def after_step(so_far: EpochSoFar) -> None:
            present = _within_epoch(state, so_far, clock)
            used = budget.progress(steps=present.step, wall=present.wall_seconds, cpu=present.cpu_seconds)
            pace.step(state.epoch, so_far, used)
            if job.world.first and writer.is_due():
                writer.save(checkpoint_of(learner, header, present), best=False)

        while not state.finished:
            begun = ask(state.step)[0]
            pace.begin_epoch(state.unfinished)
            epoch, stopped = train_epoch(
                learner, batches, job.plan.training, job.configuration, job.description.labels,
                epoch=state.epoch, first_step=state.step - state.unfinished.steps, ask=ask, so_far=state.unfinished,
                left_out=state.left_out, on_step=after_step,
                is_over=partial(budget.ends_epoch, begun=begun, between=begun - ended if ended else 0.0),
            )  # fmt: skip
            state = _within_epoch(state, epoch, clock)
            if budget.kind != "steps" and state.epoch == 0 and not stopped:
                state = replace(state, look_steps=state.look_steps or epoch.steps)
            ended = ask(state.step)[0]
            dice = None if stopped else judge_windows(
                learner, validation_store, job.validation, job.description.labels,
                precision=job.plan.training.precision, batch_size=job.configuration.batch_size,
                batches=validation_batches(job, state), stop_asked=lambda: ask(0)[1], on_batch=pace.look,
            )  # fmt: skip
            if dice is None:
                state = _within_epoch(state, epoch, clock)
                if job.world.first:
                    writer.save(checkpoint_of(learner, header, state), best=False)
                    writer.finish()
                job.world.meet()
                raise _interrupted(job, state, stop)
            done, asked = job.world.largest(
                budget.progress(steps=state.step, wall=clock.wall, cpu=clock.cpu),
                float(job.world.first and stop_file_is_there(job.folder)),
            )
            if budget.kind != "steps":
                state = replace(state, left_out=state.left_out + job.plan.training.steps_per_epoch - epoch.steps)
            state, best = advance(state, dice, wall=clock.wall, cpu=clock.cpu, finished=done >= 1)
            if not state.finished and (reason := reason_to_end(state, job.plan.training, asked=asked > 0)):
                state = replace(state, finished=True, ended=reason)
            if not job.world.first:
                continue
            metrics.append(_metrics(job, state, epoch, dice, progress=done))
            write_metrics(job.folder / "metrics.jsonl", metrics)
            writer.save(checkpoint_of(learner, header, state), best=best)
            logger.info(describe(metrics[-1], best=best))
            record(metrics[-1])
            if state.finished:
                writer.finish()
                remove_stop_file(job.folder)
            if state.finished or time.perf_counter() - picture_time >= picture_cost / PICTURE_SHARE:
                picture_time = time.perf_counter()
                draw_progress(job.folder / "progress.png", metrics, title=f"{job.folder.parent.name}, fold {job.fold}")
                picture_cost = time.perf_counter() - picture_time
    early = f" early, after {state.epoch} epochs: {state.ended}" if state.ended else ""
    logger.info("training of fold %s finished%s: %s", job.fold, early, job.folder)


def _within_epoch(state: TrainingState, so_far: EpochSoFar, clock: Clock) -> TrainingState:
    """The state after some steps of an epoch, whatever of them it has counted already."""
    return replace(
        state,
        step=state.step + so_far.steps - state.unfinished.steps,
        unfinished=so_far,
        wall_seconds=clock.wall,
        cpu_seconds=clock.cpu,
    )


def _interrupted(job: Job, state: TrainingState, stop: StopRequest) -> Interrupted:
    assert stop.signal_number is not None
    return Interrupted(
        f"training of fold {job.fold} stopped in epoch {state.epoch}: all {state.step} steps are saved; continue with "
        "--c.",
        signal_number=stop.signal_number,
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
        mean_dice=mean_of_classes(dice),
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
