import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from masam_auto.core.companions import RAW_DATA_NAME, write_companions
from masam_auto.core.dataset import Dataset, open_dataset
from masam_auto.core.errors import PlanError
from masam_auto.core.paths import Paths


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
    raw_dataset: Callable[..., Path], raw_data: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:  # fmt: skip
    raw = raw_dataset(cases=3)
    path = tmp_path / "pre" / "splits.json"
    path.parent.mkdir()
    path.write_text(json.dumps([{"train": ["case_000"], "val": ["case_001"]}]))
    before = path.read_bytes()
    write_companions(opened(raw), tmp_path / "pre")
    assert path.read_bytes() == before
    assert "1 of 3 cases stand in no fold" in caplog.text
    path.write_text(json.dumps([{"train": ["case_000"], "val": ["stranger"]}]))
    with pytest.raises(PlanError, match="unknown cases in val: stranger"):
        write_companions(opened(raw), tmp_path / "pre")


def test_folds_of_the_raw_folder_are_taken(
    raw_dataset: Callable[..., Path], raw_data: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:  # fmt: skip
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
    assert f"{taken} has other folds than {given}, and stays" in caplog.text


@pytest.mark.parametrize(
    ("fold", "words"),
    [({"train": ["case_000"], "val": ["stranger"]}, "unknown cases in val: stranger"),
     ({"train": ["case_000", "case_000"], "val": ["case_001"]}, "twice in train: case_000"),
     ({"train": ["case_000"], "val": ["case_000"]}, "in train and in val: case_000")],
)  # fmt: skip
def test_folds_of_the_raw_folder_that_do_not_fit_are_not_taken(
    raw_dataset: Callable[..., Path], tmp_path: Path, fold: dict[str, list[str]], words: str
) -> None:
    raw = raw_dataset(cases=3)
    (raw / "splits.json").write_text(json.dumps([fold]))
    with pytest.raises(PlanError, match=words):
        write_companions(opened(raw), tmp_path / "pre")
    assert not (tmp_path / "pre" / "splits.json").exists()
