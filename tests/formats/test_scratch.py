"""Arrays in memory or in a file without a name."""

import errno
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from masam_auto.core.errors import OutputError
from masam_auto.formats import scratch
from masam_auto.formats.scratch import scratch_array


@pytest.mark.parametrize(("memory_share", "in_file"), [(0.25, False), (0.0, True)])
def test_zeros_that_can_be_written_and_leave_nothing(
    memory_share: float, in_file: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(KeyError), scratch_array((2, 3, 4, 5), memory_share=memory_share) as array:
        assert isinstance(array, np.memmap) == in_file
        assert array.dtype == np.float16 and array.shape == (2, 3, 4, 5) and not array.any()
        array[1, 2] += 0.5
        assert array.sum() == 10
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_file_systems_that_cannot_reserve_are_used_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(scratch.os, "posix_fallocate", unknown, raising=False)
    with scratch_array((2, 3), memory_share=0) as array:
        assert not array.any()


def test_a_full_disk_is_told_before_anything_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10))
    with (
        pytest.raises(OutputError, match=r"needs 0.0 GiB in .*Set TMPDIR to a folder on a larger disk"),
        scratch_array((2, 3), memory_share=0),
    ):
        raise AssertionError("no array must come")
