"""Prostate: six sites, two of which label zones and one of which spells its files differently."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dataset_conversion import prostate
from dataset_conversion.prostate import SITES, TEST, find_prostate
from masam_auto.core.errors import DatasetError
from masam_auto.formats.io import read_labels
from tests.dataset_conversion.downloads import make_image, make_labels, write_nifti

COUNTS = {site: len(numbers) + 2 for site, numbers in TEST.items()}


@pytest.fixture(autouse=True)
def small_sites(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prostate, "COUNTS", COUNTS)


@pytest.fixture
def download(tmp_path: Path) -> Path:
    """As the zip of the collection unpacks, with BMC's spelling and zones 1 and 2 at RUNMC and BMC."""
    root = tmp_path / "download"
    for site, name in SITES.items():
        ending = "_Segmentation" if name == "BMC" else "_segmentation"
        for number in (*TEST[site], "10", "11"):
            write_nifti(root / "Prostate" / name / f"Case{number}.nii.gz", make_image(int(number)))
            zones = make_labels([1, 2] if site in "AB" else [1], kind=np.float64)
            write_nifti(root / "Prostate" / name / f"Case{number}{ending}.nii.gz", zones)
    return root


def test_one_data_set_a_site(download: Path, converted: Callable, tmp_path: Path) -> None:
    _, record = converted(find_prostate(download))
    raw = tmp_path / "raw"
    assert sorted(path.name for path in raw.iterdir()) == [
        f"Dataset{20 + i:03d}_Prostate{s}" for i, s in enumerate(SITES)
    ]
    for index, site in enumerate(SITES):
        folder = raw / f"Dataset{20 + index:03d}_Prostate{site}"
        assert len(list((folder / "imagesTr").iterdir())) == COUNTS[site] - len(TEST[site])
        held_out = {path.name for path in (folder / "labelsTs").iterdir()}
        assert held_out == {f"prostate{site}_{number}.nii.gz" for number in TEST[site]}
    assert "prostateA_03: label 2 became 1 in 1 voxels" in record.case_notes
    labels, _ = read_labels(raw / "Dataset021_ProstateB" / "labelsTr" / "prostateB_10.nii.gz")
    assert np.unique(labels).tolist() == [0, 1]
    assert np.count_nonzero(labels) == 2


def test_joint_data_set_knows_the_sites(download: Path, converted: Callable) -> None:
    folder, record = converted(find_prostate(download, joint=True))
    assert folder.name == "Dataset026_Prostate"
    assert len(record.cases) == sum(COUNTS.values())
    groups = json.loads((folder / "dataset.json").read_text())["groups"]
    assert {site: len(names) for site, names in groups.items()} == COUNTS
    assert all(name.startswith(f"prostate{site}_") for site, names in groups.items() for name in names)


def test_what_is_missing_is_named_site_by_site(download: Path, converted: Callable, tmp_path: Path) -> None:
    root = download / "Prostate"
    (root / "UCL" / "Case01.nii.gz").unlink()
    (root / "I2CVB" / "Case10_segmentation.nii.gz").unlink()
    for path in (root / "HK").iterdir():
        path.unlink()
    with pytest.raises(DatasetError) as caught:
        converted(find_prostate(download))
    text = str(caught.value)
    assert "site F, the folder HK" in text
    assert "Case01_segmentation.nii.gz: its image" in text
    assert "UCL: the test case 01" in text
    assert "Case10.nii.gz: its segmentation" in text
    converted(find_prostate(download), allow_missing=True)
    assert len(list((tmp_path / "raw").iterdir())) == 5


def test_too_few_cases_are_noticed(download: Path, converted: Callable) -> None:
    for path in (download / "Prostate" / "BIDMC").glob("Case10*"):
        path.unlink()
    with pytest.raises(DatasetError, match="BIDMC: only 4 of 5 cases exist"):
        converted(find_prostate(download))


def test_sites_must_be_there_once(download: Path, tmp_path: Path) -> None:
    write_nifti(download / "again" / "HK" / "Case38.nii.gz", make_image(0))
    with pytest.raises(DatasetError, match="are both site HK"):
        find_prostate(download)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "Prostate.zip").touch()
    with pytest.raises(DatasetError, match=r"holds none of the folders RUNMC.*Prostate\.zip.*Extract"):
        find_prostate(tmp_path / "empty")
