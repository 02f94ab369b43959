"""masam_predict: what its options change. Whole runs: test_end_to_end.py; several processes:
prediction/test_predict_together.py."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from masam_auto.cli import predict
from masam_auto.cli.common import run
from masam_auto.prediction.predict import Predictor
from tests import intensity_model

Command = Callable[..., int]


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[Predictor]:
    """The predictors that were used."""
    found: list[Predictor] = []
    segment = Predictor.segment

    def recorded(self: Predictor, *arguments: Any, **options: Any) -> Any:
        found.append(self)
        return segment(self, *arguments, **options)

    monkeypatch.setattr(Predictor, "segment", recorded)
    return found


@pytest.fixture
def command(raw_dataset: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Predicts four cases, one of them damaged, with a network that is made here."""
    raw = raw_dataset(cases=4)
    (raw / "imagesTr" / "case_001_0000.nii.gz").write_bytes(b"no image")
    monkeypatch.setattr(predict, "load_model", lambda parsed, paths: intensity_model.make_predictor(raw))

    def call(*options: str) -> int:
        return run(predict.main, ["-i", str(raw / "imagesTr"), "-o", str(tmp_path / "out"), "-device", "cpu", *options])

    return call


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".json")


def test_a_bad_case_is_reported_and_the_others_are_done(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command() == 3
    output, errors = capsys.readouterr()
    assert output == f"3 predicted: {tmp_path / 'out'}\n"
    told = errors[errors.index("error: ") :].splitlines()
    assert told[0] == "error: 1 not predicted:" and "case_001_0000.nii.gz" in told[1] and len(told) == 2
    assert names(tmp_path / "out") == [f"case_{i:03d}.nii.gz" for i in (0, 2, 3)]
    assert command("--continue_prediction") == 3
    assert capsys.readouterr().out == f"0 predicted, 3 kept: {tmp_path / 'out'}\n"
    assert command() == 2
    assert "already holds case_000.nii.gz" in capsys.readouterr().err
    assert command("--overwrite") == 3


def test_parts_and_probabilities(command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("-num_parts", "2", "-part_id", "0", "--save_probabilities") == 0
    assert names(tmp_path / "out") == [f"case_{i:03d}.{ending}" for i in (0, 2) for ending in ("nii.gz", "npz")]
    assert command("-num_parts", "2", "-part_id", "1") == 3
    assert "case_003.nii.gz" in names(tmp_path / "out")
    capsys.readouterr()
    assert command("-num_parts", "2", "-part_id", "2") == 2
    assert capsys.readouterr().err == "error: -part_id 2 is too high: the parts of -num_parts 2 are 0 to 1.\n"
    for option in ("-num_parts", "-num_gpus"):
        with pytest.raises(SystemExit):
            command(option, "0")
        assert "must be a whole number from 1 on, got '0'" in capsys.readouterr().err


def test_how_is_predicted(command: Command, used: list[Predictor], capsys: pytest.CaptureFixture[str]) -> None:
    command("-num_parts", "4", "--overwrite")
    command("-num_parts", "4", "--overwrite", "--disable_tta", "-step_size", "0.5")
    plain, changed = (predictor.members[0].plan.inference for predictor in used)
    assert plain.mirror and not changed.mirror
    assert (plain.depth, changed.depth, changed.tile_overlap) == ("whole", "windows", 0.5)
    assert command("-num_parts", "4", "--overwrite", "-step_size", "1.5") == 2
    assert "the step size must be at least 0.05 and at most 1" in capsys.readouterr().err


def test_several_processes_are_started_with_the_same_options(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def launch(module: str, arguments: list[str], environment: dict[str, str], *, processes: int) -> int:
        assert "OMP_NUM_THREADS" in environment
        started.append((module, arguments[-2:], processes))
        return 3

    monkeypatch.setattr("masam_auto.compute.case_launcher.launch_for_cases", launch)
    assert command("-num_gpus", "2") == 3
    assert started == [("masam_auto.cli.predict", ["-num_gpus", "2"], 2)]
