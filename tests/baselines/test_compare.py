"""Comparisons of made-up methods: what is kept, what is written, and what is refused."""

import functools
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from masam_auto.baselines.compare import compare_methods, run_method
from masam_auto.baselines.compared_method import Method, PredictionCost, Training
from masam_auto.baselines.results import MEAN, Result
from masam_auto.core.claims import claimed
from masam_auto.core.dataset import Case, Dataset, open_dataset
from masam_auto.core.errors import DatasetError, MasamError, OutputError
from masam_auto.core.paths import Paths
from masam_auto.formats.io import read_geometry, read_labels, write_labels

TRAINING = Training(
    seconds=60,
    cpu_seconds=50,
    memory_gib=0.5,
    parameters=2_000_000,
    iterations=1234,
    batch=2,
    planned_batch=2,
    remarks=("made up",),
)
Writer = Callable[[np.ndarray], np.ndarray]


def make_method(name: str, change: Writer, calls: list[str], **request: Any) -> Method:
    """A method that predicts what `change` makes of the reference."""

    def train() -> Training:
        calls.append(f"train {name}")
        return TRAINING

    def predict(cases: Sequence[Case], output: Path) -> PredictionCost:
        calls.append(f"predict {name}")
        for case in cases:
            for frame, label in zip(case.frames, case.labels or (), strict=True):
                ending = label.name.removeprefix(frame)
                write_labels(output / f"{frame}{ending}", change(read_labels(label)[0]), read_geometry(label))
        seconds = {case.identifier: 0.25 for case in cases}
        return PredictionCost(seconds=seconds, cpu_seconds=seconds)

    return Method(name=name, train=train, predict=predict, request=request)


def perfect(reference: np.ndarray) -> np.ndarray:
    return reference


def shifted(reference: np.ndarray) -> np.ndarray:
    return np.roll(reference, 1, axis=-1)


def empty(reference: np.ndarray) -> np.ndarray:
    return np.zeros_like(reference)


@pytest.fixture
def dataset(tmp_path: Path, raw_dataset: Callable[..., Path]) -> Dataset:
    return open_dataset(_paths(raw_dataset(cases=4, shape=(4, 12, 10)).parent), "1")


def _paths(raw: Path) -> Paths:
    return Paths(raw=raw, preprocessed=raw, results=raw, weights=raw)


def compare(dataset: Dataset, folder: Path, methods: Sequence[Method], **options: Any) -> tuple[Result, ...]:
    shown = {"heading": ["A title", "A budget."], "hardware": "an abacus"}
    return compare_methods(methods, dataset, dataset.cases, folder, **shown, **options)


run = functools.partial(run_method, raw="some", hardware="an abacus")


def test_methods_stand_side_by_side(dataset: Dataset, tmp_path: Path) -> None:
    calls: list[str] = []
    methods = [
        make_method("ours", perfect, calls),
        make_method("shifted", shifted, calls),
        make_method("empty", empty, calls),
    ]
    ours, other, nothing = compare(dataset, tmp_path / "fold_0", methods)
    assert calls == [f"{verb} {name}" for name in ("ours", "shifted", "empty") for verb in ("train", "predict")]
    assert set(ours.values(MEAN, "Dice")) == {1.0}
    assert set(nothing.values(MEAN, "Dice")) == {0.0}
    assert all(0 < value < 1 for value in other.values(MEAN, "Dice"))
    written = json.loads((tmp_path / "fold_0" / "comparison.json").read_text())
    assert [method["name"] for method in written["methods"]] == ["ours", "shifted", "empty"]
    assert written["ours_minus"]["empty"][MEAN] == {"cases": 4, "mean": 1.0, "low": 1.0, "high": 1.0, "p_value": 0.125}
    names = {path.name for path in (tmp_path / "fold_0").iterdir()}
    assert names >= {"comparison.md", "dice.png", "dice_and_time.png", "case_best.png", "case_worst.png"}


def test_the_text_says_what_was_measured(dataset: Dataset, tmp_path: Path) -> None:
    calls: list[str] = []
    compare(dataset, tmp_path, [make_method("ours", perfect, calls), make_method("empty", empty, calls)])
    text = (tmp_path / "comparison.md").read_text()
    assert text.startswith("# A title\n\nA budget.\n")
    assert "| mean | ours | 1.0000 | 0.00 | 1.0000 |  |  |" in text
    assert "| mean | empty | 0.0000 | - (0) | 0.0000 | +1.0000 [+1.0000, +1.0000] | 0.12 |" in text
    assert "| ours | 60 | 50 | 1,234 | 2 | 2.00 | 0.50 | 0.25 | 0.25 | made up |" in text
    assert "| case_003 | 1.0000 | 0.0000 |" in text
    assert "nnU-Net's evaluation was not available" in text
    assert "Computed on: an abacus." in text
    pictures = [line[line.index("(") + 1 : -1] for line in text.splitlines() if line.startswith("![")]
    assert len(pictures) == 4
    assert all((tmp_path / picture).is_file() for picture in pictures)


def test_what_is_finished_is_kept(dataset: Dataset, tmp_path: Path) -> None:
    calls: list[str] = []
    ours = make_method("ours", perfect, calls, budget="5s")

    def fail() -> Training:
        raise MasamError("no luck")

    with pytest.raises(MasamError, match="no luck"):
        compare(dataset, tmp_path, [ours, replace(make_method("other", shifted, calls), train=fail)])
    compare(dataset, tmp_path, [ours, make_method("other", shifted, calls)])
    assert calls == ["train ours", "predict ours", "train other", "predict other"]


def test_a_prediction_that_broke_off_needs_no_new_training(dataset: Dataset, tmp_path: Path) -> None:
    calls: list[str] = []
    method = make_method("ours", perfect, calls)

    def fail(cases: Sequence[Case], output: Path) -> PredictionCost:
        raise MasamError("no luck")

    with pytest.raises(MasamError, match="no luck"):
        run(replace(method, predict=fail), dataset.cases, tmp_path)
    run(method, dataset.cases, tmp_path)
    assert calls == ["train ours", "predict ours"]


def test_another_request_is_not_mixed_in(dataset: Dataset, tmp_path: Path) -> None:
    calls: list[str] = []
    run(make_method("ours", perfect, calls, budget="5s", batch=2), dataset.cases, tmp_path)
    with pytest.raises(OutputError, match=r"was run with budget 5s instead of 6s\. Use the same options again, or"):
        run(make_method("ours", perfect, calls, budget="6s", batch=2), dataset.cases, tmp_path)
    with pytest.raises(OutputError, match=r"was run with other cases\. Use"):
        run(make_method("ours", perfect, calls, budget="5s", batch=2), dataset.cases[:2], tmp_path)
    assert calls == ["train ours", "predict ours"]


def test_a_record_of_an_earlier_version_is_kept(dataset: Dataset, tmp_path: Path) -> None:
    """It says less of what was asked for, and not on what it ran."""
    calls: list[str] = []
    compare(dataset, tmp_path, [make_method("ours", perfect, calls, budget="5s")])
    file = tmp_path / "ours" / "run.json"
    record = json.loads(file.read_text())
    del record["hardware"], record["request"]["raw data"]
    record["version"] = 1
    file.write_text(json.dumps(record))
    methods = [make_method("ours", perfect, calls, budget="5s", cores=2), make_method("other", shifted, calls)]
    compare(dataset, tmp_path, methods)
    assert calls == ["train ours", "predict ours", "train other", "predict other"]
    text = (tmp_path / "comparison.md").read_text()
    assert "Computed on: ours: hardware not recorded; other: an abacus." in text


def test_another_model_predicts_anew(dataset: Dataset, tmp_path: Path) -> None:
    calls: list[str] = []
    method = make_method("ours", shifted, calls)
    run(method, dataset.cases, tmp_path)
    run(replace(method, trained=lambda: TRAINING), dataset.cases, tmp_path)
    assert calls == ["train ours", "predict ours"], "the model is the one that predicted"
    retrained = replace(TRAINING, seconds=61)
    stray = tmp_path / "predictions" / "gone.nii.gz"
    stray.touch()
    new = replace(make_method("ours", perfect, calls), trained=lambda: retrained, train=lambda: retrained)
    assert run(new, dataset.cases, tmp_path).training == retrained
    assert calls == ["train ours", "predict ours", "predict ours"]
    assert not stray.exists()


def test_results_of_other_raw_data_are_not_mixed_in(dataset: Dataset, tmp_path: Path) -> None:
    compare(dataset, tmp_path / "fold", [make_method("ours", perfect, [])])
    label = (dataset.cases[0].labels or ())[0]
    label.touch()
    compare(dataset, tmp_path / "fold", [make_method("ours", perfect, [])])
    write_labels(label, shifted(read_labels(label)[0]), read_geometry(label))
    with pytest.raises(OutputError, match=r"was run with other raw data\. Use the same options again, or remove"):
        compare(dataset, tmp_path / "fold", [make_method("ours", perfect, [])])


def test_references_are_those_of_now(dataset: Dataset, tmp_path: Path) -> None:
    """A link of an earlier comparison may lead nowhere, or be of a case that is in another fold now."""
    links = tmp_path / "references"
    links.mkdir()
    (links / "case_000.nii.gz").symlink_to(tmp_path / "gone.nii.gz")
    (links / "other.nii.gz").symlink_to(tmp_path / "gone.nii.gz")
    (ours,) = compare(dataset, tmp_path, [make_method("ours", perfect, [])])
    assert sorted(ours.scores) == [case.identifier for case in dataset.cases]


def test_a_case_without_labels_cannot_be_compared(dataset: Dataset, tmp_path: Path) -> None:
    cases = [dataset.cases[0], replace(dataset.cases[1], labels=None)]
    with pytest.raises(DatasetError, match="have no labels to compare with: case_001"):
        compare_methods([], dataset, cases, tmp_path, heading=["A title"], hardware="an abacus")


def test_one_case_can_be_compared(dataset: Dataset, tmp_path: Path) -> None:
    methods = [make_method("ours", perfect, []), make_method("empty", empty, [])]
    compare_methods(methods, dataset, dataset.cases[:1], tmp_path, heading=["A title"], hardware="an abacus")
    assert "| mean | empty | 0.0000 | - (0) | 0.0000 | +1.0000 | 1 |" in (tmp_path / "comparison.md").read_text()


def test_names_with_a_bar_keep_the_tables_whole(dataset: Dataset, tmp_path: Path) -> None:
    labels = replace(dataset.description.labels, values={"background": (0,), "left|right": (1,), "b": (2,)})
    renamed = replace(dataset, description=replace(dataset.description, labels=labels))
    compare(renamed, tmp_path, [make_method("ours", perfect, [])])
    assert r"| left\|right | ours | 1.0000 |" in (tmp_path / "comparison.md").read_text()


@pytest.mark.parametrize(("error", "warned"), [(0.0, False), (1e-9, False), (1e-3, True)])
def test_the_second_opinion_is_compared(
    dataset: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture, error: float, warned: bool
) -> None:
    def opinion(predictions: Path, references: Path, output: Path) -> dict[str, Any]:
        assert sorted(path.name for path in references.iterdir()) == sorted(path.name for path in predictions.iterdir())
        summary: dict[str, Any] = json.loads((predictions.parent / "summary.json").read_text())
        summary["metric_per_case"][1]["metrics"]["2"]["Dice"] -= error
        return summary

    with caplog.at_level(logging.WARNING, logger="masam_auto"):
        methods = [make_method("ours", perfect, []), make_method("shifted", shifted, [])]
        results = compare(dataset, tmp_path, methods, second_opinion=opinion)
    assert [result.disagreement for result in results] == [pytest.approx(error)] * 2
    assert ("differ by up to" in caplog.text) == warned
    text = (tmp_path / "comparison.md").read_text()
    assert "All predictions were scored by masam_evaluate and by the function" in text
    assert ("**They do not agree**" in text) == warned


def test_a_second_opinion_that_fails_leaves_our_scores(dataset: Dataset, tmp_path: Path) -> None:
    def opinion(predictions: Path, references: Path, output: Path) -> dict[str, Any]:
        if predictions.parent.name == "ours":
            raise MasamError("no reader")
        summary: dict[str, Any] = json.loads((predictions.parent / "summary.json").read_text())
        return summary

    methods = [make_method("ours", perfect, []), make_method("shifted", shifted, [])]
    results = compare(dataset, tmp_path, methods, second_opinion=opinion)
    assert [result.disagreement for result in results] == [None, 0.0]
    assert "The predictions of shifted were scored" in (tmp_path / "comparison.md").read_text()


def test_frames_of_a_video_are_scored_one_by_one(video_dataset: Callable[..., Path], tmp_path: Path) -> None:
    dataset = open_dataset(_paths(video_dataset(number=2, sequences=2, frames=3).parent), "2")
    methods = [make_method("ours", perfect, []), make_method("shifted", shifted, [])]
    ours, _ = compare(dataset, tmp_path, methods)
    assert sorted(ours.scores) == [f"clip{clip}_frame{frame:03d}" for clip in range(2) for frame in range(3)]
    assert (tmp_path / "case_best.png").is_file()
    written = json.loads((tmp_path / "comparison.json").read_text())
    assert written["ours_minus"]["shifted"][MEAN]["cases"] == 2


def test_one_command_at_a_time_compares(dataset: Dataset, tmp_path: Path) -> None:
    with claimed(tmp_path, "comparison"), pytest.raises(OutputError, match="another process works on comparison there"):
        compare_methods([], dataset, dataset.cases, tmp_path, heading=["A title"], hardware="an abacus")
