"""How many neighbouring slices a window has (N), and how prediction goes along the slices."""

from typing import Literal

from masam_auto.core.encoders import PlannedEncoder
from masam_auto.core.fingerprint import Fingerprint

CONTEXT_MM = 15.0  # Source: MA-SAM's five slices at about 3 mm
VIDEO_WINDOW = 5  # Source: MA-SAM


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
            f"the whole depth as one window: each slice is encoded once, and after windows of {least} or more slices "
            "it is as accurate as overlapping ones (measured)"
        )
    return "windows", (
        f"overlapping windows of {window} slices, as in training: the whole depth at once is less accurate after "
        f"windows of fewer than {least} slices (measured)"
    )
