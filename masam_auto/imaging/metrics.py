"""How well two masks agree: overlap, surface distances, volumes, lesions.

Conventions (documentation/metrics.md has them as a table):

Overlap. Dice and IoU are not-a-number if neither mask has the class (nnU-Net's rule), so such cases are left out of
means. If only one mask has it, they are 0.

Surfaces. The surface of a mask is its voxels with a face neighbour outside it (beyond the image's border counts as
outside). Distances are between voxel centres of the surfaces. HD is the largest of them, HD95 the larger of the two
directed 95th percentiles (MONAI's; MedPy pools both directions instead). ASSD is the mean over the voxels of both
surfaces (MONAI's symmetric one; MedPy averages the two directed means). All are not-a-number if either mask is empty.
NSD is the share of voxels of both surfaces within the tolerance of the other surface (MONAI's; by voxel count, not by
surface area); not-a-number if both masks are empty, 0 if one is.

The relative volume error is not-a-number without a reference.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import maximum_bipartite_matching
from scipy.spatial import cKDTree

from masam_auto.core.geometry import Triple
from masam_auto.core.plugins import find_entry
from masam_auto.imaging.components import number_components
from masam_auto.imaging.crop import bounding_box, crop_to

CUBIC_MM_PER_ML = 1000.0
HAUSDORFF_PERCENTILE = 95
# Metrics Reloaded (Maier-Hein et al., Nature Methods 2024) names 0.1 for objects with an uncertain outline.
MATCHING_IOU = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class LesionCounts:
    """Lesions found (`tp`), made up (`fp`) and missed (`fn`)."""

    tp: int
    fp: int
    fn: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Counts and measurements of a predicted and a reference mask. METRICS are computed from it.

    `distances` are mm from each voxel of the predicted surface to the reference surface, and the other way round.
    `voxel_distances` are the same in voxels. All are None if a mask is empty. `voxel_volume` is in cubic mm,
    `tolerance` in mm. `lesions` is None if not requested. For metrics that plug-ins add, `prediction` and `reference`
    are the (Z, Y, X) bool masks within a box that contains both, and `spacing` is their voxel spacing in mm.
    """

    tp: int
    fp: int
    fn: int
    tn: int
    distances: tuple[np.ndarray, np.ndarray] | None
    voxel_distances: tuple[np.ndarray, np.ndarray] | None
    voxel_volume: float
    tolerance: float
    lesions: LesionCounts | None = None
    prediction: np.ndarray
    reference: np.ndarray
    spacing: Triple


def compare_masks(
    prediction: np.ndarray,
    reference: np.ndarray,
    *,
    spacing: Triple,
    tolerance: float = 2.0,
    voxel_volume: float | None = None,
    valid: np.ndarray | None = None,
    outside: int = 0,
    lesions: bool = False,
) -> Comparison:
    """Count and measure two masks on one grid.

    Example:
        >>> from masam_auto.imaging.metrics import compare_masks, measure
        >>> truth = np.zeros((3, 8, 8), bool)  # (Z, Y, X)
        >>> truth[1, 2:6, 2:6] = True
        >>> comparison = compare_masks(np.roll(truth, 1, axis=2), truth, spacing=(3.0, 1.0, 1.0))
        >>> comparison.tp, comparison.fp, comparison.fn  # voxels
        (12, 4, 4)
        >>> measure(comparison)["Dice"], measure(comparison)["HD95_mm"]
        (0.75, 1.0)

    Args:
        prediction: (Z, Y, X) bool.
        reference: (Z, Y, X) bool.
        spacing: mm along (Z, Y, X).
        tolerance: largest distance in mm at which surfaces count as equal.
        voxel_volume: cubic mm; by default that of a box (it is less if axes are sheared).
        valid: (Z, Y, X) bool; voxels outside it are ignored. All by default.
        outside: voxels of the image around these arrays, where both masks are empty.
        lesions: whether to match connected components (`count_lesions`).
    """
    if valid is not None:
        prediction, reference = prediction & valid, reference & valid
    total = prediction.size if valid is None else int(np.count_nonzero(valid))
    n_pred, n_ref = int(np.count_nonzero(prediction)), int(np.count_nonzero(reference))
    tp, distances, voxel_distances = 0, None, None
    if n_pred and n_ref:
        tp = int(np.count_nonzero(prediction & reference))
        surfaces, axes = _surfaces(prediction, reference)
        distances = surface_distances(*surfaces, spacing=tuple(spacing[axis] for axis in axes))
        if len({spacing[axis] for axis in axes}) == 1:
            voxel_distances = (distances[0] / spacing[axes[0]], distances[1] / spacing[axes[0]])
        else:
            voxel_distances = surface_distances(*surfaces, spacing=(1.0,) * len(axes))
    return Comparison(
        tp=tp,
        fp=n_pred - tp,
        fn=n_ref - tp,
        tn=outside + total - n_pred - n_ref + tp,
        distances=distances,
        voxel_distances=voxel_distances,
        voxel_volume=math.prod(spacing) if voxel_volume is None else voxel_volume,
        tolerance=tolerance,
        lesions=count_lesions(prediction, reference) if lesions else None,
        prediction=prediction,
        reference=reference,
        spacing=spacing,
    )


def surface(mask: np.ndarray) -> np.ndarray:
    """Voxels of a mask (any number of axes) with a face neighbour outside the mask or the array."""
    inner = mask.copy()
    for axis in range(mask.ndim):  # an erosion by the face neighbours; scipy's takes several times as long
        there, here = np.moveaxis(mask, axis, 0), np.moveaxis(inner, axis, 0)
        here[1:] &= there[:-1]
        here[:-1] &= there[1:]
        here[[0, -1]] = False
    return mask & ~inner


def surface_distances(a: np.ndarray, b: np.ndarray, *, spacing: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Distance from each voxel of surface `a` to the nearest of surface `b`, and the other way round.

    Args:
        a: bool, not empty.
        b: bool, not empty, of the same shape.
        spacing: of voxels, one value per axis; distances have the same unit.
    """
    shared = np.zeros(int(np.count_nonzero(a & b)))
    results = []
    for own, other in ((a, b), (b, a)):
        # voxels on both surfaces have distance 0: most of them, in a good prediction
        alone = np.argwhere(own & ~other) * np.asarray(spacing)
        tree = cKDTree(np.argwhere(other) * np.asarray(spacing)) if len(alone) else None
        results.append(shared if tree is None else np.concatenate([shared, tree.query(alone)[0]]))
    return results[0], results[1]


def count_lesions(prediction: np.ndarray, reference: np.ndarray) -> LesionCounts:
    """Match lesions one to one: as many pairs with an IoU of at least `MATCHING_IOU` as possible.

    Lesions are connected components, corners included. A predicted lesion that covers two reference lesions finds at
    most one of them.

    Args:
        prediction: (Z, Y, X) bool.
        reference: (Z, Y, X) bool.
    """
    predicted, sizes_pred = number_components(prediction)
    true, sizes_ref = number_components(reference)
    n_pred, n_ref = len(sizes_pred), len(sizes_ref)
    both = prediction & reference
    keys, shared = np.unique(predicted[both].astype(np.int64) * (n_ref + 1) + true[both], return_counts=True)
    rows, columns = np.divmod(keys, n_ref + 1)
    alike = shared >= MATCHING_IOU * (sizes_pred[rows - 1] + sizes_ref[columns - 1] - shared)
    graph = sparse.csr_array(
        (np.ones(int(alike.sum()), bool), (rows[alike], columns[alike])), shape=(n_pred + 1, n_ref + 1)
    )
    tp = int(np.count_nonzero(maximum_bipartite_matching(graph, perm_type="column") >= 0))
    return LesionCounts(tp=tp, fp=n_pred - tp, fn=n_ref - tp)


def _surfaces(prediction: np.ndarray, reference: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray], tuple[int, ...]]:
    """Both surfaces within their common box, and the axes used: a picture's single slice is not an axis."""
    axes = tuple(axis for axis, size in enumerate(prediction.shape) if size > 1) or (2,)
    flat = tuple(axis for axis in range(3) if axis not in axes)
    box = bounding_box(prediction | reference)
    assert box is not None
    a, b = (surface(np.squeeze(crop_to(mask, box), axis=flat)) for mask in (prediction, reference))
    return (a, b), axes


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan


def _hausdorff(distances: tuple[np.ndarray, np.ndarray] | None, percentile: float) -> float:
    if distances is None:
        return math.nan
    return max(float(np.percentile(part, percentile)) for part in distances)


def _mean_distance(distances: tuple[np.ndarray, np.ndarray] | None) -> float:
    return math.nan if distances is None else float(np.concatenate(distances).mean())


def _surface_dice(c: Comparison) -> float:
    if c.distances is None:
        return math.nan if c.tp + c.fp + c.fn == 0 else 0.0
    within = sum(int(np.count_nonzero(part <= c.tolerance)) for part in c.distances)
    return within / sum(len(part) for part in c.distances)


# The first eight are nnU-Net's, under its names.
METRICS: dict[str, Callable[[Comparison], float]] = {
    "Dice": lambda c: _ratio(2 * c.tp, 2 * c.tp + c.fp + c.fn),
    "IoU": lambda c: _ratio(c.tp, c.tp + c.fp + c.fn),
    "FN": lambda c: c.fn,
    "FP": lambda c: c.fp,
    "TN": lambda c: c.tn,
    "TP": lambda c: c.tp,
    "n_pred": lambda c: c.tp + c.fp,
    "n_ref": lambda c: c.tp + c.fn,
    "HD95_mm": lambda c: _hausdorff(c.distances, HAUSDORFF_PERCENTILE),
    "HD95_voxels": lambda c: _hausdorff(c.voxel_distances, HAUSDORFF_PERCENTILE),
    "NSD": _surface_dice,
    "HD_mm": lambda c: _hausdorff(c.distances, 100),
    "HD_voxels": lambda c: _hausdorff(c.voxel_distances, 100),
    "ASSD_mm": lambda c: _mean_distance(c.distances),
    "ASSD_voxels": lambda c: _mean_distance(c.voxel_distances),
    "volume_pred_ml": lambda c: (c.tp + c.fp) * c.voxel_volume / CUBIC_MM_PER_ML,
    "volume_ref_ml": lambda c: (c.tp + c.fn) * c.voxel_volume / CUBIC_MM_PER_ML,
    "volume_error_ml": lambda c: (c.fp - c.fn) * c.voxel_volume / CUBIC_MM_PER_ML,
    "volume_error": lambda c: _ratio(c.fp - c.fn, c.tp + c.fn),
}

LESION_METRICS: dict[str, Callable[[LesionCounts], float]] = {
    "lesion_TP": lambda c: c.tp,
    "lesion_FP": lambda c: c.fp,
    "lesion_FN": lambda c: c.fn,
    "lesion_F1": lambda c: _ratio(2 * c.tp, 2 * c.tp + c.fp + c.fn),
}


def find_metric(name: str) -> Callable[[Comparison], float]:
    """Find a metric by name, ours or a plug-in's. Raises PlanError that lists the known ones."""
    return find_entry("metrics", name, METRICS, field="metric")


def measure(comparison: Comparison, added: Sequence[str] = ()) -> dict[str, float]:
    """All METRICS of a comparison by name, the plug-in metrics in `added`, and LESION_METRICS with lesions."""
    measured = {name: metric(comparison) for name, metric in METRICS.items()}
    measured |= {name: float(find_metric(name)(comparison)) for name in added}
    if comparison.lesions is not None:
        measured |= {name: metric(comparison.lesions) for name, metric in LESION_METRICS.items()}
    return measured
