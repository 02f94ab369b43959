"""Probabilities of a case, in memory and in a file, filled in while its labels are decided."""

from pathlib import Path

import numpy as np
import torch

from masam_auto.core.geometry import CaseProperties, Geometry
from masam_auto.core.labels import parse_labels
from masam_auto.core.plan import Configuration, NormalizationPlan
from masam_auto.formats.probability_files import read_probabilities
from masam_auto.prediction.restore import MemberLogits, empty_probabilities, new_case_probabilities, restore_case

PROPERTIES = CaseProperties(
    identifier="a",
    geometry=Geometry(shape=(7, 12, 10), spacing=(3.0, 1.0, 1.0)),
    crop=((1, 6), (0, 12), (2, 9)),
    axis_order=(2, 0, 1),
    spacing=(2.0, 1.5, 1.5),
    resampled_shape=(8, 9, 6),
)
CONFIGURATION = Configuration(
    name="axis2",
    axis_order=(2, 0, 1),
    spacing=(2.0, 1.5, 1.5),
    median_shape=(8, 9, 6),
    normalization=(NormalizationPlan(scheme="zscore"),),
    separate_slices=False,
    window=3,
    canvas=(16, 16),
    magnification=1.0,
    mirror_axes=(),
    batch_size=1,
)


def member(outputs: int) -> MemberLogits:
    logits = 3 * torch.randn(outputs, 8, 9, 6, generator=torch.Generator().manual_seed(0))
    return MemberLogits(slices=enumerate(logits.unbind(1)), properties=PROPERTIES, configuration=CONFIGURATION)


def test_a_file_holds_what_memory_holds(tmp_path: Path) -> None:
    for raw, order, names in (
        ({"background": 0, "organ": 1, "lesion": 2}, None, ("background", "organ", "lesion")),
        ({"background": 0, "whole": [1, 2], "core": 2}, [1, 2], ("whole", "core")),
    ):
        labels = parse_labels(raw, order)
        kept = empty_probabilities(PROPERTIES, labels)
        segmentation = restore_case([member(len(names))], labels, probabilities=kept.values)
        with new_case_probabilities(tmp_path / "a.npz", PROPERTIES, labels) as values:
            same = restore_case([member(len(names))], labels, probabilities=values)
        np.testing.assert_array_equal(same, segmentation)
        found = read_probabilities(tmp_path / "a.npz")
        np.testing.assert_array_equal(found.values, kept.values)
        assert (found.outputs, found.has_regions) == (kept.outputs, kept.has_regions) == (names, order is not None)
        assert found.crop == kept.crop == PROPERTIES.crop
        assert found.geometry == kept.geometry == PROPERTIES.geometry
        assert found.values.std() > 0.1
