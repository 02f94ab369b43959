"""What the tests of conversions share: volumes as downloads have them, and our own verification of the result."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import nibabel
import numpy as np
import pytest

from dataset_conversion.conversion import Conversion
from dataset_conversion.convert import ConversionRecord, convert
from masam_auto.core.dataset import Dataset, open_dataset
from masam_auto.core.paths import Paths
from masam_auto.core.splits import read_splits
from masam_auto.preprocessing.verify import verify_dataset

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


@pytest.fixture
def nifti() -> Callable[..., None]:
    return write_nifti


@pytest.fixture
def image() -> Callable[..., np.ndarray]:
    return make_image


@pytest.fixture
def labels() -> Callable[..., np.ndarray]:
    return make_labels


@pytest.fixture
def affine() -> np.ndarray:
    return AFFINE.copy()


@pytest.fixture
def verified() -> Callable[[Path], Dataset]:
    """Open a raw data set and run our own verification and the reading of its folds over it."""

    def check(folder: Path) -> Dataset:
        roots = Paths(raw=folder.parent, preprocessed=folder, results=folder, weights=folder)
        dataset = open_dataset(roots, folder.name)
        verify_dataset(dataset, workers=0)
        read_splits(folder / "splits.json", dataset.cases)
        return dataset

    return check


@pytest.fixture
def converted(verified: Callable[[Path], Dataset], tmp_path: Path) -> Callable[..., tuple[Path, ConversionRecord]]:
    """Convert into tmp_path/raw, see that the download was left alone, and verify; folder and record of the first."""

    def run(conversions: tuple[Conversion, ...], **options: bool) -> tuple[Path, ConversionRecord]:
        before = tree_digest(conversions[0].download)
        done = convert(conversions, tmp_path / "raw", workers=0, **options)
        assert tree_digest(conversions[0].download) == before
        for folder in done:
            verified(folder)
        return next(iter(done.items()))

    return run


def tree_digest(folder: Path) -> str:
    """Of all names and contents in a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(str(path).encode() + path.read_bytes() for path in files)).hexdigest()
