"""Decathlon tasks: one channel and four, the pancreas protocol of the paper, given folds."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from dataset_conversion.msd import PANCREAS_SPLITS, find_msd
from masam_auto.core.errors import CaseErrors, DatasetError, PlanError
from masam_auto.formats.io import read_image, read_labels
from tests.dataset_conversion.downloads import make_image, make_labels, write_nifti


@pytest.fixture
def make_task(tmp_path: Path) -> Callable[..., Path]:
    """Factory of tasks as their .tar unpacks, with macOS's "._" files in every folder."""

    def make(name: str, modality: list[str], names: list[str], *, training: list[str], test: list[str]) -> Path:
        folder = tmp_path / "download" / name
        channels = len(modality) if len(modality) > 1 else 0
        for index, identifier in enumerate(training + test):
            part = "imagesTr" if identifier in training else "imagesTs"
            write_nifti(folder / part / f"{identifier}.nii.gz", make_image(index, channels=channels))
            (folder / part / f"._{identifier}.nii.gz").write_bytes(b"\0\5\x16\7")
        for identifier in training:
            write_nifti(folder / "labelsTr" / f"{identifier}.nii.gz", make_labels(range(1, len(names) + 1)))
        description: dict[str, Any] = {
            "name": name,
            "licence": "CC-BY-SA 4.0",
            "tensorImageSize": "4D" if channels else "3D",
            "modality": {str(number): text for number, text in enumerate(modality)},
            "labels": {str(value): text for value, text in enumerate(["background", *names])},
            "numTraining": len(training),
            "numTest": len(test),
            "training": [{"image": f"./imagesTr/{i}.nii.gz", "label": f"./labelsTr/{i}.nii.gz"} for i in training],
            "test": [f"./imagesTs/{i}.nii.gz" for i in test],
        }
        (folder / "dataset.json").write_text(json.dumps(description))
        (folder / "._dataset.json").write_bytes(b"\0\5\x16\7")
        return folder

    return make


@pytest.fixture
def hippocampus(make_task: Callable) -> Path:
    training = [f"hippocampus_{number:03d}" for number in (1, 3, 4, 6, 7, 8)]
    return make_task(
        "Task04_Hippocampus", ["MRI"], ["Anterior", "Posterior"], training=training, test=["hippocampus_002"]
    )


@pytest.fixture
def pancreas(make_task: Callable) -> Path:
    (fold,) = json.loads(PANCREAS_SPLITS.read_text())
    chosen = [*fold["train"][:4], *fold["val"][:2], *fold["test"][:3]]
    return make_task("Task07_Pancreas", ["CT"], ["pancreas", "cancer"], training=chosen, test=["pancreas_002"])


def test_one_channel(hippocampus: Path, converted: Callable, verified: Callable) -> None:
    folder, record = converted(find_msd(hippocampus.parent))
    assert folder.name == "Dataset004_Hippocampus"
    dataset = verified(folder)
    assert len(dataset.cases) == 6
    assert dataset.description.labels.foreground == {"Anterior": (1,), "Posterior": (2,)}
    assert dataset.description.channel_names == ("MRI",)
    assert [path.name for path in (folder / "imagesTs").iterdir()] == ["hippocampus_002_0000.nii.gz"]
    assert not (folder / "labelsTs").exists()
    assert record.case_notes == []
    assert len(json.loads((folder / "splits.json").read_text())) == 5


def test_four_channels_are_split(make_task: Callable, converted: Callable, verified: Callable) -> None:
    names = ["edema", "non-enhancing tumor", "enhancing tumour"]
    task = make_task(
        "Task01_BrainTumour",
        ["FLAIR", "T1w", "t1gd", "T2w"],
        names,
        training=["BRATS_001", "BRATS_002"],
        test=["BRATS_485"],
    )
    path = task / "imagesTr" / "BRATS_001.nii.gz"
    image = nibabel.load(path)
    image.header.set_slope_inter(0.5, -3)
    nibabel.save(nibabel.Nifti1Image(np.asanyarray(image.dataobj), image.affine, image.header), path)
    folder, _ = converted(find_msd(task))
    assert verified(folder).description.channel_names == ("FLAIR", "T1w", "t1gd", "T2w")
    whole, geometry = read_image(path, channels=4)
    for channel in range(4):
        written, grid = read_image(folder / "imagesTr" / f"BRATS_001_{channel:04d}.nii.gz")
        assert np.array_equal(written[0], whole[channel])
        assert grid == geometry
    assert nibabel.load(folder / "imagesTr" / "BRATS_002_0003.nii.gz").get_data_dtype() == np.int16
    with pytest.raises(
        DatasetError, match="needs one label called tumour or cancer, but the labels are background, edema"
    ):
        find_msd(task, tumor_only=True)


def test_wrong_number_of_channels_is_named(hippocampus: Path, converted: Callable) -> None:
    description = json.loads((hippocampus / "dataset.json").read_text())
    description["modality"] = {"0": "T2", "1": "ADC"}
    (hippocampus / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(CaseErrors, match=r"hippocampus_001\.nii\.gz: has 1 channels, but 2 are expected"):
        converted(find_msd(hippocampus))


def test_pancreas_tumour_protocol_of_the_paper(pancreas: Path, converted: Callable) -> None:
    (fold,) = json.loads(PANCREAS_SPLITS.read_text())
    description = json.loads((pancreas / "dataset.json").read_text())
    here = [Path(entry["image"]).name[:-7] for entry in description["training"]]
    description["training"] = [{"image": f"./imagesTr/{name}.nii.gz"} for names in fold.values() for name in names]
    (pancreas / "dataset.json").write_text(json.dumps(description))
    folder, record = converted(find_msd(pancreas, tumor_only=True), allow_missing=True)
    assert list(record.cases) == here
    assert json.loads((folder / "splits.json").read_text()) == [
        {side: [name for name in names if name in here] for side, names in fold.items()}
    ]


def test_shipped_split_is_the_papers() -> None:
    (fold,) = json.loads(PANCREAS_SPLITS.read_text())
    assert {side: len(names) for side, names in fold.items()} == {"train": 196, "val": 28, "test": 57}
    assert len({name for names in fold.values() for name in names}) == 281


def test_tumour_alone_with_given_splits(pancreas: Path, converted: Callable, tmp_path: Path) -> None:
    listed = [Path(e["image"]).name[:-7] for e in json.loads((pancreas / "dataset.json").read_text())["training"]]
    splits = tmp_path / "splits_final.json"
    splits.write_text(json.dumps([{"train": listed[:4], "val": listed[4:6], "test": listed[6:]}]))
    folder, record = converted(find_msd(pancreas, tumor_only=True, splits=splits))
    assert folder.name == "Dataset007_PancreasTumour"
    labels, _ = read_labels(folder / "labelsTr" / f"{listed[0]}.nii.gz")
    original, _ = read_labels(pancreas / "labelsTr" / f"{listed[0]}.nii.gz")
    assert np.array_equal(labels == 1, original == 2)
    assert labels.max() == 1
    assert {path.name for path in (folder / "labelsTs").iterdir()} == {f"{name}.nii.gz" for name in listed[6:]}
    assert len(list((folder / "imagesTs").iterdir())) == 3
    (fold,) = json.loads((folder / "splits.json").read_text())
    assert fold == {"train": listed[:4], "val": listed[4:6], "test": listed[6:]}
    assert record.notes == ("1 test images without labels left out: the splits hold out labelled ones",)


@pytest.mark.parametrize(
    ("folds", "words"),
    [
        ([{"train": ["hippocampus_001"], "val": ["hippocampus_099"]}], "unknown cases in val: hippocampus_099"),
        ([{"train": ["hippocampus_001"], "val": ["hippocampus_003"], "test": ["x"]}], "unknown cases in test: x"),
        ([{"train": ["hippocampus_001"], "val": ["hippocampus_003"], "test": ["hippocampus_003"]}],
         "in test and in train or val"),
        ([{"train": ["hippocampus_001"], "val": ["hippocampus_003"], "test": ["hippocampus_004"]},
          {"train": ["hippocampus_001"], "val": ["hippocampus_003"]}], 'different "test" cases'),
        ([{"train": ["hippocampus_001"], "val": ["hippocampus_003"], "test": 5}], '"test" must be a list of cases'),
        ([{"train": ["hippocampus_001"], "val": ["hippocampus_003"], "test": [["x"]]}],
         '"test" must be a list of cases'),
        ({"train": []}, "expected a list"),
    ],
)  # fmt: skip
def test_splits_that_do_not_fit(hippocampus: Path, tmp_path: Path, folds: Any, words: str) -> None:
    path = tmp_path / "splits.json"
    path.write_text(json.dumps(folds))
    with pytest.raises((DatasetError, PlanError), match=words):
        find_msd(hippocampus, splits=path)


@pytest.mark.parametrize(("place", "download"), [(".", Path()), ("imagesTr", Path(".."))])
def test_the_folder_that_one_is_in_has_its_own_name(
    hippocampus: Path, monkeypatch: pytest.MonkeyPatch, place: str, download: Path
) -> None:
    monkeypatch.chdir(hippocampus / place)
    (conversion,) = find_msd(download)
    assert conversion.folder_name == "Dataset004_Hippocampus"
    assert conversion.about["description"].endswith(", Task04_Hippocampus")


def test_missing_cases(hippocampus: Path, converted: Callable, tmp_path: Path) -> None:
    (hippocampus / "labelsTr" / "hippocampus_003.nii.gz").unlink()
    (hippocampus / "imagesTs" / "hippocampus_002.nii.gz").unlink()
    splits = tmp_path / "splits.json"
    splits.write_text(json.dumps([{"train": ["hippocampus_001", "hippocampus_003"], "val": ["hippocampus_004"]}]))
    with pytest.raises(DatasetError, match=r"labelsTr/hippocampus_003\.nii\.gz: listed(.|\n)*imagesTs/hippocampus_002"):
        converted(find_msd(hippocampus))
    folder, _ = converted(find_msd(hippocampus, splits=splits), allow_missing=True)
    (fold,) = json.loads((folder / "splits.json").read_text())
    assert fold == {"train": ["hippocampus_001"], "val": ["hippocampus_004"]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "truncated"),
        ("[]", "Expected `object`"),
        ('{"labels": {}}', "missing required field `modality`"),
        ('{"modality": {}, "labels": {}, "training": [], "test": []}', "length >= 1"),
        ('{"modality": {"0": "MRI"}, "labels": {"liver": 1}, "training": [], "test": []}', "Expected `int`"),
    ],
)
def test_other_descriptions_are_refused(hippocampus: Path, content: str, words: str) -> None:
    (hippocampus / "dataset.json").write_text(content)
    with pytest.raises(DatasetError, match=rf"dataset\.json: is not in the Decathlon's format \(.*{words}"):
        find_msd(hippocampus)


def test_unextracted_task_is_named(tmp_path: Path) -> None:
    (tmp_path / "Task04_Hippocampus.tar").touch()
    with pytest.raises(DatasetError, match=r"holds no task folder.*Task04_Hippocampus\.tar. Extract"):
        find_msd(tmp_path)
