"""augmentation.png: what the network sees in training, drawn once before the first epoch."""

import logging
from pathlib import Path

import numpy as np

from masam_auto.core.labels import Labels
from masam_auto.imaging.picture import WindowPanel, draw_windows
from masam_auto.training.sampling import CaseStore, Sampling, draw_window, make_boxes, make_window, window_generator

logger = logging.getLogger(__name__)

PICTURE_NAME = "augmentation.png"
WINDOWS = 12


def draw_augmented_windows(folder: Path, sampling: Sampling, labels: Labels, *, title: str) -> None:
    """Draw the middle slices of the first training windows and save the picture.

    A failed picture must not stop a training, so any error becomes a line in the log.

    Args:
        folder: where augmentation.png goes.
        sampling: of the training, with its augmentation and boxes.
        labels: names of the values.
        title: a line above the picture.
    """
    store = CaseStore(cases=sampling.cases, memory=0)
    try:
        panels = [_panel(sampling, store, number) for number in range(WINDOWS)]
        draw_windows(folder / PICTURE_NAME, panels, names=names_of_values(labels), title=title)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        logger.warning("%s could not be drawn (%s); the training continues without it", folder / PICTURE_NAME, reason)


def names_of_values(labels: Labels) -> dict[int, str]:
    """A name for each label value except the background: its class or its regions; the ignore label is last."""
    holding: dict[int, list[str]] = {}
    for name, values in labels.foreground.items():
        for value in values:
            holding.setdefault(value, []).append(name)
    found = {value: " + ".join(holding[value]) for value in sorted(holding) if value != 0}
    return found if labels.ignore is None else {**found, labels.ignore: "ignore"}


def _panel(sampling: Sampling, store: CaseStore, number: int) -> WindowPanel:
    """The middle slice of window `number` of the first epoch, as it is trained on."""
    image, labels = make_window(store, sampling, 0, number)
    draw = draw_window(sampling, store.locations, window_generator(sampling, 0, number))
    middle = len(labels) // 2
    box = None
    if sampling.boxes is not None:
        x0, y0, x1, y1 = make_boxes(labels, sampling, 0, number)[middle].tolist()
        box = None if np.isnan(x0) else (x0, y0, x1, y1)
    return WindowPanel(
        title=f"{sampling.cases[draw.case].identifier[:28]}, slice {draw.start + middle}",
        image=_as_colours(image[middle].numpy()),
        labels=labels[middle].numpy(),
        box=box,
    )


def _as_colours(image: np.ndarray) -> np.ndarray:
    """(C, H, W) to the first channel (H, W), or with three or more to red, green and blue (H, W, 3)."""
    return image[0] if len(image) < 3 else np.moveaxis(image[:3], 0, -1)
