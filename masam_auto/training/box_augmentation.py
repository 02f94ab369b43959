"""Boxes for training windows: dropped, relaxed and jittered, so that one network works with and without boxes."""

from dataclasses import dataclass

import numpy as np

from masam_auto.core.labels import Labels, is_foreground
from masam_auto.core.plan import NetworkPlan, Range, TrainingPlan
from masam_auto.imaging.crop import bounding_box

NO_BOX = (np.nan,) * 4


@dataclass(frozen=True, kw_only=True, slots=True)
class BoxDraws:
    """How boxes are drawn; see the TrainingPlan. `ignore` is the label value that is no foreground."""

    dropout: float
    relaxation: Range
    jitter: float
    ignore: int | None


def box_draws(network: NetworkPlan, training: TrainingPlan, labels: Labels) -> BoxDraws | None:
    """How a plan draws boxes; None for networks without them."""
    if network.prompt == "none":
        return None
    return BoxDraws(
        dropout=training.box_dropout,
        relaxation=training.box_relaxation,
        jitter=training.box_jitter,
        ignore=labels.ignore,
    )


def draw_box(labels: np.ndarray, draws: BoxDraws, generator: np.random.Generator) -> np.ndarray:
    """Draw the box of one window.

    The tight box encloses the foreground of all classes in all slices of the window. First, all sides move outwards by
    one random share of the box's length along their axis. Then each side moves by another random share. Half of the
    boxes get the lowest relaxation: when drawn evenly, tight boxes were rare and segmented poorly.

    Args:
        labels: (N, H, W) label values on the canvas, as the network is shown them.
        draws: chances and ranges.
        generator: the only source of randomness; the draws do not depend on the labels.

    Returns:
        (4,) float32 x0, y0, x1, y1 in canvas pixels, measured from the canvas's edge; within the canvas and not empty.
        Not-a-number if the box is dropped or there is no foreground.
    """
    dropped = generator.random() < draws.dropout
    lowest, highest = draws.relaxation
    relaxation = lowest + (highest - lowest) * max(0.0, generator.uniform(-1, 1))
    jitter = generator.uniform(-draws.jitter, draws.jitter, 4)
    tight = bounding_box(is_foreground(labels, draws.ignore))
    if dropped or tight is None:
        return np.array(NO_BOX, dtype=np.float32)
    _, (top, bottom), (left, right) = tight
    low, high = np.array([left, top], dtype=np.float64), np.array([right, bottom], dtype=np.float64)
    sides = high - low
    low -= sides * (relaxation + jitter[:2])
    high += sides * (relaxation + jitter[2:])
    canvas = labels.shape[:0:-1]  # width, height
    return np.concatenate([np.maximum(low, 0), np.minimum(high, canvas)]).astype(np.float32)
