"""Pictures for people: slices of a volume with reference and prediction drawn over them."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from masam_auto.core.jsonio import atomic_path

VIVID, MANY = "Set1", "tab20"  # matplotlib's palettes: nine strong colours, twenty for more classes


def choose_slices(labels: np.ndarray, count: int) -> tuple[int, ...]:
    """Slices worth a look: where each class is largest, rare classes first, then evenly spread foreground slices.

    Args:
        labels: (Z, Y, X) whole numbers, 0 is background.
        count: how many slices at most.

    Returns:
        Slice numbers, ascending; fewer than `count` where fewer slices hold a class. Without any foreground, the
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
    """Write a PNG: reference above, prediction below, classes in colour over a few slices.

    Args:
        path: the PNG file.
        image: (Z, Y, X) grey values; shown between the 1st and 99th percentile of the surroundings of the classes.
        reference: (Z, Y, X) label values.
        prediction: (Z, Y, X) label values.
        names: label value -> name, for the legend.
        pixel_aspect: height of a pixel over its width (spacing Y / spacing X).
        columns: number of slices at most.
        title: a line above the picture.

    Raises:
        OutputError: the file cannot be written.
    """
    # Heavy, and drawn to a file only: no window system is touched.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    slices = choose_slices(reference, columns)
    low, high = _grey_range(image, reference)
    colours = _colours(names)
    figure = Figure(figsize=(2.1 * max(len(slices), 3), 4.9), dpi=80, facecolor="black")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(slices), squeeze=False)
    for row, (word, labels) in enumerate((("reference", reference), ("prediction", prediction))):
        for axis, number in zip(axes[row], slices, strict=True):
            axis.imshow(image[number], cmap="gray", vmin=low, vmax=high, aspect=pixel_aspect)
            axis.imshow(_painted(labels[number], colours), aspect=pixel_aspect, interpolation="nearest")
            axis.set_title(f"{word}, slice {number}", color="white", fontsize=8)
            axis.axis("off")
    figure.legend(
        handles=[Patch(color=colours[value][:3], label=name) for value, name in names.items()],
        loc="lower center", ncol=6, fontsize=8, frameon=False, labelcolor="white",
    )  # fmt: skip
    figure.suptitle(title, color="white", fontsize=10)
    figure.subplots_adjust(left=0.01, right=0.99, top=0.88, bottom=0.09, wspace=0.04, hspace=0.12)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", facecolor="black")


def _grey_range(image: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Grey values that show the classes and what surrounds them; air and metal must not set the scale."""
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
        inside = labels == value
        painted[inside] = colour
        painted[inside & ~_eroded(inside), 3] = 0.95
    return painted


def _eroded(inside: np.ndarray) -> np.ndarray:
    padded = np.pad(inside, 1)
    return padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
