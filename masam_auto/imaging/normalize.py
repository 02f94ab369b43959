"""Intensity normalisation, one channel at a time, over the whole volume.

Source: nnU-Net's normalisation schemes and its mapping from channel names.
"""

from collections.abc import Callable, Sequence

import numpy as np

from masam_auto.core.errors import ImageError
from masam_auto.core.plan import NormalizationPlan
from masam_auto.core.plugins import find_entry
from masam_auto.imaging.crop import nonzero_mask

SMALLEST_DIVISOR = 1e-8
DEFAULT_SCHEME = "zscore"


def choose_scheme(channel_name: str) -> str:
    """Name of the normalisation for a channel name in dataset.json. Upper and lower case do not matter.

    Returns:
        The scheme of that name ("CT" -> "ct"), else "zscore". A scheme added by a plug-in is only chosen in a plan,
        never by a channel's name: that would change data sets that already have such a channel.
    """
    return CHOSEN_BY_NAME.get(channel_name.casefold(), DEFAULT_SCHEME)


def not_finite(image: np.ndarray) -> str | None:
    """An error message about infinite or not-a-number voxels; None if there are none."""
    with np.errstate(invalid="ignore"):
        if np.isfinite(image.sum(dtype=np.float64)):  # any such voxel shows in the sum, which makes no copy
            return None
    count = image.size - np.count_nonzero(np.isfinite(image))
    return (
        f"{count} of {image.size} voxels are not finite (NaN or infinite). "
        "Replace them, e.g. by the background's value."
    )


def normalize(image: np.ndarray, plans: Sequence[NormalizationPlan]) -> np.ndarray:
    """Normalise every channel of a cropped volume as the plan says.

    Args:
        image: (C, Z, Y, X) in the file's units.
        plans: one entry per channel.

    Returns:
        (C, Z, Y, X) float32, a new array.

    Raises:
        ImageError: the number of channels differs from the plan's, or intensities do not fit the scheme.
        PlanError: unknown scheme.

    Example:
        >>> from masam_auto.core.plan import NormalizationPlan
        >>> from masam_auto.imaging.normalize import normalize
        >>> image = np.arange(24.0).reshape(1, 2, 3, 4)  # (C, Z, Y, X)
        >>> scaled = normalize(image, [NormalizationPlan(scheme="zscore")])
        >>> scaled.shape, scaled.dtype, round(float(scaled.std()), 3)
        ((1, 2, 3, 4), dtype('float32'), 1.0)
    """
    if len(image) != len(plans):
        raise ImageError(f"image has {len(image)} channels, but the plan normalises {len(plans)}")
    mask = nonzero_mask(image) if any(plan.inside_mask for plan in plans) else None
    result = np.array(image, dtype=np.float32, order="C")
    for number, (channel, plan) in enumerate(zip(result, plans, strict=True)):
        change = find_normalizer(plan.scheme)
        try:
            change(channel, plan, mask if plan.inside_mask else None)
        except ImageError as error:
            raise ImageError(f"channel {number}: {error}") from error
        if plan.scheme not in NORMALIZERS and not np.isfinite(channel).all():  # ours are tested
            raise ImageError(f"channel {number}: the plug-in's {plan.scheme!r} gave NaN or infinite values")
    return result


def find_normalizer(scheme: str) -> "Normalizer":
    """Find the function of a scheme, ours or a plug-in's. Raises PlanError that lists the known ones."""
    return find_entry("normalizers", scheme, NORMALIZERS, field="normalization.scheme")


def _ct(channel: np.ndarray, plan: NormalizationPlan, mask: np.ndarray | None) -> None:
    """Clip to the data set's foreground percentiles, then use its foreground mean and deviation."""
    np.clip(channel, plan.lower, plan.upper, out=channel)
    channel -= plan.mean
    channel /= max(plan.std, SMALLEST_DIVISOR)


def _zscore(channel: np.ndarray, plan: NormalizationPlan, mask: np.ndarray | None) -> None:
    """Zero mean and unit deviation of this volume. With a mask: of the part inside it; zeros outside stay zero."""
    inside = channel if mask is None else channel[mask]
    if inside.size == 0:
        return
    # float32 sums over 10^8 voxels lose digits
    mean, std = inside.mean(dtype=np.float64), inside.std(dtype=np.float64)
    channel -= np.float32(mean)
    channel /= np.float32(max(std, SMALLEST_DIVISOR))
    if mask is not None:
        channel[~mask] = 0


def _rescale_to_0_1(channel: np.ndarray, plan: NormalizationPlan, mask: np.ndarray | None) -> None:
    """Scale this volume's minimum and maximum to 0 and 1."""
    channel -= channel.min()
    channel /= max(channel.max(), SMALLEST_DIVISOR)


def _clip_to_0_1(channel: np.ndarray, plan: NormalizationPlan, mask: np.ndarray | None) -> None:
    """Clip to the plan's lower and upper intensity, then scale these to 0 and 1.

    Source: the reference MA-SAM, with -200 and 250 HU for abdominal CT.
    """
    np.clip(channel, plan.lower, plan.upper, out=channel)
    channel -= plan.lower
    channel /= max(plan.upper - plan.lower, SMALLEST_DIVISOR)


def _quantile_to_0_1(channel: np.ndarray, plan: NormalizationPlan, mask: np.ndarray | None) -> None:
    """Scale this volume's minimum and 99 % quantile to 0 and 1; higher values are cut off.

    Source: the reference MA-SAM, for prostate MRI.
    """
    low, high = float(channel.min()), float(np.quantile(channel, 0.99))
    np.clip(channel, low, high, out=channel)
    channel -= low
    channel /= max(high - low, SMALLEST_DIVISOR)


def _percentiles_to_0_1(channel: np.ndarray, plan: NormalizationPlan, mask: np.ndarray | None) -> None:
    """Clip to this volume's own 0.5 and 99.5 percentiles above zero, then scale these to 0 and 1.

    Source: how MedSAM and LiteMedSAM prepare images without a fixed scale, such as MR.
    """
    above = channel[channel > 0]
    low, high = np.percentile(above if above.size else channel, (0.5, 99.5))
    np.clip(channel, low, high, out=channel)
    channel -= np.float32(low)
    channel /= np.float32(max(high - low, SMALLEST_DIVISOR))


def _rgb_to_0_1(channel: np.ndarray, plan: NormalizationPlan, mask: np.ndarray | None) -> None:
    """Scale 0..255 to 0..1."""
    low, high = float(channel.min()), float(channel.max())
    if low < 0 or high > 255:
        raise ImageError(
            f"rgb_to_0_1 needs intensities within 0..255, got {low:g}..{high:g}. Convert the image to 8 bit, or name "
            'the channel "rescale_to_0_1" in dataset.json.'
        )
    channel /= 255


def _no_norm(channel: np.ndarray, plan: NormalizationPlan, mask: np.ndarray | None) -> None:
    """Leave intensities as they are."""


# Each changes one (Z, Y, X) float32 channel in place. The mask is given if the plan sets `inside_mask`.
Normalizer = Callable[[np.ndarray, NormalizationPlan, np.ndarray | None], None]
NORMALIZERS: dict[str, Normalizer] = {
    "ct": _ct,
    "zscore": _zscore,
    "rescale_to_0_1": _rescale_to_0_1,
    "clip_to_0_1": _clip_to_0_1,
    "quantile_to_0_1": _quantile_to_0_1,
    "percentiles_to_0_1": _percentiles_to_0_1,
    "rgb_to_0_1": _rgb_to_0_1,
    "noNorm": _no_norm,
}
CHOSEN_BY_NAME = {name.casefold(): name for name in NORMALIZERS}
