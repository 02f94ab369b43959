"""Compare segmentations with references: overlap, distances, volumes and lesions, in nnU-Net's summary schema."""

import functools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from masam_auto.compute.parallel import Workers, map_cases
from masam_auto.core.dataset import DatasetDescription, files_by_name, has_ending
from masam_auto.core.errors import DatasetError, first_few
from masam_auto.core.geometry import Box
from masam_auto.core.jsonio import to_plain, write_json
from masam_auto.core.label_map import map_labels
from masam_auto.core.labels import Labels
from masam_auto.core.summary import SUMMARY_NAME, mean_iou, summarise_cases, summarise_subsets, summary_key
from masam_auto.formats.io import is_image, label_values, read_labels
from masam_auto.imaging.crop import box_around, crop_to, value_boxes, whole_box
from masam_auto.imaging.metrics import compare_masks, find_metric, measure
from masam_auto.imaging.placement import labels_on_grid

logger = logging.getLogger(__name__)

BYTES_PER_VOXEL = 40  # while two label files are compared: both files, masks, and surfaces within a class's box


@dataclass(frozen=True, kw_only=True, slots=True)
class Scoring:
    """How segmentations are scored; written to the summary as "scoring".

    `tolerance` is for surfaces, in mm; `tolerances` sets it for single classes by name. `lesions` names the classes
    whose connected components are counted. `metrics` names metrics of plug-ins. `prediction_values` and
    `reference_values` map label values of the files to new ones (`core.label_map`).
    """

    tolerance: float = 2.0
    tolerances: dict[str, float] = field(default_factory=dict)
    lesions: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    prediction_values: dict[int, int] = field(default_factory=dict)
    reference_values: dict[int, int] = field(default_factory=dict)


Subsets = Mapping[str, Mapping[str, Sequence[str]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pair:
    prediction: Path
    reference: Path
    labels: Labels
    scoring: Scoring
    checked: bool


def evaluate_folder(
    prediction_folder: Path,
    reference_folder: Path,
    labels: Labels,
    file_ending: str,
    *,
    scoring: Scoring | None = None,
    subsets: Subsets | None = None,
    workers: Workers = 0,
    protocol: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Compare a folder of segmentations with references and write summary.json into it.

    Args:
        prediction_folder: segmentations, named like the references.
        reference_folder: the true labels.
        labels: classes or regions to compare.
        file_ending: ending of both kinds of files.
        scoring: how to score; None for the defaults of `Scoring`.
        subsets: as for `evaluate_files`.
        workers: processes, 0 for this one, or a cluster.
        protocol: how the segmentations were made, for the summary.

    Returns:
        As `evaluate_files`.

    Raises:
        DatasetError: a folder is missing, there are no references, or some have no segmentation; or as
            `evaluate_files`.
        CaseErrors: files cannot be read, or are on different grids.
        OutputError: the summary cannot be written.

    Example:
        >>> from masam_auto import evaluate
        >>> labels = dataset.description.labels
        >>> summary = evaluate(predictions, dataset.folder / "labelsTr", labels, ".nii.gz")
        >>> sorted(summary["mean"]), len(summary["metric_per_case"])
        (['1', '2'], 3)
        >>> sorted(summary["foreground_mean"])[:5]
        ['ASSD_mm', 'ASSD_voxels', 'Dice', 'FN', 'FP']
    """
    pairs = _find_pairs(prediction_folder, reference_folder, file_ending)
    output = prediction_folder / SUMMARY_NAME
    return evaluate_files(
        pairs, labels, output=output, scoring=scoring, subsets=subsets, workers=workers, protocol=protocol
    )


def evaluate_files(
    pairs: Sequence[tuple[Path, Path]],
    labels: Labels,
    *,
    output: Path,
    scoring: Scoring | None = None,
    subsets: Subsets | None = None,
    workers: Workers = 0,
    protocol: Mapping[str, Any] | None = None,
    checked: bool = False,
) -> dict[str, Any]:
    """Compare segmentations with references and write a summary.

    They are compared by position in the patient: segmentations with other voxel axes are turned first.

    Args:
        pairs: (segmentation, reference), at least one.
        labels: classes or regions to compare.
        output: the file to write.
        scoring: how to score; None for the defaults of `Scoring`.
        subsets: kind ("groups") -> name of a subset -> names of its reference files. Each kind becomes an entry of the
            summary if a subset has cases.
        workers: processes, 0 for this one, or a cluster.
        protocol: how the segmentations were made; written to the summary as "protocol".
        checked: the references belong to a data set, see `imaging.placement.labels_on_grid`.

    Returns:
        The summary: "foreground_mean", "mean" per label, "mIoU", "metric_per_case", "scoring" and the subsets. Values
        that are not-a-number (class in neither segmentation nor reference) do not count in the means.

    Raises:
        DatasetError: the scoring names an unknown class.
        PlanError: the scoring names an unknown metric.
        CaseErrors: files cannot be read, or are on different grids.
        OutputError: the summary cannot be written.

    Source: schema and conventions of nnU-Net v2's summary.json. One difference: a class that no case holds is left out
    of the foreground mean, where nnU-Net's mean becomes not-a-number.
    """
    scoring = scoring or Scoring()
    check_classes(scoring, labels)
    items = [  # absolute: remote workers have another working folder
        _Pair(
            prediction=prediction.absolute(),
            reference=reference.absolute(),
            labels=labels,
            scoring=scoring,
            checked=checked,
        )
        for prediction, reference in pairs
    ]
    names = [prediction.name for prediction, _ in pairs]
    folders = sorted({path.parent for item in items for path in (item.prediction, item.reference)})
    per_case = map_cases(_evaluate_pair, items, names=names, what="evaluation", workers=workers, folders=folders)
    summary = summarise_cases(per_case) | {"scoring": to_plain(scoring)}
    for kind, members in (subsets or {}).items():
        if found := summarise_subsets(per_case, members):
            summary[kind] = found
    if protocol is not None:
        summary["protocol"] = dict(protocol)
    write_json(output, summary)
    return summary


def subsets_of(description: DatasetDescription, file_ending: str) -> Subsets:
    """The sites or modalities ("groups") and the videos ("sequences") of a data set, as names of label files."""
    videos = description.sequences
    groups = {
        group: [frame for name in names for frame in videos.get(name, (name,))]
        for group, names in description.groups.items()
    }
    return {
        kind: {name: [f"{frame}{file_ending}" for frame in frames] for name, frames in members.items()}
        for kind, members in (("groups", groups), ("sequences", videos))
    }


def evaluate_arrays(
    prediction: np.ndarray,
    reference: np.ndarray,
    labels: Labels,
    *,
    spacing: tuple[float, float, float],
    scoring: Scoring | None = None,
    voxel_volume: float | None = None,
) -> dict[str, dict[str, float]]:
    """Metrics of each class or region of one case.

    Args:
        prediction: (Z, Y, X) label values, whole numbers.
        reference: (Z, Y, X) label values. Voxels with the ignore label are left out.
        labels: what the values mean.
        spacing: voxel spacing in mm.
        scoring: tolerances, lesions and metrics; its label maps are not used.
        voxel_volume: cubic mm; by default the product of the spacings.

    Returns:
        Summary key -> metric -> value.

    Example:
        >>> from masam_auto.core.labels import parse_labels
        >>> from masam_auto.evaluation.evaluate import evaluate_arrays
        >>> truth = np.array([[[0, 0, 1, 1]]], np.int16)  # (Z, Y, X)
        >>> labels = parse_labels({"background": 0, "organ": 1}, None)
        >>> scores = evaluate_arrays(truth, truth, labels, spacing=(3.0, 1.0, 1.0))
        >>> scores["1"]["Dice"]  # by label value
        1.0
    """
    scoring = scoring or Scoring()
    valid = None if labels.ignore is None else reference != labels.ignore
    total = reference.size if valid is None else int(np.count_nonzero(valid))
    found = [value_boxes(array) for array in (prediction, reference)]
    metrics = {}
    for name, values in labels.foreground.items():
        box = _box_of(values, found, reference.shape)
        counted = None if valid is None else crop_to(valid, box)
        comparison = compare_masks(
            _mask(crop_to(prediction, box), values),
            _mask(crop_to(reference, box), values),
            spacing=spacing,
            tolerance=scoring.tolerances.get(name, scoring.tolerance),
            voxel_volume=voxel_volume,
            valid=counted,
            outside=total - (crop_to(reference, box).size if counted is None else int(np.count_nonzero(counted))),
            lesions=name in scoring.lesions,
        )
        metrics[summary_key(values)] = measure(comparison, scoring.metrics)
    return metrics


def _find_pairs(prediction_folder: Path, reference_folder: Path, file_ending: str) -> list[tuple[Path, Path]]:
    """Pair segmentations and references by name. Raises DatasetError."""
    predictions = _list_files(prediction_folder, file_ending, what="segmentations")
    references = _list_files(reference_folder, file_ending, what="references")
    if not references:
        raise DatasetError(
            f"{reference_folder}: no references that end in {file_ending}. Give the folder with the true labels."
        )
    if missing := [references[name].name for name in sorted(references.keys() - predictions.keys())]:
        raise DatasetError(
            f"{prediction_folder}: {len(missing)} of {len(references)} segmentations are missing: "
            f"{first_few(missing)}. Predict them, or move their references out of the folder."
        )
    if extra := [predictions[name].name for name in sorted(predictions.keys() - references.keys())]:
        logger.warning("%s: no reference for %s; not evaluated", prediction_folder, first_few(extra))
    return [(predictions[name], references[name]) for name in sorted(references)]


def _list_files(folder: Path, file_ending: str, *, what: str) -> dict[str, Path]:
    """Label files by name without ending. Other images are left out with a warning."""
    if not folder.is_dir():
        raise DatasetError(f"folder of {what} not found: {folder}")
    there = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    if left := [path.name for path in there if is_image(path) and not has_ending(path, file_ending)]:
        logger.warning("%s: left out, because they are not %s: %s", folder, file_ending, first_few(left))
    return files_by_name(folder, file_ending)


def _evaluate_pair(pair: _Pair) -> dict[str, Any]:
    prediction, own = read_labels(pair.prediction)
    reference, geometry = read_labels(pair.reference)
    prediction = labels_on_grid(
        prediction, own, geometry, path=pair.prediction, reference=pair.reference, checked=pair.checked
    )
    prediction = map_labels(prediction, pair.scoring.prediction_values)
    reference = map_labels(reference, pair.scoring.reference_values)
    _warn_of_undeclared(pair.prediction, prediction, pair.labels)
    _warn_of_undeclared(pair.reference, reference, pair.labels)
    metrics = evaluate_arrays(
        prediction,
        reference,
        pair.labels,
        spacing=geometry.spacing,
        scoring=pair.scoring,
        voxel_volume=geometry.voxel_volume,
    )
    return {
        "metrics": metrics,
        "mIoU": mean_iou(metrics),
        "mIoU_with_background": mean_iou(metrics, _background_iou(prediction, reference, pair.labels.ignore)),
        "prediction_file": str(pair.prediction),
        "reference_file": str(pair.reference),
    }


def _warn_of_undeclared(path: Path, values: np.ndarray, labels: Labels) -> None:
    """Warn if a file has values that are no labels, e.g. 255 in a mask or -1 from some programs."""
    known = {*labels.declared, 0 if labels.ignore is None else labels.ignore}
    if unknown := [value for value in label_values(values) if value not in known]:
        several = len(unknown) > 1
        meaning = (
            "which are no labels and count as background" if several else "which is no label and counts as background"
        )
        logger.warning("%s: has the value%s %s, %s", path, "s" if several else "", first_few(unknown), meaning)


def check_classes(scoring: Scoring, labels: Labels) -> None:
    """Raise DatasetError if the scoring names an unknown class, PlanError if it names an unknown metric."""
    for name in scoring.metrics:
        find_metric(name)
    if unknown := sorted({*scoring.tolerances, *scoring.lesions} - set(labels.foreground)):
        raise DatasetError(
            f"tolerance or lesions of {', '.join(unknown)}: there is no such class. The classes are "
            f"{', '.join(labels.foreground)}."
        )


def _box_of(values: tuple[int, ...], found: Sequence[Mapping[int, Box]], shape: tuple[int, ...]) -> Box:
    """The box around label values in either array, with a margin of one voxel. The first voxel if they occur nowhere.

    Without the margin, an object that is one voxel thick would look like one in a picture, which lacks that axis.

    Args:
        values: label values of a class or region.
        found: for each array, the boxes of the values in it.
        shape: shape of both arrays.
    """
    if 0 in values:
        return whole_box(shape)
    box = box_around(boxes[value] for boxes in found for value in values if value in boxes)
    if box is None:
        return ((0, 1), (0, 1), (0, 1))
    z, y, x = ((max(low - 1, 0), min(high + 1, size)) for (low, high), size in zip(box, shape, strict=True))
    return z, y, x


def _background_iou(prediction: np.ndarray, reference: np.ndarray, ignore: int | None) -> float:
    """IoU of the voxels with label 0; not-a-number if there are none."""
    a, b = prediction == 0, reference == 0
    if ignore is not None:
        a &= reference != ignore
    union = int(np.count_nonzero(a | b))
    return int(np.count_nonzero(a & b)) / union if union else math.nan


def _mask(array: np.ndarray, values: tuple[int, ...]) -> np.ndarray:
    masks: list[np.ndarray] = [array == value for value in values]
    combine: Callable[[np.ndarray, np.ndarray], np.ndarray] = np.logical_or
    return functools.reduce(combine, masks)
