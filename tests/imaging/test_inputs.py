"""Which cases an input folder holds."""

import json
from pathlib import Path

import pytest

from masam_auto.core.dataset import DatasetDescription, parse_description
from masam_auto.core.errors import DatasetError
from masam_auto.imaging.inputs import find_inputs


def description(channels: int = 1, ending: str = ".nii.gz", **extra: object) -> DatasetDescription:
    raw = {
        "channel_names": {str(i): f"channel{i}" for i in range(channels)},
        "labels": {"background": 0, "organ": 1},
        "file_ending": ending,
    }
    return parse_description(raw | extra, name="Dataset001_Toy")


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def found(source: Path, made_for: DatasetDescription) -> dict[str, list[list[str]]]:
    return {
        case.identifier: [[p.name for p in frame] for frame in case.images] for case in find_inputs(source, made_for)
    }


def test_nnunet_naming(tmp_path: Path) -> None:
    folder = touch(
        tmp_path / "in", "b_0000.nii.gz", "b_0001.nii.gz", "a_0000.nii.gz", "a_0001.nii.gz", "x.txt", ".a.nii.gz"
    )
    assert found(folder, description(2)) == {
        "a": [["a_0000.nii.gz", "a_0001.nii.gz"]],
        "b": [["b_0000.nii.gz", "b_0001.nii.gz"]],
    }


def test_plain_single_channel_images_and_dots_in_names(tmp_path: Path) -> None:
    folder = touch(tmp_path / "in", "1.2.3.nii.gz", "patient.nii.gz")
    assert found(folder, description()) == {"1.2.3": [["1.2.3.nii.gz"]], "patient": [["patient.nii.gz"]]}


def test_another_ending_is_taken_where_it_is_the_only_one(tmp_path: Path) -> None:
    folder = touch(tmp_path / "in", "a_0000.nrrd", "notes.txt")
    assert found(folder, description()) == {"a": [["a_0000.nrrd"]]}
    touch(folder, "b_0000.mha")
    with pytest.raises(DatasetError, match=r"several kinds \(\.mha, \.nrrd\)"):
        find_inputs(folder, description())


def test_a_single_file_brings_its_channels(tmp_path: Path) -> None:
    folder = touch(tmp_path / "in", "a_0000.nii.gz", "a_0001.nii.gz", "b_0000.nii.gz")
    assert found(folder / "a_0000.nii.gz", description(2)) == {"a": [["a_0000.nii.gz", "a_0001.nii.gz"]]}
    touch(folder, "plain.nii.gz")
    assert found(folder / "plain.nii.gz", description()) == {"plain": [["plain.nii.gz"]]}


@pytest.mark.parametrize(
    ("names", "channels", "message"),
    [
        ([], 1, "the folder is empty"),
        (["readme.txt"], 1, "no images like ID_0000.nii.gz or ID.nii.gz .*readme.txt"),
        (["a_0000.nii.gz", "a.nii.gz"], 1, "may be segmentations"),
        (["a_0000.nii.gz", "a_0002.nii.gz"], 3, "case a has the channel files 0000, 0002; the model takes 3"),
        (["a_0000.nii.gz", "a_0001.nii.gz"], 1, "case a has 2 channel files; the model takes 1 .*channel0"),
        (["frame_0001.nii.gz", "frame_0002.nii.gz"], 1, "add _0000 to every name"),
    ],
)
def test_names_that_make_no_sense(tmp_path: Path, names: list[str], channels: int, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        find_inputs(touch(tmp_path / "in", *names), description(channels))


def test_missing_and_unknown_files(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="input not found"):
        find_inputs(tmp_path / "nowhere", description())
    with pytest.raises(DatasetError, match="cannot read this kind of file"):
        find_inputs(touch(tmp_path / "in", "a.txt") / "a.txt", description())


def video(**sequences: list[str]) -> DatasetDescription:
    return description(ending=".png", sequences=sequences or {"train": ["t_frame0"]})


def frames(source: Path, made_for: DatasetDescription) -> dict[str, tuple[str, ...]]:
    return {case.identifier: case.frames for case in find_inputs(source, made_for)}


def test_frames_are_grouped_by_their_names_in_number_order(tmp_path: Path) -> None:
    names = [f"s{s}_frame{f}_0000.png" for s in (1, 2) for f in (2, 10, 1)]
    folder = touch(tmp_path / "in", *names, "still_0000.png")
    assert frames(folder, video()) == {
        "s1_frame": ("s1_frame1", "s1_frame2", "s1_frame10"),
        "s2_frame": ("s2_frame1", "s2_frame2", "s2_frame10"),
        "still": ("still",),
    }


def test_sequences_of_the_training_data_go_before_names(tmp_path: Path) -> None:
    folder = touch(tmp_path / "in", "x1_0000.png", "y7_0000.png", "z3_0000.png")
    made_for = video(clip=["y7", "x1"], other=["gone1", "gone2"])
    assert frames(folder, made_for) == {"clip": ("y7", "x1"), "z": ("z3",)}


def test_sequences_file_goes_before_all(tmp_path: Path) -> None:
    folder = touch(tmp_path / "in", "a1_0000.png", "a2_0000.png")
    (folder / "sequences.json").write_text(json.dumps({"mine": ["a2", "a1"]}))
    assert frames(folder, video()) == {"mine": ("a2", "a1")}
    (folder / "sequences.json").write_text(json.dumps({"mine": "a2"}))
    with pytest.raises(DatasetError, match=r"sequences.json"):
        find_inputs(folder, video())


def test_models_of_volumes_see_no_sequences(tmp_path: Path) -> None:
    folder = touch(tmp_path / "in", "case_001_0000.nii.gz", "case_002_0000.nii.gz")
    assert list(frames(folder, description())) == ["case_001", "case_002"]
