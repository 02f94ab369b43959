"""The range of intensities that becomes 0..1 where no plan says it: for weights that were trained on such images."""

from collections.abc import Sequence

import numpy as np

SOFT_TISSUE = (-160.0, 240.0)  # HU. Source: MedSAM's preparation of CT
PERCENTILES = (0.5, 99.5)  # Source: MedSAM's preparation of MR and others, of what is above zero
AIR = -500.0  # HU; no other kind of image has values so far below zero
COLOURS = (0.0, 255.0)
SAMPLED = 4_000_000  # voxels that percentiles are taken from


def looks_like_ct(image: np.ndarray) -> bool:
    """Whether intensities (any shape) are Hounsfield units, by the air beside the body."""
    return float(image.min()) <= AIR


def unit_range(image: np.ndarray, *, is_ct: bool, window: Sequence[float] = SOFT_TISSUE) -> tuple[float, float]:
    """The intensities that become 0 and 1.

    Args:
        image: (C, Z, Y, X). Three channels within 0..255 are colours.
        is_ct: take `window` (HU), else percentiles of this image.
        window: lower and upper end.

    Example:
        >>> from masam_auto.imaging.unit_range import unit_range
        >>> unit_range(np.full((1, 2, 3, 4), 7.0), is_ct=True)
        (-160.0, 240.0)
    """
    if is_ct:
        return float(window[0]), float(window[1])
    if len(image) == 3 and image.min() >= COLOURS[0] and image.max() <= COLOURS[1]:
        return COLOURS
    values = image.ravel()[:: max(1, image.size // SAMPLED)]
    above = values[values > 0]
    low, high = np.percentile(above if above.size else values, PERCENTILES)
    return float(low), float(high)
