"""masam_predict --boxes and masam_evaluate --boxes_from_labels, with a model trained for a moment."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from masam_auto.cli import evaluate, plan_and_preprocess, predict, train
from masam_auto.cli.common import Main
from masam_auto.formats.io import read_labels
from masam_auto.imaging.crop import bounding_box
from tests import raw_data
from tests.cli.in_process import command

pytestmark = pytest.mark.slow

QUICK = ["training.num_epochs=1", "training.steps_per_epoch=3", "training.warmup_steps=1", "network.prompt=box"]
BOXED = ["{tmp}/out", "{raw}/labelsTr", "--boxes_from_labels", "tight", "-i", "{raw}/imagesTr"]
Command = Callable[..., int]


@pytest.fixture(scope="module")
def root(house: Path) -> Path:
    raw_data.make_raw_dataset(house / "raw", cases=3, shape=(6, 16, 14))
    planned = ["-c", "axis0", "--workers", "0", "-gpu_memory_target", "0", "--set", *QUICK]
    assert command(plan_and_preprocess.main, "-d", 1, *planned) == 0
    assert command(train.main, 1, "all", "-device", "cpu", "--workers", 0) == 0
    return house


def test_predicting_within_boxes(root: Path, tmp_path: Path) -> None:
    images = root / "raw" / "Dataset001_Toy" / "imagesTr"
    boxes = tmp_path / "boxes.json"
    boxes.write_text('{"case_000": {"unit": "voxel", "min": [1, 2, 2], "max": [3, 12, 12]}}')
    assert command(predict.main, "-i", images, "-o", tmp_path / "plain", "-device", "cpu") == 0
    assert command(predict.main, "-i", images, "-o", tmp_path / "boxed", "--boxes", boxes, "-device", "cpu") == 0
    for name, same in (("case_000", False), ("case_001", True)):
        plain, boxed = (read_labels(tmp_path / folder / f"{name}.nii.gz")[0] for folder in ("plain", "boxed"))
        assert np.array_equal(plain, boxed) == same
        assert same or not boxed[[0, 3, 4, 5]].any()


@pytest.mark.parametrize("kind", ["tight", "relaxed"])
def test_evaluating_with_boxes_from_labels(root: Path, tmp_path: Path, kind: str) -> None:
    raw = root / "raw" / "Dataset001_Toy"
    options = ["--boxes_from_labels", kind, "-i", raw / "imagesTr", "-device", "cpu", "--workers", "0"]
    assert command(evaluate.main, tmp_path / "out", raw / "labelsTr", *options) == 0
    protocol = json.loads((tmp_path / "out" / "summary.json").read_text())["protocol"]
    assert protocol["boxes_from_labels"] == kind
    tight = bounding_box(read_labels(raw / "labelsTr" / "case_001.nii.gz")[0] > 0)
    assert tight is not None
    assert (protocol["boxes"]["case_001"] == [list(side) for side in tight]) == (kind == "tight")
    assert command(evaluate.main, tmp_path / "out", raw / "labelsTr", *options) == 2, "not overwritten unasked"
    assert command(evaluate.main, tmp_path / "out", raw / "labelsTr", *options, "--overwrite") == 0
    assert command(evaluate.main, tmp_path / "out", raw / "labelsTr", "--workers", "0") == 0
    assert "protocol" not in json.loads((tmp_path / "out" / "summary.json").read_text())


@pytest.mark.parametrize(
    ("main", "arguments", "message"),
    [
        (
            predict.main,
            ["-i", "{raw}/imagesTr", "-o", "{tmp}/out", "--boxes", "{tmp}/no.json"],
            "file of boxes not found",
        ),
        (predict.main, ["-i", "{raw}/imagesTr", "-o", "{tmp}/out", "--boxes", "{tmp}/x.json"], "boxes for nobody"),
        (evaluate.main, ["{tmp}/out", "{raw}/labelsTr", "--boxes_from_labels", "tight"], "with -i IMAGES"),
        (evaluate.main, ["{tmp}/out", "{raw}/labelsTr", "-i", "{raw}/imagesTr"], "--input is for a prediction with"),
        (evaluate.main, ["{tmp}/out", "{raw}/labelsTr", "-chk", "latest"], "--checkpoint is for a prediction with"),
        (
            evaluate.main,
            ["{tmp}/out", "{raw}/labelsTr", "--relaxation", "0.3"],
            "needs --boxes_from_labels relaxed",
        ),
        (evaluate.main, [*BOXED, "--lesions", "liver"], "lesions of liver: there is no such class"),
        (evaluate.main, [*BOXED, "--tolerance", "liver=3"], "tolerance or lesions of liver"),
        (evaluate.main, [*BOXED, "--labels", "{tmp}/no.json"], "no.json is missing"),
        (evaluate.main, [*BOXED, "-d", "7"], "data set '7' not found"),
        (evaluate.main, [*BOXED, "--label_map", "nothing"], "nothing: no such file"),
        (evaluate.main, [*BOXED, "--label_map", "btcv_to_amos22", "--lesions", "organ1"], "lesions of organ1"),
    ],
)
def test_mistakes_give_one_line(
    root: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    main: Main,
    arguments: list[str],
    message: str,
) -> None:
    (tmp_path / "x.json").write_text('{"nobody": {"unit": "voxel", "min": [1, 2, 2], "max": [3, 12, 12]}}')
    raw = root / "raw" / "Dataset001_Toy"
    assert command(main, *(text.format(raw=raw, tmp=tmp_path) for text in arguments)) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert re.search(message, errors[0]), errors[0]
    assert not (tmp_path / "out").exists()
