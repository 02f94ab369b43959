"""Scores out of summaries, and whether two evaluations agree."""

import math
from typing import Any

import pytest

from masam_auto.baselines.compared_method import PredictionCost, Training
from masam_auto.baselines.results import MEAN, Result, largest_difference, read_scores, score_differences
from masam_auto.core.labels import Labels

LABELS = Labels(
    values={"background": (0,), "whole": (1, 2), "liver": (1,)}, has_regions=True, regions_class_order=(2, 1)
)
NAN = math.nan


def summary(**dice: tuple[float, float]) -> dict[str, Any]:
    """Dice of the region (1, 2) and of 1, by case."""
    return {
        "metric_per_case": [
            {
                "prediction_file": f"/some/where/{name}.nii.gz",
                "metrics": {
                    key: {"Dice": value, "HD95_mm": 2.0, "NSD": 0.5, "IoU": 0.1}
                    for key, value in zip(("1", "(1, 2)"), values, strict=True)
                },
            }
            for name, values in dice.items()
        ]
    }


def make_result(name: str, content: dict[str, Any]) -> Result:
    training = Training(seconds=1, cpu_seconds=1, memory_gib=1, parameters=1, iterations=1, batch=1, planned_batch=1)
    prediction = PredictionCost(seconds={"a": 1.0}, cpu_seconds={"a": 1.0})
    scores = read_scores(content, LABELS, ".nii.gz")
    return Result(name=name, hardware=None, training=training, prediction=prediction, scores=scores)


def test_scores_are_by_case_and_name() -> None:
    scores = read_scores(summary(b=(0.5, 1.0), a=(NAN, 0.25)), LABELS, ".nii.gz")
    assert scores["b"]["liver"] == {"Dice": 0.5, "HD95_mm": 2.0, "NSD": 0.5}
    assert scores["b"][MEAN]["Dice"] == 0.75
    assert scores["a"][MEAN]["Dice"] == 0.25
    assert make_result("x", summary(b=(0.5, 1.0), a=(0.1, 0.25))).values("whole", "Dice") == [0.25, 1.0]


def test_differences_are_paired_by_case() -> None:
    ours, other = summary(a=(0.5, 1.0), b=(0.7, 0.8)), summary(b=(0.6, 0.8), a=(0.2, 0.8))
    found = score_differences(make_result("ours", ours), make_result("other", other), {"a": "a", "b": "b"})
    assert list(found) == ["liver", "whole", MEAN]
    assert found["liver"].mean == pytest.approx(0.2)
    assert found[MEAN].mean == pytest.approx(0.15)
    assert found[MEAN].cases == 2
    assert (
        score_differences(make_result("ours", ours), make_result("other", other), {"a": "v", "b": "v"})[MEAN].cases == 1
    )


@pytest.mark.parametrize(
    ("theirs", "expected"),
    [
        (summary(a=(0.5, NAN)), 0.0),
        (summary(a=(0.5 + 1e-3, NAN)), 1e-3),
        (summary(a=(0.5, 0.0)), math.inf),
        (summary(b=(0.5, NAN)), math.inf),
        (summary(a=(0.5, NAN), b=(0.5, NAN)), math.inf),
    ],
)
def test_evaluations_are_compared_number_by_number(theirs: dict[str, Any], expected: float) -> None:
    assert largest_difference(summary(a=(0.5, NAN)), theirs) == pytest.approx(expected)
    assert largest_difference(theirs, summary(a=(0.5, NAN))) == pytest.approx(expected)
