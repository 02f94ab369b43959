"""The results of each epoch: metrics.jsonl and a picture."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from masam_auto.core.atomic import write_bytes
from masam_auto.core.errors import PlanError
from masam_auto.core.jsonio import decode, parse_json, to_plain
from masam_auto.models.checkpoint import EpochSoFar, TrainingState

SMOOTHING = 0.9
FEW_EPOCHS = 10  # have larger points in the picture


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochMetrics:
    """One line of metrics.jsonl.

    `dice` is by class: of the averaged weights on a fixed set of validation windows, all voxels counted together; None
    if neither truth nor prediction has the class. `wait_share` is the share of time spent waiting for data. `seconds`
    and `cpu_seconds` (all processes) count from the start of training. `memory_gib` is the peak, of the GPU if there is
    one. `seconds_left` is the present estimate. `ended` says why the training ended early.
    """

    epoch: int
    step: int
    learning_rate: float
    loss: float
    dice: dict[str, float | None]
    mean_dice: float | None
    smoothed_dice: float | None
    windows_per_second: float
    wait_share: float
    seconds: float
    cpu_seconds: float
    memory_gib: float
    seconds_left: float | None = None
    ended: str | None = None


def mean_of_classes(dice: dict[str, float | None]) -> float | None:
    """Mean over the classes that could be judged, or None."""
    known = [value for value in dice.values() if value is not None]
    return sum(known) / len(known) if known else None


def smooth_dice(before: float | None, now: float | None, judged: int) -> float | None:
    """Running mean over epochs, used to choose the best checkpoint; `judged` epochs including `now`.

    An epoch's weight falls by 0.9 per epoch, and all weights sum to 1 from the first epoch on. So the first epochs are
    soon forgotten. When the mean started at the first epoch's Dice, the best epoch of short trainings was always the
    last.

    Source: nnU-Net's 0.9 and 0.1; the sum to 1 is Adam's correction of bias.
    """
    if before is None or now is None:
        return before if now is None else now
    return before + (1 - SMOOTHING) / (1 - SMOOTHING**judged) * (now - before)


def advance(
    state: TrainingState, dice: dict[str, float | None], *, wall: float, cpu: float, finished: bool
) -> tuple[TrainingState, bool]:
    """The state after all steps of an epoch and their validation, and whether it is the best so far.

    `wall` and `cpu` are the seconds used since the start of training.
    """
    present = mean_of_classes(dice)
    # older states do not record how many epochs could be judged; nearly always all of them
    before = state.judged if state.judged is not None else state.epoch * (state.smoothed_dice is not None)
    judged = before + (present is not None)
    smoothed = smooth_dice(state.smoothed_dice, present, judged)
    best = state.best_dice is None or (smoothed is not None and smoothed > state.best_dice)
    advanced = replace(
        state,
        epoch=state.epoch + 1,
        unfinished=EpochSoFar(),
        wall_seconds=wall,
        cpu_seconds=cpu,
        finished=finished,
        smoothed_dice=smoothed,
        judged=judged,
        best_dice=smoothed if best else state.best_dice,
        best_epoch=state.epoch + 1 if best else state.best_epoch,
    )
    return advanced, best


def seconds_left(seconds: float, progress: float) -> float | None:
    """How long the rest takes, when a share `progress` of the training took `seconds`; None where that is unknown."""
    return seconds / progress * (1 - progress) if 0 < progress <= 1 else None


def describe(metrics: EpochMetrics, *, best: bool) -> str:
    """One line for the log."""
    values = ", ".join(f"{name} {_rounded(value)}" for name, value in metrics.dice.items())
    left = "?" if metrics.seconds_left is None else duration(metrics.seconds_left)
    return (
        f"epoch {metrics.epoch}: loss {metrics.loss:.4f}, Dice {_rounded(metrics.mean_dice)} "
        f"({values}){', best so far (smoothed)' if best else ''}, learning rate {metrics.learning_rate:.2g}, "
        f"{metrics.windows_per_second:.1f} windows/s, waiting for data {100 * metrics.wait_share:.1f} %, peak memory "
        f"{metrics.memory_gib:.2g} GiB, after {duration(metrics.seconds)}, {left} left"
    )


def read_metrics(path: Path, *, epochs: int) -> list[EpochMetrics]:
    """The lines of the first `epochs` epochs; from a missing or damaged file, those that can be read."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            metrics = decode(parse_json(line), EpochMetrics, where=str(path))
        except (ValueError, PlanError):
            break
        if metrics.epoch < epochs:
            found.append(metrics)
    return found


def write_metrics(path: Path, metrics: Sequence[EpochMetrics]) -> None:
    """Rewrite all of metrics.jsonl, so that a killed run leaves no half line."""
    lines = [json.dumps(to_plain(entry), ensure_ascii=False) for entry in metrics]
    write_bytes(path, ("\n".join(lines) + "\n").encode())


def draw_progress(path: Path, metrics: Sequence[EpochMetrics], *, title: str) -> None:
    """Draw loss, Dice by class and learning rate over the epochs as a PNG."""
    figure = Figure(figsize=(8, 9), layout="constrained")
    FigureCanvasAgg(figure)
    loss, dice, rate = figure.subplots(3, 1, sharex=True, height_ratios=(2, 3, 1))
    epochs = [entry.epoch for entry in metrics]
    marker = "." if len(epochs) > FEW_EPOCHS else "o"  # a line needs two points, and one epoch has only one
    loss.plot(epochs, [entry.loss for entry in metrics], color="tab:blue", marker=marker)
    _label(loss, "training loss")
    for name in metrics[-1].dice:
        values = [entry.dice.get(name) for entry in metrics]
        dice.plot(
            epochs, [math.nan if value is None else value for value in values], label=name, alpha=0.7, marker=marker
        )
    smoothed = [math.nan if entry.smoothed_dice is None else entry.smoothed_dice for entry in metrics]
    dice.plot(epochs, smoothed, color="black", linewidth=2, label="mean, smoothed", marker=marker)
    dice.set_ylim(0, 1)
    dice.legend(loc="best", fontsize="small", ncols=2)
    _label(dice, "Dice on validation windows")
    rate.plot(epochs, [entry.learning_rate for entry in metrics], color="tab:grey", marker=marker)
    _label(rate, "learning rate")
    rate.set_xlabel("epoch")
    rate.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(epochs) == 1:
        rate.set_xlim(epochs[0] - 1, epochs[0] + 1)
    figure.suptitle(title)
    picture = BytesIO()
    figure.savefig(picture, format="png", dpi=100)
    write_bytes(path, picture.getvalue())


def _label(axes: Axes, text: str) -> None:
    axes.set_ylabel(text)
    axes.grid(visible=True, alpha=0.3)


def _rounded(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours in words."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
