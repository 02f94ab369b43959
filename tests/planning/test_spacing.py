"""Target spacing, and shapes at it."""

import numpy as np
import pytest

from masam_auto.core.errors import PlanError
from masam_auto.planning.spacing import choose_spacing, median_shape
from tests import fingerprints


def test_target_spacing_is_the_median():
    spacings = [(3.0, 1.0, 1.0), (4.0, 0.8, 0.8), (5.0, 0.7, 0.7)]
    fingerprint = fingerprints.make_fingerprint(count=3, spacings=spacings, shape=(200, 256, 256))
    assert choose_spacing(fingerprint, None)[0] == (4.0, 0.8, 0.8)


def test_coarse_axis_with_few_voxels_gets_the_tenth_percentile():
    spacings = [(float(z), 1.0, 1.0) for z in np.linspace(2, 10, 11)]
    fingerprint = fingerprints.make_fingerprint(count=11, spacings=spacings, shape=(20, 256, 256))
    target, reason = choose_spacing(fingerprint, None)
    assert target == pytest.approx((2.8, 1.0, 1.0)) and "2.8 mm" in reason and "median 6 mm" in reason


def test_tenth_percentile_never_gets_finer_than_in_plane():
    spacings = [(0.5, 1.0, 1.0)] * 3 + [(6.0, 1.0, 1.0)] * 7
    target, _ = choose_spacing(fingerprints.make_fingerprint(spacings=spacings, shape=(20, 256, 256)), None)
    assert target == pytest.approx((1.0, 1.0, 1.0), abs=1e-4) and target[0] > 1


def test_target_spacing_by_hand_wins_and_nonsense_is_refused():
    fingerprint = fingerprints.make_fingerprint()
    assert choose_spacing(fingerprint, (2.0, 2.0, 2.0)) == ((2.0, 2.0, 2.0), "set by hand")
    for wrong in ((1.0, 1.0), (1.0, 0.0, 1.0), (1.0, float("nan"), 1.0)):
        with pytest.raises(PlanError, match="three positive numbers"):
            choose_spacing(fingerprint, wrong)


def test_median_shape_is_at_the_target_spacing_in_permuted_order():
    fingerprint = fingerprints.make_fingerprint(shape=(10, 20, 30), spacing=(1.0, 2.0, 1.0))
    assert median_shape(fingerprint, (1.0, 1.0, 1.0), (1, 0, 2)) == (40, 10, 30)
