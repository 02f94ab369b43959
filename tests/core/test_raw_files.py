"""Changed is not newer: size, date and content of raw files."""

import hashlib
import os
from pathlib import Path

import pytest

from masam_auto.core import raw_files
from masam_auto.core.errors import ImageError
from masam_auto.core.raw_files import are_unchanged, file_sha256, note_files


def test_files_that_nobody_touched_are_unchanged(tmp_path: Path):
    file = tmp_path / "a.nii.gz"
    file.write_bytes(b"voxels")
    noted = note_files([file])
    assert are_unchanged(noted, [file])
    os.utime(file, ns=(1, 1))
    assert are_unchanged(noted, [file]), "another date and the same content"


@pytest.mark.parametrize("date", [10**9, 2 * 10**18])
def test_a_corrected_file_has_changed_whatever_its_date(tmp_path: Path, date: int):
    file = tmp_path / "a.nii.gz"
    file.write_bytes(b"voxels")
    noted = note_files([file])
    file.write_bytes(b"VOXELS")
    os.utime(file, ns=(date, date))
    assert not are_unchanged(noted, [file])
    file.write_bytes(b"more voxels")
    os.utime(file, ns=(noted[0].modified, noted[0].modified))
    assert not are_unchanged(noted, [file]), "another size"


def test_files_that_are_gone_added_or_renamed_have_changed(tmp_path: Path):
    first, second = tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"
    first.write_bytes(b"voxels")
    second.write_bytes(b"voxels")
    noted = note_files([first])
    assert not are_unchanged(noted, [first, second]) and not are_unchanged(noted, [second])
    first.unlink()
    assert not are_unchanged(noted, [first])
    with pytest.raises(ImageError, match=r"a\.nii\.gz: cannot be read"):
        note_files([first])


def test_a_series_is_its_files(tmp_path: Path):
    series = tmp_path / "series"
    series.mkdir()
    (series / "1.dcm").write_bytes(b"slice")
    noted = note_files([series])
    assert are_unchanged(noted, [series])
    (series / "2.dcm").write_bytes(b"slice")
    assert not are_unchanged(noted, [series])


def test_a_file_is_read_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads, sha256 = [], hashlib.sha256
    monkeypatch.setattr(raw_files.hashlib, "sha256", lambda: reads.append(True) or sha256())
    path = tmp_path / "w.pth"
    path.write_bytes(b"one" * 1000)
    for _ in range(2):
        assert file_sha256(path) == sha256(b"one" * 1000).hexdigest()
        assert len(reads) == 1
    path.write_bytes(b"two")
    assert file_sha256(path) == sha256(b"two").hexdigest()
    os.utime(path, ns=(1, 1))
    file_sha256(path)
    assert len(reads) == 3
