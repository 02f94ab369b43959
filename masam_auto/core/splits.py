"""Folds: nnU-Net's splits, with all frames of a video on the same side."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from masam_auto.core.dataset import Case
from masam_auto.core.errors import PlanError, first_few
from masam_auto.core.jsonio import read_plain, write_json


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """Identifiers of the training and validation cases of one fold."""

    train: tuple[str, ...]
    val: tuple[str, ...]


def make_splits(
    identifiers: Sequence[str], *, patients: Mapping[str, str] | None = None, folds: int = 5, seed: int = 12345
) -> tuple[Split, ...]:
    """Shuffled folds over sorted identifiers: nnU-Net's, unless a patient has several cases.

    With fewer cases than folds there is one fold per case. A single case is validated on itself.

    Args:
        identifiers: of the cases.
        patients: case -> patient. Patients are split, and their cases stay together. With only one patient, the cases
            are split.
        folds: the largest number of folds.
        seed: of the shuffling.

    Source: scikit-learn's KFold(5, shuffle=True, random_state=12345), as in nnU-Net; the folds are the same.

    Example:
        >>> from masam_auto.core.splits import make_splits
        >>> make_splits(["a", "b", "c", "d"], folds=2)
        (Split(train=('b', 'c'), val=('a', 'd')), Split(train=('a', 'd'), val=('b', 'c')))
    """
    names = sorted(identifiers)
    if len(names) == 1:
        return (Split(train=(names[0],), val=(names[0],)),)
    owners = {name: (patients or {}).get(name, name) for name in names}
    if len(set(owners.values())) == 1:
        owners = {name: name for name in names}
    groups = sorted(set(owners.values()))
    order = np.arange(len(groups))
    np.random.RandomState(seed).shuffle(order)
    splits = []
    for held_out in np.array_split(order, min(folds, len(groups))):
        held = {groups[number] for number in held_out}
        splits.append(
            Split(
                train=tuple(name for name in names if owners[name] not in held),
                val=tuple(name for name in names if owners[name] in held),
            )
        )
    return tuple(splits)


def write_splits(path: Path, splits: Sequence[Split], cases: Sequence[Case], *, test: Sequence[str] = ()) -> None:
    """Write splits in the form of nnU-Net's splits_final.json; videos are written as their frames.

    Args:
        path: the file.
        splits: by case.
        cases: the cases that the splits name.
        test: held-out cases or frames in imagesTs. Each fold lists them as its "test", only as a record: training, here
            and in nnU-Net, reads only "train" and "val".
    """
    frames = {case.identifier: case.frames for case in cases}

    def expanded(names: Sequence[str]) -> list[str]:
        return [frame for name in names for frame in frames[name]]

    held_out = {"test": list(test)} if test else {}
    write_json(path, [{"train": expanded(split.train), "val": expanded(split.val)} | held_out for split in splits])


def read_splits(path: Path, cases: Sequence[Case]) -> tuple[Split, ...]:
    """Read splits.json, or a splits_final.json of nnU-Net's.

    Raises:
        PlanError: wrong form, an unknown case, a case twice or on both sides, or a video that is split.

    Example:
        >>> from masam_auto.core.splits import read_splits
        >>> splits = read_splits(paths.preprocessed / dataset.name / "splits.json", dataset.cases)
        >>> len(splits), splits[0].val
        (3, ('case_000',))
    """
    return parse_splits(read_plain(path, what="splits file"), cases, where=path)


def parse_splits(plain: Any, cases: Sequence[Case], *, where: Path) -> tuple[Split, ...]:
    """Read the content of a splits file. `where` is the file, for messages. Raises PlanError like `read_splits`."""
    if not isinstance(plain, list) or not plain or not all(_is_split(fold) for fold in plain):
        raise PlanError(f'{where}: expected a list of {{"train": [...], "val": [...]}}')
    owner = {frame: case for case in cases for frame in case.frames}
    owner |= {case.identifier: case for case in cases}
    return tuple(
        _collapsed(fold, owner, len(cases), where=f"{where}, fold {number}") for number, fold in enumerate(plain)
    )


def find_split(splits: Sequence[Split], fold: int | str, *, where: Path) -> Split:
    """The split of a fold number, or all cases on both sides for "all". Raises PlanError for an unknown fold."""
    if fold == "all":
        everything = tuple(sorted({name for split in splits for name in (*split.train, *split.val)}))
        return Split(train=everything, val=everything)
    number = int(fold)
    if not 0 <= number < len(splits):
        raise PlanError(
            f"fold {number} does not exist: {where} has folds 0 to {len(splits) - 1}. Choose one of them, or all."
        )
    return splits[number]


def choose_shots(classes: Mapping[str, Collection[str]], shots: int, *, seed: int) -> tuple[str, ...]:
    """Cases for few-shot training: for each class, `shots` cases that contain it, or all if there are fewer.

    Classes are handled from the rarest to the commonest, cases in a random order from the seed. A case chosen for one
    class also counts for its other classes, so common classes may get more than `shots`.

    Args:
        classes: case -> the classes that it contains.
        shots: cases per class, at least 1.
        seed: of the draw.

    Returns:
        The chosen cases, sorted. The order of the arguments does not matter.
    """
    names = sorted(classes)
    order = [names[number] for number in np.random.default_rng(seed).permutation(len(names))]
    holders = {held: [name for name in order if held in classes[name]] for held in set().union(*classes.values())}
    chosen: set[str] = set()
    for _, members in sorted(holders.items(), key=lambda item: (len(item[1]), item[0])):
        wanted = shots - len(chosen.intersection(members))
        chosen.update([name for name in members if name not in chosen][: max(wanted, 0)])
    return tuple(sorted(chosen))


def _collapsed(fold: dict[str, list[str]], owner: dict[str, Case], count: int, *, where: str) -> Split:
    sides: dict[str, tuple[str, ...]] = {}
    for side in ("train", "val"):
        if unknown := [name for name in fold[side] if name not in owner]:
            raise PlanError(
                f"{where}: unknown cases in {side}: {first_few(unknown)}. Remove them, add their cases, or delete "
                "the file to make new folds for new trainings."
            )
        if repeated := [name for name, count in Counter(fold[side]).items() if count > 1]:
            raise PlanError(f"{where}: twice in {side}: {first_few(repeated)}. List every case once.")
        sides[side] = tuple(dict.fromkeys(owner[name].identifier for name in fold[side]))
        if not sides[side]:
            raise PlanError(f"{where}: no cases in {side}")
    both = sorted(set(sides["train"]) & set(sides["val"]))
    if both and count > 1:
        raise PlanError(
            f"{where}: in train and in val: {first_few(both)}. A case or video must be in one of them only."
        )
    return Split(train=sides["train"], val=sides["val"])


def _is_split(fold: Any) -> bool:
    return isinstance(fold, dict) and all(
        isinstance(fold.get(side), list) and all(isinstance(name, str) for name in fold[side])
        for side in ("train", "val")
    )
