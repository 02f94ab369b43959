"""The non-zero box and mask are nnU-Net's."""

import numpy as np
import pytest
from acvl_utils.cropping_and_padding.bounding_boxes import get_bbox_from_mask
from scipy import ndimage

from masam_auto.imaging.crop import bounding_box, box_around, crop_to, nonzero_box, nonzero_mask, value_boxes, whole_box


def sparse_image(seed: int, *, shape: tuple[int, ...] = (2, 6, 9, 8), share: float = 0.3) -> np.ndarray:
    """Mostly zeros, inside a border of zeros."""
    generator = np.random.default_rng(seed)
    image = generator.normal(size=shape) * (generator.random(shape) < share)
    image[:, :1], image[:, :, -2:] = 0, 0
    return image.astype(np.float32)


@pytest.mark.parametrize("seed", range(5))
def test_box_is_the_smallest_around_the_filled_mask(seed: int) -> None:
    image = sparse_image(seed)
    filled = ndimage.binary_fill_holes((image != 0).any(axis=0))
    (expected,) = ndimage.find_objects(filled.astype(int))
    assert nonzero_box(image) == tuple((part.start, part.stop) for part in expected)


def test_box_takes_all_channels_together() -> None:
    image = np.zeros((2, 4, 5, 6), np.float32)
    image[0, 1, 2, 3], image[1, 3, 1, 5] = -1, 2
    assert nonzero_box(image) == ((1, 4), (1, 3), (3, 6))


def test_box_of_nothing_is_the_whole_image() -> None:
    assert nonzero_box(np.zeros((1, 4, 5, 6), np.float32)) == ((0, 4), (0, 5), (0, 6))
    assert bounding_box(np.zeros((4, 5, 6), bool)) is None
    assert whole_box((4, 5, 6)) == ((0, 4), (0, 5), (0, 6))


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 9, 8), (5, 6, 7)])
def test_box_is_acvl_utils(shape: tuple[int, ...]) -> None:
    for seed in range(5):
        mask = np.random.default_rng(seed).random(shape) < 0.03
        mask[0, -1, 0] = True
        assert bounding_box(mask) == tuple(tuple(ends) for ends in get_bbox_from_mask(mask))


def test_boxes_of_values_and_around_them() -> None:
    labels = np.zeros((4, 5, 6), np.int16)
    labels[0, 1, 2], labels[1:3, 4, 5], labels[3, 3, 3] = 2, 7, -1
    boxes = value_boxes(labels)
    assert boxes == {2: ((0, 1), (1, 2), (2, 3)), 7: ((1, 3), (4, 5), (5, 6))}
    assert box_around(boxes.values()) == ((0, 3), (1, 5), (2, 6))
    assert value_boxes(np.zeros((1, 2, 3), np.uint8)) == {}
    assert box_around([]) is None


@pytest.mark.parametrize("share", [0.5, 0.7, 0.9])
@pytest.mark.parametrize("shape", [(2, 6, 9, 8), (1, 1, 12, 12)])
def test_mask_is_scipys_with_holes_filled(shape: tuple[int, ...], share: float) -> None:
    image = sparse_image(1, shape=shape, share=share)
    expected = ndimage.binary_fill_holes((image != 0).any(axis=0))
    np.testing.assert_array_equal(nonzero_mask(image), expected)


def test_mask_fills_an_enclosed_hole_only() -> None:
    image = np.ones((1, 5, 5, 5), np.float32)
    image[0, 2, 2, 2] = 0
    assert nonzero_mask(image).all()
    image[0, 2, 2, :3] = 0  # a tunnel to the outside
    np.testing.assert_array_equal(nonzero_mask(image), image[0] != 0)


def test_crop_is_a_view_of_the_last_axes() -> None:
    image = np.arange(2 * 4 * 5 * 6).reshape(2, 4, 5, 6)
    cropped = crop_to(image, ((1, 3), (0, 2), (4, 6)))
    np.testing.assert_array_equal(cropped, image[:, 1:3, 0:2, 4:6])
    assert np.shares_memory(cropped, image)
    assert crop_to(image[0], ((1, 3), (0, 2), (4, 6))).shape == (2, 2, 2)
