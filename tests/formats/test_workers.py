"""How many worker processes are started unasked."""

from pathlib import Path

import numpy as np
import pytest

from masam_auto.formats import workers
from masam_auto.formats.workers import workers_for
from tests import raw_data


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{i}.mha" for i in range(3)]
    for path in paths:
        raw_data.write_volume(path, np.zeros((4, 10, 10), np.uint8))
    return paths


def test_what_the_user_says_is_done(files: list[Path]) -> None:
    assert workers_for(files, bytes_per_voxel=1, asked=7) == 7
    assert workers_for([], bytes_per_voxel=1, asked=0) == 0


def test_small_work_is_done_in_this_process(files: list[Path]) -> None:
    assert workers_for(files, bytes_per_voxel=1, asked=None) == 0
    assert workers_for([], bytes_per_voxel=1, asked=None) == 0


def test_memory_and_cases_limit_the_workers(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "FEW_VOXELS", 1)
    assert 1 <= workers_for(files, bytes_per_voxel=1, asked=None) <= 3
    assert workers_for(files, bytes_per_voxel=1e15, asked=None) == 1
    assert workers_for(files[:1], bytes_per_voxel=1, asked=None) == 0


def test_unreadable_files_are_left_to_the_work_itself(files: list[Path]) -> None:
    files[0].write_bytes(b"")
    assert workers_for(files, bytes_per_voxel=1, asked=None) == 0
