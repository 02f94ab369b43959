"""Train one fold: windows in, checkpoints out."""

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from masam_auto.compute.device import torch_settings
from masam_auto.compute.distributed import ALONE, World, learn_together
from masam_auto.compute.interruption import StopRequest, stop_requests
from masam_auto.core.budget import Budget, parse_budget
from masam_auto.core.claims import claimed
from masam_auto.core.errors import Interrupted
from masam_auto.core.log import log_to_file, stop_logging_to
from masam_auto.core.paths import Paths
from masam_auto.core.plan import Configuration, Plan
from masam_auto.models.checkpoint import Checkpoint, ModelHeader, TrainingState
from masam_auto.models.sam_weights import sam_of_model, sam_to_start_from
from masam_auto.network.build import learning_summary
from masam_auto.training.augmentation_picture import draw_augmented_windows
from masam_auto.training.fold_folder import claim_folder
from masam_auto.training.learner import Learner, new_learner, restore_learner
from masam_auto.training.optimizer import set_rate
from masam_auto.training.out_of_memory import explain_out_of_memory
from masam_auto.training.pretrained import start_from
from masam_auto.training.session import Session, open_session
from masam_auto.training.trackers import check_sinks
from masam_auto.training.training_job import (
    Job,
    TrainingOptions,
    checkpoint_to_resume,
    header_of,
    prepare_job,
    try_out,
)
from masam_auto.training.update import batch_loss, check_loss, seed_dropout, update

logger = logging.getLogger(__name__)


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

    Saves the latest and the best checkpoint after every epoch. The latest is also saved every few minutes within a long
    epoch, and when a signal (SIGINT, SIGTERM, SIGUSR1) stops the training between two steps. metrics.jsonl,
    progress.png and training.log record its progress. A time budget shortens the epochs, so that there are about 20.
    With a budget of steps or epochs, one seed gives one result on one machine, bit for bit on a CPU. Interruptions and
    the number of workers do not change it.

    Args:
        paths: root folders.
        dataset_name: DatasetXXX_Name.
        plan: its training, network and, of the configuration, everything.
        configuration: which one.
        fold: a number, or "all" to train and look at all cases.
        options: where to compute, for how long, and what to start from.
        world: the joined processes that train together; only the first writes files.

    Returns:
        The fold's folder.

    Raises:
        PlanError: no preprocessed data, or of another plan; unknown fold; unknown names in the plan.
        OutputError: there is a training already and neither resume nor overwrite is given, another process is using
            the folder, or no space is left.
        ModelError: there is nothing to resume, the training is finished, the checkpoint is of another plan, the folds
            changed since another one was trained, SAM weights are missing, of another encoder or (when resuming)
            changed, or the loss is no longer finite.
        Interrupted: SIGINT, SIGTERM or SIGUSR1 came; the present step, or the end, is saved.

    Example:
        >>> from masam_auto import TrainingOptions, choose_device, train
        >>> options = TrainingOptions(device=choose_device("cpu"), workers=0)
        >>> folder = train(paths, dataset.name, plan, configuration, 1, options)
        >>> folder.name, sorted(path.name for path in folder.iterdir() if path.is_dir())
        ('fold_1', ['checkpoint_best', 'checkpoint_latest'])
    """
    assert options.shots is None or fold != "all"
    parse_budget(options.budget, plan.training)
    check_sinks(options.log_to)
    job = prepare_job(paths, dataset_name, plan, configuration, fold, options, world)
    alone = claimed(job.folder.parent, job.folder.name) if world.first else contextlib.nullcontext()
    with torch_settings(options.threads, options.device), alone:
        try_out(job)  # finds all errors in the plan before an earlier training is removed
        checkpoint = checkpoint_to_resume(job) if options.resume else None
        learner, header, news = _beginning(job, options, checkpoint, paths)
        learner = replace(learner, together=learn_together(learner.network, world, configuration))
        if world.first:
            claim_folder(
                job.folder, plan, configuration, paths.preprocessed / dataset_name,
                resume=options.resume, overwrite=options.overwrite, few_shot=job.few_shot,
            )  # fmt: skip
            world.begin()
        world.meet()
        state = _state_to_start_from(checkpoint, options.budget)
        budget = parse_budget(state.budget, plan.training)
        explained = explain_out_of_memory(plan, configuration, job.description, learner.network.spec, options.device)
        with _logged(job), stop_requests(repeated=world.size > 1) as stop, explained:
            _announce(job, learner, state, budget, news)
            with open_session(job, learner, header, state, budget, stop) as session:
                _train(session)
        _stop_where_asked(job, stop)
        world.meet()  # the others must not look for what the first has not written yet
    return job.folder


def _train(session: Session) -> None:
    """The loop: epochs of steps of batches, until the budget is used or somebody asks to stop."""
    learner, plan, labels = session.learner, session.job.plan.training, session.job.description.labels
    while not session.state.finished:
        for step in session.steps():
            set_rate(learner.optimizers, step.rate_share)
            seed_dropout(*step.seeds)
            total = 0.0
            for batch, is_last in session.windows():
                with learner.together.gathering(last=is_last):
                    loss = batch_loss(learner, batch, plan, labels) / session.batches_a_step
                    total += check_loss(loss, learner, batch, plan, step=step.number)
                    loss.backward()
            fault = update(learner, plan.gradient_clip, step.number + 1)
            session.count(step, total, fault)
        session.end_epoch()
    early = f" early, after {session.state.epoch} epochs: {session.state.ended}" if session.state.ended else ""
    logger.info("training of fold %s finished%s: %s", session.job.fold, early, session.job.folder)


def _beginning(
    job: Job, options: TrainingOptions, checkpoint: Checkpoint | None, paths: Paths
) -> tuple[Learner, ModelHeader, str | None]:
    """The learner where the training begins or continues, what its checkpoints will say, and news for the log."""
    if checkpoint is None:
        sam = sam_to_start_from(job.plan.network, file=options.sam_checkpoint, folder=paths.weights)
    else:
        sam = sam_of_model(checkpoint.header, job.folder, file=options.sam_checkpoint, folder=paths.weights)
    learner = new_learner(job.plan, job.configuration, job.description, device=job.device, sam=sam)
    header, news = header_of(job, sam, checkpoint), None
    if options.pretrained_weights is not None:
        origin, news = start_from(learner, options.pretrained_weights, sam=sam)
        header = replace(header, pretrained_weights=origin)
    if checkpoint is not None:
        restore_learner(learner, checkpoint, origin=str(job.folder))
    return learner, header, news


def _state_to_start_from(checkpoint: Checkpoint | None, budget: str | None) -> TrainingState:
    state = TrainingState() if checkpoint is None else checkpoint.state
    # a continued training that had run out of patience gets the same patience again
    best_epoch = state.best_epoch if state.ended is None else state.epoch
    return replace(state, budget=budget or state.budget, finished=False, ended=None, best_epoch=best_epoch)


def _announce(job: Job, learner: Learner, state: TrainingState, budget: Budget, news: str | None) -> None:
    """Say in the log what begins; draw what a new training sees."""
    if news is not None:
        logger.info(news)
    unit = {"steps": "steps", "wall": "seconds", "cpu": "CPU-seconds"}[budget.kind]
    processes = f" each, in {job.world.size} processes" if job.world.size > 1 else ""
    logger.info(
        f"{'continuing' if state.step else 'training'} fold {job.fold} of {job.description.name}, configuration "
        f"{job.configuration.name}: {len(job.training.cases)} training and {len(job.validation.cases)} validation "
        f"cases, {budget.amount:.0f} {unit}, on {job.device} with {job.workers} workers{processes}"
    )
    logger.info(learning_summary(learner.network))
    if not state.step and job.world.first:
        title = f"{job.folder.parent.name}/{job.folder.name}"
        draw_augmented_windows(job.folder, job.training, job.description.labels, title=title)


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


def _stop_where_asked(job: Job, stop: StopRequest) -> None:
    """Raise Interrupted where a signal came when no step was left to be stopped after."""
    number = job.world.largest(stop.signal_number or 0)[0]
    if number:
        raise Interrupted(
            f"training of fold {job.fold} is finished and saved; its validation has not begun: `resume` does it.",
            signal_number=int(number),
        )
