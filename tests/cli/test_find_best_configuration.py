"""From two trained models to one selection, and predicting with it; the commands and what they say to mistakes."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from masam_auto.cli import apply_postprocessing, ensemble, find_best_configuration, plan_and_preprocess, predict, train
from masam_auto.cli.common import Main
from masam_auto.core.jsonio import write_json
from masam_auto.core.postprocessing import Postprocessing, PostprocessingStep
from masam_auto.core.selection import SELECTION_NAME, read_selection
from masam_auto.formats.io import read_labels
from masam_auto.formats.probability_files import read_probabilities
from tests import raw_data
from tests.cli.in_process import command

pytestmark = pytest.mark.slow

QUICK = ["--set", "training.num_epochs=1", "training.steps_per_epoch=3", "training.warmup_steps=1"]
QUIET = ["-device", "cpu", "--workers", "0", "--save_probabilities"]
NAME = "Dataset001_Toy"
PLANS = ("first", "second")
Command = Callable[..., int]


@pytest.fixture(scope="module")
def root(house: Path) -> Path:
    """A raw data set, and two models of it with a fold each and probabilities."""
    raw_data.make_raw_dataset(house / "raw", cases=3, shape=(5, 16, 14), test_cases=2)
    assert command(plan_and_preprocess.main, "-d", 1, "-c", "2d", "--workers", 0, "-gpu_memory_target", 0) == 0
    for seed, name in enumerate(PLANS):
        assert command(train.main, 1, "fold0", "-c", "2d", "-p", name, "--seed", seed, *QUICK, *QUIET) == 0
    return house


def labels_of(folder: Path) -> dict[str, np.ndarray]:
    return {path.name: read_labels(path)[0] for path in sorted(folder.glob("*.nii.gz"))}


def test_predict_uses_the_selection_as_the_commands_do_step_by_step(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(find_best_configuration.main, 1, "--workers", 0) == 0
    said = capsys.readouterr().out
    assert "first__2d + second__2d" in said
    assert "masam_predict -i IMAGES -o SEGMENTATIONS -d Dataset001_Toy" in said
    # an ensemble with postprocessing, whatever three steps of training have made the best
    file = root / "results" / NAME / SELECTION_NAME
    plain = json.loads(file.read_text())
    members = [{"configuration": "2d", "plan_name": name, "folds": [0], "checkpoint": "best"} for name in PLANS]
    step = PostprocessingStep(target="foreground", values=(1, 2), rule="keep_largest")
    write_json(file, {**plain, "members": members, "postprocessing": Postprocessing(steps=(step,))})
    images = root / "raw" / NAME / "imagesTs"
    for name in PLANS:
        assert command(predict.main, "-i", images, "-o", tmp_path / name, "-p", name, "--save_probabilities") == 0
    assert "postprocessing: keep" not in capsys.readouterr().err
    each = [tmp_path / name for name in PLANS]
    assert command(ensemble.main, "-i", *each, "-o", tmp_path / "mean", "--save_probabilities") == 0
    assert "2 averaged over 2 folders" in capsys.readouterr().out
    write_json(tmp_path / "postprocessing.json", read_selection(file).postprocessing)
    steps = ["-pp", tmp_path / "postprocessing.json", "--workers", 0]
    assert command(apply_postprocessing.main, "-i", tmp_path / "mean", "-o", tmp_path / "done", *steps) == 0
    assert "2 postprocessed (keep the largest component of foreground)" in capsys.readouterr().out
    assert command(predict.main, "-i", images, "-o", tmp_path / "selected", "--save_probabilities") == 0
    assert "predicting with first__2d + second__2d, postprocessing: keep the largest" in capsys.readouterr().err
    for name in ("test_000", "test_001"):
        mean, selected = (read_probabilities(tmp_path / f / f"{name}.npz").values for f in ("mean", "selected"))
        assert np.abs(mean.astype(np.float32) - selected).max() < 3e-3
    ours, theirs = labels_of(tmp_path / "selected"), labels_of(tmp_path / "done")
    assert list(ours) == list(theirs) == ["test_000.nii.gz", "test_001.nii.gz"]
    # float16 cannot tell classes of nearly equal probability apart
    assert all((ours[name] != theirs[name]).mean() < 0.02 for name in ours)
    # any option that names a model is stronger than the selection
    assert command(predict.main, "-i", images, "-o", tmp_path / "one", "-p", "first", "-f", 0) == 0
    assert all(np.array_equal(labels_of(tmp_path / "one")[name], labels_of(tmp_path / "first")[name]) for name in ours)


def test_mistakes_give_one_line(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def error_of(main: Main, *arguments: object) -> str:
        capsys.readouterr()
        assert command(main, *arguments) == 2
        return capsys.readouterr().err

    assert "Fold all cannot be cross-validated" in error_of(find_best_configuration.main, 1, "-f", "all")
    assert "no trained model matches" in error_of(find_best_configuration.main, 1, "-c", "axis9")
    assert "folder not found" in error_of(ensemble.main, "-i", tmp_path / "a", tmp_path / "b", "-o", tmp_path / "c")
    file = tmp_path / "postprocessing.json"
    assert "postprocessing not found" in error_of(
        apply_postprocessing.main, "-i", tmp_path, "-o", tmp_path / "c", "-pp", file
    )
    selection = root / "results" / NAME / SELECTION_NAME
    before = selection.read_bytes() if selection.is_file() else None
    selection.write_text("{")
    assert "is not valid JSON" in error_of(predict.main, "-i", root, "-o", tmp_path / "c")
    if before is not None:
        selection.write_bytes(before)


def test_some_bad_files_give_exit_code_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "segs").mkdir()
    (tmp_path / "segs" / "a.nii.gz").write_bytes(b"damaged")
    write_json(tmp_path / "postprocessing.json", Postprocessing())
    steps = ["-i", tmp_path / "segs", "-o", tmp_path / "out", "-pp", tmp_path / "postprocessing.json", "--workers", 0]
    assert command(apply_postprocessing.main, *steps) == 2
    assert "1 not postprocessed:\n  - " in capsys.readouterr().err
