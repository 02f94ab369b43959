"""Unfinished files: what dead processes left goes, and nothing else does."""

import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest

from masam_auto.core import partial
from masam_auto.core.partial import is_abandoned, partial_path, partial_prefix, remove_abandoned

GONE = 999_999_999  # no process has such a number
ELSEWHERE = ".partial-01234567-123-7-ab-case.nii.gz"


def make(path: Path, *, days: float = 0.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    for place in (path, path.parent):
        os.utime(place, (time.time() - days * 24 * 3600,) * 2)
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_only_what_dead_processes_of_this_machine_left_is_removed(tmp_path: Path) -> None:
    make(tmp_path / f"{partial_prefix(GONE)}ab-case.nii.gz")
    make(tmp_path / f"{partial_prefix(GONE)}cd" / "probabilities" / "values.npy")
    kept = [f"{partial_prefix(os.getpid())}ab-case.nii.gz", ELSEWHERE, "case.nii.gz", ".partial-old-checkpoint_best"]
    for name in kept:
        make(tmp_path / name)
    remove_abandoned(tmp_path)
    assert names(tmp_path) == sorted(kept)


def test_another_machines_go_after_a_day_without_a_change(tmp_path: Path) -> None:
    young = make(tmp_path / ".partial-01234567-1-7-ab-young" / "a", days=0.5)
    make(tmp_path / ".partial-01234567-1-7-ab-old" / "a", days=1.5)
    growing = make(tmp_path / ".partial-01234567-1-7-ab-growing" / "a", days=1.5)
    make(growing.with_name("b"))
    assert not young.parent.name.startswith(partial_prefix())
    remove_abandoned(tmp_path)
    assert names(tmp_path) == [".partial-01234567-1-7-ab-growing", ".partial-01234567-1-7-ab-young"]


def test_a_number_that_another_process_has_by_now_is_no_excuse(tmp_path: Path) -> None:
    own = partial_prefix(os.getpid())
    start = own.split("-")[-2]
    assert is_abandoned(make(tmp_path / f"{own.replace(f'-{start}-', f'-{int(start) - 1}-')}ab-a"))


@pytest.mark.parametrize("days", [-400.0, 0.01, 400.0])
def test_the_clock_of_a_file_server_takes_nothing_from_a_living_process(tmp_path: Path, days: float) -> None:
    assert not is_abandoned(make(tmp_path / f"{partial_prefix(os.getpid())}ab-a", days=days))
    assert is_abandoned(make(tmp_path / f"{partial_prefix(GONE)}ab-a", days=days))


def test_hidden_processes_of_other_users_may_be_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(process: int, number: int) -> None:
        raise PermissionError

    path = make(tmp_path / f"{partial_prefix(GONE)}ab-a")
    monkeypatch.setattr(os, "kill", refuse)
    assert not is_abandoned(path)


def test_a_dead_process_that_nobody_has_asked_about_is_dead(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        path = make(tmp_path / f"{partial_prefix(process.pid)}ab-a")
        assert not is_abandoned(path)
        process.kill()
        until = time.monotonic() + 20
        while not is_abandoned(path):  # a zombie, until it is waited for
            assert time.monotonic() < until
    assert process.returncode == -9


@pytest.mark.parametrize(
    "name", ["a\nb.json", "\udcff.json", "\u00fc" * 122 + ".nii.gz", "\u60a3" * 78 + ".nii.gz", "x" * 250 + ".json"]
)
def test_odd_names_are_taken_as_they_are(tmp_path: Path, name: str) -> None:
    path = partial_path(tmp_path / name)
    path.touch()
    assert path.suffix == Path(name).suffix and len(os.fsencode(path.name)) <= 255 and not is_abandoned(path)
    assert partial.PARTIAL.fullmatch(path.name)


def test_models_that_a_former_version_put_aside_stay(tmp_path: Path) -> None:
    make(tmp_path / f"{partial_prefix(GONE)}ab-scratch" / "old" / "model", days=9)
    remove_abandoned(tmp_path)
    assert len(names(tmp_path)) == 1


def test_links_are_removed_and_not_followed(tmp_path: Path) -> None:
    precious = make(tmp_path / "elsewhere" / "precious")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / f"{partial_prefix(GONE)}ab-link").symlink_to(precious.parent)
    remove_abandoned(tmp_path / "here")
    assert names(tmp_path / "here") == [] and precious.exists()


def test_the_first_new_name_in_a_folder_cleans_it(tmp_path: Path) -> None:
    left = make(tmp_path / f"{partial_prefix(GONE)}ab-a.nii.gz")
    new = partial_path(tmp_path / "12-34.nii.gz")
    assert not left.exists() and not new.exists()
    assert new.name.startswith(partial_prefix(os.getpid())) and new.name.endswith("-12-34.nii.gz")


def test_a_killed_process_is_found_out(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from masam_auto.core.partial import partial_path;"
        f"partial_path(Path({str(tmp_path / 'a.json')!r})).write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert len(names(tmp_path)) == 1
    partial_path(tmp_path / "b.json")
    assert names(tmp_path) == []


def test_machines_and_containers_have_names_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    here = partial_prefix(1)
    partial._machine.cache_clear()  # a machine has one name for as long as a process runs
    monkeypatch.setattr(platform, "node", lambda: "another machine / with odd characters")
    try:
        assert partial_prefix(1) != here and partial.PARTIAL.fullmatch(f"{partial_prefix(1)}ab-a")
    finally:
        partial._machine.cache_clear()
