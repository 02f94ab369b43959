"""The folder of a fold in training: make it, protect it, and find the cases of the fold."""

import json
import shutil
from pathlib import Path
from typing import Any

from masam_auto.core.atomic import write_bytes
from masam_auto.core.dataset import Case, DatasetDescription
from masam_auto.core.errors import ModelError, OutputError
from masam_auto.core.file_names import check_file_name
from masam_auto.core.jsonio import read_json, read_plain, write_json
from masam_auto.core.plan import Configuration, Plan
from masam_auto.core.splits import Split, choose_shots, find_split, parse_splits, read_splits
from masam_auto.formats.storage import array_files, read_locations, stored_cases
from masam_auto.models.checkpoint import has_checkpoint, plan_digest, remove_leftovers

Folds = list[dict[str, Any]]


def claim_folder(
    fold_folder: Path,
    plan: Plan,
    configuration: Configuration,
    source: Path,
    *,
    resume: bool,
    overwrite: bool,
    few_shot: Folds | None = None,
) -> None:
    """Make the folder of a fold, with plan.json, dataset.json and splits.json in the model's folder.

    Remains of a training that never finished an epoch are removed; checkpoints only with `overwrite`.

    Args:
        fold_folder: results/<data set>/<plan>__<configuration>/fold_K.
        plan, configuration: of the training.
        source: the data set's preprocessed folder, with dataset.json and splits.json.
        resume: requires a checkpoint.
        overwrite: allows a checkpoint, which is removed.
        few_shot: what to write as splits.json instead (`few_shot_folds`).

    Raises:
        ModelError: nothing to resume, or the folds have changed since another one was trained.
        OutputError: it is a link, would overwrite a training, mix folds of different plans, or cannot write.
    """
    if fold_folder.is_symlink():
        raise OutputError(
            f"{fold_folder} is a link, and links are not written to. Remove it, or give the training a name "
            "(`plan_name`)."
        )
    trained = has_checkpoint(fold_folder)
    if resume and not trained:
        raise ModelError(
            f"{fold_folder} holds no checkpoint to continue from. Leave out `resume` to start the training."
        )
    if trained and not resume and not overwrite:
        raise OutputError(
            f"{fold_folder} holds a training already. Continue it with `resume`, or give `overwrite` to start again."
        )
    _refuse_mixed_plans(fold_folder, plan, configuration)
    if not resume:
        _refuse_mixed_folds(fold_folder, source / "splits.json", few_shot)
    if not resume and fold_folder.is_dir():
        shutil.rmtree(fold_folder)
    if not resume:
        write_json(fold_folder.parent / "plan.json", plan)
        write_bytes(fold_folder.parent / "dataset.json", (source / "dataset.json").read_bytes())
        folds = (source / "splits.json").read_bytes() if few_shot is None else json.dumps(few_shot, indent=2).encode()
        write_bytes(fold_folder.parent / "splits.json", folds)
    try:
        fold_folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make {fold_folder}: {error.strerror}. Choose another folder.") from error
    remove_leftovers(fold_folder)


def splits_of(model_folder: Path, source: Path) -> Path:
    """The splits that a model was trained with: those in its own folder, or else the data set's in `source`.

    The data set's splits may have changed since. With those, the model could be validated on cases it was trained on.
    """
    own = model_folder / "splits.json"
    return own if own.is_file() else source / "splits.json"


def few_shot_folds(splits_file: Path, description: DatasetDescription, arrays: Path, *, shots: int, seed: int) -> Folds:
    """The content of a splits.json in which every fold trains on a few of its cases (`core.splits.choose_shots`).

    It becomes the model's own splits.json, so that continuing or validating it later uses the chosen cases.

    Args:
        splits_file: the data set's splits.json.
        description: of the data set; it knows the videos, which count as one case.
        arrays: the preprocessed folder of the configuration, which knows the classes of each case.
        shots: cases per class.
        seed: of the choice.

    Raises:
        PlanError: the file is not in its form.
        ImageError: a training case is not preprocessed.
    """
    cases = _named_cases(splits_file, description)
    splits = read_splits(splits_file, cases)
    frames = {case.identifier: case.frames for case in cases}
    held = {
        name: [
            label for label, found in read_locations(array_files(arrays, name).locations).items() if len(found.voxels)
        ]
        for name in sorted({name for split in splits for name in split.train})
    }
    folds = []
    for split in splits:
        chosen = choose_shots({name: held[name] for name in split.train}, shots, seed=seed)
        train, val = ([frame for name in names for frame in frames[name]] for names in (chosen, split.val))
        folds.append({"train": train, "val": val, "shots": shots})
    return folds


def fold_cases(
    splits_file: Path,
    fold: int | str,
    description: DatasetDescription,
    arrays: Path,
    *,
    few_shot: Folds | None = None,
) -> Split:
    """The cases of a fold. Does not check that their arrays exist.

    Args:
        splits_file: splits.json.
        fold: a number, or "all" for every case in the splits or among the arrays, on both sides.
        description: of the data set; it knows the videos.
        arrays: the preprocessed folder of the configuration.
        few_shot: used instead of the file's content (`few_shot_folds`).

    Raises:
        PlanError: no such fold, or the file is not in its form.
    """
    plain = read_plain(splits_file, what="splits file") if few_shot is None else few_shot
    splits = parse_splits(plain, _named_cases(splits_file, description), where=splits_file)
    split = find_split(splits, fold, where=splits_file)
    if fold != "all":
        return split
    everything = tuple(sorted({*split.train, *split.val, *stored_cases(arrays)}))
    return Split(train=everything, val=everything)


def _named_cases(splits_file: Path, description: DatasetDescription) -> tuple[Case, ...]:
    """The cases that a splits file names, whether or not they exist; none if the file has the wrong form."""
    plain = read_plain(splits_file, what="splits file")
    folds = [fold for fold in plain if isinstance(fold, dict)] if isinstance(plain, list) else []
    sides = [fold[side] for fold in folds for side in ("train", "val") if isinstance(fold.get(side), list)]
    names = {name for side in sides for name in side if isinstance(name, str)}
    for name in names:
        check_file_name(name, what=f"{splits_file}:")
    video_of = {frame: video for video, frames in description.sequences.items() for frame in frames}
    identifiers = sorted({video_of.get(name, name) for name in names})
    return tuple(
        Case(identifier=name, frames=tuple(description.sequences.get(name, (name,))), images=()) for name in identifiers
    )


def _refuse_mixed_plans(fold_folder: Path, plan: Plan, configuration: Configuration) -> None:
    model_folder = fold_folder.parent
    others = other_folds(fold_folder)
    plan_file = model_folder / "plan.json"
    if not others or not plan_file.is_file():
        return
    there = read_json(plan_file, Plan, what="plan")
    known = there.configurations.get(configuration.name)
    if known is None or plan_digest(there, known) != plan_digest(plan, configuration):
        raise OutputError(
            f"{others[0]} was trained with another plan. All folds of a model share one: repeat the changes that were "
            f"made then (the plan is in {plan_file}), give this one another name (`plan_name=NAME`), or remove "
            f"{model_folder}."
        )


def _refuse_mixed_folds(fold_folder: Path, splits: Path, few_shot: Folds | None) -> None:
    """Check that all folds of a model use the same splits, so that no held-out case was trained on."""
    others = other_folds(fold_folder)
    own = fold_folder.parent / "splits.json"
    if not others or not own.is_file():
        return
    there = read_plain(own, what="splits file")
    shots = _shots_of(there)
    if shots != _shots_of(few_shot):
        raise ModelError(
            f"{others[0].name} was trained {f'with `shots={shots}`' if shots else 'without `shots`'}. All folds of a "
            "model are trained alike: do the same here, or give this training another name with `plan_name`."
        )
    if there != (read_plain(splits, what="splits file") if few_shot is None else few_shot):
        raise ModelError(
            f"the folds in {splits} changed since {others[0].name} was trained. Restore them (cp {own} {splits}), "
            f"train under another plan name, or remove {fold_folder.parent} to train all folds again."
        )


def other_folds(fold_folder: Path) -> list[Path]:
    """The other trained folds of the model."""
    there = sorted(fold_folder.parent.glob("fold_*"))
    return [path for path in there if path != fold_folder and has_checkpoint(path)]


def _shots_of(folds: Any) -> int | None:
    """`shots` in the content of a splits.json of any form, or None."""
    first = folds[0] if isinstance(folds, list) and folds else None
    return first.get("shots") if isinstance(first, dict) else None
