"""Who belongs together: patients.json, names that say so, and folds that divide a patient."""

import json
from pathlib import Path

import pytest

from masam_auto.core.errors import DatasetError, PlanError
from masam_auto.core.patients import divided_patients, patients_of
from masam_auto.core.splits import Split, make_splits


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("patient001_frame01", "patient001_frame12"),
        ("sub-03_ses-1", "sub-03_ses-2"),
        ("P7_left", "P7_right"),
        ("case12_baseline", "case12_followup1"),
        ("prostate_00_visit_1", "prostate_00_visit_2"),
        ("UC-101_ED", "UC-101_ES"),
    ],
)
def test_names_that_name_a_patient_and_a_moment(tmp_path: Path, first: str, second: str):
    found = patients_of([first, second], tmp_path)
    assert found[first] == found[second] != first


@pytest.mark.parametrize(
    "names",
    [
        ("case_001", "case_002"),
        ("hippocampus_001", "hippocampus_003"),
        ("BRATS_001", "BRATS_002"),
        ("study_2019_001", "study_2019_002"),
        ("left_001", "right_001"),
        ("FLARE22_Tr_0001", "FLARE22_Tr_0002"),
        ("frame01", "frame02"),
    ],
)
def test_ordinary_names_are_patients_of_their_own(tmp_path: Path, names: tuple[str, str]):
    assert patients_of(names, tmp_path) == {name: name for name in names}


def test_patients_json_goes_before_names(tmp_path: Path):
    (tmp_path / "patients.json").write_text(json.dumps({"a": "p1", "b": "p1"}))
    assert patients_of(["a", "b", "c"], tmp_path) == {"a": "p1", "b": "p1", "c": "c"}


@pytest.mark.parametrize("text", ["[]", '{"a": 3}', '{"a": ""}'])
def test_patients_json_of_another_form_is_refused(tmp_path: Path, text: str):
    (tmp_path / "patients.json").write_text(text)
    with pytest.raises(DatasetError, match=r"patients\.json: expected"):
        patients_of(["a"], tmp_path)
    (tmp_path / "patients.json").write_text("{")
    with pytest.raises(PlanError, match=r"patients\.json"):
        patients_of(["a"], tmp_path)


def test_divided_patients_are_found_with_an_example():
    patients = {"a1": "a", "a2": "a", "b1": "b"}
    assert divided_patients([Split(train=("a1", "b1"), val=("a2",))], patients) == {"a": ("a1", "a2")}
    assert divided_patients([Split(train=("a1", "a2"), val=("b1",))], patients) == {}
    assert divided_patients([Split(train=("a1",), val=("a1",))], patients) == {}


@pytest.mark.parametrize("count", [2, 3, 7, 23])
def test_folds_made_here_never_divide_a_patient_and_hold_every_case_once(count: int):
    names = [f"p{number:02d}_frame{frame}" for number in range(count) for frame in range(1 + number % 3)]
    patients = {name: name.partition("_")[0] for name in names}
    splits = make_splits(names, patients=patients)
    assert divided_patients(splits, patients) == {} and len(splits) == min(5, count)
    assert sorted(name for split in splits for name in split.val) == sorted(names)
    assert all(set(split.train) | set(split.val) == set(names) for split in splits)


def test_cases_of_one_patient_are_dealt_out():
    names = ["a", "b", "c"]
    assert make_splits(names, patients=dict.fromkeys(names, "one")) == make_splits(names)


def test_a_list_that_names_no_case_is_refused_and_a_gap_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "patients.json").write_text('{"a.nii.gz": "p1", "b.nii.gz": "p1"}')
    with pytest.raises(
        DatasetError, match=r"names none of the cases \(it has a\.nii\.gz, b\.nii\.gz; cases are called a, b\)"
    ):
        patients_of(["a", "b"], tmp_path)
    (tmp_path / "patients.json").write_text('{"a": "p1", "gone": "p1"}')
    assert patients_of(["a", "b"], tmp_path) == {"a": "p1", "b": "b"}
    assert "gives no patient for b" in caplog.text
