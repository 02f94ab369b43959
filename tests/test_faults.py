"""A sample of `make faults` and `make fuzz`: commands that are killed or refused what they write, and damaged files."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
GROUPS = {
    "learn": ("plan_and_preprocess", "train", "validate", "find_best"),
    "use": ("predict", "segment", "ensemble", "postprocess", "evaluate", "convert"),
    "share": ("export", "install_over", "import_over"),
}


def run(module: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        # commands that ran in this process have set PYTHONSAFEPATH, for their children
        env={name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"} | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("group", GROUPS)
def test_nothing_is_lost_or_left_over_when_commands_are_stopped(group: str) -> None:
    assert " 0 problems" in run("tests.faults", *GROUPS[group], "--sample", "3").splitlines()[-1]


def test_damaged_files_are_read_or_refused_in_one_line() -> None:
    assert run("tests.fuzz", "--files", "400", "--seed", "11").splitlines()[-1].endswith(", 0 findings")
