"""core.geometry: grids, how they differ, and permutations of axes."""

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from masam_auto.core.errors import ImageError
from masam_auto.core.geometry import CaseProperties, Geometry, permute
from masam_auto.core.jsonio import read_json, write_json
from tests import raw_data

GRID = Geometry(shape=(4, 6, 5), spacing=(3.0, 1.0, 0.8), origin=(1.0, 2.0, 3.0))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shape": (0, 6, 5)}, "empty axis"),
        ({"spacing": (0.0, 1.0, 1.0)}, "spacing must be positive"),
        ({"spacing": (-1.0, 1.0, 1.0)}, "spacing must be positive"),
        ({"spacing": (math.nan, 1.0, 1.0)}, "spacing must be positive"),
        ({"spacing": (1e6, 1.0, 1.0)}, "to 100000 mm"),
        ({"spacing": (1.0, 1.0, 1e-30)}, "spacing must be positive"),
        ({"direction": (1.0,) * 4}, "nine finite numbers"),
        ({"direction": (math.inf,) * 9}, "nine finite numbers"),
        ({"origin": (math.nan, 0.0, 0.0)}, "origin must be finite"),
        ({"dimensions": 4}, "2 or 3 dimensions"),
    ],
)
def test_impossible_grids_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ImageError, match=words):
        dataclasses.replace(GRID, **changes)


def test_the_affine_takes_voxels_to_the_world() -> None:
    grid = dataclasses.replace(GRID, direction=raw_data.oblique_direction())
    columns = grid.affine[:3, :3]
    np.testing.assert_allclose(np.linalg.norm(columns, axis=0), grid.spacing[::-1])
    np.testing.assert_allclose(grid.affine[:3, 3], grid.origin)
    assert grid.voxel_volume == pytest.approx(2.4) == pytest.approx(abs(np.linalg.det(columns)))


def test_shear_makes_voxels_smaller() -> None:
    half = math.sqrt(0.5)
    grid = dataclasses.replace(GRID, direction=(1.0, half, 0.0, 0.0, half, 0.0, 0.0, 0.0, 1.0))
    assert grid.voxel_volume == pytest.approx(2.4 * half)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shape": (4, 6, 6)}, "shape (4, 6, 5) against (4, 6, 6) (Z, Y, X)"),
        ({"spacing": (3.0, 1.0, 0.9)}, "spacing (3.0, 1.0, 0.8) against (3.0, 1.0, 0.9) mm (Z, Y, X)"),
        ({"direction": (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)}, "direction"),
        ({"origin": (1.0, 2.0, 3.5)}, "origin (1.0, 2.0, 3.0) against (1.0, 2.0, 3.5) mm"),
        ({"spacing": (3.0001, 1.0, 0.8), "origin": (1.0, 2.0, 3.001)}, None),
    ],
)
def test_differences_in_words(changes: dict[str, Any], words: str | None) -> None:
    found = GRID.difference(dataclasses.replace(GRID, **changes))
    assert found is None if words is None else found is not None and found.startswith(words)
    assert GRID.difference(GRID) is None


def properties(**changes: Any) -> CaseProperties:
    values: dict[str, Any] = {
        "identifier": "a",
        "geometry": GRID,
        "crop": ((1, 4), (0, 6), (2, 5)),
        "axis_order": (2, 0, 1),
        "spacing": (1.0, 1.0, 1.0),
        "resampled_shape": (3, 9, 6),
        "files": ("a_0000.nii.gz",),
    }
    return CaseProperties(**(values | changes))


def test_case_properties() -> None:
    case = properties()
    assert case.cropped_shape == (3, 6, 3) and case.permuted_shape == (3, 3, 6)
    for crop in (((0, 5), (0, 6), (0, 5)), ((2, 2), (0, 6), (0, 5)), ((-1, 4), (0, 6), (0, 5))):
        with pytest.raises(ImageError, match="is not inside shape"):
            properties(crop=crop)
    with pytest.raises(ImageError, match="must be a permutation"):
        properties(axis_order=(0, 1, 1))


def test_case_properties_survive_json(tmp_path: Path) -> None:
    grid = dataclasses.replace(GRID, direction=raw_data.oblique_direction())
    case = properties(geometry=grid)
    write_json(tmp_path / "a.json", case)
    assert read_json(tmp_path / "a.json", CaseProperties, what="case") == case


@pytest.mark.parametrize("order", list(itertools.permutations((0, 1, 2))))
def test_permutations_agree_with_numpy(order: tuple[int, int, int]) -> None:
    shape = (4, 6, 5)
    assert permute(shape, order) == np.transpose(np.empty(shape), order).shape
