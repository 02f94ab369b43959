"""Which intensities become 0 and 1."""

import numpy as np
import pytest

from masam_auto.imaging.unit_range import SOFT_TISSUE, looks_like_ct, unit_range


def test_ct_has_a_window_and_is_known_by_its_air() -> None:
    image = np.linspace(-1000, 1500, 60).reshape(1, 3, 4, 5)
    assert looks_like_ct(image) and not looks_like_ct(image + 1024)
    assert unit_range(image, is_ct=True) == SOFT_TISSUE
    assert unit_range(image, is_ct=True, window=(-500, 1300)) == (-500, 1300)


def test_others_have_percentiles_of_what_is_above_zero() -> None:
    inside = np.arange(1.0, 1002.0)
    image = np.concatenate([np.zeros(5000), inside]).reshape(1, 1, 1, -1)
    assert unit_range(image, is_ct=False) == pytest.approx((6.0, 996.0))
    assert unit_range(-image - 1, is_ct=False)[0] < unit_range(-image - 1, is_ct=False)[1] < 0


def test_three_channels_within_a_byte_are_colours() -> None:
    picture = np.random.default_rng(0).integers(3, 200, (3, 1, 8, 9)).astype(np.float32)
    assert unit_range(picture, is_ct=False) == (0, 255)
    assert unit_range(picture * 4, is_ct=False) != (0, 255) != unit_range(picture[:1], is_ct=False)
