"""imaging.placement: labels onto the grid of what they are compared with."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from masam_auto.core.errors import DatasetError
from masam_auto.core.geometry import Geometry
from masam_auto.imaging.placement import labels_on_grid, turned_onto, turned_to_place

GRID = Geometry(shape=(4, 6, 5), spacing=(3.0, 1.0, 0.8), origin=(1.0, 2.0, 3.0))
LABELS = np.arange(120, dtype=np.int16).reshape(GRID.shape)
FILES: dict[str, Any] = {"path": Path("a.nii.gz"), "reference": Path("b.nii.gz")}


@pytest.mark.parametrize("code", ["LPS", "RAS", "PIR", "SAL"])
def test_the_same_place_along_other_axes(code: str) -> None:
    turn = GRID.turn_to(code)
    stored, grid = turn.array(LABELS), GRID.turned(turn)
    np.testing.assert_array_equal(labels_on_grid(stored, grid, GRID, **FILES), LABELS)
    for function in (turned_onto, turned_to_place):
        found, where = function(stored, grid, GRID)
        np.testing.assert_array_equal(found, LABELS)
        assert found.flags.c_contiguous and GRID.difference(where) is None


def test_elsewhere_nothing_is_turned_to_place() -> None:
    """A header that is wrong must not flip a channel or labels."""
    grid = dataclasses.replace(GRID.turned(GRID.turn_to("RAS")), origin=GRID.origin)
    found, where = turned_to_place(LABELS, grid, GRID)
    assert found is LABELS and where is grid
    assert not np.array_equal(turned_onto(LABELS, grid, GRID)[0], LABELS)


def test_another_place_is_told(caplog: pytest.LogCaptureFixture) -> None:
    moved = dataclasses.replace(GRID, origin=(1.0, 2.0, 4.6))
    with pytest.raises(
        DatasetError, match=r"a.nii.gz is on another grid than b.nii.gz: origin .* up to 0.533 voxels apart"
    ):
        labels_on_grid(LABELS, moved, GRID, **FILES)
    silent = dataclasses.replace(moved, oriented=False)
    with caplog.at_level(logging.WARNING, "masam_auto"):
        for own, grid, checked in ((moved, GRID, True), (silent, GRID, False), (GRID, silent, False)):
            caplog.clear()
            np.testing.assert_array_equal(labels_on_grid(LABELS, own, grid, checked=checked, **FILES), LABELS)
            assert "grid differs from the reference's: origin" in caplog.text
    with pytest.raises(DatasetError, match=r"a.nii.gz has shape \(4, 6, 4\), but its reference \(4, 6, 5\)"):
        labels_on_grid(LABELS[..., :4], dataclasses.replace(GRID, shape=(4, 6, 4)), GRID, **FILES)


def test_how_far_voxels_are_apart() -> None:
    assert GRID.shift(GRID) == 0
    assert GRID.shift(dataclasses.replace(GRID, origin=(1.8, 2.0, 3.0))) == pytest.approx(1)
    assert GRID.shift(dataclasses.replace(GRID, spacing=(3.0, 1.0, 1.0))) == pytest.approx(4 * 0.25)
    wider = dataclasses.replace(GRID, spacing=(3.0, 1.0, 1.0), origin=(9.0, 9.0, 9.0))
    assert GRID.shift(wider, about_middle=True) == pytest.approx(2 * 0.25)
