"""masam_convert_dataset: options go to their data set, and the folds it writes are those that training finds."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from dataset_conversion.nifti import VolumeOptions
from dataset_conversion.registry import CONVERTERS
from masam_auto.cli import plan_and_preprocess
from masam_auto.cli.common import run
from masam_auto.cli.convert_dataset import OPTIONS, VOLUME_OPTIONS, main
from tests import raw_data


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """A Decathlon task of six cases."""
    folder = tmp_path / "Task04_Hippocampus"
    generator = np.random.default_rng(0)
    names = [f"hippocampus_{number:03d}" for number in range(6)]
    for part in ("imagesTr", "labelsTr", "imagesTs"):
        (folder / part).mkdir(parents=True)
    for name in names:
        image, labels = raw_data.make_case((6, 16, 14), channels=1, labels=2, generator=generator)
        raw_data.write_volume(folder / "imagesTr" / f"{name}.nii.gz", image[0])
        raw_data.write_volume(folder / "labelsTr" / f"{name}.nii.gz", labels)
    description = {
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
        "test": [],
        "training": [{"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"} for name in names],
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


def test_names_and_options_are_those_of_the_converters() -> None:
    assert set(OPTIONS) == set(CONVERTERS)
    for name, find in CONVERTERS.items():
        takes = set(find.__kwdefaults__ or {})
        assert ("volumes" in takes) == set(VOLUME_OPTIONS).issubset(OPTIONS[name]), name
        assert set(OPTIONS[name]) - set(VOLUME_OPTIONS) - {"list_rois"} == takes - {"volumes"}, name
    assert {field.name for field in dataclasses.fields(VolumeOptions)} == set(VOLUME_OPTIONS)


def test_converted_folds_are_used(
    task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    splits = tmp_path / "given.json"
    splits.write_text(
        json.dumps(
            [{"train": ["hippocampus_001", "hippocampus_002"], "val": ["hippocampus_003"], "test": ["hippocampus_005"]}]
        )
    )
    monkeypatch.setenv("MASAM_RAW", str(tmp_path / "raw"))
    arguments = ["msd", "-i", str(task), "-d", "44", "--splits", str(splits), "--workers", "0"]
    assert main(arguments) == 0
    folder = tmp_path / "raw" / "Dataset044_Hippocampus"
    shown = capsys.readouterr().out
    assert f"{folder}: 5 training cases, 1 test cases" in shown
    assert shown.endswith(f"next: masam_plan_and_preprocess -d {folder}\n")
    preprocessed = tmp_path / "preprocessed"
    plan = ["-d", "44", "--preprocessed", str(preprocessed), "-c", "axis0", "--workers", "0"]
    assert plan_and_preprocess.main(plan) == 0
    assert (preprocessed / folder.name / "splits.json").read_bytes() == (folder / "splits.json").read_bytes()
    (fold,) = json.loads((preprocessed / folder.name / "splits.json").read_text())
    assert (fold["val"], fold["test"]) == (["hippocampus_003"], ["hippocampus_005"])


def test_many_notes_are_cut(task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    description = json.loads((task / "dataset.json").read_text())
    description["test"] = [f"./imagesTs/{number}.nii.gz" for number in range(12)]
    (task / "dataset.json").write_text(json.dumps(description))
    arguments = ["msd", "-i", str(task), "-o", str(tmp_path / "raw"), "--workers", "0"]
    assert run(main, arguments) == 2
    assert "is not complete" in capsys.readouterr().err
    assert main([*arguments, "--allow_missing"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("  - missing: ") == 10
    assert "and 2 more notes" in shown


def test_options_of_other_data_sets_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["msd", "-i", str(tmp_path), "--merge_adrenals"])
    assert caught.value.code == 2
    assert "argument --merge_adrenals: only for btcv, not for msd" in capsys.readouterr().err


def test_several_data_sets_are_numbered_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for site in ("RUNMC", "UCL"):
        (tmp_path / "d" / site).mkdir(parents=True)
        for number in ("10", "11"):
            raw_data.write_volume(tmp_path / "d" / site / f"Case{number}.nii.gz", np.ones((3, 4, 5), np.float32))
            raw_data.write_volume(
                tmp_path / "d" / site / f"Case{number}_segmentation.nii.gz", np.ones((3, 4, 5), np.uint8)
            )
    arguments: list[str] = [
        "prostate",
        "-i",
        str(tmp_path / "d"),
        "-o",
        str(tmp_path / "raw"),
        "-d",
        "70",
        "--workers",
        "0",
    ]
    assert main([*arguments, "--allow_missing"]) == 0
    assert sorted(path.name for path in (tmp_path / "raw").iterdir()) == [
        "Dataset070_ProstateA",
        "Dataset073_ProstateD",
    ]
