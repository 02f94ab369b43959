"""Where voxels are in the world, and what is needed to return to the original image."""

import dataclasses
import itertools
import math
from dataclasses import dataclass

import numpy as np

from masam_auto.core.errors import ImageError
from masam_auto.core.raw_files import RawFile
from masam_auto.core.turning import STAY, STEEP, TIE, UNKNOWN_AXES, Turn, nearest_axes, turn_between, world_axis

Triple = tuple[float, float, float]
Shape = tuple[int, int, int]
Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


NARROWEST, WIDEST = 1e-7, 1e5  # mm; beyond them a header is nonsense
THICK = 2.99  # times the spacing within slices


@dataclass(frozen=True, kw_only=True, slots=True)
class Geometry:
    """The grid of one image.

    `shape` and `spacing` are in array order (Z, Y, X), spacing in mm. `origin` and `direction` are ITK's: physical
    (x, y, z) in LPS. `direction` is a 3 x 3 matrix by rows; its columns are the unit vectors of the x, y and z voxel
    axes. The columns need not be orthogonal: sheared NIfTI files keep their shear. `dimensions` is 2 for a plain
    picture (then shape is (1, Y, X)), else 3. `oriented`: whether the file says where its axes point. Pictures, videos
    and NIfTI files without forms do not, and their `direction` means nothing.

    Example:
        >>> from masam_auto.core.geometry import Geometry
        >>> geometry = Geometry(shape=(20, 512, 512), spacing=(5.0, 0.7, 0.7))
        >>> geometry.axes, geometry.slice_axis  # where x, y and z point; the array's axis across slices
        ('LPS', 0)
        >>> round(geometry.voxel_volume, 2)
        2.45
    """

    shape: Shape
    spacing: Triple
    origin: Triple = (0.0, 0.0, 0.0)
    direction: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    dimensions: int = 3
    oriented: bool = True

    def __post_init__(self) -> None:
        if min(self.shape) < 1:
            raise ImageError(f"image has an empty axis: shape {self.shape} (Z, Y, X)")
        if not all(NARROWEST <= s <= WIDEST for s in self.spacing):
            raise ImageError(
                f"spacing must be positive, from {NARROWEST:g} to {WIDEST:g} mm, got {self.spacing} (Z, Y, X). Correct "
                "the header."
            )
        if len(self.direction) != 9 or not all(map(math.isfinite, self.direction)):
            raise ImageError(f"direction must be nine finite numbers, got {self.direction}")
        if not all(map(math.isfinite, self.origin)):
            raise ImageError(f"origin must be finite, got {self.origin}")
        if self.dimensions not in (2, 3):
            raise ImageError(f"images have 2 or 3 dimensions, got {self.dimensions}")

    @property
    def voxel_volume(self) -> float:
        """Volume of a voxel in cubic millimetres (of the parallelepiped if axes are sheared)."""
        determinant = abs(float(np.linalg.det(np.reshape(self.direction, (3, 3)))))
        return math.prod(self.spacing) * determinant

    @property
    def affine(self) -> np.ndarray:
        """(4, 4) matrix from voxel (x, y, z) to world LPS millimetres."""
        affine = np.eye(4)
        affine[:3, :3] = np.reshape(self.direction, (3, 3)) * np.asarray(self.spacing[::-1])
        affine[:3, 3] = self.origin
        return affine

    @property
    def axes(self) -> str | None:
        """Where the voxel axes x, y, z (nearly) point: "LPS", "RAS", ... None if the file does not say.

        For a picture in a plane that two axes cannot describe, ITK gives directions of length zero.
        """
        flat = abs(float(np.linalg.det(np.reshape(self.direction, (3, 3))))) < TIE
        return nearest_axes(self.direction) if self.oriented and not flat else None

    @property
    def slice_axis(self) -> int | None:
        """The array axis across slices, if it is clear: there is a single slice, or slices are far apart."""
        if self.shape.count(1) == 1:
            return self.shape.index(1)
        first, *others = sorted(range(3), key=lambda axis: -self.spacing[axis])
        evident = self.spacing[first] >= THICK * max(self.spacing[axis] for axis in others)
        return first if evident else None

    def axes_with_slices(self, along: str | None) -> str | None:
        """Like `axes`, but slices that clearly run across a direction near `along` (a letter) get that letter."""
        if self.axes is None or along is None or self.slice_axis is None:
            return self.axes
        steepest = 0.0 if self.shape[self.slice_axis] == 1 else STEEP  # a single slice has no neighbours
        return nearest_axes(self.direction, slices=(2 - self.slice_axis, world_axis(along)), steepest=steepest)

    def turn_to(self, axes: str | None) -> Turn:
        """The turn of this grid's arrays to other axes; no turn if either axes are unknown (not three letters)."""
        own = self.axes
        return STAY if own is None or axes is None or axes == UNKNOWN_AXES else turn_between(own, axes)

    def turned(self, turn: Turn) -> "Geometry":
        """The grid of a turned array: the same voxels at the same places."""
        moves = np.reshape(self.direction, (3, 3)) * np.asarray(self.spacing[::-1])
        corner = [0, 0, 0]  # x, y, z of the voxel that becomes the first one
        for axis in turn.reversed_axes:
            corner[2 - turn.order[axis]] = self.shape[turn.order[axis]] - 1
        signs = [-1 if axis in turn.reversed_axes else 1 for axis in (2, 1, 0)]
        columns = [2 - turn.order[axis] for axis in (2, 1, 0)]
        x, y, z = (float(value) for value in np.asarray(self.origin) + moves @ corner)
        return dataclasses.replace(
            self,
            shape=turn.triple(self.shape),
            spacing=turn.triple(self.spacing),
            origin=(x, y, z),
            direction=tuple((np.reshape(self.direction, (3, 3))[:, columns] * signs + 0.0).ravel().tolist()),
        )

    def shift(self, other: "Geometry", *, about_middle: bool = False) -> float:
        """The largest distance, in voxels, between voxels of the same index in this grid and another of its shape.

        With `about_middle`, the middles of both grids are aligned first.
        """
        ends = itertools.product(*((0, size - 1) for size in self.shape[::-1]))
        corners = np.array([(*corner, 1) for corner in ends]).T
        apart = ((other.affine - self.affine) @ corners)[:3]
        if about_middle:
            apart -= apart.mean(axis=1, keepdims=True)
        return float(np.abs(np.linalg.lstsq(self.affine[:3, :3], apart, rcond=None)[0]).max())

    def difference(self, other: "Geometry", *, tolerance: float = 1e-3) -> str | None:
        """Describe in words how another grid differs; None if it does not.

        Spacing and direction are compared relative to 1, the origin relative to the voxel size.
        """
        if self.shape != other.shape:
            return f"shape {self.shape} against {other.shape} (Z, Y, X)"
        if not np.allclose(self.spacing, other.spacing, rtol=tolerance, atol=1e-6):
            return f"spacing {_rounded(self.spacing)} against {_rounded(other.spacing)} mm (Z, Y, X)"
        if not np.allclose(self.direction, other.direction, atol=tolerance):
            return f"direction {_rounded(self.direction)} against {_rounded(other.direction)}"
        if np.abs(np.subtract(self.origin, other.origin)).max() > max(0.05 * min(self.spacing), 1e-3):
            return f"origin {_rounded(self.origin)} against {_rounded(other.origin)} mm"
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class CaseProperties:
    """What `restore_case` needs to bring a result back to the image's own grid.

    Order of preprocessing: read, crop to `crop` (original order), permute by `axis_order`, reverse `reversed_axes`
    (of the permuted order), resample to `resampled_shape` (permuted order). `raw` are the image and label files as
    they were read; empty if this was not recorded (prediction, and data of earlier versions).
    """

    identifier: str
    geometry: Geometry
    crop: Box
    axis_order: tuple[int, int, int]
    spacing: Triple
    resampled_shape: Shape
    files: tuple[str, ...] = ()
    reversed_axes: tuple[int, ...] = ()
    raw: tuple[RawFile, ...] = ()

    def __post_init__(self) -> None:
        Turn(order=self.axis_order, reversed_axes=self.reversed_axes)  # raises if this is not a valid turn
        for (low, high), size in zip(self.crop, self.geometry.shape, strict=True):
            if not 0 <= low < high <= size:
                raise ImageError(f"crop {self.crop} is not inside shape {self.geometry.shape}")

    @property
    def turn(self) -> Turn:
        """From the image's own axes to those that the network sees."""
        return Turn(order=self.axis_order, reversed_axes=self.reversed_axes)

    @property
    def cropped_shape(self) -> Shape:
        """Shape after cropping, original axis order (Z, Y, X)."""
        (z0, z1), (y0, y1), (x0, x1) = self.crop
        return (z1 - z0, y1 - y0, x1 - x0)

    @property
    def permuted_shape(self) -> Shape:
        """Shape after cropping and permuting, before resampling."""
        return permute(self.cropped_shape, self.axis_order)


def permute(values: tuple, order: tuple[int, int, int]) -> tuple:
    """Reorder a triple as `np.transpose(array, order)` reorders axes."""
    return tuple(values[axis] for axis in order)


def _rounded(values: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(round(float(value), 4) for value in values)
