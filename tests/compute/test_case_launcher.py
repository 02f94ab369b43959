"""Starting processes that share out cases: exit codes, and what becomes of the others when one ends."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from masam_auto.compute import case_launcher as module
from masam_auto.compute.case_launcher import launch_for_cases
from masam_auto.core.errors import MasamError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")
BEGINNING = """
import os, pathlib, signal, sys, time
rank = os.environ["RANK"]
assert os.environ["WORLD_SIZE"] == os.environ["LOCAL_WORLD_SIZE"] == "2" and int(os.environ["MASTER_PORT"])
log = pathlib.Path(sys.argv[1], rank)
log.write_text(log.read_text() + "started " if log.exists() else "started ")
"""


def launch(folder: Path, code: str) -> int:
    (folder / "case_rank_of_test.py").write_text(BEGINNING + code)
    environment = dict(os.environ) | {"PYTHONPATH": str(folder)}
    return launch_for_cases("case_rank_of_test", [str(folder)], environment, processes=2)


def starts(folder: Path) -> list[int]:
    return [(folder / rank).read_text().count("started") for rank in ("0", "1")]


def test_the_first_ones_exit_code_is_handed_on(tmp_path: Path) -> None:
    assert launch(tmp_path, "sys.exit(3 if rank == '0' else 0)") == 3


def test_the_store_is_not_reached_from_elsewhere(tmp_path: Path) -> None:
    code = """
import socket
with socket.socket() as own, socket.socket() as other:
    port = int(os.environ["MASTER_PORT"])
    sys.exit(2 * own.connect_ex(("127.0.0.1", port)) + (other.connect_ex(("127.0.0.2", port)) == 0))
"""
    assert launch(tmp_path, code) == 0


def test_another_that_fails_ends_all(tmp_path: Path) -> None:
    code = """
while rank == "1" and not (log.parent / "0").exists():
    time.sleep(0.05)
sys.exit(2) if rank == "1" else time.sleep(60)
"""
    assert launch(tmp_path, code) == 2
    assert starts(tmp_path) == [1, 1]


def test_one_that_is_killed_is_started_again_and_the_other_goes_on(tmp_path: Path) -> None:
    code = """
if rank == "1" and log.read_text() == "started ":
    os.kill(os.getpid(), signal.SIGKILL)
while rank == "0" and not (log.parent / "1").exists() or (log.parent / "1").read_text().count("started") < 2:
    time.sleep(0.05)
"""
    assert launch(tmp_path, code) == 0
    assert starts(tmp_path) == [1, 2]


def test_processes_that_are_killed_again_and_again_are_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RESTARTS_EACH", 1)
    with pytest.raises(MasamError, match=r"were killed \(signal 9\) repeatedly.* `continue_prediction`"):
        launch(tmp_path, "os.kill(os.getpid(), signal.SIGKILL) if rank == '1' else time.sleep(60)")
    assert starts(tmp_path) == [1, 3]


def test_all_are_ended_with_the_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(seconds: float) -> None:
        if not raised and all(
            (tmp_path / rank).exists() and (tmp_path / rank).read_text() == "ready" for rank in ("0", "1")
        ):
            raised.append(True)
            raise KeyboardInterrupt
        sleep(seconds)

    sleep, raised = time.sleep, list[bool]()
    monkeypatch.setattr(module.time, "sleep", interrupt)
    code = f"""
def note(*ignored):
    log.write_text("ended")
    sys.exit({128 + signal.SIGTERM})
signal.signal(signal.SIGTERM, note)
(log.parent / rank).write_text("ready")
time.sleep(60)
"""
    with pytest.raises(KeyboardInterrupt):
        launch(tmp_path, code)
    assert [(tmp_path / rank).read_text() for rank in ("0", "1")] == ["ended", "ended"]
