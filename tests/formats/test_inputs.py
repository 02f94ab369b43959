"""Which cases an input folder holds."""

import json
from pathlib import Path

import numpy as np
import pytest

from masam_auto.core.dataset import DatasetDescription, parse_description
from masam_auto.core.errors import DatasetError
from masam_auto.core.geometry import Geometry
from masam_auto.formats.inputs import find_inputs
from tests import dicom_files


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


def test_frames_without_a_channel_number(tmp_path: Path) -> None:
    folder = touch(tmp_path / "in", "frame010.png", "frame000.png", "frame002.png")
    assert frames(folder, video()) == {"frame": ("frame000", "frame002", "frame010")}


def test_video_files_are_cases(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = touch(tmp_path / "in", "b.MP4", "a.1.avi", "notes.txt")
    assert found(folder, video()) == {"a.1": [["a.1.avi"]], "b": [["b.MP4"]]}
    assert found(folder / "b.MP4", video()) == {"b": [["b.MP4"]]}
    assert found(folder, description(ending=".png")) == {"a.1": [["a.1.avi"]], "b": [["b.MP4"]]}
    with pytest.raises(DatasetError, match=r"a\.1\.avi: this model was trained on \.nii\.gz volumes"):
        find_inputs(folder, description())
    touch(folder, "a.1.mov")
    with pytest.raises(DatasetError, match=r"a\.1\.avi, a\.1\.mov share a name"):
        find_inputs(folder, video())
    (folder / "a.1.mov").unlink()
    touch(folder, "x_0000.png", "y_0000.tif", "notes.txt")
    assert list(found(folder, video())) == ["x"]
    assert "left out, because they are not .png: a.1.avi, b.MP4, y_0000.tif\n" in caplog.text
    (folder / "y_0000.tif").unlink()
    touch(folder, "x_0000.png").joinpath("x_0000.png").rename(folder / "x_0000.jpg")
    with pytest.raises(DatasetError, match=r"several kinds \(\.jpg, \.mp4\)"):
        find_inputs(folder, video())


STORED = np.arange(4 * 5 * 6).reshape(4, 5, 6)
GRID = Geometry(shape=(4, 5, 6), spacing=(2.0, 1.0, 1.0))


def series(source: Path, made_for: DatasetDescription) -> dict[str, list[int]]:
    """Identifier -> number of files of each channel."""
    cases = find_inputs(source, made_for)
    assert all(case.images[0] == tuple(files[0] for files in case.series) for case in cases)
    return {case.identifier: [len(files) for files in case.series] for case in cases}


def test_dicom_series_are_called_after_their_folders(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "study 1"
    dicom_files.write_series(root / "P1" / "CT thin", STORED, GRID, name="a")
    dicom_files.write_series(root / "P1" / "scout", STORED, GRID, name="b", order=[0])
    dicom_files.write_series(root / "P2_0001", STORED, GRID, name="c")
    assert series(root, description()) == {"P1_CT_thin": [4], "P2_0001": [4]}
    assert "left out: " in caplog.text and "1 slice only" in caplog.text
    assert series(root / "P2_0001", description()) == {"P2_0001": [4]}
    assert series(root / "P2_0001" / "IM0002", description()) == {"P2_0001": [4]}


def test_several_dicom_series_in_a_folder(tmp_path: Path) -> None:
    for name, number in (("a", 3), ("b", 4), ("c", 4)):
        for file in dicom_files.write_series(tmp_path / name, STORED, GRID, name=name, number=number):
            (tmp_path / "in").mkdir(exist_ok=True)
            file.rename(tmp_path / "in" / f"{name}{file.name}.dcm")
    names = list(series(tmp_path / "in", description()))
    assert names[0] == "in_series3" and all(name.startswith("in_series4_") for name in names[1:]) and len(names) == 3
    one = series(tmp_path / "in" / "aIM0001.dcm", description())
    assert one == {"in": [4]}


def test_folders_with_a_channel_number(tmp_path: Path) -> None:
    for channel in range(2):
        dicom_files.write_series(tmp_path / f"p_{channel:04d}", STORED, GRID, name=f"p{channel}")
    assert series(tmp_path, description(2)) == {"p": [4, 4]}
    with pytest.raises(DatasetError, match=r"case p has the DICOM folders p_0000, p_0001; the model takes 3 channels"):
        find_inputs(tmp_path, description(3))
    dicom_files.write_series(tmp_path / "q", STORED, GRID, name="q")
    with pytest.raises(DatasetError, match=r"/q, series 1 .*the model takes 2 channels .*called ID_0000, ID_0001"):
        find_inputs(tmp_path, description(2))


def test_one_channel_and_folders_with_its_number(tmp_path: Path) -> None:
    dicom_files.write_series(tmp_path / "p_0000", STORED, GRID, name="p")
    dicom_files.write_series(tmp_path / "q_0000", STORED, GRID, name="q")
    assert series(tmp_path, description()) == {"p": [4], "q": [4]}
    dicom_files.write_series(tmp_path / "p_0001", STORED, GRID, name="r")  # another examination, perhaps
    assert series(tmp_path, description()) == {"p_0000": [4], "p_0001": [4], "q_0000": [4]}


def test_dicom_without_a_volume_and_beside_images(tmp_path: Path) -> None:
    dicom_files.write_series(tmp_path / "in", STORED, GRID, order=[0, 1])
    with pytest.raises(DatasetError, match=r"no DICOM series of a volume \(left out: .*2 slices only"):
        find_inputs(tmp_path / "in", description())
    with pytest.raises(DatasetError, match=r"IM0000: no DICOM series of a volume \(left out: .*2 slices only"):
        find_inputs(tmp_path / "in" / "IM0000", description())
    touch(tmp_path / "in", "preview.png")
    with pytest.raises(DatasetError, match=r"several kinds \(\.dcm, \.png\)"):
        find_inputs(tmp_path / "in", description())


def test_endings_in_upper_case_are_endings(tmp_path: Path) -> None:
    folder = touch(tmp_path / "in", "a_0000.nii.gz", "b_0000.NII.GZ")
    assert found(folder, description()) == {"a": [["a_0000.nii.gz"]], "b": [["b_0000.NII.GZ"]]}
    touch(folder, "a_0000.NII.gz")
    with pytest.raises(DatasetError, match="differ only in upper and lower case"):
        find_inputs(folder, description())


def test_images_of_another_ending_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = touch(tmp_path / "in", "a_0000.nii.gz", "b_0000.nii", "notes.txt")
    assert list(found(folder, description())) == ["a"]
    assert "left out, because they are not .nii.gz: b_0000.nii\n" in caplog.text


def test_images_that_differ_by_the_case_of_their_ending_alone(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "a.NII.GZ"):
        (tmp_path / name).touch()
    if len(list(tmp_path.iterdir())) == 1:
        pytest.skip("this file system does not tell upper from lower case")
    with pytest.raises(DatasetError, match="differ only in upper and lower case"):
        find_inputs(tmp_path, description())


def test_a_folder_of_folders_is_not_called_empty(tmp_path: Path) -> None:
    (tmp_path / "deeper").mkdir()
    with pytest.raises(DatasetError, match=r"\(there: deeper/\)"):
        find_inputs(tmp_path, description())
