"""Normalisation schemes, by what they promise."""

import numpy as np
import pytest

from masam_auto.core.errors import ImageError, PlanError
from masam_auto.core.plan import NormalizationPlan
from masam_auto.imaging.normalize import NORMALIZERS, choose_scheme, normalize


@pytest.fixture
def image() -> np.ndarray:
    generator = np.random.default_rng(0)
    image = generator.normal(40, 300, (1, 4, 10, 11)).astype(np.float32)
    image[0, :, :3] = 0
    return image


def one(scheme: str, **options: float | bool) -> tuple[NormalizationPlan]:
    return (NormalizationPlan(scheme=scheme, **options),)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("channel", "scheme"),
    [
        ("CT", "ct"),
        ("ct", "ct"),
        ("Rescale_To_0_1", "rescale_to_0_1"),
        ("rgb_to_0_1", "rgb_to_0_1"),
        ("nonorm", "noNorm"),
        ("noNorm", "noNorm"),
        ("zscore", "zscore"),
        ("T2", "zscore"),
        ("CT angio", "zscore"),
    ],
)
def test_scheme_follows_the_channel_name(channel: str, scheme: str) -> None:
    assert choose_scheme(channel) == scheme
    assert scheme in NORMALIZERS


def test_a_scheme_that_is_added_changes_no_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NORMALIZERS, "mri", NORMALIZERS["rescale_to_0_1"])
    assert choose_scheme("MRI") == "zscore"


def test_ct_uses_the_data_sets_statistics(image: np.ndarray) -> None:
    result = normalize(image, one("ct", mean=60.0, std=50.0, lower=-200.0, upper=300.0))
    np.testing.assert_allclose(result, (np.clip(image, -200, 300) - 60) / 50, rtol=1e-6)


def test_zscore_of_the_whole_volume(image: np.ndarray) -> None:
    result = normalize(image, one("zscore"))
    assert abs(result.mean()) < 1e-5
    assert abs(result.std() - 1) < 1e-5


def test_zscore_inside_the_mask_leaves_zero_outside(image: np.ndarray) -> None:
    result = normalize(image, one("zscore", inside_mask=True))
    inside = result[0, :, 3:]
    assert abs(inside.mean()) < 1e-5
    assert abs(inside.std() - 1) < 1e-5
    assert not result[0, :, :3].any()


@pytest.mark.parametrize("inside", [False, True])
def test_zscore_of_a_constant_or_empty_volume_is_finite(inside: bool) -> None:
    for value in (0, 7):
        constant = np.full((1, 3, 4, 5), value, np.float32)
        np.testing.assert_array_equal(normalize(constant, one("zscore", inside_mask=inside)), 0)


def test_rescale_goes_from_0_to_1(image: np.ndarray) -> None:
    result = normalize(image, one("rescale_to_0_1"))
    assert result.min() == 0
    assert result.max() == pytest.approx(1)
    assert not normalize(np.full((1, 2, 2, 2), 5.0), one("rescale_to_0_1")).any()


def test_clip_to_0_1_cuts_off_at_the_plans_limits(image: np.ndarray) -> None:
    result = normalize(image, one("clip_to_0_1", lower=-200.0, upper=250.0))
    np.testing.assert_allclose(result, (np.clip(image, -200, 250) + 200) / 450, atol=1e-6)
    assert (result.min(), result.max()) == (0, 1)
    assert np.isfinite(normalize(image, one("clip_to_0_1", lower=7.0, upper=7.0))).all()


def test_quantile_to_0_1_cuts_off_the_brightest_hundredth(image: np.ndarray) -> None:
    result = normalize(image, one("quantile_to_0_1"))
    low, high = image.min(), np.quantile(image, 0.99)
    np.testing.assert_allclose(result, (np.minimum(image, high) - low) / (high - low), atol=1e-6)
    assert (result == result.max()).mean() == pytest.approx(0.01, abs=0.005)
    assert not normalize(np.full((1, 2, 2, 2), 5.0), one("quantile_to_0_1")).any()


def test_rgb_is_divided_by_255_and_nothing_else_accepted() -> None:
    picture = np.array([0, 51, 255], np.float32).reshape(1, 1, 1, 3)
    np.testing.assert_allclose(normalize(picture, one("rgb_to_0_1"))[0, 0, 0], [0, 0.2, 1], rtol=1e-6)
    for bad in (picture * 257, picture - 1):
        with pytest.raises(ImageError, match=r"channel 0: rgb_to_0_1 needs intensities within 0..255.*Convert"):
            normalize(bad, one("rgb_to_0_1"))


def test_channels_are_normalised_by_themselves_and_the_input_is_kept(image: np.ndarray) -> None:
    both = np.concatenate([image, image * 3])
    before = both.copy()
    result = normalize(both, (*one("noNorm"), *one("zscore")))
    np.testing.assert_array_equal(result[0], image[0])
    np.testing.assert_allclose(result[1:], normalize(image, one("zscore")), atol=1e-5)
    np.testing.assert_array_equal(both, before)
    assert result.dtype == np.float32


def test_a_plan_that_does_not_fit_is_refused(image: np.ndarray) -> None:
    with pytest.raises(ImageError, match="image has 1 channels, but the plan normalises 2"):
        normalize(image, one("noNorm") * 2)
    with pytest.raises(PlanError, match=r"normalization\.scheme 'magic' is unknown; known: ct, zscore"):
        normalize(image, one("magic"))
