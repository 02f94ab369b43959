"""Everything that is fixed during the training of one fold, checked before anything is written."""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from masam_auto.compute.device import default_workers
from masam_auto.compute.distributed import World, share_of
from masam_auto.compute.machine import available_cores
from masam_auto.core.budget import parse_budget
from masam_auto.core.dataset import DatasetDescription, read_description
from masam_auto.core.errors import ModelError
from masam_auto.core.jsonio import read_json
from masam_auto.core.paths import Paths
from masam_auto.core.plan import Configuration, Plan
from masam_auto.models.checkpoint import (
    Checkpoint,
    ModelHeader,
    TrainingState,
    header_differences,
    load_checkpoint,
    plan_digest,
)
from masam_auto.models.sam_files import SamWeights
from masam_auto.planning.step_size import fit_budget, has_planned_size, with_size
from masam_auto.preprocessing.dataset_files import given_splits, warn_of_other_splits
from masam_auto.preprocessing.preprocess import check_preprocessed
from masam_auto.training.batches import BatchLoader, make_batch
from masam_auto.training.box_augmentation import box_draws
from masam_auto.training.fold_folder import Folds, few_shot_folds, fold_cases, other_folds, splits_of
from masam_auto.training.loss import choose_loss, here
from masam_auto.training.plan_names import check_names
from masam_auto.training.sampling import CaseStore, Sampling, find_case_files, find_holders
from masam_auto.training.schedule import rate_share

logger = logging.getLogger(__name__)

# A forward pass costs a third of a training step, so a tenth of the windows costs about three per cent of the time.
VALIDATION_SHARE = 0.1
VALIDATION_FOREGROUND = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingOptions:
    """What is said of a training besides its plan.

    `device`: where to compute. `resume`: continue from the latest checkpoint. `overwrite`: remove what an earlier
    training of the fold left. `workers`: processes that prepare windows, 0 for none; chosen by device and cores where
    None. `budget`: as `core.budget.parse_budget` reads it; the plan's epochs, or when resuming the earlier budget,
    where None. `threads`: of torch, in this process; torch's own choice where None. `sam_checkpoint`: the SAM file to
    start from; the encoder's in the weights folder where None. `pretrained_weights`: a trained model to start from, as
    `training.pretrained.find_model` reads it. `shots`: train on so many cases a class
    (`training.fold_folder.few_shot_folds`), chosen by the plan's seed; on all of the fold's where None. `log_to`:
    names of `training.trackers.SINKS` to record to.

    Example:
        >>> from masam_auto import TrainingOptions, choose_device
        >>> options = TrainingOptions(device=choose_device("cpu"), budget="2h", workers=0)
        >>> options.resume, options.overwrite
        (False, False)
    """

    device: torch.device
    resume: bool = False
    overwrite: bool = False
    workers: int | None = None
    budget: str | None = None
    threads: int | None = None
    sam_checkpoint: Path | None = None
    pretrained_weights: Path | None = None
    shots: int | None = None
    log_to: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # a resumed training keeps its weights and cases
        assert not self.resume or (self.pretrained_weights is None and self.shots is None)


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
    few_shot: Folds | None


def plan_for_budget(plan: Plan, name: str, budget: str | None, fold_folder: Path, device: torch.device) -> Plan:
    """The plan that a new training follows. On a CPU, a time budget decides the size of its steps.

    Folds of one model share a plan: if another one was trained, its step size is used.

    Args:
        plan: of the data set, with the user's changes.
        name: of the configuration.
        budget: as `core.budget.parse_budget` reads it; where None, or in steps or epochs, nothing changes.
        fold_folder: of the training to be.
        device: where it will compute; the speed that the plan knows is a CPU's.

    Raises:
        PlanError: the budget is not understood.
    """
    configuration, amount = plan.configuration(name), parse_budget(budget, plan.training)
    chosen = plan
    if amount.kind != "steps" and device.type == "cpu":
        chosen = fit_budget(plan, name, seconds=amount.amount, cpu=amount.kind == "cpu")
    model_plan, because = fold_folder.parent / "plan.json", ""
    if (others := other_folds(fold_folder)) and model_plan.is_file():
        there = read_json(model_plan, Plan, what="plan").configurations.get(name)
        if there is not None and has_planned_size(plan, name) and there.size in configuration.sizes:
            chosen = with_size(plan, name, there.size)
            because = (
                f", as {others[0].name} of {model_plan.parent.name} was trained. For a model with its own "
                "step size, give it a name: `plan_name=NAME`"
            )
    before, after = configuration.size, chosen.configuration(name).size
    if after != before:
        logger.info(
            "this training's steps see %d px instead of %d: %d windows of %d x %d x %d px (magnification %.3g)%s",
            after.pixels, before.pixels, after.batch_size, after.window, *after.canvas, after.magnification, because,
        )  # fmt: skip
    return chosen


def prepare_job(
    paths: Paths,
    dataset_name: str,
    plan: Plan,
    configuration: Configuration,
    fold: int | str,
    options: TrainingOptions,
    world: World,
) -> Job:
    """Check and gather what the training needs, without writing anything."""
    folder = paths.configuration_folder(dataset_name, configuration.name)
    check_preprocessed(folder, configuration)
    description = read_description(folder.parent / "dataset.json", name=dataset_name)
    model_folder = paths.model_folder(dataset_name, plan.name, configuration.name)
    splits_file = splits_of(model_folder, folder.parent) if options.resume else folder.parent / "splits.json"
    if world.first and not options.resume and splits_file.is_file():
        warn_of_other_splits(
            splits_file, given_splits(paths.raw / dataset_name, folder.parent, paths.nnunet_preprocessed)
        )
    seed, few_shot = plan.training.seed, None
    if options.shots is not None:
        few_shot = few_shot_folds(splits_file, description, folder, shots=options.shots, seed=seed)
    split = fold_cases(splits_file, fold, description, folder, few_shot=few_shot)
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
        device=options.device,
        workers=default_workers(options.device, available_cores() // world.local_size)
        if options.workers is None
        else options.workers,
        world=world,
        log_to=options.log_to,
        few_shot=few_shot,
    )


def try_out(job: Job) -> None:
    """Schedule, loss and one window, as the first step will ask for them. Raises PlanError for unknown names."""
    training, labels = job.plan.training, job.description.labels
    check_names(job.plan)
    share_of(job.world, job.configuration)
    rate_share(training, 1.0)
    loss = choose_loss(training.loss)
    store = CaseStore(cases=job.training.cases, memory=0)
    target = torch.from_numpy(make_batch(store, job.training, 0, 0, 1)["target"])
    batch, window, height, width = target.shape
    loss(torch.zeros(batch, window, labels.num_outputs, height, width), target, labels, training.loss_weights, here)


def header_of(job: Job, sam: SamWeights | None, resumed: Checkpoint | None) -> ModelHeader:
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


def checkpoint_to_resume(job: Job) -> Checkpoint:
    """The latest checkpoint. Raises ModelError where there is none, or one of another plan or an older version."""
    checkpoint = load_checkpoint(job.folder)
    if checkpoint.header.version < 2:
        raise ModelError(
            f"{job.folder} was trained by an older version of masam_auto, whose trainings cannot be continued. Its "
            "model predicts as it is; give `overwrite` to start again."
        )
    found = header_differences(checkpoint.header, job.plan, job.configuration, job.description)
    if found or checkpoint.header.plan_digest != plan_digest(job.plan, job.configuration):
        raise ModelError(
            f"{job.folder} was trained with another plan "
            f"({'; '.join(found) or 'its training or configuration differ'}). Continue with the plan it was started "
            "with, without other changes, or give `overwrite` to start again."
        )
    return checkpoint


def loader_of(job: Job, store: CaseStore, state: TrainingState) -> BatchLoader:
    """The windows of this process, from where a training is."""
    share = share_of(job.world, job.configuration)
    per_epoch = job.plan.training.steps_per_epoch * share.batches
    return BatchLoader(
        store,
        job.training,
        share=share,
        per_epoch=per_epoch,
        first=state.epoch * per_epoch + (state.unfinished.steps - state.left_out) * share.batches,
        workers=job.workers,
    )


def validation_batches(job: Job, state: TrainingState) -> int:
    """Batches of the look at the validation windows after an epoch, of all processes together; the same in all
    epochs.
    """
    steps = state.look_steps or job.plan.training.steps_per_epoch
    return max(2, round(VALIDATION_SHARE * steps * job.configuration.accumulation))
