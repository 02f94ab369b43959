"""core.labels: classes, regions, ignore, and names that tell sides apart."""

from typing import Any

import pytest

from masam_auto.core.errors import DatasetError
from masam_auto.core.labels import Labels, named_sides, parse_labels

BRATS = {"background": 0, "whole tumour": [1, 2, 3], "tumour core": [2, 3], "enhancing": 3}


def test_plain_classes() -> None:
    labels = parse_labels({"background": 0, "liver": 1, "spleen": 2}, None)
    assert labels.foreground == {"liver": (1,), "spleen": (2,)}
    assert labels.declared == (0, 1, 2) and labels.num_outputs == 3 and not labels.has_regions


def test_classes_stand_in_the_order_of_their_values() -> None:
    labels = parse_labels({"spleen": 2, "background": 0, "liver": 1}, None)
    assert list(labels.foreground) == ["liver", "spleen"]


def test_regions_keep_their_order() -> None:
    labels = parse_labels(BRATS, [1, 2, 3])
    assert labels.has_regions and labels.num_outputs == 3
    assert list(labels.foreground.values()) == [(1, 2, 3), (2, 3), (3,)]
    assert labels.regions_class_order == (1, 2, 3)


def test_values_of_the_same_regions_may_be_written_as_one() -> None:
    labels = parse_labels({"background": 0, "tumour": [1, 2]}, [1])
    assert [labels.written(value) for value in (0, 1, 2)] == [0, 1, 1]


def test_an_order_without_regions_means_nothing_as_in_nnunet() -> None:
    labels = parse_labels({"background": 0, "liver": 1, "spleen": [2]}, [1, 2])
    assert not labels.has_regions and labels.num_outputs == 3 and labels.regions_class_order is None


def test_ignore_is_no_class() -> None:
    labels = parse_labels({"background": 0, "liver": 1, "ignore": 2}, None)
    assert labels.ignore == 2 and labels.declared == (0, 1) and labels.num_outputs == 2
    assert parse_labels(BRATS | {"ignore": 4}, [1, 2, 3]).num_outputs == 3


@pytest.mark.parametrize(
    ("raw", "order", "words"),
    [
        ([], None, "must map names to values"),
        ({}, None, "must map names to values"),
        ({"0": "background", "1": "liver"}, None, r"nnU-Net v1\). Swap them"),
        ({"background": 0, "liver": 1.0}, None, 'label "liver" must be a non-negative whole number'),
        ({"background": 0, "liver": True}, None, 'label "liver" must be'),
        ({"background": 0, "liver": -1}, None, 'label "liver" must be'),
        ({"background": 0, "liver": []}, None, 'label "liver" must be'),
        ({"liver": 1}, None, 'must contain "background": 0'),
        ({"background": 1, "liver": 0}, None, 'must contain "background": 0'),
        ({"background": 0}, None, "names no foreground class"),
        ({"background": 0, "ignore": 1}, None, "names no foreground class"),
        ({"background": 0, "liver": 2}, None, "consecutive from 0"),
        ({"background": 0, "liver": 2, "ignore": 1}, None, "with ignore last"),
        ({"background": 0, "liver": 1, "ignore": 3}, None, "with ignore last"),
        ({"background": 0, "liver": 1, "ignore": [2, 3]}, None, '"ignore" must be one value'),
        ({"background": 0, "liver": 1, "hepar": 1}, None, "several names to one value"),
        (BRATS, None, "must list one value for each of the 3 regions"),
        (BRATS, [1, 2], "must list one value for each of the 3 regions"),
        (BRATS, [1, 2, 9], r"undeclared values \[9\]"),
        (BRATS, [3, 2, 1], r"\[3, 2, 1\] writes label 1 as 3, which belongs to other regions"),
        (BRATS, [1, 1, 3], "writes label 2 as 1"),
        ({"background": 0, "core": 2, "whole": [1, 2]}, [2, 1], "writes label 2 as 1"),
    ],
)
def test_what_is_wrong_with_labels_is_named(raw: Any, order: list[int] | None, words: str) -> None:
    with pytest.raises(DatasetError, match=words):
        parse_labels(raw, order)


def test_several_values_need_regions() -> None:
    with pytest.raises(DatasetError, match="is a region and needs"):
        Labels(values={"background": (0,), "both": (1, 2)})


def test_named_sides() -> None:
    assert named_sides(["left kidney", "liver"]) == (("left", "right"),)
    assert named_sides(["kidney_l", "kidney_r"]) == (("left", "right"),)
    assert named_sides(["Anterior", "Posterior", "leftKidney"]) == (("left", "right"), ("anterior", "posterior"))
    assert named_sides(["vitamin_l", "liver"]) == ()
    assert named_sides(["kidney_l", "lung_r"]) == ()


def test_numbers_that_were_written_as_text_are_numbers() -> None:
    assert parse_labels({"background": "0", "liver": "1"}, None) == parse_labels({"background": 0, "liver": 1}, None)
    regions = {"background": "0", "whole": ["1", 2], "core": "2"}
    assert parse_labels(regions, [1, 2]).foreground == {"whole": (1, 2), "core": (2,)}
