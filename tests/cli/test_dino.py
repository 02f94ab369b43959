"""From a file of DINO's to segmentations by the commands, with encoders small enough for a test."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from masam_auto.cli import plan_and_preprocess, predict, train
from masam_auto.cli.common import run
from masam_auto.core.encoders import ENCODERS
from masam_auto.models.sam_weights import encoder_of_file
from masam_auto.planning.planned_encoders import PLANNED_ENCODERS
from tests import raw_data
from tests.network.make_golden_dino import FILE, PATCH, REGISTERS
from tests.network.small_networks import small_dino

pytestmark = pytest.mark.slow

QUICK = ["--set", "training.steps_per_epoch=2", "training.num_epochs=1", "training.warmup_steps=1"]
NAMES = {"dinov2": "dinov2_vits14", "dinov2_reg": "dinov2_vits14_reg", "dinov3": "dinov3_vits16"}


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs a command's main in tmp_path, where there are raw data and DINO's files, for the small encoders' sizes."""
    golden = load_file(FILE)
    for short, name in NAMES.items():
        registers, positions = (0 if short == "dinov2" else REGISTERS), (0 if short == "dinov3" else 5)
        spec = small_dino(PATCH[short], registers=registers, positions=positions, targets=(1,))
        monkeypatch.setitem(ENCODERS, name, spec)
        monkeypatch.setitem(PLANNED_ENCODERS, name, replace(PLANNED_ENCODERS[name], spec=spec, budget=112))
        for form in ("meta", "timm", "transformers"):
            start = f"{short}.{form}.state."
            state = {key.removeprefix(start): value for key, value in golden.items() if key.startswith(start)}
            torch.save({key: value.float() for key, value in state.items()}, tmp_path / f"{short}_{form}.pth")
    for folder in ("RAW", "PREPROCESSED", "RESULTS", "WEIGHTS"):
        monkeypatch.setenv(f"MASAM_{folder}", str(tmp_path / folder.lower()))
    monkeypatch.chdir(tmp_path)
    raw_data.make_raw_dataset(tmp_path / "raw", cases=3, shape=(5, 16, 14), test_cases=1)

    def call(name: str, *arguments: str) -> int:
        mains = {"plan": plan_and_preprocess.main, "train": train.main, "predict": predict.main}
        return run(mains[name], arguments)

    return call


def plan(command: Callable[..., int], *options: str) -> dict:
    small = ["--set", "axis0.window=3", "axis0.batch_size=1"]
    assert command("plan", "-d", "1", "-c", "axis0", "-gpu_memory_target", "0", *options, *small, "--workers", "0") == 0
    return json.loads(Path("preprocessed/Dataset001_Toy/plan.json").read_text())


@pytest.mark.parametrize(("short", "form"), [("dinov2", "meta"), ("dinov2_reg", "timm"), ("dinov3", "transformers")])
def test_the_whole_way(command: Callable[..., int], short: str, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    made = plan(command, "--sam_checkpoint", f"{short}_{form}.pth")
    assert (made["network"]["encoder"], made["network"]["weights"]) == (NAMES[short], "sam")
    assert "DINOv" in made["reasons"]["network.weights"] and "neck" in made["reasons"]["network.trained"]
    assert all(side % PATCH[short] == 0 for side in made["configurations"]["axis0"]["canvas"])
    assert {channel["scheme"] for channel in made["configurations"]["axis0"]["normalization"]} == {"clip_to_0_1"}
    assert command("train", "1", "0", *QUICK, "--workers", "0", "-device", "cpu") == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert f"no weights of {NAMES[short]} in" in line and "Get them from https://github.com/facebookresearch/" in line
    assert command("train", "1", "0", *QUICK, "--workers", "0", "--sam_checkpoint", f"{short}_{form}.pth") == 0
    assert command("predict", "-i", "raw/Dataset001_Toy/imagesTs", "-o", "segs") == 0
    assert len(list(Path("segs").glob("*.nii.gz"))) == 1


def test_every_file_is_recognised_and_another_encoders_is_refused(
    command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    for short, name in NAMES.items():
        for form in ("meta", "timm", "transformers"):
            assert encoder_of_file(Path(f"{short}_{form}.pth")) == name
    plan(command, "-backbone", "dinov3_vits16")
    capsys.readouterr()
    assert command("train", "1", "0", *QUICK, "--sam_checkpoint", "dinov2_meta.pth") == 2
    assert "register_tokens is missing, which dinov3_vits16 needs" in capsys.readouterr().err
    masks = ["--set", "network.masks_start=sam"]
    assert command("train", "1", "0", *masks, "--sam_checkpoint", "dinov3_meta.pth") == 2
    assert "hold only an encoder. Give --set network.masks_start=new" in capsys.readouterr().err
    assert not Path("results").exists()


def test_from_scratch(command: Callable[..., int]) -> None:
    made = plan(command, "-backbone", "dinov2_vits14", "--from_scratch")
    assert (made["network"]["weights"], made["network"]["trained"]) == ("none", "all")
    assert command("train", "1", "0", *QUICK, "--workers", "0") == 0
