"""From logits, slice by slice, to labels and probabilities on the image's own grid: one model and ensembles."""

import dataclasses
import weakref
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from masam_auto.core.geometry import CaseProperties, Geometry
from masam_auto.core.labels import Labels, parse_labels
from masam_auto.core.plan import Configuration, NormalizationPlan
from masam_auto.formats.probability_files import read_probabilities
from masam_auto.imaging.resample import nearest_index, resample_image
from masam_auto.prediction import restore
from masam_auto.prediction.restore import MemberLogits, empty_probabilities, new_case_probabilities, restore_case

CLASSES = parse_labels({"background": 0, "organ": 1, "lesion": 2}, None)
REGIONS = parse_labels({"background": 0, "whole": [1, 2], "core": 2, "rim": 1}, [1, 2, 1])
ORDERS = [(0, 1, 2), (1, 0, 2), (2, 0, 1)]
CROP = ((1, 8), (0, 12), (2, 9))


def make_member(
    order: tuple[int, int, int], shape: tuple[int, int, int], *, thick: bool = False, seed: int = 0, outputs: int = 3
) -> tuple[MemberLogits, torch.Tensor]:
    """A member of one image, and its logits (K, Z, Y, X) together."""
    geometry = Geometry(shape=(9, 12, 10), spacing=(3.0, 1.0, 1.0), direction=(0.8, 0.6, 0, -0.6, 0.8, 0, 0, 0, 1))
    properties = CaseProperties(
        identifier="a", geometry=geometry, crop=CROP, axis_order=order, spacing=(2.0, 1.5, 1.5), resampled_shape=shape
    )
    configuration = Configuration(
        name="axis",
        axis_order=order,
        spacing=(2.0, 1.5, 1.5),
        median_shape=shape,
        normalization=(NormalizationPlan(scheme="zscore"),),
        separate_slices=thick,
        window=3,
        canvas=(16, 16),
        magnification=1.0,
        mirror_axes=(),
        batch_size=1,
    )
    logits = 3 * torch.randn(outputs, *shape, generator=torch.Generator().manual_seed(seed))
    member = MemberLogits(slices=enumerate(logits.unbind(1)), properties=properties, configuration=configuration)
    return member, logits


def stored(member: MemberLogits, logits: torch.Tensor) -> np.ndarray:
    """(K, z, y, x) logits on the crop in the image's own axis order, resampled all at once."""
    properties = member.properties
    shape, values = properties.permuted_shape, logits.numpy()
    if member.configuration.separate_slices:
        values = values[:, nearest_index(values.shape[1], shape[0])]
    values = resample_image(values, shape, order=1)
    return values.transpose(0, *(1 + np.argsort(properties.axis_order)))


def softmax(logits: np.ndarray) -> np.ndarray:
    return torch.from_numpy(np.ascontiguousarray(logits)).softmax(0).numpy()


def inside(labels: np.ndarray) -> np.ndarray:
    return labels[tuple(slice(*side) for side in CROP)]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", [(8, 9, 6), (3, 20, 5), (7, 12, 7)])
@pytest.mark.parametrize("thick", [False, True])
@pytest.mark.parametrize("labels", [CLASSES, REGIONS])
def test_streamed_equals_stored(
    order: tuple[int, int, int], shape: tuple[int, int, int], thick: bool, labels: Labels
) -> None:
    member, logits = make_member(order, shape, thick=thick)
    expected = stored(member, logits)
    probabilities = empty_probabilities(member.properties, labels)
    found = restore_case([member], labels, probabilities=probabilities.values)
    assert found.shape == (9, 12, 10)
    assert np.count_nonzero(found) == np.count_nonzero(inside(found))
    if labels.has_regions:
        decided = np.zeros(expected.shape[1:], int)
        for region, value in zip(expected, (1, 2, 1), strict=True):
            decided[region > 0] = value
        clear = np.abs(expected).min(axis=0) > 1e-4
        shares = 1 / (1 + np.exp(-expected))
    else:
        decided, shares = expected.argmax(axis=0), softmax(expected)
        clear = np.diff(np.sort(expected, axis=0)[-2:], axis=0)[0] > 1e-4
    assert clear.mean() > 0.98
    np.testing.assert_array_equal(inside(found)[clear], decided[clear])
    np.testing.assert_allclose(probabilities.values, shares, atol=6e-4)  # float16
    without = restore_case([make_member(order, shape, thick=thick)[0]], labels)
    np.testing.assert_array_equal(without, found)


@pytest.mark.parametrize("shape", [(40, 9, 6), (3, 9, 6)])
def test_slices_are_let_go_when_no_later_one_needs_them(shape: tuple[int, int, int]) -> None:
    member, _ = make_member((0, 1, 2), shape)
    alive, most = weakref.WeakSet[torch.Tensor](), []

    def slices() -> Iterator[tuple[int, torch.Tensor]]:
        for z in range(shape[0]):
            logits = torch.zeros(3, *shape[1:])  # float32: iterate_slabs keeps this very tensor
            alive.add(logits)
            most.append(len(alive))
            yield z, logits

    restore_case([dataclasses.replace(member, slices=slices())], CLASSES)
    assert max(most) == 2  # those to interpolate between


MIXES = {
    "one order": [((0, 1, 2), (8, 9, 6)), ((0, 1, 2), (3, 20, 5))],
    "two orders": [((0, 1, 2), (8, 9, 6)), ((1, 0, 2), (12, 5, 7))],
    "three orders": [((0, 1, 2), (8, 9, 6)), ((1, 0, 2), (12, 5, 7)), ((2, 0, 1), (7, 5, 7)), ((0, 1, 2), (7, 12, 7))],
}


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("labels", [CLASSES, REGIONS])
@pytest.mark.parametrize("where", ["memory", "file", "probabilities"])
def test_ensembles_average_probabilities(mix: str, labels: Labels, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if where == "file":
        monkeypatch.setattr(restore, "scratch_array", partial(restore.scratch_array, memory_share=0))
    made = [make_member(*place, seed=seed) for seed, place in enumerate(MIXES[mix])]
    share = softmax if not labels.has_regions else lambda logits: 1 / (1 + np.exp(-logits))
    mean = np.mean([share(stored(*member)) for member in made], axis=0)
    probabilities = empty_probabilities(made[0][0].properties, labels) if where == "probabilities" else None
    members = [member for member, _ in made]
    found = restore_case(members, labels, probabilities=None if probabilities is None else probabilities.values)
    if labels.has_regions:
        decided = np.select([mean[2] > 0.5, mean[1] > 0.5, mean[0] > 0.5], [1, 2, 1])
        clear = np.abs(mean - 0.5).min(axis=0) > 2e-3
    else:
        decided, clear = mean.argmax(axis=0), np.diff(np.sort(mean, axis=0)[-2:], axis=0)[0] > 2e-3
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(inside(found)[clear], decided[clear])
    if probabilities is not None:
        np.testing.assert_allclose(probabilities.values, mean, atol=2e-3)


def test_an_ensemble_of_one_model_with_itself_is_that_model() -> None:
    alone = restore_case([make_member((0, 1, 2), (8, 9, 6))[0]], CLASSES)
    twice = restore_case([make_member((0, 1, 2), (8, 9, 6))[0] for _ in range(2)], CLASSES)
    assert (alone == twice).mean() > 0.995  # probabilities near 1 round to the same number


@pytest.mark.parametrize(
    ("labels", "names"), [(CLASSES, ("background", "organ", "lesion")), (REGIONS, ("whole", "core", "rim"))]
)
def test_a_file_holds_what_memory_holds(labels: Labels, names: tuple[str, ...], tmp_path: Path) -> None:
    member, _ = make_member((2, 0, 1), (8, 9, 6))
    kept = empty_probabilities(member.properties, labels)
    segmentation = restore_case([member], labels, probabilities=kept.values)
    again, _ = make_member((2, 0, 1), (8, 9, 6))
    with new_case_probabilities(tmp_path / "a.npz", again.properties, labels) as values:
        np.testing.assert_array_equal(restore_case([again], labels, probabilities=values), segmentation)
    found = read_probabilities(tmp_path / "a.npz")
    np.testing.assert_array_equal(found.values, kept.values)
    assert (found.outputs, found.has_regions) == (kept.outputs, kept.has_regions) == (names, labels is REGIONS)
    assert found.crop == kept.crop == CROP
    assert found.geometry == kept.geometry == member.properties.geometry
    assert found.values.std() > 0.1
