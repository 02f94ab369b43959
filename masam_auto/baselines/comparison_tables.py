"""A comparison as Markdown."""

import math
import statistics
from collections.abc import Mapping, Sequence

from masam_auto.baselines.paired import LEVEL, RESAMPLES, PairedDifference
from masam_auto.baselines.results import MEAN, SHOWN, TOLERANCE, Result
from masam_auto.core.summary import mean_of_known
from masam_auto.evaluation.evaluate import Scoring

DIGITS = {"Dice": 4, "HD95_mm": 2, "NSD": 4}
UNITS = {"Dice": "Dice", "HD95_mm": "HD95, mm", "NSD": f"NSD at {Scoring().tolerance:g} mm"}


def describe_comparison(
    results: Sequence[Result],
    found: Mapping[str, Mapping[str, PairedDifference]],
    heading: Sequence[str],
    pictures: Sequence[str],
) -> str:
    """The whole comparison.

    Args:
        results: ours first.
        found: method -> class or "mean" -> our Dice minus its Dice.
        heading: a title, and lines that say what was compared.
        pictures: files in the folder of the text.
    """
    title, *lines = heading
    parts = [
        f"# {title}",
        "\n".join(lines),
        "## Accuracy",
        score_table(results, found),
        f"Ours minus theirs: mean over the cases. In brackets: its {LEVEL:.0%} interval from {RESAMPLES:,} bootstrap "
        "resamples of the cases. p: Wilcoxon's signed-rank test, two-sided, not corrected for several tests. Interval "
        "and p describe the variation between cases, not between trainings of one method. (n) is the number of cases "
        "with a value, if some have none: a distance needs both masks, a Dice at least one. The difference leaves out "
        "cases where either method has no value, and counts the frames of a video as one case.",
        "## Cost",
        cost_table(results),
        agreement(results),
        "## Cases, mean Dice over the classes",
        case_table(results),
        *(f"![{picture}]({picture})" for picture in pictures),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def score_table(results: Sequence[Result], found: Mapping[str, Mapping[str, PairedDifference]]) -> str:
    """One row per class and method: Dice, HD95, NSD, and our Dice minus the method's."""
    labels = list(next(iter(results[0].scores.values())))
    header = ["class", "method", *(UNITS[metric] for metric in SHOWN), "Dice, ours minus it", "p"]
    rows = []
    for label in labels:
        for result in results:
            paired = found.get(result.name, {}).get(label)
            row = [label, result.name, *(_mean(result.values(label, metric), DIGITS[metric]) for metric in SHOWN)]
            rows.append([*row, *_paired(paired)])
    return _table(header, rows)


def cost_table(results: Sequence[Result]) -> str:
    """One row per method: the cost of training and prediction."""
    header = [
        "method",
        "training, s",
        "CPU-s",
        "iterations",
        "batch",
        "parameters that learn, millions",
        "peak memory, GiB",
        "a case, s",
        "CPU-s",
        "remarks",
    ]
    rows = []
    for result in results:
        training, prediction = result.training, result.prediction
        rows.append(
            [
                result.name,
                f"{training.seconds:.0f}",
                f"{training.cpu_seconds:.0f}",
                f"{training.iterations:,}",
                f"{training.batch}",
                f"{training.parameters / 1e6:.2f}",
                f"{training.memory_gib:.2f}",
                f"{statistics.median(prediction.seconds.values()):.2f}",
                f"{statistics.median(prediction.cpu_seconds.values()):.2f}",
                "; ".join(training.remarks),
            ]
        )
    note = "Times per case are medians, from the raw image to the written segmentation."
    places: dict[str, list[str]] = {}
    for result in results:
        places.setdefault(result.hardware or "hardware not recorded", []).append(result.name)
    where = "; ".join(f"{', '.join(names)}: {place}" for place, names in places.items())
    return f"{_table(header, rows)}\n\n{note} Computed on: {next(iter(places)) if len(places) == 1 else where}."


def agreement(results: Sequence[Result]) -> str:
    """How far the two evaluations agree on the same predictions."""
    known = {result.name: result.disagreement for result in results if result.disagreement is not None}
    if not known:
        return "Scored only by masam_evaluate; nnU-Net's evaluation was not available."
    who = "All predictions" if len(known) == len(results) else f"The predictions of {', '.join(known)}"
    largest = max(known.values())
    verdict = (
        ""
        if largest <= TOLERANCE
        else " **They do not agree**: compare the methods' summary.json and nnunet_summary.json."
    )
    return (
        f"{who} were scored by masam_evaluate and by the function behind nnUNetv2_evaluate_folder. Their Dice of a "
        f"case and class differ by {largest:.1g} at most.{verdict}"
    )


def case_table(results: Sequence[Result]) -> str:
    """One row per case: the mean Dice of each method."""
    rows = [
        [case, *(_number(result.scores[case][MEAN]["Dice"], DIGITS["Dice"]) for result in results)]
        for case in sorted(results[0].scores)
    ]
    return _table(["case", *(result.name for result in results)], rows)


def _paired(paired: PairedDifference | None) -> list[str]:
    if paired is None or paired.mean is None or paired.p_value is None:
        return ["", ""]
    p_value = f"{paired.p_value:.2g}" if paired.p_value >= 1e-4 else f"{paired.p_value:.0e}"
    interval = "" if paired.low is None or paired.high is None else f" [{paired.low:+.4f}, {paired.high:+.4f}]"
    return [f"{paired.mean:+.4f}{interval}", p_value]


def _mean(values: Sequence[float], digits: int) -> str:
    known = sum(not math.isnan(value) for value in values)
    return _number(mean_of_known(values), digits) + (f" ({known})" if known < len(values) else "")


def _number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]  # names may hold a pipe
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)
