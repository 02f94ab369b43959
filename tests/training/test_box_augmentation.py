"""Boxes drawn for training windows."""

import dataclasses

import numpy as np
import pytest

from masam_auto.core.labels import parse_labels
from masam_auto.core.plan import NetworkPlan, TrainingPlan
from masam_auto.training.box_augmentation import BoxDraws, box_draws, draw_box

PLAIN = BoxDraws(dropout=0.0, relaxation=(0.0, 0.0), jitter=0.0, ignore=None)


def labels() -> np.ndarray:
    """Two classes in two slices of 20 x 30 px, and label 3 in a corner."""
    found = np.zeros((3, 20, 30), np.int16)
    found[0, 4:8, 10:14] = 1
    found[1, 6:11, 12:22] = 2
    found[2, 0, 0] = 3
    return found


def draw(draws: BoxDraws, seed: int = 0, drawn: np.ndarray | None = None) -> np.ndarray:
    return draw_box(labels() if drawn is None else drawn, draws, np.random.default_rng(seed))


def test_the_tight_box_encloses_all_classes_of_all_slices_but_not_the_ignored() -> None:
    assert draw(dataclasses.replace(PLAIN, ignore=3)).tolist() == [10, 4, 22, 11]
    assert draw(PLAIN).tolist() == [0, 0, 22, 11]


def test_relaxation_moves_every_side_alike() -> None:
    relaxed = draw(dataclasses.replace(PLAIN, ignore=3, relaxation=(0.25, 0.25)))
    np.testing.assert_allclose(relaxed, [10 - 3, 4 - 1.75, 22 + 3, 11 + 1.75])


@pytest.mark.parametrize("seed", range(12))
def test_boxes_are_never_empty_and_never_leave_the_canvas(seed: int) -> None:
    generator = np.random.default_rng(seed)
    drawn = np.zeros((2, 20, 30), np.int16)
    drawn[0, generator.integers(20), generator.integers(30)] = 1
    if seed % 2:
        drawn[1, generator.integers(20), generator.integers(30)] = 1
    wild = BoxDraws(dropout=0.0, relaxation=(0.0, 2.0), jitter=0.4, ignore=None)
    x0, y0, x1, y1 = draw(wild, seed, drawn)
    assert 0 <= x0 < x1 <= 30 and 0 <= y0 < y1 <= 20
    rows, columns = np.nonzero(drawn.any(0))
    centre = (columns.min() + columns.max() + 1) / 2, (rows.min() + rows.max() + 1) / 2
    assert x0 < centre[0] < x1 and y0 < centre[1] < y1


def test_half_of_the_boxes_are_as_tight_as_the_range_allows() -> None:
    draws = dataclasses.replace(PLAIN, ignore=3, relaxation=(0.1, 0.5))
    shares = np.array([(draw(draws, seed)[2] - 22) / 12 for seed in range(300)])
    tight = np.isclose(shares, 0.1)
    assert 0.4 < tight.mean() < 0.6
    assert shares.min() > 0.1 - 1e-6 and shares.max() <= 0.5 + 1e-6
    assert 0.25 < shares[~tight].mean() < 0.35


def test_jitter_moves_each_side_within_its_share() -> None:
    draws = dataclasses.replace(PLAIN, ignore=3, jitter=0.2)
    moves = np.array([draw(draws, seed) - [10, 4, 22, 11] for seed in range(200)]) / [12, 7, 12, 7]
    assert np.abs(moves).max() <= 0.2 + 1e-6
    assert (moves.max(0) > 0.15).all() and (moves.min(0) < -0.15).all()
    assert np.abs(np.corrcoef(moves.T) - np.eye(4)).max() < 0.3, "each side by itself"


def test_boxes_are_dropped_by_chance_and_absent_without_foreground() -> None:
    halves = dataclasses.replace(PLAIN, dropout=0.5)
    dropped = [np.isnan(draw(halves, seed)).all() for seed in range(400)]
    assert 0.4 < np.mean(dropped) < 0.6
    assert np.isnan(draw(dataclasses.replace(PLAIN, dropout=1.0))).all()
    assert np.isnan(draw(PLAIN, drawn=np.zeros((1, 4, 4), np.int16))).all()
    assert np.isnan(draw(dataclasses.replace(PLAIN, ignore=3), drawn=np.full((1, 4, 4), 3, np.int16))).all()


def test_the_plan_says_how() -> None:
    names = parse_labels({"background": 0, "a": 1, "ignore": 2}, None)
    network = NetworkPlan(encoder="vit_t", decoder="multiscale", weights="none", trained="all")
    training = TrainingPlan(box_dropout=0.25, box_relaxation=(0.1, 0.2), box_jitter=0.05)
    assert box_draws(network, training, names) is None
    assert box_draws(dataclasses.replace(network, prompt="box"), training, names) == BoxDraws(
        dropout=0.25, relaxation=(0.1, 0.2), jitter=0.05, ignore=2
    )
