"""Selections as files: what comes back, and what makes no sense."""

import json
from pathlib import Path

import pytest

from masam_auto.core.errors import PlanError
from masam_auto.core.jsonio import to_plain, write_json
from masam_auto.core.postprocessing import Postprocessing, PostprocessingStep
from masam_auto.core.selection import Candidate, SelectedModel, Selection, read_selection

SELECTION = Selection(
    dataset_name="Dataset001_Toy",
    members=(
        SelectedModel(plan_name="masam", configuration="axis0", folds=(0, 2)),
        SelectedModel(plan_name="long", configuration="2d", folds=(0,), checkpoint="latest"),
    ),
    postprocessing=Postprocessing(steps=(PostprocessingStep(target="liver", values=(1,), rule="keep_largest"),)),
    dice=0.9,
    dice_by_class={"liver": 0.9},
    cases=3,
    candidates=(Candidate(members=("masam__axis0", "long__2d"), dice=0.89),),
    reasons=("because",),
)


def test_a_selection_comes_back(tmp_path: Path) -> None:
    write_json(tmp_path / "selection.json", SELECTION)
    assert read_selection(tmp_path / "selection.json") == SELECTION
    assert SELECTION.name == "masam__axis0 + long__2d"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"version": 2}, "Update masam_auto"),
        ({"members": []}, "must have a member"),
        ({"members": [{"plan_name": "masam", "configuration": "axis0", "folds": []}]}, "masam__axis0 must have a fold"),
        ({"members": [{"plan_name": "../x", "configuration": "axis0", "folds": [0]}]}, "plan_name must be made of"),
        ({"members": [{"plan_name": "x", "configuration": "/a", "folds": [0]}]}, "configuration must be made of"),
        ({"members": [{"plan_name": "x", "configuration": "a", "folds": ["all"]}]}, "folds"),
        ({"members": [{"plan_name": "x", "configuration": "a", "folds": [0], "checkpoint": "../x"}]}, "must be one of"),
        ({"dice": None}, "dice"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, change: dict, complaint: str) -> None:
    file = tmp_path / "selection.json"
    file.write_text(json.dumps({**to_plain(SELECTION), **change}))
    with pytest.raises(PlanError, match=complaint):
        read_selection(file)
