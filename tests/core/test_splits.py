"""Folds: nnU-Net's, with few cases, and with videos."""

import json
from pathlib import Path

import pytest

from masam_auto.core.dataset import Case
from masam_auto.core.errors import PlanError
from masam_auto.core.splits import Split, choose_shots, find_split, make_splits, read_splits, write_splits


def make_cases(*names: str) -> list[Case]:
    return [Case(identifier=name, frames=(name,), images=((Path(name),),)) for name in names]


def make_video(name: str, frames: int) -> Case:
    names = tuple(f"{name}_{i}" for i in range(frames))
    return Case(identifier=name, frames=names, images=tuple((Path(frame),) for frame in names))


@pytest.mark.parametrize("count", [5, 6, 23, 200])
def test_folds_are_those_of_scikit_learn(count):
    model_selection = pytest.importorskip("sklearn.model_selection")
    names = [f"case_{i:03d}" for i in range(count)]
    splits = make_splits(reversed(names))
    folds = model_selection.KFold(n_splits=5, shuffle=True, random_state=12345).split(names)
    for split, (train, val) in zip(splits, folds, strict=True):
        assert split.train == tuple(names[i] for i in train)
        assert split.val == tuple(names[i] for i in val)


@pytest.mark.parametrize("count", [2, 3, 4, 5, 7])
def test_every_case_is_validated_once(count):
    names = [str(i) for i in range(count)]
    splits = make_splits(names)
    assert len(splits) == min(5, count)
    assert sorted(name for split in splits for name in split.val) == names
    for split in splits:
        assert split.train and not set(split.train) & set(split.val)
        assert sorted(split.train + split.val) == names


def test_a_single_case_is_validated_on_itself():
    assert make_splits(["only"]) == (Split(train=("only",), val=("only",)),)


def test_videos_are_written_as_frames_and_never_divided(tmp_path):
    cases = [make_video("a", 3), make_video("b", 2), *make_cases("single")]
    splits = make_splits([case.identifier for case in cases])
    path = tmp_path / "splits.json"
    write_splits(path, splits, cases)
    plain = json.loads(path.read_text())
    assert {frame for fold in plain for frame in fold["val"]} == {"a_0", "a_1", "a_2", "b_0", "b_1", "single"}
    assert read_splits(path, cases) == splits


def test_held_out_cases_stand_in_the_file_and_disturb_nobody(tmp_path):
    path = tmp_path / "splits.json"
    split = Split(train=("x", "y"), val=("z",))
    write_splits(path, [split], make_cases("x", "y", "z"), test=["held_out"])
    assert json.loads(path.read_text()) == [{"train": ["x", "y"], "val": ["z"], "test": ["held_out"]}]
    assert read_splits(path, make_cases("x", "y", "z")) == (split,)


def test_files_of_nnunet_are_read(tmp_path):
    path = tmp_path / "splits_final.json"
    path.write_text(json.dumps([{"train": ["x", "y"], "val": ["z"]}]))
    assert read_splits(path, make_cases("x", "y", "z")) == (Split(train=("x", "y"), val=("z",)),)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "expected a list"),
        ([], "expected a list"),
        ([{"train": ["x"]}], "expected a list"),
        ([{"train": ["x", "q"], "val": ["y"]}], "fold 0: unknown cases in train: q"),
        ([{"train": ["x"], "val": []}], "fold 0: no cases in val"),
        ([{"train": ["x", "x"], "val": ["y"]}], "fold 0: twice in train: x"),
        ([{"train": ["x", "y"], "val": ["y"]}], "in train and in val: y"),
        ([{"train": ["x", "v_0"], "val": ["v_1"]}], "in train and in val: v"),
    ],
)
def test_bad_files_are_refused(tmp_path, content, message):
    path = tmp_path / "splits.json"
    path.write_text(json.dumps(content))
    with pytest.raises(PlanError) as caught:
        read_splits(path, [*make_cases("x", "y"), make_video("v", 2)])
    assert message in str(caught.value) and str(path) in str(caught.value)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(PlanError, match="splits file not found"):
        read_splits(tmp_path / "splits.json", [])


def test_find_split_by_number_or_all():
    splits = make_splits(list("abcdef"))
    where = Path("splits.json")
    assert find_split(splits, 3, where=where) is find_split(splits, "3", where=where) is splits[3]
    everything = tuple("abcdef")
    assert find_split(splits, "all", where=where) == Split(train=everything, val=everything)
    for unknown in (5, -1):
        with pytest.raises(PlanError, match="has folds 0 to 4"):
            find_split(splits, unknown, where=where)


CASES = {f"case{n}": [name for name, every in (("a", 1), ("b", 2), ("c", 7)) if n % every == 0] for n in range(30)}


@pytest.mark.parametrize("shots", [1, 3, 8])
@pytest.mark.parametrize("seed", range(3))
def test_every_class_has_as_many_shots_as_there_can_be(shots, seed):
    chosen = choose_shots(CASES, shots, seed=seed)
    assert list(chosen) == sorted(set(chosen) & set(CASES))
    for name, there in (("a", 30), ("b", 15), ("c", 5)):
        assert sum(name in CASES[case] for case in chosen) >= min(shots, there)
    for left_out in chosen:  # none is there for nothing
        others = [case for case in chosen if case != left_out]
        assert any(sum(name in CASES[case] for case in others) < shots for name in CASES[left_out])
    backwards = {case: CASES[case][::-1] for case in reversed(CASES)}
    assert choose_shots(backwards, shots, seed=seed) == chosen


def test_shots_are_drawn_by_the_seed_and_cases_without_classes_never():
    assert len({choose_shots(CASES, 2, seed=seed) for seed in range(10)}) > 1
    assert choose_shots({"x": ["a"], "empty": []}, 5, seed=0) == ("x",)
    assert choose_shots({"empty": []}, 5, seed=0) == ()
