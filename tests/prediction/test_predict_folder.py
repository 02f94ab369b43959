"""Folders of images to segmentations, with a network that reads classes off the intensities."""

import gc
import json
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from masam_auto.core.boxes import VoxelBox
from masam_auto.core.claims import claimed
from masam_auto.core.errors import ModelError, OutputError
from masam_auto.formats.inputs import find_inputs
from masam_auto.formats.io import read_geometry, read_image, read_labels
from masam_auto.formats.probability_files import read_probabilities
from masam_auto.prediction import predict_folder as stage
from masam_auto.prediction.predict import Predictor, combine
from masam_auto.prediction.predict_folder import PredictionOptions, predict_folder
from tests import intensity_model

Make = Callable[..., Path]


def dice(prediction: np.ndarray, reference: np.ndarray, value: int) -> float:
    both = ((prediction == value) & (reference == value)).sum()
    return 2 * both / ((prediction == value).sum() + (reference == value).sum())


def names(folder: Path) -> list[str]:
    """All files, hidden ones too, but the companions."""
    return sorted(p.name for p in folder.iterdir() if p.name not in ("dataset.json", "plan.json"))


@pytest.mark.parametrize(
    ("spacing", "axis_order"),
    [((3.0, 1.0, 0.8), (0, 1, 2)), ((1.0, 0.8, 3.0), (1, 2, 0)), ((2.0, 0.9, 0.9), (0, 1, 2))],
)
def test_segmentations_lie_on_the_images_grid_and_are_right(
    raw_dataset: Callable[..., Path],
    tmp_path: Path,
    spacing: tuple[float, float, float],
    axis_order: tuple[int, int, int],
) -> None:
    raw = raw_dataset(cases=3)
    outcome = predict_folder(
        intensity_model.make_predictor(raw, spacing=spacing, axis_order=axis_order), raw / "imagesTr", tmp_path / "out"
    )
    assert outcome.predicted == ("case_000", "case_001", "case_002")
    assert not outcome.problems
    assert json.loads((tmp_path / "out" / "dataset.json").read_text()) == json.loads((raw / "dataset.json").read_text())
    for identifier in outcome.predicted:
        predicted, geometry = read_labels(tmp_path / "out" / f"{identifier}.nii.gz")
        reference, _ = read_labels(raw / "labelsTr" / f"{identifier}.nii.gz")
        assert geometry.difference(read_geometry(raw / "imagesTr" / f"{identifier}_0000.nii.gz")) is None
        assert min(dice(predicted, reference, value) for value in (1, 2)) > (0.99 if spacing[0] != 2.0 else 0.8)


def test_videos_give_one_mask_a_frame(video_dataset: Callable[..., Path], tmp_path: Path) -> None:
    raw = video_dataset(sequences=2, frames=4, colour=False)
    predictor = intensity_model.make_predictor(raw, spacing=(1.0, 1.0, 1.0))
    outcome = predict_folder(predictor, raw / "imagesTr", tmp_path / "out")
    assert outcome.predicted == ("clip0", "clip1")
    masks = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert masks == [f"clip{s}_frame{f:03d}.png" for s in range(2) for f in range(4)]
    for name in masks:
        predicted, _ = read_labels(tmp_path / "out" / name)
        reference, _ = read_labels(raw / "labelsTr" / name)
        assert dice(predicted, reference, 1) > 0.95


def test_existing_segmentations_are_not_overwritten_unasked(raw_dataset: Callable[..., Path], tmp_path: Path) -> None:
    raw = raw_dataset(cases=2)
    predictor, out = intensity_model.make_predictor(raw), tmp_path / "out"
    predict_folder(predictor, raw / "imagesTr", out)
    (out / "case_001.nii.gz").write_bytes(b"mine")
    with pytest.raises(OutputError, match=r"already holds case_000.nii.gz, case_001.nii.gz. Give `overwrite`"):
        predict_folder(predictor, raw / "imagesTr", out)
    (out / "case_000.nii.gz").unlink()
    outcome = predict_folder(predictor, raw / "imagesTr", out, PredictionOptions(continue_prediction=True))
    assert (outcome.predicted, outcome.skipped) == (("case_000",), ("case_001",))
    assert (out / "case_001.nii.gz").read_bytes() == b"mine"
    (out / "case_001.nii.gz").write_bytes(b"")  # what a full disk leaves
    outcome = predict_folder(predictor, raw / "imagesTr", out, PredictionOptions(continue_prediction=True))
    assert (outcome.predicted, outcome.skipped) == (("case_001",), ("case_000",))
    outcome = predict_folder(predictor, raw / "imagesTr", out, PredictionOptions(overwrite=True))
    assert len(outcome.predicted) == 2
    assert read_labels(out / "case_001.nii.gz")[0].max() == 2


def test_a_bad_case_does_not_stop_the_others(raw_dataset: Callable[..., Path], tmp_path: Path) -> None:
    raw = raw_dataset(cases=3)
    (raw / "imagesTr" / "case_001_0000.nii.gz").write_bytes(b"not an image")
    outcome = predict_folder(intensity_model.make_predictor(raw), raw / "imagesTr", tmp_path / "out")
    assert outcome.predicted == ("case_000", "case_002")
    (problem,) = outcome.problems
    assert "case_001" in problem
    assert not (tmp_path / "out" / "case_001.nii.gz").exists()


def test_a_name_too_long_for_the_segmentation_fails_alone(raw_dataset: Callable[..., Path], tmp_path: Path) -> None:
    raw = raw_dataset(cases=2)
    images = tmp_path / "in"
    images.mkdir()
    for name in ("a" * 249, "b"):
        nibabel.save(nibabel.load(raw / "imagesTr/case_000_0000.nii.gz"), images / f"{name}.nii")
    outcome = predict_folder(
        intensity_model.make_predictor(raw), images, tmp_path / "out", PredictionOptions(output_format=".nii.gz")
    )
    assert outcome.predicted == ("b",) and "Rename the case" in outcome.problems[0]


def test_wrong_channels_name_the_case(raw_dataset: Callable[..., Path], tmp_path: Path) -> None:
    raw = raw_dataset(cases=2, channels=2)
    (raw / "imagesTr" / "case_001_0001.nii.gz").unlink()
    outcome = predict_folder(intensity_model.make_predictor(raw), raw / "imagesTr", tmp_path / "out")
    assert outcome.predicted == ("case_000",)
    assert "case_001: has 1 channel" in outcome.problems[0]


def test_label_files_in_place_of_images(raw_dataset: Callable[..., Path], tmp_path: Path) -> None:
    raw = raw_dataset(cases=1)
    outcome = predict_folder(intensity_model.make_predictor(raw), raw / "labelsTr", tmp_path / "out")
    assert not outcome.predicted
    assert "looks like a segmentation" in outcome.problems[0]


def test_the_result_is_that_of_one_case_after_the_other(raw_dataset: Make, tmp_path: Path) -> None:
    raw, out = raw_dataset(cases=7), tmp_path / "out"
    predictor = intensity_model.make_predictor(raw, spacing=(2.0, 0.9, 0.9))
    assert len(predict_folder(predictor, raw / "imagesTr", out).predicted) == 7
    for case in find_inputs(raw / "imagesTr", predictor.description):
        found, _ = read_labels(out / f"{case.identifier}.nii.gz")
        np.testing.assert_array_equal(found, predictor.predict_files(case.images[0]).labels)


def test_probabilities_are_written_beside_and_belong_to_what_is_done(raw_dataset: Make, tmp_path: Path) -> None:
    raw, out = raw_dataset(cases=2), tmp_path / "out"
    predictor = intensity_model.make_predictor(raw)
    predict_folder(predictor, raw / "imagesTr", out, PredictionOptions(save_probabilities=True))
    assert names(out) == [f"case_{i:03d}.{ending}" for i in range(2) for ending in ("nii.gz", "npz")]
    found = read_probabilities(out / "case_000.npz")
    labels, _ = read_labels(out / "case_000.nii.gz")
    np.testing.assert_array_equal(found.values.argmax(axis=0), labels[tuple(slice(*side) for side in found.crop)])
    (out / "case_000.npz").unlink()
    again = PredictionOptions(continue_prediction=True)
    assert predict_folder(predictor, raw / "imagesTr", out, again).predicted == ()
    again = PredictionOptions(continue_prediction=True, save_probabilities=True)
    assert predict_folder(predictor, raw / "imagesTr", out, again).predicted == ("case_000",)
    with pytest.raises(OutputError, match=r"already holds case_000\.nii\.gz, case_000\.npz"):
        predict_folder(predictor, raw / "imagesTr", out, PredictionOptions(save_probabilities=True))
    predict_folder(predictor, raw / "imagesTr", out, PredictionOptions(overwrite=True))
    assert names(out) == ["case_000.nii.gz", "case_001.nii.gz"], "an ensemble would average what is out of date"


def test_boxes_and_probabilities_exclude_each_other(
    raw_dataset: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = raw_dataset(cases=1)
    monkeypatch.setattr(Predictor, "check_takes_boxes", lambda self: None)
    boxes = {"case_000": [VoxelBox(box=((0, 3), (0, 9), (0, 9)))]}
    with pytest.raises(ModelError, match=r"Leave out `boxes` or `save_probabilities`"):
        predict_folder(
            intensity_model.make_predictor(raw),
            raw / "imagesTr",
            tmp_path / "out",
            PredictionOptions(save_probabilities=True),
            boxes=boxes,
        )


def test_parts_are_disjoint_and_complete_and_look_at_their_own_files_only(raw_dataset: Make, tmp_path: Path) -> None:
    raw, out = raw_dataset(cases=5), tmp_path / "out"
    predictor = intensity_model.make_predictor(raw)
    parts = [
        predict_folder(predictor, raw / "imagesTr", out, PredictionOptions(part=(k, 3))).predicted for k in range(3)
    ]
    assert parts == [("case_000", "case_003"), ("case_001", "case_004"), ("case_002",)]
    with pytest.raises(OutputError, match=r"already holds case_002.nii.gz\. Give"):
        predict_folder(predictor, raw / "imagesTr", out, PredictionOptions(part=(2, 3)))


def failing(monkeypatch: pytest.MonkeyPatch, name: str, failures: dict[str, list[Exception]]) -> list[str]:
    """Let a step of the pipeline raise the errors of a case, one at each call; gives the cases in order of the
    calls."""
    step, calls = getattr(stage, name), []

    def disturbed(*arguments: Any, **options: Any) -> Any:
        case = options.get("identifier") or arguments[0].identifier
        calls.append(case)
        if failures.get(case):
            raise failures[case].pop(0)
        return step(*arguments, **options)

    monkeypatch.setattr(stage, name, disturbed)
    return calls


@pytest.mark.parametrize("step", ["read_case", "write_segmentation"])
@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_a_case_that_ran_out_of_memory_is_done_at_the_end_alone(
    raw_dataset: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    error: Exception,
) -> None:
    raw = raw_dataset(cases=4)
    calls = failing(monkeypatch, step, {"case_001": [error], "case_002": [error, error]})
    outcome = predict_folder(intensity_model.make_predictor(raw), raw / "imagesTr", tmp_path / "out")
    assert outcome.predicted == ("case_000", "case_001", "case_003")
    assert outcome.problems[0].startswith(
        "case case_002: not enough memory, even with no other case in memory. Predict"
    )
    assert calls[-2:] == ["case_001", "case_002"] and len(calls) == 6
    assert names(tmp_path / "out") == [f"case_{i:03d}.nii.gz" for i in (0, 1, 3)]


def test_what_filled_the_memory_is_let_go_of(
    raw_dataset: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = raw_dataset(cases=2)
    predictor, held = intensity_model.make_predictor(raw), list[weakref.ref]()
    segment = type(predictor).segment

    def fill(self: Any, prepared: Any, *arguments: Any, **options: Any) -> np.ndarray:
        gc.collect()
        assert all(ref() is None for ref in held)
        large = torch.zeros(100)
        if len(held) < 2:
            held.append(weakref.ref(large))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return segment(self, prepared, *arguments, **options)

    monkeypatch.setattr(type(predictor), "segment", fill)
    assert len(predict_folder(predictor, raw / "imagesTr", tmp_path / "out").predicted) == 2
    assert len(held) == 2


def test_a_bug_ends_it_and_names_the_case(raw_dataset: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = raw_dataset(cases=3)
    failing(monkeypatch, "read_case", {"case_001": [KeyError("bug")]})
    with pytest.raises(KeyError) as raised:
        predict_folder(intensity_model.make_predictor(raw), raw / "imagesTr", tmp_path / "out")
    assert raised.value.__notes__ == ["This happened with case case_001."]
    assert "case_000.nii.gz" in names(tmp_path / "out")


@pytest.mark.parametrize("save_probabilities", [False, True])
@pytest.mark.parametrize("error", [OutputError("the disk is full"), KeyboardInterrupt()])
def test_an_end_before_the_end_keeps_whole_files_only(
    raw_dataset: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    save_probabilities: bool,
) -> None:
    raw, threads = raw_dataset(cases=9), threading.active_count()
    predictor = intensity_model.make_predictor(raw)
    segment, made = type(predictor).segment, list[Any]()

    def interrupted(self: Any, *arguments: Any, **options: Any) -> np.ndarray:
        made.append(segment(self, *arguments, **options))
        if len(made) == 4:
            raise error
        return made[-1]

    monkeypatch.setattr(type(predictor), "segment", interrupted)
    with pytest.raises(type(error)):
        predict_folder(
            predictor, raw / "imagesTr", tmp_path / "out", PredictionOptions(save_probabilities=save_probabilities)
        )
    endings = ("nii.gz", "npz") if save_probabilities else ("nii.gz",)
    assert names(tmp_path / "out") == [f"case_{i:03d}.{ending}" for i in range(3) for ending in endings]
    assert threading.active_count() == threads


def test_how_much_is_read_ahead_depends_on_the_free_memory(
    raw_dataset: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = raw_dataset(cases=6)
    predictor = intensity_model.make_predictor(raw)
    read, written, ahead = list[str](), list[str](), list[int]()
    read_case, write_segmentation = stage.read_case, stage.write_segmentation

    def reading(case: Any, *arguments: Any) -> Any:
        read.append(case.identifier)
        ahead.append(len(read) - len(written))
        return read_case(case, *arguments)

    def writing(case: Any, *arguments: Any) -> None:
        write_segmentation(case, *arguments)
        written.append(case.identifier)

    monkeypatch.setattr(stage, "read_case", reading)
    monkeypatch.setattr(stage, "write_segmentation", writing)
    monkeypatch.setattr(stage, "free_memory", lambda: 10_000)
    predict_folder(predictor, raw / "imagesTr", tmp_path / "out")
    assert ahead == [1] * 6, "one at a time, where there is no memory for two"


def test_the_estimate_counts_each_way_to_preprocess_once(raw_dataset: Make) -> None:
    raw = raw_dataset(cases=1)
    (case,) = find_inputs(raw / "imagesTr", intensity_model.make_predictor(raw).description)
    one, other = (intensity_model.make_predictor(raw, axis_order=order) for order in ((0, 1, 2), (1, 2, 0)))
    alone, alike, apart = (
        stage.memory_estimate(combine(predictors))(case) for predictors in ([one], [one, one], [one, other])
    )
    voxels = np.prod(read_geometry(case.images[0][0]).shape)
    assert alone == alike
    assert apart > alone
    prepared = combine([one, other]).prepare(*read_image(case.images[0][0]), identifier="a")
    assert apart >= 4 * 2 * voxels + sum(image.nbytes for image in prepared.images)  # type: ignore[attr-defined]


def test_one_command_at_a_time_predicts_into_a_folder(raw_dataset: Callable[..., Path], tmp_path: Path) -> None:
    raw = raw_dataset(cases=2)
    predictor, out = intensity_model.make_predictor(raw), tmp_path / "out"
    with claimed(out, "prediction"):
        with pytest.raises(OutputError, match="another process works on prediction there"):
            predict_folder(predictor, raw / "imagesTr", out)
        assert names(out) == [".prediction.lock"]
    with claimed(out, "prediction", together=True):
        assert predict_folder(predictor, raw / "imagesTr", out, PredictionOptions(part=(0, 2))).predicted == (
            "case_000",
        )
    assert predict_folder(predictor, raw / "imagesTr", out, PredictionOptions(continue_prediction=True)).predicted == (
        "case_001",
    )
