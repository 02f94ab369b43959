"""Files of probabilities: what comes back, without unpickling, and that they appear whole."""

import errno
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from masam_auto.core.errors import ImageError, OutputError
from masam_auto.core.geometry import Geometry
from masam_auto.core.jsonio import to_plain
from masam_auto.formats import scratch
from masam_auto.formats.probability_files import new_probabilities, open_probabilities, read_probabilities, values_bytes

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
    assert written.nbytes <= values_bytes(tmp_path / "new" / "case.npz") < written.nbytes + 200
    assert (found.crop, found.geometry) == (CROP, GEOMETRY)
    assert (found.outputs, found.has_regions) == (("background", "Milz ü"), False)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["case.npz"]


@pytest.mark.parametrize("available", [0, 1 << 30])
def test_large_ones_are_read_through_a_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, available: int
) -> None:
    written = write(tmp_path / "case.npz")
    monkeypatch.setattr(scratch, "free_memory", lambda: available)
    with open_probabilities(tmp_path / "case.npz") as found:
        assert isinstance(found.values, np.memmap) == (available == 0)
        assert np.array_equal(found.values, written)
        assert (found.crop, found.geometry) == (CROP, GEOMETRY)
        assert (found.outputs, found.has_regions) == (("background", "Milz ü"), False)


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


@pytest.mark.parametrize("told_by", ["disk_usage", "posix_fallocate"])
def test_a_full_disk_is_told_before_anything_is_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told_by: str
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if told_by == "disk_usage":
        monkeypatch.setattr(scratch.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10))
    else:
        monkeypatch.setattr(scratch.os, "posix_fallocate", full, raising=False)
    written = (tmp_path / "case.npz").write_text("mine")
    with (
        pytest.raises(OutputError, match=r"cannot write .*case\.npz: No space left on device\. Free some space"),
        new_probabilities(tmp_path / "case.npz", **FACTS),  # type: ignore[arg-type]
    ):
        raise AssertionError("no array must come")
    assert [path.stat().st_size for path in tmp_path.iterdir()] == [written]


def test_what_is_no_such_file_is_one_clear_line(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    (tmp_path / "damaged.npz").write_bytes(b"PK\x03\x04 and no more")
    facts = {"crop": np.asarray(CROP), "geometry": "{}", "outputs": np.asarray(["a"]), "has_regions": False}
    np.savez(tmp_path / "shape.npz", probabilities=np.zeros((2, 1, 1, 1), np.float16), **facts)
    np.savez(tmp_path / "crop.npz", probabilities=np.zeros((1, 1, 1, 1), np.float16), **{**facts, "crop": 3})
    with (tmp_path / "array.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    write(tmp_path / "method.npz")
    content = bytearray((tmp_path / "method.npz").read_bytes())
    content[content.index(b"PK\x01\x02") + 10] = 99  # of compression, in the first entry of the directory
    (tmp_path / "method.npz").write_bytes(content)
    for name in ("other.npz", "damaged.npz", "missing.npz", "shape.npz", "crop.npz", "array.npz", "method.npz"):
        with pytest.raises(ImageError, match=f"{name}: cannot be read as probabilities.* save_probabilities`"):
            read_probabilities(tmp_path / name)
        with (
            pytest.raises(ImageError, match=f"{name}: cannot be read as probabilities.* save_probabilities`"),
            open_probabilities(tmp_path / name),
        ):
            pass
    with pytest.raises(ImageError, match=r"other\.npz: cannot be read as probabilities"):
        values_bytes(tmp_path / "other.npz")
    np.savez(tmp_path / "double.npz", probabilities=np.zeros((1, 1, 1, 1)), **facts)
    with pytest.raises(ImageError, match="type float64"), open_probabilities(tmp_path / "double.npz"):
        pass


@pytest.mark.parametrize("crop", [((0, 9), (0, 1), (0, 1)), ((-1, 0), (0, 1), (0, 1)), ((1, 0), (0, 1), (0, 1))])
def test_a_part_beyond_its_image_is_refused(tmp_path: Path, crop: Any) -> None:
    geometry = json.dumps(to_plain(Geometry(shape=(2, 1, 1), spacing=(1.0, 1.0, 1.0))))
    sizes = tuple(max(high - low, 0) for low, high in crop)
    np.savez(
        tmp_path / "a.npz",
        probabilities=np.zeros((1, *sizes), np.float16),
        crop=np.asarray(crop),
        geometry=geometry,
        outputs=np.asarray(["a"]),
        has_regions=False,
    )
    with pytest.raises(ImageError, match=r"a\.npz: cannot be read as probabilities"):
        read_probabilities(tmp_path / "a.npz")
