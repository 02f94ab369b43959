"""How many neighbouring slices a window has (N), and how prediction moves along the slices."""

from typing import Literal

from masam_auto.core.encoders import PlannedEncoder
from masam_auto.core.fingerprint import Fingerprint

CONTEXT_MM = 15.0  # Source: MA-SAM's five slices at about 3 mm
VIDEO_WINDOW = 5  # Source: MA-SAM


def choose_window(fingerprint: Fingerprint, *, distance: float, depth: int, encoder: PlannedEncoder) -> tuple[int, str]:
    """Choose the window length N of a configuration with several slices: odd, nearest to 15 mm, at least 3.

    Args:
        fingerprint: measurements.
        distance: target spacing across slices, mm.
        depth: median number of slices at the target spacing.
        encoder: sets the longest window.

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
    """Choose how prediction moves along the slices, given the window length used in training.

    In a short window, most slices are near its ends, where the network sees zeros beyond. A network trained on such
    windows has rarely seen a slice with many neighbours on both sides, as in the middle of a whole volume.

    Source: measured (documentation/log.md): vit_t lost up to 0.18 Dice with the whole depth after windows of 3 and 5
    slices, and nothing after 9 and 15; a SAM-shaped network lost nothing after 5.
    """
    least = encoder.whole_from
    if window == 1:
        return "whole", "each slice is predicted alone"
    if window >= least:
        return "whole", (
            f"the whole depth as one window: each slice is encoded once; after training on windows of {least} or more "
            "slices this is as accurate as overlapping windows (measured)"
        )
    return "windows", (
        f"overlapping windows of {window} slices, as in training: the whole depth at once is less accurate after "
        f"training on windows of fewer than {least} slices (measured)"
    )
