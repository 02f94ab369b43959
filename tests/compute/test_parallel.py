import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import psutil
import pytest

from masam_auto.compute import parallel
from masam_auto.compute.cluster import Cluster
from masam_auto.compute.parallel import choose_workers, is_out_of_memory, map_cases
from masam_auto.core.errors import CaseErrors, ImageError, OutputError


def square(value: int) -> int:
    return value * value


def picky(value: int) -> int:
    if value % 2:
        raise ImageError(f"case{value}.nii.gz: odd")
    return value


def buggy(value: int) -> int:
    return 1 // value


def unwritable(value: int) -> int:
    raise OutputError(f"cannot write case{value}: no space left")


def hungry(value: int) -> int:
    if value == 1:
        raise MemoryError("Unable to allocate 9 EiB")
    if value == 2:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:1] . DefaultCPUAllocator: can't allocate memory: you tried")
    return value


def dying(value: int) -> int:
    os._exit(9)


@pytest.mark.parametrize("workers", [0, 2])
def test_results_come_in_the_order_of_the_items(workers: int) -> None:
    items = list(range(7))
    assert map_cases(square, items, names=[str(i) for i in items], what="squaring", workers=workers) == [
        i * i for i in items
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_problems_of_all_cases_are_reported_together(workers: int) -> None:
    with pytest.raises(CaseErrors) as error:
        map_cases(picky, [1, 2, 3], names=["a", "b", "c"], what="checking", workers=workers)
    assert error.value.problems == ("case1.nii.gz: odd", "case3.nii.gz: odd")
    assert "checking: 2 problems" in str(error.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bug_keeps_the_cases_name_and_the_workers_traceback(workers: int) -> None:
    with pytest.raises(RuntimeError, match="dividing failed for zero") as error:
        map_cases(buggy, [1, 0], names=["one", "zero"], what="dividing", workers=workers)
    assert "ZeroDivisionError" in str(error.value)
    assert "in buggy" in str(error.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_full_disk_ends_it_at_once(workers: int) -> None:
    with pytest.raises(OutputError, match=r"^cannot write case\d: no space left$"):
        map_cases(unwritable, [1, 2, 3], names=["a", "b", "c"], what="preprocessing", workers=workers)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", [1, 2])
def test_want_of_memory_names_the_case_and_keeps_the_traceback_as_the_cause(workers: int, kind: int) -> None:
    with pytest.raises(MemoryError, match=r"^preprocessing of large$") as error:
        map_cases(hungry, [0, kind], names=["small", "large"], what="preprocessing", workers=workers)
    assert "in hungry" in str(error.value.__cause__)


def test_want_of_memory_is_told_from_bugs_also_as_a_cause() -> None:
    outer = ValueError("decoding failed")
    outer.__cause__ = MemoryError()
    assert is_out_of_memory(outer)
    assert is_out_of_memory(type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory"))
    assert not is_out_of_memory(RuntimeError("worker died"))
    assert not is_out_of_memory(ValueError("DefaultCPUAllocator"))


PARENT = """
import os, sys, time
from pathlib import Path
from masam_auto.compute.parallel import map_cases

def wait(folder):
    partial = Path(folder) / f"{os.getpid()}.partial"
    partial.touch()
    partial.rename(Path(folder) / f"{os.getpid()}.pid")
    time.sleep(600)

if __name__ == "__main__":
    map_cases(wait, [sys.argv[1]] * 2, names=["a", "b"], what="waiting", workers=2)
"""


def running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(condition: object, seconds: float = 60.0) -> bool:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script, folder = tmp_path / "parent.py", tmp_path / "pids"
    script.write_text(PARENT)
    folder.mkdir()
    parent = subprocess.Popen([sys.executable, str(script), str(folder)])
    pids: list[int] = []
    try:
        assert wait_until(lambda: len(list(folder.glob("*.pid"))) == 2), "the workers did not start"
        pids = [int(path.stem) for path in folder.glob("*.pid")]
        parent.kill()
        parent.wait()
        assert wait_until(lambda: not any(map(running, pids)), seconds=20), "workers outlive their parent"
    finally:
        parent.kill()
        parent.wait()
        for pid in filter(running, pids):
            os.kill(pid, signal.SIGKILL)


def test_a_worker_that_dies_is_named_with_a_remedy() -> None:
    with pytest.raises(RuntimeError, match=r"`workers=1`"):
        map_cases(dying, [1], names=["big case"], what="preprocessing", workers=1)


def test_workers_are_limited_by_cases_cores_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "available_cores", lambda: 4)
    monkeypatch.setattr(parallel, "free_memory", lambda: 10e9)
    for cases, bytes_each, workers in ((9, 1e9, 4), (3, 1e9, 3), (9, 3e9, 2), (9, 100e9, 1), (1, 1e9, 0)):
        assert choose_workers(cases, bytes_each=bytes_each, quick=False) == workers
        assert choose_workers(cases, bytes_each=bytes_each, quick=True) == 0


def test_what_goes_wrong_midway_closes_the_workers_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not when the garbage is collected: a client of a cluster that closes while another one starts waits for
    ever."""
    closed = []

    def outcomes(cluster: Cluster, function: Any, items: Any, **options: Any) -> Generator[tuple[int, Any, str | None]]:
        try:
            for index, item in enumerate(items):
                yield (index, *function(item))
        finally:
            closed.append(True)

    def write(item: str) -> None:
        raise OutputError("the disk is full")

    monkeypatch.setattr(parallel, "run_on_cluster", outcomes)
    with pytest.raises(OutputError, match="the disk is full") as caught:
        map_cases(write, ["a", "b"], names=["a", "b"], what="writing", workers=Cluster(scheduler="tcp://x:1"))
    assert closed and caught.value
