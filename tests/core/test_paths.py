"""core.paths: root folders and data sets by number or name."""

from pathlib import Path

import pytest

from masam_auto.core.errors import DatasetError
from masam_auto.core.paths import find_dataset_name, resolve_paths


def test_the_command_line_wins_then_the_environment_then_the_working_folder(tmp_path: Path) -> None:
    environment = {"MASAM_RAW": "/env/raw", "MASAM_RESULTS": "/env/results", "nnUNet_raw": "/nnunet/raw"}
    found = resolve_paths({"raw": "/line/raw", "weights": None}, environment, tmp_path)
    assert found.raw == Path("/line/raw") and found.results == Path("/env/results")
    assert found.preprocessed == tmp_path / "masam_data" / "preprocessed"
    assert resolve_paths({}, environment, tmp_path).raw == Path("/env/raw")
    assert resolve_paths({}, {"nnUNet_raw": "/nnunet/raw", "nnUNet_results": "/x"}, tmp_path).raw == Path("/nnunet/raw")
    assert resolve_paths({}, {"nnUNet_raw": "/nnunet/raw"}, tmp_path).results == tmp_path / "masam_data" / "results"
    assert resolve_paths({}, {"MASAM_RAW": ""}, tmp_path).raw == tmp_path / "masam_data" / "raw"


def test_relative_roots_and_home_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    found = resolve_paths({"raw": "here", "results": "~/results"}, {}, tmp_path)
    assert found.raw == tmp_path / "here" and found.results == Path("/home/someone/results")


def test_folders_of_a_data_set(tmp_path: Path) -> None:
    found = resolve_paths({}, {}, tmp_path)
    assert found.configuration_folder("Dataset001_A", "axis0") == found.preprocessed / "Dataset001_A" / "axis0"
    assert found.model_folder("Dataset001_A", "masam", "axis0") == found.results / "Dataset001_A" / "masam__axis0"


def test_a_number_or_a_name_finds_the_data_set(tmp_path: Path) -> None:
    for name in ("Dataset001_A", "Dataset012_B", "Dataset1000_C", "notes", "Dataset1_D"):
        (tmp_path / name).mkdir()
    for identifier, name in (("1", "Dataset001_A"), ("012", "Dataset012_B"), ("1000", "Dataset1000_C")):
        assert find_dataset_name(identifier, [tmp_path, tmp_path / "absent"]) == name
        assert find_dataset_name(name, [tmp_path]) == name


def test_what_is_not_found_is_listed(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"not found in .* \(there: none\).*`raw`"):
        find_dataset_name("1", [tmp_path])
    for name in ("Dataset001_A", "Dataset001_B"):
        (tmp_path / name).mkdir()
    for identifier in ("2", "Dataset002_X", "\u00b2", "A"):
        with pytest.raises(DatasetError, match=r"not found in .* \(there: Dataset001_A, Dataset001_B\)"):
            find_dataset_name(identifier, [tmp_path])
    for name in ("Dataset7_C", "Task004_D", "comparison"):
        (tmp_path / name).mkdir()
    with pytest.raises(DatasetError, match=r"Dataset001_B; not called DatasetXXX_Name, .*: Dataset7_C, Task004_D\)"):
        find_dataset_name("4", [tmp_path])
    with pytest.raises(DatasetError, match=r"1 is ambiguous: Dataset001_A, Dataset001_B"):
        find_dataset_name("1", [tmp_path])
