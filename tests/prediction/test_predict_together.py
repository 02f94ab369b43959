"""Several processes predict a folder: each case is there at the end and written once, whoever is killed meanwhile."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from masam_auto.compute.case_launcher import launch_for_cases

ROOT = Path(__file__).resolve().parents[2]
RANK = ROOT / "tests" / "predicting_rank.py"
CASES = 8
ALL = [f"case_{i:03d}" for i in range(CASES)]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="signals")]


@pytest.fixture
def settings(raw_dataset: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Writes the settings of `predicting_rank` for a folder of eight cases; what is given are disturbances by case."""
    raw = raw_dataset(cases=CASES)

    def write(disturb: dict[str, str] | None = None, **options: Any) -> Path:
        file = tmp_path / "settings.json"
        found = {"raw": str(raw), "output": str(tmp_path / "out"), "disturb": disturb or {}, "options": options}
        file.write_text(json.dumps(found))
        return file

    return write


def environment() -> dict[str, str]:
    return dict(os.environ) | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def launch(settings: Path) -> int:
    return launch_for_cases("tests.predicting_rank", [str(settings)], environment(), processes=2)


def written(folder: Path) -> list[str]:
    """Cases in order of the files' appearing."""
    return [line.split()[0] for line in (folder / "log").read_text().splitlines()]


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "out").iterdir())


def expected_files(cases: list[str]) -> list[str]:
    return [*(f"{case}.nii.gz" for case in cases), "dataset.json", "plan.json"]


def test_a_slow_case_and_a_killed_process_and_what_is_there_already(
    settings: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "case_004.nii.gz").write_bytes(b"mine")
    assert launch(settings({"case_000": "slow", "case_002": "kill", "case_005": "kill"}, continue_prediction=True)) == 0
    assert files(tmp_path) == expected_files(ALL)
    assert sorted(written(tmp_path)) == [case for case in ALL if case != "case_004"], "each is written once"
    assert capfd.readouterr().out == f"{CASES - 1} predicted, 1 kept\n"


def test_a_case_that_kills_and_one_that_cannot_be_read_are_reported_and_the_others_done(
    settings: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = settings({"case_003": "deadly"})
    (tmp_path / "raw" / "Dataset001_Toy" / "imagesTr" / "case_006_0000.nii.gz").write_bytes(b"no image")
    assert launch(file) == 3
    good = [case for case in ALL if case not in ("case_003", "case_006")]
    assert files(tmp_path) == expected_files(good)
    assert sorted(written(tmp_path)) == good
    output, errors = capfd.readouterr()
    assert output == "6 predicted, 0 kept\n"
    told = errors[errors.index("error: ") :].splitlines()
    assert told[0] == "error: 2 not predicted:"
    assert told[1].startswith("  - case case_003: the process that predicted it was killed, and again")
    assert "case_006" in told[2]
    assert len(told) == 3


def test_a_full_disk_ends_all_with_one_line(
    settings: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert launch(settings({"case_000": "unwritable"})) == 2
    errors = capfd.readouterr().err
    assert [line for line in errors.splitlines() if line.startswith("error")] == ["error: the disk is full"]
    assert not [name for name in files(tmp_path) if "partial" in name]


def test_nothing_is_overwritten_unasked(
    settings: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "case_004.nii.gz").write_bytes(b"mine")
    assert launch(settings()) == 2
    output, errors = capfd.readouterr()
    assert errors.count("error") == 1 and "already holds case_004.nii.gz" in errors and not output
    assert files(tmp_path) == ["case_004.nii.gz"]


def start_torchrun(settings: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", *options, str(RANK), str(settings)]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_under_torchrun_a_killed_process_is_made_up_for(settings: Callable[..., Path], tmp_path: Path) -> None:
    options = ["--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    launcher = start_torchrun(settings({"case_002": "kill"}), *options)
    output, errors = launcher.communicate(timeout=120)
    assert launcher.returncode == 0, errors
    assert output.splitlines()[-1] == f"{CASES} predicted, 0 kept"
    assert files(tmp_path) == expected_files(ALL)
    assert sorted(written(tmp_path)) == ALL


def test_two_machines_share_the_cases(settings: Callable[..., Path], tmp_path: Path) -> None:
    file = settings({"case_000": "slow", "case_001": "slow"})
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = str(found.getsockname()[1])
    options = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", port]
    nodes = [
        start_torchrun(file, *options, "--node-rank", str(node), "--local-addr", f"127.0.0.{1 + node}")
        for node in (0, 1)
    ]
    for node in nodes:
        _, errors = node.communicate(timeout=120)
        assert node.returncode == 0, errors
    assert sorted(written(tmp_path)) == ALL
    assert files(tmp_path) == expected_files(ALL)
