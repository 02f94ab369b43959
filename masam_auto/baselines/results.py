"""Scores of a method on each case, and differences between two methods or two summaries."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from masam_auto.baselines.compared_method import PredictionCost, Training
from masam_auto.baselines.paired import PairedDifference, compare_pairs
from masam_auto.core.labels import Labels
from masam_auto.core.summary import mean_of_known, summary_key

SHOWN = ("Dice", "HD95_mm", "NSD")
MEAN = "mean"  # key of the mean over the classes
TOLERANCE = 1e-6  # of Dice between the two evaluations

Scores = dict[str, dict[str, dict[str, float]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """Results of one method.

    `scores`: case (file name without ending) -> class, or "mean" over the classes -> metric -> value. `hardware` is
    what it ran on. `disagreement` is the largest Dice difference between our evaluation and nnU-Net's; None without
    nnU-Net.
    """

    name: str
    hardware: str | None
    training: Training
    prediction: PredictionCost
    scores: Scores
    disagreement: float | None = None

    def values(self, label: str, metric: str) -> list[float]:
        """The values of all cases, in the order of their names."""
        return [self.scores[case][label][metric] for case in sorted(self.scores)]


def read_scores(summary: Mapping[str, Any], labels: Labels, ending: str) -> Scores:
    """The metrics in `SHOWN` from a summary, by case and class name."""
    names = {summary_key(values): name for name, values in labels.foreground.items()}
    scores: Scores = {}
    for entry in summary["metric_per_case"]:
        by_class = {
            names[key]: {metric: values[metric] for metric in SHOWN} for key, values in entry["metrics"].items()
        }
        mean = {metric: mean_of_known(values[metric] for values in by_class.values()) for metric in SHOWN}
        scores[Path(entry["prediction_file"]).name.removesuffix(ending)] = {**by_class, MEAN: mean}
    return scores


def largest_difference(ours: Mapping[str, Any], theirs: Mapping[str, Any], *, metric: str = "Dice") -> float:
    """Largest difference of a metric over cases and classes between two summaries of the same files.

    Infinite if only one of them has a number, or if the files differ.
    """
    left, right = (
        {
            (Path(entry["prediction_file"]).name, key): float(values[metric])
            for entry in summary["metric_per_case"]
            for key, values in entry["metrics"].items()
        }
        for summary in (ours, theirs)
    )
    if left.keys() != right.keys():
        return math.inf
    return max((_difference(left[key], right[key]) for key in left), default=0.0)


def score_differences(
    ours: Result, other: Result, case_of: Mapping[str, str], *, metric: str = "Dice"
) -> dict[str, PairedDifference]:
    """Ours minus the other, by class and for their mean. `case_of` maps frames to their video, cases to themselves."""
    cases = [case_of[name] for name in sorted(ours.scores)]
    return {
        label: compare_pairs(ours.values(label, metric), other.values(label, metric), cases)
        for label in next(iter(ours.scores.values()))
    }


def _difference(left: float, right: float) -> float:
    if math.isnan(left) or math.isnan(right):
        return 0.0 if math.isnan(left) and math.isnan(right) else math.inf
    return abs(left - right)
