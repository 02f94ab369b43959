"""Counts of label pairs in a segmentation and its reference: all that Dice needs of a case, in one small table."""

from collections.abc import Sequence

import numpy as np

from masam_auto.core.labels import Labels


def count_confusion(prediction: np.ndarray, reference: np.ndarray, labels: Labels) -> np.ndarray:
    """Count voxels by their pair of label values.

    Args:
        prediction: (Z, Y, X) label values.
        reference: (Z, Y, X) label values.
        labels: what the values mean; undeclared ones count as background.

    Returns:
        (V, V) int64, rows of the prediction's values, V = one more than the highest declared value or ignore.
    """
    size = table_size(labels)
    rows, columns = known_values(prediction, size), known_values(reference, size)
    pairs = rows.astype(np.int64, copy=False) * size + columns
    return np.bincount(pairs.ravel(), minlength=size * size).reshape(size, size)


def table_size(labels: Labels) -> int:
    """One more than the highest value allowed in a label file."""
    return 1 + max(*labels.declared, labels.ignore or 0)


def known_values(array: np.ndarray, size: int) -> np.ndarray:
    """Label values, with those outside the range from 0 to `size` set to background."""
    return np.where((array >= 0) & (array < size), array, 0)


def class_dice(confusions: Sequence[np.ndarray], labels: Labels) -> np.ndarray:
    """Mean Dice of every class or region over cases, as in `evaluation.evaluate`.

    Args:
        confusions: from `count_confusion`, one per case.
        labels: classes or regions; voxels whose reference is ignore are left out.

    Returns:
        (C,) in the order of `labels.foreground`. Cases without the class in both are left out; not-a-number if no case
        is left.
    """
    tables = np.stack(list(confusions)).astype(np.int64)
    if labels.ignore is not None:
        tables[:, :, labels.ignore] = 0
    predicted, real = tables.sum(axis=2), tables.sum(axis=1)
    columns = []
    for values in map(list, labels.foreground.values()):
        both = tables[:, values][:, :, values].sum(axis=(1, 2))
        either = predicted[:, values].sum(axis=1) + real[:, values].sum(axis=1)
        known = either > 0
        columns.append(np.mean(2 * both[known] / either[known]) if known.any() else np.nan)
    return np.array(columns)


def mean_dice(dice: np.ndarray) -> float:
    """Mean over the classes that are numbers; not-a-number if none is."""
    known = dice[~np.isnan(dice)]
    return float(known.mean()) if len(known) else float("nan")
