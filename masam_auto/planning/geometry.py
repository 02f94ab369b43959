"""Planning rules about space: slice axis, target spacing, resampling, canvas and window length.

Each rule is a pure function of the fingerprint that returns its decision and one sentence with the numbers behind it.
Axes are the fingerprint's (Z, Y, X) unless a function says that they are permuted.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from masam_auto.core.encoders import PlannedEncoder
from masam_auto.core.errors import PlanError
from masam_auto.core.fingerprint import Fingerprint
from masam_auto.core.geometry import Shape, Triple, permute

SLICE_SPACING_RATIO = 1.2  # Source: ours
ANISOTROPY = 3.0  # Source: nnU-Net v2, default_experiment_planner and default_resampling
CONTEXT_MM = 15.0  # Source: MA-SAM's five slices at about 3 mm
VIDEO_WINDOW = 5  # Source: MA-SAM
TOKENS_ACROSS = 4.0  # tokens wanted across the smallest class
LARGEST_MAGNIFICATION, SMALLEST_MAGNIFICATION = 8.0, 0.75
PIXELS_ACROSS = 8.0  # the smallest class is not shrunk below this
PERCENTILE = 95.0
MOST = 0.75  # share of the cases from which on a few larger ones are tiled for themselves
# Slices so little above the budget keep their own pixels on a slightly larger canvas: shrinking would blur for nothing.
BLUR_TOLERANCE = 1.05


@dataclass(frozen=True, kw_only=True, slots=True)
class SliceAxes:
    """Axes to cut slices across, the default first. `single`: the data are single slices, only `2d` makes sense."""

    axes: tuple[int, ...]
    single: bool
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class CanvasChoice:
    """Canvas (height, width) in px, canvas px per preprocessed px, and why."""

    canvas: tuple[int, int]
    magnification: float
    canvas_reason: str
    magnification_reason: str


def median_spacing(fingerprint: Fingerprint) -> Triple:
    """Median spacing in mm over the cases, axis by axis."""
    return _triple(np.median([case.spacing for case in fingerprint.cases], axis=0))


def median_extent(fingerprint: Fingerprint) -> Triple:
    """Median physical extent in mm of the cropped cases, axis by axis."""
    return _triple(np.median([np.multiply(c.shape_after_cropping, c.spacing) for c in fingerprint.cases], axis=0))


def shapes_at(fingerprint: Fingerprint, spacing: Triple) -> np.ndarray:
    """(cases, 3) shapes of the cropped cases after resampling to `spacing`, at least 1."""
    shapes = [np.multiply(c.shape_after_cropping, c.spacing) / spacing for c in fingerprint.cases]
    return np.maximum(np.round(shapes), 1)


def choose_slice_axes(fingerprint: Fingerprint) -> SliceAxes:
    """Time for video; the only axis that can be for single slices; the coarse axis; else all three.

    Source: ours; MA-SAM slices axially, which is the coarse axis of its data.
    """
    if fingerprint.is_video:
        return SliceAxes(axes=(0,), single=False, reason="video: windows run along time")
    depths = np.median([case.shape_after_cropping for case in fingerprint.cases], axis=0)
    if fingerprint.dimensions == 2 or depths.min() <= 1:
        axis = 0 if fingerprint.dimensions == 2 else int(depths.argmin())
        return SliceAxes(axes=(axis,), single=True, reason="single slices: there is nothing to look across")
    spacing = median_spacing(fingerprint)
    coarsest = int(np.argmax(spacing))
    next_largest = max(value for axis, value in enumerate(spacing) if axis != coarsest)
    numbers = f"median spacing {_times(spacing)} mm (Z, Y, X)"
    if spacing[coarsest] >= SLICE_SPACING_RATIO * next_largest:
        ratio = spacing[coarsest] / next_largest
        return SliceAxes(
            axes=(coarsest,),
            single=False,
            reason=f"{numbers}: axis {coarsest} is {ratio:.2f} times as coarse as the next, so slices are cut across it",
        )
    extent = median_extent(fingerprint)
    order = sorted(range(3), key=lambda axis: (extent[axis], axis))
    return SliceAxes(
        axes=tuple(order),
        single=False,
        reason=f"{numbers} is nearly isotropic: one configuration for each axis; the default cuts across the shortest "
        f"extent, axis {order[0]} ({_times(extent, 0)} mm)",
    )


def choose_spacing(fingerprint: Fingerprint, wanted: Triple | None) -> tuple[Triple, str]:
    """Target spacing in mm in the file's axis order.

    Args:
        fingerprint: measurements.
        wanted: the user's choice, or None.

    Raises:
        PlanError: the user's choice is not three positive numbers.

    Source: nnU-Net v2, `default_experiment_planner`: medians; where one axis is more than 3 times as coarse as the
        others and has less than a third of their voxels, its 10th percentile.
    """
    if wanted is not None:
        if len(wanted) != 3 or not all(math.isfinite(value) and value > 0 for value in wanted):
            raise PlanError(f"target spacing must be three positive numbers of mm in the order Z, Y, X, got {wanted}")
        return _triple(wanted), "set by hand"
    spacings = np.array([case.spacing for case in fingerprint.cases])
    target = np.median(spacings, axis=0)
    sizes = np.median([case.shape_after_cropping for case in fingerprint.cases], axis=0)
    count = f"of {len(spacings)} cases" if len(spacings) > 1 else "of the only case"
    worst = int(np.argmax(target))
    others = [axis for axis in range(3) if axis != worst]
    finest_allowed = float(target[others].max())
    coarse = target[worst] > ANISOTROPY * finest_allowed and sizes[worst] * ANISOTROPY < sizes[others].min()
    if fingerprint.is_video or not coarse:
        return _triple(target), f"median {count}"
    tenth = float(np.percentile(spacings[:, worst], 10))
    median = float(target[worst])
    target[worst] = tenth if tenth >= finest_allowed else finest_allowed + 1e-5
    return (
        _triple(target),
        f"in-plane median {count}; axis {worst} is more than 3 times as coarse (median {median:.3g} mm) with less than "
        f"a third of the voxels, so its 10th percentile is used ({tenth:.3g} mm)",
    )


def choose_separate_slices(fingerprint: Fingerprint, slices: SliceAxes, spacing: Triple, axis: int) -> tuple[bool, str]:
    """Whether slices are resampled in-plane only and between slices with order 0.

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


def median_shape(fingerprint: Fingerprint, spacing: Triple, axis_order: tuple[int, int, int]) -> Shape:
    """Median shape at the target spacing in permuted order."""
    shape = permute(tuple(round(value) for value in np.median(shapes_at(fingerprint, spacing), axis=0)), axis_order)
    return (shape[0], shape[1], shape[2])


def choose_window(fingerprint: Fingerprint, *, distance: float, depth: int, encoder: PlannedEncoder) -> tuple[int, str]:
    """Window length N of a configuration that looks across slices: odd, nearest to 15 mm, 3 to the encoder's longest.

    Args:
        fingerprint: measurements.
        distance: target spacing across slices, mm.
        depth: median number of slices at the target spacing.
        encoder: says how long windows may be.

    Source: MA-SAM uses N = 5 at about 3 mm.
    """
    if fingerprint.is_video:
        return VIDEO_WINDOW, f"video: {VIDEO_WINDOW} frames, as in the paper"
    context = CONTEXT_MM / distance
    odd = 2 * round((context - 1) / 2) + 1
    longest = encoder.longest_window
    window = min(max(odd, 3), longest)
    wanted = f"slice distance {distance:.3g} mm, {CONTEXT_MM:g} mm of context wanted ({context:.1f} slices)"
    limit = f", kept within 3 to {longest}" if window != odd else ""
    deepest = depth if depth % 2 else depth + 1
    if window > max(deepest, 3):
        return max(deepest, 3), f"{wanted}, but the median volume has only {depth} slices"
    return window, wanted + limit


def choose_depth(window: int, encoder: PlannedEncoder) -> tuple[Literal["whole", "windows"], str]:
    """How prediction goes along the slices after training on windows of a length.

    In a short window most slices lie at its ends, where the network sees zeros beyond; a slice in the middle of a whole
    volume is then something that it has hardly met.

    Source: measured (documentation/log.md): vit_t lost up to 0.18 Dice with the whole depth after windows of 3 and 5
    slices, and nothing after 9 and 15; a SAM-shaped network lost nothing after 5.
    """
    least = encoder.whole_from
    if window == 1:
        return "whole", "slices do not see one another"
    if window >= least:
        return "whole", (
            f"the whole depth as one window: each slice is encoded once, and after windows of {least} or more slices it is "
            "as accurate as overlapping ones (measured)"
        )
    return "windows", (
        f"overlapping windows of {window} slices, as in training: the whole depth at once is less accurate after windows of "
        f"fewer than {least} slices (measured)"
    )


def choose_canvas(
    fingerprint: Fingerprint, spacing: Triple, axis_order: tuple[int, int, int], encoder: PlannedEncoder
) -> CanvasChoice:
    """Canvas and magnification of one view.

    Magnify until the budget is used, or a token is small against the smallest class, or 8 times. Beyond the budget
    shrink, to 0.75 at most and not below what the smallest class needs, then tile. A few cases that would have to be tiled
    do not decide this for the others: they alone are tiled.

    Source: the paper's section on inputs (512 px); preference for whole 14-token windows: ours, from SAM's padding.
    """
    slices = shapes_at(fingerprint, spacing)[:, axis_order[1:]]
    diameter, smallest = smallest_diameter(fingerprint, spacing, axis_order)
    least = min(1.0, max(SMALLEST_MAGNIFICATION, PIXELS_ACROSS / diameter))
    extent = np.percentile(slices, PERCENTILE, axis=0)
    seen = f"95 % of the slices are within {extent[0]:.0f} x {extent[1]:.0f} px"
    fits = slices.max(axis=1) <= encoder.budget * BLUR_TOLERANCE
    if extent.max() * least > encoder.budget * BLUR_TOLERANCE and fits.mean() >= MOST:
        extent = np.percentile(slices[fits], PERCENTILE, axis=0)
        seen = (
            f"{np.count_nonzero(~fits)} of {len(fits)} cases are larger than the {encoder.budget} px that {encoder.name} works "
            f"at and get overlapping tiles; 95 % of the others' slices are within {extent[0]:.0f} x {extent[1]:.0f} px"
        )
    if extent.max() <= encoder.budget * BLUR_TOLERANCE:
        return _canvas_within_budget(extent, seen, diameter, smallest, encoder)
    return _canvas_beyond_budget(extent, seen, least, diameter, smallest, encoder)


def _canvas_within_budget(
    extent: np.ndarray, seen: str, diameter: float, smallest: str, encoder: PlannedEncoder
) -> CanvasChoice:
    """Of slices (height, width) that need not shrink: magnified as long as that serves the smallest class."""
    longest = float(extent.max())
    wanted = max(1.0, TOKENS_ACROSS * encoder.detail / diameter)
    limits = (max(1.0, encoder.budget / longest), wanted, LARGEST_MAGNIFICATION)
    magnification = _to_whole_windows(min(limits), longest, encoder)
    because = (
        f"they would use the {encoder.budget} px that {encoder.name} works at",
        f'the smallest class, "{smallest}" ({diameter:.1f} px across), would be {TOKENS_ACROSS:g} times the '
        f"{encoder.detail} px that {encoder.name} resolves",
        "8 is the most",
    )[int(np.argmin(limits))]
    if longest > encoder.budget:
        because = f"they are hardly more than the {encoder.budget} px that {encoder.name} works at"
    elif min(limits) == 1.0:
        because = f'the smallest class, "{smallest}", is {diameter:.1f} px across and needs no magnification'
    rounded = "" if magnification == min(limits) else f", less a little to fill whole {encoder.windowed}-token windows"
    resized = "at their own resolution" if magnification == 1 else f"magnified {magnification:.3g} times"
    return CanvasChoice(
        canvas=(_side(float(extent[0]) * magnification, encoder), _side(float(extent[1]) * magnification, encoder)),
        magnification=magnification,
        canvas_reason=f"{seen}; {resized}, rounded up to whole tokens of {encoder.token} px",
        magnification_reason=f"{because}{rounded}",
    )


def _canvas_beyond_budget(
    extent: np.ndarray, seen: str, least: float, diameter: float, smallest: str, encoder: PlannedEncoder
) -> CanvasChoice:
    """Of slices (height, width) that shrink, to `least` at most; what is still too long is tiled."""
    longest = float(extent.max())
    magnification = max(encoder.budget / longest, least)
    sides = [float(length) * magnification for length in extent]
    tiled = [side > encoder.budget + 1e-6 for side in sides]
    height, width = (
        _whole_windows_side(encoder) if too_long else _side(side, encoder)
        for side, too_long in zip(sides, tiled, strict=True)
    )
    resized = f"shrunk to {magnification:.3g}" if magnification < 1 else "at their own resolution"
    outcome = f"still more than {encoder.budget} px: overlapping tiles" if any(tiled) else f"within {encoder.budget} px"
    floor = f"; not shrunk below {least:.3g}"
    if least > SMALLEST_MAGNIFICATION:
        floor += f', because "{smallest}" is only {diameter:.1f} px across'
    return CanvasChoice(
        canvas=(height, width),
        magnification=magnification,
        canvas_reason=f"{seen}; {resized}, {outcome}",
        magnification_reason=f"{seen}, more than the {encoder.budget} px that {encoder.name} works at"
        + (floor if any(tiled) else ""),
    )


def smallest_diameter(fingerprint: Fingerprint, spacing: Triple, axis_order: tuple[int, int, int]) -> tuple[float, str]:
    """Median in-plane diameter of the smallest class, or of its components where it is several, in px; and its name."""
    pixel, axis = math.sqrt(spacing[axis_order[1]] * spacing[axis_order[2]]), axis_order[0]
    return min(
        (min(c.median_diameters[axis], (c.median_components or c.median_diameters)[axis]) / pixel, name)
        for name, c in fingerprint.classes.items()
    )


def _to_whole_windows(magnification: float, longest: float, encoder: PlannedEncoder) -> float:
    """Give up at most an eighth of a magnification above 1 where that fills whole attention windows exactly."""
    if not encoder.windowed:
        return magnification
    unit = encoder.windowed * encoder.token
    whole = math.floor(longest * magnification / unit + 1e-9) * unit
    lower = whole / longest
    return lower if lower >= max(1.0, magnification * 7 / 8 - 1e-9) else magnification


def _side(length: float, encoder: PlannedEncoder) -> int:
    """A canvas side of whole tokens, and of whole attention windows where that adds at most a seventh."""
    tokens = max(math.ceil(length / encoder.token - 1e-6), math.ceil(16 / encoder.token))
    if encoder.windowed:
        whole = math.ceil(tokens / encoder.windowed) * encoder.windowed
        if whole - tokens <= tokens / 7 and whole * encoder.token <= encoder.budget:
            tokens = whole
    return tokens * encoder.token


def _whole_windows_side(encoder: PlannedEncoder) -> int:
    """Side of a tile: the most whole attention windows (or tokens) within the budget."""
    unit = encoder.token * max(encoder.windowed, 1)
    return encoder.budget // unit * unit


def _times(values: Triple, digits: int = 3) -> str:
    return " x ".join(f"{value:.{digits}f}" if digits == 0 else f"{value:.{digits}g}" for value in values)


def _triple(values: np.ndarray | Triple) -> Triple:
    return (float(values[0]), float(values[1]), float(values[2]))
