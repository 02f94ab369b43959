"""Find the best model or pair of models of a data set, and its postprocessing, by cross-validation."""

import itertools
import math
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from masam_auto.compute.parallel import map_cases
from masam_auto.core.atomic import write_bytes
from masam_auto.core.claims import claimed
from masam_auto.core.dataset import Case, Dataset
from masam_auto.core.errors import CaseErrors, DatasetError
from masam_auto.core.jsonio import write_json
from masam_auto.core.labels import Labels
from masam_auto.core.paths import Paths
from masam_auto.core.postprocessing import POSTPROCESSING_NAME
from masam_auto.core.selection import SELECTION_NAME, Candidate, Selection
from masam_auto.core.summary import SUMMARY_NAME
from masam_auto.evaluation.cross_validation import (
    CrossValidation,
    common_cases,
    folds_text,
    gather,
    save_probabilities_commands,
)
from masam_auto.evaluation.ensemble import average_cases, average_files
from masam_auto.evaluation.evaluate import BYTES_PER_VOXEL as EVALUATION_BYTES_PER_VOXEL
from masam_auto.evaluation.evaluate import evaluate_files
from masam_auto.evaluation.postprocess import Findings, determine_postprocessing, postprocess_folder
from masam_auto.evaluation.validate import open_raw_data
from masam_auto.formats.io import label_ending, read_labels
from masam_auto.formats.workers import workers_for
from masam_auto.imaging.confusion import class_dice, count_confusion, mean_dice
from masam_auto.imaging.placement import turned_onto

RESULTS_NAME = "crossval_results"

Members = tuple[CrossValidation, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class _ComparedCase:
    """A case: its reference files (one, or one per frame) and each candidate's files.

    `predictions` are label files of the single models, `probabilities` the files that each ensemble averages.
    """

    identifier: str
    references: tuple[Path, ...]
    predictions: tuple[tuple[Path, ...], ...]
    probabilities: tuple[tuple[Path, ...], ...]
    labels: Labels


def find_best_configuration(
    paths: Paths,
    dataset_name: str,
    *,
    configurations: Collection[str] | None = None,
    plan_names: Collection[str] | None = None,
    folds: Collection[int | str] | None = None,
    workers: int | None = None,
) -> Selection:
    """Compare all single models and pairs on their held-out cases, and record the best.

    A pair averages saved probabilities. Candidates are ranked by the mean Dice over the classes. A pair is chosen only
    if it is better than both of its members. Then the postprocessing of the chosen one is found. Writes
    results/<data set>/inference_instructions.json, and the chosen one's predictions into crossval_results.

    Args:
        paths: root folders. The raw data set is needed for its reference labels.
        dataset_name: DatasetXXX_Name.
        configurations, plan_names, folds: compare only these; None for all.
        workers: processes; 0 works in this one, None lets cores and memory decide.

    Raises:
        ModelError: as `evaluation.cross_validation.gather` and `common_cases`.
        CaseErrors: files cannot be read.
        DatasetError: the raw data set is gone.
        OutputError: the results cannot be written, or another process is selecting.

    Example:
        >>> from masam_auto.evaluation.find_best_configuration import find_best_configuration
        >>> best = find_best_configuration(paths, dataset.name, folds=[0], workers=0)
        >>> best.name, best.cases, [candidate.members for candidate in best.candidates]
        ('masam__axis0', 1, [('masam__axis0',)])
    """
    dataset = open_raw_data(paths, dataset_name)
    models, notes = gather(paths, dataset, configurations=configurations, plan_names=plan_names, folds=folds)
    with claimed(paths.results / dataset.name, "selection"):
        return _select(paths, dataset, models, notes, workers)


def _select(
    paths: Paths, dataset: Dataset, models: Sequence[CrossValidation], notes: Sequence[str], workers: int | None
) -> Selection:
    """Compare the candidates and record the best."""
    cases, said = common_cases(models, dataset)
    pairs, lacking = _pairs(models, cases, dataset.name)
    notes = [*notes, *said, *lacking]
    ranked = _compare(models, pairs, cases, dataset, workers)
    members = ranked[0][0]
    folder = results_folder(paths, dataset.name, [member.name for member in members])
    findings = _write_results(members, cases, dataset, folder, workers)
    names = list(dataset.description.labels.foreground)
    selection = Selection(
        dataset_name=dataset.name,
        members=tuple(member.model for member in members),
        postprocessing=findings.postprocessing,
        dice=mean_dice(findings.after),
        dice_by_class=dict(zip(names, findings.after.tolist(), strict=True)),
        cases=len(cases),
        candidates=tuple(Candidate(members=tuple(m.name for m in who), dice=value) for who, value in ranked),
        reasons=(*_reasons(ranked, findings, len(cases)), *notes),
    )
    results = paths.results / dataset.name
    write_json(results / SELECTION_NAME, selection)  # last: its results exist by now
    return selection


def results_folder(paths: Paths, dataset_name: str, names: Sequence[str]) -> Path:
    """Folder of a candidate's cross-validated results. `names` are its models', e.g. "masam__axis0"."""
    return paths.results / dataset_name / RESULTS_NAME / "___".join(names)


def instructions(selection: Selection, paths: Paths) -> str:
    """The selection as text: what to run, the candidates' Dice, and why. Commands name options as Python does."""
    folder = results_folder(paths, selection.dataset_name, [member.folder_name for member in selection.members])
    rows = [(" + ".join(candidate.members), candidate.dice) for candidate in selection.candidates]
    width = max(len(row[0]) for row in rows)
    table = [f"  {who.ljust(width)}  {dice:.4f}" for who, dice in rows]
    by_class = ", ".join(f"{label} {_figure(dice)}" for label, dice in selection.dice_by_class.items())
    lines = [
        f"{selection.dataset_name}: {selection.name}",
        f"postprocessing: {selection.postprocessing}",
        f"cross-validated Dice {selection.dice:.4f} ({by_class}) over {selection.cases} cases",
        "",
        "Predict with it in one step:",
        f"  `masam_predict images=IMAGES output=SEGMENTATIONS dataset={selection.dataset_name}`",
        "",
        "The same step by step:",
        *(f"  `{command}`" for command in _commands(selection, folder)),
        "",
        "Mean Dice of the candidates, before postprocessing:",
        *table,
        "",
        "Why, and what was left out:",
        *(f"  * {reason}" for reason in selection.reasons),
    ]
    return "\n".join(lines) + "\n"


def _commands(selection: Selection, folder: Path) -> list[str]:
    """The single commands that together do what `masam_predict` does with a selection."""
    members = selection.members
    outputs = [f"OUT_{number}" for number in range(1, len(members) + 1)] if len(members) > 1 else ["OUT"]
    commands = [
        f"masam_predict images=IMAGES output={output} dataset={selection.dataset_name} "
        f"configuration={member.configuration} plan_name={member.plan_name} "
        f"folds={' '.join(map(str, member.folds))} checkpoint={member.checkpoint}"
        for member, output in zip(members, outputs, strict=True)
    ]
    if len(members) > 1:
        commands = [f"{command} save_probabilities" for command in commands]
        commands.append(f"masam_ensemble images={' '.join(outputs)} output=OUT")
    if selection.postprocessing.steps:
        commands.append(
            f"masam_apply_postprocessing images=OUT output=SEGMENTATIONS postprocessing={folder / POSTPROCESSING_NAME}"
        )
    return commands


def _pairs(
    models: Sequence[CrossValidation], cases: Sequence[Case], dataset_name: str
) -> tuple[list[Members], list[str]]:
    """Pairs of the models that have probabilities of all cases, and notes on what the others need."""
    commands = {model.name: save_probabilities_commands(model, cases, dataset_name) for model in models}
    ready = [model for model in models if not commands[model.name]]
    notes = [
        f"{name} is in no pair because its probabilities are missing; write them with: {'; '.join(needed)}"
        for name, needed in commands.items()
        if needed and len(models) > 1
    ]
    return list(itertools.combinations(ready, 2)), notes


def _compare(
    models: Sequence[CrossValidation],
    pairs: Sequence[Members],
    cases: Sequence[Case],
    dataset: Dataset,
    workers: int | None,
) -> list[tuple[Members, float]]:
    """Mean Dice of every candidate over the cases, best first. Of equal ones, the one with fewer members is first."""
    labels, ending = dataset.description.labels, label_ending(dataset.description.file_ending)
    compared = [
        _ComparedCase(
            identifier=case.identifier,
            references=case.labels or (),
            predictions=tuple(model.files(case, ending) for model in models),
            probabilities=tuple(tuple(member.probabilities(case) for member in members) for members in pairs),
            labels=labels,
        )
        for case in cases
    ]
    # labels of reference and candidate, and probabilities of two members, for all frames of a video
    bytes_per_voxel = (24 + 4 * labels.num_outputs) * max(len(case.frames) for case in cases)
    truths = [truth for case in compared for truth in case.references]
    count = workers_for(truths, bytes_per_voxel=bytes_per_voxel, asked=workers)
    names = [case.identifier for case in compared]
    counted = map_cases(_count_case, compared, names=names, what="comparing", workers=count)
    candidates: list[Members] = [*((model,) for model in models), *pairs]
    dice = [
        mean_dice(class_dice([table for case in counted for table in case[number]], labels))
        for number in range(len(candidates))
    ]
    # without any foreground there is no Dice to rank by
    ranked = zip(candidates, (0.0 if math.isnan(value) else value for value in dice), strict=True)
    return sorted(ranked, key=lambda item: (-item[1], len(item[0]), [member.name for member in item[0]]))


def _count_case(case: _ComparedCase) -> list[list[np.ndarray]]:
    """Confusion tables of every candidate, one for each reference file."""
    read = [read_labels(path) for path in case.references]
    references, grids = [labels for labels, _ in read], [geometry for _, geometry in read]
    tables = []
    for files in case.predictions:
        turned = [turned_onto(*read_labels(path), grid)[0] for path, grid in zip(files, grids, strict=True)]
        tables.append(_count(case, turned, references, files[0]))
    for files in case.probabilities:
        labels, geometry = average_files(files, case.labels)
        if len(references) == 1:
            frames = [turned_onto(labels, geometry, grids[0])[0]]
        else:
            frames = [labels[z : z + 1] for z in range(len(labels))]
        tables.append(_count(case, frames, references, files[0]))
    return tables


def _count(
    case: _ComparedCase, predictions: Sequence[np.ndarray], references: Sequence[np.ndarray], file: Path
) -> list[np.ndarray]:
    if [prediction.shape for prediction in predictions] != [reference.shape for reference in references]:
        raise DatasetError(
            f"{case.identifier}: {file} and the current reference have different shapes. Validate the model again: "
            "`masam_train ... validate`"
        )
    return [count_confusion(a, b, case.labels) for a, b in zip(predictions, references, strict=True)]


def _write_results(
    members: Members, cases: Sequence[Case], dataset: Dataset, folder: Path, workers: int | None
) -> Findings:
    """Write a candidate's held-out predictions and summary, its postprocessing, and the same after postprocessing."""
    if folder.exists():
        shutil.rmtree(folder)  # from an earlier comparison, perhaps over other cases
    description = dataset.description
    ending = label_ending(description.file_ending)
    if len(members) > 1:
        files = {case.identifier: tuple(member.probabilities(case) for member in members) for case in cases}
        if problems := average_cases(files, folder, description, workers=workers):
            raise CaseErrors(list(problems.values()), what="averaging")
    else:
        for file in (file for case in cases for file in members[0].files(case, ending)):
            write_bytes(folder / file.name, file.read_bytes())
    write_json(folder / "dataset.json", description.raw)
    truths = {
        f"{frame}{ending}": truth for case in cases for frame, truth in zip(case.frames, case.labels or (), strict=True)
    }
    _evaluate(folder, truths, description.labels, workers)
    findings = determine_postprocessing(
        [(folder / name, truth) for name, truth in truths.items()],
        description.labels,
        each_slice=description.is_video,
        workers=workers,
    )
    write_json(folder / POSTPROCESSING_NAME, findings.postprocessing)
    if findings.postprocessing.steps:
        done = folder / "postprocessed"
        postprocess_folder(folder, done, findings.postprocessing, workers=workers)
        _evaluate(done, truths, description.labels, workers)
    return findings


def _evaluate(folder: Path, truths: Mapping[str, Path], labels: Labels, workers: int | None) -> None:
    """Compare the files of a folder with their references and write summary.json."""
    pairs = [(folder / name, truth) for name, truth in truths.items()]
    count = workers_for(list(truths.values()), bytes_per_voxel=EVALUATION_BYTES_PER_VOXEL, asked=workers)
    evaluate_files(pairs, labels, output=folder / SUMMARY_NAME, workers=count, checked=True)


def _reasons(ranked: Sequence[tuple[Members, float]], findings: Findings, cases: int) -> list[str]:
    """Why the first candidate was chosen, and what its postprocessing gains."""
    best, dice = ranked[0]
    single, single_dice = next((members[0].name, value) for members, value in ranked if len(members) == 1)
    used = "; ".join(f"{member.name}: {folds_text(member.model.folds)}" for member in best)
    reasons = [f"It has the highest mean Dice over {cases} held-out cases, of {len(ranked)} compared ({used})."]
    if len(best) > 1:
        reasons.append(f"The best single model is {single}; averaging changes its Dice by {dice - single_dice:+.4f}.")
    if findings.postprocessing.steps:
        gain = mean_dice(findings.after) - mean_dice(findings.before)
        reasons.append(f"Postprocessing ({findings.postprocessing}) adds {gain:.4f} Dice and lowers no class.")
    else:
        reasons.append("There is no postprocessing: none raises the mean Dice without lowering a class.")
    return reasons


def _figure(dice: float) -> str:
    return "-" if math.isnan(dice) else f"{dice:.4f}"
