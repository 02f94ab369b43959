"""How large the canvas is that the network sees, and how much slices are magnified for it."""

import math
from dataclasses import dataclass

import numpy as np

from masam_auto.core.fingerprint import Fingerprint
from masam_auto.core.geometry import Triple
from masam_auto.planning.planned_encoders import PlannedEncoder
from masam_auto.planning.spacing import shapes_at

TOKENS_ACROSS = 4.0  # tokens wanted across the smallest class
LARGEST_MAGNIFICATION, SMALLEST_MAGNIFICATION = 8.0, 0.75
PIXELS_ACROSS = 8.0  # the smallest class is not shrunk below this
PERCENTILE = 95.0
MOST = 0.75  # if this share of the cases fits, only the few larger ones are tiled
# Slices at most this much above the budget get a slightly larger canvas: shrinking them would only blur.
BLUR_TOLERANCE = 1.05


@dataclass(frozen=True, kw_only=True, slots=True)
class CanvasChoice:
    """Canvas (height, width) in px, canvas px per preprocessed px, and why."""

    canvas: tuple[int, int]
    magnification: float
    canvas_reason: str
    magnification_reason: str


def choose_canvas(
    fingerprint: Fingerprint, spacing: Triple, axis_order: tuple[int, int, int], encoder: PlannedEncoder
) -> CanvasChoice:
    """Choose the canvas and magnification of one view.

    Slices within the budget are magnified until they fill it, until a token is small against the smallest class, or
    8 times. Slices beyond the budget are shrunk, to 0.75 at most and never below what the smallest class needs. What
    is still too large is tiled. If only a few cases are too large, the others set the canvas.

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
            f"{np.count_nonzero(~fits)} of {len(fits)} cases are larger than the {encoder.budget} px that "
            f"{encoder.name} works at and get overlapping tiles; 95 % of the others' slices are within {extent[0]:.0f} "
            f"x {extent[1]:.0f} px"
        )
    if extent.max() <= encoder.budget * BLUR_TOLERANCE:
        return _canvas_within_budget(extent, seen, diameter, smallest, encoder)
    return _canvas_beyond_budget(extent, seen, least, diameter, smallest, encoder)


def _canvas_within_budget(
    extent: np.ndarray, seen: str, diameter: float, smallest: str, encoder: PlannedEncoder
) -> CanvasChoice:
    """The canvas for slices of `extent` (height, width) that fit, magnified as far as it helps the smallest class."""
    longest = float(extent.max())
    wanted = max(1.0, TOKENS_ACROSS * encoder.detail / diameter)
    limits = (max(1.0, encoder.budget / longest), wanted, LARGEST_MAGNIFICATION)
    magnification = _to_whole_windows(min(limits), longest, encoder)
    because = (
        f"slices then fill the {encoder.budget} px that {encoder.name} works at",
        f'the smallest class, "{smallest}" ({diameter:.1f} px across), is then {TOKENS_ACROSS:g} times the '
        f"{encoder.detail} px that {encoder.name} resolves",
        f"{LARGEST_MAGNIFICATION:g} is the largest allowed",
    )[int(np.argmin(limits))]
    if longest > encoder.budget:
        because = f"slices are only slightly larger than the {encoder.budget} px that {encoder.name} works at"
    elif min(limits) == 1.0:
        because = f'the smallest class, "{smallest}", is {diameter:.1f} px across and needs no magnification'
    rounded = (
        "" if magnification == min(limits) else f", slightly reduced to fill whole windows of {encoder.windowed} tokens"
    )
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
    """The canvas for slices of `extent` (height, width) that do not fit: shrunk to `least` at most, then tiled."""
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
    """Median in-plane diameter in px, and name, of the smallest class (of its components, if it has several)."""
    pixel, axis = math.sqrt(spacing[axis_order[1]] * spacing[axis_order[2]]), axis_order[0]
    return min(
        (min(c.median_diameters[axis], (c.median_components or c.median_diameters)[axis]) / pixel, name)
        for name, c in fingerprint.classes.items()
    )


def _to_whole_windows(magnification: float, longest: float, encoder: PlannedEncoder) -> float:
    """Reduce a magnification above 1 by at most an eighth, if that fills whole attention windows exactly."""
    if not encoder.windowed:
        return magnification
    unit = encoder.windowed * encoder.token
    whole = math.floor(longest * magnification / unit + 1e-9) * unit
    lower = whole / longest
    return lower if lower >= max(1.0, magnification * 7 / 8 - 1e-9) else magnification


def _side(length: float, encoder: PlannedEncoder) -> int:
    """A canvas side of whole tokens, and of whole attention windows where that adds at most a seventh."""
    if encoder.without_gpu is not None:
        return max(math.ceil(length / encoder.without_gpu.multiple - 1e-6), 1) * encoder.without_gpu.multiple
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
