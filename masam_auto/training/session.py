"""One session of a training: what it owns while it runs (files, clock, stop request, workers), and where it is."""

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NoReturn

import numpy as np
import torch
from tqdm import tqdm

from masam_auto.compute.distributed import share_of
from masam_auto.compute.interruption import StopRequest
from masam_auto.core.budget import Budget
from masam_auto.core.errors import Interrupted, ModelError
from masam_auto.core.plan import TrainingPlan
from masam_auto.models.checkpoint import EpochSoFar, ModelHeader, TrainingState
from masam_auto.training.batches import cache_memory, on_device, open_batches
from masam_auto.training.checkpoint_writer import CheckpointWriter, open_writer
from masam_auto.training.clock import Clock, peak_memory_gib
from masam_auto.training.learner import Learner, checkpoint_of
from masam_auto.training.pace import Pace
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
from masam_auto.training.schedule import rate_share
from masam_auto.training.trackers import Run, open_records
from masam_auto.training.training_job import Job, loader_of, validation_batches
from masam_auto.training.update import count_left_out
from masam_auto.training.validation_windows import judge_windows

logger = logging.getLogger(__name__)

STOP_FILE = "stop"  # in the fold's folder: it asks a training to end after its epoch
# Drawing the picture may take a fiftieth of the time.
PICTURE_SHARE = 0.02


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One update: its number in the training, from 0; its share of the full learning rate; what names its dropout."""

    number: int
    rate_share: float
    seeds: tuple[int, ...]


@dataclass(kw_only=True)
class Session:
    """What a training owns while it runs, and `state`: where it is, after the last step or epoch.

    Each of the processes that train together has one. Only the first writes files and the log.
    """

    job: Job
    learner: Learner
    header: ModelHeader
    state: TrainingState
    budget: Budget
    clock: Clock
    stop: StopRequest
    batches: Iterator[dict[str, np.ndarray]]
    validation: CaseStore
    writer: CheckpointWriter
    record: Callable[[EpochMetrics], None]
    metrics: list[EpochMetrics]
    pace: Pace
    ended: float = 0.0  # share of the budget that was used when the steps of the last epoch ended; 0 before the first
    waited: float = 0.0  # seconds that the present step has waited for windows
    counted: float = 0.0  # when the last step was counted
    picture: tuple[float, float] = (-float("inf"), 0.0)  # when it was drawn last, and how many seconds that took

    def ask(self) -> tuple[float, bool]:
        """The share of the budget that is used, and whether a signal asks to stop; all processes get one answer."""
        used = self.budget.progress(steps=self.state.step, wall=self.clock.wall, cpu=self.clock.cpu)
        progress, number = self.job.world.largest(used, self.stop.signal_number or 0)
        self.stop.signal_number = self.stop.signal_number or int(number) or None
        return progress, number > 0

    def steps(self) -> Iterator[Step]:
        """The steps left of this epoch, until the budget is used, the epoch's time is over, or a signal stops them.

        Dropout is seeded by the number of the step as windows are drawn by: its planned epoch and place in it. So a
        training resumed at any step equals an uninterrupted one.
        """
        training, epoch, left_out = self.job.plan.training, self.state.epoch, self.state.left_out
        per_epoch, first, stopped = training.steps_per_epoch, self.state.unfinished.steps, False
        progress = begun = self.ask()[0]
        between = begun - self.ended if self.ended else 0.0
        self.pace.begin_epoch(self.state.unfinished)
        self.counted = time.perf_counter()
        for place in self._shown(range(first, per_epoch), f"epoch {epoch}"):
            progress, stopped = self.ask()
            if progress >= 1 or stopped:
                break
            if self.state.unfinished.steps and self.budget.ends_epoch(progress, begun=begun, between=between):
                break
            seeds = (training.seed, *divmod(epoch * per_epoch + place - left_out, per_epoch), self.job.world.rank)
            yield Step(number=self.state.step, rate_share=rate_share(training, progress), seeds=seeds)
        if self.budget.kind != "steps" and epoch == 0 and (progress >= 1 or not stopped):
            self.state = replace(self.state, look_steps=self.state.look_steps or self.state.unfinished.steps)
        self.ended = self.ask()[0]

    @property
    def batches_a_step(self) -> int:
        """How many batches this process adds up for an update."""
        return share_of(self.job.world, self.job.configuration).batches

    def windows(self) -> Iterator[tuple[dict[str, torch.Tensor], bool]]:
        """This process's batches of one step, on the device, and whether each is the step's last."""
        for number in range(1, self.batches_a_step + 1):
            asked = time.perf_counter()
            batch = next(self.batches)
            self.waited += time.perf_counter() - asked
            yield on_device(batch, self.job.device), number == self.batches_a_step

    def count(self, step: Step, loss: float, fault: str | None) -> None:
        """A step is made.

        Args:
            step: which.
            loss: of this process, its batches together.
            fault: why its update was left out, if it was.

        Raises:
            ModelError: too many in a row were left out.
            OutputError: an earlier checkpoint could not be written.
        """
        world, epoch, now = self.job.world, self.state.unfinished, time.perf_counter()
        done = EpochSoFar(
            losses=(*epoch.losses, float(world.total(np.array([loss]))[0]) / world.size),
            learning_rate=step.rate_share * self.job.plan.training.learning_rate,
            seconds=epoch.seconds + now - self.counted,
            waited=epoch.waited + self.waited,
            skipped=count_left_out(epoch.skipped, fault, step=step.number),
        )
        self.counted, self.waited = now, 0.0
        self.state = replace(self._clocked(), step=self.state.step + 1, unfinished=done)
        used = self.budget.progress(steps=self.state.step, wall=self.state.wall_seconds, cpu=self.state.cpu_seconds)
        self.pace.step(self.state.epoch, done, used)
        if world.first and self.writer.is_due():
            self._save(best=False)

    def end_epoch(self) -> None:
        """Look at the validation windows, and save the epoch; where a signal has come, save and stop instead.

        Raises:
            Interrupted: a signal came.
            OutputError: a checkpoint could not be written.
        """
        job, plan = self.job, self.job.plan.training
        if not self.state.unfinished.steps and self.state.epoch and self.ask()[0] >= 1:
            self._finish_without_steps()
            return
        batches = validation_batches(job, self.state)

        def go_on(done: int) -> bool:
            self.pace.look(done, batches)
            return not self.ask()[1]

        dice = judge_windows(
            self.learner, self.validation, job.validation, job.description.labels,
            precision=plan.precision, batches=batches, on_batch=go_on,
        )  # fmt: skip
        if dice is None:
            self._save_and_stop()
        epoch = self.state.unfinished
        progress, asked = self.ask()[0], job.world.largest(job.world.first and (job.folder / STOP_FILE).is_file())[0]
        if self.budget.kind != "steps":
            self.state = replace(self.state, left_out=self.state.left_out + plan.steps_per_epoch - epoch.steps)
        wall, cpu = self.clock.wall, self.clock.cpu
        self.state, best = advance(self.state, dice, wall=wall, cpu=cpu, finished=progress >= 1)
        if not self.state.finished and (reason := reason_to_end(self.state, plan, asked=asked > 0)):
            self.state = replace(self.state, finished=True, ended=reason)
        if job.world.first:
            self._write(epoch, dice, progress=progress, best=best)

    def _finish_without_steps(self) -> None:
        """The time was used up between two epochs: the one before was the last."""
        self.state = replace(self._clocked(), finished=True)
        if self.job.world.first:
            self._save(best=False)
            self._close()

    def _close(self) -> None:
        """Wait for the last checkpoint, remove the file that asked to stop, and draw all epochs."""
        self.writer.finish()
        (self.job.folder / STOP_FILE).unlink(missing_ok=True)
        self._draw()

    def _draw(self) -> None:
        job, drawn = self.job, time.perf_counter()
        draw_progress(job.folder / "progress.png", self.metrics, title=f"{job.folder.parent.name}, fold {job.fold}")
        self.picture = drawn, time.perf_counter() - drawn

    def _clocked(self) -> TrainingState:
        return replace(self.state, wall_seconds=self.clock.wall, cpu_seconds=self.clock.cpu)

    def _shown(self, places: range, title: str) -> Iterable[int]:
        shown = self.job.world.first and sys.stderr.isatty()
        return tqdm(places, title, total=places.stop, initial=places.start, leave=False, disable=not shown)

    def _save(self, *, best: bool) -> None:
        self.writer.save(checkpoint_of(self.learner, self.header, self.state), best=best)

    def _save_and_stop(self) -> NoReturn:
        self.state = self._clocked()
        if self.job.world.first:
            self._save(best=False)
            self.writer.finish()
        self.job.world.meet()
        assert self.stop.signal_number is not None
        raise Interrupted(
            f"training of fold {self.job.fold} stopped in epoch {self.state.epoch}: all {self.state.step} steps are "
            "saved; continue with `resume`.",
            signal_number=self.stop.signal_number,
        )

    def _write(self, epoch: EpochSoFar, dice: dict[str, float | None], *, progress: float, best: bool) -> None:
        """Metrics, checkpoint, log, trackers and picture of an epoch that has ended."""
        job = self.job
        metrics = _metrics(job, self.state, epoch, dice, progress=progress)
        self.metrics.append(metrics)
        write_metrics(job.folder / "metrics.jsonl", self.metrics)
        self._save(best=best)
        logger.info(describe(metrics, best=best))
        self.record(metrics)
        drawn, took = self.picture
        if self.state.finished:
            self._close()
        elif time.perf_counter() - drawn >= took / PICTURE_SHARE:
            self._draw()


@contextlib.contextmanager
def open_session(
    job: Job, learner: Learner, header: ModelHeader, state: TrainingState, budget: Budget, stop: StopRequest
) -> Iterator[Session]:
    """Everything that a training needs while it runs; given back, and all files written, when the block ends.

    Args:
        job: what is fixed.
        learner: at the beginning, or where `state` is.
        header: what checkpoints say of the model.
        state: where the training begins or continues.
        budget: how long it lasts.
        stop: notes signals.

    Raises:
        ModelError: the budget is used already.
        OutputError: a checkpoint could not be written.
    """
    clock = Clock(earlier_wall=state.wall_seconds, earlier_cpu=state.cpu_seconds, processes=job.world.size)
    if budget.progress(steps=state.step, wall=clock.wall, cpu=clock.cpu) >= 1 and not state.unfinished.steps:
        raise ModelError(
            f"{job.folder}: this training is finished ({state.epoch} epochs). Give a larger `budget` to continue, or "
            "`overwrite` to start again."
        )
    store = CaseStore(cases=job.training.cases, memory=cache_memory(max(job.workers, 1) * job.world.local_size))
    run = Run(
        folder=job.folder,
        dataset_name=job.description.name,
        name=f"{job.folder.parent.name}/{job.folder.name}",
        plan=job.plan,
        first_epoch=state.epoch,
    )
    with (
        open_batches(loader_of(job, store, state), job.workers) as batches,
        open_records(job.log_to if job.world.first else (), run) as record,
        open_writer(job.folder) as writer,
    ):
        clock.watch_workers()
        yield Session(
            job=job,
            learner=learner,
            header=header,
            state=state,
            budget=budget,
            clock=clock,
            stop=stop,
            batches=batches,
            validation=CaseStore(cases=job.validation.cases, memory=cache_memory(4 * job.world.local_size)),
            writer=writer,
            record=record,
            metrics=read_metrics(job.folder / "metrics.jsonl", epochs=state.epoch),
            pace=Pace(budget=budget, per_epoch=job.plan.training.steps_per_epoch),
        )


def reason_to_end(state: TrainingState, training: TrainingPlan, *, asked: bool) -> str | None:
    """Why a training ends before its budget is used, after the epoch that `state` counts last; None where it does not.

    Args:
        state: after that epoch and its validation.
        training: its patience.
        asked: whether the stop file was there.
    """
    if asked:
        return f"the file {STOP_FILE} asked for it"
    without = state.epoch - state.best_epoch
    if training.patience and without >= training.patience:
        return f"no better validation Dice for {without} epochs (training.patience={training.patience})"
    return None


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
