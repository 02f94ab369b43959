"""Share of the time for which the network works when a folder of small volumes is predicted.

The network is replaced by one that sleeps for as long as the real one computes, so that this is also seen for devices
that are not here: sleeping, like waiting for a GPU, leaves the CPU to the other threads.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from dataset_conversion.synthetic import write_synthetic_dataset
from masam_auto.core.dataset import open_dataset
from masam_auto.core.paths import Paths
from masam_auto.formats.inputs import find_inputs
from masam_auto.formats.io import label_ending
from masam_auto.formats.outputs import write_segmentation
from masam_auto.models.load_model import Member
from masam_auto.network.build import build_network
from masam_auto.planning.make_plan import make_plan
from masam_auto.prediction.predict import Predictor
from masam_auto.prediction.predict_folder import PredictionOptions, predict_folder
from masam_auto.preprocessing.fingerprint import extract_fingerprint

CASES = 100
SECONDS = (0.2, 0.1, 0.05)  # of one pass, besides what it takes on this machine


class Asleep(nn.Module):
    """Gives zeros after `seconds`, and counts the time."""

    def __init__(self, outputs: int, seconds: float) -> None:
        super().__init__()
        self.outputs, self.seconds, self.busy = outputs, seconds, 0.0
        self.eval()

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        started = time.perf_counter()
        time.sleep(self.seconds)
        batch, depth, _, *plane = windows.shape
        logits = torch.zeros(batch, depth, self.outputs, *plane)
        self.busy += time.perf_counter() - started
        return logits


def measure(data: Path | None = None) -> dict[str, str]:
    """Busy shares, one case after the other and overlapped; `data`: e.g. Hippocampus, 100 cases of it are taken."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if data is None:
            write_synthetic_dataset(folder, cases=12, test_cases=0)
            (data,) = folder.glob("Dataset*")
        paths = Paths(raw=data.parent, preprocessed=folder / "p", results=folder / "r", weights=folder / "w")
        images = folder / "images"
        link_images(data / "imagesTr", images)
        predictor = make_predictor(paths, data.name)
        measured = seconds_a_pass(predictor, images)
        rows = {f"one pass of vit_t on this machine, {torch.get_num_threads()} threads": f"{measured * 1000:.0f} ms"}
        for seconds in (measured, *SECONDS):
            for what, predict in (("one after the other", one_after_the_other), ("overlapped", overlapped)):
                share, wall = busy_share(predictor, images, folder / "out", seconds, predict)
                rows[f"{CASES} cases, {seconds * 1000:.0f} ms a pass, {what}"] = f"{share:.0%} busy, {wall:.1f} s"
    return rows


def link_images(source: Path, target: Path) -> None:
    """`CASES` cases, repeated where there are fewer."""
    target.mkdir()
    files = sorted(source.iterdir())
    for number in range(CASES):
        file = files[number % len(files)]
        (target / f"copy{number // len(files)}_{file.name}").symlink_to(file.resolve())


def make_predictor(paths: Paths, name: str) -> Predictor:
    """The smallest planned network for a data set, with random weights."""
    dataset = open_dataset(paths, name)
    plan = make_plan(extract_fingerprint(dataset, workers=0), gpu_memory_gb=0)
    configuration = plan.configuration(plan.default_configuration)
    description = dataset.description
    network = build_network(
        plan.network,
        canvas=configuration.canvas,
        in_channels=description.num_channels,
        num_outputs=description.labels.num_outputs,
    ).eval()
    member = Member(networks=(network,), plan=plan, configuration=configuration)
    return Predictor(members=(member,), description=description, device=torch.device("cpu"))


def seconds_a_pass(predictor: Predictor, images: Path) -> float:
    """Median seconds of the real network on a window of one of the cases."""
    (network,) = predictor.members[0].networks
    times: list[float] = []

    def timed(module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        times.append(-time.perf_counter())

    def ended(module: nn.Module, arguments: tuple[torch.Tensor, ...], result: torch.Tensor) -> None:
        times[-1] += time.perf_counter()

    hooks = (network.register_forward_pre_hook(timed), network.register_forward_hook(ended))
    for file in sorted(images.iterdir())[:5]:
        predictor.predict_files(file)
    for hook in hooks:
        hook.remove()
    return float(np.median(times))


def busy_share(
    predictor: Predictor, images: Path, output: Path, seconds: float, predict: Callable[[Predictor, Path, Path], None]
) -> tuple[float, float]:
    """Share of the wall clock in which the network slept, and the wall clock in seconds."""
    network = Asleep(predictor.description.labels.num_outputs, seconds)
    (member,) = predictor.members
    asleep = replace(predictor, members=(replace(member, networks=(network,)),))
    started = time.perf_counter()
    predict(asleep, images, output)
    wall = time.perf_counter() - started
    return network.busy / wall, wall


def one_after_the_other(predictor: Predictor, images: Path, output: Path) -> None:
    """Read, predict, write, and then the next case."""
    ending, labels = label_ending(predictor.description.file_ending), predictor.description.labels
    for case in find_inputs(images, predictor.description):
        found = predictor.predict_files(case.images[0])
        assert found.labels is not None
        write_segmentation(case, found.labels, found.geometry, output, ending, labels)


def overlapped(predictor: Predictor, images: Path, output: Path) -> None:
    """As masam_predict does it."""
    outcome = predict_folder(predictor, images, output, PredictionOptions(overwrite=True))
    assert len(outcome.predicted) == CASES
