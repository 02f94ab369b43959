"""Planning rule: along which axes an image may be mirrored without making its labels wrong.

Mirroring is harmless if classes differ in intensity or size. If only their order along an axis tells them apart, a
mirrored image teaches the network the wrong order.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from masam_auto.core.fingerprint import CaseMeasurement, ClassMeasurement, ClassSummary, Fingerprint
from masam_auto.core.labels import named_sides

LOOK_ALIKE = 0.5  # with this shared histogram area or more, intensity does not tell two classes apart
# Share of cases with the centroids in the same order, from which on the order counts as fixed. Source: ours; on
# Hippocampus, mirroring along an axis with a share of 0.93 cost 0.008 Dice in a short training (documentation/log.md).
SAME_ORDER = 0.90
FEWEST_CASES = 3  # two cases agree by chance half of the time
FEWEST_TO_TELL = 10  # cases needed to see whether volume and intensity tell two classes apart
TOLD_APART = 0.95  # with this share of the cases told apart, a pair does not need its place
PARTS = 10  # of the cases; each is tested with a discriminant fitted on the others
SHRINKAGE = 0.1
ALONG = 0.5  # an image axis runs along an anatomical one within 60 degrees
# The anatomical axis (ITK's physical x, y, z in LPS) of each pair of side words.
ANATOMICAL_AXES = {"left": 0, "anterior": 1, "ventral": 1, "superior": 2, "upper": 2}
# A picture has no anatomical axes: left is along its width, upper along its height, the others may be along either.
PICTURE_AXES = {"left": (2,), "anterior": (1, 2), "ventral": (1, 2), "superior": (1,), "upper": (1,)}


@dataclass(frozen=True, kw_only=True, slots=True)
class MirrorRule:
    """Whether one axis of the fingerprint's (Z, Y, X) may be mirrored, and why."""

    allowed: bool
    reason: str


def choose_mirroring(fingerprint: Fingerprint) -> tuple[MirrorRule, MirrorRule, MirrorRule]:
    """Decide mirroring for the three axes of the fingerprint's order.

    An axis is forbidden if label names tell sides apart along it. It is also forbidden if two classes with overlapping
    intensities have their centroids in the same order along it in at least 90 % of the cases that hold both, and
    nothing else tells them apart. A pair seen in fewer than three cases is ignored. With fewer than ten cases, nothing
    can be said about telling it apart by volume and intensity.

    Source: ours. On the Hippocampus data nnU-Net's mirroring along all axes cost 0.21 Dice in a short training.
    """
    rules = [_rule(fingerprint, axis) for axis in range(3)]
    return (rules[0], rules[1], rules[2])


def histogram_overlap(first: ClassSummary, second: ClassSummary) -> float:
    """Shared area (0 to 1) of two classes' intensity histograms, in the channel that tells them apart best."""
    shared = [np.minimum(a, b).sum() for a, b in zip(first.histograms, second.histograms, strict=True)]
    return float(min(shared))


def order_consistency(cases: Sequence[CaseMeasurement], first: str, second: str, axis: int) -> tuple[float, int]:
    """How often two classes have the same order along an axis.

    Returns:
        the share of cases with the more frequent order, among the cases that hold both classes (0.5 to 1; 0 without
        any), and the number of these cases. Equal centroids count for neither order.
    """
    pairs = _both(cases, first, second)
    if not pairs:
        return 0.0, 0
    differences = np.array([a.centroid[axis] - b.centroid[axis] for a, b in pairs])
    return float(max((differences > 0).mean(), (differences < 0).mean())), len(pairs)


def told_apart(cases: Sequence[CaseMeasurement], first: str, second: str) -> float:
    """How well two classes can be told apart by volume and intensity (mean and standard deviation of every channel).

    Uses a linear discriminant, tested on cases that it has not seen. Shape is left out because it did not help
    (documentation/log.md).

    Args:
        cases: only those that hold both count.

    Returns:
        share (0 to 1) of the cases in which the harder class of the two is recognised; 0 with fewer than ten cases.

    Source: linear discriminant analysis (R. A. Fisher, Annals of Eugenics 7, 1936), its covariance shrunk by a tenth.
    """
    pairs = _both(cases, first, second)
    if len(pairs) < FEWEST_TO_TELL:
        return 0.0
    features = np.array([[(math.log(found.volume), *found.mean, *found.std) for found in pair] for pair in pairs])
    right = np.zeros((len(pairs), 2), bool)
    for part in range(PARTS):
        seen = np.arange(len(pairs)) % PARTS != part
        weights, middle = _discriminant(features[seen])
        right[~seen] = (features[~seen] @ weights > middle) == (False, True)
    return float(right.mean(axis=0).min())


def _both(cases: Sequence[CaseMeasurement], first: str, second: str) -> list[tuple[ClassMeasurement, ClassMeasurement]]:
    return [(c.classes[first], c.classes[second]) for c in cases if first in c.classes and second in c.classes]


def _discriminant(features: np.ndarray) -> tuple[np.ndarray, float]:
    """The direction (F,) that separates two classes best, and the place between them, from (cases, 2, F)."""
    means = features.mean(axis=0)
    within = np.einsum("ncf,ncg->fg", features - means, features - means) / (2 * len(features))
    spread = np.diag(np.maximum(within.diagonal(), 1e-9 * features.var(axis=(0, 1))))
    # least squares, because features that never vary make the matrix singular
    weights = np.linalg.lstsq((1 - SHRINKAGE) * within + SHRINKAGE * spread, means[1] - means[0])[0]
    return weights, float(weights @ means.mean(axis=0))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pair:
    """Two classes whose intensities overlap, seen along one axis."""

    names: tuple[str, str]
    overlap: float
    share: float
    count: int
    known: float  # from `told_apart`; 0 if the order is not steady

    @property
    def steady(self) -> bool:
        return self.share >= SAME_ORDER

    @property
    def needs_place(self) -> bool:
        return self.steady and self.known < TOLD_APART

    def __str__(self) -> str:
        first, second = self.names
        sentence = (
            f'"{first}" and "{second}" look alike (histograms share {self.overlap:.0%}) and come in the same order '
            f"along it in {self.share:.1%} of {self.count} cases"
        )
        if not self.steady:
            return f"{sentence}, below {SAME_ORDER:.0%}"
        if self.count < FEWEST_TO_TELL:
            return f"{sentence}, too few to see whether anything else tells them apart"
        told = f"volume and intensity tell them apart in {self.known:.0%}"
        return f"{sentence}; {told} only" if self.needs_place else f"{sentence}, but {told}"


def _rule(fingerprint: Fingerprint, axis: int) -> MirrorRule:
    pairs = _look_alikes(fingerprint, axis)
    # the pair closest to needing its place: its order is steady, and it is hardest to tell apart
    closest = max(pairs, key=lambda pair: (pair.steady, -pair.known, pair.share), default=None)
    against = []
    if words := _sides_along(fingerprint, axis):
        against.append(f"label names tell {words[0]} from {words[1]} along it")
    if closest and closest.needs_place:
        against.append(str(closest))
    if against:
        return MirrorRule(allowed=False, reason=f"no: {', and '.join(against)}")
    if closest:
        return MirrorRule(allowed=True, reason=f"yes: {closest}")
    if len(fingerprint.classes) == 1:
        return MirrorRule(allowed=True, reason="yes: there is one class, and its name has no side")
    return MirrorRule(
        allowed=True,
        reason=f"yes: no two classes with overlapping intensities are both in {FEWEST_CASES} or more cases",
    )


def _look_alikes(fingerprint: Fingerprint, axis: int) -> list[_Pair]:
    """The pairs of classes with overlapping intensities that are together in enough cases to judge."""
    pairs = []
    for first, second in combinations(fingerprint.classes, 2):
        overlap = histogram_overlap(fingerprint.classes[first], fingerprint.classes[second])
        if overlap < LOOK_ALIKE:
            continue
        share, count = order_consistency(fingerprint.cases, first, second, axis)
        if count >= FEWEST_CASES:
            known = told_apart(fingerprint.cases, first, second) if share >= SAME_ORDER else 0.0
            pairs.append(_Pair(names=(first, second), overlap=overlap, share=share, count=count, known=known))
    return pairs


def _sides_along(fingerprint: Fingerprint, axis: int) -> tuple[str, str] | None:
    """Two side words in the label names that are along this axis in some case, or None."""
    for words in named_sides(fingerprint.class_names):
        if fingerprint.dimensions == 2 or fingerprint.is_video:
            if axis in PICTURE_AXES[words[0]]:
                return words
            continue
        column = 2 - axis  # ITK's x, y, z voxel axes are the array's in reverse
        row = ANATOMICAL_AXES[words[0]]
        if any(abs(case.direction[3 * row + column]) >= ALONG for case in fingerprint.cases):
            return words
    return None
