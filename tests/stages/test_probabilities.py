"""Probabilities on the image's own grid: they agree with the segmentation that the same logits give."""

from pathlib import Path

import numpy as np
import pytest
import torch

from masam_auto.core.geometry import CaseProperties, Geometry
from masam_auto.core.labels import parse_labels
from masam_auto.core.plan import Configuration, NormalizationPlan
from masam_auto.imaging.probability_files import read_probabilities
from masam_auto.stages.preprocess import restore_case
from masam_auto.stages.probabilities import write_case_probabilities


def case(order: tuple[int, int, int], *, thick: bool) -> tuple[CaseProperties, Configuration]:
    geometry = Geometry(
        shape=(7, 12, 10), spacing=(3.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0), direction=(1.0, 0, 0, 0, 1, 0, 0, 0, 1)
    )
    properties = CaseProperties(
        identifier="a", geometry=geometry, crop=((1, 6), (0, 12), (2, 9)), axis_order=order, spacing=(2.0, 1.5, 1.5),
        resampled_shape=(8, 9, 6),
    )  # fmt: skip
    configuration = Configuration(
        name="axis0", axis_order=order, spacing=(2.0, 1.5, 1.5), median_shape=(8, 9, 6),
        normalization=(NormalizationPlan(scheme="zscore"),), separate_slices=thick, window=3, canvas=(16, 16),
        magnification=1.0, mirror_axes=(), batch_size=1, order_slices=0 if thick else 1,
    )  # fmt: skip
    return properties, configuration


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("thick", [False, True])
def test_the_most_probable_class_is_the_segmentations(tmp_path: Path, order: tuple[int, int, int], thick: bool) -> None:
    properties, configuration = case(order, thick=thick)
    labels = parse_labels({"background": 0, "organ": 1, "lesion": 2}, None)
    logits = 3 * torch.randn(3, 8, 9, 6, generator=torch.Generator().manual_seed(0))
    write_case_probabilities(tmp_path / "a.npz", logits, properties, labels, configuration)
    found = read_probabilities(tmp_path / "a.npz")
    inside = tuple(slice(*side) for side in properties.crop)
    segmentation = restore_case(logits, properties, labels, configuration)[inside]
    values = found.values.astype(np.float32)
    assert values.shape == (3, *segmentation.shape)
    assert np.abs(values.sum(axis=0) - 1).max() < 2e-3
    highest = np.sort(values, axis=0)
    clear = highest[-1] - highest[-2] > 1e-3  # float16 cannot tell the others apart
    assert clear.mean() > 0.9
    assert np.array_equal(values.argmax(axis=0)[clear], segmentation[clear])
    assert found.outputs == ("background", "organ", "lesion")
    assert found.geometry == properties.geometry


def test_regions_have_a_sigmoid_each(tmp_path: Path) -> None:
    properties, configuration = case((0, 1, 2), thick=False)
    labels = parse_labels({"background": 0, "whole": [1, 2], "core": 2}, [1, 2])
    logits = torch.full((2, 8, 9, 6), 1.5)
    write_case_probabilities(tmp_path / "a.npz", logits, properties, labels, configuration)
    found = read_probabilities(tmp_path / "a.npz")
    assert (found.outputs, found.has_regions) == (("whole", "core"), True)
    assert np.abs(found.values - 1 / (1 + np.exp(-1.5))).max() < 1e-3
