"""BTCV: 30 cases, 13 organs or the paper's 12, six of them held out."""

import json
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from dataset_conversion.btcv import NUMBERS, ORGANS, TEST, find_btcv
from dataset_conversion.nifti import VolumeOptions
from masam_auto.core.errors import CaseErrors, DatasetError
from masam_auto.formats.io import read_labels
from tests.dataset_conversion.downloads import AFFINE, make_image, make_labels, write_nifti


@pytest.fixture
def download(tmp_path: Path) -> Path:
    """As RawData.zip unpacks, with the unlabelled test images beside it and what macOS leaves."""
    root = tmp_path / "Abdomen"
    training = root / "RawData" / "Training"
    for number in NUMBERS:
        write_nifti(training / "img" / f"img{number}.nii.gz", make_image(int(number)))
        write_nifti(
            training / "label" / f"label{number}.nii.gz", make_labels(range(14), kind=np.float32)
        )  # floats, as some are
    write_nifti(root / "RawData" / "Testing" / "img" / "img0061.nii.gz", make_image(61))
    (training / "img" / "._img0001.nii.gz").write_bytes(b"\0\5\x16\7")
    return root


def test_whole_download(download: Path, converted: Callable, tmp_path: Path) -> None:
    folder, record = converted(find_btcv(download))
    assert folder == tmp_path / "raw" / "Dataset010_BTCV"
    assert (len(list((folder / "imagesTr").iterdir())), len(list((folder / "imagesTs").iterdir()))) == (24, 6)
    assert {path.name for path in (folder / "labelsTs").iterdir()} == {f"btcv_{number}.nii.gz" for number in TEST}
    description = json.loads((folder / "dataset.json").read_text())
    assert description["labels"]["left_adrenal_gland"] == 13
    assert description["labels"]["background"] == 0
    assert description["numTraining"] == 24
    assert {"licence", "source", "citation"} <= set(description)
    folds = json.loads((folder / "splits.json").read_text())
    assert len(folds) == 5
    assert all(fold["test"] == [f"btcv_{number}" for number in TEST] for fold in folds)
    assert record.case_notes == []
    source = download / "RawData" / "Training" / "img" / "img0001.nii.gz"
    assert (folder / "imagesTr" / "btcv_0001_0000.nii.gz").read_bytes() == source.read_bytes()


def test_merged_adrenals_are_the_papers_twelve(download: Path, converted: Callable) -> None:
    folder, record = converted(find_btcv(download, merge_adrenals=True))
    labels, geometry = read_labels(folder / "labelsTr" / "btcv_0001.nii.gz")
    assert sorted(np.unique(labels)) == list(range(13))
    assert np.count_nonzero(labels == 12) == 2
    assert geometry.spacing == pytest.approx((3.0, 0.8, 0.8))
    assert "btcv_0001: label 13 became 12 in 1 voxels" in record.case_notes
    assert list(json.loads((folder / "dataset.json").read_text())["labels"])[1:] == [*ORGANS[:11], "adrenal_glands"]


def test_labels_on_other_grids(download: Path, converted: Callable) -> None:
    folder = download / "RawData" / "Training" / "label"
    rounded, elsewhere = AFFINE.copy(), AFFINE.copy()
    rounded[0, 0] = -0.8001
    elsewhere[0, 0] = 0.8
    write_nifti(folder / "label0001.nii.gz", make_labels([1]), affine=rounded)
    write_nifti(folder / "label0002.nii.gz", make_labels([1]), affine=elsewhere)
    write_nifti(folder / "label0003.nii.gz", np.zeros((6, 5, 3), np.uint8))
    with pytest.raises(CaseErrors) as caught:
        converted(find_btcv(download))
    assert len(caught.value.problems) == 2
    assert "label0002.nii.gz: does not lie on its image's grid: direction" in caught.value.problems[0]
    assert "label0003.nii.gz: shape (4, 5, 6) against (3, 5, 6)" in caught.value.problems[1]
    write_nifti(folder / "label0003.nii.gz", make_labels([2]))
    write_nifti(folder / "label0002.nii.gz", make_labels([1]))
    written, record = converted(find_btcv(download))
    assert len(record.case_notes) == 1
    assert "btcv_0001: label0001.nii.gz put on its image's grid, rounded header: spacing" in record.case_notes[0]
    image = nibabel.load(written / "imagesTr" / "btcv_0001_0000.nii.gz")
    label = nibabel.load(written / "labelsTr" / "btcv_0001.nii.gz")
    assert np.allclose(image.affine, label.affine, atol=1e-6)


def test_label_geometry_is_ignored_when_asked(download: Path, converted: Callable) -> None:
    elsewhere = AFFINE.copy()
    elsewhere[0, 0] = 0.8
    write_nifti(download / "RawData" / "Training" / "label" / "label0002.nii.gz", make_labels([1]), affine=elsewhere)
    _, record = converted(find_btcv(download, volumes=VolumeOptions(ignore_label_geometry=True)))
    assert len(record.case_notes) == 1
    assert "voxel by voxel as asked: direction" in record.case_notes[0]


def test_unknown_labels_and_truncated_images_are_named(download: Path, converted: Callable) -> None:
    training = download / "RawData" / "Training"
    write_nifti(training / "label" / "label0004.nii.gz", make_labels([1, 14, 99]))
    truncated = training / "img" / "img0005.nii.gz"
    truncated.write_bytes(truncated.read_bytes()[:-40])
    with pytest.raises(CaseErrors) as caught:
        converted(find_btcv(download))
    assert "label0004.nii.gz: has labels 14, 99, which this data set does not have" in caught.value.problems[0]
    assert "img0005.nii.gz" in caught.value.problems[1]
    assert "truncated" in caught.value.problems[1]


def test_missing_cases_are_listed_and_can_be_allowed(download: Path, converted: Callable, tmp_path: Path) -> None:
    training = download / "RawData" / "Training"
    (training / "label" / "label0021.nii.gz").unlink()
    (training / "img" / "img0035.nii.gz").unlink()
    with pytest.raises(DatasetError) as caught:
        converted(find_btcv(download))
    assert "label0021.nii.gz\n" in str(caught.value)
    assert "img0035.nii.gz\n" in str(caught.value)
    assert "--allow_missing" in str(caught.value)
    assert not (tmp_path / "raw").exists()
    folder, record = converted(find_btcv(download), allow_missing=True)
    assert len(record.missing) == 2
    assert len(record.cases) == 28
    assert "img0035.nii.gz" in (folder / "conversion.txt").read_text()


def test_cases_that_do_not_belong_are_left_out(download: Path) -> None:
    write_nifti(download / "RawData" / "Training" / "img" / "img0099.nii.gz", make_image(1))
    (conversion,) = find_btcv(download)
    assert len(conversion.cases) == 30
    assert "img0099.nii.gz: not one of the 30 cases" in conversion.notes[0]
