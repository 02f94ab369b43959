"""Statistics of pairs: against scipy, known results, and what cannot be compared."""

import math

import numpy as np
import pytest
from scipy import stats

from masam_auto.baselines.paired import bootstrap_interval, case_means, compare_pairs, wilcoxon_p

NAN = math.nan


def test_interval_is_scipys_percentile_interval() -> None:
    values = np.random.default_rng(1).gamma(2.0, size=40)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=10_000, rng=3).confidence_interval
    assert bootstrap_interval(values, seed=0) == pytest.approx((theirs.low, theirs.high), abs=0.02)


def test_interval_of_many_values_is_the_normal_one() -> None:
    values = np.random.default_rng(2).normal(5, 2, size=400)
    half = 1.96 * values.std() / math.sqrt(400)
    assert bootstrap_interval(values, seed=0) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)


def test_interval_depends_on_the_seed_alone() -> None:
    values = np.arange(7.0)
    assert bootstrap_interval(values, seed=4, resamples=100) == bootstrap_interval(values, seed=4, resamples=100)
    assert bootstrap_interval(values, seed=4, resamples=100) != bootstrap_interval(values, seed=5, resamples=100)
    assert bootstrap_interval(np.array([3.0, 3.0]), seed=0) == (3.0, 3.0)


def test_wilcoxon_of_known_data() -> None:
    # Wilcoxon 1945 by hand: all six differences have one sign, so that the exact p is 2 / 2^6
    assert wilcoxon_p(np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])) == pytest.approx(2 / 64)
    # ranks of the negative ones: 1 + 2 = 3; of 2^5 sign patterns five have a sum of at most 3
    assert wilcoxon_p(np.array([-1.0, -2.0, 3.0, 4.0, 5.0])) == pytest.approx(2 * 5 / 32)


def test_wilcoxon_of_no_difference() -> None:
    assert wilcoxon_p(np.zeros(9)) == 1.0
    assert wilcoxon_p(np.array([0.0, 1.0, 2.0, 3.0])) == wilcoxon_p(np.array([1.0, 2.0, 3.0]))


def test_pairs_with_a_missing_value_do_not_count() -> None:
    found = compare_pairs([0.9, NAN, 0.8, 0.7], [0.8, 0.5, NAN, 0.5], list("abcd"))
    assert (found.cases, found.mean) == (2, pytest.approx(0.15))
    assert found.low is not None and found.high is not None
    assert (found.low, found.high) == pytest.approx((0.1, 0.2))


def test_the_other_way_round_is_the_negative() -> None:
    generator = np.random.default_rng(0)
    left, right = generator.uniform(size=(2, 12)).tolist()
    there, back = compare_pairs(left, right, list("abcdefghijkl")), compare_pairs(right, left, list("abcdefghijkl"))
    assert there.mean == pytest.approx(-(back.mean or 0))
    assert (there.low, there.p_value) == pytest.approx((-(back.high or 0), back.p_value))


def test_nothing_to_compare() -> None:
    found = compare_pairs([NAN, NAN], [1.0, 2.0], list("ab"))
    assert (found.cases, found.mean, found.low, found.high, found.p_value) == (0, None, None, None, None)


def test_one_case_has_no_interval() -> None:
    found = compare_pairs([0.9, NAN], [0.8, 0.5], list("ab"))
    assert (found.cases, found.mean, found.low, found.high, found.p_value) == (1, pytest.approx(0.1), None, None, 1.0)


def test_frames_of_a_video_count_once() -> None:
    """A hundred frames more of one video say no more of other videos."""
    few = compare_pairs([0.9, 0.7, 0.6], [0.8, 0.8, 0.8], ["a", "b", "c"])
    frames = compare_pairs([0.9] * 101 + [0.7, NAN, 0.6], [0.8] * 103 + [0.8], ["a"] * 101 + ["b", "b", "c"])
    assert (frames.cases, frames.p_value) == (3, few.p_value)
    assert (frames.mean, frames.low, frames.high) == pytest.approx((few.mean, few.low, few.high))
    assert case_means(np.array([1.0, 3.0, NAN, 5.0]), ["b", "b", "c", "a"]).tolist() == [5.0, 2.0]
