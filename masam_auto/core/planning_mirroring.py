"""Planning rule: along which axes mirroring leaves the labels true.

Mirroring is harmless where classes can be told apart by how they look. Where two classes look alike and only their
order along an axis tells which is which, a mirrored image with mirrored labels teaches the opposite of the truth.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from masam_auto.core.fingerprint import CaseMeasurement, ClassSummary, Fingerprint
from masam_auto.core.labels import named_sides

LOOK_ALIKE = 0.5  # shared histogram area from which on two classes cannot be told apart by intensity
# Share of cases in which the centroids come in the same order. Source: ours; on Hippocampus mirroring along an axis with
# a share of 0.93 still cost 0.008 Dice in a short training (documentation/decisions.md).
SAME_ORDER = 0.90
FEWEST_CASES = 3  # two cases agree by chance half of the time
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
    its centroids in the same order along it in at least 90 % of the cases that hold both. A pair seen in fewer than
    three cases says nothing.

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
    pairs = [(c.classes[first], c.classes[second]) for c in cases if first in c.classes and second in c.classes]
    if not pairs:
        return 0.0, 0
    differences = np.array([a.centroid[axis] - b.centroid[axis] for a, b in pairs])
    return float(max((differences > 0).mean(), (differences < 0).mean())), len(pairs)


def _rule(fingerprint: Fingerprint, axis: int) -> MirrorRule:
    share, found = _steadiest_pair(fingerprint, axis)
    against = []
    if words := _sides_along(fingerprint, axis):
        against.append(f"label names tell {words[0]} from {words[1]} along it")
    if share >= SAME_ORDER:
        against.append(found)
    if against:
        return MirrorRule(allowed=False, reason=f"no: {', and '.join(against)}")
    if len(fingerprint.classes) == 1:
        return MirrorRule(allowed=True, reason="yes: a single class, without a side in its name")
    return MirrorRule(allowed=True, reason=f"yes: {found}" + (f", below {SAME_ORDER:.0%}" if share else ""))


def _steadiest_pair(fingerprint: Fingerprint, axis: int) -> tuple[float, str]:
    """Of the pairs that look alike, the one whose order along an axis is steadiest: its share, and a sentence."""
    best = (0.0, f"no two classes with overlapping intensities are seen together in {FEWEST_CASES} cases or more")
    for first, second in combinations(fingerprint.classes, 2):
        overlap = histogram_overlap(fingerprint.classes[first], fingerprint.classes[second])
        share, count = order_consistency(fingerprint.cases, first, second, axis)
        if overlap < LOOK_ALIKE or count < FEWEST_CASES or share <= best[0]:
            continue
        sentence = (
            f'"{first}" and "{second}" look alike (histograms share {overlap:.0%}) and come in the same order along it '
            f"in {share:.1%} of {count} cases"
        )
        best = (share, sentence)
    return best


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
