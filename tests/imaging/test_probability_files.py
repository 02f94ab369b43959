"""Files of probabilities: what comes back, without unpickling, and that they appear whole."""

from pathlib import Path

import numpy as np
import pytest

from masam_auto.core.errors import ImageError
from masam_auto.core.geometry import Geometry
from masam_auto.imaging.probability_files import new_probabilities, read_probabilities

GEOMETRY = Geometry(
    shape=(6, 9, 8), spacing=(3.0, 1.0, 0.8), origin=(1.0, -2.0, 3.5), direction=(1.0, 0, 0, 0, 1, 0, 0, 0, 1)
)
CROP = ((1, 5), (0, 9), (2, 7))
FACTS = {"crop": CROP, "geometry": GEOMETRY, "outputs": ("background", "Milz ü"), "has_regions": False}


def write(path: Path) -> np.ndarray:
    with new_probabilities(path, **FACTS) as values:  # type: ignore[arg-type]
        assert values.shape == (2, 4, 9, 5)
        values[:] = np.random.default_rng(0).random(values.shape)
        return np.array(values)


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    written = write(tmp_path / "new" / "case.npz")
    found = read_probabilities(tmp_path / "new" / "case.npz")
    assert found.values.dtype == np.float16
    assert np.array_equal(found.values, written)
    assert (found.crop, found.geometry) == (CROP, GEOMETRY)
    assert (found.outputs, found.has_regions) == (("background", "Milz ü"), False)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["case.npz"]


def test_plain_numpy_reads_it_without_unpickling(tmp_path: Path) -> None:
    written = write(tmp_path / "case.npz")
    with np.load(tmp_path / "case.npz", allow_pickle=False) as found:
        assert set(found.files) == {"probabilities", "crop", "geometry", "outputs", "has_regions"}
        assert np.array_equal(found["probabilities"], written)


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    written = write(tmp_path / "case.npz")
    with pytest.raises(ZeroDivisionError), new_probabilities(tmp_path / "case.npz", **FACTS):  # type: ignore[arg-type]
        raise ZeroDivisionError
    assert np.array_equal(read_probabilities(tmp_path / "case.npz").values, written)
    assert [path.name for path in tmp_path.iterdir()] == ["case.npz"]


def test_what_is_no_such_file_is_one_clear_line(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    (tmp_path / "damaged.npz").write_bytes(b"PK\x03\x04 and no more")
    for name in ("other.npz", "damaged.npz", "missing.npz"):
        with pytest.raises(ImageError, match=f"{name}: cannot be read as probabilities.*--save_probabilities"):
            read_probabilities(tmp_path / name)
