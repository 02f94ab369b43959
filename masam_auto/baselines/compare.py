"""Methods on the same fold: train, predict, score with two evaluations, and put the results side by side."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from masam_auto.baselines.comparison_figures import draw_boxes, draw_extremes, draw_time
from masam_auto.baselines.comparison_tables import describe_comparison
from masam_auto.baselines.method import Method, Prediction, Training
from masam_auto.baselines.results import Result, differences, largest_difference, read_scores
from masam_auto.core.dataset import Case, Dataset
from masam_auto.core.errors import OutputError
from masam_auto.core.jsonio import read_json, to_plain, write_bytes, write_json
from masam_auto.imaging.io import label_ending
from masam_auto.stages.evaluate import SUMMARY_NAME, evaluate_files

logger = logging.getLogger(__name__)

RUN_NAME = "run.json"
TOLERANCE = 1e-6  # of Dice between the two evaluations

# predictions, references, output -> summary in nnU-Net's schema
SecondOpinion = Callable[[Path, Path, Path], dict[str, Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """run.json: what was asked of a method, and what has been done of it."""

    version: int = 1
    request: dict[str, Any]
    training: Training
    prediction: Prediction | None = None


def compare_methods(
    methods: Sequence[Method],
    dataset: Dataset,
    cases: Sequence[Case],
    folder: Path,
    *,
    heading: Sequence[str],
    second_opinion: SecondOpinion | None = None,
    workers: int = 0,
) -> tuple[Result, ...]:
    """Run each method on a fold, unless that is done, and compare the first one with the others.

    Args:
        methods: the first is ours.
        dataset: the raw data.
        cases: the fold's validation cases, with labels.
        folder: where the results go; also FOLDER/METHOD/{run.json, predictions/, summary.json}.
        heading: title and lines that say what was compared and where, for the tables.
        second_opinion: scores a folder of predictions independently.
        workers: processes for our evaluation.

    Returns:
        One result a method; also written to comparison.json, comparison.md and pictures.

    Raises:
        OutputError: a method's folder is of another request.
        MasamError: of any kind that a method raises; those that are finished are kept.
    """
    ending = label_ending(dataset.description.file_ending)
    references = _link_references(cases, folder / "references", ending)
    results = []
    for method in methods:
        training, prediction = run_method(method, cases, folder / method.name)
        result = Result(name=method.name, training=training, prediction=prediction, scores={})
        results.append(_score(result, dataset, references, folder / method.name, ending, second_opinion, workers))
    ours, *others = results
    found = {other.name: differences(ours, other) for other in others}
    write_json(
        folder / "comparison.json",
        {"heading": list(heading), "methods": results, "ours_minus": found},
    )
    draw_boxes(folder / "dice.png", results)
    draw_time(folder / "dice_and_time.png", results)
    pictures = draw_extremes(folder, results, cases, dataset.description, ending)
    text = describe_comparison(results, found, heading, ["dice.png", "dice_and_time.png", *pictures])
    write_bytes(folder / "comparison.md", text.encode())
    return tuple(results)


def run_method(method: Method, cases: Sequence[Case], folder: Path) -> tuple[Training, Prediction]:
    """Train and predict, leaving out what is done already.

    Raises:
        OutputError: what is there was done for another request.
    """
    file, request = folder / RUN_NAME, to_plain({**method.request, "cases": [case.identifier for case in cases]})
    record = read_json(file, RunRecord, what="record of a comparison") if file.is_file() else None
    if record is not None and record.request != request:
        raise OutputError(
            f"{folder} was run with {_said(record.request, request)}. Ask for the same again, or remove {folder}."
        )
    if record is None:
        logger.info("%s: training", method.name)
        record = RunRecord(request=request, training=method.train())
        write_json(file, record)
    if record.prediction is None:
        logger.info("%s: predicting %s cases", method.name, len(cases))
        record = replace(record, prediction=method.predict(cases, folder / "predictions"))
        write_json(file, record)
    assert record.prediction is not None
    return record.training, record.prediction


def _score(
    result: Result,
    dataset: Dataset,
    references: Path,
    folder: Path,
    ending: str,
    second_opinion: SecondOpinion | None,
    workers: int,
) -> Result:
    """Score a method's predictions, and look whether the second opinion is the same."""
    labels, predictions = dataset.description.labels, folder / "predictions"
    pairs = [(predictions / reference.name, reference) for reference in sorted(references.iterdir())]
    summary = evaluate_files(pairs, labels, output=folder / SUMMARY_NAME, workers=workers)
    result = replace(result, scores=read_scores(summary, labels, ending))
    if second_opinion is None:
        return result
    other = second_opinion(predictions, references, folder / "nnunet_summary.json")
    result = replace(result, disagreement=largest_difference(summary, other))
    if result.disagreement is not None and not result.disagreement <= TOLERANCE:
        logger.warning(
            "%s: our Dice and nnU-Net's differ by up to %.3g. Compare %s with %s.",
            result.name, result.disagreement, folder / SUMMARY_NAME, folder / "nnunet_summary.json",
        )  # fmt: skip
    return result


def _link_references(cases: Sequence[Case], folder: Path, ending: str) -> Path:
    """A folder of links to the cases' label files, wherever they are: nnU-Net's evaluation takes folders."""
    folder.mkdir(parents=True, exist_ok=True)
    for case in cases:
        for frame, label in zip(case.frames, case.labels or (), strict=True):
            link = folder / f"{frame}{ending}"
            if not link.is_symlink():
                link.symlink_to(label.resolve())
    return folder


def _said(before: dict[str, Any], now: dict[str, Any]) -> str:
    """In which points two requests differ."""
    changed = [key for key in now if before.get(key) != now[key]]
    words = [f"{key} {before.get(key)} instead of {now[key]}" for key in changed if key != "cases"]
    return ", ".join([*words, *(["other cases"] if "cases" in changed else [])])
