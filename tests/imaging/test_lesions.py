"""Lesions: matched one to one, by hand and against brute force."""

import itertools

import numpy as np
import pytest
from scipy import ndimage

from masam_auto.imaging.lesions import MATCHING_IOU, LesionCounts, count_lesions


def row(*values: int) -> np.ndarray:
    """(1, 1, n) mask."""
    return np.array(values, bool)[None, None]


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        (row(1, 1, 0, 0, 0, 0), row(0, 1, 1, 0, 1, 0), (1, 0, 1)),
        (row(1, 0, 0, 1, 0, 1), row(1, 0, 0, 0, 0, 0), (1, 2, 0)),
        (row(1, 1, 1, 1, 1, 1), row(1, 0, 1, 0, 1, 1), (1, 0, 2)),  # one prediction finds one lesion at most
        (row(1, 0, 1, 0, 0, 0), row(1, 1, 1, 0, 0, 0), (1, 1, 0)),
        (row(*[1] * 11), row(1, *[0] * 10), (0, 1, 1)),  # IoU 1 / 11
        (row(*[1] * 10), row(1, *[0] * 9), (1, 0, 0)),  # IoU 1 / 10
        (row(0, 0), row(0, 0), (0, 0, 0)),
        (row(0, 0), row(1, 0), (0, 0, 1)),
        (row(1, 0), row(0, 0), (0, 1, 0)),
    ],
)
def test_counts_by_hand(prediction: np.ndarray, reference: np.ndarray, expected: tuple[int, int, int]) -> None:
    tp, fp, fn = expected
    assert count_lesions(prediction, reference) == LesionCounts(tp=tp, fp=fp, fn=fn)


def test_corners_join_and_single_slices_have_eight_neighbours() -> None:
    diagonal = np.zeros((2, 3, 3), bool)
    diagonal[0, 0, 0] = diagonal[1, 1, 1] = diagonal[0, 2, 2] = True
    assert count_lesions(diagonal, diagonal).tp == 1
    assert count_lesions(diagonal[:1], diagonal[:1]).tp == 2
    assert count_lesions(np.eye(4, dtype=bool)[None], np.eye(4, dtype=bool)[None]).tp == 1


@pytest.mark.parametrize("seed", range(6))
def test_as_many_pairs_as_there_can_be(seed: int) -> None:
    rng = np.random.default_rng(seed)
    prediction, reference = (rng.random((3, 5, 6)) < 0.22 for _ in range(2))
    parts = []
    for mask in (prediction, reference):
        numbered, count = ndimage.label(mask, np.ones((3, 3, 3)))
        parts.append([numbered == number for number in range(1, count + 1)])
    pairs = [
        (i, j)
        for (i, a), (j, b) in itertools.product(enumerate(parts[0]), enumerate(parts[1]))
        if (a & b).sum() >= MATCHING_IOU * (a | b).sum()
    ]

    def most(left: list[tuple[int, int]]) -> int:
        if not left:
            return 0
        (i, j), *others = left
        return max(most(others), 1 + most([(k, m) for k, m in others if k != i and m != j]))

    found = count_lesions(prediction, reference)
    assert found.tp == most(pairs)
    assert (found.tp + found.fp, found.tp + found.fn) == (len(parts[0]), len(parts[1]))
