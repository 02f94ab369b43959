"""Boxes in voxels, millimetres and on the preprocessed grid."""

import math

import numpy as np
import pytest

from masam_auto.core.boxes import (
    GivenBox,
    GivenPoints,
    VoxelBox,
    WorldBox,
    box_prompt,
    box_slices,
    is_oblique,
    points_in_voxels,
    reaches_beyond,
    relaxed_box,
    voxels_of,
)
from masam_auto.core.errors import DatasetError
from masam_auto.core.geometry import Box, CaseProperties, Geometry

TURN = math.radians(25)
TURNED = (math.cos(TURN), -math.sin(TURN), 0.0, math.sin(TURN), math.cos(TURN), 0.0, 0.0, 0.0, 1.0)
FLIPPED = (-1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0)  # another order and direction of axes


def grid(direction: tuple[float, ...]) -> Geometry:
    return Geometry(shape=(12, 20, 30), spacing=(3.0, 1.5, 0.8), origin=(10.0, -40.0, 7.0), direction=direction)


def world_box_of(box: Box, geometry: Geometry) -> WorldBox:
    """The box in millimetres, its sides along the image's own axes."""
    ranges = np.array(box[::-1], dtype=float)  # x, y, z
    centre = geometry.affine @ [*(ranges.mean(1) - 0.5), 1]
    sides = (ranges[:, 1] - ranges[:, 0]) * geometry.spacing[::-1]
    return WorldBox(centre=tuple(centre[:3]), sides=tuple(sides), axes=geometry.direction)


@pytest.mark.parametrize("direction", [TURNED, FLIPPED, (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0)])
def test_millimetres_along_the_images_axes_give_the_voxels_back(direction: tuple[float, ...]) -> None:
    geometry = grid(direction)
    for box in [((2, 5), (3, 4), (0, 30)), ((0, 12), (19, 20), (7, 11))]:
        given = world_box_of(box, geometry)
        assert voxels_of(given, geometry, where="a") == box
        assert not is_oblique(given, geometry)


def test_an_oblique_box_becomes_the_voxels_that_enclose_it() -> None:
    geometry, straight = grid(TURNED), WorldBox(centre=(12.0, -20.0, 25.0), sides=(9.0, 8.0, 6.0))
    assert is_oblique(straight, geometry)
    box = voxels_of(straight, geometry, where="a")
    generator = np.random.default_rng(0)
    points = np.asarray(straight.centre) + generator.uniform(-0.5, 0.5, (500, 3)) * straight.sides
    found = np.linalg.solve(geometry.affine, np.c_[points, np.ones(500)].T)[:3].T[:, ::-1] + 0.5
    for axis, (low, high) in enumerate(box):
        assert low <= found[:, axis].min() and found[:, axis].max() <= high
    grown = math.prod(high - low for low, high in box) * geometry.voxel_volume / math.prod(straight.sides)
    assert 1.0 < grown < 4


def test_boxes_are_cut_to_the_image_and_one_beside_it_is_an_error() -> None:
    geometry = grid(TURNED)
    assert voxels_of(VoxelBox(box=((-3, 4), (5, 99), (1, 2))), geometry, where="a") == ((0, 4), (5, 20), (1, 2))
    beside: list[GivenBox] = [
        VoxelBox(box=((12, 14), (0, 5), (0, 5))),
        WorldBox(centre=(500.0, 0.0, 0.0), sides=(5.0, 5.0, 5.0)),
    ]
    for given in beside:
        with pytest.raises(DatasetError, match=r"^case x: the box .* is outside the image of \(12, 20, 30\) voxels"):
            voxels_of(given, geometry, where="case x")


def test_points_become_voxels_and_one_outside_is_an_error() -> None:
    geometry = Geometry(shape=(4, 5, 6), spacing=(3.0, 2.0, 1.0), origin=(10.0, 20.0, 30.0))
    given = GivenPoints(on=((12.0, 22.0, 36.0),), in_voxels=False)
    on, beside = points_in_voxels(given, geometry, where="x")
    np.testing.assert_allclose(on, [(2, 1, 2)])
    assert beside.shape == (0, 3)
    np.testing.assert_array_equal(
        points_in_voxels(GivenPoints(on=((3, 4, 5.4),)), geometry, where="x")[0], [(3, 4, 5.4)]
    )
    for outside in (GivenPoints(on=((3, 4, 5.6),)), GivenPoints(on=((0, 0, 0),), beside=((-1, 0, 0),))):
        with pytest.raises(DatasetError, match=r"x: the point .* is outside the image of \(4, 5, 6\) voxels"):
            points_in_voxels(outside, geometry, where="x")


def test_a_box_may_reach_beyond_the_image() -> None:
    geometry = Geometry(shape=(4, 5, 6), spacing=(3.0, 2.0, 1.0))
    assert not reaches_beyond(VoxelBox(box=((0, 4), (0, 5), (0, 6))), geometry)
    assert reaches_beyond(VoxelBox(box=((0, 4), (-1, 5), (0, 6))), geometry)
    assert not reaches_beyond(WorldBox(centre=(2.5, 4.0, 4.5), sides=(6.0, 10.0, 12.0)), geometry)
    assert reaches_beyond(WorldBox(centre=(2.5, 4.0, 4.5), sides=(6.0, 10.0, 13.0)), geometry)


def test_a_box_thinner_than_a_voxel_is_one_voxel() -> None:
    geometry = Geometry(shape=(4, 4, 4), spacing=(1.0, 1.0, 1.0))
    for centre in (1.0, 1.4995, 1.5):
        ((low, high), *_) = voxels_of(WorldBox(centre=(2, 2, centre), sides=(1, 1, 1e-4)), geometry, where="a")
        assert high - low == 1


def test_relaxed_boxes_grow_by_a_share_and_at_least_a_voxel_within_the_image() -> None:
    assert relaxed_box(((4, 6), (10, 20), (0, 10)), 0.2, (12, 20, 30)) == ((3, 7), (8, 20), (0, 12))
    assert relaxed_box(((0, 1), (5, 6), (5, 6)), 0.01, (1, 20, 20)) == ((0, 1), (4, 7), (4, 7))


def properties(resampled: tuple[int, int, int], axis_order: tuple[int, int, int]) -> CaseProperties:
    return CaseProperties(
        identifier="a",
        geometry=Geometry(shape=(12, 20, 30), spacing=(3.0, 1.0, 1.0)),
        crop=((2, 10), (4, 20), (0, 30)),
        axis_order=axis_order,
        spacing=(1.0, 1.0, 1.0),
        resampled_shape=resampled,
    )


def test_the_preprocessed_box_follows_crop_order_and_resampling() -> None:
    box = ((0, 4), (10, 12), (15, 30))
    same = box_prompt(box, properties((8, 16, 30), (0, 1, 2)))
    assert same is not None and (same.slices, same.rows, same.columns) == (range(2), (6, 8), (15, 30))
    order = properties((30, 32, 24), (2, 1, 0))  # rows twice, columns three times as fine
    turned = box_prompt(box, order)
    assert turned is not None
    assert (turned.slices, turned.rows, turned.columns) == (range(15, 30), (12, 16), (0, 6))
    assert box_slices(box, order) == range(15, 30)


def test_resampled_slices_get_a_slice_more_at_either_end() -> None:
    prompt = box_prompt(((4, 6), (10, 12), (15, 30)), properties((16, 16, 30), (0, 1, 2)))
    assert prompt is not None and prompt.slices == range(3, 9)
    whole = box_prompt(((0, 12), (10, 12), (15, 30)), properties((16, 16, 30), (0, 1, 2)))
    assert whole is not None and whole.slices == range(16)


def test_a_box_outside_the_crop_has_no_place() -> None:
    box = ((0, 2), (10, 12), (15, 30))
    assert box_prompt(box, properties((8, 16, 30), (0, 1, 2))) is None
    assert len(box_slices(box, properties((8, 16, 30), (0, 1, 2)))) == 0
