"""Few-shot folds: what stands in a model's splits.json."""

import json
from pathlib import Path

import numpy as np
import pytest

from masam_auto.core.dataset import DatasetDescription, parse_description
from masam_auto.core.errors import ImageError, PlanError
from masam_auto.core.labels import parse_labels
from masam_auto.formats.storage import find_locations, write_locations
from masam_auto.training.fold_folder import few_shot_folds, fold_cases

LABELS = {"background": 0, "a": 1, "b": 2}


@pytest.fixture
def description() -> DatasetDescription:
    plain = {"channel_names": {"0": "MR"}, "labels": LABELS, "file_ending": ".png", "sequences": {"v": ["v1", "v2"]}}
    return parse_description(plain, name="Dataset001_Toy")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Locations of the video v, which alone holds b, and of four cases; splits.json with two folds."""
    for number, name in enumerate(("v", "x", "y", "z", "empty")):
        volume = np.zeros((2, 3, 3), np.int8)
        volume[0, 0, :] = 0 if name == "empty" else 1
        volume[1, 1, number % 3] = 2 if name == "v" else 0
        write_locations(tmp_path / f"{name}_locations.npz", find_locations(volume, parse_labels(LABELS, None)))
    folds = [{"train": ["v1", "v2", "x", "y", "empty"], "val": ["z"]}, {"train": ["x", "y", "z"], "val": ["v1", "v2"]}]
    (tmp_path / "splits.json").write_text(json.dumps(folds))
    return tmp_path


def test_every_fold_has_its_own_choice_and_keeps_its_validation_cases(
    folder: Path, description: DatasetDescription
) -> None:
    splits = folder / "splits.json"
    first, second = few_shot_folds(splits, description, folder, shots=1, seed=0)
    assert first == {"train": ["v1", "v2"], "val": ["z"], "shots": 1}, "the video holds both classes"
    assert (len(second["train"]), second["val"]) == (1, ["v1", "v2"])
    both = few_shot_folds(splits, description, folder, shots=9, seed=0)[0]["train"]
    assert both == ["v1", "v2", "x", "y"], "what holds no class is not learned from"
    split = fold_cases(splits, 0, description, folder, few_shot=[first, second])
    assert (split.train, split.val) == (("v",), ("z",))
    with pytest.raises(PlanError, match="fold 2 does not exist"):
        fold_cases(splits, 2, description, folder, few_shot=[first, second])


def test_cases_that_are_not_preprocessed_are_named(folder: Path, description: DatasetDescription) -> None:
    (folder / "y_locations.npz").unlink()
    with pytest.raises(ImageError, match=r"y_locations\.npz is missing"):
        few_shot_folds(folder / "splits.json", description, folder, shots=1, seed=0)
