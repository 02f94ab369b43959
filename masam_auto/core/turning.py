"""Where the voxel axes of an image point in the patient, and how to turn it (permutation and flips) to other axes.

A code such as "RAS" names the voxel axes x, y, z in this order, each by the side it points to: Left or Right, Posterior
or Anterior, Superior or Inferior. Arrays are (Z, Y, X), so the last letter belongs to an array's first axis.
"""

import itertools
from dataclasses import dataclass

import numpy as np

from masam_auto.core.errors import ImageError

Order = tuple[int, int, int]
Ranges = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]

UNKNOWN_AXES = "unknown"
"""Used instead of a code if the files of a data set do not say where their axes point."""

TOWARDS, AWAY = "LPS", "RAI"  # the sides that ITK's world axes point to, and away from
STEEP = 0.5  # cosine: slices stay slices up to this angle from the model's
TIE = 1e-3  # directions, and sums of them, with a smaller difference are equal: files round them


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """A permutation and flips of the last three axes of an array. It moves voxels and changes no values.

    `order` is as in `np.transpose`; `reversed_axes` are the axes of the permuted array (0, 1, 2) that are then
    reversed.
    """

    order: Order = (0, 1, 2)
    reversed_axes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if sorted(self.order) != [0, 1, 2]:
            raise ImageError(f"axis_order must be a permutation of (0, 1, 2), got {self.order}")
        if not set(self.reversed_axes) <= {0, 1, 2}:
            raise ImageError(f"reversed_axes must be among 0, 1, 2, got {self.reversed_axes}")

    @property
    def back(self) -> "Turn":
        """The turn that undoes this one."""
        z, y, x = (self.order.index(axis) for axis in range(3))
        return Turn(order=(z, y, x), reversed_axes=tuple(sorted(self.order[axis] for axis in self.reversed_axes)))

    def then(self, order: Order) -> "Turn":
        """This turn and then a permutation."""
        z, y, x = (self.order[axis] for axis in order)
        return Turn(
            order=(z, y, x), reversed_axes=tuple(axis for axis in range(3) if order[axis] in self.reversed_axes)
        )

    def array(self, array: np.ndarray) -> np.ndarray:
        """View of (..., Z, Y, X): values written to it land at the right place in `array`."""
        leading = array.ndim - 3
        turned = array.transpose(*range(leading), *(axis + leading for axis in self.order))
        z, y, x = (slice(None, None, -1 if axis in self.reversed_axes else 1) for axis in range(3))
        return turned[..., z, y, x]

    def triple(self, values: tuple) -> tuple:
        """Turn sizes, spacings and other values without a sign."""
        return tuple(values[axis] for axis in self.order)

    def ranges(self, ranges: Ranges, shape: tuple[int, int, int]) -> Ranges:
        """Turn half-open voxel ranges of an array of `shape` (both before the turn)."""
        z, y, x = (
            (shape[axis] - ranges[axis][1], shape[axis] - ranges[axis][0])
            if place in self.reversed_axes
            else ranges[axis]
            for place, axis in enumerate(self.order)
        )
        return z, y, x


STAY = Turn()


def nearest_axes(
    direction: tuple[float, ...], *, slices: tuple[int, int] | None = None, steepest: float = STEEP
) -> str:
    """The code of the axes nearest to a direction matrix (ITK's, see `Geometry`).

    `slices`: the voxel axis (0 x, 1 y, 2 z) across thick slices, and the world axis to assign to it if the cosine of
    their angle is at least `steepest`. Slices of the heart, for example, are between the body's planes. They must not
    turn into cuts across slices just because they lean a little further than others.

    If two codes are equally near, as at 45 degrees, the choice depends on how the voxel axes lie in space, not on their
    order or signs. So all ways to store an image give the same result.
    """
    left, _, right = np.linalg.svd(np.reshape(direction, (3, 3)))
    columns = (left @ right).T  # the nearest orthogonal axes, if those of the file are sheared
    lines = [_without_sign(column) for column in columns]

    def nearness(voxel_axes: tuple[int, ...]) -> float:
        return float(sum(abs(columns[axis][world]) for world, axis in enumerate(voxel_axes)))

    choices = list(itertools.permutations(range(3)))  # the voxel axis of each world axis
    if slices is not None and abs(columns[slices[0]][slices[1]]) >= steepest:
        choices = [voxel_axes for voxel_axes in choices if voxel_axes[slices[1]] == slices[0]]
    best = max(map(nearness, choices))
    chosen = max(
        (voxel_axes for voxel_axes in choices if nearness(voxel_axes) > best - TIE),
        key=lambda voxel_axes: [lines[axis] for axis in voxel_axes],
    )

    def letter(axis: int) -> str:
        world = chosen.index(axis)
        along = columns[axis][world]
        along = along if abs(along) > TIE else columns[axis] @ np.asarray(lines[axis])
        return (TOWARDS if along > 0 else AWAY)[world]

    return "".join(map(letter, range(3)))


def turn_between(axes: str, target: str) -> Turn:
    """The turn of arrays (Z, Y, X) from axes to other axes, by their codes.

    Example:
        >>> from masam_auto.core.turning import turn_between
        >>> turn = turn_between("RAS", "LPS")
        >>> turn
        Turn(order=(0, 1, 2), reversed_axes=(1, 2))
        >>> turn.array(np.array([[[1, 2], [3, 4]]]))  # (Z, Y, X)
        array([[[4, 3],
                [2, 1]]])
    """
    own, wanted = ([world_axis(letter) for letter in reversed(code)] for code in (axes, target))
    z, y, x = (own.index(axis) for axis in wanted)
    pairs = zip((z, y, x), reversed(target), strict=True)
    return Turn(
        order=(z, y, x),
        reversed_axes=tuple(place for place, (axis, letter) in enumerate(pairs) if axes[::-1][axis] != letter),
    )


def is_axes_code(text: str) -> bool:
    """Whether a text names three different axes, like "RAS"."""
    return len(text) == 3 and all(any(letter in pair for letter in text) for pair in zip(TOWARDS, AWAY, strict=True))


def world_axis(letter: str) -> int:
    """0, 1 or 2 for the axis left-right, front-back or head-feet."""
    return TOWARDS.index(letter) if letter in TOWARDS else AWAY.index(letter)


def _without_sign(direction: np.ndarray) -> tuple[float, ...]:
    """The same rounded result for a direction and its opposite."""
    first = next(value for value in direction if abs(value) > TIE)
    return tuple(round(float(value), 3) + 0.0 for value in direction * np.sign(first))
