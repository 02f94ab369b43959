"""Training with boxes: one checkpoint serves automatic, tight and relaxed prediction, and resuming changes nothing."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from masam_auto.core.boxes import box_prompt, relaxed_box
from masam_auto.core.geometry import Box, CaseProperties, Geometry
from masam_auto.core.labels import parse_labels
from masam_auto.core.plan import AugmentationPlan, InferencePlan, Plan
from masam_auto.formats.storage import find_locations, write_array, write_locations
from masam_auto.imaging.crop import bounding_box
from masam_auto.models.checkpoint import LATEST, load_checkpoint
from masam_auto.network.build import load_trainable_state
from masam_auto.network.volume import predict_slices
from masam_auto.training.train import train_fold
from masam_auto.training.training_job import TrainingOptions
from tests import tiny_training as tiny

CPU = torch.device("cpu")
SHAPE = (5, 16, 16)


def make_twins(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """An image (1, Z, Y, X) with two equal blobs, and labels of one of them: nothing in the image tells which."""
    generator = np.random.default_rng(seed)
    labels = np.zeros(SHAPE, np.int8)
    image = generator.normal(0, 0.1, SHAPE).astype(np.float32)
    meant = generator.integers(2)
    for side in (0, 1):
        row, column = int(generator.integers(1, 9)), 1 + 8 * side + int(generator.integers(0, 2))
        image[1:4, row : row + 6, column : column + 5] += 1
        if side == meant:
            labels[1:4, row : row + 6, column : column + 5] = 1
    return image[None], labels


def make_plan(**training: Any) -> Plan:
    plan = tiny.make_plan(tiny.make_configuration(median_shape=SHAPE), **training)
    return dataclasses.replace(plan, network=dataclasses.replace(plan.network, prompt="box"))


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Train fold 0 of twelve cases of twins."""
    tiny.without_pictures(monkeypatch)

    def run(where: str, plan: Plan, **options: Any) -> Path:
        configuration = plan.configuration(None)
        paths = tiny.write_preprocessed(tmp_path / where, configuration, cases=13)
        folder, labels = paths.configuration_folder(tiny.DATASET, configuration.name), parse_labels(tiny.LABELS, None)
        for number, file in enumerate(sorted(folder.glob("?.b2nd"))):
            image, found = make_twins(number)
            write_array(file, image)
            write_array(folder / f"{file.stem}_seg.b2nd", found)
            write_locations(folder / f"{file.stem}_locations.npz", find_locations(found, labels))
        options = {"device": CPU, "workers": 0, "threads": 1, **options}
        return train_fold(paths, tiny.DATASET, plan, configuration, 0, TrainingOptions(**options))

    return run


def dice(logits: torch.Tensor, reference: np.ndarray) -> float:
    found = (logits.argmax(0) > 0).numpy()
    return 2 * float((found & (reference > 0)).sum()) / float(found.sum() + (reference > 0).sum())


def test_the_box_tells_which_of_two_equal_blobs_is_meant(train: Callable[..., Path]) -> None:
    still = AugmentationPlan(spatial_probability=0, intensity_probability=0, erasing_probability=0)
    plan = make_plan(num_epochs=1, steps_per_epoch=60, learning_rate=2e-2, weight_average=0.9, augmentation=still)
    configuration = plan.configuration(None)
    network = tiny.build_tiny(plan.network, canvas=configuration.canvas, in_channels=1, num_outputs=3)
    load_trainable_state(network, load_checkpoint(train("one", plan)).model, origin="test")
    network.eval()
    properties = CaseProperties(
        identifier="new",
        geometry=Geometry(shape=SHAPE, spacing=configuration.spacing),
        crop=((0, 5), (0, 16), (0, 16)),
        axis_order=(0, 1, 2),
        spacing=configuration.spacing,
        resampled_shape=SHAPE,
    )

    def mean_dice(make_box: Callable[[Box], Box] | None) -> float:
        scores = []
        for seed in range(100, 110):
            image, labels = make_twins(seed)
            tight = bounding_box(labels > 0)
            assert tight is not None
            prompt = None if make_box is None else box_prompt(make_box(tight), properties)
            slices = predict_slices(
                [network], image, configuration, InferencePlan(), num_outputs=3, device=CPU, prompt=prompt
            )
            logits = torch.zeros((3, *SHAPE))
            for z, found in slices:
                logits[:, z] = found
            scores.append(dice(logits, labels))
        return float(np.mean(scores))

    automatic, tight = mean_dice(None), mean_dice(lambda box: box)
    relaxed = mean_dice(lambda box: relaxed_box(box, 0.2, SHAPE))
    assert automatic < 0.75, "both blobs, or one by chance"
    assert min(tight, relaxed) > automatic + 0.15


def test_resumed_equals_uninterrupted_with_boxes(train: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(num_epochs=2, steps_per_epoch=2)
    whole = load_file(train("whole", plan) / LATEST / "model.safetensors")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        tiny.before_look(patch, 2, tiny.interrupt)
        train("parts", plan)
    parts = load_file(train("parts", plan, resume=True) / LATEST / "model.safetensors")
    assert whole.keys() == parts.keys()
    assert [name for name in whole if not torch.equal(whole[name], parts[name])] == []
    assert any(name.startswith("prompt_encoder.mask_downscaling") for name in whole)
