"""Free memory: the least of what the machine and each limit of a container or batch job leave."""

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from masam_auto.compute import machine as module
from masam_auto.compute.machine import free_memory

GIB = 1 << 30


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(module, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=100 * GIB))
    return tmp_path / "groups"


def put(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


def test_without_limits_it_is_the_machines(groups: Path) -> None:
    assert free_memory() == 100 * GIB
    (groups.parent / "own").write_text("0::/user/session\n")
    put(groups / "user" / "session", memory__max="max", memory__current=GIB, memory__stat="inactive_file 5")
    assert free_memory() == 100 * GIB


def test_a_batch_jobs_limit_counts_and_pages_of_files_that_may_go_are_free(groups: Path) -> None:
    (groups.parent / "own").write_text("0::/job/step\n")
    put(groups / "job", memory__max=8 * GIB, memory__current=7 * GIB, memory__stat=f"anon 9\ninactive_file {2 * GIB}")
    put(groups / "job" / "step", memory__max="max", memory__current=GIB, memory__stat="inactive_file 0")
    assert free_memory() == 3 * GIB
    put(groups / "job", memory__current=11 * GIB)
    assert free_memory() == 0


def test_within_a_container_the_limit_lies_at_the_root(groups: Path) -> None:
    (groups.parent / "own").write_text("5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n0::/docker/abc\n")
    put(
        groups / "memory",
        memory__limit_in_bytes=4 * GIB,
        memory__usage_in_bytes=GIB,
        memory__stat=f"total_inactive_file {GIB // 2}",
    )
    assert free_memory() == 3.5 * GIB
