"""tests/example_plugin: a package, and a file, that add to masam_auto, from the raw data to the scores."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

EXAMPLE = Path(__file__).resolve().parent / "example_plugin"
FILE = EXAMPLE / "masam_example.py"
CHANGES = [
    "network.decoder=linear",
    "network.increment=scale",
    "training.loss=focal",
    "training.optimizer=sgd",
    "training.schedule=linear",
    "training.num_epochs=1",
    "training.steps_per_epoch=1",
    "training.augmentation.added.blur=0.5,1.5",
    "training.augmentation.intensity_probability=1",
    "axis0.normalization.0.scheme=percentile",
]
# One process for all commands, to import torch once; each starts workers of its own.
COMMANDS = """
import importlib, json, sys
for command, *arguments in json.loads(sys.argv[1]):
    code = importlib.import_module("masam_auto.cli." + command).main(arguments)
    assert code == 0, (command, code)
"""


def install(folder: Path) -> None:
    """What pip would leave of the package in a folder of the path."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    shutil.copy(FILE, folder)
    information = folder / f"{project['name']}-{project['version']}.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
    lines = [
        line
        for group, entries in project["entry-points"].items()
        for line in (f"[{group}]", *(f"{name} = {place}" for name, place in entries.items()))
    ]
    (information / "entry_points.txt").write_text("\n".join(lines))


def write_download(folder: Path) -> None:
    """Three tiny cases as the example's converter takes them."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        label = np.zeros((5, 16, 14), np.uint8)
        label[1:4, 4:11, 3:9] = 1
        image = (label + generator.normal(0, 0.2, label.shape)).astype(np.float32)
        for kind, array in (("image", image), ("label", label)):
            np.savez(folder / f"{name}_{kind}.npz", image=array, spacing=np.array([3.0, 1.0, 1.0]))


@pytest.mark.parametrize("way", ["package", "file"])
def test_everything_that_can_be_added_works_together(tmp_path: Path, way: str) -> None:
    write_download(tmp_path / "download")
    (tmp_path / "path").mkdir()
    if way == "package":
        install(tmp_path / "path")
    plugin = ["--plugin", str(FILE)] if way == "file" else []
    images, result = "masam_data/raw/Dataset077_Arrays/imagesTr", "predicted"
    commands = [
        ["convert_dataset", "arrays", "-i", "download", "--workers", "1" if plugin else "0", *plugin],
        ["plan_and_preprocess", "-d", "77", "-c", "axis0", "--workers", "1", "-gpu_memory_target", "1",
         "-backbone", "vit_small", "--set", *CHANGES],
        ["train", "77", "0", "-c", "axis0", "-device", "cpu", "--workers", "1"],
        ["predict", "-d", "77", "-c", "axis0", "-i", images, "-o", result, "-device", "cpu",
         "-num_gpus", "2" if plugin else "1"],
        ["evaluate", result, images.replace("images", "labels"), "--metrics", "centre_distance_mm", "--workers", "0"],
    ]  # fmt: skip
    run = subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps(commands)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "path"), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert run.returncode == 0, run.stdout + run.stderr
    summary = json.loads((tmp_path / result / "summary.json").read_text())
    assert sorted(path.name for path in (tmp_path / result).glob("*.npz")) == ["a.npz", "b.npz", "c.npz"]
    assert "centre_distance_mm" in summary["mean"]["1"] and "Dice" in summary["mean"]["1"]
