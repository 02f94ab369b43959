"""The made-up data set: valid, exact, seeded, and neither trivial nor all alike."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from dataset_conversion.synthetic import FIELD_OF_VIEW, LABELS, OTHER_SPACINGS, make_case, write_synthetic_dataset
from masam_auto.core.dataset import open_dataset
from masam_auto.core.errors import OutputError
from masam_auto.core.labels import named_sides
from masam_auto.core.paths import Paths


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    write_synthetic_dataset(folder, cases=6, test_cases=2, seed=3)
    return folder


def test_written_data_set_opens_in_the_raw_format(raw: Path) -> None:
    dataset = open_dataset(Paths(raw=raw, preprocessed=raw, results=raw, weights=raw), "999")
    assert dataset.name == "Dataset999_Demo"
    assert len(dataset.cases) == 6
    assert all(case.labels for case in dataset.cases)
    assert dataset.description.channel_names == ("CT",)
    assert named_sides(list(dataset.description.labels.foreground)) == (("left", "right"),)
    held_out = {path.name for path in (dataset.folder / "imagesTs").iterdir()}
    assert held_out == {"demo_t000_0000.nii.gz", "demo_t001_0000.nii.gz"}
    assert {path.name for path in (dataset.folder / "labelsTs").iterdir()} == {"demo_t000.nii.gz", "demo_t001.nii.gz"}


def test_image_and_labels_share_an_oblique_anisotropic_grid(raw: Path) -> None:
    folder = raw / "Dataset999_Demo"
    image = sitk.ReadImage(str(folder / "imagesTr" / "demo_000_0000.nii.gz"))
    labels = sitk.ReadImage(str(folder / "labelsTr" / "demo_000.nii.gz"))
    assert image.GetSize() == labels.GetSize()
    assert image.GetSpacing() == pytest.approx((0.9, 0.9, 3.0))
    assert image.GetDirection() == pytest.approx(labels.GetDirection(), abs=1e-5)
    direction = np.reshape(image.GetDirection(), (3, 3))
    assert np.allclose(direction @ direction.T, np.eye(3), atol=1e-5)
    assert not np.allclose(direction, np.eye(3), atol=1e-2)


def test_one_case_in_four_has_another_spacing_over_the_same_field_of_view(raw: Path) -> None:
    image = sitk.ReadImage(str(raw / "Dataset999_Demo" / "imagesTr" / "demo_003_0000.nii.gz"))
    assert image.GetSpacing()[::-1] == pytest.approx(OTHER_SPACINGS[0])
    extent = np.multiply(image.GetSpacing(), image.GetSize())[::-1]
    assert np.allclose(extent, FIELD_OF_VIEW, atol=2.5)


def test_same_seed_same_case_however_many_there_are(raw: Path, tmp_path: Path) -> None:
    write_synthetic_dataset(tmp_path, cases=2, test_cases=1, seed=3)
    for file in ("imagesTr/demo_001_0000.nii.gz", "labelsTs/demo_t000.nii.gz"):
        first, second = (sitk.ReadImage(str(r / "Dataset999_Demo" / file)) for r in (raw, tmp_path))
        assert np.array_equal(sitk.GetArrayFromImage(first), sitk.GetArrayFromImage(second))
    description = json.loads((tmp_path / "Dataset999_Demo" / "dataset.json").read_text())
    assert description["numTraining"] == 2


def test_other_seed_other_patient() -> None:
    first, second = (make_case(np.random.default_rng(seed), spacing=(8.0, 3.0, 3.0)) for seed in (1, 2))
    assert (first.labels != second.labels).any()
    assert first.geometry.difference(second.geometry) is not None


@pytest.mark.parametrize("seed", range(4))
def test_every_organ_is_there_and_only_wanted_lesions(seed: int) -> None:
    spacing = (4.0, 1.5, 1.5)
    case = make_case(np.random.default_rng(seed), spacing=spacing)
    volumes = {name: (case.labels == value).sum() * np.prod(spacing) for name, value in LABELS.items()}
    assert all(volumes[name] > 500 for name in LABELS if name != "lesion")
    assert 50 < volumes["lesion"] < volumes["liver"] / 5
    without = make_case(np.random.default_rng(seed), spacing=spacing, has_lesion=False)
    assert not (without.labels == LABELS["lesion"]).any()


def test_intensities_are_hounsfield_like_and_overlap() -> None:
    case = make_case(np.random.default_rng(0))
    means = {name: case.image[case.labels == value].mean() for name, value in LABELS.items()}
    spreads = {name: case.image[case.labels == value].std() for name, value in LABELS.items()}
    assert case.image.dtype == np.int16
    assert case.image.min() >= -1024
    assert np.median(case.image[:, 0, :]) == pytest.approx(-1000, abs=30)
    assert means["lesion"] < means["liver"] < means["aorta"]
    # Thresholds cannot tell these apart: place and shape must be learnt.
    assert abs(means["liver"] - means["spleen"]) < spreads["liver"]
    assert abs(means["kidney_left"] - means["kidney_right"]) < spreads["kidney_left"]


def test_left_is_on_the_left() -> None:
    case = make_case(np.random.default_rng(5), spacing=(4.0, 2.0, 2.0))
    centres = {}
    for name in ("kidney_left", "kidney_right", "liver", "spleen"):
        z, y, x = np.argwhere(case.labels == LABELS[name]).mean(axis=0)
        centres[name] = (case.geometry.affine @ [x, y, z, 1.0])[0]  # LPS: x grows to the patient's left
    assert centres["kidney_left"] > 0 > centres["kidney_right"]
    assert centres["spleen"] > 0 > centres["liver"]


def test_unwritable_folder_is_said_in_one_line(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        write_synthetic_dataset(blocked, cases=1, test_cases=0)
