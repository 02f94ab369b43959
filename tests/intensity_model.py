"""A predictor for the data of raw_data.py whose network reads classes off the intensities."""

from pathlib import Path

import torch
from torch import nn

from masam_auto.core.dataset import read_description
from masam_auto.core.plan import Configuration, InferencePlan, NetworkPlan, NormalizationPlan, Plan, TrainingPlan
from masam_auto.models.load_model import Member
from masam_auto.prediction.predict import Predictor


class ByIntensity(nn.Module):
    """Logits of the classes of tests/raw_data.py: class k has values around 100 + 60 k in channel 0."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.values = 100.0 + 60 * torch.arange(outputs)
        self.eval()

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        return -(windows[:, :, :1] - self.values.view(1, 1, -1, 1, 1)).abs()


def make_predictor(
    raw: Path, *, spacing: tuple[float, float, float] = (3.0, 1.0, 0.8), axis_order: tuple[int, int, int] = (0, 1, 2)
) -> Predictor:
    description = read_description(raw / "dataset.json", name=raw.name)
    scheme = NormalizationPlan(scheme="noNorm", lower=0, upper=255)
    configuration = Configuration(
        name="axis0",
        axis_order=axis_order,
        spacing=spacing,
        median_shape=(6, 16, 14),
        normalization=(scheme,) * description.num_channels,
        separate_slices=False,
        window=3,
        canvas=(32, 32),
        magnification=1.0,
        mirror_axes=(),
        batch_size=1,
    )
    plan = Plan(
        name="masam",
        dataset_name=raw.name,
        channel_names=description.channel_names,
        gpu_memory_gb=0,
        default_configuration="axis0",
        configurations={"axis0": configuration},
        network=NetworkPlan(encoder="vit_t", decoder="multiscale", weights="none", trained="all"),
        training=TrainingPlan(),
        inference=InferencePlan(max_slices=6),
    )
    network = ByIntensity(description.labels.num_outputs)
    member = Member(networks=(network,), plan=plan, configuration=configuration)
    return Predictor(members=(member,), description=description, device=torch.device("cpu"))
