"""Windows of slices cover every volume; weights are what they promise."""

import itertools

import numpy as np
import pytest

from masam_auto.core.windows import (
    SliceWindow,
    covering_starts,
    covering_windows,
    gaussian_weights,
    triangular_weights,
)


@pytest.mark.parametrize("length", [1, 5, 8])
@pytest.mark.parametrize("beyond", [-4, -1, 0, 1, 9, 26], ids="{:+} slices".format)
def test_windows_cover_every_slice_with_steps_within_the_stride(length, beyond):
    for stride in {1, (length + 1) // 2, length}:
        check_cover(max(1, length + beyond), length, stride)


def check_cover(depth, length, stride):
    windows = covering_windows(depth, length, stride)
    seen = np.concatenate([w.indices(depth)[w.inside(depth)] for w in windows])
    assert set(seen.tolist()) == set(range(depth))
    starts = [w.start for w in windows]
    assert starts == sorted(set(starts)) and all(b - a <= stride for a, b in itertools.pairwise(starts))
    if depth >= length:
        assert starts[0] == 0 and starts[-1] + length == depth
    else:
        assert len(windows) == 1


def test_a_stride_that_skips_slices_is_refused():
    with pytest.raises(ValueError, match="stride must be within"):
        covering_windows(9, 3, 4)


def test_indices_repeat_the_nearest_slice_beyond_the_ends():
    window = SliceWindow(start=-2, length=5)
    assert window.indices(2).tolist() == [0, 0, 0, 1, 1]
    assert window.inside(2) == slice(2, 4)
    assert SliceWindow(start=3, length=3).indices(4).tolist() == [3, 3, 3]


def test_starts_of_tiles_are_even_and_end_with_the_axis():
    assert covering_starts(10, 16, 8) == (0,)
    starts = covering_starts(50, 16, 8)
    assert starts[0] == 0 and starts[-1] == 34
    assert max(np.diff(starts)) <= 8 and max(np.diff(starts)) - min(np.diff(starts)) <= 1


@pytest.mark.parametrize("length", [1, 2, 5, 8])
def test_triangular_weights_are_symmetric_positive_and_highest_in_the_middle(length):
    weights = triangular_weights(length)
    assert weights.dtype == np.float32 and weights.shape == (length,)
    assert (weights > 0).all() and np.allclose(weights, weights[::-1])
    assert weights.max() == weights[length // 2] and (np.diff(weights[: (length + 1) // 2]) > 0).all()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 12), (64, 32)])
def test_gaussian_weights_are_symmetric_positive_and_highest_in_the_middle(height, width):
    weights = gaussian_weights(height, width)
    assert weights.shape == (height, width) and weights.min() >= 0.000999
    assert np.allclose(weights, weights[::-1, ::-1])
    assert weights[height // 2, width // 2] == weights.max() > 0.8
