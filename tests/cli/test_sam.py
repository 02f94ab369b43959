"""From SAM weights to segmentations by the commands, with an encoder small enough for a test in the place of vit_b."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from masam_auto.cli import plan_and_preprocess, predict, train
from masam_auto.cli.common import run
from masam_auto.core.encoders import ENCODERS
from masam_auto.core.raw_files import file_sha256
from masam_auto.planning.planned_encoders import PLANNED_ENCODERS
from tests import raw_data
from tests import tiny_training as tiny

pytestmark = pytest.mark.slow

QUICK = ["--set", "training.steps_per_epoch=2", "training.num_epochs=1", "training.warmup_steps=1", "-device", "cpu"]
MODEL = Path("results/Dataset001_Toy/masam__axis0")


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs a command's main in tmp_path, where there are raw data and sam.pth of the tiny vit_b."""
    monkeypatch.setitem(ENCODERS, "vit_b", tiny.TINY_SAM)
    monkeypatch.setitem(PLANNED_ENCODERS, "vit_b", replace(PLANNED_ENCODERS["vit_b"], spec=tiny.TINY_SAM))
    for name in ("RAW", "PREPROCESSED", "RESULTS", "WEIGHTS"):
        monkeypatch.setenv(f"MASAM_{name}", str(tmp_path / name.lower()))
    monkeypatch.chdir(tmp_path)
    raw_data.make_raw_dataset(tmp_path / "raw", cases=3, shape=(5, 16, 14), test_cases=1)
    tiny.write_sam_file(tmp_path / "sam.pth")

    def call(name: str, *arguments: str) -> int:
        mains = {"plan": plan_and_preprocess.main, "train": train.main, "predict": predict.main}
        return run(mains[name], arguments)

    return call


def plan(command: Callable[..., int], *options: str) -> dict:
    small = ["--set", "axis0.canvas=32,32", "axis0.magnification=1", "axis0.window=3", "axis0.batch_size=1"]
    assert command("plan", "-d", "1", "-c", "axis0", "-gpu_memory_target", "0", *options, *small, "--workers", "0") == 0
    return json.loads(Path("preprocessed/Dataset001_Toy/plan.json").read_text())


def last_error(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def test_the_whole_way_with_a_file_that_is_named(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = plan(command, "--sam_checkpoint", "sam.pth")
    assert (made["network"]["encoder"], made["network"]["weights"]) == ("vit_b", "sam")
    assert command("train", "1", "0", *QUICK) == 2
    assert re.search(
        "no SAM weights of vit_b in .*weights .*masam_fetch_weights vit_b.*--from_scratch", last_error(capsys)
    )
    assert not MODEL.exists()
    assert command("train", "1", "0", *QUICK, "--workers", "0", "--sam_checkpoint", "sam.pth") == 0
    images = ["-i", "raw/Dataset001_Toy/imagesTs"]
    assert command("predict", *images, "-o", "segs") == 0
    assert len(list(Path("segs").glob("*.nii.gz"))) == 1
    # the file moves, is found by its SHA-256, changes, and is named
    Path("weights").mkdir()
    Path("sam.pth").rename("weights/mine.pth")
    assert command("predict", *images, "-o", "segs2") == 0
    then = file_sha256(Path("weights/mine.pth"))
    Path("weights/mine.pth").rename("kept.pth")
    tiny.write_sam_file(tmp_path / "sam.pth", seed=1)
    capsys.readouterr()
    assert command("predict", *images, "-o", "segs3") == 2
    now = file_sha256(Path("sam.pth"))
    assert re.search(
        rf"SHA-256 begins with {then[:12]}.*sam\.pth has changed: .*{now[:12]}.*--sam_checkpoint",
        last_error(capsys),
    )
    assert command("train", "1", "0", "--val", "--workers", "0") == 2
    assert "has changed" in last_error(capsys)
    assert command("predict", *images, "-o", "segs3", "--sam_checkpoint", "kept.pth") == 0
    assert command("train", "1", "0", "--val", "--workers", "0", "--sam_checkpoint", "kept.pth") == 0


def test_another_encoders_file_is_refused_with_both_shapes(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan(command, "-backbone", "vit_b")
    levels = tuple(replace(level, channels=16) for level in tiny.TINY_SAM.levels)
    tiny.write_sam_file(tmp_path / "wide.pth", spec=replace(tiny.TINY_SAM, dim=16, levels=levels))
    capsys.readouterr()
    assert command("train", "1", "0", *QUICK, "--sam_checkpoint", "wide.pth") == 2
    assert re.search(r"wide\.pth: .* has shape \(16,.* but vit_b needs \(8,", last_error(capsys))
    assert not MODEL.exists()


def test_an_encoder_that_all_learns_is_validated_with_the_file_that_it_started_from(
    command: Callable[..., int],
) -> None:
    plan(command, "--sam_checkpoint", "sam.pth")
    named = ["--sam_checkpoint", "sam.pth", "--workers", "0"]
    assert command("train", "1", "0", "--budget", "1steps", *named, "--set", "network.trained=all") == 0
    assert (MODEL / "fold_0/validation/summary.json").is_file()


def test_from_scratch_trains_the_same_plan_without_sam(command: Callable[..., int]) -> None:
    made = plan(command, "-backbone", "vit_b")
    assert (
        made["reasons"]["network.encoder"] == "asked for; its SAM weights are still missing (masam_fetch_weights vit_b)"
    )
    assert command("train", "1", "0", *QUICK, "--workers", "0", "--from_scratch") == 0
    trained = json.loads((MODEL / "plan.json").read_text())
    assert trained["network"] == made["network"] | {"weights": "none", "trained": "all"}
    assert trained["reasons"]["network.weights"] == "set by hand"
    assert command("predict", "-i", "raw/Dataset001_Toy/imagesTs", "-o", "segs") == 0


def test_planning_from_scratch(command: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    made = plan(command, "-backbone", "vit_b", "--from_scratch")
    assert (made["network"]["weights"], made["network"]["trained"]) == ("none", "all")
    assert "SAM's encoder stays frozen" not in capsys.readouterr().out
    assert plan(command, "--from_scratch")["network"]["encoder"] == "vit_t"


def test_two_different_wishes_about_the_encoder(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        command("plan", "-d", "1", "--no_pp", "-backbone", "vit_l", "--sam_checkpoint", "sam.pth", "--workers", "0")
        == 2
    )
    assert "sam.pth holds vit_b, but -backbone is vit_l" in last_error(capsys)
