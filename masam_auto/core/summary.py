"""summary.json: nnU-Net's schema, plus mIoU and means by site, modality or video."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

SUMMARY_NAME = "summary.json"

Entry = Mapping[str, Any]
Metrics = dict[str, float]


def summary_key(values: tuple[int, ...]) -> str:
    """nnU-Net's name of a class ("1") or region ("(1, 2)") in a summary."""
    return str(values[0]) if len(values) == 1 else str(values)


def summarise_cases(per_case: Sequence[Entry]) -> dict[str, Any]:
    """Means over cases and classes, and the cases themselves.

    Args:
        per_case: entries {"metrics": {class: {metric: value}}, "mIoU": ..., "mIoU_with_background": ..., ...}, at least
            one, all of the same classes. Not every class needs every metric.

    Returns:
        "foreground_mean", "mean" by class, both mIoU as means over cases, and "metric_per_case". Not-a-number is left
        out of the means.
    """
    return _means(per_case) | {"metric_per_case": list(per_case)}


def summarise_subsets(per_case: Sequence[Entry], subsets: Mapping[str, Iterable[str]]) -> dict[str, Any]:
    """The means of `summarise_cases` for each subset that has cases, with the number of cases as "cases".

    Args:
        per_case: entries as above, with "reference_file".
        subsets: name of the subset -> names of its reference files, without folders.
    """
    found: dict[str, Any] = {}
    for name, files in subsets.items():
        wanted = set(files)
        if entries := [entry for entry in per_case if Path(entry["reference_file"]).name in wanted]:
            found[name] = {"cases": len(entries)} | _means(entries)
    return found


def mean_iou(metrics: Mapping[str, Metrics], background: float | None = None) -> float:
    """Mean IoU over the classes in the reference of one case; not-a-number if it has none.

    Args:
        metrics: by class, with "IoU" and "n_ref".
        background: IoU of the background, to count it as one more class.

    Source: the EndoVis 2018 challenge's score of a frame (endovissub2018-roboticscenesegmentation.grand-challenge.org,
    Submission): mean IoU over the classes that are present in the frame; the score of all is the mean over frames.
    """
    present = [values["IoU"] for values in metrics.values() if values["n_ref"]]
    return mean_of_known(present if background is None else [*present, background])


def mean_of_known(values: Iterable[float]) -> float:
    """Mean of all values that are numbers; not-a-number if none is."""
    known = [float(value) for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan


def _means(entries: Sequence[Entry]) -> dict[str, Any]:
    mean = {
        key: {
            metric: mean_of_known(entry["metrics"][key][metric] for entry in entries)
            for metric in entries[0]["metrics"][key]
        }
        for key in entries[0]["metrics"]
    }
    names = dict.fromkeys(metric for values in mean.values() for metric in values)
    return {
        "foreground_mean": {
            name: mean_of_known(values[name] for values in mean.values() if name in values) for name in names
        },
        "mean": mean,
        "mIoU": mean_of_known(entry["mIoU"] for entry in entries),
        "mIoU_with_background": mean_of_known(entry["mIoU_with_background"] for entry in entries),
    }
