"""Folders of models that look cross-validated: made-up predictions of a raw data set."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from masam_auto.core.dataset import Case, Dataset, open_dataset
from masam_auto.core.jsonio import write_json
from masam_auto.core.labels import Labels
from masam_auto.core.paths import Paths
from masam_auto.core.plan import Plan
from masam_auto.formats.io import label_ending, read_case_labels, read_geometry, write_labels
from masam_auto.formats.probability_files import new_probabilities
from masam_auto.prediction.restore import output_names


@dataclass(frozen=True, kw_only=True)
class MadeUp:
    """A model: `error` is how much noise its probabilities have; folds in `without` have no probabilities."""

    name: str
    error: float
    seed: int
    folds: Sequence[int | str] = (0, 1)
    validated: Sequence[int | str] | None = None
    without: Sequence[int] = ()
    checkpoint: str = "checkpoint_best"


def make_paths(raw: Path) -> Paths:
    """The roots of a raw data set in root/raw."""
    root = raw.parents[1]
    return Paths(
        raw=root / "raw", preprocessed=root / "preprocessed", results=root / "results", weights=root / "weights"
    )


def write_models(raw: Path, models: Sequence[MadeUp], plan: Plan) -> Paths:
    """Write the results of models; fold K holds out every second case from K on, fold all all cases."""
    paths = make_paths(raw)
    dataset = open_dataset(paths, raw.name)
    for model in models:
        folder = paths.results / raw.name / model.name
        name, _, configuration = model.name.partition("__")
        own = replace(next(iter(plan.configurations.values())), name=configuration)
        write_json(
            folder / "plan.json",
            replace(
                plan,
                name=name,
                dataset_name=raw.name,
                configurations={configuration: own},
                default_configuration=configuration,
            ),
        )
        write_json(folder / "dataset.json", dataset.description.raw)
        for fold in model.folds:
            (folder / f"fold_{fold}" / model.checkpoint).mkdir(parents=True)
            if model.validated is None or fold in model.validated:
                cases = dataset.cases if fold == "all" else dataset.cases[int(fold) :: 2]
                _validate(
                    folder / f"fold_{fold}" / "validation", cases, dataset, model, with_npz=fold not in model.without
                )
    return paths


def _validate(folder: Path, cases: Sequence[Case], dataset: Dataset, model: MadeUp, *, with_npz: bool) -> None:
    labels, ending = dataset.description.labels, label_ending(dataset.description.file_ending)
    entries = []
    for case in cases:
        truth, geometry = read_case_labels(case, dataset.description)
        generator = np.random.default_rng([model.seed, *case.identifier.encode()])
        shares = _shares(truth, labels, model.error, generator)
        if with_npz:
            with new_probabilities(
                folder / f"{case.identifier}.npz",
                crop=tuple((0, size) for size in truth.shape),
                geometry=geometry,
                outputs=output_names(labels),
                has_regions=labels.has_regions,
            ) as values:
                values[:] = shares
        decided = _decide(shares, labels)
        for number, (frame, reference) in enumerate(zip(case.frames, case.labels or (), strict=True)):
            file = folder / f"{frame}{ending}"
            part = decided[number : number + 1] if case.is_sequence else decided
            write_labels(file, part, read_geometry(reference))
            entries.append({"prediction_file": str(file), "reference_file": str(reference), "metrics": {}})
    write_json(folder / "summary.json", {"metric_per_case": entries})
    write_json(folder / "predicted_with.json", {"checkpoint": model.checkpoint, "digest": "x"})


def _shares(truth: np.ndarray, labels: Labels, error: float, generator: np.random.Generator) -> np.ndarray:
    groups = [*([] if labels.has_regions else [(0,)]), *labels.foreground.values()]
    scores = np.stack([np.isin(truth, values) for values in groups]) - 0.5
    scores = 4 * (scores + error * generator.normal(size=scores.shape))
    if labels.has_regions:
        return (1 / (1 + np.exp(-scores))).astype(np.float16)
    shares = np.exp(scores - scores.max(axis=0))
    return (shares / shares.sum(axis=0)).astype(np.float16)


def _decide(shares: np.ndarray, labels: Labels) -> np.ndarray:
    if not labels.has_regions:
        return shares.astype(np.float32).argmax(axis=0).astype(np.int16)
    decided = np.zeros(shares.shape[1:], np.int16)
    for share, value in zip(shares, labels.regions_class_order or (), strict=True):
        decided[share > 0.5] = value
    return decided
