"""masam_train -num_gpus: from one command to trained, validated cases, by several processes."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from masam_auto.cli import plan_and_preprocess
from masam_auto.core.jsonio import read_json
from masam_auto.models.checkpoint import LATEST, STATE_FILE, TrainingState

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="signals")]


@pytest.fixture
def roots(raw_dataset: Callable[..., Path], tmp_path: Path) -> list[str]:
    """Options that name the root folders of a preprocessed data set of four cases; both folds hold out two."""
    raw_dataset(number=1, name="Toy", cases=4)
    found = [f"--{name}={tmp_path / name}" for name in ("raw", "preprocessed", "results", "weights")]
    assert plan_and_preprocess.main(["-d", "1", "--workers", "0", *found]) == 0
    splits = tmp_path / "preprocessed" / "Dataset001_Toy" / "splits.json"
    names = sorted({name for fold in json.loads(splits.read_text()) for name in fold["train"]})
    splits.write_text(json.dumps([{"train": names[:2], "val": names[2:]}]))
    return found


def train(roots: list[str], *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "masam_auto.cli.train", "1", "0", *roots, "-num_gpus", "2", "-device", "cpu"]
    command += ["--workers", "0", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def test_two_processes_are_stopped_by_a_signal_continued_and_share_the_validation(
    roots: list[str], tmp_path: Path
) -> None:
    settings = ["--budget", "1000steps", "--set", "training.steps_per_epoch=1000", "axis0.batch_size=2"]
    first = train(roots, *settings)
    log = tmp_path / "results" / "Dataset001_Toy" / "masam__axis0" / "fold_0" / "training.log"
    waited = 0.0
    while not (log.is_file() and "million parameters" in log.read_text()) and waited < 60:
        time.sleep(0.2)
        waited += 0.2
    first.send_signal(signal.SIGUSR1)
    output, errors = first.communicate(timeout=60)
    assert first.returncode == 128 + signal.SIGUSR1, errors
    assert next(line for line in errors.splitlines() if line.startswith("error: ")).endswith("continue with --c.")
    state = read_json(log.parent / LATEST / STATE_FILE, TrainingState, what="checkpoint")
    assert state.epoch == 0 and state.unfinished.steps == state.step < 1000

    second = train(roots, "--c", "--budget", f"{state.step + 1}steps")
    output, errors = second.communicate(timeout=120)
    assert second.returncode == 0, errors
    assert output.count("over 2 cases") == 1, "one process tells the result"
    summary = json.loads((log.parent / "validation" / "summary.json").read_text())
    assert len(summary["metric_per_case"]) == 2

    third = train(roots)
    output, errors = third.communicate(timeout=60)
    assert third.returncode == 2
    assert len(errors.splitlines()) == 1 and "holds a training already" in errors
