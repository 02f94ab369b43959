"""How each channel is normalised."""

from collections.abc import Sequence
from typing import Literal

from masam_auto.core.fingerprint import Fingerprint
from masam_auto.core.plan import NormalizationPlan
from masam_auto.imaging.normalize import choose_scheme

MASK_BELOW = 0.75  # Source: nnU-Net v2, `determine_whether_to_use_mask_for_norm`


# For encoders whose weights were trained on pixels in 0..1: the same clipping, other scaling.
IN_0_1 = {"ct": "clip_to_0_1", "zscore": "percentiles_to_0_1"}


def choose_normalization(
    fingerprint: Fingerprint, pixels: Literal["zscore", "unit"] = "zscore"
) -> tuple[NormalizationPlan, ...]:
    """Choose each channel's scheme by its name, and by the scale that an encoder's weights were trained on.

    Source: nnU-Net v2, also for z-scores inside a mask on mostly empty images; 0..1: LiteMedSAM.
    """
    inside = fingerprint.median_relative_size_after_cropping < MASK_BELOW
    plans = []
    for channel, statistics in zip(fingerprint.channel_names, fingerprint.intensities, strict=True):
        scheme = choose_scheme(channel)
        scheme = IN_0_1.get(scheme, scheme) if pixels == "unit" else scheme
        plans.append(
            NormalizationPlan(
                scheme=scheme,
                inside_mask=inside and scheme == "zscore",
                mean=statistics.mean,
                std=statistics.std,
                lower=statistics.percentile_00_5,
                upper=statistics.percentile_99_5,
            )
        )
    return tuple(plans)


def normalization_reason(fingerprint: Fingerprint, plans: Sequence[NormalizationPlan]) -> str:
    """One sentence that says how each channel is normalised."""
    parts = []
    for name, plan in zip(fingerprint.channel_names, plans, strict=True):
        if plan.scheme == "ct":
            how = (
                f"clipped to {plan.lower:.4g}..{plan.upper:.4g}, then mean {plan.mean:.4g} and deviation {plan.std:.4g}"
            )
            parts.append(f'"{name}": {how} of the data set\'s foreground')
        elif plan.scheme == "zscore":
            parts.append(
                f'"{name}": z-score of each volume' + (" inside its non-zero part" if plan.inside_mask else "")
            )
        elif plan.scheme == choose_scheme(name):
            parts.append(f'"{name}": {plan.scheme}, by its name')
        else:
            parts.append(f'"{name}": {plan.scheme}, because the encoder\'s weights were trained on pixels in 0..1')
    kept = fingerprint.median_relative_size_after_cropping
    return "; ".join(parts) + f" (cropping to non-zero keeps {kept:.0%} of the median volume)"
