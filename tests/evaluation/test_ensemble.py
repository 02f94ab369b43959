"""Averaged probabilities: as the in-memory ensemble, whatever the crops, and only of the same images and classes."""

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from masam_auto.core.errors import DatasetError, ImageError, ModelError, OutputError
from masam_auto.core.geometry import CaseProperties, Geometry
from masam_auto.core.jsonio import write_json
from masam_auto.core.labels import Labels, parse_labels
from masam_auto.core.plan import Configuration, NormalizationPlan
from masam_auto.evaluation import ensemble
from masam_auto.evaluation.ensemble import average_files, ensemble_folders
from masam_auto.formats.io import read_geometry, read_labels, write_labels
from masam_auto.formats.probability_files import new_probabilities, read_probabilities
from masam_auto.prediction.restore import MemberLogits, new_case_probabilities, output_names, restore_case

GEOMETRY = Geometry(shape=(6, 9, 8), spacing=(3.0, 1.0, 0.8), origin=(1.0, -2.0, 3.5))
LABELS = {"background": 0, "organ": 1, "lesion": 2}
CLASSES = parse_labels(LABELS, None)
REGIONS = parse_labels({"background": 0, "whole": [1, 2], "core": 2}, [1, 2])
WHOLE = ((0, 6), (0, 9), (0, 8))
CROPS: tuple[Any, ...] = (WHOLE, ((1, 5), (0, 7), (2, 8)), ((0, 2), (5, 9), (0, 3)))


def write(path: Path, *, labels: Labels = CLASSES, crop: Any = WHOLE, seed: int = 0, **facts: Any) -> np.ndarray:
    """Write random probabilities; they come back on the whole image."""
    facts = {"geometry": GEOMETRY, "outputs": output_names(labels), "has_regions": labels.has_regions, **facts}
    with new_probabilities(path, crop=crop, **facts) as values:
        values[:] = np.random.default_rng(seed).random(values.shape)
        if not labels.has_regions:
            values /= values.sum(axis=0)
        whole = np.zeros((len(values), *GEOMETRY.shape), np.float32)
        whole[0] = not labels.has_regions
        whole[(slice(None), *(slice(*side) for side in crop))] = values
        return whole


def write_folder(folder: Path, *names: str, labels: dict[str, Any] = LABELS, seed: int = 0) -> Path:
    for number, name in enumerate(names):
        write(folder / f"{name}.npz", seed=seed + number)
    write_json(folder / "dataset.json", {"channel_names": {"0": "MR"}, "labels": labels, "file_ending": ".nii.gz"})
    return folder


@pytest.mark.parametrize("labels", [CLASSES, REGIONS])
@pytest.mark.parametrize("crops", [(WHOLE, WHOLE), CROPS, CROPS[1:]])
@pytest.mark.parametrize("block", [64, 1 << 20])
def test_the_mean_is_taken_voxel_by_voxel_whatever_the_crops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, labels: Labels, crops: Any, block: int
) -> None:
    monkeypatch.setattr(ensemble, "BLOCK_BYTES", block)
    files = [tmp_path / f"{number}.npz" for number in range(len(crops))]
    parts = [
        write(file, labels=labels, crop=crop, seed=n) for n, (file, crop) in enumerate(zip(files, crops, strict=True))
    ]
    mean = np.mean(parts, axis=0)
    painted = np.where(mean[1] > 0.5, 2, np.where(mean[0] > 0.5, 1, 0))
    expected = painted if labels.has_regions else mean.argmax(axis=0)
    found, geometry = average_files(files, labels, saved=tmp_path / "mean.npz")
    assert geometry == GEOMETRY
    assert np.array_equal(found, expected)
    assert len(np.unique(found)) > 1
    saved = read_probabilities(tmp_path / "mean.npz")
    inside = (slice(None), *(slice(*side) for side in saved.crop))
    assert np.abs(saved.values - mean[inside]).max() < 1e-3
    assert saved.outputs == output_names(labels)


def test_one_model_alone_keeps_its_labels(tmp_path: Path) -> None:
    shares = write(tmp_path / "a.npz")
    assert np.array_equal(average_files([tmp_path / "a.npz"], CLASSES)[0], shares.argmax(axis=0))


@pytest.mark.parametrize("labels", [CLASSES, REGIONS])
def test_it_is_the_ensemble_in_memory(tmp_path: Path, labels: Labels) -> None:
    members = []
    for seed, (order, shape) in enumerate([((0, 1, 2), (5, 9, 7)), ((0, 1, 2), (6, 5, 8)), ((2, 0, 1), (6, 7, 9))]):
        properties = CaseProperties(
            identifier="a",
            geometry=GEOMETRY,
            crop=((1, 6), (0, 9), (0, 7)),
            axis_order=order,
            spacing=(2.0, 1.5, 1.5),
            resampled_shape=shape,
        )
        configuration = Configuration(
            name="x",
            axis_order=order,
            spacing=(2.0, 1.5, 1.5),
            median_shape=shape,
            separate_slices=False,
            window=3,
            normalization=(NormalizationPlan(scheme="zscore"),),
            canvas=(16, 16),
            magnification=1.0,
            mirror_axes=(),
            batch_size=1,
        )
        logits = 3 * torch.randn(labels.num_outputs, *shape, generator=torch.Generator().manual_seed(seed))
        members.append((logits, properties, configuration))

    def in_memory(*chosen: tuple[torch.Tensor, CaseProperties, Configuration]) -> list[MemberLogits]:
        return [MemberLogits(slices=enumerate(x.unbind(1)), properties=p, configuration=c) for x, p, c in chosen]

    files = [tmp_path / f"{number}.npz" for number in range(len(members))]
    for file, member in zip(files, members, strict=True):
        with new_case_probabilities(file, member[1], labels) as values:
            restore_case(in_memory(member), labels, probabilities=values)
    with new_case_probabilities(tmp_path / "together.npz", members[0][1], labels) as values:
        together = restore_case(in_memory(*members), labels, probabilities=values)
    found, _ = average_files(files, labels, saved=tmp_path / "mean.npz")
    mean, expected = (read_probabilities(tmp_path / f"{name}.npz").values for name in ("mean", "together"))
    assert np.abs(mean.astype(np.float32) - expected).max() < 2e-3
    if labels.has_regions:
        doubtful = (np.abs(expected.astype(np.float32) - 0.5) < 2e-3).any(axis=0)
    else:
        doubtful = np.diff(np.sort(expected, axis=0)[-2:].astype(np.float32), axis=0)[0] < 2e-3
    assert doubtful.mean() < 0.05
    clear = np.ones(GEOMETRY.shape, bool)
    clear[1:6, 0:9, 0:7] = ~doubtful  # float16 cannot tell these
    assert np.array_equal(found[clear], together[clear])


def test_a_folder_of_cases(tmp_path: Path) -> None:
    sources = [write_folder(tmp_path / name, "p", "q", seed=10 * n) for n, name in enumerate("abc")]
    outcome = ensemble_folders(sources, tmp_path / "out", save_probabilities=True, workers=0)
    assert (outcome.predicted, outcome.problems) == (("p", "q"), ())
    found = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert found == ["dataset.json", "p.nii.gz", "p.npz", "q.nii.gz", "q.npz"]
    labels, geometry = read_labels(tmp_path / "out" / "q.nii.gz")
    assert geometry.difference(GEOMETRY) is None
    assert np.array_equal(labels, average_files([source / "q.npz" for source in sources], CLASSES)[0])
    again = ensemble_folders([tmp_path / "out", tmp_path / "out"], tmp_path / "again", workers=0)
    assert again.predicted == ("p", "q")


def test_the_mean_says_where_it_lies_as_the_segmentations_do(tmp_path: Path) -> None:
    sources = [write_folder(tmp_path / name, "p", "q") for name in "ab"]
    write_labels(sources[0] / "p.nii.gz", np.zeros(GEOMETRY.shape, np.uint8), GEOMETRY)
    image = nibabel.load(sources[0] / "p.nii.gz")
    image.set_sform(image.affine, code=4)
    nibabel.save(image, sources[0] / "p.nii.gz")
    ensemble_folders(sources, tmp_path / "out", workers=0)
    codes = [int(nibabel.load(tmp_path / "out" / f"{name}.nii.gz").header["sform_code"]) for name in "pq"]
    assert codes == [4, 1], "q has no segmentation"


def test_validation_folders_take_the_models_description(tmp_path: Path) -> None:
    sources = []
    for name in ("masam__axis0", "masam__2d"):
        source = write_folder(tmp_path / name / "fold_0" / "validation", "p")
        (source / "dataset.json").rename(tmp_path / name / "dataset.json")
        sources.append(source)
    assert ensemble_folders(sources, tmp_path / "out", workers=0).predicted == ("p",)


def test_frames_of_a_video_get_a_file_each(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "a", "clip", "new")
    description = json.loads((source / "dataset.json").read_text())
    frames = [f"frame{number}" for number in range(6)]
    write_json(source / "dataset.json", {**description, "file_ending": ".png", "sequences": {"clip": frames}})
    ensemble_folders([source, source], tmp_path / "out", workers=0)
    for identifier, names in (("clip", frames), ("new", [f"new_{number:04d}" for number in range(6)])):
        expected, _ = average_files([source / f"{identifier}.npz"], CLASSES)
        for number, name in enumerate(names):
            found, geometry = read_labels(tmp_path / "out" / f"{name}.png")
            assert geometry.dimensions == 2
            assert np.array_equal(found[0], expected[number])


def test_cases_must_be_the_same_in_all_folders(tmp_path: Path) -> None:
    sources = [write_folder(tmp_path / "a", "p", "q", "r"), write_folder(tmp_path / "b", "p", "s")]
    with pytest.raises(DatasetError, match=r"a lacks s; .*b lacks q, r\."):
        ensemble_folders(sources, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folders_that_cannot_be_averaged(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "a", "p")
    with pytest.raises(DatasetError, match="folder not found"):
        ensemble_folders([source, tmp_path / "missing"], tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match=r"empty: no probabilities .*`masam_predict \.\.\. save_probabilities`"):
        ensemble_folders([source, tmp_path / "empty"], tmp_path / "out")
    write(tmp_path / "bare" / "p.npz")
    with pytest.raises(DatasetError, match=r"bare has no dataset\.json"):
        ensemble_folders([source, tmp_path / "bare"], tmp_path / "out")
    other = write_folder(tmp_path / "other", "p", labels={"background": 0, "organ": 1, "tumour": 2})
    with pytest.raises(ModelError, match="different labels"):
        ensemble_folders([source, other], tmp_path / "out")
    with pytest.raises(OutputError, match="the output folder is the input folder"):
        ensemble_folders([source, write_folder(tmp_path / "b", "p")], tmp_path / "b")


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "a", "p")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "p.npz").write_text("mine")
    with pytest.raises(OutputError, match=r"already holds p\.npz"):
        ensemble_folders([source, source], tmp_path / "out", save_probabilities=True, workers=0)
    ensemble_folders([source, source], tmp_path / "out", workers=0)
    assert (tmp_path / "out" / "p.npz").read_text() == "mine"
    ensemble_folders([source, source], tmp_path / "out", save_probabilities=True, overwrite=True, workers=0)
    assert read_geometry(tmp_path / "out" / "p.nii.gz").shape == (6, 9, 8)


def test_the_description_of_another_model_is_kept(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "a", "p")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "dataset.json").write_text('{"labels": {}}')
    with pytest.raises(OutputError, match=r"already holds dataset\.json\. Give `overwrite`"):
        ensemble_folders([source], tmp_path / "out", workers=0)
    assert [path.read_text() for path in (tmp_path / "out").iterdir()] == ['{"labels": {}}']


def test_probabilities_go_with_the_segmentation_that_is_replaced(tmp_path: Path) -> None:
    source, out = write_folder(tmp_path / "a", "p", "q"), tmp_path / "out"
    ensemble_folders([source], out, save_probabilities=True, workers=0)
    (source / "q.npz").write_text("damaged")
    outcome = ensemble_folders([source], out, overwrite=True, workers=0)
    assert outcome.predicted == ("p",)
    assert sorted(path.name for path in out.glob("*.n*")) == ["p.nii.gz", "q.nii.gz", "q.npz"]


@pytest.mark.parametrize("frame", ["frame3.png", "new_0003.png", "new_12345.png"])
def test_no_frame_of_a_video_is_overwritten_unasked(tmp_path: Path, frame: str) -> None:
    source = write_folder(tmp_path / "a", "clip", "new")
    description = json.loads((source / "dataset.json").read_text())
    frames = [f"frame{number}" for number in range(6)]
    write_json(source / "dataset.json", {**description, "file_ending": ".png", "sequences": {"clip": frames}})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / frame).write_text("mine")
    with pytest.raises(OutputError, match=rf"already holds {frame}\. Give `overwrite`"):
        ensemble_folders([source], tmp_path / "out", workers=0)
    assert [path.read_text() for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_cases_that_do_not_fit_are_reported_and_the_others_done(tmp_path: Path) -> None:
    names = ("classes", "damaged", "good", "grid")
    sources = [write_folder(tmp_path / "a", *names), write_folder(tmp_path / "b", *names)]
    write(sources[1] / "classes.npz", outputs=("background", "organ", "tumour"))
    (sources[1] / "damaged.npz").write_bytes(b"PK\x03\x04")
    write(sources[1] / "grid.npz", geometry=Geometry(shape=(6, 9, 8), spacing=(2.0, 1.0, 0.8)))
    outcome = ensemble_folders(sources, tmp_path / "out", workers=0)
    assert outcome.predicted == ("good",)
    for problem, text in zip(
        outcome.problems, ("tumour, but dataset.json has", "cannot be read", "spacing"), strict=True
    ):
        assert text in problem
    with pytest.raises(ImageError, match="has background, organ, lesion"):
        average_files([sources[1] / "classes.npz"], CLASSES)


def test_a_name_too_long_for_a_segmentation_fails_alone(tmp_path: Path) -> None:
    name = "a" * 249  # with .npz the disk takes it, with .nii.gz it does not
    sources = [write_folder(tmp_path / folder, name, "p") for folder in "ab"]
    outcome = ensemble_folders(sources, tmp_path / "out", workers=0)
    assert outcome.predicted == ("p",) and "Rename the case" in outcome.problems[0]


def test_folders_predicted_with_and_without_flips_are_said_not_to_be_alike(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folders = [write_folder(tmp_path / name, "case", seed=number) for number, name in enumerate("ab")]
    for mirrors, said in (((True, True), False), ((False, None), False), ((True, False), True)):
        caplog.clear()
        for folder, mirror in zip(folders, mirrors, strict=True):
            write_json(folder / "predicted_with.json", {} if mirror is None else {"mirror": mirror})
        ensemble_folders(folders, tmp_path / "out", overwrite=True, workers=0)
        assert ("with flips, others without" in caplog.text) == said
