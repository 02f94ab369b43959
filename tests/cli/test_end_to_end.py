"""The commands one after the other on a tiny data set, and what they say to mistakes."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from masam_auto.cli import evaluate, extract_fingerprint, plan, plan_and_preprocess, predict, preprocess, train
from masam_auto.cli.common import Main
from masam_auto.formats.io import read_geometry, read_labels
from tests import raw_data
from tests.cli.in_process import command

pytestmark = pytest.mark.slow

QUICK = ["--set", "training.num_epochs=1", "training.steps_per_epoch=3", "training.warmup_steps=1"]
PLANNED = ["-c", "axis0", "--workers", "0", "-gpu_memory_target", "0"]
Command = Callable[..., int]


@pytest.fixture(scope="module")
def root(house: Path) -> Path:
    """A raw data set of volumes, planned, preprocessed and with a trained fold."""
    raw_data.make_raw_dataset(house / "raw", cases=3, shape=(5, 16, 14), test_cases=2)
    assert command(plan_and_preprocess.main, "-d", 1, *PLANNED) == 0
    assert command(train.main, 1, "fold0", *QUICK, "-device", "cpu", "--workers", 0) == 0
    return house


def model_folder(root: Path) -> Path:
    return root / "results" / "Dataset001_Toy" / "masam__axis0"


def test_training_leaves_what_is_promised(root: Path) -> None:
    fold = model_folder(root) / "fold_0"
    assert {path.name for path in model_folder(root).iterdir()} >= {"plan.json", "dataset.json", "fold_0"}
    assert {path.name for path in fold.iterdir()} >= {
        "checkpoint_best",
        "checkpoint_latest",
        "metrics.jsonl",
        "progress.png",
        "training.log",
        "validation",
    }
    summary = json.loads((fold / "validation" / "summary.json").read_text())
    assert set(summary["mean"]) == {"1", "2"}
    assert {"Dice", "IoU", "HD95_mm", "NSD"} <= set(summary["mean"]["1"])
    for entry in summary["metric_per_case"]:
        assert (
            read_geometry(Path(entry["prediction_file"])).difference(read_geometry(Path(entry["reference_file"])))
            is None
        )


def test_predict_and_evaluate(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = root / "raw" / "Dataset001_Toy" / "imagesTr"
    assert command(predict.main, "-i", images, "-o", tmp_path / "segs") == 0
    assert sorted(path.name for path in tmp_path.glob("segs/*.nii.gz")) == [f"case_00{i}.nii.gz" for i in range(3)]
    assert command(evaluate.main, tmp_path / "segs", root / "raw" / "Dataset001_Toy" / "labelsTr") == 0
    out, err = capsys.readouterr()
    assert "organ1" in out and f"predicting with {model_folder(root)}: fold_0, checkpoint best\n" in err
    assert (tmp_path / "segs" / "summary.json").is_file()
    assert command(predict.main, "-i", images, "-o", tmp_path / "segs") == 2
    assert "--continue_prediction" in capsys.readouterr().err
    single = images / "case_000_0000.nii.gz"
    model = shutil.copytree(model_folder(root), tmp_path / "renamed")
    assert command(predict.main, "-i", single, "-o", tmp_path / "one", "-m", model, "-f", "0") == 0
    one, both = (read_labels(tmp_path / name / "case_000.nii.gz")[0] for name in ("one", "segs"))
    assert np.array_equal(one, both)


def test_validation_alone_gives_the_same(root: Path) -> None:
    summary = model_folder(root) / "fold_0" / "validation" / "summary.json"
    before = json.loads(summary.read_text())["mean"]
    summary.unlink()
    assert command(train.main, "1", "0", "--val") == 0
    assert json.loads(summary.read_text())["mean"] == before


def test_continuing_a_finished_training_only_validates(root: Path) -> None:
    metrics = (model_folder(root) / "fold_0" / "metrics.jsonl").read_bytes()
    assert command(train.main, "1", "0", "--c") == 0
    assert (model_folder(root) / "fold_0" / "metrics.jsonl").read_bytes() == metrics


def test_some_cases_fail(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = root / "raw" / "Dataset001_Toy" / "imagesTs"
    images = tmp_path / "images"
    images.mkdir()
    for path in source.iterdir():
        (images / path.name).write_bytes(path.read_bytes())
    (images / "test_001_0000.nii.gz").write_bytes((source / "test_001_0000.nii.gz").read_bytes()[:200])
    assert command(predict.main, "-i", images, "-o", tmp_path / "segs") == 3
    captured = capsys.readouterr()
    assert "1 predicted" in captured.out
    assert "test_001" in captured.err
    assert not (tmp_path / "segs" / "test_001.nii.gz").exists()
    (images / "test_000_0000.nii.gz").unlink()
    assert command(predict.main, "-i", images, "-o", tmp_path / "none") == 2


def test_two_processes_share_the_cases_and_report_once(root: Path, tmp_path: Path) -> None:
    images = shutil.copytree(root / "raw" / "Dataset001_Toy" / "imagesTs", tmp_path / "images")
    (images / "bad_0000.nii.gz").write_bytes((images / "test_000_0000.nii.gz").read_bytes()[:200])
    options = ["-i", images, "-o", tmp_path / "out", "-m", model_folder(root), "-device", "cpu", "-num_gpus", "2"]
    command = [sys.executable, "-m", "masam_auto.cli.predict", *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 3, done.stderr
    assert done.stdout == f"2 predicted: {tmp_path / 'out'}\n"
    told = done.stderr[done.stderr.index("error: ") :].splitlines()
    assert told[0] == "error: 1 not predicted:" and "bad_0000.nii.gz" in told[1] and len(told) == 2
    made = {path.name for path in (tmp_path / "out").iterdir()}
    assert made == {"test_000.nii.gz", "test_001.nii.gz", "dataset.json", "plan.json"}


def test_plan_and_preprocess_in_steps(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = root / "preprocessed" / "Dataset001_Toy"
    before = (folder / "plan.json").read_bytes()
    fingerprint = (folder / "fingerprint.json").read_bytes()
    assert command(extract_fingerprint.main, "-d", "1", "--workers", "0") == 0
    assert (folder / "fingerprint.json").read_bytes() == fingerprint
    assert command(plan.main, "-d", "1", "-gpu_memory_target", "0", "--set", "training.seed=7") == 0
    assert json.loads((folder / "plan.json").read_text())["training"]["seed"] == 7
    assert (folder / "plan.previous.json").read_bytes() == before
    assert command(plan.main, "-d", "1", "-gpu_memory_target", "0") == 0
    assert (folder / "plan.json").read_bytes() == before
    (folder / "plan.json").write_text("{")
    assert command(plan.main, "-d", "1", "-gpu_memory_target", "0") == 0
    assert (folder / "plan.json").read_bytes() == before and (folder / "plan.previous.json").read_text() == "{"
    arrays = {path: path.stat().st_mtime_ns for path in (folder / "axis0").glob("*.b2nd")}
    assert command(preprocess.main, "-d", "1", "-c", "axis0", "--workers", "0") == 0
    assert {path: path.stat().st_mtime_ns for path in arrays} == arrays
    assert command(preprocess.main, "-d", "1", "-c", "axis0", "--workers", "0", "--overwrite") == 0
    assert all(path.stat().st_mtime_ns > before for path, before in arrays.items())


@pytest.mark.parametrize(("preprocessed", "said"), [("2d", " -c 2d"), ("axis0", "")])
def test_the_next_command_trains_what_was_preprocessed(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], preprocessed: str, said: str
) -> None:
    options = ["-c", preprocessed, "--preprocessed", tmp_path, "--workers", "0", "-gpu_memory_target", "0"]
    assert command(plan_and_preprocess.main, "-d", "1", *options) == 0
    assert capsys.readouterr().out.endswith(f"next: masam_train Dataset001_Toy 0{said}\n")


@pytest.mark.parametrize(
    ("main", "arguments", "message"),
    [
        (plan_and_preprocess.main, ["-d", "9"], "data set '9' not found"),
        (plan_and_preprocess.main, ["-d", "1", "9", "--preprocessed", "{tmp}/out"], "data set '9' not found"),
        (plan_and_preprocess.main, ["-d", "1", "-backbone", "vit_x", "--no_pp"], "network.encoder 'vit_x' is unknown"),
        (plan_and_preprocess.main, ["-d", "1", "--set", "training.epochs=3", "--no_pp"], "unknown field 'epochs'"),
        (preprocess.main, ["-d", "1", "-c", "axis7"], "configuration 'axis7' is not in the plan"),
        (train.main, ["9", "0"], "data set '9' not found"),
        (train.main, ["1", "8"], "fold 8 does not exist"),
        (train.main, ["1", "0"], "holds a training already"),
        (train.main, ["1", "1", "--c"], "no checkpoint to continue from"),
        (train.main, ["1", "1", "--val"], "fold 1 of .* has no checkpoint"),
        (train.main, ["1", "1", "-c", "2d"], "no preprocessed data in .* There is data of axis0 "),
        (train.main, ["1", "1", "--budget", "soon"], "budget 'soon' is not valid"),
        (train.main, ["1", "1", "--set", "axis0.spacing=3,2,2"], "was preprocessed with another plan"),
        (train.main, ["1", "1", "-device", "abacus"], "device 'abacus' is unknown"),
        (
            train.main,
            ["1", "0", "--preprocessed", "{tmp}"],
            "plan not found: .* masam_plan_and_preprocess -d Dataset001_Toy,",
        ),
        (plan.main, ["-d", "1", "--preprocessed", "{tmp}"], "fingerprint not found: .* masam_plan_and_preprocess"),
        (predict.main, ["-i", "{root}/raw", "-o", "{tmp}/out"], "no images like ID_0000.nii.gz"),
        (predict.main, ["-i", "{root}/nothing", "-o", "{tmp}/out"], "input not found"),
        (predict.main, ["-i", "{root}/raw", "-o", "{tmp}/out", "-f", "4"], "fold 4 of .* has no checkpoint"),
        (predict.main, ["-i", "{root}/raw", "-o", "{tmp}/out", "-d", "5"], "data set '5' not found"),
        (predict.main, ["-i", "{root}/raw", "-o", "{tmp}/out", "-m", "{tmp}"], "is not a trained model"),
        (evaluate.main, ["{tmp}", "{root}/raw/Dataset001_Toy/labelsTr"], "segmentations are missing"),
        (evaluate.main, ["{tmp}", "{tmp}"], "no dataset.json in"),
    ],
)
def test_mistakes_give_one_line_and_exit_code_2(
    root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    main: Main,
    arguments: list[str],
    message: str,
) -> None:
    before = sorted(os.walk(root / "results"))
    assert command(main, *(text.format(root=root, tmp=tmp_path) for text in arguments)) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert re.search(message, errors[0]), errors[0]
    assert sorted(os.walk(root / "results")) == before
    assert not (tmp_path / "out").exists()


def test_cases_added_after_the_folds_were_made_are_announced(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = raw_data.make_raw_dataset(tmp_path / "raw", cases=3, shape=(5, 16, 14))
    options = ["-d", raw, *PLANNED, "--preprocessed", tmp_path / "pre"]
    assert command(plan_and_preprocess.main, *options) == 0
    for folder, channel in (("imagesTr", "_0000"), ("labelsTr", "")):
        source = raw / folder / f"case_000{channel}.nii.gz"
        (raw / folder / f"late{channel}.nii.gz").write_bytes(source.read_bytes())
    capsys.readouterr()
    assert command(plan_and_preprocess.main, *options) == 0
    assert "1 of 4 cases are in no fold" in capsys.readouterr().err


def test_a_plan_of_another_data_set_is_refused(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan_file = tmp_path / "pre" / "Dataset001_Toy" / "plan.json"
    plan_file.parent.mkdir(parents=True)
    text = (root / "preprocessed" / "Dataset001_Toy" / "plan.json").read_text()
    plan_file.write_text(text.replace("Dataset001_Toy", "Dataset002_Two"))
    assert command(preprocess.main, "-d", "1", "--preprocessed", tmp_path / "pre") == 2
    assert "is the plan for Dataset002_Two" in capsys.readouterr().err


@pytest.mark.parametrize("memory", ["-3", "nan", "much"])
def test_nonsensical_memory_is_refused(memory: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        command(plan.main, "-d", "1", f"-gpu_memory_target={memory}")
    assert stopped.value.code == 2


def test_a_raw_data_set_is_no_place_for_predictions(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = root / "raw" / "Dataset001_Toy"
    before = (raw / "dataset.json").read_bytes()
    assert command(predict.main, "-i", raw / "imagesTr", "-o", raw) == 2
    assert "is a raw data set" in capsys.readouterr().err
    assert (raw / "dataset.json").read_bytes() == before
