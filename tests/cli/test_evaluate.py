"""masam_evaluate: tolerances, lesions, label maps, sites and videos."""

import json
from pathlib import Path

import numpy as np
import pytest

from masam_auto.cli import evaluate
from masam_auto.cli.common import run
from masam_auto.core.geometry import Geometry
from masam_auto.formats.io import write_labels

LABELS = {"background": 0, "organ": 1, "tumour": 2}


@pytest.fixture
def folders(tmp_path: Path) -> tuple[str, str]:
    """Segmentations and references of two cases, which differ by one column, and dataset.json with two sites."""
    for name, column in (("pred", 3), ("labelsTs", 4)):
        (tmp_path / name).mkdir()
        for case in "ab":
            array = np.zeros((3, 6, 8), np.int16)
            array[:, 1:5, :column] = 1
            array[1, 2, 6] = 2
            write_labels(
                tmp_path / name / f"{case}.nii.gz", array, Geometry(shape=array.shape, spacing=(3.0, 2.0, 2.0))
            )
    plain = {
        "channel_names": {"0": "CT"},
        "labels": LABELS,
        "file_ending": ".nii.gz",
        "groups": {"A": ["a"], "B": ["b"]},
    }
    (tmp_path / "dataset.json").write_text(json.dumps(plain))
    return str(tmp_path / "pred"), str(tmp_path / "labelsTs")


def summary(folders: tuple[str, str]) -> dict:
    return json.loads((Path(folders[0]) / "summary.json").read_text())


def test_tolerances_lesions_and_sites(folders: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main([*folders, "--workers", "0", "--tolerance", "1", "organ=2", "--lesions", "tumour"]) == 0
    found = summary(folders)
    assert found["scoring"]["tolerance"] == 1
    assert (found["mean"]["1"]["NSD"], found["mean"]["2"]["lesion_TP"]) == (1, 1)
    assert {name: site["cases"] for name, site in found["groups"].items()} == {"A": 1, "B": 1}
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["class", "Dice", "IoU", "HD95_mm", "NSD", "lesion_F1"] in printed
    assert ["group", "cases", "Dice", "IoU", "HD95_mm", "NSD", "lesion_F1", "mIoU"] in printed
    assert evaluate.main([*folders, "--workers", "0", "--lesions", "all"]) == 0
    assert summary(folders)["mean"]["1"]["lesion_F1"] == 1
    assert summary(folders)["scoring"]["tolerance"] == 2


def test_videos_are_printed_with_miou(folders: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    file = Path(folders[1]).parent / "dataset.json"
    plain = json.loads(file.read_text()) | {"sequences": {"clip": ["a", "b"]}}
    file.write_text(json.dumps(plain))
    assert evaluate.main([*folders, "--workers", "0"]) == 0
    assert summary(folders)["sequences"]["clip"]["mIoU"] == pytest.approx((0.75 + 1) / 2)
    frame = (0.75 + 1 + (3 * 32 - 1) / (3 * 36 - 1)) / 3  # the background: 32 of 36 voxels a slice, one is tumour
    assert f"mIoU over all frames: 0.8750 ({frame:.4f} with background)" in capsys.readouterr().out


def test_label_maps_by_file_and_by_name(folders: tuple[str, str], tmp_path: Path) -> None:
    own = tmp_path / "map.json"
    own.write_text(json.dumps({"labels": {"organ": 1}, "prediction": {"2": 1}, "reference": {"2": 0}}))
    assert evaluate.main([*folders, "--workers", "0", "--label_map", str(own)]) == 0
    found = summary(folders)
    assert (list(found["mean"]), found["mean"]["1"]["FP"]) == (["1"], 1)
    assert found["scoring"]["prediction_values"] == {"2": 1}
    assert evaluate.main([*folders, "--workers", "0", "--label_map", "btcv_to_amos22"]) == 0
    assert len(summary(folders)["mean"]) == 11


def test_mistakes_are_one_line(folders: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    for options, message in (
        (["--label_map", "nothing"], "nothing: no such file. Give a JSON file, or one of: btcv_to_amos22"),
        (["--lesions", "liver"], "of liver: there is no such class"),
        (["--tolerance", "liver=3"], "of liver: there is no such class"),
    ):
        assert run(evaluate.main, [*folders, "--workers", "0", *options]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        evaluate.main([*folders, "--tolerance", "organ=wide"])
    assert "must be a number above 0" in capsys.readouterr().err


def test_folders_that_are_not_there_or_changed_for_one_another(
    folders: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predictions, references = folders
    missing = str(tmp_path / "missing")
    for given, message in (
        ((missing, references), f"{missing} is no folder. Give the folder of segmentations first"),
        ((predictions, missing), f"{missing} is no folder"),
        ((references, predictions), f"{references} is part of a raw data set"),
    ):
        assert run(evaluate.main, given) == 2
        assert message in capsys.readouterr().err
    assert not (Path(references) / "summary.json").exists()
