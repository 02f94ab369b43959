"""masam_import_checkpoint on the command line: what it takes from where, and that masam_predict uses the model."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from masam_auto.cli import import_checkpoint, predict
from masam_auto.cli.common import run
from masam_auto.core.jsonio import read_json, to_plain, write_json
from masam_auto.core.plan import Plan
from masam_auto.formats.io import read_labels
from tests import raw_data
from tests import tiny_training as tiny
from tests.network import plain_masam, reference_folder

SIZES: dict[str, Any] = {
    "dim": 32, "depth": 2, "heads": 2, "global": [1], "prompt_dim": 64, "mlp": 24, "sam_image_size": 48,
    "image_size": 32, "num_classes": 2, "rank": 3, "scale": 1.0, "N": 3, "batch": 1, "seed": 3,
}  # fmt: skip
LABELS = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "organ": 1, "lesion": 2}, "file_ending": ".nii.gz"}
Command = Callable[..., int]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published checkpoint with its SAM checkpoint."""
    folder = tmp_path_factory.mktemp("made") / "reference"
    return Path(reference_folder.make_reference(folder, plain_masam, rounded=True, config=SIZES))


@pytest.fixture
def command(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs the import in an empty house."""
    for name in ("RAW", "PREPROCESSED", "RESULTS", "WEIGHTS"):
        monkeypatch.setenv(f"MASAM_{name}", str(tmp_path / name.lower()))
    (tmp_path / "labels.json").write_text(json.dumps(LABELS))

    def call(*arguments: object) -> int:
        files = [made / "masam_auto.pth", "--sam_checkpoint", made / "sam.pth"]
        return run(import_checkpoint.main, [str(argument) for argument in (*files, *arguments)])

    return call


def stored_plan(folder: Path, name: str = "imported__axis0") -> Plan:
    return read_json(next(folder.glob(f"results/*/{name}/plan.json")), Plan, what="plan")


def test_an_imported_model_predicts_at_once(command: Command, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    raw_data.write_volume(
        tmp_path / "images" / "a_0000.nii.gz", generator.normal(0, 200, (4, 20, 18)), spacing=(3.0, 1.0, 0.8)
    )
    assert (
        command(
            "-d",
            "Dataset007_Toy",
            "--dataset_json",
            tmp_path / "labels.json",
            "--canvas",
            32,
            "--spacing",
            3,
            1,
            1,
            "--window",
            3,
        )
        == 0
    )
    assert (
        run(predict.main, ["-i", str(tmp_path / "images"), "-o", str(tmp_path / "out"), "-d", "7", "-device", "cpu"])
        == 0
    )
    labels, geometry = read_labels(tmp_path / "out" / "a.nii.gz")
    assert labels.shape == (4, 20, 18) and set(np.unique(labels)) <= {0, 1, 2}
    assert geometry.spacing == pytest.approx((3.0, 1.0, 0.8))


def test_options_reach_the_plan(command: Command, tmp_path: Path) -> None:
    said = (
        "--canvas",
        48,
        32,
        "--window",
        7,
        "--spacing",
        2,
        3,
        4,
        "--axis",
        1,
        "--intensity",
        -50,
        200,
        "--scale",
        0.5,
    )
    more = ("--prompt", "box", "-p", "theirs", "--set", "inference.depth=whole")
    assert command("-d", "Dataset007_Toy", "--dataset_json", tmp_path / "labels.json", *said, *more) == 0
    plan = stored_plan(tmp_path, "theirs__axis1")
    configuration = plan.configuration(None)
    assert (configuration.canvas, configuration.window, configuration.spacing) == ((48, 32), 7, (3.0, 2.0, 4.0))
    assert (configuration.normalization[0].lower, configuration.normalization[0].upper) == (-50, 200)
    assert (plan.network.increment_scale, plan.network.prompt, plan.inference.depth) == (0.5, "box", "whole")


def test_a_planned_data_set_needs_no_more_words(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "preprocessed" / tiny.DATASET
    planned = tiny.make_configuration(axis_order=(2, 0, 1), spacing=(2.0, 0.7, 0.7))
    write_json(folder / "plan.json", {**to_plain(tiny.make_plan(planned)), "channel_names": ["CT"]})
    write_json(folder / "dataset.json", LABELS)
    assert command("-d", 1, "--canvas", 32, "--normalization", "rescale_to_0_1") == 0
    configuration = stored_plan(tmp_path).configuration("axis0")
    assert (configuration.axis_order, configuration.spacing) == ((2, 0, 1), (2.0, 0.7, 0.7))
    assert configuration.normalization[0].scheme == "rescale_to_0_1"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-d", "7"], "data set '7' not found"),
        (["-d", "Dataset010_New"], "no dataset.json of Dataset010_New in .* Give one with --dataset_json"),
        (["-d", "Dataset007_Toy", "--dataset_json", "labels.json", "-c", "axis0"], "plan not found"),
        (["-d", "Dataset007_Toy", "--dataset_json", "labels.json"], "--spacing Z Y X is needed"),
        (["-d", "Dataset008_Bare"], "no dataset.json of Dataset008_Bare in .* Give one with --dataset_json FILE"),
    ],
)
def test_mistakes_get_one_line(
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results" / "Dataset008_Bare").mkdir(parents=True)
    assert command(*arguments) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and said[0].startswith("error: ")

    assert re.search(message, said[0])


def test_a_canvas_has_one_or_two_sides(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        command("-d", "7", "--canvas", 32, 32, 32)
    assert "argument --canvas: one or two numbers" in capsys.readouterr().err
