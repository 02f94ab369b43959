"""Folders of images to segmentations, with a network that reads classes off the intensities."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from masam_auto.core.dataset import read_description
from masam_auto.core.errors import DatasetError, ImageError, OutputError
from masam_auto.core.plan import Configuration, InferencePlan, NetworkPlan, NormalizationPlan, Plan, TrainingPlan
from masam_auto.imaging.io import read_geometry, read_image, read_labels
from masam_auto.stages.predict import Predictor, predict_folder, predict_image


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
    return Predictor(
        networks=(ByIntensity(description.labels.num_outputs),),
        plan=plan,
        configuration=configuration,
        description=description,
        device=torch.device("cpu"),
    )


def dice(prediction: np.ndarray, reference: np.ndarray, value: int) -> float:
    both = ((prediction == value) & (reference == value)).sum()
    return 2 * both / ((prediction == value).sum() + (reference == value).sum())


@pytest.mark.parametrize(
    ("spacing", "axis_order"),
    [((3.0, 1.0, 0.8), (0, 1, 2)), ((1.0, 0.8, 3.0), (1, 2, 0)), ((2.0, 0.9, 0.9), (0, 1, 2))],
)
def test_segmentations_lie_on_the_images_grid_and_are_right(
    raw_dataset: Callable[..., Path],
    tmp_path: Path,
    spacing: tuple[float, float, float],
    axis_order: tuple[int, int, int],
) -> None:
    raw = raw_dataset(cases=3)
    outcome = predict_folder(
        make_predictor(raw, spacing=spacing, axis_order=axis_order), raw / "imagesTr", tmp_path / "out"
    )
    assert outcome.predicted == ("case_000", "case_001", "case_002")
    assert not outcome.problems
    assert json.loads((tmp_path / "out" / "dataset.json").read_text()) == json.loads((raw / "dataset.json").read_text())
    for identifier in outcome.predicted:
        predicted, geometry = read_labels(tmp_path / "out" / f"{identifier}.nii.gz")
        reference, _ = read_labels(raw / "labelsTr" / f"{identifier}.nii.gz")
        assert geometry.difference(read_geometry(raw / "imagesTr" / f"{identifier}_0000.nii.gz")) is None
        assert min(dice(predicted, reference, value) for value in (1, 2)) > (0.99 if spacing[0] != 2.0 else 0.8)


def test_videos_give_one_mask_a_frame(video_dataset: Callable[..., Path], tmp_path: Path) -> None:
    raw = video_dataset(sequences=2, frames=4, colour=False)
    predictor = make_predictor(raw, spacing=(1.0, 1.0, 1.0))
    outcome = predict_folder(predictor, raw / "imagesTr", tmp_path / "out")
    assert outcome.predicted == ("clip0", "clip1")
    masks = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert masks == [f"clip{s}_frame{f:03d}.png" for s in range(2) for f in range(4)]
    for name in masks:
        predicted, _ = read_labels(tmp_path / "out" / name)
        reference, _ = read_labels(raw / "labelsTr" / name)
        assert dice(predicted, reference, 1) > 0.95


def test_existing_segmentations_are_not_overwritten_unasked(raw_dataset: Callable[..., Path], tmp_path: Path) -> None:
    raw = raw_dataset(cases=2)
    predictor, out = make_predictor(raw), tmp_path / "out"
    predict_folder(predictor, raw / "imagesTr", out)
    (out / "case_001.nii.gz").write_bytes(b"mine")
    with pytest.raises(OutputError, match=r"already holds case_000.nii.gz, case_001.nii.gz. Give --overwrite"):
        predict_folder(predictor, raw / "imagesTr", out)
    (out / "case_000.nii.gz").unlink()
    outcome = predict_folder(predictor, raw / "imagesTr", out, continue_prediction=True)
    assert (outcome.predicted, outcome.skipped) == (("case_000",), ("case_001",))
    assert (out / "case_001.nii.gz").read_bytes() == b"mine"
    outcome = predict_folder(predictor, raw / "imagesTr", out, overwrite=True)
    assert len(outcome.predicted) == 2
    assert read_labels(out / "case_001.nii.gz")[0].max() == 2


def test_a_bad_case_does_not_stop_the_others(raw_dataset: Callable[..., Path], tmp_path: Path) -> None:
    raw = raw_dataset(cases=3)
    (raw / "imagesTr" / "case_001_0000.nii.gz").write_bytes(b"not an image")
    outcome = predict_folder(make_predictor(raw), raw / "imagesTr", tmp_path / "out")
    assert outcome.predicted == ("case_000", "case_002")
    (problem,) = outcome.problems
    assert "case_001" in problem
    assert not (tmp_path / "out" / "case_001.nii.gz").exists()


def test_wrong_channels_name_the_case(raw_dataset: Callable[..., Path], tmp_path: Path) -> None:
    raw = raw_dataset(cases=2, channels=2)
    (raw / "imagesTr" / "case_001_0001.nii.gz").unlink()
    outcome = predict_folder(make_predictor(raw), raw / "imagesTr", tmp_path / "out")
    assert outcome.predicted == ("case_000",)
    assert "case_001: has 1 channel" in outcome.problems[0]


def test_label_files_in_place_of_images(raw_dataset: Callable[..., Path], tmp_path: Path) -> None:
    raw = raw_dataset(cases=1)
    outcome = predict_folder(make_predictor(raw), raw / "labelsTr", tmp_path / "out")
    assert not outcome.predicted
    assert "looks like a segmentation" in outcome.problems[0]


def test_outputs_never_go_among_the_inputs(raw_dataset: Callable[..., Path], tmp_path: Path) -> None:
    raw = raw_dataset(cases=1)
    predictor = make_predictor(raw)
    with pytest.raises(OutputError, match="output folder is the input folder"):
        predict_folder(predictor, raw / "imagesTr", raw / "imagesTr" / ".." / "imagesTr")
    with pytest.raises(OutputError, match="is a file"):
        predict_folder(predictor, raw / "imagesTr", raw / "dataset.json")
    with pytest.raises(OutputError, match="the output folder is a raw data set"):
        predict_folder(predictor, raw / "imagesTr", raw)
    with pytest.raises(OutputError, match="the output folder is part of a raw data set"):
        predict_folder(predictor, raw / "imagesTr", raw / "labelsTr", overwrite=True)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DatasetError, match="the folder is empty"):
        predict_folder(predictor, empty, tmp_path / "out")


def test_arrays_in_memory(raw_dataset: Callable[..., Path], raw_data: ModuleType) -> None:
    raw = raw_dataset(cases=1)
    predictor = make_predictor(raw)
    image, geometry = read_image(raw / "imagesTr" / "case_000_0000.nii.gz")
    before = image.copy()
    segmentation = predict_image(predictor, image, geometry, identifier="mine")
    reference, _ = read_labels(raw / "labelsTr" / "case_000.nii.gz")
    assert dice(segmentation, reference, 1) > 0.99
    assert np.array_equal(image, before)
    with pytest.raises(ImageError, match="mine has 2 channels; the model takes 1"):
        predict_image(predictor, np.concatenate([image, image]), geometry, identifier="mine")
