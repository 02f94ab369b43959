"""Collect the held-out predictions of trained models over their folds."""

import logging
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from masam_auto.core.dataset import Case, Dataset
from masam_auto.core.errors import ModelError, PlanError, first_few
from masam_auto.core.jsonio import read_plain
from masam_auto.core.paths import Paths
from masam_auto.core.selection import CHECKPOINTS, SelectedModel
from masam_auto.core.summary import SUMMARY_NAME
from masam_auto.evaluation.validation_mirroring import read_record
from masam_auto.formats.io import label_ending
from masam_auto.formats.probability_files import ENDING as PROBABILITIES
from masam_auto.models.checkpoint import STATE_FILE
from masam_auto.models.trained_model import TrainedModel, find_models, open_model

logger = logging.getLogger(__name__)

WHY_NOT_ALL = (
    "Fold all cannot be cross-validated: it is validated on the cases that it was trained on, so its scores say "
    "nothing about new images."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class CrossValidation:
    """A model's predictions of cases that it was not trained on. `fold_of` maps each case to its fold.

    `as_planned`: whether they were averaged over flips as the plan says, like predictions of new images.
    """

    model: SelectedModel
    folder: Path
    fold_of: dict[str, int]
    as_planned: bool = True

    @property
    def name(self) -> str:
        """Name of the model's folder."""
        return self.model.folder_name

    def files(self, case: Case, ending: str) -> tuple[Path, ...]:
        """The label files of a case: one, or one per frame."""
        folder = validation_folder(self.folder, self.fold_of[case.identifier])
        return tuple(folder / f"{frame}{ending}" for frame in case.frames)

    def probabilities(self, case: Case) -> Path:
        """Path of the case's probabilities. The file may not exist."""
        return validation_folder(self.folder, self.fold_of[case.identifier]) / f"{case.identifier}{PROBABILITIES}"


def gather(
    paths: Paths,
    dataset: Dataset,
    *,
    configurations: Collection[str] | None = None,
    plan_names: Collection[str] | None = None,
    folds: Collection[int | str] | None = None,
) -> tuple[list[CrossValidation], list[str]]:
    """Find the models of a data set that have validated folds.

    Args:
        paths: root folders.
        dataset: the raw data set.
        configurations, plan_names, folds: use only these; None for all.

    Returns:
        The models, and notes about what is left out and why.

    Raises:
        ModelError: fold "all" is asked for, no model has a validated fold, or models were trained with other labels.
        PlanError: a summary is damaged.
    """
    if "all" in (folds or ()):
        raise ModelError(
            f"{WHY_NOT_ALL} Leave it out of `folds`, and train numbered folds: masam_train {dataset.name} 0"
        )
    found, notes = [], []
    for model in find_models(paths.results):
        wanted = (configurations is None or model.configuration in configurations) and (
            plan_names is None or model.plan_name in plan_names
        )
        if model.dataset_name != dataset.name or not wanted:
            continue
        result, said = _gather_model(model, dataset, folds)
        notes += said
        found += [result] if result is not None else []
    if not found:
        asked = configurations is not None or plan_names is not None or folds is not None
        missing = "no trained model matches these options." if asked else f"train one: masam_train {dataset.name} 0"
        reasons = " ".join(notes) or missing
        raise ModelError(f"no cross-validated model of {dataset.name} in {paths.results}: {reasons}")
    return found, [*notes, *_said_of_flips(found, dataset.name)]


def _said_of_flips(models: Sequence[CrossValidation], dataset_name: str) -> list[str]:
    """Notes on models whose held-out predictions lack the flips that predictions of new images will have."""
    without = [model for model in models if not model.as_planned]
    if not without:
        return []
    text = f"{' and '.join(model.name for model in without)}: validated without flips, but masam_predict uses them."
    if len(without) == len(models):
        return [f"{text} The Dice of new images is usually a little higher."]
    commands = "; ".join(
        f"`masam_train {dataset_name} {fold} configuration={model.model.configuration} "
        f"plan_name={model.model.plan_name} validate mirror`"
        for model in without
        for fold in model.model.folds
    )
    text = f"{text} This lowers their scores here. Validate them like the others: {commands}"
    logger.warning(text)
    return [text]


def common_cases(models: Sequence[CrossValidation], dataset: Dataset) -> tuple[list[Case], list[str]]:
    """The cases for which every model has held-out predictions, and notes about the others.

    Raises:
        ModelError: there are none.
    """
    every = [model.fold_of.keys() for model in models]
    known, shared = set[str]().union(*every), set(every[0]).intersection(*every[1:])
    common = [case for case in dataset.cases if case.identifier in shared]
    if not common:
        listed = "; ".join(f"{model.name}: {folds_text(model.model.folds)}" for model in models)
        raise ModelError(
            f"the models of {dataset.name} have no held-out case in common ({listed}). Train the same folds, or choose "
            "models with `configuration` and `plan_name`."
        )
    notes = []
    identifiers = [case.identifier for case in dataset.cases]
    if uncovered := [name for name in identifiers if name not in known]:
        notes.append(f"{len(uncovered)} of {len(identifiers)} cases are in no validated fold: {first_few(uncovered)}.")
    if partly := [name for name in identifiers if name in known - shared]:
        lacking = [m for m in models if any(name not in m.fold_of for name in partly)]
        notes.append(
            f"{len(partly)} cases are left out because "
            f"{' and '.join(f'{m.name} ({folds_text(m.model.folds)})' for m in lacking)} did not predict all of them: "
            f"{first_few(partly)}."
        )
    return common, notes


def save_probabilities_commands(model: CrossValidation, cases: Iterable[Case], dataset_name: str) -> list[str]:
    """The commands that write a model's missing probabilities; empty if none are missing."""
    lacking = {model.fold_of[case.identifier] for case in cases if not model.probabilities(case).is_file()}
    chosen, checkpoint = model.model, model.model.checkpoint
    kind = "" if checkpoint == "best" else f" checkpoint={checkpoint}"
    return [
        f"`masam_train {dataset_name} {fold} configuration={chosen.configuration} plan_name={chosen.plan_name}{kind} "
        "validate save_probabilities`"
        for fold in sorted(lacking)
    ]


def folds_text(folds: Sequence[int]) -> str:
    """ "fold 0" or "folds 0, 1"."""
    return f"fold{'s' if len(folds) > 1 else ''} {', '.join(map(str, folds))}"


def validation_folder(model_folder: Path, fold: int) -> Path:
    """Folder of a fold's held-out predictions."""
    return model_folder / f"fold_{fold}" / "validation"


def _gather_model(
    model: TrainedModel, dataset: Dataset, folds: Collection[int | str] | None
) -> tuple[CrossValidation | None, list[str]]:
    """One model's held-out predictions (None if there are none), and notes on what is left out."""
    _check_labels(model, dataset)
    name, notes = model.folder.name, []
    command = (
        f"masam_train {dataset.name} {{}} configuration={model.configuration} plan_name={model.plan_name} validate"
    )
    if "all" in model.folds:
        notes.append(f"{name}: fold all is left out. {WHY_NOT_ALL}")
    used: list[int] = []
    for fold in sorted(int(fold) for fold in model.folds if fold != "all" and (folds is None or fold in folds)):
        if problem := _why_not(validation_folder(model.folder, fold)):
            notes.append(f"{name}: fold {fold} is left out because {problem}; run `{command.format(fold)}`.")
        else:
            used.append(fold)
    fold_of: dict[str, int] = {}
    for fold in used:
        for identifier in _held_out(validation_folder(model.folder, fold), dataset):
            fold_of.setdefault(identifier, fold)
    if not fold_of:
        reason = f"none of its validated cases is in {dataset.folder}, or their segmentations are missing"
        return None, [*notes, *([f"{name}: {reason} (an installed model comes without them)."] if used else [])]
    checkpoints = {fold: _checkpoint(validation_folder(model.folder, fold)) for fold in used}
    if len(set(checkpoints.values())) > 1:
        listed = ", ".join(f"fold {fold}: {checkpoint}" for fold, checkpoint in checkpoints.items())
        raise ModelError(
            f"{name} was validated with different checkpoints ({listed}). Validate all folds with one: "
            f"`{command.format('FOLD')} checkpoint=best`"
        )
    plan = open_model(model)[0]
    mirrored = {
        fold: read_record(validation_folder(model.folder, fold)).get("mirror", plan.inference.mirror) for fold in used
    }
    if len(set(mirrored.values())) > 1:
        listed = ", ".join(f"fold {fold}: {'with' if mirror else 'without'}" for fold, mirror in mirrored.items())
        raise ModelError(
            f"{name} was validated with flips in some folds and without in others ({listed}). Validate all folds the "
            f"same way: `{command.format('FOLD')} mirror`"
        )
    wanted = plan.inference.mirror and bool(plan.configuration(model.configuration).mirror_axes)
    chosen = SelectedModel(
        plan_name=model.plan_name, configuration=model.configuration, folds=tuple(used), checkpoint=checkpoints[used[0]]
    )
    as_planned = mirrored[used[0]] or not wanted
    return CrossValidation(model=chosen, folder=model.folder, fold_of=fold_of, as_planned=as_planned), notes


def _check_labels(model: TrainedModel, dataset: Dataset) -> None:
    """Raise ModelError if a model was trained with other labels than the data set has."""
    _, description = open_model(model)
    if description.labels != dataset.description.labels:
        raise ModelError(
            f"{model.folder} was trained with other labels than {dataset.folder / 'dataset.json'} has now, so it "
            "cannot be scored. Restore the labels, or choose other models with `configuration` and `plan_name`."
        )


def _held_out(folder: Path, dataset: Dataset) -> list[str]:
    """Cases of the data set that are in a validation's summary and whose predictions exist."""
    ending = label_ending(dataset.description.file_ending)
    names = _summarised(folder, ending)
    there = [case for case in dataset.cases if names.issuperset(case.frames)]
    return [case.identifier for case in there if all((folder / f"{frame}{ending}").is_file() for frame in case.frames)]


def _summarised(folder: Path, ending: str) -> set[str]:
    """Names of the files in a validation's summary, without their ending. Raises PlanError."""
    summary: Any = read_plain(folder / SUMMARY_NAME, what="summary of the validation")
    try:
        return {Path(entry["prediction_file"]).name.removesuffix(ending) for entry in summary["metric_per_case"]}
    except (KeyError, TypeError) as error:
        raise PlanError(
            f"{folder / SUMMARY_NAME} is no summary of a validation ({type(error).__name__}: {error}). Validate again: "
            "`masam_train ... validate`"
        ) from error


def _why_not(folder: Path) -> str | None:
    """Why a fold's validation cannot be used for its checkpoint; None if it can."""
    if not (folder / SUMMARY_NAME).is_file():
        return "it is not validated"
    record = read_record(folder)
    state = folder.parent / str(record.get("checkpoint")) / STATE_FILE
    if (
        "epoch" in record
        and state.is_file()
        and read_plain(state, what="checkpoint").get("epoch") != record.get("epoch")
    ):
        return "its training continued after the validation"
    return None


def _checkpoint(folder: Path) -> str:
    """The checkpoint of a validation ("best", ...)."""
    stored = read_record(folder).get("checkpoint")
    return next((kind for kind, name in CHECKPOINTS.items() if name == stored), "best")
