"""masam_demo: where it may write, what it runs, how it goes on. The whole path is `make demo`."""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from masam_auto.cli import demo
from masam_auto.cli.common import run
from masam_auto.core.errors import OutputError

RECORD = {"version": "1", "seed": 1, "budget": "1s"}
COMMANDS = ("plan_and_preprocess", "train", "predict", "evaluate")


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """Replaces the four commands; returns what they are called with. Nothing of the environment stays changed."""
    called: list[list[str]] = []
    for name in COMMANDS:

        def remember(arguments: Sequence[str], name: str = name) -> int:
            called.append([name, *arguments])
            return 0

        monkeypatch.setattr(getattr(demo, name), "main", remember)
    for name in ("RAW", "PREPROCESSED", "RESULTS"):
        monkeypatch.setenv(f"MASAM_{name}", "elsewhere")
    monkeypatch.chdir(tmp_path)
    return called


def parsed(**changes: object) -> argparse.Namespace:
    return argparse.Namespace(**({"seed": 1, "budget": "1s"} | changes))


def test_new_or_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("new", "empty"):
        demo.prepare_folder(tmp_path / name, RECORD, overwrite=False)
        assert json.loads((tmp_path / name / demo.RECORD).read_text()) == RECORD


@pytest.mark.parametrize("overwrite", [False, True])
def test_foreign_folder_is_never_touched(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(OutputError, match="holds no demo"):
        demo.prepare_folder(tmp_path, RECORD, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_same_settings_go_on_and_others_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "demo"
    demo.prepare_folder(folder, RECORD, overwrite=False)
    (folder / "work").write_text("")
    demo.prepare_folder(folder, RECORD, overwrite=False)
    assert "earlier demo" in capsys.readouterr().out
    with pytest.raises(OutputError, match=r"other settings \(seed 1\).*--overwrite"):
        demo.prepare_folder(folder, RECORD | {"seed": 2}, overwrite=False)
    assert (folder / "work").exists()
    demo.prepare_folder(folder, RECORD | {"seed": 2}, overwrite=True)
    assert not (folder / "work").exists()


def test_refusal_is_one_line_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    assert run(demo.main, ["-o", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_commands_run_in_order_as_printed(
    typed: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    times: dict[str, float] = {}
    assert demo.run_commands(tmp_path / "demo", parsed(), times) == 0
    printed = [line[2:] for line in capsys.readouterr().out.splitlines() if line.startswith("$ masam_")]
    assert [" ".join(words) for words in typed] == [line.removeprefix("masam_") for line in printed]
    assert [words[0] for words in typed] == list(COMMANDS)
    assert list(times) == [f"masam_{name}" for name in COMMANDS]
    assert os.environ["MASAM_RAW"] == str(tmp_path / "demo" / "raw")
    assert "--c" not in typed[1]
    assert "--overwrite" not in typed[2]


def test_begun_training_is_continued_and_old_segmentations_are_replaced(typed: list[list[str]], tmp_path: Path) -> None:
    (tmp_path / "results" / demo.DATASET / "masam__axis0" / "fold_0" / "checkpoint_latest").mkdir(parents=True)
    (tmp_path / "segmentations").mkdir()
    demo.run_commands(tmp_path, parsed(), {})
    assert typed[1][-1] == "--c"
    assert typed[2][-1] == "--overwrite"


def test_finished_training_is_not_repeated(typed: list[list[str]], tmp_path: Path) -> None:
    summary = tmp_path / "results" / demo.DATASET / "masam__axis0" / "fold_0" / "validation" / "summary.json"
    summary.parent.mkdir(parents=True)
    summary.write_text("{}")
    demo.run_commands(tmp_path, parsed(), {})
    assert [words[0] for words in typed] == ["plan_and_preprocess", "predict", "evaluate"]


def test_mistyped_budget_is_said_before_anything_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(demo.main, ["-o", str(tmp_path / "demo"), "--budget", "soon"]) == 2
    assert "soon" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


def test_a_failing_command_ends_the_demo(
    typed: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo.train, "main", lambda arguments: 3)
    assert demo.run_commands(tmp_path, parsed(), {}) == 3
    assert [words[0] for words in typed] == ["plan_and_preprocess"]


def test_report_draws_the_picture_and_names_files_that_exist(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = tmp_path / "raw" / demo.DATASET
    model = tmp_path / "results" / demo.DATASET / "masam__axis0" / "fold_0"
    for folder in (raw / "imagesTs", raw / "labelsTs", tmp_path / "segmentations", model):
        folder.mkdir(parents=True)
    labels = np.zeros((4, 8, 8), dtype=np.uint8)
    labels[1:3, 2:6, 2:6] = 1
    for file in (raw / "labelsTs" / "a.nii.gz", tmp_path / "segmentations" / "a.nii.gz"):
        sitk.WriteImage(sitk.GetImageFromArray(labels), str(file))
    sitk.WriteImage(sitk.GetImageFromArray(labels.astype(np.float32)), str(raw / "imagesTs" / "a_0000.nii.gz"))
    (raw / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "liver": 1}}))
    demo.report(tmp_path, {"masam_train": 12.3})
    out = capsys.readouterr().out
    assert "masam_train 12 s" in out
    assert str(tmp_path / "overlay.png") in out
    assert (tmp_path / "overlay.png").stat().st_size > 1000


def test_data_are_made_once(tmp_path: Path) -> None:
    folder = tmp_path / "raw" / demo.DATASET
    folder.mkdir(parents=True)
    (folder / "dataset.json").write_text("{}")
    demo.write_data(tmp_path, parsed(), {})
    assert [path.name for path in folder.iterdir()] == ["dataset.json"]
