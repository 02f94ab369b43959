"""Confusion tables give the Dice that `evaluation.evaluate` gives."""

import numpy as np
import pytest

from masam_auto.core.labels import Labels, parse_labels
from masam_auto.core.summary import summarise_cases, summary_key
from masam_auto.evaluation.evaluate import evaluate_arrays
from masam_auto.imaging.confusion import class_dice, count_confusion, mean_dice

CLASSES = parse_labels({"background": 0, "organ": 1, "lesion": 2, "rare": 3, "ignore": 4}, None)
REGIONS = parse_labels({"background": 0, "whole": [1, 2, 3], "core": [2, 3], "middle": 3}, [1, 2, 3])


def cases(count: int, highest: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Label maps; the first case has one class only, so that some Dice are not-a-number."""
    generator = np.random.default_rng(0)
    drawn = [generator.integers(0, highest + 1, (2, 2, 5, 6)) for _ in range(count)]
    drawn[0] = np.minimum(drawn[0], 1)
    return [(pair[0].astype(np.int16), pair[1].astype(np.int16)) for pair in drawn]


@pytest.mark.parametrize("labels", [CLASSES, REGIONS])
def test_dice_is_the_evaluations(labels: Labels) -> None:
    pairs = [(np.minimum(a, 3).astype(np.int16), b) for a, b in cases(4, labels.ignore or 3)]
    dice = class_dice([count_confusion(a, b, labels) for a, b in pairs], labels)
    of_a_case = {"mIoU": 0.5, "mIoU_with_background": 0.5}  # is not looked at here
    entries = [{"metrics": evaluate_arrays(a, b, labels, spacing=(1.0, 1.0, 1.0)), **of_a_case} for a, b in pairs]
    summary = summarise_cases(entries)
    expected = [summary["mean"][summary_key(values)]["Dice"] for values in labels.foreground.values()]
    assert np.allclose(dice, expected, rtol=1e-12)
    assert mean_dice(dice) == pytest.approx(summary["foreground_mean"]["Dice"], rel=1e-12)


def test_undeclared_values_count_as_background() -> None:
    labels = parse_labels({"background": 0, "organ": 1}, None)
    odd = np.array([[[1, 7, -3, 0]]], np.int16)
    assert np.array_equal(count_confusion(odd, odd, labels), [[3, 0], [0, 1]])


def test_a_class_that_is_nowhere_has_no_dice() -> None:
    empty = np.zeros((1, 2, 2), np.int16)
    dice = class_dice([count_confusion(empty, empty, CLASSES)], CLASSES)
    assert np.isnan(dice).all()
    assert np.isnan(mean_dice(dice))
