"""Tables on the terminal."""

import math

import pytest

from masam_auto.cli.tables import print_summary, print_table
from masam_auto.core.labels import parse_labels


def test_columns_are_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["class", "Dice"], [["a long name", "1"], ["b", "0.25"]])
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["class        Dice", "a long name     1", "b            0.25"]


def test_classes_and_regions_are_named_and_missing_values_are_dashes(capsys: pytest.CaptureFixture[str]) -> None:
    labels = parse_labels({"background": 0, "whole": [1, 2], "core": 2}, [1, 2])
    values = {"Dice": 0.5, "IoU": 0.25, "HD95_mm": math.nan, "NSD": 1.0, "TP": 3}
    print_summary(
        {"mean": {"(1, 2)": values, "2": values}, "foreground_mean": values, "metric_per_case": [1, 2]}, labels
    )
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[:2]] == [
        ["class", "Dice", "IoU", "HD95_mm", "NSD"],
        ["whole", "0.5000", "0.2500", "-", "1.0000"],
    ]
    assert [line.split()[0] for line in lines[2:4]] == ["core", "mean"]
    assert lines[4] == "over 2 cases"
