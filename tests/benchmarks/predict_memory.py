"""Peak memory of segmenting a large CT with many classes, above the loaded model, in a process of its own."""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from dataset_conversion.synthetic import write_synthetic_dataset
from masam_auto.core.dataset import open_dataset, parse_description
from masam_auto.core.paths import Paths
from masam_auto.models.load_model import Member
from masam_auto.network.build import build_network
from masam_auto.planning.make_plan import make_plan
from masam_auto.prediction.predict import Predictor
from masam_auto.preprocessing.fingerprint import extract_fingerprint

ROOT = Path(__file__).resolve().parents[2]
SHAPE = (300, 512, 512)
SPACING = (1.5, 0.8, 0.8)
CLASSES = 14  # background included
OVERRIDES = ("axis0.spacing=1.5,0.8,0.8", "axis0.canvas=256,256", "axis0.magnification=0.75")


def measure(data: Path | None = None) -> dict[str, str]:
    """GiB above the model, and seconds, with random weights of `vit_t`; `data` is not used."""
    code = "from tests.benchmarks.predict_memory import predict_here; predict_here()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    what = f"{SHAPE[0]} x {SHAPE[1]} x {SHAPE[2]}, {CLASSES} classes"
    return {what: f"{found['bytes'] / 2**30:.2f} GiB, {found['seconds']:.0f} s"}


def predict_here() -> None:
    """Predict once in this process and print {"bytes", "seconds"} as JSON."""
    predictor = _untrained()
    before = _peak()
    generator = np.random.default_rng(0)
    image = generator.normal(40, 100, (1, *SHAPE)).astype(np.float32)
    started = time.perf_counter()
    predictor.predict_array(image, SPACING)
    print(json.dumps({"bytes": _peak() - before, "seconds": time.perf_counter() - started}))


def _untrained() -> Predictor:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_synthetic_dataset(folder, cases=5, test_cases=0)
        paths = Paths(raw=folder, preprocessed=folder, results=folder, weights=folder)
        fingerprint = extract_fingerprint(open_dataset(paths, "999"), workers=0)
    plan = make_plan(fingerprint, gpu_memory_gb=0, overrides=OVERRIDES)
    configuration = plan.configuration("axis0")
    labels = {"background": 0} | {f"class{value}": value for value in range(1, CLASSES)}
    raw = {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz"}
    network = build_network(plan.network, canvas=configuration.canvas, in_channels=1, num_outputs=CLASSES).eval()
    member = Member(networks=(network,), plan=plan, configuration=configuration)
    description = parse_description(raw, name="Dataset999_Demo")
    return Predictor(members=(member,), description=description, device=torch.device("cpu"))


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
