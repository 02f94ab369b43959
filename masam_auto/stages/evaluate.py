"""Segmentations against references: a summary in nnU-Net's schema, with distances and volumes beside the overlap."""

import functools
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from masam_auto.core.errors import DatasetError, first_few
from masam_auto.core.jsonio import write_json
from masam_auto.core.labels import Labels
from masam_auto.core.parallel import Workers, map_cases
from masam_auto.imaging.io import read_labels
from masam_auto.imaging.metrics import METRICS, compare_masks, measure

logger = logging.getLogger(__name__)

SUMMARY_NAME = "summary.json"
BYTES_PER_VOXEL = 40  # while two label files are compared: both, masks, and surfaces within a class's box


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pair:
    prediction: Path
    reference: Path
    labels: Labels
    tolerance: float


def evaluate_folder(
    prediction_folder: Path,
    reference_folder: Path,
    labels: Labels,
    file_ending: str,
    *,
    tolerance: float = 2.0,
    workers: Workers = 0,
    protocol: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Compare a folder of segmentations with references and write summary.json among them.

    Args:
        prediction_folder: segmentations, named as the references.
        reference_folder: the truth.
        labels: classes or regions to compare.
        file_ending: of both kinds of files.
        tolerance: mm, for the surface Dice (NSD).
        workers: processes, 0 for this one, or a cluster.
        protocol: how the segmentations were made, for the summary.

    Returns:
        As `evaluate_files`.

    Raises:
        DatasetError: a folder is missing, there are no references, or some have no segmentation.
        CaseErrors: files that cannot be read, or whose shapes differ.
        OutputError: the summary cannot be written.
    """
    names = _find_names(prediction_folder, reference_folder, file_ending)
    pairs = [(prediction_folder / name, reference_folder / name) for name in names]
    output = prediction_folder / SUMMARY_NAME
    return evaluate_files(pairs, labels, output=output, tolerance=tolerance, workers=workers, protocol=protocol)


def evaluate_files(
    pairs: Sequence[tuple[Path, Path]],
    labels: Labels,
    *,
    output: Path,
    tolerance: float = 2.0,
    workers: Workers = 0,
    protocol: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Compare segmentations with references and write a summary.

    Args:
        pairs: (segmentation, reference), at least one.
        labels: classes or regions to compare.
        output: the file to write.
        tolerance: mm, for the surface Dice (NSD).
        workers: processes, 0 for this one, or a cluster.
        protocol: how the segmentations were made; stands as "protocol" in the summary.

    Returns:
        The summary: "foreground_mean", "mean" per label, and "metric_per_case". Values that are not-a-number (class in
        neither segmentation nor reference) do not count in the means.

    Raises:
        CaseErrors: files that cannot be read, or whose shapes differ.
        OutputError: the summary cannot be written.

    Source: schema and conventions of nnU-Net v2's summary.json. Unlike there, a class that no case holds is left out of
    the foreground mean instead of making it not-a-number.
    """
    items = [  # absolute, because workers elsewhere have another working folder
        _Pair(prediction=prediction.absolute(), reference=reference.absolute(), labels=labels, tolerance=tolerance)
        for prediction, reference in pairs
    ]
    names = [prediction.name for prediction, _ in pairs]
    folders = sorted({path.parent for item in items for path in (item.prediction, item.reference)})
    done = map_cases(_evaluate_pair, items, names=names, what="evaluation", workers=workers, folders=folders)
    summary = summarise_cases(done)
    if protocol is not None:
        summary["protocol"] = dict(protocol)
    write_json(output, summary)
    return summary


def evaluate_arrays(
    prediction: np.ndarray,
    reference: np.ndarray,
    labels: Labels,
    *,
    spacing: tuple[float, float, float],
    tolerance: float = 2.0,
    voxel_volume: float | None = None,
) -> dict[str, dict[str, float]]:
    """Metrics of each class or region of one case.

    Args:
        prediction: (Z, Y, X) label values.
        reference: (Z, Y, X) label values; its voxels with the ignore label are left out.
        labels: what the values mean.
        spacing: mm.
        tolerance: mm, for NSD.
        voxel_volume: cubic mm; by default that of a box.

    Returns:
        Summary key -> metric -> value.
    """
    valid = None if labels.ignore is None else reference != labels.ignore
    return {
        summary_key(values): measure(
            compare_masks(
                _mask(prediction, values),
                _mask(reference, values),
                spacing=spacing,
                tolerance=tolerance,
                voxel_volume=voxel_volume,
                valid=valid,
            )
        )
        for values in labels.foreground.values()
    }


def summary_key(values: tuple[int, ...]) -> str:
    """nnU-Net's name of a class ("1") or region ("(1, 2)") in a summary."""
    return str(values[0]) if len(values) == 1 else str(values)


def summarise_cases(per_case: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """nnU-Net's summary of entries {"metrics": {label: {metric: value}}, ...}: means over cases and labels."""
    keys = list(per_case[0]["metrics"])
    mean = {
        key: {metric: _mean([entry["metrics"][key][metric] for entry in per_case]) for metric in METRICS}
        for key in keys
    }
    foreground = {metric: _mean([mean[key][metric] for key in keys]) for metric in METRICS}
    return {"foreground_mean": foreground, "mean": mean, "metric_per_case": list(per_case)}


def _find_names(prediction_folder: Path, reference_folder: Path, file_ending: str) -> list[str]:
    """File names to compare. Raises DatasetError."""
    predictions = _list_files(prediction_folder, file_ending, what="segmentations")
    references = _list_files(reference_folder, file_ending, what="references")
    if not references:
        raise DatasetError(
            f"{reference_folder}: no references that end in {file_ending}. Give the folder of the true labels."
        )
    if missing := sorted(references - predictions):
        raise DatasetError(
            f"{prediction_folder}: {len(missing)} of {len(references)} segmentations are missing: {first_few(missing)}. "
            "Predict them, or take their references out of the folder."
        )
    if extra := sorted(predictions - references):
        logger.warning("%s: no reference for %s; not evaluated", prediction_folder, first_few(extra))
    return sorted(references)


def _list_files(folder: Path, file_ending: str, *, what: str) -> set[str]:
    if not folder.is_dir():
        raise DatasetError(f"folder of {what} not found: {folder}")
    return {path.name for path in folder.iterdir() if path.name.endswith(file_ending) and not path.name.startswith(".")}


def _evaluate_pair(pair: _Pair) -> dict[str, Any]:
    prediction, own = read_labels(pair.prediction)
    reference, geometry = read_labels(pair.reference)
    if prediction.shape != reference.shape:
        raise DatasetError(
            f"{pair.prediction} has shape {prediction.shape}, but its reference {reference.shape} (Z, Y, X). "
            "Both must lie on the image's grid."
        )
    if difference := geometry.difference(own):
        logger.warning("%s: grid differs from the reference's: %s; the reference's counts", pair.prediction, difference)
    metrics = evaluate_arrays(
        prediction,
        reference,
        pair.labels,
        spacing=geometry.spacing,
        tolerance=pair.tolerance,
        voxel_volume=geometry.voxel_volume,
    )
    return {
        "metrics": metrics,
        "prediction_file": str(pair.prediction),
        "reference_file": str(pair.reference),
    }


def _mask(array: np.ndarray, values: tuple[int, ...]) -> np.ndarray:
    masks: list[np.ndarray] = [array == value for value in values]
    combine: Callable[[np.ndarray, np.ndarray], np.ndarray] = np.logical_or
    return functools.reduce(combine, masks)


def _mean(values: Sequence[float]) -> float:
    """Mean of what is a number; not-a-number where nothing is."""
    known = [float(value) for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan
