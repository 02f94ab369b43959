"""Compare methods on one fold: train, predict, score with two evaluations, and write tables and pictures."""

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from masam_auto.baselines.compared_method import Method, PredictionCost, Training, raw_digest
from masam_auto.baselines.comparison_figures import draw_boxes, draw_extremes, draw_time
from masam_auto.baselines.comparison_tables import describe_comparison
from masam_auto.baselines.results import TOLERANCE, Result, largest_difference, read_scores, score_differences
from masam_auto.core.atomic import write_bytes
from masam_auto.core.claims import claimed
from masam_auto.core.dataset import Case, Dataset
from masam_auto.core.errors import DatasetError, MasamError, OutputError, first_few
from masam_auto.core.jsonio import read_json, to_plain, write_json
from masam_auto.core.summary import SUMMARY_NAME
from masam_auto.evaluation.evaluate import evaluate_files
from masam_auto.formats.io import label_ending

logger = logging.getLogger(__name__)

RUN_NAME = "run.json"
LONG = ("raw data", "training cases", "cases")  # entries of a request that are too long for a message

# predictions, references, output -> summary in nnU-Net's schema
SecondOpinion = Callable[[Path, Path, Path], dict[str, Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """run.json: what was asked of a method, what is done, and on which hardware (None in older records)."""

    version: int = 2
    request: dict[str, Any]
    hardware: str | None = None
    training: Training
    prediction: PredictionCost | None = None


def compare_methods(
    methods: Sequence[Method],
    dataset: Dataset,
    cases: Sequence[Case],
    folder: Path,
    *,
    heading: Sequence[str],
    hardware: str,
    second_opinion: SecondOpinion | None = None,
    workers: int = 0,
) -> tuple[Result, ...]:
    """Run each unfinished method on a fold, and compare the first method with the others.

    Args:
        methods: the first is ours.
        dataset: the raw data.
        cases: the fold's validation cases, with labels.
        folder: where the results go, with FOLDER/METHOD/{run.json, predictions/, summary.json} for each method.
        heading: title and description of the comparison, for the tables.
        hardware: the hardware in use, in words.
        second_opinion: scores a folder of predictions independently.
        workers: processes for our evaluation.

    Returns:
        One result per method; also written to comparison.json, comparison.md and pictures.

    Raises:
        DatasetError: a case has no labels.
        OutputError: a method's folder belongs to another request, or another process is comparing there.
        MasamError: any error of a method. Finished methods are kept.
    """
    with claimed(folder, "comparison"):
        ending = label_ending(dataset.description.file_ending)
        references = _link_references(cases, folder / "references", ending)
        raw = raw_digest(dataset)
        results = []
        for method in methods:
            result = run_method(method, cases, folder / method.name, raw=raw, hardware=hardware)
            results.append(_score(result, dataset, references, folder / method.name, ending, second_opinion, workers))
        ours, *others = results
        case_of = {frame: case.identifier for case in cases for frame in case.frames}
        found = {other.name: score_differences(ours, other, case_of) for other in others}
        write_json(
            folder / "comparison.json",
            {"heading": list(heading), "methods": results, "ours_minus": found},
        )
        draw_boxes(folder / "dice.png", results)
        draw_time(folder / "dice_and_time.png", results, case_of)
        pictures = draw_extremes(folder, results, cases, dataset.description, ending)
        text = describe_comparison(results, found, heading, ["dice.png", "dice_and_time.png", *pictures])
        write_bytes(folder / "comparison.md", text.encode())
        return tuple(results)


def run_method(method: Method, cases: Sequence[Case], folder: Path, *, raw: str, hardware: str) -> Result:
    """Train and predict, skipping what is done. The result has no scores yet.

    Args:
        method: what to run.
        cases: the cases to predict.
        folder: for run.json and predictions/.
        raw: digest of the raw data.
        hardware: the hardware in use, in words.

    Raises:
        OutputError: the folder holds results of another request.
    """
    file = folder / RUN_NAME
    request = to_plain({**method.request, "raw data": raw, "cases": [case.identifier for case in cases]})
    record = read_json(file, RunRecord, what="record of a comparison") if file.is_file() else None
    if record is not None:
        if said := _said(record.request, request):
            raise OutputError(f"{folder} was run with {said}. Use the same options again, or remove {folder}.")
        if method.trained() not in (None, record.training):
            logger.info("%s: the training has changed since it was compared", method.name)
            record = None
    if record is None:
        logger.info("%s: training", method.name)
        record = RunRecord(request=request, hardware=hardware, training=method.train())
        write_json(file, record)
    if record.prediction is None:
        logger.info("%s: predicting %s cases", method.name, len(cases))
        predictions = folder / "predictions"
        shutil.rmtree(predictions, ignore_errors=True)  # perhaps of other cases
        predictions.mkdir(parents=True)
        record = replace(record, prediction=method.predict(cases, predictions))
        write_json(file, record)
    assert record.prediction is not None
    return Result(
        name=method.name, hardware=record.hardware, training=record.training, prediction=record.prediction, scores={}
    )


def _score(
    result: Result,
    dataset: Dataset,
    references: Path,
    folder: Path,
    ending: str,
    second_opinion: SecondOpinion | None,
    workers: int,
) -> Result:
    """Score a method's predictions and check that the second opinion agrees."""
    labels, predictions = dataset.description.labels, folder / "predictions"
    pairs = [(predictions / reference.name, reference) for reference in sorted(references.iterdir())]
    summary = evaluate_files(pairs, labels, output=folder / SUMMARY_NAME, workers=workers, checked=True)
    result = replace(result, scores=read_scores(summary, labels, ending))
    if second_opinion is None:
        return result
    try:
        other = second_opinion(predictions, references, folder / "nnunet_summary.json")
    except MasamError as error:  # e.g. files that nnU-Net cannot read; our scores stand
        logger.warning("%s: not scored by nnU-Net's evaluation. %s", result.name, error)
        return result
    result = replace(result, disagreement=largest_difference(summary, other))
    if result.disagreement is not None and not result.disagreement <= TOLERANCE:
        logger.warning(
            "%s: our Dice and nnU-Net's differ by up to %.3g. Compare %s with %s.",
            result.name,
            result.disagreement,
            folder / SUMMARY_NAME,
            folder / "nnunet_summary.json",
        )
    return result


def _link_references(cases: Sequence[Case], folder: Path, ending: str) -> Path:
    """A folder of links to the cases' label files, because nnU-Net's evaluation takes a folder."""
    if unlabelled := [case.identifier for case in cases if case.labels is None]:
        raise DatasetError(
            f"cases of the fold have no labels to compare with: {first_few(unlabelled)}. Restore the labels."
        )
    shutil.rmtree(folder, ignore_errors=True)  # perhaps of other cases, or with links to other places
    folder.mkdir(parents=True)
    for case in cases:
        for frame, label in zip(case.frames, case.labels or (), strict=True):
            (folder / f"{frame}{ending}").symlink_to(label.resolve())
    return folder


def _said(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The differences between two requests. Older records have fewer entries, and missing ones are skipped."""
    changed = [key for key in now if key in before and before[key] != now[key]]
    return ", ".join(f"other {key}" if key in LONG else f"{key} {before[key]} instead of {now[key]}" for key in changed)
