"""Images to segmentations, with a network that reads classes off the intensities."""

import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from masam_auto.core.boxes import VoxelBox
from masam_auto.core.errors import DatasetError, ImageError, ModelError, PlanError
from masam_auto.core.jsonio import write_json
from masam_auto.core.labels import parse_labels
from masam_auto.core.postprocessing import Postprocessing, PostprocessingStep
from masam_auto.core.selection import SelectedModel, Selection
from masam_auto.formats.io import read_geometry, read_image, read_labels
from masam_auto.models.load_model import Member
from masam_auto.prediction import predict
from masam_auto.prediction.predict import Input, Predictor, combine, load_selection
from tests import intensity_model


def dice(prediction: np.ndarray, reference: np.ndarray, value: int) -> float:
    both = ((prediction == value) & (reference == value)).sum()
    return 2 * both / ((prediction == value).sum() + (reference == value).sum())


def test_arrays_in_memory(raw_dataset: Callable[..., Path]) -> None:
    raw = raw_dataset(cases=1)
    predictor = intensity_model.make_predictor(raw)
    image, geometry = read_image(raw / "imagesTr" / "case_000_0000.nii.gz")
    before = image.copy()
    found = predictor.predict_array(image, geometry)
    reference, _ = read_labels(raw / "labelsTr" / "case_000.nii.gz")
    assert found.labels is not None and found.probabilities is None and found.geometry == geometry
    assert dice(found.labels, reference, 1) > 0.99
    assert np.array_equal(image, before)
    by_spacing = predictor.predict_array(image.astype(np.float64), geometry.spacing)
    np.testing.assert_array_equal(by_spacing.labels, found.labels)
    with pytest.raises(ImageError, match="case mine has 2 channels; the model takes 1"):
        predictor.predict_array(np.concatenate([image, image]), geometry, identifier="mine")
    with pytest.raises(ImageError, match=r"case in memory has shape \(16, 14\).*Add the channel axis"):
        predictor.predict_array(image[0, 0], geometry)
    with pytest.raises(ImageError, match=r"needs a spacing along 3 axes \(mm\), got \(1.0, 1.0\)"):
        predictor.predict_array(image, (1.0, 1.0))
    with pytest.raises(ImageError, match=r"has shape \(5, 16, 14\) \(Z, Y, X\), but its geometry \(6, 16, 14\)"):
        predictor.predict_array(image[:, 1:], geometry)
    for grid in (geometry, geometry.spacing):
        with pytest.raises(ImageError, match=r"A volume needs its channel axis: image\[None\]"):
            predictor.predict_array(image[0], grid)
    with pytest.raises(ModelError, match="returned='logits': expected one of labels, probabilities, both"):
        predictor.predict_array(image, geometry, returned="logits")  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="case in memory has values of type complex64; expected real numbers"):
        predictor.predict_array(image.astype(np.complex64), geometry)
    for value in (np.nan, np.inf, -np.inf):
        image[0, 2, 3, :2] = value
        with pytest.raises(ImageError, match=r"case in memory: 2 of \d+ voxels are not finite"):
            predictor.predict_array(image, geometry)


def test_nothing_given(raw_dataset: Callable[..., Path]) -> None:
    with pytest.raises(ModelError, match="no model is given"):
        Predictor.from_folder([], "cpu")
    with pytest.raises(DatasetError, match="no image file is given"):
        intensity_model.make_predictor(raw_dataset(cases=1)).predict_files([])


def test_labels_probabilities_or_both(raw_dataset: Callable[..., Path]) -> None:
    raw = raw_dataset(cases=1)
    predictor = intensity_model.make_predictor(raw, axis_order=(1, 2, 0), spacing=(1.0, 0.8, 3.0))
    image, geometry = read_image(raw / "imagesTr" / "case_000_0000.nii.gz")
    labels = predictor.predict_array(image, geometry).labels
    both = predictor.predict_array(image, geometry, returned="both")
    only = predictor.predict_array(image, geometry, returned="probabilities")
    assert labels is not None and both.probabilities is not None and only.probabilities is not None
    np.testing.assert_array_equal(both.labels, labels)
    assert only.labels is None
    np.testing.assert_array_equal(only.probabilities.values, both.probabilities.values)
    inside = labels[tuple(slice(*side) for side in both.probabilities.crop)]
    values = both.probabilities.values.astype(np.float32)
    np.testing.assert_allclose(values.sum(axis=0), 1, atol=2e-3)
    np.testing.assert_array_equal(values.argmax(axis=0), inside)


def test_a_picture_in_memory(video_dataset: Callable[..., Path]) -> None:
    raw = video_dataset(sequences=1, frames=1, colour=False)
    predictor = intensity_model.make_predictor(raw, spacing=(1.0, 1.0, 1.0))
    image, geometry = read_image(raw / "imagesTr" / "clip0_frame000_0000.png")
    found = predictor.predict_array(image[:, 0], (1.0, 1.0))
    assert found.geometry.shape == geometry.shape and found.geometry.dimensions == 2
    np.testing.assert_array_equal(found.labels, predictor.predict_array(image, geometry).labels)


def test_files_and_iterators_are_read_when_asked_for(raw_dataset: Callable[..., Path]) -> None:
    raw = raw_dataset(cases=3, channels=2)
    predictor = intensity_model.make_predictor(raw)
    channels = [raw / "imagesTr" / f"case_001_{c:04d}.nii.gz" for c in range(2)]
    image = np.concatenate([read_image(file)[0] for file in channels])
    expected = predictor.predict_array(image, read_geometry(channels[0])).labels
    np.testing.assert_array_equal(predictor.predict_files(channels).labels, expected)
    np.testing.assert_array_equal(predictor.predict_files(str(channels[0])).labels, expected)  # finds the other channel
    taken = []

    def inputs() -> Iterator[Input]:
        for given in (channels, (image, read_geometry(channels[0])), channels[0]):
            taken.append(given)
            yield given

    predictions = predictor.predict_all(inputs(), returned="both")
    assert not taken
    for number, prediction in enumerate(predictions, 1):
        assert len(taken) == number
        np.testing.assert_array_equal(prediction.labels, expected)
        assert prediction.probabilities is not None
    assert len(taken) == 3
    with pytest.raises(DatasetError, match=r"imagesTr holds 3 images \(case_000, case_001, case_002\) instead of one"):
        predictor.predict_files(raw / "imagesTr")


def test_several_threads_may_use_one_predictor(raw_dataset: Callable[..., Path]) -> None:
    raw = raw_dataset(cases=4)
    predictor = intensity_model.make_predictor(raw, spacing=(2.0, 0.9, 0.9))
    predictor = combine([predictor, intensity_model.make_predictor(raw, axis_order=(1, 2, 0), spacing=(1.0, 0.8, 3.0))])
    files = sorted((raw / "imagesTr").glob("*.nii.gz"))
    alone = [predictor.predict_files(file).labels for file in files]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda file: predictor.predict_files(file).labels, files * 4))
    for found, expected in zip(together, alone * 4, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_how_to_predict_can_be_changed(raw_dataset: Callable[..., Path]) -> None:
    predictor = intensity_model.make_predictor(raw_dataset(cases=1))
    (member,) = predictor.changed(step_size=0.5, mirror=False).members
    inference = member.plan.inference
    assert (inference.depth, inference.slice_stride, inference.tile_overlap) == ("windows", 2, 0.5)  # windows of 3
    assert not inference.mirror and inference.max_slices == 6
    (member,) = predictor.changed(step_size=0.1).members
    assert (member.plan.inference.slice_stride, member.plan.inference.tile_overlap) == (1, 0.9)
    assert member.plan.inference.mirror
    assert predictor.changed() == predictor
    for step_size in (0.0, 1.5, float("nan")):
        with pytest.raises(PlanError, match=r"the step size must be at least 0\.05 and at most 1"):
            predictor.changed(step_size=step_size)


def test_an_ensemble_averages_its_members(raw_dataset: Callable[..., Path]) -> None:
    raw = raw_dataset(cases=1)
    image, geometry = read_image(raw / "imagesTr" / "case_000_0000.nii.gz")
    one = intensity_model.make_predictor(raw, spacing=(2.0, 0.9, 0.9))
    other = intensity_model.make_predictor(raw, spacing=(1.0, 0.8, 3.0), axis_order=(1, 2, 0))
    apart = [p.predict_array(image, geometry, returned="probabilities").probabilities for p in (one, other)]
    found = combine([one, other]).predict_array(image, geometry, returned="both")
    assert found.probabilities is not None and apart[0] is not None and apart[1] is not None
    mean = (apart[0].values.astype(np.float32) + apart[1].values.astype(np.float32)) / 2
    np.testing.assert_allclose(found.probabilities.values, mean, atol=2e-3)
    assert np.abs(apart[0].values - apart[1].values).max() > 0.05
    box = VoxelBox(box=((0, 3), (0, 9), (0, 9)))
    with pytest.raises(ModelError, match="an ensemble of several configurations takes no boxes"):
        combine([one, other]).predict_array(image, geometry, boxes=[box])


def test_models_of_other_data_are_not_averaged(raw_dataset: Callable[..., Path]) -> None:
    one = intensity_model.make_predictor(raw_dataset(cases=1))
    renamed = replace(one.description, labels=parse_labels({"background": 0, "other": 1, "b": 2}, None))
    with pytest.raises(ModelError, match=r"masam__axis0 and masam__axis0 cannot be averaged: .* different labels"):
        combine([one, replace(one, description=renamed)])
    two = replace(one.description, channel_names=("T1", "T2"))
    with pytest.raises(ModelError, match="were trained with different channel names"):
        combine([one, replace(one, description=two)])


def test_members_that_preprocess_alike_share_the_image(raw_dataset: Callable[..., Path]) -> None:
    raw = raw_dataset(cases=1)
    image, geometry = read_image(raw / "imagesTr" / "case_000_0000.nii.gz")
    one = intensity_model.make_predictor(raw)
    prepared = combine([one, one, intensity_model.make_predictor(raw, spacing=(2.0, 0.9, 0.9))]).prepare(
        image, geometry, identifier="a"
    )
    assert prepared.images[0] is prepared.images[1]
    assert prepared.images[1].shape != prepared.images[2].shape


@pytest.fixture
def loaded(raw_dataset: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """results/Dataset001_Toy/{masam,other}__axis0 and images in tmp_path; gives the checkpoints that are loaded."""
    raw = raw_dataset(cases=2)
    made, loaded = intensity_model.make_predictor(raw), []

    def load_member(checkpoints: Sequence[Path], *arguments: object, **options: object) -> Member:
        loaded.append([f"{path.parents[1].name}/{path.parent.name}/{path.name}" for path in checkpoints])
        return made.members[0]

    monkeypatch.setattr(predict, "load_member", load_member)
    for name in ("masam__axis0", "other__axis0"):
        folder = tmp_path / "results" / raw.name / name
        for fold in range(2):
            (folder / f"fold_{fold}" / "checkpoint_best").mkdir(parents=True)
        write_json(folder / "plan.json", made.members[0].plan)
        write_json(folder / "dataset.json", made.description.raw)
    (tmp_path / "images").symlink_to(raw / "imagesTr")
    return loaded


def test_models_are_loaded_from_their_folders(loaded: list[list[str]], tmp_path: Path) -> None:
    results, file = tmp_path / "results", tmp_path / "images" / "case_000_0000.nii.gz"
    folders = [results / "Dataset001_Toy" / name for name in ("masam__axis0", "other__axis0")]
    single = Predictor.from_folder(folders[0], "cpu")
    assert loaded == [[f"masam__axis0/fold_{fold}/checkpoint_best" for fold in range(2)]]
    labels = single.predict_files(file).labels
    assert labels is not None and set(np.unique(labels)) == {0, 1, 2}
    assert len(Predictor.from_folder([str(folder) for folder in folders], torch.device("cpu"), folds=[1]).members) == 2
    assert loaded[1:] == [[f"{name}/fold_1/checkpoint_best"] for name in ("masam__axis0", "other__axis0")]
    with pytest.raises(ModelError, match="is not a trained model"):
        Predictor.from_folder(tmp_path, "cpu")
    with pytest.raises(ModelError, match="Choose one of best, latest, final"):
        Predictor.from_folder(folders[0], "cpu", checkpoint="foo")
    steps = (PostprocessingStep(target="organ", values=(1,), rule="remove_small", volume=1e9),)
    selection = Selection(
        dataset_name="Dataset001_Toy",
        members=(SelectedModel(plan_name="masam", configuration="axis0", folds=(0,)),),
        postprocessing=Postprocessing(steps=steps),
        dice=0.9,
        dice_by_class={},
        cases=1,
        candidates=(),
        reasons=(),
    )
    chosen = load_selection(selection, results, device=torch.device("cpu"))
    found = chosen.predict_files(file, returned="both")
    assert loaded[3:] == [["masam__axis0/fold_0/checkpoint_best"]]
    assert found.labels is not None and not (found.labels == 1).any() and (found.labels == 2).any()
    assert found.probabilities is not None and (found.probabilities.values.argmax(axis=0) == 1).any()


def test_the_documentation_runs(loaded: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(__file__).parents[2] / "documentation" / "predictor.md"
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 2
    exec(compile("\n".join(blocks), str(page), "exec"), {})
    assert [len(checkpoints) for checkpoints in loaded] == [2, 2, 2]
