"""Postprocessing and selections as files: what comes back, and what makes no sense."""

import json
from pathlib import Path
from typing import Any

import pytest

from masam_auto.core.errors import PlanError
from masam_auto.core.jsonio import write_json
from masam_auto.core.postprocessing import Postprocessing, PostprocessingStep, read_postprocessing

LARGEST: dict[str, Any] = {"target": "liver", "values": (1,), "rule": "keep_largest"}
SMALL: dict[str, Any] = {"target": "tumour", "values": (2, 3), "rule": "remove_small", "volume": 12.5}


def test_a_postprocessing_comes_back_and_says_what_it_does(tmp_path: Path) -> None:
    written = Postprocessing(steps=(PostprocessingStep(**LARGEST), PostprocessingStep(**SMALL)), each_slice=True)
    write_json(tmp_path / "postprocessing.json", written)
    assert read_postprocessing(tmp_path / "postprocessing.json") == written
    assert str(written) == "keep the largest component of liver, then remove components of tumour below 12.5 mm^3"
    assert str(Postprocessing()) == "none"


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({**LARGEST, "values": ()}, "values must be different label values above 0"),
        ({**LARGEST, "values": (0, 1)}, "values must be different label values above 0"),
        ({**LARGEST, "values": (1, 1)}, "values must be different label values above 0"),
        ({**LARGEST, "volume": 3.0}, "volume must be"),
        ({**SMALL, "volume": 0.0}, "volume must be above 0 mm"),
        ({**SMALL, "volume": -1.0}, "volume must be above 0 mm"),
        ({**SMALL, "volume": float("nan")}, "volume must be above 0 mm"),
    ],
)
def test_steps_that_make_no_sense_are_refused(tmp_path: Path, fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(PlanError, match=complaint):
        PostprocessingStep(**fields)
    file = tmp_path / "postprocessing.json"
    file.write_text(json.dumps({"version": 1, "steps": [{**fields, "values": list(fields["values"])}]}))
    with pytest.raises(PlanError, match=r"postprocessing\.json"):
        read_postprocessing(file)


def test_a_newer_or_foreign_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "postprocessing.json"
    file.write_text(json.dumps({"version": 2, "steps": []}))
    with pytest.raises(PlanError, match="Update masam_auto"):
        read_postprocessing(file)
    file.write_text(json.dumps({"version": 1, "steps": [{**LARGEST, "values": [1], "rule": "fill_holes"}]}))
    with pytest.raises(PlanError, match="fill_holes"):
        read_postprocessing(file)
    with pytest.raises(PlanError, match="postprocessing not found"):
        read_postprocessing(tmp_path / "missing.json")
