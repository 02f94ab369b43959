"""Connected components: what postprocessing takes out, and that its effect is foretold exactly."""

import numpy as np
import pytest
from skimage.measure import label

from masam_auto.core.postprocessing import Postprocessing, PostprocessingStep
from masam_auto.imaging.components import (
    apply_postprocessing,
    find_components,
    number_components,
    smallest_component,
    staying,
)

VOXEL = 2.0
ORGAN, LESION = (1,), (2,)


def largest(values: tuple[int, ...]) -> PostprocessingStep:
    return PostprocessingStep(target="x", values=values, rule="keep_largest")


def at_least(values: tuple[int, ...], volume: float) -> PostprocessingStep:
    return PostprocessingStep(target="x", values=values, rule="remove_small", volume=volume)


def apply(labels: np.ndarray, *steps: PostprocessingStep, each_slice: bool = False) -> np.ndarray:
    return apply_postprocessing(labels, Postprocessing(steps=steps, each_slice=each_slice), voxel_volume=VOXEL)


def specks(seed: int, shape: tuple[int, int, int] = (5, 12, 11)) -> np.ndarray:
    """Random components of many sizes, of the classes 1 and 2."""
    return np.random.default_rng(seed).choice([0, 1, 2], size=shape, p=[0.9, 0.06, 0.04]).astype(np.int16)


def sketch() -> np.ndarray:
    """A large organ with a lesion that touches it, a small organ apart, and a lesion that touches that at a corner."""
    labels = np.zeros((3, 8, 8), np.int16)
    labels[0:2, 0:3, 0:3] = 1
    labels[0, 3, 0:3] = 2
    labels[2, 6, 6] = 1
    labels[1, 5, 5] = 2
    return labels


def test_the_largest_component_of_all_foreground_keeps_what_touches_it() -> None:
    expected = sketch()
    expected[2, 6, 6] = expected[1, 5, 5] = 0
    assert np.array_equal(apply(sketch(), largest((1, 2))), expected)


def test_a_class_is_looked_at_alone() -> None:
    expected = sketch()
    expected[2, 6, 6] = 0
    assert np.array_equal(apply(sketch(), largest(ORGAN)), expected)


@pytest.mark.parametrize(("volume", "left"), [(2.0, 4), (2.1, 3), (6.0, 3), (6.1, 0)])
def test_components_of_just_the_volume_stay(volume: float, left: int) -> None:
    assert (apply(sketch(), at_least(LESION, volume)) == 2).sum() == left


def test_steps_are_done_in_order() -> None:
    both = apply(sketch(), largest((1, 2)), at_least(LESION, 6.1))
    assert np.array_equal(both, np.where(sketch() == 2, 0, apply(sketch(), largest((1, 2)))))


def test_equally_large_components_stay_so_that_the_files_orientation_does_not_matter() -> None:
    labels = np.zeros((1, 3, 9), np.uint8)
    labels[0, 1, [0, 4, 8]] = 1
    assert np.array_equal(apply(labels, largest(ORGAN)), labels)
    random = specks(3)
    steps = (largest((1, 2)), at_least(LESION, 4.0))
    assert np.array_equal(apply(random[::-1, :, ::-1], *steps), apply(random, *steps)[::-1, :, ::-1])


def test_frames_of_a_video_are_looked_at_one_by_one() -> None:
    video = specks(4)
    steps = (largest(ORGAN), at_least(LESION, 4.0))
    single = np.concatenate([apply(video[z : z + 1], *steps) for z in range(len(video))])
    assert np.array_equal(apply(video, *steps, each_slice=True), single)
    assert not np.array_equal(apply(video, *steps), single)


def test_nothing_to_do_changes_nothing_and_the_input_is_never_changed() -> None:
    labels = specks(5)
    before = labels.copy()
    assert apply(labels) is labels
    result = apply(labels, largest((1, 2)), at_least((1, 2), 4.0))
    assert np.array_equal(labels, before)
    assert result.dtype == labels.dtype
    empty = np.zeros((2, 3, 4), np.uint8)
    assert np.array_equal(apply(empty, largest(ORGAN), at_least(LESION, 1.0)), empty)


@pytest.mark.parametrize("values", [(1,), (2,), (1, 2), (7,)])
@pytest.mark.parametrize("rules", [("largest",), ("small",), ("largest", "small"), ("small", "largest")])
def test_the_effect_of_steps_on_a_mask_is_foretold(values: tuple[int, ...], rules: tuple[str, ...]) -> None:
    for seed in range(4):
        labels, reference = specks(seed), specks(seed + 100)
        steps = [{"largest": largest(values), "small": at_least(values, 5.0)}[rule] for rule in rules]
        found = find_components(labels, reference, values)
        assert found.sizes.sum() == np.isin(labels, values).sum() == found.meetings[:, 3].sum()
        stays = staying(found.sizes, steps, VOXEL)
        gone = found.meetings[~stays[found.meetings[:, 0]]]
        result = apply(labels, *steps)
        for value in (1, 2):
            for met in (0, 1, 2):
                lost = ((labels == value) & (result == 0) & (reference == met)).sum()
                assert lost == gone[(gone[:, 1] == value) & (gone[:, 2] == met), 3].sum()


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 5, 1), (7, 1, 1), (1, 3, 3), (3, 3, 3), (1, 51, 53)])
def test_as_many_components_as_there_can_be_are_found(shape: tuple[int, int, int]) -> None:
    """connected-components-3d by itself fails on these."""
    mask = np.zeros(shape, bool)
    mask[::2, ::2, ::2] = True
    _, sizes = number_components(mask)
    assert np.array_equal(sizes, np.ones(mask.sum()))
    assert np.array_equal(apply(mask.astype(np.uint8), largest(ORGAN)), mask)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 9), (1, 7, 8), (5, 6, 7)])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.4, 1.0])
def test_components_are_scikit_images(shape: tuple[int, int, int], share: float) -> None:
    mask = np.random.default_rng(1).random(shape) < share
    numbers, sizes = number_components(mask)
    expected = label(mask, connectivity=3)
    assert np.array_equal(numbers > 0, mask)
    assert len({*zip(numbers[mask], expected[mask], strict=True)}) == len(sizes) == expected.max()
    assert np.array_equal(sizes, np.bincount(numbers.ravel())[1:])


def test_the_smallest_component() -> None:
    assert smallest_component(sketch(), ORGAN) == 1
    assert smallest_component(sketch(), LESION) == 1
    assert smallest_component(sketch()[:1], ORGAN) == 9
    assert smallest_component(np.zeros((1, 2, 2), np.int16), ORGAN) is None
