"""AMOS22: CT and MRI by number, the published lists, and the map that scores BTCV models on it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dataset_conversion.amos22 import ORGANS as AMOS_ORGANS
from dataset_conversion.amos22 import find_amos22
from dataset_conversion.btcv import ORGANS as BTCV_ORGANS
from masam_auto.core.errors import DatasetError
from tests.dataset_conversion.downloads import make_image, make_labels, write_nifti

NUMBERS = {"training": (1, 4, 410, 507, 508), "validation": (8, 409, 517), "test": (2, 500, 600)}
PARTS = {"training": "Tr", "validation": "Va", "test": "Ts"}


@pytest.fixture
def download(tmp_path: Path) -> Path:
    """As amos22.zip unpacks; its label names are misspelt."""
    root = tmp_path / "download" / "amos22"
    description: dict = {"labels": {"0": "background", "8": "arota", "15": "prostate/uterus"}}
    for part, numbers in NUMBERS.items():
        description[part] = []
        for number in numbers:
            name = f"amos_{number:04d}.nii.gz"
            write_nifti(root / f"images{PARTS[part]}" / name, make_image(number))
            description[part].append({"image": f"./images{PARTS[part]}/{name}"})
            if part != "test":
                write_nifti(root / f"labels{PARTS[part]}" / name, make_labels(range(16)))
                description[part][-1]["label"] = f"./labels{PARTS[part]}/{name}"
    (root / "dataset.json").write_text(json.dumps(description))
    return root.parent


@pytest.mark.parametrize(
    ("modality", "name", "channel", "train", "val", "test"),
    [
        ("CT", "Dataset040_AMOS22_CT", "CT", (1, 4, 410), (8, 409), (2, 500)),
        ("MRI", "Dataset041_AMOS22_MRI", "MRI", (507, 508), (517,), (600,)),
        ("both", "Dataset042_AMOS22", "CT_or_MRI", (1, 4, 410, 507, 508), (8, 409, 517), (2, 500, 600)),
    ],
)
def test_modalities(
    download: Path,
    converted: Callable,
    verified: Callable,
    modality: str,
    name: str,
    channel: str,
    train: tuple[int, ...],
    val: tuple[int, ...],
    test: tuple[int, ...],
) -> None:
    folder, _ = converted(find_amos22(download, modality=modality))
    assert folder.name == name
    dataset = verified(folder)
    assert dataset.description.channel_names == (channel,)
    assert len(dataset.description.labels.foreground) == 15
    (fold,) = json.loads((folder / "splits.json").read_text())
    assert fold == {
        side: [f"amos_{number:04d}" for number in numbers]
        for side, numbers in (("train", train), ("val", val), ("test", test))
    }
    assert len(list((folder / "imagesTs").iterdir())) == len(test)
    assert not (folder / "labelsTs").exists()
    groups = json.loads((folder / "dataset.json").read_text())["groups"]
    assert sorted(groups) == (["CT", "MRI"] if modality == "both" else [modality])


def test_missing_cases_of_the_other_modality_do_not_matter(download: Path, converted: Callable) -> None:
    (download / "amos22" / "imagesVa" / "amos_0517.nii.gz").unlink()
    (download / "amos22" / "labelsTr" / "amos_0004.nii.gz").unlink()
    with pytest.raises(
        DatasetError, match=r"not complete:\n.*labelsTr/amos_0004\.nii\.gz: listed in dataset\.json\nNothing"
    ):
        converted(find_amos22(download))
    folder, _ = converted(find_amos22(download, modality="MRI"), allow_missing=True)
    assert len(json.loads((folder / "splits.json").read_text())) == 2  # no validation case is left: a fold a case


@pytest.mark.parametrize("content", ['{"training": []}', '{"training": 3}', "[]", '{"training": ["a.nii.gz"]}'])
def test_lists_must_be_there(download: Path, content: str) -> None:
    (download / "amos22" / "dataset.json").write_text(content)
    with pytest.raises(DatasetError, match=r'expected a list "training".*zenodo'):
        find_amos22(download)


def test_label_map_from_btcv_joins_the_same_organs() -> None:
    path = Path(__file__).parents[2] / "dataset_conversion" / "label_maps" / "btcv_to_amos22.json"
    mapping = json.loads(path.read_text())
    assert set(mapping) == {"labels", "prediction", "reference"}
    names = {value: name for name, value in mapping["labels"].items()} | {0: "nothing"}
    dropped = {"portal_and_splenic_vein", "duodenum", "bladder", "prostate_or_uterus"}
    for side, organs in (("prediction", BTCV_ORGANS), ("reference", AMOS_ORGANS)):
        for value, organ in enumerate(organs, start=1):
            joined = names[mapping[side].get(str(value), value)]
            expected = "nothing" if organ in dropped else "adrenal_glands" if "adrenal" in organ else organ
            assert joined == expected, (side, organ)


def test_unknown_modality(download: Path) -> None:
    with pytest.raises(DatasetError, match="--modality MR: AMOS22 has CT, MRI, both"):
        find_amos22(download, modality="MR")
