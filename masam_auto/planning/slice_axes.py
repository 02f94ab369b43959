"""Across which axes slices are cut, and how they are resampled. Axes are the fingerprint's (Z, Y, X)."""

from dataclasses import dataclass

import numpy as np

from masam_auto.core.fingerprint import Fingerprint
from masam_auto.core.geometry import Triple
from masam_auto.planning.spacing import ANISOTROPY, median_extent, median_spacing

SLICE_SPACING_RATIO = 1.2  # Source: ours


@dataclass(frozen=True, kw_only=True, slots=True)
class SliceAxes:
    """Axes to cut slices across, the default first. `single`: the data are single slices, so only `2d` makes sense."""

    axes: tuple[int, ...]
    single: bool
    reason: str


def choose_slice_axes(fingerprint: Fingerprint) -> SliceAxes:
    """Choose the slice axes: time for videos, the only possible axis for single slices, the coarse axis, or all three.

    Source: ours; MA-SAM slices axially, which is the coarse axis of its data.
    """
    if fingerprint.is_video:
        return SliceAxes(axes=(0,), single=False, reason="video: windows run along time")
    depths = np.median([case.shape_after_cropping for case in fingerprint.cases], axis=0)
    if fingerprint.dimensions == 2 or depths.min() <= 1:
        axis = 0 if fingerprint.dimensions == 2 else int(depths.argmin())
        return SliceAxes(axes=(axis,), single=True, reason="single slices: there are no neighbouring slices")
    spacing = median_spacing(fingerprint)
    coarsest = int(np.argmax(spacing))
    next_largest = max(value for axis, value in enumerate(spacing) if axis != coarsest)
    numbers = f"median spacing {_times(spacing)} mm (Z, Y, X)"
    if spacing[coarsest] >= SLICE_SPACING_RATIO * next_largest:
        ratio = spacing[coarsest] / next_largest
        return SliceAxes(
            axes=(coarsest,),
            single=False,
            reason=f"{numbers}: axis {coarsest} is {ratio:.2f} times as coarse as the next, so slices are cut across "
            "it",
        )
    extent = median_extent(fingerprint)
    order = sorted(range(3), key=lambda axis: (extent[axis], axis))
    return SliceAxes(
        axes=tuple(order),
        single=False,
        reason=f"{numbers} is nearly isotropic: one configuration per axis; the default cuts across the shortest "
        f"extent, axis {order[0]} ({_times(extent, 0)} mm)",
    )


def choose_separate_slices(fingerprint: Fingerprint, slices: SliceAxes, spacing: Triple, axis: int) -> tuple[bool, str]:
    """Whether slices are resampled separately: smoothly in-plane, with order 0 between slices.

    Source: nnU-Net v2, `default_resampling`: anisotropy above 3.
    """
    if fingerprint.is_video:
        return True, "video: frames are never blended"
    if slices.single:
        return True, "single slices"
    distance = max(spacing[axis], median_spacing(fingerprint)[axis])
    in_plane = min(value for other, value in enumerate(spacing) if other != axis)
    ratio = distance / in_plane
    separate = ratio > ANISOTROPY and axis == int(np.argmax(spacing))
    verdict = "above" if separate else "at most" if ratio <= ANISOTROPY else "not the coarsest axis, though above"
    return separate, f"slice distance is {ratio:.2f} times the in-plane spacing, {verdict} {ANISOTROPY:g}"


def _times(values: Triple, digits: int = 3) -> str:
    return " x ".join(f"{value:.{digits}f}" if digits == 0 else f"{value:.{digits}g}" for value in values)
