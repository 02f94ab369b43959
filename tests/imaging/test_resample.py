"""Resampling agrees with scipy, skimage and nnU-Net's own label resizing."""

import numpy as np
import pytest
import torch
from batchgenerators.augmentations.utils import resize_segmentation
from scipy import ndimage
from skimage.transform import resize

from masam_auto.imaging.resample import (
    axis_blocks,
    iterate_slabs,
    nearest_index,
    resample_image,
    resample_labels,
    resampled_shape,
)

SHAPES = [((7, 20, 17), (9, 31, 12)), ((12, 9, 70), (5, 18, 150)), ((1, 13, 8), (1, 5, 8)), ((2, 3, 1), (3, 3, 4))]
VALUES = (0, 1, 2, 5)


def noise(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def some_labels(shape: tuple[int, ...]) -> np.ndarray:
    """Smooth blobs with labels VALUES."""
    smooth = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(4, *shape)), (0, 1.5, 1.5, 1.5))
    return np.array(VALUES, np.int16)[smooth.argmax(axis=0)]


def nnunet_separately(volume: np.ndarray, shape: tuple[int, ...], order: int, order_slices: int) -> np.ndarray:
    """The definition: every slice by itself, then map_coordinates along the slice axis."""
    planes = np.stack([resize(p, shape[1:], order, mode="edge", anti_aliasing=False) for p in volume.astype(float)])
    z = (np.arange(shape[0]) + 0.5) * len(volume) / shape[0] - 0.5
    grid = np.meshgrid(z, np.arange(shape[1]), np.arange(shape[2]), indexing="ij")
    return ndimage.map_coordinates(planes, grid, order=order_slices, mode="nearest")


@pytest.mark.parametrize(("before", "after"), SHAPES)
@pytest.mark.parametrize("order", [0, 1, 3])
def test_image_agrees_with_skimage(before: tuple[int, int, int], after: tuple[int, int, int], order: int) -> None:
    image = noise((2, *before))
    result = resample_image(image, after, order=order)
    for channel, found in zip(image, result, strict=True):
        expected = resize(channel.astype(float), after, order, mode="edge", anti_aliasing=False)
        np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize(("before", "after"), SHAPES)
@pytest.mark.parametrize("order_slices", [0, 1, 3])
def test_slices_apart_agree_with_map_coordinates(
    before: tuple[int, int, int], after: tuple[int, int, int], order_slices: int
) -> None:
    image = noise((1, *before))
    result = resample_image(image, after, order=3, separate_slices=True, order_slices=order_slices)
    np.testing.assert_allclose(result[0], nnunet_separately(image[0], after, 3, order_slices), atol=2e-5)


def test_image_of_the_same_shape_is_itself() -> None:
    image = noise((1, 3, 4, 5))
    assert resample_image(image, (3, 4, 5)) is image


@pytest.mark.parametrize(("before", "after"), [(50, 33), (50, 200), (200, 129), (3, 100), (130, 1)])
def test_blocks_tile_the_matrix_and_keep_constants(before: int, after: int) -> None:
    blocks = axis_blocks(before, after, 3)
    assert [b.start for b in blocks] == [0, *(b.stop for b in blocks[:-1])]
    assert blocks[-1].stop == after
    for block in blocks:
        assert block.matrix.shape == (block.stop - block.start, block.high - block.low)
        np.testing.assert_allclose(block.matrix.sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize(("before", "after"), [(10, 5), (5, 10), (9, 6), (7, 7), (1, 4), (16, 3)])
def test_nearest_index_is_scipys(before: int, after: int) -> None:
    expected = ndimage.zoom(np.arange(before), after / before, order=0, mode="nearest", grid_mode=True)
    np.testing.assert_array_equal(nearest_index(before, after), expected)


@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize("after", [(9, 31, 12), (5, 12, 30), (10, 20, 20)])
def test_labels_agree_with_nnunet_but_where_labels_tie(after: tuple[int, int, int], order: int) -> None:
    labels = some_labels((10, 20, 15))
    result = resample_labels(labels, after, order=order)
    expected = resize_segmentation(labels, after, order)
    indicators = [resize((labels == v).astype(float), after, order, mode="edge", anti_aliasing=False) for v in VALUES]
    lowest, highest = np.sort(indicators, axis=0)[-2:]
    clear = highest - lowest > 1e-4
    assert result.dtype == labels.dtype
    assert clear.mean() > 0.8
    np.testing.assert_array_equal(result[clear], expected[clear])


def test_ties_between_labels_go_to_the_nearest_voxel() -> None:
    labels = np.array([[[2, 1, 1, 2, 2, 0]]], np.int16)
    np.testing.assert_array_equal(resample_labels(labels, (1, 1, 3)), [[[1, 2, 0]]])


def test_labels_with_slices_apart_take_the_nearest_slice() -> None:
    labels = some_labels((4, 20, 15))
    result = resample_labels(labels, (9, 31, 12), order=1, separate_slices=True, order_slices=0)
    planes = np.stack([resize_segmentation(plane, (31, 12), 1) for plane in labels])
    np.testing.assert_array_equal(result, planes[nearest_index(4, 9)])


def test_labels_invent_no_value_and_may_vanish() -> None:
    labels = np.zeros((4, 40, 40), np.int16)
    labels[2, 20, 20], labels[:, :10] = 7, -1
    small = resample_labels(labels, (2, 3, 3), order=1)
    assert set(np.unique(small)) <= {-1, 0, 7}
    large = resample_labels(labels, (9, 90, 90), order=1)
    assert set(np.unique(large)) == {-1, 0, 7}
    assert resample_labels(labels, (4, 40, 40)) is labels


@pytest.mark.parametrize("after", [(9, 31, 12), (4, 20, 15), (2, 5, 15), (4, 7, 40)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_slabs_together_are_a_linear_resampling(
    after: tuple[int, int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("masam_auto.imaging.resample.BLOCK_BYTES", 700)  # several slabs a slice
    logits = torch.from_numpy(noise((3, 4, 20, 15))).to(dtype)
    found = np.full((3, *after), np.nan, np.float32)
    for z, rows, slab in iterate_slabs(enumerate(logits.unbind(1)), (4, 20, 15), after):
        assert slab.dtype == torch.float32
        assert 4 * slab.numel() <= max(700, 4 * 3 * after[2])  # the bound, or a single row
        found[:, z, rows] = slab.numpy()
    expected = resample_image(logits.float().numpy(), after, order=1)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_slabs_from_the_nearest_slice() -> None:
    logits = torch.from_numpy(noise((2, 4, 5, 6)))
    slabs = iterate_slabs(enumerate(logits.unbind(1)), (4, 5, 6), (7, 5, 6), nearest_slices=True)
    found = torch.stack([slab for _, _, slab in slabs], dim=1)
    np.testing.assert_array_equal(found.numpy(), logits[:, nearest_index(4, 7)].numpy())


def test_only_the_wanted_slices_are_made() -> None:
    logits = torch.from_numpy(noise((2, 4, 5, 6)))
    before, after = (4, 5, 6), (7, 9, 6)
    every = {z: slab for z, _, slab in iterate_slabs(enumerate(logits.unbind(1)), before, after)}
    coming = iter(list(enumerate(logits.unbind(1)))[1:])  # the first is not needed, and does not come
    some = {z: slab for z, _, slab in iterate_slabs(coming, before, after, only=range(3, 5))}
    assert list(some) == [3, 4]
    assert all(torch.equal(slab, every[z]) for z, slab in some.items())


def test_shape_follows_the_spacing() -> None:
    assert resampled_shape((10, 20, 30), (3.0, 1.0, 1.0), (1.0, 1.0, 2.0)) == (30, 20, 15)
    assert resampled_shape((1, 20, 2), (1.0, 1.0, 0.1), (9.0, 0.75, 1.0)) == (1, 27, 1)
