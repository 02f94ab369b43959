"""Augmentation: drawn as numbers, applied as one resampling."""

import dataclasses

import numpy as np
import pytest
import torch

from masam_auto.core.plan import AugmentationPlan
from masam_auto.imaging.canvas import canvas_map, place, tiles_of
from masam_auto.training.augmentation import (
    AUGMENTATIONS,
    IDENTITY,
    Augmentation,
    apply_augmentation,
    draw_augmentation,
)

STRENGTHS = {"gamma": 1.3, "contrast": 0.8, "brightness": 0.2, "sharpness": 0.7, "posterise": 16.0, "noise": 0.1}


def window(size: tuple[int, int], slices: int = 3, channels: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(slices, channels, *size, generator=generator)
    return image, torch.randint(0, 4, (slices, *size), generator=generator, dtype=torch.int16)


@pytest.mark.parametrize("magnification", [1.0, 1.5, 3.0])
@pytest.mark.parametrize("size", [(8, 10), (7, 10), (40, 30)])
def test_doing_nothing_shows_what_prediction_sees(size: tuple[int, int], magnification: float) -> None:
    image, labels = window(size)
    for tile in tiles_of(canvas_map(size, (24, 28), magnification), 0.5):
        shown, classes = apply_augmentation(image, labels, tile, IDENTITY)
        torch.testing.assert_close(shown, place(image, tile), atol=1e-4, rtol=1e-4)
        if magnification == 1:
            expected = place(labels[:, None].float(), tile)[:, 0]
            assert torch.equal(classes.float(), expected)


def test_all_slices_move_alike_and_labels_move_with_the_image() -> None:
    labels = torch.zeros(3, 20, 20, dtype=torch.int16)
    labels[:, 6:12, 5:15] = 3
    image = labels[:, None].float()
    change = Augmentation(rotation=17.0, shear=6.0, scale=1.2, translation=(0.05, -0.1), flips=(2,))
    shown, classes = apply_augmentation(image, labels, canvas_map((20, 20), (32, 32), 1.0), change)
    assert torch.equal(classes[0], classes[1])
    assert torch.equal(shown[0], shown[2])
    assert (classes == 3).any()
    inside = shown[0, 0] > 2.9
    assert (classes[0][inside] == 3).all()
    assert (classes[0][shown[0, 0] < 0.1] == 0).all()


def test_a_flip_is_exact_and_of_slices_too() -> None:
    image, labels = window((16, 16))
    view = canvas_map((16, 16), (16, 16), 1.0)
    shown, classes = apply_augmentation(image, labels, view, Augmentation(flips=(0, 1, 2)))
    torch.testing.assert_close(shown, image.flip(0, 2, 3), atol=1e-4, rtol=1e-4)
    assert torch.equal(classes, labels.flip(0, 1, 2))


def test_scale_enlarges_and_translation_moves_down_and_right() -> None:
    labels = torch.zeros(1, 32, 32, dtype=torch.int16)
    labels[:, 12:20, 12:20] = 1
    view = canvas_map((32, 32), (32, 32), 1.0)
    _, enlarged = apply_augmentation(labels[:, None].float(), labels, view, Augmentation(scale=2.0))
    assert int(enlarged.sum()) == 16 * 16
    _, moved = apply_augmentation(labels[:, None].float(), labels, view, Augmentation(translation=(0.25, 0.125)))
    assert torch.equal(moved, labels.roll((8, 4), (1, 2)))


def test_a_rotation_is_one_in_millimetres() -> None:
    labels = torch.zeros(1, 16, 32, dtype=torch.int16)
    labels[:, 6:10, 8:24] = 1  # 8 mm x 16 mm where rows are 2 mm apart
    view, change = canvas_map((16, 32), (16, 32), 1.0), Augmentation(rotation=90.0)
    _, turned = apply_augmentation(labels[:, None].float(), labels, view, change, spacing=(2.0, 1.0))
    rows, columns = torch.nonzero(turned[0], as_tuple=True)
    assert int(rows.max() - rows.min()) + 1 == 8
    assert int(columns.max() - columns.min()) + 1 == 8


def test_cutting_away_what_is_not_shown_changes_nothing() -> None:
    image, labels = window((60, 50), channels=1)
    change = Augmentation(rotation=12.0, scale=0.9, shear=-4.0)
    large = canvas_map((60, 50), (80, 84), 1.0)
    small = dataclasses.replace(large, canvas=(16, 20), start=(large.start[0] + 32, large.start[1] + 32))
    part, part_labels = apply_augmentation(image, labels, small, change)
    whole, whole_labels = apply_augmentation(image, labels, large, change)
    torch.testing.assert_close(part, whole[..., 32:48, 32:52], atol=1e-3, rtol=1e-3)
    assert (part_labels == whole_labels[..., 32:48, 32:52]).float().mean() > 0.99


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_intensity_changes_leave_labels_and_padding_alone(name: str) -> None:
    image, labels = window((10, 10))
    view = canvas_map((10, 10), (16, 16), 1.0)
    plain, expected = apply_augmentation(image, labels, view, IDENTITY)
    shown, classes = apply_augmentation(image, labels, view, Augmentation(intensity=((name, STRENGTHS[name]),)))
    assert torch.equal(classes, expected)
    assert shown[..., 3:13, 3:13].ne(plain[..., 3:13, 3:13]).any()
    assert shown[..., :3, :].abs().max() == 0
    assert torch.isfinite(shown).all()


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_constant_image_stays_finite(name: str) -> None:
    generator = np.random.default_rng(0)
    assert torch.isfinite(AUGMENTATIONS[name](torch.full((2, 1, 4, 4), -3.0), STRENGTHS[name], generator)).all()


def test_posterise_leaves_so_many_levels() -> None:
    changed = AUGMENTATIONS["posterise"](torch.rand(1, 1, 50, 50), 16.0, np.random.default_rng(0))
    assert len(changed.unique()) == 16


def test_erasing_clears_one_box_in_all_slices() -> None:
    image, labels = window((16, 16))
    shown, classes = apply_augmentation(
        image, labels, canvas_map((16, 16), (16, 16), 1.0), Augmentation(erased=(0.25, 0.5, 0.5, 0.75))
    )
    assert (shown[..., 4:8, 8:12] == 0).all()
    assert (shown == 0).sum() == 3 * 2 * 16
    assert torch.equal(classes, labels)


def test_draws_are_reproducible_and_stay_in_their_ranges() -> None:
    plan = AugmentationPlan()
    draws = [draw_augmentation(plan, (0, 2), np.random.default_rng(seed)) for seed in range(300)]
    assert draws == [draw_augmentation(plan, (0, 2), np.random.default_rng(seed)) for seed in range(300)]
    assert all(plan.rotation[0] <= draw.rotation <= plan.rotation[1] for draw in draws)
    assert all(plan.scaling[0] <= draw.scale <= plan.scaling[1] for draw in draws)
    assert {flip for draw in draws for flip in draw.flips} == {0, 2}
    moved = np.mean([draw.rotation != 0 for draw in draws])
    assert abs(moved - plan.spatial_probability) < 0.1
    assert {name for draw in draws for name, _ in draw.intensity} == set(AUGMENTATIONS)


def test_probability_zero_is_the_identity() -> None:
    plan = AugmentationPlan(spatial_probability=0, intensity_probability=0, erasing_probability=0)
    draw = draw_augmentation(plan, (), np.random.default_rng(0))
    assert dataclasses.replace(draw, seed=0) == IDENTITY
