"""Postprocessing: choose which connected components to remove, on cross-validated predictions, and remove them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from masam_auto.compute.parallel import map_cases
from masam_auto.core.atomic import write_bytes
from masam_auto.core.dataset import read_description
from masam_auto.core.errors import DatasetError, MasamError, OutputError
from masam_auto.core.labels import Labels
from masam_auto.core.postprocessing import Postprocessing, PostprocessingStep
from masam_auto.formats.io import is_image, read_labels, write_labels
from masam_auto.formats.workers import workers_for
from masam_auto.imaging.components import (
    Components,
    apply_postprocessing,
    find_components,
    smallest_component,
    staying,
)
from masam_auto.imaging.confusion import class_dice, count_confusion, known_values, mean_dice, table_size
from masam_auto.imaging.placement import labels_on_grid
from masam_auto.prediction.output_folder import check_output, refuse_to_overwrite
from masam_auto.prediction.predict_folder import Outcome

BYTES_PER_VOXEL = 24  # two label maps, a mask, its component numbers and their counts
MIN_GAIN = 1e-4  # of the mean Dice; a smaller gain is chance
# Shares of the smallest component in any reference. Larger components may be real, and stay.
VOLUMES = (0.125, 0.25, 0.5, 1.0)
COMPANIONS = ("dataset.json", "plan.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings:
    """A postprocessing, and the mean Dice (C,) of each class or region before and after it."""

    postprocessing: Postprocessing
    before: np.ndarray
    after: np.ndarray


@dataclass(frozen=True, kw_only=True, slots=True)
class _Trial:
    """A case, and the masks to examine after the steps so far."""

    prediction: Path
    reference: Path
    labels: Labels
    masks: tuple[tuple[int, ...], ...]
    so_far: Postprocessing


@dataclass(frozen=True, kw_only=True, slots=True)
class _Effect:
    """What removing components would change in a case.

    `confusion` comes from `count_confusion`. `components` has one entry per mask. `smallest` is the volume in cubic mm
    of each mask's smallest component in the reference, or infinity.
    """

    confusion: np.ndarray
    components: tuple[Components, ...]
    smallest: tuple[float, ...]
    voxel_volume: float


def determine_postprocessing(
    pairs: Sequence[tuple[Path, Path]], labels: Labels, *, each_slice: bool = False, workers: int | None = None
) -> Findings:
    """Find the postprocessing that raises the mean Dice of predictions and lowers the Dice of no class.

    The first candidate keeps only the largest component of all foreground together. Then, for each class or region,
    candidates keep its largest component or remove components below a volume. The volume never exceeds the smallest
    component of the class in any reference.

    Args:
        pairs: (segmentation, reference) files of cases that the model was not trained on.
        labels: classes or regions.
        each_slice: see `Postprocessing`.
        workers: processes; 0 works in this one, None lets cores and memory decide.

    Raises:
        CaseErrors: files cannot be read, or their shapes differ.

    Source: nnU-Net's rule for the largest component; the volumes are ours.

    Example:
        >>> from masam_auto.evaluation.postprocess import determine_postprocessing
        >>> truth = dataset.folder / "labelsTr" / "case_000.nii.gz"
        >>> found = determine_postprocessing([(truth, truth)], dataset.description.labels, workers=0)
        >>> found.postprocessing.steps, found.before  # nothing to do; Dice of each class
        ((), array([1., 1.]))
    """
    count = workers_for([truth for _, truth in pairs], bytes_per_voxel=BYTES_PER_VOXEL, asked=workers)
    everything = tuple(value for value in labels.declared if value > 0)
    chosen = Postprocessing(each_slice=each_slice)
    cases = _look(pairs, labels, [everything], chosen, count)
    before = class_dice([case.confusion for case in cases], labels)
    chosen = replace(chosen, steps=_best_steps(cases, 0, [(_largest("foreground", everything),)], labels))
    cases = _look(pairs, labels, [*labels.foreground.values()], chosen, count)
    for number, (name, values) in enumerate(labels.foreground.items()):
        steps = _best_steps(cases, number, _candidates(cases, number, name, values), labels)
        chosen = replace(chosen, steps=(*chosen.steps, *steps))
    after = before
    while chosen.steps:
        after = class_dice([case.confusion for case in _look(pairs, labels, [], chosen, count)], labels)
        if _helps(before, after):
            break
        chosen, after = replace(chosen, steps=chosen.steps[:-1]), before  # regions overlap, so steps may interfere
    return Findings(postprocessing=chosen, before=before, after=after)


def postprocess_folder(
    source: Path, folder: Path, postprocessing: Postprocessing, *, overwrite: bool = False, workers: int | None = None
) -> Outcome:
    """Postprocess all label files of a folder. Failed files are reported at the end and do not stop the others.

    Args:
        source: the segmentations. dataset.json and plan.json are copied along.
        folder: where the results go, under the same names.
        postprocessing: what to do.
        overwrite: replace existing files.
        workers: processes; 0 works in this one, None lets cores and memory decide.

    Raises:
        DatasetError: the folder is missing, holds no label files, or its dataset.json has other classes.
        OutputError: files exist and `overwrite` is not given, both folders are the same, or nothing can be written.

    Example:
        >>> from masam_auto.core.postprocessing import Postprocessing, PostprocessingStep
        >>> from masam_auto.evaluation.postprocess import postprocess_folder
        >>> largest = PostprocessingStep(target="organ1", values=(1,), rule="keep_largest")
        >>> outcome = postprocess_folder(predictions, Path("cleaned"), Postprocessing(steps=(largest,)), workers=0)
        >>> outcome.predicted, outcome.problems
        (('case_000.nii.gz', 'case_001.nii.gz', 'case_002.nii.gz'), ())
    """
    if not source.is_dir():
        raise DatasetError(f"folder not found: {source}")
    there = sorted(path for path in source.iterdir() if path.is_file() and not path.name.startswith("."))
    files = [path for path in there if is_image(path)]
    if not files:
        raise DatasetError(f"{source}: no segmentations. Give a folder of label files, e.g. from masam_predict.")
    check_output(source, folder)
    _check_classes(source, postprocessing)
    companions = {name: (source / name).read_bytes() for name in COMPANIONS if (source / name).is_file()}
    if not overwrite:
        other = [
            n for n, content in companions.items() if (folder / n).is_file() and (folder / n).read_bytes() != content
        ]
        refuse_to_overwrite(folder, [*(file.name for file in files), *other])
    items = [(file, folder / file.name, postprocessing) for file in files]
    names = [file.name for file in files]
    count = workers_for(files, bytes_per_voxel=BYTES_PER_VOXEL, asked=workers)
    results = map_cases(_postprocess_file, items, names=names, what="postprocessing", workers=count)
    done = tuple(name for name, problem in zip(names, results, strict=True) if problem is None)
    for name, content in companions.items() if done else ():
        write_bytes(folder / name, content)
    return Outcome(predicted=done, skipped=(), problems=tuple(problem for problem in results if problem is not None))


def _check_classes(source: Path, postprocessing: Postprocessing) -> None:
    """Raise DatasetError if the segmentations' dataset.json, if there is one, has other classes than the steps."""
    file = source / "dataset.json"
    try:
        labels = read_description(file, name=source.name).labels
    except DatasetError:  # there is none, or it belongs to something else
        return
    known = labels.foreground | {"foreground": tuple(value for value in labels.declared if value > 0)}
    for step in postprocessing.steps:
        if set(known.get(step.target, ())) != set(step.values):
            listed = ", ".join(f"{name} ({', '.join(map(str, values))})" for name, values in labels.foreground.items())
            raise DatasetError(
                f"{file}: the postprocessing is for other classes: it has {step.target} as "
                f"{', '.join(map(str, step.values))}, but these segmentations have {listed}. Give the postprocessing "
                "of these segmentations."
            )


def _postprocess_file(item: tuple[Path, Path, Postprocessing]) -> str | None:
    """Postprocess one file. Returns its problem, or None."""
    source, target, postprocessing = item
    try:
        labels, geometry = read_labels(source)
        kept = apply_postprocessing(labels, postprocessing, voxel_volume=geometry.voxel_volume)
        write_labels(target, kept, geometry, like=source)
    except OutputError:
        raise  # the next file could not be written either
    except MasamError as error:
        return str(error)
    return None


def _look(
    pairs: Sequence[tuple[Path, Path]],
    labels: Labels,
    masks: Sequence[tuple[int, ...]],
    so_far: Postprocessing,
    workers: int,
) -> list[_Effect]:
    """Examine masks in all cases, after the steps so far."""
    trials = [
        _Trial(prediction=prediction, reference=reference, labels=labels, masks=tuple(masks), so_far=so_far)
        for prediction, reference in pairs
    ]
    names = [prediction.name for prediction, _ in pairs]
    return map_cases(_look_at, trials, names=names, what="trying postprocessing", workers=workers)


def _look_at(trial: _Trial) -> _Effect:
    prediction, own = read_labels(trial.prediction)
    reference, geometry = read_labels(trial.reference)
    prediction = labels_on_grid(
        prediction, own, geometry, path=trial.prediction, reference=trial.reference, checked=True
    )
    size, voxel_volume = table_size(trial.labels), geometry.voxel_volume
    prediction = apply_postprocessing(known_values(prediction, size), trial.so_far, voxel_volume=voxel_volume)
    reference = known_values(reference, size)
    smallest = [smallest_component(reference, values) for values in trial.masks]
    return _Effect(
        confusion=count_confusion(prediction, reference, trial.labels),
        components=tuple(find_components(prediction, reference, values) for values in trial.masks),
        smallest=tuple(math.inf if size is None else size * voxel_volume for size in smallest),
        voxel_volume=voxel_volume,
    )


def _largest(name: str, values: tuple[int, ...]) -> PostprocessingStep:
    return PostprocessingStep(target=name, values=values, rule="keep_largest")


def _candidates(
    cases: Sequence[_Effect], mask: int, name: str, values: tuple[int, ...]
) -> list[tuple[PostprocessingStep, ...]]:
    """Steps to try on a class, starting with those that remove least."""
    largest = _largest(name, values)
    smallest = min(case.smallest[mask] for case in cases)
    if math.isinf(smallest):
        return [(largest,)]
    small = [
        PostprocessingStep(target=name, values=values, rule="remove_small", volume=_rounded_down(share * smallest))
        for share in VOLUMES
    ]
    return [*((step,) for step in small), (largest,), *((largest, step) for step in small)]


def _rounded_down(volume: float) -> float:
    """A volume rounded down to three digits, so that components of exactly this volume stay despite rounding."""
    unit = 10.0 ** (math.floor(math.log10(volume)) - 2)
    return float(f"{math.floor(volume / unit * (1 - 1e-6)) * unit:.3g}")


def _best_steps(
    cases: Sequence[_Effect], mask: int, candidates: Sequence[tuple[PostprocessingStep, ...]], labels: Labels
) -> tuple[PostprocessingStep, ...]:
    """The candidate with the highest mean Dice, the first of equal ones. Empty if no candidate helps."""
    before = class_dice([case.confusion for case in cases], labels)
    results = [(class_dice([_without(case, mask, steps) for case in cases], labels), steps) for steps in candidates]
    helpful = [(mean_dice(after), steps) for after, steps in results if _helps(before, after)]
    return max(helpful, key=lambda found: found[0])[1] if helpful else ()


def _without(case: _Effect, mask: int, steps: Sequence[PostprocessingStep]) -> np.ndarray:
    """Confusion of a case after the steps have turned components of a mask into background."""
    components = case.components[mask]
    stays = staying(components.sizes, steps, case.voxel_volume)
    gone = components.meetings[~stays[components.meetings[:, 0]]]
    confusion = case.confusion.copy()
    np.subtract.at(confusion, (gone[:, 1], gone[:, 2]), gone[:, 3])
    np.add.at(confusion, (0, gone[:, 2]), gone[:, 3])
    return confusion


def _helps(before: np.ndarray, after: np.ndarray) -> bool:
    """Whether the mean Dice rises and no class's falls. Losing a class that no case has does not count."""
    return mean_dice(after) >= mean_dice(before) + MIN_GAIN and not bool((after < before).any())
