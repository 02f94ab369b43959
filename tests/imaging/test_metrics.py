"""Metrics against brute force and against figures known by hand."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.distance import cdist

from masam_auto.imaging.metrics import (
    LESION_METRICS,
    MATCHING_IOU,
    METRICS,
    LesionCounts,
    compare_masks,
    count_lesions,
    measure,
    surface,
)

GOLDEN = json.loads(Path(__file__).with_name("golden_metrics.json").read_text())
SPACING = (3.0, 1.0, 0.5)


def blob(seed: int, shape: tuple[int, int, int] = (6, 12, 14)) -> np.ndarray:
    return ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5) > 0.08


def metrics(a: np.ndarray, b: np.ndarray, **options: object) -> dict[str, float]:
    return measure(compare_masks(a, b, **({"spacing": SPACING} | options)))  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(6, 12, 14), (1, 15, 14)])
def test_distances_agree_with_brute_force(shape: tuple[int, int, int]) -> None:
    a, b = blob(0, shape), blob(1, shape)
    flat = shape[0] == 1
    edges = [surface(mask[0])[None] if flat else surface(mask) for mask in (a, b)]
    for spacing, name in ((SPACING, "HD95_mm"), ((1.0, 1.0, 1.0), "HD95_voxels")):
        points = [np.argwhere(edge) * spacing for edge in edges]
        table = cdist(*points)
        directed = table.min(axis=1), table.min(axis=0)
        assert metrics(a, b)[name] == pytest.approx(max(np.percentile(part, 95) for part in directed))
        if name == "HD95_mm":
            within = sum((part <= 1.2).sum() for part in directed)
            assert metrics(a, b, tolerance=1.2)["NSD"] == pytest.approx(within / sum(table.shape))


def test_overlap_by_hand() -> None:
    a, b = np.zeros((2, 4, 4), bool), np.zeros((2, 4, 4), bool)
    a[0, :2], b[0, 1:3] = True, True
    found = metrics(a, b)
    assert [found[k] for k in ("TP", "FP", "FN", "TN", "n_pred", "n_ref")] == [4, 4, 4, 20, 8, 8]
    assert found["Dice"] == 0.5
    assert found["IoU"] == pytest.approx(1 / 3)
    assert found["volume_pred_ml"] == pytest.approx(8 * 1.5 / 1000)
    assert list(found) == list(METRICS)


def test_a_shift_is_measured_in_mm_and_voxels() -> None:
    a, b = np.zeros((9, 9, 9), bool), np.zeros((9, 9, 9), bool)
    a[2:5, 3:6, 3:6], b[4:7, 3:6, 3:6] = True, True
    found = metrics(a, b)
    assert (found["HD95_mm"], found["HD95_voxels"]) == (6.0, 2.0)
    assert metrics(a, b, tolerance=6.0)["NSD"] == 1
    assert metrics(a, b, tolerance=1.0)["NSD"] < 1


def test_equal_masks_are_perfect() -> None:
    found = metrics(blob(0), blob(0))
    assert [found[k] for k in ("Dice", "IoU", "NSD", "HD95_mm", "HD95_voxels", "FP", "FN")] == [1, 1, 1, 0, 0, 0, 0]


def test_metrics_are_symmetric() -> None:
    there, back = metrics(blob(0), blob(1)), metrics(blob(1), blob(0))
    for name in ("Dice", "IoU", "NSD", "HD95_mm", "HD95_voxels"):
        assert there[name] == pytest.approx(back[name])
    assert (there["FP"], there["n_pred"]) == (back["FN"], back["n_ref"])


def test_absent_in_both_is_not_a_number() -> None:
    empty = np.zeros((3, 4, 5), bool)
    found = metrics(empty, empty)
    for name in ("Dice", "IoU", "NSD", "HD95_mm", "HD95_voxels"):
        assert math.isnan(found[name])
    assert found["TN"] == 60
    assert found["volume_ref_ml"] == 0


def test_absent_in_one_is_zero_and_has_no_distance() -> None:
    for a, b in ((blob(0), np.zeros_like(blob(0))), (np.zeros_like(blob(0)), blob(0))):
        found = metrics(a, b)
        assert (found["Dice"], found["IoU"], found["NSD"]) == (0, 0, 0)
        assert math.isnan(found["HD95_mm"])
        assert math.isnan(found["HD95_voxels"])


def test_a_flat_object_in_a_volume_is_all_surface_but_a_picture_has_an_outline() -> None:
    square = np.zeros((1, 7, 7), bool)
    square[0, 1:6, 1:6] = True
    point = np.zeros_like(square)
    point[0, 3, 3] = True
    assert metrics(square, point, spacing=(1.0, 1.0, 1.0), tolerance=0.5)["NSD"] == pytest.approx(0)
    in_volume = [np.concatenate([mask, np.zeros_like(mask)]) for mask in (square, point)]
    assert metrics(*in_volume, spacing=(1.0, 1.0, 1.0), tolerance=0.5)["NSD"] == pytest.approx(2 / 26)


def test_voxels_that_are_not_valid_do_not_count() -> None:
    a, b = blob(0), blob(1)
    valid = np.zeros_like(a)
    valid[:3] = True
    found, expected = metrics(a, b, valid=valid), metrics(a[:3], b[:3])
    for name in METRICS:
        assert found[name] == pytest.approx(expected[name], nan_ok=True)


def test_single_voxels() -> None:
    one = np.ones((1, 1, 1), bool)
    assert metrics(one, one)["HD95_mm"] == 0
    assert metrics(one, one, voxel_volume=500.0)["volume_pred_ml"] == 0.5


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["name"])
def test_surfaces_are_as_monai_measures_them(case: dict[str, Any]) -> None:
    a, b = (
        np.unpackbits(np.frombuffer(bytes.fromhex(mask), np.uint8), count=math.prod(case["shape"])).astype(bool)
        for mask in case["masks"]
    )
    found = metrics(
        a.reshape(case["shape"]), b.reshape(case["shape"]), spacing=case["spacing"], tolerance=GOLDEN["tolerance"]
    )
    for name, value in case["expected"].items():
        expected = value if math.isfinite(value) else math.nan  # MONAI gives infinity where one mask is empty
        assert found[name] == pytest.approx(expected, rel=1e-5, nan_ok=True), name


def test_volume_errors_have_a_sign() -> None:
    a, b = np.zeros((2, 4, 4), bool), np.zeros((2, 4, 4), bool)
    a[0, :3], b[0, :2] = True, True
    assert metrics(a, b)["volume_error"] == 0.5
    assert metrics(b, a)["volume_error"] == pytest.approx(-1 / 3)
    assert metrics(a, b)["volume_error_ml"] == pytest.approx(4 * 1.5 / 1000)
    assert metrics(np.zeros_like(a), b)["volume_error"] == -1
    assert math.isnan(metrics(a, np.zeros_like(b))["volume_error"])


def test_a_part_of_an_image_is_measured_as_the_whole() -> None:
    a, b = np.pad(blob(0), 3), np.pad(blob(1), 3)
    part = (slice(2, -2),) * 3
    found = metrics(a[part], b[part], outside=a.size - a[part].size, lesions=True)
    expected = metrics(a, b, lesions=True)
    assert found == pytest.approx(expected)
    assert set(found) == {*METRICS, *LESION_METRICS}


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
