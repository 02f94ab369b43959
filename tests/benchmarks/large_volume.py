"""Peak memory of segmenting 1000 slices of 512 x 512 voxels into 120 classes, all but the network, in a process of its
own."""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from masam_auto.core.dataset import parse_description
from masam_auto.core.plan import Configuration, InferencePlan, NetworkPlan, NormalizationPlan, Plan, TrainingPlan
from masam_auto.models.load_model import Member
from masam_auto.prediction.predict import Predictor

ROOT = Path(__file__).resolve().parents[2]
SHAPE = (1000, 512, 512)
CLASSES = 120  # background included; the logits together would take 59 GiB in half precision


class Ramp(nn.Module):
    """Gives logits of the right shape for little work; with brightness, higher classes win."""

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        levels = torch.linspace(-1, 1, CLASSES).view(1, 1, -1, 1, 1)
        return windows[:, :, :1] * levels


def measure(data: Path | None = None) -> dict[str, str]:
    """GiB of the whole process, and minutes, on one thread; `data` is not used."""
    code = "from tests.benchmarks.large_volume import predict_here; predict_here()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    what = f"{SHAPE[2]} x {SHAPE[1]} x {SHAPE[0]}, {CLASSES} classes"
    return {what: f"{found['bytes'] / 2**30:.2f} GiB, {found['seconds'] / 60:.0f} min"}


def predict_here() -> None:
    """Predict once in this process and print {"bytes", "seconds"} as JSON."""
    torch.set_num_threads(1)
    generator = np.random.default_rng(0)
    image = generator.standard_normal((1, *SHAPE), dtype=np.float32)
    predictor = make_predictor()
    started = time.perf_counter()
    labels = predictor.predict_array(image, (1.0, 0.8, 0.8)).labels
    assert labels is not None and labels.max() == CLASSES - 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"bytes": peak, "seconds": time.perf_counter() - started}))


def make_predictor() -> Predictor:
    """A model whose slices are as large as the image's, so that nothing is resampled."""
    labels = {"background": 0} | {f"class{value}": value for value in range(1, CLASSES)}
    raw = {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz"}
    configuration = Configuration(
        name="axis0",
        axis_order=(0, 1, 2),
        spacing=(1.0, 0.8, 0.8),
        median_shape=SHAPE,
        normalization=(NormalizationPlan(scheme="zscore", upper=1000.0),),
        separate_slices=False,
        window=5,
        canvas=SHAPE[1:],
        magnification=1.0,
        mirror_axes=(),
        batch_size=1,
    )
    plan = Plan(
        name="masam",
        dataset_name="Dataset999_Large",
        channel_names=("CT",),
        gpu_memory_gb=0,
        default_configuration="axis0",
        configurations={"axis0": configuration},
        network=NetworkPlan(encoder="vit_t", decoder="multiscale", weights="none", trained="all"),
        training=TrainingPlan(precision="float32"),
        inference=InferencePlan(),
    )
    member = Member(networks=(Ramp().eval(),), plan=plan, configuration=configuration)
    return Predictor(
        members=(member,), description=parse_description(raw, name="Dataset999_Large"), device=torch.device("cpu")
    )
