"""Tables that commands print."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from masam_auto.core.labels import Labels
from masam_auto.core.summary import summary_key

SHOWN = ("Dice", "IoU", "HD95_mm", "NSD", "lesion_F1")
SUBSETS = {"groups": "group", "sequences": "sequence"}


def print_summary(summary: Mapping[str, Any], labels: Labels) -> None:
    """Print the mean metrics of each class and of the foreground, and of sites and videos if there are any.

    Args:
        summary: as in summary.json: "mean" by class, "foreground_mean", "metric_per_case"; "groups" and "sequences".
        labels: names of the classes.
    """
    names = {summary_key(values): name for name, values in labels.foreground.items()}
    columns = [name for name in SHOWN if any(name in values for values in summary["mean"].values())]
    rows = [[names.get(key, key), *_cells(values, columns)] for key, values in summary["mean"].items()]
    rows.append(["mean", *_cells(summary["foreground_mean"], columns)])
    print_table(["class", *columns], rows)
    print(f"over {len(summary['metric_per_case'])} cases")
    for kind, title in SUBSETS.items():
        if kind in summary:
            rows = [
                [name, str(values["cases"]), *_cells(values["foreground_mean"] | values, [*columns, "mIoU"])]
                for name, values in summary[kind].items()
            ]
            print_table([title, "cases", *columns, "mIoU"], rows)
    if "sequences" in summary:
        print(
            "mIoU over all frames: {} ({} with background)".format(*_cells(summary, ["mIoU", "mIoU_with_background"]))
        )


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows in columns, the first one left-aligned, the others right-aligned."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        cells = [
            line[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)),
        ]
        print("  ".join(cells))


def _cells(values: Mapping[str, Any], columns: Sequence[str]) -> list[str]:
    numbers = [values.get(name, math.nan) for name in columns]
    return ["-" if number is None or math.isnan(number) else f"{number:.4f}" for number in numbers]
