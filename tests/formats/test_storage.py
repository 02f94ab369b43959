"""Arrays and locations come back as they were, or fail in words."""

import multiprocessing
import pickle
from pathlib import Path

import blosc2
import numpy as np
import pytest

from masam_auto.core.errors import DatasetError, ImageError, OutputError
from masam_auto.core.labels import Labels
from masam_auto.formats.storage import (
    ClassLocations,
    StoredArray,
    array_files,
    check_name_length,
    find_locations,
    open_array,
    read_locations,
    stored_cases,
    write_array,
    write_locations,
)


def noise(shape: tuple[int, ...], dtype: type = np.float32) -> np.ndarray:
    return (np.random.default_rng(0).normal(size=shape) * 50).astype(dtype)


def sum_of_slice(stored: StoredArray) -> float:
    return float(stored[:, 1:3].sum())


@pytest.mark.parametrize(("shape", "dtype"), [((2, 5, 7, 6), np.float32), ((5, 7, 6), np.int8), ((1, 1, 3), np.int16)])
def test_array_comes_back(shape: tuple[int, ...], dtype: type, tmp_path: Path) -> None:
    array = noise(shape, dtype)
    write_array(tmp_path / "a.b2nd", array)
    stored = open_array(tmp_path / "a.b2nd")
    assert (stored.shape, stored.dtype, stored.ndim, len(stored)) == (shape, array.dtype, array.ndim, shape[0])
    np.testing.assert_array_equal(stored[:], array)
    np.testing.assert_array_equal(stored[..., 0:1, 1:3, 2], array[..., 0:1, 1:3, 2])
    assert [file.name for file in tmp_path.iterdir()] == ["a.b2nd"]


def test_a_view_in_another_axis_order_comes_back(tmp_path: Path) -> None:
    array = noise((2, 5, 7, 6)).transpose(0, 3, 1, 2)
    write_array(tmp_path / "a.b2nd", array)
    np.testing.assert_array_equal(open_array(tmp_path / "a.b2nd")[:, 2:4], array[:, 2:4])


def test_chunks_are_slices(tmp_path: Path) -> None:
    write_array(tmp_path / "a.b2nd", noise((2, 5, 7, 6)))
    assert blosc2.open(str(tmp_path / "a.b2nd"), mode="r").chunks == (1, 1, 7, 6)


def test_only_the_slices_asked_for_are_read(tmp_path: Path) -> None:
    write_array(tmp_path / "a.b2nd", noise((20, 30, 30)))
    content = bytearray((tmp_path / "a.b2nd").read_bytes())
    third, last = len(content) // 3, len(content) * 2 // 3
    content[third:last] = bytes(last - third)  # slices in the middle are lost
    (tmp_path / "a.b2nd").write_bytes(content)
    stored = open_array(tmp_path / "a.b2nd")
    np.testing.assert_array_equal(stored[:3], noise((20, 30, 30))[:3])
    with pytest.raises(ImageError, match=r"a.b2nd is damaged. Delete it"):
        stored[:]


def test_several_processes_read_one_file(tmp_path: Path) -> None:
    array = noise((2, 5, 7, 6))
    write_array(tmp_path / "a.b2nd", array)
    stored = open_array(tmp_path / "a.b2nd")
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        sums = pool.map(sum_of_slice, [stored] * 3)
    assert sums == [float(array[:, 1:3].sum())] * 3


@pytest.mark.parametrize("content", [b"", b"not blosc2 at all", b"\0" * 200])
def test_damaged_and_missing_arrays_are_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.b2nd").write_bytes(content)
    with pytest.raises(ImageError, match=r"a.b2nd is damaged"):
        open_array(tmp_path / "a.b2nd")
    with pytest.raises(ImageError, match=r"none.b2nd is missing"):
        open_array(tmp_path / "none.b2nd")


def test_truncated_array_is_damaged(tmp_path: Path) -> None:
    write_array(tmp_path / "a.b2nd", noise((4, 9, 9)))
    whole = (tmp_path / "a.b2nd").read_bytes()
    (tmp_path / "a.b2nd").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageError, match="is damaged"):
        open_array(tmp_path / "a.b2nd")[:]


def test_other_blosc2_objects_are_refused(tmp_path: Path) -> None:
    blosc2.SChunk(data=b"bytes", urlpath=str(tmp_path / "a.b2nd"), mode="w")
    with pytest.raises(ImageError, match="is damaged"):
        open_array(tmp_path / "a.b2nd")


def test_unwritable_folder_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        write_array(tmp_path / "file" / "a.b2nd", noise((2, 3, 3)))
    with pytest.raises(OutputError, match="cannot write"):
        write_locations(tmp_path / "file" / "a.npz", {})


@pytest.fixture
def volume() -> np.ndarray:
    volume = np.zeros((6, 12, 10), np.int8)
    volume[1:3, 2:8, 3:9], volume[4, 5, 5] = 1, 2
    return volume


def test_locations_lie_in_their_class(volume: np.ndarray) -> None:
    labels = Labels(values={"background": (0,), "a": (1,), "b": (2,), "c": (3,)})
    found = find_locations(volume, labels, maximum=20)
    assert found["a"].voxels.shape == (20, 3)
    assert len(np.unique(found["a"].voxels, axis=0)) == 20
    assert (volume[tuple(found["a"].voxels.T)] == 1).all()
    assert found["a"].slices.tolist() == [1, 2]
    assert found["b"].voxels.tolist() == [[4, 5, 5]]
    assert found["c"].voxels.shape == (0, 3)
    assert found["c"].slices.shape == (0,)


def test_locations_of_regions_join_their_values(volume: np.ndarray) -> None:
    labels = Labels(
        values={"background": (0,), "both": (1, 2), "b": (2,)}, has_regions=True, regions_class_order=(1, 2)
    )
    found = find_locations(volume, labels)
    assert found["both"].slices.tolist() == [1, 2, 4]
    assert len(found["both"].voxels) == np.count_nonzero(volume)


def test_locations_depend_on_the_seed_alone(volume: np.ndarray) -> None:
    labels = Labels(values={"background": (0,), "a": (1,), "b": (2,)})
    first, again, other = (find_locations(volume, labels, seed=s, maximum=20)["a"].voxels for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_locations_come_back(tmp_path: Path, volume: np.ndarray) -> None:
    labels = Labels(values={"background": (0,), "left/../lung ü": (1,), "b": (2,)})
    found = find_locations(volume, labels)
    write_locations(tmp_path / "a.npz", found)
    back = read_locations(tmp_path / "a.npz")
    assert list(back) == list(found)
    for name, entry in found.items():
        np.testing.assert_array_equal(back[name].voxels, entry.voxels)
        np.testing.assert_array_equal(back[name].slices, entry.slices)
        assert back[name].voxels.dtype == np.int32


def test_damaged_missing_and_pickled_locations_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with pytest.raises(ImageError, match="is missing"):
        read_locations(path)
    write_locations(path, {"a": ClassLocations(voxels=np.zeros((1, 3), np.int32), slices=np.zeros(1, np.int32))})
    whole = path.read_bytes()
    for content in (b"", b"junk", whole[: len(whole) // 2], pickle.dumps({"names": ["a"]})):
        path.write_bytes(content)
        with pytest.raises(ImageError, match="is damaged"):
            read_locations(path)
    np.savez(path, names=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ImageError, match="is damaged"):
        read_locations(path)


@pytest.mark.parametrize("folded", [False, True])
def test_no_two_cases_share_a_file_whatever_they_are_called(tmp_path: Path, folded: bool) -> None:
    names = ["a", "a_seg", "a_seg@", "a_seg_seg", "a_locations", "preprocessing", "preprocessing@", "b", "ü_seg"]
    files = [file.name for name in names for file in array_files(tmp_path, name)] + ["preprocessing.json"]
    spelt = [name.casefold() for name in files] if folded else files
    assert len(set(spelt)) == len(files)
    assert [file.name for file in array_files(tmp_path, "case_001")][:2] == ["case_001.b2nd", "case_001_seg.b2nd"]
    for name in names:
        array_files(tmp_path, name).locations.touch()
    assert stored_cases(tmp_path) == tuple(sorted(names))


@pytest.mark.parametrize(("letter", "most"), [("a", 241), ("ü", 120)])
def test_names_whose_files_the_disk_does_not_take_are_refused(tmp_path: Path, letter: str, most: int) -> None:
    check_name_length(letter * most)
    for file in array_files(tmp_path, letter * most):
        file.touch()
    with pytest.raises(DatasetError, match=r"too long.* the limit is 255. Rename its files to at most 241 bytes"):
        check_name_length(letter * (most + 1))
