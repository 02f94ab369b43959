"""Validation of a fold: from preprocessed arrays to a summary, and what is kept when it is run again."""

import dataclasses
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from masam_auto.core.dataset import open_dataset
from masam_auto.core.errors import DatasetError, ModelError, PlanError
from masam_auto.core.jsonio import write_json
from masam_auto.core.paths import Paths
from masam_auto.core.plan import InferencePlan, Plan
from masam_auto.core.splits import make_splits, write_splits
from masam_auto.evaluation import validate
from masam_auto.evaluation.validate import ValidationOptions, validate_fold
from masam_auto.formats.io import read_geometry
from masam_auto.formats.probability_files import read_probabilities
from masam_auto.prediction.predict import Predictor
from masam_auto.preprocessing.preprocess import preprocess_dataset
from tests import intensity_model

CPU = torch.device("cpu")
Make = Callable[..., Path]
Build = Callable[..., "House"]


@dataclasses.dataclass
class House:
    """A preprocessed data set and the folder of a fold with the mark of a checkpoint."""

    paths: Paths
    plan: Plan
    raw: Path

    @property
    def fold(self) -> Path:
        return self.paths.model_folder(self.raw.name, "masam", "axis0") / "fold_0"

    def validate(self, **options: object) -> dict:
        how = ValidationOptions(device=CPU, **options)  # type: ignore[arg-type]
        return validate_fold(self.paths, self.raw.name, self.plan, self.plan.configuration(None), 0, how)


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> Build:
    """Makes a house of a raw data set, whose network reads classes off the intensities."""

    def make(raw: Path, spacing: tuple[float, float, float] = (3.0, 1.0, 0.8)) -> House:
        root = raw.parents[1]
        paths = Paths(raw=root / "raw", preprocessed=root / "pp", results=root / "results", weights=root / "weights")
        dataset = open_dataset(paths, raw.name)
        predictor = intensity_model.make_predictor(raw, spacing=spacing)
        house = House(paths=paths, plan=predictor.members[0].plan, raw=raw)
        preprocess_dataset(dataset, house.plan, paths, workers=0)
        names = [case.identifier for case in dataset.cases]
        write_splits(paths.preprocessed / raw.name / "splits.json", make_splits(names), dataset.cases)
        write_json(house.fold / "checkpoint_best" / "checkpoint.json", {})
        monkeypatch.setattr(Predictor, "from_folder", lambda *arguments, **options: predictor)
        return house

    return make


def note_mirroring(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Gets a value for each case that is predicted: whether with flips."""
    segment, mirrored = Predictor.segment, list[bool]()

    def noted(self: Predictor, *arguments: Any, **options: Any) -> np.ndarray:
        mirrored.append(self.members[0].plan.inference.mirror)
        return segment(self, *arguments, **options)

    monkeypatch.setattr(Predictor, "segment", noted)
    return mirrored


def test_validation_cases_are_predicted_on_their_own_grids(raw_dataset: Make, build: Build) -> None:
    house = build(raw_dataset(cases=5))
    summary = house.validate()
    held_out = json.loads((house.paths.preprocessed / house.raw.name / "splits.json").read_text())[0]["val"]
    assert [path.name for path in house.fold.glob("validation/*.nii.gz")] == [f"{held_out[0]}.nii.gz"]
    assert summary["foreground_mean"]["Dice"] > 0.98
    assert json.loads((house.fold / "validation" / "summary.json").read_text())["mean"] == summary["mean"]
    predicted = read_geometry(house.fold / "validation" / f"{held_out[0]}.nii.gz")
    assert predicted.difference(read_geometry(house.raw / "imagesTr" / f"{held_out[0]}_0000.nii.gz")) is None


def test_videos_are_validated_frame_by_frame(video_dataset: Make, build: Build) -> None:
    house = build(video_dataset(sequences=2, colour=False), (1.0, 1.0, 1.0))
    summary = house.validate()
    assert len(summary["metric_per_case"]) == 4
    assert summary["foreground_mean"]["Dice"] > 0.95


def test_references_may_lie_anywhere(raw_dataset: Make, build: Build) -> None:
    raw = raw_dataset(cases=2)
    description = json.loads((raw / "dataset.json").read_text())
    (raw / "labelsTr").rename(raw / "truth")
    description["dataset"] = {
        f"case_00{i}": {"images": [f"imagesTr/case_00{i}_0000.nii.gz"], "label": f"truth/case_00{i}.nii.gz"}
        for i in range(2)
    }
    (raw / "dataset.json").write_text(json.dumps(description))
    assert build(raw).validate()["foreground_mean"]["Dice"] > 0.98


def test_predictions_newer_than_the_checkpoint_are_kept(raw_dataset: Make, build: Build) -> None:
    house = build(raw_dataset(cases=2))
    house.validate()
    (file,) = house.fold.glob("validation/*.nii.gz")
    made = file.stat().st_mtime_ns
    house.validate()
    assert file.stat().st_mtime_ns == made
    house.validate(redo=True)
    assert file.stat().st_mtime_ns > made
    made = file.stat().st_mtime_ns
    mark = house.fold / "checkpoint_best" / "checkpoint.json"
    os.utime(mark, ns=(made + 10**9, made + 10**9))  # trained further since
    house.validate()
    assert file.stat().st_mtime_ns > made
    made = file.stat().st_mtime_ns
    (arrays,) = house.paths.preprocessed.rglob(f"{file.name.removesuffix('.nii.gz')}.json")
    os.utime(arrays, ns=(made + 10**9, made + 10**9))  # its image was corrected and preprocessed again
    house.validate()
    assert file.stat().st_mtime_ns > made


def test_a_summary_never_stands_beside_predictions_of_another_checkpoint(
    raw_dataset: Make, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupted validation leaves new segmentations, and no summary of old ones."""
    house = build(raw_dataset(cases=2))
    house.validate()
    summary = house.fold / "validation" / "summary.json"
    assert summary.is_file()
    write_json(house.fold / "checkpoint_best" / "checkpoint.json", {"epoch": 9})

    def interrupted(*arguments: object, **named: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("masam_auto.evaluation.validate.predict_preprocessed", interrupted)
        with pytest.raises(KeyboardInterrupt):
            house.validate()
    assert not summary.exists()
    house.validate()
    assert summary.is_file()


def test_dates_in_the_future_are_told(raw_dataset: Make, build: Build, caplog: pytest.LogCaptureFixture) -> None:
    house = build(raw_dataset(cases=2))
    house.validate()
    assert "in the future" not in caplog.text
    ahead = time.time_ns() + 3600 * 10**9
    os.utime(house.fold / "checkpoint_best" / "checkpoint.json", ns=(ahead, ahead))
    house.validate()
    assert "dated in the future" in caplog.text and "made again" in caplog.text


def test_predictions_of_another_checkpoint_or_otherwise_made_are_not_kept(raw_dataset: Make, build: Build) -> None:
    house = build(raw_dataset(cases=2))
    latest = house.fold / "checkpoint_latest"
    latest.mkdir()
    write_json(latest / "checkpoint.json", {"epoch": 7})
    os.utime(latest / "checkpoint.json", ns=(0, 0))
    house.validate()
    (file,) = house.fold.glob("validation/*.nii.gz")
    made = file.stat().st_mtime_ns
    house.validate(checkpoint="latest")
    assert file.stat().st_mtime_ns > made
    assert json.loads((house.fold / "validation" / "predicted_with.json").read_text())["epoch"] == 7
    made = file.stat().st_mtime_ns
    house.validate(checkpoint="latest")
    assert file.stat().st_mtime_ns == made
    house.plan = dataclasses.replace(house.plan, inference=InferencePlan(mirror=False))
    house.validate(checkpoint="latest")
    assert file.stat().st_mtime_ns > made


def test_how_to_predict_is_the_given_plans(raw_dataset: Make, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    house = build(raw_dataset(cases=2))
    mirrored = note_mirroring(monkeypatch)
    house.plan = dataclasses.replace(house.plan, inference=InferencePlan(mirror=False))
    house.validate()
    assert mirrored == [False]


def test_the_folds_of_the_training_are_validated(raw_dataset: Make, build: Build) -> None:
    house = build(raw_dataset(cases=3))
    own = house.fold.parent / "splits.json"
    write_json(own, [{"train": ["case_000", "case_001"], "val": ["case_002"]}])
    write_json(
        house.paths.preprocessed / house.raw.name / "splits.json",
        [{"train": ["case_001", "case_002"], "val": ["case_000"]}],
    )
    house.validate()
    assert [path.name for path in house.fold.glob("validation/*.nii.gz")] == ["case_002.nii.gz"]
    write_json(own, [{"train": ["case_000", "case_001"], "val": ["case_002", "case_009"]}])
    with pytest.raises(DatasetError, match=r"fold 0 are not in .*: case_009"):
        house.validate()


def test_missing_arrays_are_named(raw_dataset: Make, build: Build) -> None:
    house = build(raw_dataset(cases=2))
    for file in house.paths.configuration_folder(house.raw.name, "axis0").glob("case_*.b2nd"):
        file.unlink()
    with pytest.raises(PlanError, match="1 of 1 cases are not preprocessed"):
        house.validate()


def test_nothing_trained_at_all(raw_dataset: Make, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    house = build(raw_dataset(cases=2))
    monkeypatch.undo()
    shutil.rmtree(house.fold.parent)
    with pytest.raises(ModelError, match=r"fold 0 of .* has no checkpoint .*folds with one: none.*Train it"):
        house.validate()
    assert not house.fold.exists()


def test_raw_data_outside_the_roots_are_found_again(raw_dataset: Make, build: Build) -> None:
    house = build(raw_dataset(cases=2))
    moved = house.raw.parents[1] / "elsewhere" / house.raw.name
    moved.parent.mkdir()
    house.raw.rename(moved)
    with pytest.raises(DatasetError, match="not found"):
        house.validate()
    write_json(house.paths.preprocessed / house.raw.name / "raw_data.json", {"folder": str(moved)})
    assert house.validate()["foreground_mean"]["Dice"] > 0.98


def test_arrays_of_another_plan_are_refused(raw_dataset: Make, build: Build) -> None:
    house = build(raw_dataset(cases=2))
    changed = dataclasses.replace(house.plan.configuration(None), spacing=(3.0, 2.0, 2.0))
    with pytest.raises(PlanError, match="another plan"):
        validate_fold(house.paths, house.raw.name, house.plan, changed, 0, ValidationOptions(device=CPU))


def test_a_fold_without_checkpoint(raw_dataset: Make, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    house = build(raw_dataset(cases=2))
    monkeypatch.undo()
    write_json(house.fold.parent / "plan.json", house.plan)
    write_json(house.fold.parent / "dataset.json", json.loads((house.raw / "dataset.json").read_text()))
    (house.fold / "checkpoint_best" / "checkpoint.json").unlink()
    (house.fold / "checkpoint_best").rmdir()
    with pytest.raises(ModelError, match=r"fold 0 of .* has no checkpoint"):
        house.validate()


def test_probabilities_are_saved_where_asked_for_and_kept(raw_dataset: Make, build: Build) -> None:
    house = build(raw_dataset(cases=2))
    house.validate()
    assert not list(house.fold.glob("validation/*.npz"))
    house.validate(save_probabilities=True)  # predicted again for their sake
    (file,) = house.fold.glob("validation/*.npz")
    (segmentation,) = house.fold.glob("validation/*.nii.gz")
    assert file.name.removesuffix(".npz") == segmentation.name.removesuffix(".nii.gz")
    found = read_probabilities(file)
    assert found.geometry.difference(read_geometry(segmentation)) is None
    made = file.stat().st_mtime_ns
    house.validate(save_probabilities=True)
    assert file.stat().st_mtime_ns == made
    house.validate(redo=True)  # an ensemble must not average those of another prediction
    assert not file.exists()


def test_what_is_chosen_of_the_flips_is_done_and_written_down(
    raw_dataset: Make, build: Build, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="masam_auto")
    house = build(raw_dataset(cases=2))
    mirrored = note_mirroring(monkeypatch)
    summary = house.validate()
    assert summary["protocol"] == {"checkpoint": "best", "mirror": True}
    (file,) = house.fold.glob("validation/*.nii.gz")
    made = file.stat().st_mtime_ns
    summary = house.validate(mirror=False)  # predicted again: the file there was made otherwise
    assert file.stat().st_mtime_ns > made
    assert summary["protocol"] == json.loads((file.parent / "summary.json").read_text())["protocol"]
    assert summary["protocol"] == {"checkpoint": "best", "mirror": False}
    record = json.loads((file.parent / "predicted_with.json").read_text())
    assert (record["mirror"], record["why"]) == (False, "as asked for")
    assert "validation without flips: as asked for" in caplog.text
    made = file.stat().st_mtime_ns
    monkeypatch.setattr(validate, "choose_validation_mirroring", lambda *arguments, **options: (False, "slow"))
    house.validate()
    assert file.stat().st_mtime_ns == made
    assert mirrored == [True, False]
