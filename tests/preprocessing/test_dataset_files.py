import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from masam_auto.core.dataset import Dataset, open_dataset
from masam_auto.core.errors import PlanError
from masam_auto.core.paths import Paths
from masam_auto.preprocessing.dataset_files import RAW_DATA_NAME, write_companions


def opened(folder: Path) -> Dataset:
    roots = Paths(raw=folder.parent, preprocessed=folder, results=folder, weights=folder)
    return open_dataset(roots, folder.name)


def test_description_origin_and_folds_are_laid_down(raw_dataset: Callable[..., Path], tmp_path: Path) -> None:
    raw = raw_dataset(cases=3)
    write_companions(opened(raw), tmp_path / "pre")
    assert json.loads((tmp_path / "pre" / "dataset.json").read_text()) == json.loads((raw / "dataset.json").read_text())
    assert json.loads((tmp_path / "pre" / RAW_DATA_NAME).read_text()) == {"folder": str(raw)}
    folds = json.loads((tmp_path / "pre" / "splits.json").read_text())
    assert sorted(name for fold in folds for name in fold["val"]) == ["case_000", "case_001", "case_002"]


def test_folds_that_are_there_stay_and_late_cases_are_announced(
    raw_dataset: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    raw = raw_dataset(cases=3)
    path = tmp_path / "pre" / "splits.json"
    path.parent.mkdir()
    path.write_text(json.dumps([{"train": ["case_000"], "val": ["case_001"]}]))
    before = path.read_bytes()
    write_companions(opened(raw), tmp_path / "pre")
    assert path.read_bytes() == before
    assert "1 of 3 cases are in no fold" in caplog.text
    path.write_text(json.dumps([{"train": ["case_000"], "val": ["stranger"]}]))
    with pytest.raises(PlanError, match="unknown cases in val: stranger"):
        write_companions(opened(raw), tmp_path / "pre")


def test_folds_of_the_raw_folder_are_taken(
    raw_dataset: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    raw = raw_dataset(cases=3)
    given = raw / "splits.json"
    given.write_text(json.dumps([{"train": ["case_000"], "val": ["case_001", "case_002"], "test": ["elsewhere"]}]))
    write_companions(opened(raw), tmp_path / "pre")
    taken = tmp_path / "pre" / "splits.json"
    assert taken.read_bytes() == given.read_bytes()
    assert not caplog.records
    given.write_text(json.dumps([{"train": ["case_001"], "val": ["case_000"]}]))
    before = taken.read_bytes()
    write_companions(opened(raw), tmp_path / "pre")
    assert taken.read_bytes() == before
    assert f"the folds in {given} differ from those in {taken} and are not used" in caplog.text


@pytest.mark.parametrize("place", ["raw", "preprocessed", "nnunet"])
def test_folds_of_nnunet_are_taken_wherever_they_lie(
    raw_dataset: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    raw, pre, nnunet = raw_dataset(cases=3), tmp_path / "pre" / "Dataset001_Toy", tmp_path / "nnunet"
    folder = {"raw": raw, "preprocessed": pre, "nnunet": nnunet / "Dataset001_Toy"}[place]
    folder.mkdir(parents=True, exist_ok=True)
    given = folder / "splits_final.json"
    given.write_text(json.dumps([{"train": ["case_000", "case_001"], "val": ["case_002"]}]))
    with caplog.at_level(logging.INFO):
        write_companions(opened(raw), pre, nnunet_preprocessed=nnunet)
    assert (pre / "splits.json").read_bytes() == given.read_bytes() and f"folds: taken from {given}" in caplog.text
    caplog.clear()
    given.write_text(json.dumps([{"train": ["case_000"], "val": ["case_002"]}]))
    write_companions(opened(raw), pre, nnunet_preprocessed=nnunet)
    assert f"the folds in {given} differ from those in {pre / 'splits.json'} and are not used" in caplog.text


def test_the_first_of_several_is_taken_and_the_others_are_named(
    raw_dataset: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    raw, pre = raw_dataset(cases=3), tmp_path / "pre"
    (raw / "splits.json").write_text(json.dumps([{"train": ["case_000"], "val": ["case_001", "case_002"]}]))
    (raw / "splits_final.json").write_text(json.dumps([{"train": ["case_001"], "val": ["case_000", "case_002"]}]))
    write_companions(opened(raw), pre)
    assert (pre / "splits.json").read_bytes() == (raw / "splits.json").read_bytes()
    assert f"the folds in {raw / 'splits_final.json'} differ from those in" in caplog.text


def test_a_patients_cases_stay_together_and_given_folds_that_divide_one_are_warned_of(
    raw_dataset: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    raw = raw_dataset(cases=6)
    owners = {f"case_{number:03d}": f"patient_{number // 2}" for number in range(6)}
    (raw / "patients.json").write_text(json.dumps(owners))
    with caplog.at_level(logging.INFO):
        write_companions(opened(raw), tmp_path / "pre")
    assert "folds: 6 cases of 3 patients (case_000 and case_001 are of patient_0)" in caplog.text
    assert "both sides" not in caplog.text
    folds = json.loads((tmp_path / "pre" / "splits.json").read_text())
    assert all(len({owners[name] for name in fold["val"]}) == 1 and len(fold["val"]) == 2 for fold in folds)
    (raw / "splits.json").write_text(json.dumps([{"train": ["case_000", "case_002"], "val": ["case_001", "case_004"]}]))
    write_companions(opened(raw), tmp_path / "other")
    assert (
        "1 of 3 patients both in training and validation (patient_0: case_000 is trained on, case_001 is validated)"
        in caplog.text
    )


@pytest.mark.parametrize(
    ("fold", "words"),
    [
        ({"train": ["case_000"], "val": ["stranger"]}, "unknown cases in val: stranger"),
        ({"train": ["case_000", "case_000"], "val": ["case_001"]}, "twice in train: case_000"),
        ({"train": ["case_000"], "val": ["case_000"]}, "in train and in val: case_000"),
    ],
)
def test_folds_of_the_raw_folder_that_do_not_fit_are_not_taken(
    raw_dataset: Callable[..., Path], tmp_path: Path, fold: dict[str, list[str]], words: str
) -> None:
    raw = raw_dataset(cases=3)
    (raw / "splits.json").write_text(json.dumps([fold]))
    with pytest.raises(PlanError, match=words):
        write_companions(opened(raw), tmp_path / "pre")
    assert not (tmp_path / "pre" / "splits.json").exists()


def test_folds_elsewhere_that_do_not_fit_are_told_and_stop_nothing(
    raw_dataset: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """nnU-Net's folder may be of an older copy of the data set, or damaged."""
    raw, pre, nnunet = raw_dataset(cases=3), tmp_path / "pre" / "Dataset001_Toy", tmp_path / "nnunet"
    given = nnunet / "Dataset001_Toy" / "splits_final.json"
    given.parent.mkdir(parents=True)
    for text, words in (
        ('[{"train": ["gone"], "val": ["case_000"]}]', "unknown cases in train: gone"),
        ("{", "not valid JSON"),
    ):
        given.write_text(text)
        for _ in range(2):  # while folds are made, and beside those that are there
            caplog.clear()
            write_companions(opened(raw), pre, nnunet_preprocessed=nnunet)
        assert str(given) in caplog.text
        (pre / "splits.json").unlink()
        caplog.clear()
        write_companions(opened(raw), pre, nnunet_preprocessed=nnunet)
        assert f"{given} is not used" in caplog.text and words in caplog.text
        (pre / "splits.json").unlink()
