"""core.dataset: dataset.json and the files of the raw folder, as nnU-Net has them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from masam_auto.core.dataset import (
    Case,
    Dataset,
    DatasetDescription,
    files_by_name,
    find_images,
    find_raw_folder,
    find_training_cases,
    group_sequences,
    open_dataset,
    parse_description,
    parse_sequences,
    read_description,
)
from masam_auto.core.errors import DatasetError
from masam_auto.core.paths import Paths

GOOD: dict[str, Any] = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "organ": 1},
    "numTraining": 1,
    "file_ending": ".nii.gz",
}


def parsed(**changes: Any) -> DatasetDescription:
    raw = {key: value for key, value in (GOOD | changes).items() if value is not None}
    return parse_description(raw, name="Dataset001_Toy")


def paths(folder: Path) -> Paths:
    return Paths(raw=folder, preprocessed=folder, results=folder, weights=folder)


def files(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def bare_dataset(folder: Path, *names: str, **changes: Any) -> Dataset:
    root = folder / "Dataset001_Toy"
    files(root, *names)
    root.mkdir(exist_ok=True)
    (root / "dataset.json").write_text(json.dumps(GOOD | changes))
    return open_dataset(paths(folder), "1")


def test_a_good_description() -> None:
    description = parsed(channel_names={"1": "MR", "0": "CT", "10": "c10", **{str(i): f"c{i}" for i in range(2, 10)}})
    assert description.channel_names[:2] == ("CT", "MR") and description.channel_names[10] == "c10"
    assert description.num_channels == 11 and not description.is_video and description.reader is None
    assert parsed(channel_names=None, modality={"0": "MRI"}).channel_names == ("MRI",)
    assert parsed(overwrite_image_reader_writer="SimpleITKIO").reader == "SimpleITKIO"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": None, "file_ending": None, "channel_names": None}, "missing labels, file_ending, channel_names"),
        ({"channel_names": {}}, "must map channel numbers to names"),
        ({"channel_names": ["CT"]}, "must map channel numbers to names"),
        ({"channel_names": {"CT": "0"}}, "It looks reversed"),
        ({"channel_names": {"CT": "a"}}, "must have numbers as keys"),
        ({"channel_names": {"0": "CT", "2": "MR"}}, "numbered from 0 without gaps"),
        ({"channel_names": {"1" * 5000: "CT"}}, "must have numbers as keys"),
        ({"channel_names": {str(i): "CT" for i in range(1001)}}, "has 1001 channels; the limit is 1000"),
        (
            {"labels": {"background": 0} | {f"{i}": i for i in range(1, 1001)}},
            "has 1001 classes; the limit is 1000",
        ),
        ({"labels": {"background": 0, "a": "1" * 5000}}, 'label "a" must be a non-negative whole number'),
        ({"labels": {"background": 0, "a": list(range(1, 1001))}, "regions_class_order": [1]}, "has 1001 classes"),
        ({"channel_names": {"0": 5}}, "must map numbers to names"),
        ({"channel_names": {"0": "CT\x1b[2J"}}, r"channel .*x1b.* contains a line break or control character"),
        ({"labels": {"background": 0, "a\nb": 1}}, "label .* contains a line break or control character"),
        ({"channel_names": {"\u00b2": "CT"}}, "must have numbers as keys"),
        ({"file_ending": "nii.gz"}, "must be one of .nii.gz"),
        ({"file_ending": 3}, "must be one of .nii.gz"),
        ({"overwrite_image_reader_writer": 3}, "must be a name"),
        ({"regions_class_order": "1"}, "must be a list of label values"),
        ({"sequences": ["a"]}, "must map each video to the list"),
        ({"sequences": {"a": []}}, "must map each video to the list"),
        ({"sequences": {"a": ["f", "f"]}}, 'frame "f" appears twice'),
        ({"sequences": {"a": ["f"], "b": ["f"]}}, r'frame "f" appears twice in "sequences" \(in "b"\)'),
    ],
)
def test_what_is_wrong_in_dataset_json_is_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(DatasetError, match=words):
        parsed(**changes)


def test_unreadable_descriptions(tmp_path: Path) -> None:
    file = tmp_path / "dataset.json"
    with pytest.raises(DatasetError, match=r"is missing. Every raw data set needs"):
        read_description(file, name="D")
    for content, words in (
        ("{", "is not valid JSON"),
        ("[]", "must be a JSON object"),
        ('{"labels": {"a": 1, "a": 2}}', '"a" appears twice in the same object'),
        ("{}", "missing labels"),
    ):
        file.write_text(content)
        with pytest.raises(DatasetError, match=words) as caught:
            read_description(file, name="D")
        assert str(file) in str(caught.value)
    with pytest.raises(DatasetError, match="cannot be read"):
        read_description(tmp_path, name="D")


def test_images_are_found_in_channel_order(tmp_path: Path) -> None:
    files(tmp_path, "b_x_0001.nii.gz", "b_x_0000.nii.gz", "a_0000.nii.gz", "a_0000.nii", ".b_0000.nii.gz", "c.nii.gz")
    found = find_images(tmp_path, ".nii.gz")
    assert list(found) == ["a", "b_x"]
    assert [path.name for path in found["b_x"]] == ["b_x_0000.nii.gz", "b_x_0001.nii.gz"]
    with pytest.raises(DatasetError, match="folder not found"):
        find_images(tmp_path / "nowhere", ".nii.gz")


def test_cases_of_the_folders(tmp_path: Path) -> None:
    dataset = bare_dataset(tmp_path, "imagesTr/a_0000.nii.gz", "imagesTr/b_0000.nii.gz", "labelsTr/b.nii.gz")
    assert dataset.name == "Dataset001_Toy" and [case.identifier for case in dataset.cases] == ["a", "b"]
    assert dataset.cases[0].labels is None
    assert dataset.cases[1].labels == (dataset.folder / "labelsTr" / "b.nii.gz",)
    assert not dataset.cases[0].is_sequence
    with pytest.raises(DatasetError, match=r"like ID_0000.png \(there: a_0000.nii.gz, b_0000.nii.gz\).*file_ending"):
        bare_dataset(tmp_path, file_ending=".png")


def test_cases_of_a_mapping(tmp_path: Path) -> None:
    outside = tmp_path / "elsewhere" / "l.nii.gz"
    entry = {"images": ["../x/i0.nii.gz", "i1.nii.gz"], "label": str(outside)}
    dataset = bare_dataset(tmp_path, dataset={"b": entry, "a": entry})
    assert [case.identifier for case in dataset.cases] == ["a", "b"]
    case = dataset.cases[0]
    assert case.images == ((dataset.folder / "../x/i0.nii.gz", dataset.folder / "i1.nii.gz"),)
    assert case.labels == (outside,)
    mappings: list[Any] = [[], {"a": []}, {"a": {"images": "i", "label": "l"}}, {"a": {"images": [], "label": "l"}}]
    for bad in mappings:
        with pytest.raises(DatasetError, match='"dataset"'):
            bare_dataset(tmp_path, dataset=bad)
    with pytest.raises(DatasetError, match=r"no training images .*\(there: nothing\)"):
        bare_dataset(tmp_path, dataset={})


def test_sequences_join_frames_in_their_order(tmp_path: Path) -> None:
    names = [f"imagesTr/{name}_0000.png" for name in ("f1", "f2", "f10", "single")]
    labels = [f"labelsTr/{name}.png" for name in ("f1", "f2", "f10")]
    order = {"clip": ["f1", "f2", "f10"], "test_clip": ["g1", "g2"]}
    dataset = bare_dataset(tmp_path, *names, *labels, file_ending=".png", sequences=order)
    assert [case.identifier for case in dataset.cases] == ["clip", "single"]
    clip = dataset.cases[0]
    assert clip.is_sequence and clip.frames == ("f1", "f2", "f10") and dataset.description.is_video
    assert [images[0].name for images in clip.images] == ["f1_0000.png", "f2_0000.png", "f10_0000.png"]
    assert clip.labels is not None and [path.name for path in clip.labels] == ["f1.png", "f2.png", "f10.png"]


BAD_NAMES = ["../x", "a/b", "a\\b", ".hidden", "", "a\0", "a\x1b[2J", "a\nb", "a\udc80", "a\u2028"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_identifiers_that_would_leave_their_folder_are_refused(name: str) -> None:
    with pytest.raises(DatasetError, match="cannot name a case"):
        Case(identifier=name, frames=(name,), images=())
    with pytest.raises(DatasetError, match="cannot name a case"):
        Case(identifier="clip", frames=("f1", name), images=())
    for sequences in ({name: ["f1"]}, {"clip": ["f1", name]}):
        with pytest.raises(DatasetError, match="cannot name a case") as caught:
            parse_sequences(sequences)
        assert str(caught.value).isascii() and str(caught.value).isprintable()


@pytest.mark.parametrize(
    "ending", [".x/../../victim.nii.gz", "/../a.nii.gz", "nii.gz", ".dcm", "", 3, None, ".nii.gz\n"]
)
def test_an_ending_is_one_of_an_image(ending: object) -> None:
    plain = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "organ": 1}, "file_ending": ending}
    with pytest.raises(DatasetError, match=r'"file_ending" must be one of \.nii\.gz, \.nii, .*Correct it'):
        parse_description(plain, name="Dataset001_Toy")
    assert parse_description({**plain, "file_ending": ".NII.GZ"}, name="D").file_ending == ".NII.GZ"


def test_a_folder_of_the_same_name_elsewhere_does_not_shadow_the_raw_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("raw", "preprocessed"):
        (tmp_path / place / "Dataset001_Toy").mkdir(parents=True)
        (tmp_path / place / "Dataset001_Toy" / "dataset.json").write_text("{}")
    monkeypatch.chdir(tmp_path / "preprocessed")
    assert find_raw_folder(paths(tmp_path / "raw"), "Dataset001_Toy") == tmp_path / "raw" / "Dataset001_Toy"
    with pytest.raises(DatasetError, match="not found"):
        find_raw_folder(paths(tmp_path / "nowhere"), "Dataset001_Toy")


def test_a_sequence_needs_all_its_frames() -> None:
    description = parsed(sequences={"clip": ["f1", "f2"]})
    single = Case(identifier="f1", frames=("f1",), images=((Path("f1_0000.png"),),))
    with pytest.raises(DatasetError, match='sequence "clip" names frames without an image: f2'):
        group_sequences({"f1": single}, description)
    other = Case(identifier="f2", frames=("f2",), images=((Path("f2_0000.png"),),), labels=(Path("f2.png"),))
    (clip,) = group_sequences({"f1": single, "f2": other}, description)
    assert clip.labels is None, "half-labelled videos have no labels; preprocessing.verify names the frame"


def test_data_sets_are_found_by_number_name_and_path(
    tmp_path: Path, raw_dataset: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = raw_dataset(cases=1)
    for identifier in ("1", "001", "Dataset001_Toy", str(folder)):
        assert find_raw_folder(paths(folder.parent), identifier) == folder
    monkeypatch.chdir(folder)
    assert find_raw_folder(paths(tmp_path), ".") == folder
    with pytest.raises(DatasetError, match="data set folder not found"):
        find_raw_folder(paths(tmp_path), str(tmp_path / "nowhere"))
    (tmp_path / "misnamed").mkdir()
    with pytest.raises(DatasetError, match="must be called DatasetXXX_Name"):
        find_raw_folder(paths(tmp_path), str(tmp_path / "misnamed"))


def test_groups_name_the_cases_of_sites() -> None:
    assert parsed(groups={"A": ["x", "y"], "B": []}).groups == {"A": ("x", "y"), "B": ()}
    assert parsed().groups == {}
    for wrong in (["x"], {"A": "x"}, {"A": [1]}):
        with pytest.raises(DatasetError, match='"groups" must map each group to the list of its cases'):
            parsed(groups=wrong)


def test_files_that_differ_by_the_case_of_their_ending_alone(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").touch()
    (tmp_path / "b.Nii.GZ").touch()
    (tmp_path / ".c.nii.gz").touch()
    assert files_by_name(tmp_path, ".nii.gz") == {"a": tmp_path / "a.nii.gz", "b": tmp_path / "b.Nii.GZ"}
    (tmp_path / "a.NII.GZ").touch()
    if len(list(tmp_path.iterdir())) == 3:
        pytest.skip("this file system does not tell upper from lower case")
    with pytest.raises(DatasetError, match=r"a\.NII\.GZ and a\.nii\.gz differ|a\.nii\.gz and a\.NII\.GZ differ"):
        files_by_name(tmp_path, ".nii.gz")


def test_labels_are_found_however_their_ending_is_spelt_and_never_two(tmp_path: Path) -> None:
    dataset = bare_dataset(tmp_path, "imagesTr/a_0000.nii.gz", "labelsTr/a.Nii.Gz")
    (case,) = dataset.cases
    assert case.labels is not None and case.labels[0].name == "a.Nii.Gz"
    (dataset.folder / "labelsTr" / "a.nii.gz").touch()
    if len(list((dataset.folder / "labelsTr").iterdir())) == 2:
        with pytest.raises(DatasetError, match="differ only in upper and lower case"):
            find_training_cases(dataset.folder, dataset.description)
