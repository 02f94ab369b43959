"""Programs run to their end, or ended with their workers when the waiting is interrupted."""

import contextlib
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from masam_auto.baselines import external_program as program
from masam_auto.baselines.external_program import run_program

# Starts a worker, notes both process numbers, and waits; on the signal that asks it to end it leaves a note, or does
# nothing.
WAITING = """
import os, pathlib, signal, subprocess, sys, time
folder, stubborn = pathlib.Path(sys.argv[1]), len(sys.argv) > 2
def end(*_):
    (folder / "asked").touch()
    stubborn or sys.exit(0)
signal.signal(signal.SIGUSR1, end)
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
(folder / "new").write_text(f"{os.getpid()} {worker.pid}")
(folder / "new").rename(folder / "numbers")
while True:
    time.sleep(0.01)
"""


def test_the_exit_code_is_the_programs() -> None:
    assert run_program([sys.executable, "-c", "raise SystemExit(3)"]) == 3


@pytest.mark.parametrize("stubborn", [False, True])
def test_an_interruption_ends_the_program_and_its_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stubborn: bool
) -> None:
    monkeypatch.setattr(program, "GRACE_SECONDS", 0.3 if stubborn else 30)
    wait = subprocess.Popen.wait

    def interrupted(self: subprocess.Popen[bytes], timeout: float | None = None) -> int:
        if timeout is not None or (tmp_path / "asked").exists():
            return wait(self, timeout)
        while not (tmp_path / "numbers").exists():
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_program([sys.executable, "-c", WAITING, str(tmp_path), *(["stubborn"] if stubborn else [])])
    assert (tmp_path / "asked").exists()
    deadline = time.monotonic() + 10
    for number in (tmp_path / "numbers").read_text().split():
        while _lives(int(number)):
            assert time.monotonic() < deadline
            time.sleep(0.01)


def _lives(number: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(number).status() != psutil.STATUS_ZOMBIE
    return False
