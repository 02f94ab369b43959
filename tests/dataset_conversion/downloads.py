"""Volumes as downloads have them."""

from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np

SHAPE = (6, 5, 4)
AFFINE = np.array([[-0.8, 0.0, 0.0, 12.5], [0.0, 0.8, 0.0, -40.25], [0.0, 0.0, 3.0, 7.0], [0.0, 0.0, 0.0, 1.0]])


def write_nifti(path: Path, array: np.ndarray, *, affine: np.ndarray = AFFINE) -> None:
    """Write an array (X, Y, Z) or (X, Y, Z, channel), with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)


def make_image(seed: int, *, channels: int = 0) -> np.ndarray:
    """int16 intensities (X, Y, Z), or (X, Y, Z, channels)."""
    shape = (*SHAPE, channels) if channels else SHAPE
    return np.random.default_rng(seed).integers(-100, 300, shape).astype(np.int16)


def make_labels(values: Sequence[int], *, kind: type = np.uint8) -> np.ndarray:
    """Labels (X, Y, Z) that hold every one of the values, and background."""
    labels = np.zeros(SHAPE, kind)
    labels.reshape(-1)[: len(values)] = values
    return labels
