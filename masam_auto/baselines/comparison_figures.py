"""Pictures of a comparison: box plots, Dice against training time, and single cases side by side."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from masam_auto.baselines.paired import bootstrap_interval, case_means
from masam_auto.baselines.results import MEAN, Result
from masam_auto.core.atomic import atomic_path
from masam_auto.core.dataset import Case, DatasetDescription
from masam_auto.core.summary import mean_of_known
from masam_auto.formats.io import read_case, read_labels
from masam_auto.imaging.picture import draw_overlays

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_boxes(path: Path, results: Sequence[Result]) -> None:
    """Dice of the cases: one box per method, one panel per class, and one panel for the mean."""
    labels = list(next(iter(results[0].scores.values())))

    def draw(panels: "Sequence[Axes]") -> None:
        for label, axes in zip(labels, panels, strict=True):
            values = [[value for value in result.values(label, "Dice") if not math.isnan(value)] for result in results]
            axes.boxplot(values, showmeans=True)
            axes.set_xticks(range(1, len(results) + 1), [result.name for result in results], rotation=30, ha="right")
            axes.set_title(label)
            axes.grid(visible=True, axis="y", alpha=0.3)
        panels[0].set_ylabel("Dice")

    _draw(path, draw, panels=len(labels), width=max(2.6, 0.75 * len(results)))


def draw_time(path: Path, results: Sequence[Result], case_of: Mapping[str, str]) -> None:
    """Mean Dice, with its bootstrap interval over the cases, against CPU-seconds and wall clock of the training."""
    cases = [case_of[name] for name in sorted(results[0].scores)]

    def draw(panels: "Sequence[Axes]") -> None:
        for axes, unit in zip(panels, ("CPU-seconds", "seconds of wall clock"), strict=True):
            for number, result in enumerate(results):
                used = result.training.cpu_seconds if unit == "CPU-seconds" else result.training.seconds
                values = case_means(np.asarray(result.values(MEAN, "Dice")), cases)
                if not len(values):
                    continue
                low, high = bootstrap_interval(values, seed=0)
                mean = values.mean()
                bars = None if low is None or high is None else [[mean - low], [high - mean]]
                axes.errorbar(used, mean, yerr=bars, fmt="o", capsize=4, color=f"C{number}", label=result.name)
            axes.set_xlabel(f"training, {unit}")
            axes.set_xlim(0, 1.1 * axes.get_xlim()[1])
            axes.grid(visible=True, alpha=0.3)
        panels[0].set_ylabel("mean Dice")
        panels[1].legend(fontsize="small", loc="center left", bbox_to_anchor=(1.02, 0.5))

    _draw(path, draw, panels=2, width=5.0)


def draw_extremes(
    folder: Path, results: Sequence[Result], cases: Sequence[Case], description: DatasetDescription, ending: str
) -> list[str]:
    """Draw the best and the worst case of the first method, with the reference and every method's segmentation.

    Returns:
        Names of the pictures in the folder; none if no case has a Dice.
    """
    dice = {name: scores[MEAN]["Dice"] for name, scores in results[0].scores.items()}
    known = sorted((value, name) for name, value in dice.items() if not math.isnan(value))
    chosen = {"worst": known[0][1], "best": known[-1][1]} if known else {}
    owner = {frame: case for case in cases for frame in case.frames}
    for word, name in chosen.items():
        case = owner[name]
        image, geometry = read_case(case, description)
        number = case.frames.index(name)
        assert case.labels is not None
        rows = {"reference": read_labels(case.labels[number])[0]}
        for result in results:
            score = mean_of_known([result.scores[name][MEAN]["Dice"]])
            rows[f"{result.name} {score:.3f}"] = read_labels(folder / result.name / "predictions" / f"{name}{ending}")[
                0
            ]
        shown = image[0, number : number + 1] if case.is_sequence else image[0]
        names = {values[0]: label for label, values in description.labels.foreground.items()}
        draw_overlays(
            folder / f"case_{word}.png",
            shown,
            rows,
            names=names,
            pixel_aspect=geometry.spacing[1] / geometry.spacing[2],
            columns=4,
            title=f"{word} case of {results[0].name}: {name}; mean Dice behind the methods' names",
        )
    return [f"case_{word}.png" for word in chosen]


def _draw(path: Path, draw: "Callable[[Sequence[Axes]], None]", *, panels: int, width: float) -> None:
    """Write a PNG of panels side by side, at most six in a row."""
    # Imported here because it is slow. Agg draws to a file and needs no window system.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(panels, 6)
    rows = math.ceil(panels / columns)
    figure = Figure(figsize=(width * columns + 0.5, 4 * rows), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    draw(axes[:panels])
    for unused in axes[panels:]:
        unused.axis("off")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
