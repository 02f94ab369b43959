"""How many neighbouring slices a window has (N), and how prediction moves along the slices."""

from dataclasses import replace
from typing import Literal

from masam_auto.core.fingerprint import Fingerprint
from masam_auto.core.plan import BY_HAND, Plan
from masam_auto.planning.planned_encoders import PlannedEncoder, planned_encoder

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

    Source: measured (documentation/log.md): vit_t lost up to 0.19 Dice with the whole depth after windows of 3 and 5
    slices, and nothing after 9 and 15; a SAM-shaped network lost nothing after 5, and LiteMedSAM nothing after 3.
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


def stride_reason(window: int, depth: str) -> str:
    """Why windows follow one another by half of their length."""
    return f"half of the window of {window} slices" + ("" if depth == "windows" else "; used only with depth=windows")


def with_depth(plan: Plan, window: int) -> Plan:
    """The plan with the inference depth and slice stride that suit another window length, unless set by hand."""
    by_hand = {field for field, reason in plan.reasons.items() if reason == BY_HAND}
    depth, reason = choose_depth(window, planned_encoder(plan.network.encoder))
    if "inference.depth" not in by_hand:
        inference = replace(plan.inference, depth=depth)
        plan = replace(plan, inference=inference, reasons=plan.reasons | {"inference.depth": reason})
    if "inference.slice_stride" not in by_hand:
        inference = replace(plan.inference, slice_stride=(window + 1) // 2)
        why = stride_reason(window, plan.inference.depth)
        plan = replace(plan, inference=inference, reasons=plan.reasons | {"inference.slice_stride": why})
    return plan
