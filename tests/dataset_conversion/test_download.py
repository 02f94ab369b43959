"""Finding things in a download."""

from pathlib import Path

import pytest

from dataset_conversion.btcv import find_btcv
from dataset_conversion.download import find_archives, find_folder, folders_in, named_files
from masam_auto.core.errors import DatasetError


def has_mark(folder: Path) -> bool:
    return (folder / "mark").is_file()


def mark(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "mark").touch()
    return folder


def test_nested_folders_are_found_and_shadows_are_not(tmp_path: Path) -> None:
    wanted = mark(tmp_path / "a" / "b" / "c")
    mark(tmp_path / "__MACOSX" / "a")
    mark(tmp_path / ".hidden")
    assert find_folder(tmp_path, has_mark, what="marks") == wanted
    assert find_folder(wanted, has_mark, what="marks") == wanted
    assert tmp_path / "a" in folders_in(tmp_path)


def test_several_folders_are_refused(tmp_path: Path) -> None:
    mark(tmp_path / "a")
    mark(tmp_path / "b")
    with pytest.raises(DatasetError, match=r"holds several of marks.*Give one of them"):
        find_folder(tmp_path, has_mark, what="marks")


def test_archives_that_were_not_extracted_are_named(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("RawData.zip", "deep/Task04_Hippocampus.tar", "._RawData.zip", "image.nii.gz"):
        (tmp_path / name).touch()
    assert [path.name for path in find_archives(tmp_path)] == ["RawData.zip", "Task04_Hippocampus.tar"]
    with pytest.raises(DatasetError, match=r"holds no marks.*RawData.zip, deep/Task04_Hippocampus.tar.*Extract them"):
        find_folder(tmp_path, has_mark, what="marks")


def test_download_must_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "RawData.zip").touch()
    with pytest.raises(DatasetError, match=r"is an archive\. Extract it"):
        find_btcv(tmp_path / "RawData.zip")
    with pytest.raises(DatasetError, match="folder not found"):
        find_btcv(tmp_path / "nothing")


def test_files_are_named_by_their_group_in_any_case(tmp_path: Path) -> None:
    for name in (
        "Case00.nii.gz",
        "Case00_Segmentation.nii.gz",
        "case01_segmentation.nii.gz",
        "._Case02_segmentation.nii.gz",
    ):
        (tmp_path / name).touch()
    found = named_files(tmp_path, r"Case(\d{2})_segmentation\.nii\.gz")
    assert {number: path.name for number, path in found.items()} == {
        "00": "Case00_Segmentation.nii.gz",
        "01": "case01_segmentation.nii.gz",
    }
    assert named_files(tmp_path / "absent", "(x)") == {}
    (tmp_path / "Case00_segmentation.nii.gz").touch()
    with pytest.raises(DatasetError, match="are the same case"):
        named_files(tmp_path, r"Case(\d{2})_segmentation\.nii\.gz")
