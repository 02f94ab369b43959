"""documentation/extending.md: its examples, put into one file, are a plug-in that works."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

from masam_auto.core.plugins import KINDS
from tests.raw_data import write_volume

PAGE = Path(__file__).resolve().parents[1] / "documentation" / "extending.md"
USE = """
import sys
from pathlib import Path
import numpy as np, torch
from masam_auto import use_plugins
from masam_auto.planning.planned_encoders import planned_encoder
from masam_auto.core.geometry import Geometry
from masam_auto.core.labels import parse_labels
from masam_auto.core.plan import AugmentationPlan, NetworkPlan, NormalizationPlan
from masam_auto.formats.io import read_image, read_labels, write_labels
from masam_auto.imaging.canvas import CanvasMap
from masam_auto.imaging.metrics import compare_masks, measure
from masam_auto.imaging.normalize import normalize
from masam_auto.network.build import build_network
from masam_auto.training.augmentation import find_augmentation
from masam_auto.training.loss import choose_loss, here

if __name__ == "__main__":
    use_plugins("my_plugin.py")
    labels = parse_labels({"background": 0, "organ": 1}, None)
    plan = NetworkPlan(encoder="vit_s", decoder="linear", weights="none", trained="all")
    network = build_network(plan, canvas=(32, 32), in_channels=1, num_outputs=2)
    logits = network(torch.zeros(1, 1, 1, 32, 32))
    loss = choose_loss("focal")(logits, torch.ones(1, 1, 32, 32), labels, (1.0, 1.0), here)
    loss.backward()
    print("loss", loss.item() > 0, "encoder", planned_encoder("vit_s").sam)
    changed = find_augmentation("dropout")(torch.ones(1, 1, 20, 20), 0.5, np.random.default_rng(0))
    print("augmentation", 0.2 < changed.mean().item() < 0.8)
    image = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4)
    scaled = normalize(image, (NormalizationPlan(scheme="percentile"),))
    print("normalisation", scaled.min().round(6), scaled.max())
    geometry = Geometry(shape=(2, 3, 4), spacing=(1.0, 1.0, 1.0))
    write_labels(Path("labels.npy"), (image[0] > 11).astype(np.int16), geometry)
    print("reader", read_labels(Path("labels.npy"))[0].sum(), read_image(Path("labels.npy"))[1] == geometry)
    compared = compare_masks(image[0] > 5, image[0] > 11, spacing=(1, 1, 1))
    print("metric", measure(compared, ["volume_ratio"])["volume_ratio"])
    from masam_auto.cli.convert_dataset import main
    code = main(["clinic", "-i", "download", "--workers", "1"])
    print("converter", code, Path("masam_data/raw/Dataset080_Clinic/dataset.json").is_file())
"""


def test_the_examples_work(tmp_path: Path) -> None:
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL))
    (tmp_path / "my_plugin.py").write_text(code)
    (tmp_path / "use.py").write_text(USE)
    (tmp_path / "download").mkdir()
    write_volume(tmp_path / "download" / "a.nii.gz", np.zeros((3, 4, 5), np.float32))
    write_volume(tmp_path / "download" / "a_seg.nii.gz", np.ones((3, 4, 5), np.uint8))
    run = subprocess.run(
        [sys.executable, "use.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PAGE.parents[1])},
    )
    assert run.returncode == 0, run.stderr
    for line in (
        "loss True encoder True",
        "augmentation True",
        "normalisation 0.0 1.0",
        "reader 12 True",
        "metric 1.5",
        "converter 0 True",
    ):
        assert line in run.stdout.splitlines()


def test_every_kind_has_a_row() -> None:
    rows = re.findall(r"^\| an? .*?\| `([A-Z]+)` \| `masam_auto\.(\w+)` \|", PAGE.read_text(), flags=re.MULTILINE)
    assert sorted(rows) == sorted((kind.upper(), kind) for kind in KINDS)
