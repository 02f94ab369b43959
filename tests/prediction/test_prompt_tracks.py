"""Prompts in the slices of an image."""

import pytest

from masam_auto.core.boxes import GivenPoints, Prompt, VoxelBox
from masam_auto.core.geometry import Geometry
from masam_auto.prediction.prompt_tracks import Propagation, left_out, place_prompts, slice_axis_of
from masam_auto.prediction.propagation import SliceBox, SlicePoints

GRID = Geometry(shape=(6, 20, 30), spacing=(1.0, 1.0, 3.0))
THICK = Prompt(shape=VoxelBox(box=((1, 4), (5, 9), (6, 10))), label=2)
THIN = Prompt(shape=VoxelBox(box=((1, 4), (5, 9), (6, 7))))
POINTS = Prompt(shape=GivenPoints(on=((2, 5, 8.2), (3, 6, 7.8)), beside=((0, 0, 8),)))


@pytest.mark.parametrize(
    ("geometry", "sizes", "axis"),
    [
        (Geometry(shape=(1, 9, 9), spacing=(1, 1, 1), dimensions=2), [], 0),
        (Geometry(shape=(9, 1, 9), spacing=(1, 1, 1)), [], 1),
        (Geometry(shape=(9, 9, 9), spacing=(1, 1, 3)), [], 2),
        (Geometry(shape=(9, 9, 9), spacing=(1, 1, 3)), [(5, 1, 5), (4, 1, 1)], 1),
        (Geometry(shape=(9, 9, 9), spacing=(1, 1, 3)), [(5, 1, 5), (4, 4, 1)], 2),
        (Geometry(shape=(9, 9, 9), spacing=(1, 1, 1)), [], 0),
        (Geometry(shape=(9, 9, 9), spacing=(1, 1, 1), direction=(0, 0, 1, 1, 0, 0, 0, 1, 0)), [], 1),
        (Geometry(shape=(9, 9, 9), spacing=(1, 1, 1), oriented=False), [], 0),
    ],
)
def test_the_axis_across_slices(geometry: Geometry, sizes: list[tuple[int, int, int]], axis: int) -> None:
    assert slice_axis_of(geometry, [tuple((0, size) for size in one) for one in sizes]) == axis  # type: ignore[misc]


def test_boxes_and_points_in_slices_of_another_axis() -> None:
    placed = place_prompts([THICK, THIN, POINTS], GRID, axis=None, propagate="single", identifier="x")
    assert placed.axis == 2 and placed.turn.order == (2, 0, 1)
    thick, thin, points = placed.tracks
    assert (thick.prompt, thick.slices, thick.value) == (SliceBox(rows=(1, 4), columns=(5, 9)), range(6, 10), 2)
    assert (thin.prompt, thin.slices, thin.value) == (thick.prompt, range(6, 7), 1)
    assert points.prompt == SlicePoints(on=((2.5, 5.5), (3.5, 6.5)), beside=((0.5, 0.5),)) and points.slices == range(
        8, 9
    )


@pytest.mark.parametrize(
    ("propagate", "beyond"), [("single", [False, True, True]), ("all", [True] * 3), ("none", [False] * 3)]
)
def test_which_objects_are_followed(propagate: Propagation, beyond: list[bool]) -> None:
    placed = place_prompts([THICK, THIN, POINTS], GRID, axis=2, propagate=propagate, identifier="x")
    assert [track.beyond for track in placed.tracks] == beyond


def test_what_was_not_used_or_not_found() -> None:
    (track,) = place_prompts([THICK], GRID, axis=2, propagate="none", identifier="x").tracks
    assert left_out(THICK, track, {6, 7, 8, 9}, GRID) == []
    assert left_out(THICK, track, {6, 7}, GRID) == ["nothing was found in 2 of its 4 slices"]
    assert left_out(THICK, track, set(), GRID) == ["nothing was found"]
    beyond = Prompt(shape=VoxelBox(box=((-1, 4), (5, 9), (6, 10))))
    assert left_out(beyond, track, {6, 7, 8, 9}, GRID) == ["it reaches beyond the image and was cut to it"]
