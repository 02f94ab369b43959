"""Planning rule: along which axes mirroring leaves the labels true.

Mirroring is harmless where classes can be told apart by their intensities, and as whole things by their size. Where
only their order along an axis tells which is which, a mirrored image with mirrored labels teaches the opposite of the
truth.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from masam_auto.core.fingerprint import CaseMeasurement, ClassMeasurement, ClassSummary, Fingerprint
from masam_auto.core.labels import named_sides

LOOK_ALIKE = 0.5  # shared histogram area from which on two classes cannot be told apart by intensity
# Share of cases in which the centroids come in the same order. Source: ours; on Hippocampus mirroring along an axis
# with a share of 0.93 still cost 0.008 Dice in a short training (documentation/log.md).
SAME_ORDER = 0.90
FEWEST_CASES = 3  # two cases agree by chance half of the time
FEWEST_TO_TELL = 10  # cases from which on it can be seen whether two classes can be told apart otherwise
TOLD_APART = 0.95  # share of the cases from which on a pair does not need its place
PARTS = 10  # of the cases; each is tested by what the others say
SHRINKAGE = 0.1
ALONG = 0.5  # an image axis runs along an anatomical one within 60 degrees
# anatomical axis (ITK's physical x, y, z in LPS) that each pair of side words lies along
ANATOMICAL_AXES = {"left": 0, "anterior": 1, "ventral": 1, "superior": 2, "upper": 2}
# a picture has no anatomical axes: left is along its width, upper along its height, the others may be either
PICTURE_AXES = {"left": (2,), "anterior": (1, 2), "ventral": (1, 2), "superior": (1,), "upper": (1,)}


@dataclass(frozen=True, kw_only=True, slots=True)
class MirrorRule:
    """Whether one axis of the fingerprint's (Z, Y, X) may be mirrored, and why."""

    allowed: bool
    reason: str


def choose_mirroring(fingerprint: Fingerprint) -> tuple[MirrorRule, MirrorRule, MirrorRule]:
    """Decide mirroring for the three axes of the fingerprint's order.

    An axis is forbidden if label names say sides along it, or if a pair of classes with overlapping intensities keeps
    its centroids in the same order along it in at least 90 % of the cases that hold both, and cannot be told apart
    otherwise. A pair seen in fewer than three cases says nothing; in fewer than ten, nothing of how to tell it apart.

    Source: ours. On the Hippocampus data nnU-Net's mirroring along all axes cost 0.21 Dice in a short training.
    """
    rules = [_rule(fingerprint, axis) for axis in range(3)]
    return (rules[0], rules[1], rules[2])


def histogram_overlap(first: ClassSummary, second: ClassSummary) -> float:
    """Shared area (0 to 1) of two classes' intensity histograms, in the channel that tells them apart best."""
    shared = [np.minimum(a, b).sum() for a, b in zip(first.histograms, second.histograms, strict=True)]
    return float(min(shared))


def order_consistency(cases: Sequence[CaseMeasurement], first: str, second: str, axis: int) -> tuple[float, int]:
    """How steady two classes' order along an axis is.

    Returns:
        share of the cases holding both classes in which the more frequent order is seen (0.5 to 1; 0 without any),
        and the number of those cases. Equal centroids count for neither order.
    """
    pairs = _both(cases, first, second)
    if not pairs:
        return 0.0, 0
    differences = np.array([a.centroid[axis] - b.centroid[axis] for a, b in pairs])
    return float(max((differences > 0).mean(), (differences < 0).mean())), len(pairs)


def told_apart(cases: Sequence[CaseMeasurement], first: str, second: str) -> float:
    """How well two classes can be told apart by volume and intensity (mean and standard deviation of every channel).

    A linear discriminant, tested on cases that it has not seen. Shape does not count, because it was seen not to help:
    documentation/log.md.

    Args:
        cases: only those that hold both count.

    Returns:
        share (0 to 1) of the cases in which the class that is harder to recognise is recognised; 0 of fewer than ten.

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
    # least squares, because features that never change make it singular
    weights = np.linalg.lstsq((1 - SHRINKAGE) * within + SHRINKAGE * spread, means[1] - means[0])[0]
    return weights, float(weights @ means.mean(axis=0))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pair:
    """Two classes whose intensities overlap, seen along one axis."""

    names: tuple[str, str]
    overlap: float
    share: float
    count: int
    known: float  # as `told_apart` says, 0 where the order is not steady

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
            return f"{sentence}, too few to see whether they can be told apart otherwise"
        told = f"volume and intensity tell them apart in {self.known:.0%}"
        return f"{sentence}; {told} only" if self.needs_place else f"{sentence}, but {told}"


def _rule(fingerprint: Fingerprint, axis: int) -> MirrorRule:
    pairs = _look_alikes(fingerprint, axis)
    # that which is closest to needing its place: of a steady order, and hardest to tell apart
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
        return MirrorRule(allowed=True, reason="yes: a single class, without a side in its name")
    return MirrorRule(
        allowed=True,
        reason=f"yes: no two classes with overlapping intensities are seen together in {FEWEST_CASES} cases or more",
    )


def _look_alikes(fingerprint: Fingerprint, axis: int) -> list[_Pair]:
    """The pairs of classes with overlapping intensities that are seen together often enough to say something."""
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
    """The side words in the label names that lie along an axis in some case, or None."""
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
