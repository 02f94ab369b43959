"""core.turning: axis codes, and turns against nibabel and against where each voxel lies."""

import dataclasses
import itertools

import nibabel
import numpy as np
import pytest

from masam_auto.core.errors import ImageError, PlanError
from masam_auto.core.geometry import CaseProperties, Geometry
from masam_auto.core.turning import STAY, Turn, is_axes_code, nearest_axes, turn_between
from tests import fingerprints

ORDERS = list(itertools.permutations(("LR", "PA", "SI")))
CODES = ["".join(letters) for order in ORDERS for letters in itertools.product(*order)]
HALF = float(np.sqrt(0.5))
MILD = np.linalg.qr(np.array([[0.9, -0.3, 0.1], [0.35, 0.88, -0.2], [-0.05, 0.25, 0.95]]))[0]
DIRECTIONS = {
    "straight": np.eye(3),
    "oblique": MILD * np.sign(np.diag(MILD)),
    "45 degrees": np.array([[HALF, -HALF, 0], [HALF, HALF, 0], [0, 0, 1]]),
    "equally far from three": np.array([[2, -1, 2], [2, 2, -1], [-1, 2, 2]]) / 3,
    "sheared": np.array([[1, 0, 0], [0, np.cos(0.4), np.sin(0.4)], [0, 0, 1]]).T,
}


def grid(direction: np.ndarray) -> Geometry:
    return Geometry(
        shape=(4, 6, 5), spacing=(3.0, 1.0, 0.8), origin=(1.0, 2.0, 3.0), direction=tuple(direction.ravel().tolist())
    )


def place_of(geometry: Geometry, index: np.ndarray) -> np.ndarray:
    return (geometry.affine @ [*index[::-1], 1])[:3]


@pytest.mark.parametrize("name", DIRECTIONS)
def test_every_way_to_store_an_image_is_turned_to_every_other(name: str) -> None:
    """Also where two codes are equally near: whatever the order of the axes, the same ones are chosen."""
    assert len(set(CODES)) == 48
    stored = grid(DIRECTIONS[name])
    array = np.arange(2 * 120).reshape(2, 4, 6, 5)
    ranges = ((1, 3), (2, 6), (0, 2))
    for code in CODES:
        turn = stored.turn_to(code)
        turned, found = turn.array(array), stored.turned(turn)
        assert found.axes == code and found.shape == turned.shape[1:]
        assert np.shares_memory(turned, array)
        for index in np.ndindex(found.shape):
            was = np.argwhere(array[0] == turned[(0, *index)])[0]
            np.testing.assert_allclose(place_of(found, np.array(index)), place_of(stored, was), atol=1e-9)
        np.testing.assert_array_equal(turn.back.array(turned), array)
        assert stored.difference(found.turned(turn.back)) is None
        part = tuple(slice(*side) for side in turn.ranges(ranges, stored.shape))
        np.testing.assert_array_equal(turned[(slice(None), *part)], turn.array(array[:, 1:3, 2:6, 0:2]))
        for order in itertools.permutations(range(3)):
            np.testing.assert_array_equal(
                turn.then(order).array(array), turned.transpose(0, *(axis + 1 for axis in order))
            )


def test_codes_are_nibabels() -> None:
    for name in ("straight", "oblique", "sheared"):
        for code in CODES:
            stored = grid(DIRECTIONS[name])
            found = stored.turned(stored.turn_to(code))
            assert "".join(nibabel.aff2axcodes(np.diag([-1, -1, 1, 1]) @ found.affine)) == code


def test_rounding_in_files_changes_no_code() -> None:
    generator = np.random.default_rng(0)
    for direction in DIRECTIONS.values():
        for _ in range(50):
            noise = generator.normal(0, 1e-6, (3, 3))
            assert nearest_axes(tuple((direction + noise).ravel())) == nearest_axes(tuple(direction.ravel()))


def test_unknown_axes_are_left_alone() -> None:
    plain = grid(np.eye(3))
    assert plain.axes == "LPS" and plain.turn_to("LPS") == STAY == turn_between("PIR", "PIR")
    assert plain.turn_to(None) == plain.turn_to("unknown") == STAY
    silent = dataclasses.replace(plain, oriented=False)
    assert silent.axes is None and silent.turn_to("RAS") == STAY


def test_what_is_no_turn_is_refused() -> None:
    with pytest.raises(ImageError, match="must be a permutation"):
        Turn(order=(0, 1, 1))
    with pytest.raises(ImageError, match="reversed_axes must be among 0, 1, 2, got"):
        Turn(reversed_axes=(3,))
    assert all(map(is_axes_code, CODES))
    assert not any(map(is_axes_code, ("", "LPP", "LRS", "XYZ", "LPSR", "unknown")))


def test_properties_of_an_older_release_have_no_flips() -> None:
    properties = CaseProperties(
        identifier="a",
        geometry=grid(np.eye(3)),
        crop=((0, 4), (0, 6), (0, 5)),
        axis_order=(1, 2, 0),
        spacing=(1.0, 1.0, 1.0),
        resampled_shape=(6, 5, 4),
    )
    assert properties.turn == Turn(order=(1, 2, 0))


def test_a_plan_names_axes_or_none() -> None:
    from masam_auto.planning.make_plan import make_plan

    fingerprint = dataclasses.replace(fingerprints.make_fingerprint(), axes="LRS")  # type: ignore[attr-defined]
    with pytest.raises(PlanError, match="axes must name three axes by where they point, like LPS or RAS"):
        make_plan(fingerprint, gpu_memory_gb=0)


def about(axis: str, angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    turns = {"x": [[1, 0, 0], [0, c, -s], [0, s, c]], "y": [[c, 0, s], [0, 1, 0], [-s, 0, c]]}
    return np.array(turns[axis])


@pytest.mark.parametrize("kind", ["thick", "single"])
@pytest.mark.parametrize(("degrees", "stays"), [(40, True), (50, True), (70, False), (90, False)])
def test_slices_stay_slices_within_60_degrees(kind: str, degrees: float, stays: bool) -> None:
    """However they are stored: the turn leads to one array and one grid."""
    direction = about("x", np.radians(degrees)) @ about("y", 0.1)
    stored = dataclasses.replace(
        grid(direction),
        spacing=(6.0, 1.0, 0.8) if kind == "thick" else (1.0, 1.0, 1.0),
        shape=(4, 6, 5) if kind == "thick" else (1, 6, 5),
    )
    array = np.arange(np.prod(stored.shape)).reshape(stored.shape)
    assert stored.slice_axis == 0
    assert (stored.axes == "LPS") == (degrees == 40)

    def seen(way: Turn) -> tuple[np.ndarray, Geometry]:
        other = stored.turned(way)
        own = other.axes_with_slices("S")
        assert own is not None
        turn = turn_between(own, "LPS")
        return turn.array(way.array(array)), other.turned(turn)

    expected, place = seen(STAY)
    assert (expected.shape == stored.shape) == (stays or kind == "single")
    for code in CODES:
        found, where = seen(turn_between("LPS", code))
        np.testing.assert_array_equal(found, expected)
        assert where.difference(place) is None
    thin = dataclasses.replace(stored, spacing=(2.0, 1.0, 0.8), shape=(4, 6, 5))
    assert thin.slice_axis is None and thin.axes_with_slices("S") == thin.axes


def test_a_picture_without_directions_has_no_axes() -> None:
    """ITK cuts a coronal picture's directions to two axes, one of which is nothing."""
    assert grid(np.diag([1.0, 0.0, 1.0])).axes is None
