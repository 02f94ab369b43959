"""Pictures for people: slices of a volume with reference and prediction drawn on them, and training windows."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from skimage.segmentation import find_boundaries

from masam_auto.core.atomic import atomic_path

VIVID, MANY = "Set1", "tab20"  # matplotlib's palettes: nine strong colours, twenty for more classes


def choose_slices(labels: np.ndarray, count: int) -> tuple[int, ...]:
    """Slices worth looking at: where each class is largest, rare classes first, then evenly spread foreground slices.

    Args:
        labels: (Z, Y, X) whole numbers, 0 is background.
        count: the largest number of slices.

    Returns:
        Slice numbers, ascending; fewer than `count` if fewer slices contain a class. Without any foreground, the
        middle slice.
    """
    values, sizes = np.unique(labels[labels > 0], return_counts=True)
    if len(values) == 0:
        return (labels.shape[0] // 2,)
    rare_first = values[np.argsort(sizes, kind="stable")]
    held = np.flatnonzero((labels > 0).any(axis=(1, 2)))
    spread = held[np.linspace(0, len(held) - 1, count).round().astype(int)]
    largest = [int((labels == value).sum(axis=(1, 2)).argmax()) for value in rare_first]
    return tuple(sorted(list(dict.fromkeys([*largest, *spread.tolist(), *held.tolist()]))[:count]))


def draw_overlay(
    path: Path,
    image: np.ndarray,
    reference: np.ndarray,
    prediction: np.ndarray,
    *,
    names: Mapping[int, str],
    pixel_aspect: float = 1.0,
    columns: int = 5,
    title: str = "",
) -> None:
    """Like `draw_overlays`, with the reference above and one prediction below."""
    rows = {"reference": reference, "prediction": prediction}
    draw_overlays(path, image, rows, names=names, pixel_aspect=pixel_aspect, columns=columns, title=title)


def draw_overlays(
    path: Path,
    image: np.ndarray,
    rows: Mapping[str, np.ndarray],
    *,
    names: Mapping[int, str],
    pixel_aspect: float = 1.0,
    columns: int = 5,
    title: str = "",
) -> None:
    """Write a PNG of several segmentations of one image, one below the other, in colour over a few slices.

    Args:
        path: the PNG file.
        image: (Z, Y, X) grey values, shown between the 1st and 99th percentile of the surroundings of the classes.
        rows: title -> (Z, Y, X) label values. The first is the reference and decides on the slices.
        names: label value -> name, for the legend.
        pixel_aspect: height of a pixel over its width (spacing Y / spacing X).
        columns: the largest number of slices.
        title: a line above the picture.

    Raises:
        OutputError: the file cannot be written.
    """
    # Slow to import. It draws only to a file: no window system is used.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    reference = next(iter(rows.values()))
    slices = choose_slices(reference, columns)
    low, high = _grey_range(image, reference)
    colours = _colours(names)
    height = 2.05 * len(rows) + 0.8
    figure = Figure(figsize=(2.1 * max(len(slices), 3), height), dpi=80, facecolor="black")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), len(slices), squeeze=False)
    for row, (word, labels) in enumerate(rows.items()):
        for column, number in enumerate(slices):
            axis = axes[row, column]
            axis.imshow(image[number], cmap="gray", vmin=low, vmax=high, aspect=pixel_aspect)
            axis.imshow(_painted(labels[number], colours), aspect=pixel_aspect, interpolation="nearest")
            words = [word] if column == 0 else []
            words += [f"slice {number}"] if row == 0 else []
            # a long word extends over the next columns, not out of the picture
            axis.set_title(", ".join(words), color="white", fontsize=8, loc="left" if column == 0 else "center")
            axis.axis("off")
    figure.legend(
        handles=[Patch(color=colours[value][:3], label=name) for value, name in names.items()],
        loc="lower center",
        ncol=6,
        fontsize=8,
        frameon=False,
        labelcolor="white",
    )
    # the default position, a share of the height, would be among the slices of a tall picture
    figure.suptitle(title, y=1 - 0.1 / height, color="white", fontsize=10)
    figure.subplots_adjust(left=0.01, right=0.99, top=1 - 0.59 / height, bottom=0.44 / height, wspace=0.04, hspace=0.12)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", facecolor="black")


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowPanel:
    """One slice of a training window: image (H, W) or (H, W, 3), labels (H, W), and its box x0, y0, x1, y1 in px."""

    title: str
    image: np.ndarray
    labels: np.ndarray
    box: tuple[float, float, float, float] | None = None


def draw_windows(
    path: Path, panels: Sequence[WindowPanel], *, names: Mapping[int, str], columns: int = 3, title: str = ""
) -> None:
    """Write a PNG of at most about 1500 px a side: each window's image, and next to it the same with its labels.

    Args:
        path: the PNG file.
        panels: at least one, at most about a dozen.
        names: label value -> name, for colours and legend.
        columns: windows in a row.
        title: a line above the picture.

    Raises:
        OutputError: the file cannot be written.
    """
    # Slow to import. It draws only to a file: no window system is used.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    colours = _colours(names)
    height, width = panels[0].labels.shape
    cell = min(2.4, 3.3 * width / height), min(2.4 * height / width, 3.3)
    size = (max(2 * columns * cell[0], 4.0), rows * (cell[1] + 0.25) + 0.9)
    figure = Figure(figsize=size, dpi=100, facecolor="black")
    FigureCanvasAgg(figure)
    bottom, top = 0.45 / size[1], 1 - 0.4 / size[1]
    for number in range(len(panels)):
        row, column = divmod(number, columns)
        step = (top - bottom) / rows
        for side in (0, 1):
            left = (2 * column + side + 0.02 + 0.03 * (1 - side)) / (2 * columns)
            axis = figure.add_axes(
                (left, top - (row + 1) * step, 0.93 / (2 * columns), step * cell[1] / (cell[1] + 0.25))
            )
            _draw_panel(axis, panels[number], colours if side else {})
    handles = [Patch(color=colours[value][:3], label=name) for value, name in names.items()]
    figure.legend(handles=handles, loc="lower center", ncol=6, fontsize=9, frameon=False, labelcolor="white")
    figure.suptitle(title, color="white", fontsize=10, y=1 - 0.1 / size[1], va="top")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", facecolor="black")


def _draw_panel(axis: Any, panel: WindowPanel, colours: Mapping[int, tuple[float, float, float, float]]) -> None:
    """Without colours, draw only the image under its title. With colours, draw the labels over it, and the box."""
    shown = _shown(panel.image)
    if colours:
        painted = _painted(panel.labels, colours)
        opacity = painted[..., 3:]
        shown = shown * (1 - opacity) + painted[..., :3] * opacity
    else:
        axis.set_title(panel.title, color="white", fontsize=8, pad=3, loc="left")
    axis.imshow(shown)
    if colours and panel.box is not None:
        x0, y0, x1, y1 = (value - 0.5 for value in panel.box)  # for imshow, pixel centres are whole numbers
        axis.plot((x0, x1, x1, x0, x0), (y0, y0, y1, y1, y0), color="white", linewidth=1.2, linestyle="--")
        axis.set_xlim(-0.5, panel.labels.shape[1] - 0.5)
        axis.set_ylim(panel.labels.shape[0] - 0.5, -0.5)
    axis.axis("off")


def _shown(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) within 0..1: each channel scaled from its 0.5 to its 99.5 percentile; a constant one is black."""
    channels = image[..., None] if image.ndim == 2 else image
    low, high = np.percentile(channels, (0.5, 99.5), axis=(0, 1))
    scaled = np.clip((channels - low) / np.maximum(high - low, 1e-6), 0, 1)
    return np.broadcast_to(scaled, (*image.shape[:2], 3)).astype(np.float32)


def _grey_range(image: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """The grey range of the classes and their surroundings, so that air and metal do not set the scale."""
    inside = image[labels > 0] if (labels > 0).any() else image
    low, high = np.percentile(inside, (1, 99))
    margin = max(float(high - low), 1e-6) * 0.6
    return float(low) - margin, float(high) + margin / 2


def _colours(names: Mapping[int, str]) -> dict[int, tuple[float, float, float, float]]:
    from matplotlib import colormaps  # heavy

    palette = colormaps[VIVID if len(names) <= 9 else MANY]
    return {value: (*palette(index % palette.N)[:3], 0.45) for index, value in enumerate(names)}


def _painted(labels: np.ndarray, colours: Mapping[int, tuple[float, float, float, float]]) -> np.ndarray:
    """(Y, X, 4) transparent colours with a firm outline."""
    painted = np.zeros((*labels.shape, 4), dtype=np.float32)
    for value, colour in colours.items():
        painted[labels == value] = colour
    outline = find_boundaries(np.pad(labels, 1), mode="inner")[1:-1, 1:-1]
    painted[outline & (painted[..., 3] > 0), 3] = 0.95
    return painted
