"""Means over cases and classes that do not all have the same metrics."""

import math
from typing import Any

import pytest

from masam_auto.core.summary import mean_iou, mean_of_known, summarise_cases, summarise_subsets


def entry(name: str, **classes: dict[str, float]) -> dict[str, Any]:
    return {"metrics": classes, "mIoU": 0.5, "mIoU_with_background": 1.0, "reference_file": f"/somewhere/{name}.png"}


CASES = [
    entry("a", one={"Dice": 1.0, "lesion_F1": 0.5}, two={"Dice": math.nan}),
    entry("b", one={"Dice": 0.5, "lesion_F1": math.nan}, two={"Dice": 0.25}),
]


def test_means_leave_out_what_is_no_number_and_what_a_class_lacks() -> None:
    found = summarise_cases(CASES)
    assert found["mean"] == {"one": {"Dice": 0.75, "lesion_F1": 0.5}, "two": {"Dice": 0.25}}
    assert found["foreground_mean"] == {"Dice": 0.5, "lesion_F1": 0.5}
    assert (found["mIoU"], found["mIoU_with_background"], found["metric_per_case"]) == (0.5, 1.0, CASES)


def test_subsets_without_cases_are_absent() -> None:
    found = summarise_subsets(CASES, {"A": ["b.png", "c.png"], "B": ["c.png"]})
    assert list(found) == ["A"]
    assert found["A"]["cases"] == 1
    assert found["A"]["mean"]["one"]["Dice"] == 0.5


def test_mean_iou_leaves_out_classes_that_the_reference_has_not() -> None:
    metrics = {"1": {"IoU": 0.5, "n_ref": 3}, "2": {"IoU": 0.0, "n_ref": 0}, "3": {"IoU": 0.0, "n_ref": 1}}
    assert mean_iou(metrics) == 0.25
    assert mean_iou(metrics, 1.0) == pytest.approx(0.5)
    assert math.isnan(mean_iou({"2": metrics["2"]}))
    assert math.isnan(mean_of_known([math.nan]))
