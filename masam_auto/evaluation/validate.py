"""Validate a fold: predict its cases from the preprocessed arrays, write them on their original grids, score them."""

import contextlib
import logging
import time
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import torch

from masam_auto.compute.distributed import ALONE, World
from masam_auto.core.claims import claimed
from masam_auto.core.dataset import Case, Dataset, DatasetDescription, open_dataset
from masam_auto.core.errors import DatasetError, first_few
from masam_auto.core.geometry import CaseProperties
from masam_auto.core.jsonio import digest, read_json, read_plain, to_plain, write_json
from masam_auto.core.log import progress
from masam_auto.core.paths import Paths
from masam_auto.core.plan import Configuration, InferencePlan, Plan
from masam_auto.core.summary import SUMMARY_NAME
from masam_auto.evaluation.evaluate import BYTES_PER_VOXEL, evaluate_files, subsets_of
from masam_auto.evaluation.validation_mirroring import RECORD_NAME, choose_validation_mirroring
from masam_auto.formats.io import label_ending
from masam_auto.formats.outputs import write_segmentation
from masam_auto.formats.probability_files import ENDING as PROBABILITIES
from masam_auto.formats.storage import array_files, open_array
from masam_auto.formats.workers import workers_for
from masam_auto.models.checkpoint import STATE_FILE, remove_leftovers
from masam_auto.models.trained_model import checkpoint_path, choose_folds, describe_model
from masam_auto.prediction.predict import Predictor, PreparedCase
from masam_auto.prediction.restore import new_case_probabilities
from masam_auto.preprocessing.dataset_files import RAW_DATA_NAME
from masam_auto.preprocessing.preprocess import check_preprocessed
from masam_auto.training.fold_folder import fold_cases, splits_of

logger = logging.getLogger(__name__)

CLOCK = 5 * 10**9  # nanoseconds by which clocks of file servers may be off


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidationOptions:
    """How a fold is validated.

    `device`: where to compute. `checkpoint`: "best", "latest" or "final" (`core.selection.CHECKPOINTS`). `redo`:
    predict all cases again. `workers`: processes for the evaluation; 0 works in this one, None lets cores and memory
    decide. `sam_checkpoint`: the model's SAM file, if it has moved and is not in the weights folder.
    `save_probabilities`: also write ID.npz for each case (`formats.probability_files`). `mirror`: whether to average
    over the flips that the plan allows. None does as in this checkpoint's earlier validation, else as planned; after a
    training with a budget of time, the cost decides (`evaluation.validation_mirroring`).

    Example:
        >>> from masam_auto import ValidationOptions, choose_device
        >>> how = ValidationOptions(device=choose_device("cpu"), checkpoint="latest")
        >>> how.checkpoint, how.mirror  # None: as planned
        ('latest', None)
    """

    device: torch.device
    checkpoint: str = "best"
    redo: bool = False
    workers: int | None = None
    sam_checkpoint: Path | None = None
    save_probabilities: bool = False
    mirror: bool | None = None


@dataclass(frozen=True, kw_only=True)
class _Validation:
    """The cases of a fold, their predictor, and where the predictions go."""

    predictor: Predictor
    cases: tuple[Case, ...]
    preprocessed: Path
    output: Path
    state_file: Path
    description: DatasetDescription
    options: ValidationOptions

    @property
    def ending(self) -> str:
        return label_ending(self.description.file_ending)


def validate_fold(
    paths: Paths,
    dataset_name: str,
    plan: Plan,
    configuration: Configuration,
    fold: int | str,
    options: ValidationOptions,
    *,
    world: World = ALONE,
) -> dict[str, Any]:
    """Predict and score the validation cases of a trained fold.

    Predictions by the same checkpoint and settings are kept, so an interrupted validation can continue.
    predicted_with.json and the summary's "protocol" say whether flips were averaged. The cases come from the splits
    that the model was trained with, even if the data set's splits.json has changed.

    Args:
        paths: root folders. The raw data set is needed for its reference labels.
        dataset_name: DatasetXXX_Name.
        plan, configuration: of the model. Only the inference settings of `plan` are used; the rest is the model's.
        fold: its number, or "all".
        options: how to validate.
        world: the processes that share the cases; only the first scores them.

    Returns:
        The summary, also written to fold_K/validation/summary.json. Empty in all processes but the first.

    Raises:
        ModelError: the fold has no checkpoint, or its SAM file is missing or has changed.
        PlanError: the preprocessed data are incomplete or of another plan, or the fold does not exist.
        DatasetError: the raw data set or one of its cases is gone.
        OutputError: another process trains or validates the fold.

    Example:
        >>> from masam_auto import ValidationOptions, choose_device, validate
        >>> how = ValidationOptions(device=choose_device("cpu"), workers=0)
        >>> summary = validate(paths, dataset.name, plan, configuration, 0, how)
        >>> sorted(summary["mean"]), 0 <= summary["foreground_mean"]["Dice"] <= 1  # by label value
        (['1', '2'], True)
    """
    validation = _open_validation(paths, dataset_name, plan, configuration, fold, options)
    output = validation.output
    with claimed(output.parent.parent, output.parent.name) if world.first else contextlib.nullcontext():
        if world.first:
            remove_leftovers(output.parent)  # of a training that was killed just before its end
        else:
            world.meet()  # the first process has decided and written its record
        validation, since = _decide_mirroring(validation, plan, configuration, world)
        if world.first:
            world.meet()
        waiting = _waiting(validation, since)
        for case in progress(waiting, what="validating") if world.first else waiting:
            if world.claim(f"validation of {case.identifier}"):
                predict_preprocessed(
                    validation.predictor,
                    case,
                    validation.preprocessed,
                    output,
                    validation.ending,
                    save_probabilities=options.save_probabilities,
                )
        world.meet()
        return _evaluate(validation) if world.first else {}


def _open_validation(
    paths: Paths,
    dataset_name: str,
    plan: Plan,
    configuration: Configuration,
    fold: int | str,
    options: ValidationOptions,
) -> _Validation:
    """Load the model and find its cases. Writes nothing. Raises as `validate_fold`."""
    dataset = open_raw_data(paths, dataset_name)
    model = describe_model(paths.model_folder(dataset_name, plan.name, configuration.name))
    choose_folds(model, [fold], options.checkpoint)  # first, because an untrained model has no plan either
    predictor = Predictor.from_folder(
        model.folder,
        options.device,
        folds=[fold],
        checkpoint=options.checkpoint,
        sam_checkpoint=options.sam_checkpoint,
        weights=paths.weights,
    )
    preprocessed = paths.configuration_folder(dataset_name, configuration.name)
    cases = validation_cases(dataset, fold, splits_of(model.folder, preprocessed.parent), preprocessed)
    check_preprocessed(preprocessed, configuration, [case.identifier for case in cases])
    fold_folder = model.folder / f"fold_{fold}"
    return _Validation(
        predictor=predictor.changed(inference=plan.inference),
        cases=cases,
        preprocessed=preprocessed,
        output=fold_folder / "validation",
        state_file=checkpoint_path(fold_folder, options.checkpoint) / STATE_FILE,
        description=dataset.description,
        options=options,
    )


def _decide_mirroring(
    validation: _Validation, plan: Plan, configuration: Configuration, world: World
) -> tuple[_Validation, int]:
    """Decide for or against flips and record it. Returns the validation and the time (ns) from which predictions
    count."""
    predictor, preprocessed, asked = validation.predictor, validation.preprocessed, validation.options.mirror
    names = [case.identifier for case in validation.cases]
    sizes = {name: prod(open_array(array_files(preprocessed, name).image).shape) for name in names}
    chosen, why = choose_validation_mirroring(
        plan,
        configuration,
        validation.output,
        validation.state_file,
        sizes,
        asked=asked,
        processes=world.size,
        predict=lambda name: predictor.changed(mirror=False).segment(_prepared(name, preprocessed)),
    )
    if asked is not None or configuration.mirror_axes:
        logger.info("validation with%s flips: %s", "" if chosen else "out", why)
    inference = replace(plan.inference, mirror=chosen)
    since = _record(validation.output, validation.state_file, inference, why=why)
    return replace(validation, predictor=predictor.changed(inference=inference)), since


def _waiting(validation: _Validation, since: int) -> list[Case]:
    """The cases still to predict. Only predictions after `since` are by the current model."""
    cases, options = validation.cases, validation.options
    dates = {case.identifier: _changed(validation.preprocessed, case, since) for case in cases}
    if max(dates.values()) > time.time_ns() + CLOCK:
        logger.warning(
            "warning: the checkpoint or the preprocessed arrays are dated in the future. Predictions seem older than "
            "these files, so they are made again. Set the clock right, or touch these files."
        )
    waiting = [case for case in cases if options.redo or not _is_done(case, validation, dates[case.identifier])]
    if len(waiting) < len(cases):
        logger.info("validation: %s of %s cases are already done", len(cases) - len(waiting), len(cases))
    return waiting


def _evaluate(validation: _Validation) -> dict[str, Any]:
    """Compare the predictions with the references, and write summary.json."""
    output, description, options = validation.output, validation.description, validation.options
    pairs = [
        (output / f"{frame}{validation.ending}", reference)
        for case in validation.cases
        for frame, reference in zip(case.frames, case.labels or (), strict=True)
    ]
    workers = workers_for([truth for _, truth in pairs], bytes_per_voxel=BYTES_PER_VOXEL, asked=options.workers)
    mirrored = validation.predictor.members[0].plan.inference.mirror
    return evaluate_files(
        pairs,
        description.labels,
        output=output / SUMMARY_NAME,
        workers=workers,
        subsets=subsets_of(description, validation.ending),
        protocol={"checkpoint": options.checkpoint, "mirror": mirrored},
        checked=True,
    )


def open_raw_data(paths: Paths, dataset_name: str) -> Dataset:
    """The raw data set in the root folder, or else where it was when it was preprocessed (raw_data.json).

    Raises:
        DatasetError: it is in neither place.
    """
    record = paths.preprocessed / dataset_name / RAW_DATA_NAME
    if not (paths.raw / dataset_name).is_dir() and record.is_file():
        return open_dataset(paths, str(read_plain(record, what="record of the raw data")["folder"]))
    return open_dataset(paths, dataset_name)


def validation_cases(dataset: Dataset, fold: int | str, splits_file: Path, arrays: Path) -> tuple[Case, ...]:
    """The validation cases of a fold.

    Args:
        dataset: the raw data set.
        fold: its number, or "all" for all cases.
        splits_file: the splits.json that the fold was trained with.
        arrays: the preprocessed folder of the configuration.

    Raises:
        PlanError: unknown fold.
        DatasetError: a case is no longer in the raw data set.
    """
    names = fold_cases(splits_file, fold, dataset.description, arrays).val
    cases = tuple(case for case in dataset.cases if case.identifier in names)
    gone = sorted(set(names) - {case.identifier for case in cases})
    if gone and fold != "all":
        raise DatasetError(
            f"validation cases of fold {fold} are not in {dataset.folder}: {first_few(gone)}. Restore them; the fold "
            f"was trained with {splits_file}."
        )
    return cases


def predict_preprocessed(
    predictor: Predictor, case: Case, preprocessed: Path, output: Path, ending: str, *, save_probabilities: bool = False
) -> None:
    """Predict one case from its preprocessed arrays. Write its probabilities, then its labels, on the original grid."""
    prepared = _prepared(case.identifier, preprocessed)
    (properties,) = prepared.properties
    file = output / f"{case.identifier}{PROBABILITIES}"
    if save_probabilities:
        with new_case_probabilities(file, properties, predictor.description.labels) as probabilities:
            segmentation = predictor.segment(prepared, probabilities=probabilities)
    else:
        segmentation = predictor.segment(prepared)
        file.unlink(missing_ok=True)  # an earlier prediction's; ensembles would average it
    write_segmentation(case, segmentation, properties.geometry, output, ending, predictor.description.labels)


def _prepared(name: str, preprocessed: Path) -> PreparedCase:
    files = array_files(preprocessed, name)
    properties = read_json(files.properties, CaseProperties, what="case properties")
    return PreparedCase(images=(open_array(files.image),), properties=(properties,))


def _record(output: Path, checkpoint: Path, inference: InferencePlan, *, why: str) -> int:
    """Record what predicts. Returns the time (ns) of the change; older predictions are by something else."""
    record = output / RECORD_NAME
    state = read_plain(checkpoint, what="checkpoint")
    present = {
        "checkpoint": checkpoint.parent.name,
        "epoch": state.get("epoch"),
        "mirror": inference.mirror,
        "why": why,
        "digest": digest([state, to_plain(inference)]),
    }
    if not record.is_file() or read_plain(record, what="record of the validation").get("digest") != present["digest"]:
        (output / SUMMARY_NAME).unlink(missing_ok=True)  # of older predictions
        write_json(record, present)
    return max(record.stat().st_mtime_ns, checkpoint.stat().st_mtime_ns)


def _changed(preprocessed: Path, case: Case, since: int) -> int:
    """The time (ns) after which a prediction is by the current model and the current arrays of a case."""
    return max(since, array_files(preprocessed, case.identifier).properties.stat().st_mtime_ns)


def _is_done(case: Case, validation: _Validation, since: int) -> bool:
    files = [validation.output / f"{frame}{validation.ending}" for frame in case.frames]
    if validation.options.save_probabilities:
        files.append(validation.output / f"{case.identifier}{PROBABILITIES}")
    states = [file.stat() for file in files if file.is_file()]
    return len(states) == len(files) and all(state.st_size and state.st_mtime_ns >= since for state in states)
