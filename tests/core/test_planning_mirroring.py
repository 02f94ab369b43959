"""Mirroring is allowed axis by axis, where it leaves the labels true."""

from types import ModuleType

import numpy as np
import pytest

from masam_auto.core.planning_mirroring import choose_mirroring, histogram_overlap, order_consistency

AB = ("a", "b")


def allowed(fingerprint) -> tuple[bool, ...]:
    return tuple(rule.allowed for rule in choose_mirroring(fingerprint))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(("agreeing", "forbidden"), [(20, True), (18, True), (17, False), (0, True)])
def test_steady_order_of_look_alikes_forbids_its_axis_alone(planning: ModuleType, axis, agreeing, forbidden):
    fingerprint = planning.make_fingerprint(
        count=20, classes=AB, centroids=planning.ordered(20, axis=axis, agreeing=agreeing)
    )
    assert allowed(fingerprint) == tuple(not (forbidden and other == axis) for other in range(3))


def test_the_reason_names_the_classes_and_the_numbers(planning: ModuleType):
    fingerprint = planning.make_fingerprint(count=20, classes=AB, centroids=planning.ordered(20, axis=1, agreeing=19))
    reason = choose_mirroring(fingerprint)[1].reason
    assert all(part in reason for part in ('"a"', '"b"', "95.0%", "20 cases", "100%"))


def test_classes_that_look_different_may_be_mirrored(planning: ModuleType):
    fingerprint = planning.make_fingerprint(
        count=20,
        classes=AB,
        centroids=planning.ordered(20, axis=0, agreeing=20),
        histograms={"a": planning.DARK, "b": planning.BRIGHT},
    )
    assert allowed(fingerprint) == (True, True, True)
    assert histogram_overlap(fingerprint.classes["a"], fingerprint.classes["b"]) == 0


def test_one_channel_that_tells_them_apart_is_enough(planning: ModuleType):
    alike, apart = planning.FLAT, (planning.DARK, planning.BRIGHT)
    fingerprint = planning.make_fingerprint(count=3, classes=AB, channels=("T1", "T2"))
    first, second = (
        type(summary)(cases=3, median_volume=1.0, median_diameters=(1.0,) * 3, histograms=(alike, own))
        for summary, own in zip(fingerprint.classes.values(), apart, strict=True)
    )
    assert histogram_overlap(first, second) == 0


def test_two_cases_say_nothing_and_three_do(planning: ModuleType):
    for count, free in ((1, True), (2, True), (3, False)):
        fingerprint = planning.make_fingerprint(
            count=count, classes=AB, centroids=planning.ordered(count, axis=2, agreeing=count)
        )
        assert choose_mirroring(fingerprint)[2].allowed is free


def test_only_cases_that_hold_both_count(planning: ModuleType):
    centroids = planning.ordered(10, axis=2, agreeing=10)
    centroids["b"][2:] = np.nan
    fingerprint = planning.make_fingerprint(count=10, classes=AB, centroids=centroids)
    assert order_consistency(fingerprint.cases, "a", "b", 2) == (1.0, 2)
    assert choose_mirroring(fingerprint)[2].allowed
    assert order_consistency(fingerprint.cases, "a", "missing", 2) == (0.0, 0)


def test_one_class_may_be_mirrored(planning: ModuleType):
    assert allowed(planning.make_fingerprint(classes=("tumour",))) == (True, True, True)


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
def test_side_words_forbid_their_anatomical_axis(planning: ModuleType, names, forbidden):
    # classes change places from case to case, so that the names alone decide
    assert allowed(planning.make_fingerprint(classes=names)) == tuple(axis != forbidden for axis in range(3))


def test_side_words_follow_the_direction_matrix(planning: ModuleType):
    # voxel x runs along world z, y along x, z along y: left/right (world x) is the array's axis 1
    turned = (0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0)
    sided = planning.make_fingerprint(classes=("left kidney", "right kidney"), direction=turned)
    assert allowed(sided) == (True, False, True)


def test_oblique_axes_within_sixty_degrees_count(planning: ModuleType):
    half = float(np.sqrt(0.5))
    oblique = (half, -half, 0.0, half, half, 0.0, 0.0, 0.0, 1.0)
    sided = planning.make_fingerprint(classes=("left kidney", "right kidney"), direction=oblique)
    assert allowed(sided) == (True, False, False)


def test_pictures_have_left_along_their_width_and_upper_along_their_height(planning: ModuleType):
    for names, expected in ((("left eye",), (True, True, False)), (("upper lid",), (True, False, True))):
        for options in ({"dimensions": 2, "shape": (1, 50, 50)}, {"is_video": True}):
            assert allowed(planning.make_fingerprint(classes=names, **options)) == expected
