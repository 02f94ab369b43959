"""Mirroring is allowed axis by axis, where it leaves the labels true."""

import dataclasses

import numpy as np
import pytest

from masam_auto.core.fingerprint import Fingerprint
from masam_auto.planning.mirroring import choose_mirroring, histogram_overlap, order_consistency, told_apart
from tests import fingerprints

AB = ("a", "b")


def allowed(fingerprint) -> tuple[bool, ...]:
    return tuple(rule.allowed for rule in choose_mirroring(fingerprint))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(("agreeing", "forbidden"), [(20, True), (18, True), (17, False), (0, True)])
def test_steady_order_of_look_alikes_forbids_its_axis_alone(axis, agreeing, forbidden):
    fingerprint = fingerprints.make_fingerprint(
        count=20, classes=AB, centroids=fingerprints.ordered(20, axis=axis, agreeing=agreeing)
    )
    assert allowed(fingerprint) == tuple(not (forbidden and other == axis) for other in range(3))


def test_the_reason_names_the_classes_and_the_numbers():
    fingerprint = fingerprints.make_fingerprint(
        count=20, classes=AB, centroids=fingerprints.ordered(20, axis=1, agreeing=19)
    )
    reason = choose_mirroring(fingerprint)[1].reason
    assert all(part in reason for part in ('"a"', '"b"', "95.0%", "20 cases", "100%"))


def test_classes_that_look_different_may_be_mirrored():
    fingerprint = fingerprints.make_fingerprint(
        count=20,
        classes=AB,
        centroids=fingerprints.ordered(20, axis=0, agreeing=20),
        histograms={"a": fingerprints.DARK, "b": fingerprints.BRIGHT},
    )
    assert allowed(fingerprint) == (True, True, True)
    assert histogram_overlap(fingerprint.classes["a"], fingerprint.classes["b"]) == 0


def test_one_channel_that_tells_them_apart_is_enough():
    alike, apart = fingerprints.FLAT, (fingerprints.DARK, fingerprints.BRIGHT)
    fingerprint = fingerprints.make_fingerprint(count=3, classes=AB, channels=("T1", "T2"))
    first, second = (
        type(summary)(cases=3, median_volume=1.0, median_diameters=(1.0,) * 3, histograms=(alike, own))
        for summary, own in zip(fingerprint.classes.values(), apart, strict=True)
    )
    assert histogram_overlap(first, second) == 0


def test_two_cases_say_nothing_and_three_do():
    for count, free in ((1, True), (2, True), (3, False)):
        fingerprint = fingerprints.make_fingerprint(
            count=count, classes=AB, centroids=fingerprints.ordered(count, axis=2, agreeing=count)
        )
        assert choose_mirroring(fingerprint)[2].allowed is free


def test_only_cases_that_hold_both_count():
    centroids = fingerprints.ordered(10, axis=2, agreeing=10)
    centroids["b"][2:] = np.nan
    fingerprint = fingerprints.make_fingerprint(count=10, classes=AB, centroids=centroids)
    assert order_consistency(fingerprint.cases, "a", "b", 2) == (1.0, 2)
    assert choose_mirroring(fingerprint)[2].allowed
    assert order_consistency(fingerprint.cases, "a", "missing", 2) == (0.0, 0)


def test_one_class_may_be_mirrored():
    assert allowed(fingerprints.make_fingerprint(classes=("tumour",))) == (True, True, True)


@pytest.mark.parametrize(
    ("names", "forbidden"),
    [
        (("left kidney", "right kidney"), 2),
        (("kidney_l", "kidney_r"), 2),
        (("left ventricle",), 2),
        (("anterior", "posterior"), 1),
        (("ventral horn", "dorsal horn"), 1),
        (("lung upper lobe", "lung lower lobe"), 0),
        (("superior", "inferior"), 0),
    ],
)
def test_side_words_forbid_their_anatomical_axis(names, forbidden):
    # classes change places from case to case, so that the names alone decide
    assert allowed(fingerprints.make_fingerprint(classes=names)) == tuple(axis != forbidden for axis in range(3))


def test_side_words_follow_the_direction_matrix():
    # voxel x runs along world z, y along x, z along y: left/right (world x) is the array's axis 1
    turned = (0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0)
    sided = fingerprints.make_fingerprint(classes=("left kidney", "right kidney"), direction=turned)
    assert allowed(sided) == (True, False, True)


def test_oblique_axes_within_sixty_degrees_count():
    half = float(np.sqrt(0.5))
    oblique = (half, -half, 0.0, half, half, 0.0, 0.0, 0.0, 1.0)
    sided = fingerprints.make_fingerprint(classes=("left kidney", "right kidney"), direction=oblique)
    assert allowed(sided) == (True, False, False)


def test_pictures_have_left_along_their_width_and_upper_along_their_height():
    for names, expected in ((("left eye",), (True, True, False)), (("upper lid",), (True, False, True))):
        for options in ({"dimensions": 2, "shape": (1, 50, 50)}, {"is_video": True}):
            assert allowed(fingerprints.make_fingerprint(classes=names, **options)) == expected


def look_alikes(count: int = 40, *, touching: bool | None = False, **unlike: float) -> Fingerprint:
    """Classes "a" and "b" in one order along axis 2; by `unlike` the second's volume, extent or mean is that much more.

    All of both scatter by a tenth.
    """
    fingerprint = fingerprints.make_fingerprint(
        count=count, classes=AB, centroids=fingerprints.ordered(count, axis=2, agreeing=count)
    )
    random = np.random.default_rng(0)
    cases = []
    for case in fingerprint.cases:
        classes = {}
        for name in AB:
            more = {key: 1 + (value if name == "b" else 0) for key, value in unlike.items()}
            scatter = random.normal(1, 0.1, 5)
            classes[name] = dataclasses.replace(
                case.classes[name],
                volume=1000 * more.get("volume", 1) * scatter[0],
                extent=(20 * more.get("extent", 1) * scatter[1], 20.0 * scatter[2], 20.0 * scatter[3]),
                mean=(100 * more.get("mean", 1) * scatter[4],),
            )
        cases.append(dataclasses.replace(case, classes=classes))
    return dataclasses.replace(fingerprint, cases=tuple(cases))


@pytest.mark.parametrize("unlike", [{"volume": 2.0}, {"mean": 1.0}])
def test_look_alikes_that_size_or_intensity_tell_apart_may_be_mirrored(unlike):
    rule = choose_mirroring(look_alikes(**unlike))[2]
    assert rule.allowed and "100.0% of 40 cases, but volume and intensity tell them apart in" in rule.reason


def test_look_alikes_that_nothing_tells_apart_may_not():
    rules = choose_mirroring(look_alikes())
    assert [rule.allowed for rule in rules] == [True, True, False]
    assert '"a" and "b"' in rules[2].reason and rules[2].reason.endswith(" only")


def test_shape_tells_nothing():
    """It tells RV from LV and Anterior from Posterior in all cases, and yet mirroring costs Dice there."""
    assert not choose_mirroring(look_alikes(extent=1.0))[2].allowed


def test_few_cases_do_not_show_that_classes_can_be_told_apart():
    for count, free in ((9, False), (10, True)):
        rule = choose_mirroring(look_alikes(count, volume=2.0))[2]
        assert rule.allowed is free and ("too few" in rule.reason) is not free


def test_the_pair_that_decides_is_named():
    """Of three classes of one order, the two that are alike decide."""
    fingerprint = look_alikes()
    cases = []
    for case in fingerprint.cases:
        organ = case.classes["a"]
        large = dataclasses.replace(organ, volume=50 * organ.volume, centroid=(50.0, 50.0, 0.0))
        cases.append(dataclasses.replace(case, classes={"large": large, **case.classes}))
    classes = {"large": fingerprint.classes["a"], **fingerprint.classes}
    fingerprint = dataclasses.replace(fingerprint, cases=tuple(cases), classes=classes, class_names=("large", *AB))
    assert told_apart(fingerprint.cases, "large", "a") == 1
    rule = choose_mirroring(fingerprint)[2]
    assert not rule.allowed and '"a" and "b"' in rule.reason and "large" not in rule.reason


def test_recognition_of_classes_that_differ_in_nothing_is_a_guess():
    assert told_apart(look_alikes(400).cases, "a", "b") < 0.6
    same = fingerprints.make_fingerprint(count=20, classes=AB)
    assert told_apart(same.cases, "a", "b") == 0
