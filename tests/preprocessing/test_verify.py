"""preprocessing.verify: every kind of bad raw data is named, all of it at once, with file and remedy."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from PIL import Image

from masam_auto.core.dataset import Dataset, DatasetDescription, open_dataset, parse_description
from masam_auto.core.errors import CaseErrors, DatasetError
from masam_auto.core.file_names import IMAGE_ENDINGS
from masam_auto.core.paths import Paths
from masam_auto.formats.io import READERS
from masam_auto.preprocessing import verify
from masam_auto.preprocessing.verify import READER_NAMES, check_reader, verify_dataset
from tests import raw_data

FIRST = "imagesTr/case_000_0000.nii.gz"
LABEL = "labelsTr/case_000.nii.gz"


def opened(folder: Path) -> Dataset:
    raw = folder.parent
    return open_dataset(Paths(raw=raw, preprocessed=raw, results=raw, weights=raw), folder.name)


def problems_of(folder: Path, *, workers: int = 0) -> tuple[str, ...]:
    with pytest.raises(CaseErrors) as caught:
        verify_dataset(opened(folder), workers=workers)
    assert f"verifying {folder}" in str(caught.value)
    return caught.value.problems


def array_of(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


@pytest.mark.parametrize(
    "options", [{}, {"channels": 2, "regions": True, "ignore": True, "labels": 3}, {"file_ending": ".nrrd"}]
)
def test_good_data_passes_without_a_word(
    raw_dataset: Callable[..., Path], caplog: pytest.LogCaptureFixture, options: dict[str, object]
) -> None:
    with caplog.at_level(logging.WARNING, "masam_auto"):
        verify_dataset(opened(raw_dataset(**options)), workers=0)
    assert not caplog.records


def test_good_video_passes(video_dataset: Callable[..., Path]) -> None:
    dataset = opened(video_dataset(sequences=5))
    verify_dataset(dataset, workers=0)
    assert all(case.is_sequence for case in dataset.cases)


def test_all_bad_cases_are_reported_together_and_the_same_from_workers(
    raw_dataset: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = raw_dataset(cases=5)
    broken = folder / FIRST
    broken.write_bytes(broken.read_bytes()[:-20])
    image = array_of(folder / "imagesTr/case_001_0000.nii.gz")
    image[2, 3, :2] = (np.nan, np.inf)
    raw_data.write_volume(folder / "imagesTr/case_001_0000.nii.gz", image)
    labels = array_of(folder / "labelsTr/case_002.nii.gz")
    labels[0, 0, 0] = 7
    raw_data.write_volume(folder / "labelsTr/case_002.nii.gz", labels)
    (folder / "labelsTr/case_003.nii.gz").unlink()
    raw_data.write_volume(folder / "labelsTr/case_004.nii.gz", np.zeros((6, 15, 14), np.uint8))
    problems = problems_of(folder)
    expected = (
        "imagesTr/case_003_0000.nii.gz: has no labelsTr/case_003.nii.gz. Add the label file",
        f"{FIRST}: the compressed data is truncated or damaged",
        "imagesTr/case_001_0000.nii.gz: 2 of 1568 voxels are not finite (NaN or infinite). Replace them",
        "labelsTr/case_002.nii.gz: has labels 7, but dataset.json declares 0, 1, 2. Declare them",
        "labelsTr/case_004.nii.gz: does not lie on the grid of case_004_0000.nii.gz: shape (6, 15, 14) against (6, 16, "
        "14)",
    )
    assert len(problems) == len(expected)
    for problem, start in zip(problems, expected, strict=True):
        assert problem.startswith(start)
    monkeypatch.setattr(verify, "IN_PROCESS_BYTES", 0)
    assert problems_of(folder, workers=2) == problems


@pytest.mark.parametrize(
    ("options", "words"),
    [({"spacing": (3.0, 1.0, 0.9)}, "spacing"), ({"oblique": False, "origin": (-31.5, 12.25, 40.75)}, "direction")],
)
def test_labels_and_channels_must_share_the_grid(
    raw_dataset: Callable[..., Path], options: dict[str, object], words: str
) -> None:
    folder = raw_dataset(channels=2)
    for name in (LABEL, "imagesTr/case_000_0001.nii.gz"):
        raw_data.write_volume(folder / name, array_of(folder / name), **options)
    problems = problems_of(folder)
    assert len(problems) == 2
    assert all(f"does not lie on the grid of case_000_0000.nii.gz: {words}" in problem for problem in problems)
    assert all("Resample it onto that grid, or correct its header" in problem for problem in problems)


@pytest.mark.parametrize(("angle", "accepted"), [(0.003, True), (0.2, False)])
def test_a_direction_that_moves_no_voxel_by_half_is_a_warning(
    raw_dataset: Callable[..., Path], caplog: pytest.LogCaptureFixture, angle: float, accepted: bool
) -> None:
    """About the middle of the grid, because the origin is free anyway."""
    folder = raw_dataset(oblique=False, shape=(6, 16, 14))
    image = sitk.ReadImage(str(folder / LABEL))
    image.SetDirection((np.cos(angle), -np.sin(angle), 0, np.sin(angle), np.cos(angle), 0, 0, 0, 1))
    sitk.WriteImage(image, str(folder / LABEL))
    with caplog.at_level(logging.WARNING, "masam_auto"):
        if accepted:
            verify_dataset(opened(folder), workers=0)
            assert "case_000.nii.gz: direction" in caplog.text and "taken as the same place" in caplog.text
        else:
            assert "does not lie on the grid of case_000_0000.nii.gz: direction" in problems_of(folder)[0]


def test_another_origin_is_a_warning(raw_dataset: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    folder = raw_dataset()
    raw_data.write_volume(folder / LABEL, array_of(folder / LABEL), origin=(0.0, 0.0, 0.0))
    with caplog.at_level(logging.WARNING, "masam_auto"):
        verify_dataset(opened(folder), workers=0)
    assert len(caplog.messages) == 1 and "case_000.nii.gz: origin" in caplog.messages[0]


def test_missing_channels(raw_dataset: Callable[..., Path]) -> None:
    folder = raw_dataset(channels=3)
    (folder / "imagesTr/case_000_0001.nii.gz").unlink()
    (folder / "imagesTr/case_001_0002.nii.gz").unlink()
    assert problems_of(folder) == (
        "imagesTr/case_000: has 2 channels, but dataset.json names 3 (CT, MR, MR). Missing: case_000_0001.nii.gz.",
        "imagesTr/case_001: has 2 channels, but dataset.json names 3 (CT, MR, MR). Missing: case_001_0002.nii.gz.",
    )


def test_wrongly_numbered_and_too_many_channels(raw_dataset: Callable[..., Path]) -> None:
    folder = raw_dataset()
    (folder / FIRST).rename(folder / "imagesTr/case_000_0001.nii.gz")
    raw_data.write_volume(folder / "imagesTr/case_002_0001.nii.gz", array_of(folder / "imagesTr/case_002_0000.nii.gz"))
    problems = problems_of(folder)
    assert problems[0].startswith("imagesTr/case_000: its channel files are numbered 0001. Number them from 0000")
    assert "case_002 has 2 channels in 2 files, but dataset.json names 1 (CT)" in problems[1]


def test_misnamed_images_and_labels_without_image(raw_dataset: Callable[..., Path]) -> None:
    folder = raw_dataset()
    (folder / "imagesTr/stray.nii.gz").write_bytes(b"")
    (folder / "labelsTr/other.nii.gz").write_bytes(b"")
    problems = problems_of(folder)
    assert problems[0].startswith("imagesTr/stray.nii.gz: is not called ID_0000.nii.gz")
    assert problems[1].startswith("labelsTr/other.nii.gz: has no imagesTr/other_0000.nii.gz. Add the image")
    assert len(problems) == 2


def test_folds_that_do_not_fit_are_found_before_anything_is_measured(raw_dataset: Callable[..., Path]) -> None:
    folder = raw_dataset()
    (folder / "splits.json").write_text(json.dumps([{"train": ["case_000", "stranger"], "val": ["case_001"]}]))
    assert "splits.json, fold 0: unknown cases in train: stranger" in problems_of(folder)[0]
    (folder / "splits.json").write_text(json.dumps([{"train": ["case_000"], "val": ["case_001"]}]))
    verify_dataset(opened(folder), workers=0)


def test_identifiers_that_differ_by_case_only(raw_dataset: Callable[..., Path]) -> None:
    folder = raw_dataset()
    raw_data.write_volume(folder / "imagesTr/CASE_000_0000.nii.gz", array_of(folder / FIRST))
    raw_data.write_volume(folder / "labelsTr/CASE_000.nii.gz", array_of(folder / LABEL))
    if len(list((folder / "imagesTr").iterdir())) == 5:
        pytest.skip("this file system does not tell upper from lower case")
    (problem,) = problems_of(folder)
    assert problem.startswith("CASE_000 and case_000: duplicate identifiers")


def test_names_too_long_for_the_files_that_are_made_of_them(raw_dataset: Callable[..., Path]) -> None:
    folder = raw_dataset()
    name = "a" * 242
    (folder / FIRST).rename(folder / f"imagesTr/{name}_0000.nii.gz")
    (folder / LABEL).rename(folder / f"labelsTr/{name}.nii.gz")
    (problem,) = problems_of(folder)
    assert problem.startswith(f"{name}: this name is too long")


def test_the_same_image_with_another_ending_is_a_warning(
    raw_dataset: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = raw_dataset()
    raw_data.write_volume(folder / "imagesTr/case_000_0000.mha", array_of(folder / FIRST))
    with caplog.at_level(logging.WARNING, "masam_auto"):
        verify_dataset(opened(folder), workers=0)
    assert "case_000_0000.mha: is not used, because the same image exists as .nii.gz" in caplog.text


def test_unreadable_files_of_every_sort(raw_dataset: Callable[..., Path]) -> None:
    folder = raw_dataset()
    (folder / FIRST).write_bytes(b"")
    (folder / LABEL).write_bytes(b"no image " * 100)
    raw_data.write_volume(folder / "labelsTr/case_001.nii.gz", array_of(folder / "labelsTr/case_001.nii.gz") * 0.5)
    four = np.stack([array_of(folder / "imagesTr/case_002_0000.nii.gz")] * 2)
    sitk.WriteImage(sitk.GetImageFromArray(four, isVector=False), str(folder / "imagesTr/case_002_0000.nii.gz"))
    problems = problems_of(folder)
    assert "the file is empty" in problems[0]
    assert "is not a NIfTI file despite its name" in problems[1]
    assert "labels must be whole numbers, but there is 0.5" in problems[2]
    assert "is 4D, 2 volumes" in problems[3]
    assert len(problems) == 4


def test_few_cases_and_a_wrong_count_are_warnings(
    raw_dataset: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = raw_dataset(cases=3)
    raw_data.change_description(folder, numTraining=9)
    with caplog.at_level(logging.WARNING, "masam_auto"):
        verify_dataset(opened(folder), workers=0)
    assert "only 3 cases: there will be 3 folds instead of 5" in caplog.text
    assert "numTraining 9, but there are 3" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "masam_auto"):
        verify_dataset(opened(raw_dataset(number=3, cases=1)), workers=0)
    assert "a single case" in caplog.text


def test_labels_and_channels_along_other_axes_are_turned_and_a_reorienting_reader_is_not_obeyed(
    raw_dataset: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = raw_dataset(oblique=False, channels=2)
    for name in (LABEL, FIRST.replace("_0000", "_0001")):
        sitk.WriteImage(sitk.DICOMOrient(sitk.ReadImage(str(folder / name)), "PIR"), str(folder / name))
    raw_data.change_description(folder, overwrite_image_reader_writer="NibabelIOWithReorient")
    with caplog.at_level(logging.WARNING, "masam_auto"):
        verify_dataset(opened(folder), workers=0)
    assert caplog.text.count("its axes (x, y, z) point to PIR, those of case_000_0000.nii.gz to LPS. It is turned") == 2
    assert "here, volumes are not turned to RAS" in caplog.text


def test_only_the_first_warnings_are_shown(raw_dataset: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    folder = raw_dataset(cases=13)
    for path in (folder / "labelsTr").iterdir():
        raw_data.write_volume(path, array_of(path), origin=(0.0, 0.0, 0.0))
    with caplog.at_level(logging.WARNING, "masam_auto"):
        verify_dataset(opened(folder), workers=0)
    assert len(caplog.messages) == 11 and "and 3 more like these" in caplog.messages[-1]


def test_unknown_reader_and_jpeg_labels(raw_dataset: Callable[..., Path]) -> None:
    folder = raw_dataset()
    raw_data.change_description(folder, overwrite_image_reader_writer="MyIO")
    with pytest.raises(DatasetError, match="'MyIO'; known readers"):
        verify_dataset(opened(folder), workers=0)
    raw_data.change_description(folder, overwrite_image_reader_writer=None, file_ending=".jpg")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "imagesTr/a_0000.jpg")
    with pytest.raises(DatasetError, match=r"labels cannot be JPEG.*\.png"):
        verify_dataset(opened(folder), workers=0)


def test_mapping_with_jpeg_images_and_missing_and_repeated_files(raw_dataset: Callable[..., Path]) -> None:
    folder = raw_dataset()
    generator = np.random.default_rng(0)
    entries = {}
    for name in ("p", "q", "r", "s", "t"):
        Image.fromarray(generator.integers(0, 255, (8, 8, 3)).astype(np.uint8)).save(folder / f"{name}.jpg")
        Image.fromarray(generator.integers(0, 2, (8, 8)).astype(np.uint8)).save(folder / f"{name}_mask.png")
        entries[name] = {"images": [f"{name}.jpg"], "label": f"{name}_mask.png"}
    description = json.loads((folder / "dataset.json").read_text())
    description |= {"file_ending": ".jpg", "channel_names": {"0": "R", "1": "G", "2": "B"}, "dataset": entries}
    (folder / "dataset.json").write_text(json.dumps(description))
    verify_dataset(opened(folder), workers=0)
    entries["t"]["images"] = ["s.jpg"]
    entries["r"]["label"] = "gone.png"
    (folder / "dataset.json").write_text(json.dumps(description))
    problems = problems_of(folder)
    assert problems[0].startswith("s.jpg: belongs to s and t. A file may be used only once")
    assert problems[1].startswith("gone.png: file not found")


def test_colours_where_grey_is_declared(video_dataset: Callable[..., Path]) -> None:
    folder = video_dataset(sequences=1, frames=1)
    raw_data.change_description(folder, channel_names={"0": "ultrasound"})
    (problem,) = problems_of(folder)
    assert (
        "clip0_frame000 has 3 channels in 1 files, but dataset.json names 1 (ultrasound). A colour picture" in problem
    )


def test_frames_of_a_sequence(video_dataset: Callable[..., Path]) -> None:
    folder = video_dataset(sequences=2, frames=3)
    for name in ("imagesTr/clip0_frame001_0000.png", "labelsTr/clip0_frame001.png"):
        pixels = np.asarray(Image.open(folder / name))
        Image.fromarray(pixels[:-2]).save(folder / name)
    (folder / "labelsTr/clip1_frame002.png").unlink()
    problems = problems_of(folder)
    assert problems[0].startswith("imagesTr/clip1_frame002_0000.png: has no labelsTr/clip1_frame002.png")
    assert problems[1].startswith(
        "imagesTr/clip0_frame001_0000.png: frame of shape (1, 22, 20) (Z, Y, X) in sequence clip0"
    )
    assert len(problems) == 2


def test_tiff_labels_without_spacing_are_accepted(raw_dataset: Callable[..., Path]) -> None:
    folder = raw_dataset()
    stack = np.random.default_rng(0).integers(0, 2, (4, 6, 5)).astype(np.uint8)
    sizes = {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5, "PhysicalSizeZ": 2.0}
    for index in range(5):
        image = folder / f"imagesTr/s{index}_0000.tif"
        tifffile.imwrite(image, stack, ome=True, photometric="minisblack", metadata={"axes": "ZYX", **sizes})
        tifffile.imwrite(folder / f"labelsTr/s{index}.tif", stack, photometric="minisblack")
    raw_data.change_description(folder, file_ending=".tif")
    dataset = opened(folder)
    verify_dataset(dataset, workers=0)
    assert len(dataset.cases) == 5


def test_real_data_sets_are_whole(shared_data: Path) -> None:
    folder = shared_data / "raw" / "Dataset004_Hippocampus"
    dataset = opened(folder)
    verify_dataset(dataset, workers=0)
    assert len(dataset.cases) == 200


def description(ending: str = ".nii.gz", **extra: object) -> DatasetDescription:
    plain = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "organ": 1}, "file_ending": ending, **extra}
    return parse_description(plain, name="D")


def test_nnunets_names_are_understood() -> None:
    assert tuple(READERS) == IMAGE_ENDINGS and set(READERS) == {
        ending for endings in READER_NAMES.values() for ending in endings
    }
    check_reader(description())
    check_reader(description(overwrite_image_reader_writer="None"))
    for name, endings in READER_NAMES.items():
        check_reader(description(ending=endings[0], overwrite_image_reader_writer=name))
    with pytest.raises(DatasetError, match=r"'MyIO'; known readers: SimpleITKIO, NibabelIO, .*Tiff3DIO"):
        check_reader(description(overwrite_image_reader_writer="MyIO"))
    with pytest.raises(DatasetError, match=r"Tiff3DIO reads .tif, .tiff, not .nii.gz"):
        check_reader(description(overwrite_image_reader_writer="Tiff3DIO"))
