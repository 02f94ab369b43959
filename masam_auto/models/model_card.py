"""The model card in Markdown: what a trained model is, how well it did on unseen cases, and what it needs."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from masam_auto.core.dataset import DatasetDescription
from masam_auto.core.plan import Plan
from masam_auto.core.selection import Selection
from masam_auto.core.summary import summary_key
from masam_auto.models.checkpoint import ModelHeader, TrainingState
from masam_auto.models.sam_files import SAM_FILES, published_name
from masam_auto.planning.plan_table import plan_table

UNSTATED = "not stated"
METRICS_SHOWN = {"Dice": "Dice", "NSD": "NSD", "HD95_mm": "HD95, mm"}


@dataclass(frozen=True, kw_only=True, slots=True)
class FoldFacts:
    """What is known about one trained fold.

    `summary` is of its validation: "mean" by class, "foreground_mean", and "cases", their number; None if it was not
    validated.
    """

    fold: int | str
    header: ModelHeader
    state: TrainingState
    summary: Mapping[str, Any] | None


def model_card(
    plan: Plan,
    configuration: str,
    description: DatasetDescription,
    folds: Sequence[FoldFacts],
    *,
    licence: str | None,
    version: str,
    selection: Selection | None = None,
) -> str:
    """The card as Markdown.

    Args:
        plan, configuration, description: of the model.
        folds: at least one.
        licence: of the model.
        version: of masam_auto.
        selection: that the model belongs to, if any.
    """
    name = f"{plan.name}__{configuration}"
    parts = [
        f"# {name} of {_plain(plan.dataset_name)}",
        "A [MA-SAM](https://doi.org/10.1016/j.media.2024.103310) segmentation model, exported by masam_auto "
        f"{version}.",
        *_facts(plan, description, folds, licence),
        *_results(description, folds),
        *(_selected(selection) if selection else []),
        *_training(folds),
        *_needs(folds),
        *_use(plan, configuration, selection),
        *_limits(description),
        "## Plan, with its reasons",
        f"```\n{plan_table(replace(plan, default_configuration=configuration))}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _facts(
    plan: Plan, description: DatasetDescription, folds: Sequence[FoldFacts], licence: str | None
) -> Iterable[str]:
    raw = description.raw
    labels = ", ".join(
        f"{name} ({' + '.join(map(str, values))})" for name, values in description.labels.foreground.items()
    )
    said = {
        "licence of the model": licence or f"{UNSTATED}: ask its author before you use or share it",
        "data set": raw.get("name"),
        "description": raw.get("description"),
        "licence of the data": raw.get("licence", raw.get("license")) or UNSTATED,
        "reference": raw.get("reference"),
        "citation": raw.get("citation"),
        "release": raw.get("release"),
        "channels, in order": ", ".join(description.channel_names),
        "segments (label values)": labels,
        "network": f"encoder {plan.network.encoder}, decoder {plan.network.decoder}, trained: {plan.network.trained}",
        "folds": ", ".join(str(facts.fold) for facts in folds),
    }
    return [_table(("", ""), [(key, _plain(value)) for key, value in said.items() if value])]


def _results(description: DatasetDescription, folds: Sequence[FoldFacts]) -> Iterable[str]:
    """Means of each fold on its validation cases. Fold `all` has none, because it was trained on all cases."""
    names = {summary_key(values): name for name, values in description.labels.foreground.items()}
    validated = [(facts.fold, facts.summary) for facts in folds if facts.summary is not None and facts.fold != "all"]
    yield "## Cross-validation"
    if not validated:
        yield "No fold was validated on cases outside its training, so its accuracy is not known."
        return
    yield (
        "Each fold on its own validation cases, which it was not trained on. Foreground: mean over the classes. NSD "
        "with a tolerance of 2 mm. `-`: no case has a value."
    )
    rows = []
    for key, name in [*names.items(), (None, "foreground")]:
        for metric, title in METRICS_SHOWN.items():
            values = [
                (s["foreground_mean"] if key is None else s["mean"].get(key, {})).get(metric) for _, s in validated
            ]
            rows.append((_plain(name), title, *map(_number, values), _number(_mean(values))))
    heading = ("class", "metric", *(f"fold {fold} ({s['cases']} cases)" for fold, s in validated), "mean of folds")
    yield _table(heading, rows)
    if without := [str(fold) for fold, s in validated if not s.get("protocol", {}).get("mirror", True)]:
        yield (f"Predicted without averaging over flips: fold {', '.join(without)}. `masam_predict` follows the plan.")


def _selected(selection: Selection) -> Iterable[str]:
    yield "## Selection"
    together = " and ".join(member.folder_name for member in selection.members)
    yield (
        f"`masam_predict -d {selection.dataset_name}` uses {together}"
        f"{', whose probabilities are averaged' if len(selection.members) > 1 else ''}. Postprocessing: "
        f"{selection.postprocessing}. Cross-validated foreground Dice with all of this: {selection.dice:.4f}, over "
        f"{selection.cases} cases."
    )


def _training(folds: Sequence[FoldFacts]) -> Iterable[str]:
    yield "## Training"
    rows = [
        (
            str(facts.fold), str(facts.state.epoch), str(facts.state.step), facts.state.budget or "as planned",
            f"{facts.state.wall_seconds / 3600:.2f}", _number(facts.state.best_dice),
        )
        for facts in folds
    ]  # fmt: skip
    heading = ("fold", "epochs", "steps", "budget", "hours", "smoothed validation Dice")
    yield _table(heading, rows)
    yield (
        "The validation Dice is of a fixed set of windows, used to choose the checkpoint. The table above is of whole "
        "cases."
    )
    starts = sorted({facts.header.pretrained_weights for facts in folds if facts.header.pretrained_weights})
    if starts:
        yield f"Training started from the weights of: {', '.join(starts)}."


def _needs(folds: Sequence[FoldFacts]) -> Iterable[str]:
    yield "## What else is needed"
    headers = [facts.header for facts in folds if facts.header.network.stands_on_sam]
    needed = sorted({(h.sam_file or "", h.sam_sha256 or "", h.network.encoder) for h in headers})
    if not needed:
        yield "Nothing: the model holds all of its weights."
        return
    yield "The frozen encoder's weights, in the weights folder. They are not in the archive and have their own licence:"
    for file, sha256, encoder in needed:
        name, known = published_name(sha256), SAM_FILES.get(encoder)
        how = f"get it with `masam_fetch_weights {name}`" if name else "not an official file; ask the model's author"
        if known and not known.sha256:  # such as DINOv3's, which only their makers give away
            how = f"ask the model's author, or look at {known.page} ({known.licence})"
        yield f"* `{file}`, SHA-256 `{sha256}`: {how}."


def _use(plan: Plan, configuration: str, selection: Selection | None) -> Iterable[str]:
    which = "" if selection else f" -c {configuration} -p {plan.name}"
    yield "## Use"
    yield (
        "```\nmasam_install_model ARCHIVE.zip\n"
        f"masam_predict -i images -o segmentations -d {plan.dataset_name}{which}\n```"
    )


def _limits(description: DatasetDescription) -> Iterable[str]:
    yield "## Intended use and limits"
    yield (
        f"Research on images like those it was trained on: {', '.join(description.channel_names)}, of the same body "
        "region, and with similar acquisition. Other scanners, protocols, populations and diseases were not tested "
        "and may give wrong segmentations without any warning. Look at the results. Not a medical device; not for "
        "diagnosis."
    )


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(value: Any) -> str:
    """Text on one line, safe in a table cell."""
    return " ".join(str(value).split()).replace("|", "\\|")


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.4f}"


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and not math.isnan(value)]
    return math.fsum(known) / len(known) if known else None
