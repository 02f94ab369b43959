"""segment(turn(image)) == turn(segment(image)), for all 48 ways to store a volume, on whatever reads images.

The network tells places apart, so that any exchange of sides, slices or planes shows. Files are turned by nibabel.
"""

import dataclasses
import itertools
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from torch import nn

from masam_auto.core.boxes import GivenBox, VoxelBox, WorldBox
from masam_auto.core.dataset import Dataset, open_dataset
from masam_auto.core.fingerprint import Fingerprint
from masam_auto.core.geometry import Box, Geometry
from masam_auto.core.jsonio import read_json, write_json
from masam_auto.core.labels import parse_labels
from masam_auto.core.paths import Paths
from masam_auto.core.plan import Plan
from masam_auto.core.postprocessing import Postprocessing, PostprocessingStep
from masam_auto.core.turning import STAY
from masam_auto.evaluation.box_protocol import BoxProtocol, reference_boxes
from masam_auto.evaluation.ensemble import average_files
from masam_auto.evaluation.evaluate import Scoring, evaluate_folder
from masam_auto.evaluation.postprocess import determine_postprocessing, postprocess_folder
from masam_auto.evaluation.validate import predict_preprocessed
from masam_auto.formats.io import read_image, read_labels
from masam_auto.formats.probability_files import read_probabilities
from masam_auto.formats.storage import open_array
from masam_auto.planning.make_plan import make_plan
from masam_auto.prediction.predict import Predictor, combine
from masam_auto.prediction.predict_folder import PredictionOptions, predict_folder
from masam_auto.preprocessing.fingerprint import extract_fingerprint, most_frequent_axes
from masam_auto.preprocessing.preprocess import preprocess_dataset
from tests import dicom_files, intensity_model

CODES = [
    "".join(letters) for order in itertools.permutations(("LR", "PA", "SI")) for letters in itertools.product(*order)
]
MODEL_AXES = "LPS"
CASE = "case_000"


class ByPlace(nn.Module):
    """Classes by intensity, mixed with where a pixel lies in the picture; within a box also with that."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.values = 100.0 + 60 * torch.arange(outputs)
        self.eval()

    def forward(self, windows: torch.Tensor, boxes: torch.Tensor | None = None) -> torch.Tensor:
        near = -(windows[:, :, :1] - self.values.view(1, 1, -1, 1, 1)).abs()
        rows, columns = torch.arange(windows.shape[3]), torch.arange(windows.shape[4])
        place = (3 * rows[:, None] + 5 * columns) % len(self.values)
        wave = 40.0 * (place == torch.arange(len(self.values)).view(-1, 1, 1))
        if boxes is not None:
            wave = wave + 30.0 * (columns > boxes[..., 0, None, None, None]) * (
                torch.arange(len(self.values)) == 1
            ).view(-1, 1, 1)
        return near + wave


class UpperHalf(nn.Module):
    """Class 1 in the upper half of a picture."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs
        self.eval()

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        logits = windows.new_zeros((*windows.shape[:2], self.outputs, *windows.shape[3:]))
        logits[:, :, 1, : windows.shape[3] // 2] = 1
        return logits


def by_place(predictor: Predictor, *, prompt: str = "none", **changes: Any) -> Predictor:
    """The predictor with a network that tells places apart; `changes` are of its configuration."""
    (member,) = predictor.members
    network = ByPlace(predictor.description.labels.num_outputs)
    plan = dataclasses.replace(member.plan, network=dataclasses.replace(member.plan.network, prompt=prompt))
    configuration = dataclasses.replace(member.configuration, **({"axes": MODEL_AXES} | changes))
    new = dataclasses.replace(member, networks=(network,), plan=plan, configuration=configuration)
    return dataclasses.replace(predictor, members=(new,))


def turn_file(source: Path, target: Path, code: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.load(source)
    turn = ornt_transform(io_orientation(image.affine), axcodes2ornt(code))
    nibabel.save(image.as_reoriented(turn), target)


def turned_back(array: np.ndarray, code: str) -> np.ndarray:
    """(..., Z, Y, X) stored along `code` as it is along LPS, by nibabel."""
    turn = ornt_transform(axcodes2ornt(code), axcodes2ornt("LPS"))
    first = np.moveaxis(array, [-1, -2, -3], [0, 1, 2])
    return np.moveaxis(nibabel.orientations.apply_orientation(first, turn), [0, 1, 2], [-1, -2, -3])


@pytest.fixture
def raw(raw_dataset: Callable[..., Path]) -> Path:
    return raw_dataset(cases=1, channels=2, shape=(5, 12, 9), labels=2)


@pytest.fixture
def images(raw: Path, tmp_path: Path) -> Path:
    """The image in all 48 ways, the case called after the code; its second channel is stored otherwise still."""
    for code, other in zip(CODES, [*CODES[7:], *CODES[:7]], strict=True):
        for channel, stored in enumerate((code, other)):
            name = f"{CASE}_{channel:04d}.nii.gz"
            turn_file(raw / "imagesTr" / name, tmp_path / "in" / f"{code}_{channel:04d}.nii.gz", stored)
    return tmp_path / "in"


def check(folder: Path, images: Path, *, probabilities: bool = False) -> np.ndarray:
    """All segmentations are on their image's grid and one; it is returned."""
    expected, _ = read_labels(folder / "LPS.nii.gz")
    assert set(np.unique(expected)) == {0, 1, 2}
    whole = read_probabilities(folder / "LPS.npz") if probabilities else None
    for code in CODES:
        labels, found = read_labels(folder / f"{code}.nii.gz")
        assert found.axes == code and found.difference(read_image(images / f"{code}_0000.nii.gz")[1]) is None
        np.testing.assert_array_equal(turned_back(labels, code), expected, err_msg=code)
        if whole is not None:
            one = read_probabilities(folder / f"{code}.npz")
            np.testing.assert_array_equal(turned_back(one.values, code), whole.values, err_msg=code)
            inside = labels[tuple(slice(*side) for side in one.crop)]
            assert (one.values.argmax(axis=0) == inside).mean() > 0.95  # ties of float16
    return expected


@pytest.mark.parametrize("axis_order", [(0, 1, 2), (2, 0, 1)])
@pytest.mark.parametrize("axes", ["LPS", "PIR"])
def test_prediction(
    raw: Path,
    images: Path,
    tmp_path: Path,
    axis_order: tuple[int, int, int],
    axes: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    predictor = by_place(intensity_model.make_predictor(raw, spacing=(2.6, 0.9, 1.1), axis_order=axis_order), axes=axes)
    with caplog.at_level(logging.INFO, "masam_auto"):
        outcome = predict_folder(predictor, images, tmp_path / "out", PredictionOptions(save_probabilities=True))
    assert len(outcome.predicted) == 48 and not outcome.problems
    check(tmp_path / "out", images, probabilities=True)
    said = [text for text in caplog.messages if "is turned" in text]
    assert len(said) == 47 and any(f"its axes (x, y, z) IAR to the model's {axes}, and the" in text for text in said)


def test_what_is_turned_is_said_once(raw: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, code in (("a", "RAS"), ("b", "RAS"), ("c", "LPS")):
        for channel in range(2):
            source = raw / "imagesTr" / f"{CASE}_{channel:04d}.nii.gz"
            turn_file(source, tmp_path / "in" / f"{name}_{channel:04d}.nii.gz", code)
    for axes, words in (
        ("LPS", "from its axes (x, y, z) RAS to the model's LPS"),
        ("unknown", "nothing is turned"),
        (None, "an older release) does not say"),
    ):
        caplog.clear()
        with caplog.at_level(logging.INFO, "masam_auto"):
            predict_folder(
                by_place(intensity_model.make_predictor(raw), axes=axes), tmp_path / "in", tmp_path / f"{axes}"
            )
        notes = [text for text in caplog.messages if "(logged once)" in text]
        assert len(notes) == (1 if axes == "LPS" else 2) and all(words in text for text in notes)


def test_normalisation_gives_the_same_digits(raw: Path, images: Path) -> None:
    """Sums depend on the order of what is summed."""
    predictor = intensity_model.make_predictor(raw)
    (member,) = predictor.members
    scheme = dataclasses.replace(member.configuration.normalization[0], scheme="zscore", inside_mask=True)
    predictor = by_place(predictor, normalization=(scheme, scheme), spacing=(2.6, 0.9, 1.1))

    def prepared(code: str) -> np.ndarray:
        parts = [read_image(images / f"{code}_0000.nii.gz")]
        image, geometry = np.concatenate([parts[0][0], parts[0][0] ** 2]), parts[0][1]
        return np.asarray(predictor.prepare(image, geometry, identifier=code).images[0])

    expected = prepared("LPS")
    for code in CODES:
        np.testing.assert_array_equal(prepared(code), expected)


def test_ensembles_in_memory_and_from_files(raw: Path, images: Path, tmp_path: Path) -> None:
    across = by_place(intensity_model.make_predictor(raw, axis_order=(1, 2, 0), spacing=(0.9, 1.0, 3.0)))
    other_axes = by_place(intensity_model.make_predictor(raw, spacing=(3.0, 1.0, 0.8)), axes="RIP")
    both = combine([across, other_axes]).changed(step_size=0.5)
    predict_folder(both, images, tmp_path / "both", PredictionOptions(save_probabilities=True))
    expected = check(tmp_path / "both", images, probabilities=True)
    for name, predictor in (("a", across), ("b", other_axes)):
        predict_folder(
            predictor.changed(step_size=0.5), images, tmp_path / name, PredictionOptions(save_probabilities=True)
        )
    labels = both.description.labels
    means = {}
    for code, other in itertools.product(("LPS", "RAS", "PIR", "SAL"), ("LPS", "IRP")):
        # predictions of copies of the image that are stored along different axes are averaged by place, too
        files = (tmp_path / "a" / f"{code}.npz", tmp_path / "b" / f"{other}.npz")
        found, geometry = average_files(files, labels, saved=tmp_path / "mean.npz")
        assert geometry.axes == code
        means[code, other] = turned_back(read_probabilities(tmp_path / "mean.npz").values, code)
        np.testing.assert_array_equal(means[code, other], means["LPS", "LPS"])
        assert (turned_back(found, code) == expected).mean() > 0.98


BOX: Box = ((1, 4), (2, 9), (1, 7))


def turned_box(grid: Geometry, code: str) -> VoxelBox:
    return VoxelBox(box=grid.turn_to(code).ranges(BOX, grid.shape))


@pytest.mark.parametrize("count", [1, 2])
def test_boxes_are_in_the_files_own_voxels(raw: Path, images: Path, tmp_path: Path, count: int) -> None:
    predictor = by_place(
        intensity_model.make_predictor(raw, axis_order=(1, 0, 2), spacing=(0.9, 2.6, 0.9)), prompt="box"
    )
    grid = read_image(images / "LPS_0000.nii.gz")[1]
    world = WorldBox(centre=tuple((grid.affine @ [5.0, 6.0, 2.0, 1])[:3].tolist()), sides=(2.0, 3.0, 4.0))
    boxes: Mapping[str, list[GivenBox]] = {code: [turned_box(grid, code), world][:count] for code in CODES}
    outcome = predict_folder(predictor, images, tmp_path / "out", boxes=boxes)
    assert not outcome.problems
    expected = check(tmp_path / "out", images)
    assert not expected[:, :2].any() or count == 2  # the slices of the box alone, which lie along Y


def test_boxes_from_references_that_are_stored_otherwise(raw: Path, images: Path, tmp_path: Path) -> None:
    from masam_auto.formats.inputs import find_inputs

    for code in CODES:
        turn_file(
            raw / "labelsTr" / f"{CASE}.nii.gz", tmp_path / "ref" / f"{code}.nii.gz", CODES[-1 - CODES.index(code)]
        )
    description = intensity_model.make_predictor(raw).description
    cases = find_inputs(images, description)
    boxes = reference_boxes(cases, tmp_path / "ref", ".nii.gz", description.labels, BoxProtocol(kind="tight"))
    grid = read_image(images / "LPS_0000.nii.gz")[1]
    for code in CODES:
        assert boxes[code][0].box == grid.turn_to(code).ranges(boxes["LPS"][0].box, grid.shape)


def test_evaluation(raw: Path, tmp_path: Path) -> None:
    reference = raw / "labelsTr" / f"{CASE}.nii.gz"
    image = nibabel.load(reference)
    moved = nibabel.Nifti1Image(np.roll(np.asarray(image.dataobj), (1, 0, 1), (0, 1, 2)), image.affine)
    (tmp_path / "moved").mkdir()
    nibabel.save(moved, tmp_path / "moved" / "x.nii.gz")
    for number, code in enumerate(CODES):
        turn_file(tmp_path / "moved" / "x.nii.gz", tmp_path / "pred" / f"{code}.nii.gz", code)
        turn_file(reference, tmp_path / "ref" / f"{code}.nii.gz", CODES[(7 * number) % 48])
    labels = intensity_model.make_predictor(raw).description.labels
    summary = evaluate_folder(
        tmp_path / "pred", tmp_path / "ref", labels, ".nii.gz", scoring=Scoring(lesions=("organ1",))
    )
    for key in labels.foreground.values():
        found = [entry["metrics"][str(key[0])] for entry in summary["metric_per_case"]]
        assert 0.2 < found[0]["Dice"] < 0.95
        for metrics in found:
            assert metrics == pytest.approx(found[0], nan_ok=True)


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(**{name: tmp_path / name for name in ("raw", "preprocessed", "results", "weights")})


def turn_cases(raw: Path, codes: list[str], *, labels_too: bool = True) -> None:
    for number, code in enumerate(codes):
        files = [*(raw / "imagesTr").glob(f"case_{number:03d}_*"), raw / "labelsTr" / f"case_{number:03d}.nii.gz"]
        for path in files if labels_too else files[:-1]:
            turn_file(path, path, code)


def prepared(paths: Paths, name: str) -> tuple[Dataset, Fingerprint, Plan, dict[str, np.ndarray]]:
    """The data set of this number, its fingerprint, plan and all preprocessed arrays."""
    dataset = open_dataset(paths, name)
    fingerprint = extract_fingerprint(dataset, workers=0)
    plan = make_plan(fingerprint, gpu_memory_gb=0)
    preprocess_dataset(dataset, plan, paths, workers=0)
    arrays = {
        f"{configuration}/{file.name}": np.asarray(open_array(file)[:])
        for configuration in plan.configurations
        for file in sorted(paths.configuration_folder(dataset.name, configuration).glob("*.b2nd"))
    }
    return dataset, fingerprint, plan, arrays


@pytest.mark.parametrize("labels_too", [True, False])
def test_a_mixed_training_set_is_brought_to_its_most_frequent_axes(
    raw_dataset: Callable[..., Path],
    paths: Paths,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    labels_too: bool,
) -> None:
    """What follows is what would be if all had been stored so; also where label files are stored otherwise than
    images."""
    options: dict[str, Any] = {"cases": 5, "channels": 2, "shape": (5, 14, 11)}
    raw_dataset(number=1, **options)
    mixed = raw_dataset(number=2, **options)
    codes = ["LPS", "RAS", "PIR", "LPS", "SAL"]
    turn_cases(mixed, codes, labels_too=labels_too)
    straight, plain, _, arrays = prepared(paths, "1")
    with caplog.at_level(logging.INFO, "masam_auto"):
        dataset, turned, own, found = prepared(paths, "2")
    assert (
        "point in different directions (LPS in 2, RAS in 1, PIR in 1, SAL in 1). All are turned to LPS" in caplog.text
    )
    assert [case.axes for case in turned.cases] == codes and turned.axes == plain.axes == "LPS"
    for one, other in zip(plain.cases, turned.cases, strict=True):
        assert one.shape == other.shape and one.spacing == pytest.approx(other.spacing)
        assert one.shape_after_cropping == other.shape_after_cropping
        np.testing.assert_allclose(one.direction, other.direction, atol=1e-6)
        for name, place in one.classes.items():
            np.testing.assert_allclose(place.centroid, other.classes[name].centroid, rtol=1e-5)
            np.testing.assert_allclose(place.diameters, other.classes[name].diameters, rtol=1e-5)
            assert place.slices == other.classes[name].slices
    assert own.configurations["axis0"].training_axes == ("LPS", "PIR", "RAS", "SAL")
    assert "the axes (x, y, z) of 2 of 5 cases" in own.reasons["axis0.axes"]
    configuration = own.configurations["axis0"]
    assert configuration.preprocessing_digest != dataclasses.replace(configuration, axes="RAS").preprocessing_digest
    assert arrays.keys() == found.keys()
    for name, array in arrays.items():
        if name.endswith("_seg.b2nd"):
            np.testing.assert_array_equal(found[name], array)
        else:  # the intensity statistics are of voxels drawn in the files' order
            np.testing.assert_allclose(found[name], array, atol=0.05)
    # the way back, from preprocessed arrays to each file's own grid
    (member,) = intensity_model.make_predictor(mixed).members
    predictor = dataclasses.replace(
        intensity_model.make_predictor(mixed), members=(dataclasses.replace(member, networks=(UpperHalf(3),)),)
    )
    for case, same, code in zip(dataset.cases, straight.cases, codes, strict=True):
        results = []
        for one, out in ((case, tmp_path / "mixed"), (same, tmp_path / "plain")):
            folder = paths.configuration_folder(one.images[0][0].parents[1].name, "axis0")
            predict_preprocessed(predictor, one, folder, out, ".nii.gz")
            results.append(read_labels(out / f"{one.identifier}.nii.gz"))
        (labels, geometry), (expected, _) = results
        assert geometry.difference(read_image(case.images[0][0])[1]) is None
        assert 0 < expected.mean() < 1
        np.testing.assert_array_equal(turned_back(labels, code), expected)


def test_a_uniform_training_set_is_not_turned_and_its_older_arrays_stay_valid(
    raw_dataset: Callable[..., Path], paths: Paths, caplog: pytest.LogCaptureFixture
) -> None:
    raw = raw_dataset(cases=2, shape=(5, 14, 11))
    turn_cases(raw, ["PIR", "PIR"])
    with caplog.at_level(logging.INFO, "masam_auto"):
        _, fingerprint, plan, arrays = prepared(paths, "1")
    assert fingerprint.axes == "PIR" and "point in different" not in caplog.text
    chosen = plan.configurations[plan.default_configuration]
    folder = paths.configuration_folder("Dataset001_Toy", chosen.name)
    for name in ("case_000", "case_001"):
        properties = json.loads((folder / f"{name}.json").read_text())
        assert properties["reversed_axes"] == [] and tuple(properties["axis_order"]) == chosen.axis_order
    older = without_axes(plan)
    for name, configuration in plan.configurations.items():
        assert older.configurations[name].axes is None
        assert older.configurations[name].preprocessing_digest == configuration.preprocessing_digest
        other = dataclasses.replace(configuration, axes="RAS")  # as --set axis0.axes=RAS
        assert other.preprocessing_digest != configuration.preprocessing_digest
    times = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    preprocess_dataset(open_dataset(paths, "1"), older, paths, workers=0)
    assert times == {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    for file in folder.parent.glob("*/case_001.b2nd"):
        file.unlink()
    caplog.clear()
    with caplog.at_level(logging.INFO, "masam_auto"):
        preprocess_dataset(open_dataset(paths, "1"), older, paths, workers=0)
    assert caplog.text.count("the plan is from an older release") == 1
    again = np.asarray(open_array(folder / "case_001.b2nd")[:])
    np.testing.assert_array_equal(again, arrays[f"{chosen.name}/case_001.b2nd"])


def without_axes(plan: Plan) -> Plan:
    """The plan as an older release would have read and written it."""
    return dataclasses.replace(
        plan,
        configurations={
            name: dataclasses.replace(one, axes=None, training_axes=(), slices_along=None)
            for name, one in plan.configurations.items()
        },
    )


def test_files_of_older_releases_are_read(raw_dataset: Callable[..., Path], paths: Paths, tmp_path: Path) -> None:
    raw_dataset(cases=2, shape=(5, 14, 11))
    _, fingerprint, plan, _ = prepared(paths, "1")
    stored = json.loads(json.dumps(dataclasses.asdict(fingerprint)))
    del stored["axes"], stored["slices_along"]
    for case in stored["cases"]:
        del case["axes"]
    write_json(tmp_path / "fingerprint.json", stored)
    older = read_json(tmp_path / "fingerprint.json", Fingerprint, what="fingerprint")
    assert older.axes is None
    again = make_plan(older, gpu_memory_gb=0)
    assert "older release" in again.reasons["axis0.axes"] and again.configurations["axis0"].axes is None
    stored = json.loads(json.dumps(dataclasses.asdict(plan)))
    for configuration in stored["configurations"].values():
        del configuration["axes"], configuration["training_axes"], configuration["slices_along"]
    write_json(tmp_path / "plan.json", stored)
    assert read_json(tmp_path / "plan.json", Plan, what="plan") == without_axes(plan)


def test_the_most_frequent_axes() -> None:
    assert most_frequent_axes(["RAS", "LPS", None, "LPS"]) == "LPS"
    assert most_frequent_axes(["RAS", "LPS", "LPS", "RAS"]) == "RAS"  # of equally frequent ones the first
    assert most_frequent_axes([None, None, "RAS"]) == "RAS"
    assert most_frequent_axes([None, None]) == "unknown"


def strip_forms(path: Path) -> None:
    image = nibabel.load(path)
    image.header["qform_code"] = image.header["sform_code"] = 0
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), None, image.header), path)


def test_files_without_orientation_are_left_alone(
    raw_dataset: Callable[..., Path],
    paths: Paths,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    raw = raw_dataset(cases=2, shape=(5, 14, 11), oblique=False)
    for path in raw.glob("*Tr/*.nii.gz"):
        strip_forms(path)
    with caplog.at_level(logging.INFO, "masam_auto"):
        _, fingerprint, plan, _ = prepared(paths, "1")
    assert fingerprint.axes == "unknown" and [case.axes for case in fingerprint.cases] == [None, None]
    assert "2 of 2 training images do not say where their axes point" in caplog.text
    assert "do not say where" in plan.reasons["axis0.axes"]
    caplog.clear()
    predictor = intensity_model.make_predictor(raw)
    with caplog.at_level(logging.INFO, "masam_auto"):
        predict_folder(by_place(predictor, axes="RIP"), raw / "imagesTr", tmp_path / "a")
    assert caplog.text.count("does not say where its axes point; it is used as stored") == 1
    predict_folder(by_place(predictor, axes=None), raw / "imagesTr", tmp_path / "b")
    for name in ("case_000", "case_001"):
        found, expected = (read_labels(tmp_path / folder / f"{name}.nii.gz")[0] for folder in "ab")
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("depth", [1, 2])
def test_pictures_and_videos_are_left_alone(
    video_dataset: Callable[..., Path],
    tmp_path: Path,
    depth: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    raw = video_dataset(sequences=1, frames=depth, colour=False)
    predictor = intensity_model.make_predictor(raw, spacing=(1.0, 1.0, 1.0))
    for axes in ("RIP", None):
        outcome = predict_folder(by_place(predictor, axes=axes), raw / "imagesTr", tmp_path / f"{axes}")
        assert outcome.predicted == ("clip0",)
    for frame in (tmp_path / "None").glob("*.png"):
        assert frame.read_bytes() == (tmp_path / "RIP" / frame.name).read_bytes()


def test_arrays_with_a_grid_are_turned_and_those_with_a_spacing_are_not(raw: Path, images: Path) -> None:
    predictor = by_place(intensity_model.make_predictor(raw))
    results = {}
    for code in ("LPS", *CODES[::5]):
        image, geometry = read_image(images / f"{code}_0000.nii.gz")
        both = np.concatenate([image, image])
        results[code] = turned_back(predictor.predict_array(both, geometry).labels, code)
        spaced = predictor.predict_array(both, geometry.spacing).labels
        alone = by_place(intensity_model.make_predictor(raw), axes=None).predict_array(both, geometry).labels
        np.testing.assert_array_equal(spaced, alone)
        np.testing.assert_array_equal(results[code], results["LPS"])


@pytest.mark.parametrize("code", ["LPS", "LSA", "PIR", "RAS"])
def test_dicom_is_turned_as_nifti(raw_dataset: Callable[..., Path], tmp_path: Path, code: str) -> None:
    raw = raw_dataset(cases=1, shape=(6, 12, 10), oblique=False)
    turn_file(raw / "imagesTr" / f"{CASE}_0000.nii.gz", tmp_path / "turned.nii.gz", code)
    image, geometry = read_image(tmp_path / "turned.nii.gz")
    values = np.rint(image[0]).astype(np.int16)
    dicom_files.write_series(tmp_path / "dicom" / CASE, values, geometry)
    predictor = by_place(intensity_model.make_predictor(raw), axes="LPS")
    outcome = predict_folder(
        predictor, tmp_path / "dicom", tmp_path / "out", PredictionOptions(output_format=".nii.gz")
    )
    assert not outcome.problems
    straight, grid = read_image(raw / "imagesTr" / f"{CASE}_0000.nii.gz")
    expected = predictor.predict_array(np.rint(straight), grid).labels
    labels, found = read_labels(tmp_path / "out" / f"{CASE}.nii.gz")
    assert found.axes == code
    np.testing.assert_array_equal(turned_back(labels, code), expected)


def test_one_slice(raw_dataset: Callable[..., Path], tmp_path: Path) -> None:
    raw = raw_dataset(cases=1, shape=(1, 14, 11), oblique=False)
    for code in CODES:
        turn_file(raw / "imagesTr" / f"{CASE}_0000.nii.gz", tmp_path / "in" / f"{code}_0000.nii.gz", code)
    predict_folder(by_place(intensity_model.make_predictor(raw)), tmp_path / "in", tmp_path / "out")
    check(tmp_path / "out", tmp_path / "in")


@pytest.mark.parametrize("rule", ["keep_largest", "remove_small"])
def test_postprocessing(raw: Path, tmp_path: Path, rule: Literal["keep_largest", "remove_small"]) -> None:
    reference = raw / "labelsTr" / f"{CASE}.nii.gz"
    image = nibabel.load(reference)
    scattered = np.asarray(image.dataobj).copy()
    scattered[np.random.default_rng(0).random(scattered.shape) < 0.03] = 1
    (tmp_path / "scattered").mkdir()
    nibabel.save(nibabel.Nifti1Image(scattered, image.affine), tmp_path / "scattered" / "x.nii.gz")
    for code in CODES:
        turn_file(tmp_path / "scattered" / "x.nii.gz", tmp_path / "in" / f"{code}.nii.gz", code)
    step = PostprocessingStep(target="organ1", values=(1,), rule=rule, volume=9.0 if rule == "remove_small" else 0.0)
    postprocess_folder(tmp_path / "in", tmp_path / "out", Postprocessing(steps=(step,)), workers=0)
    before, expected = (read_labels(tmp_path / folder / "LPS.nii.gz")[0] for folder in ("in", "out"))
    assert (before != expected).any()
    for code in CODES:
        labels, geometry = read_labels(tmp_path / "out" / f"{code}.nii.gz")
        assert geometry.axes == code
        np.testing.assert_array_equal(turned_back(labels, code), expected)
    labels = parse_labels({"background": 0, "organ1": 1, "organ2": 2}, None)
    for folder in ("turned", "same"):  # also where the references are stored otherwise
        for code in CODES[::7]:
            stored = CODES[CODES.index(code) - 11] if folder == "turned" else code
            turn_file(reference, tmp_path / folder / f"{code}.nii.gz", stored)
    pairs = {
        folder: [(tmp_path / "in" / path.name, path) for path in sorted((tmp_path / folder).iterdir())]
        for folder in ("turned", "same")
    }
    findings = {name: determine_postprocessing(files, labels, workers=0) for name, files in pairs.items()}
    assert findings["turned"].postprocessing == findings["same"].postprocessing
    np.testing.assert_array_equal(findings["turned"].after, findings["same"].after)


def test_slices_between_the_bodys_planes_stay_slices(
    raw_dataset: Callable[..., Path], paths: Paths, caplog: pytest.LogCaptureFixture
) -> None:
    """As short-axis views of hearts, which lean differently from patient to patient: some lie nearer to another
    plane."""
    raw = raw_dataset(cases=3, shape=(5, 14, 11), spacing=(8.0, 1.0, 1.0), oblique=False)
    for number, degrees in enumerate((40, 44, 50)):
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        for path in raw.glob(f"*Tr/case_{number:03d}*"):
            image = sitk.ReadImage(str(path))
            image.SetDirection((1, 0, 0, 0, c, -s, 0, s, c))
            sitk.WriteImage(image, str(path))
    assert read_image(raw / "imagesTr" / "case_002_0000.nii.gz")[1].axes != "LPS"
    with caplog.at_level(logging.INFO, "masam_auto"):
        _, fingerprint, plan, _ = prepared(paths, "1")
    assert fingerprint.slices_along == "S" and [case.axes for case in fingerprint.cases] == ["LPS"] * 3
    assert "point in different directions" not in caplog.text
    configuration = plan.configurations["axis0"]
    for number in range(3):
        _, geometry = read_image(raw / "imagesTr" / f"case_{number:03d}_0000.nii.gz")
        assert configuration.axes_of(geometry) == "LPS" and configuration.turn_of(geometry) == STAY
