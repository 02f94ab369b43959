"""Conversions, with our own verification of the result."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from dataset_conversion.conversion import Conversion
from dataset_conversion.convert import ConversionRecord, convert
from masam_auto.core.dataset import Dataset, open_dataset
from masam_auto.core.paths import Paths
from masam_auto.core.splits import read_splits
from masam_auto.preprocessing.verify import verify_dataset


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
