"""Boxes from the original image to the canvas, and segmentations within them back."""

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from masam_auto.core.boxes import BoxPrompt, VoxelBox, WorldBox, box_prompt
from masam_auto.core.dataset import read_description
from masam_auto.core.errors import DatasetError, ModelError
from masam_auto.core.geometry import Box, CaseProperties, Geometry
from masam_auto.core.labels import Labels, parse_labels
from masam_auto.core.plan import Configuration, InferencePlan, NetworkPlan, NormalizationPlan, Plan, TrainingPlan
from masam_auto.formats.io import read_geometry, read_labels
from masam_auto.imaging.canvas import canvas_box, canvas_map, place, tiles_of
from masam_auto.models.load_model import Member
from masam_auto.prediction.box_prompts import segment_boxes
from masam_auto.prediction.predict import Predictor
from masam_auto.prediction.predict_folder import predict_folder, read_case_boxes
from masam_auto.prediction.restore import Slices
from masam_auto.preprocessing.preprocess import preprocess_case

TWO = parse_labels({"background": 0, "a": 1, "b": 2}, None)
REGIONS = parse_labels({"background": 0, "whole": [1, 2], "core": 2}, [1, 2])


def make_configuration(**changes: Any) -> Configuration:
    fields: dict[str, Any] = {
        "name": "axis0",
        "axis_order": (0, 1, 2),
        "spacing": (3.0, 1.0, 1.0),
        "median_shape": (8, 24, 24),
        "normalization": (NormalizationPlan(scheme="noNorm"),),
        "separate_slices": False,
        "window": 3,
        "canvas": (32, 32),
        "magnification": 1.0,
        "mirror_axes": (),
        "batch_size": 1,
    }
    return Configuration(**{**fields, **changes})


ORDERS = list(itertools.permutations(range(3)))


@pytest.mark.parametrize("seed", range(len(ORDERS)))
@pytest.mark.parametrize(
    ("magnification", "canvas"), [(1.0, (64, 64)), (1.0, (16, 32)), (1.7, (96, 64)), (2.0, (32, 16))]
)
def test_the_mapped_box_encloses_the_cube_within_a_pixel(
    seed: int, magnification: float, canvas: tuple[int, int]
) -> None:
    """Through crop, axis order, resampling and tiles, against the box's own voxels pushed through them as labels."""
    generator = np.random.default_rng(seed)
    shape = tuple(int(n) for n in generator.integers(14, 26, 3))
    image = np.zeros((1, *shape), np.float32)
    image[0, 1:, 2:-1, :-3] = generator.uniform(1, 2, (shape[0] - 1, shape[1] - 3, shape[2] - 3))
    low = generator.integers(3, 7, 3)
    high = low + generator.integers(3, 6, 3)
    box: Box = tuple((int(a), int(b)) for a, b in zip(low, high, strict=True))  # type: ignore[assignment]
    cube = np.zeros(shape, np.int16)
    cube[tuple(slice(*side) for side in box)] = 1
    configuration = make_configuration(
        axis_order=ORDERS[seed % 6],
        spacing=tuple(generator.uniform(0.7, 1.5, 3)),
        canvas=canvas,
        magnification=magnification,
        order_labels=0,
    )
    geometry = Geometry(shape=shape, spacing=(1.0, 1.0, 1.0))  # type: ignore[arg-type]
    done = preprocess_case(image, geometry, cube, configuration, identifier="a")
    assert done.labels is not None
    prompt = box_prompt(box, done.properties)
    assert prompt is not None
    filled = np.flatnonzero(done.labels.any(axis=(1, 2)))
    assert prompt.slices.start <= filled[0] and filled[-1] < prompt.slices.stop
    assert len(prompt.slices) <= len(filled) + 4
    slices = torch.from_numpy(done.labels[filled].astype(np.float32))[:, None]
    touched = 0
    for tile in tiles_of(canvas_map(done.labels.shape[1:], canvas, magnification), 0.5):
        shown = (place(slices, tile) > 0.5).any(dim=0)[0].numpy()
        found = canvas_box(prompt.rows, prompt.columns, tile)
        if not shown.any():
            continue
        touched += 1
        assert found is not None
        rows, columns = np.flatnonzero(shown.any(1)), np.flatnonzero(shown.any(0))
        cut = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        np.testing.assert_allclose(found, cut, atol=0.5 + 0.5 * magnification + 1e-6)
    assert touched


def make_properties(axis_order: tuple[int, int, int], resampled: tuple[int, int, int]) -> CaseProperties:
    return CaseProperties(
        identifier="x",
        geometry=Geometry(shape=(8, 10, 12), spacing=(1.0, 1.0, 1.0)),
        crop=((1, 8), (0, 10), (2, 12)),
        axis_order=axis_order,
        spacing=(1.0, 1.0, 1.0),
        resampled_shape=resampled,
    )


def constant(labels: Labels, properties: CaseProperties, value: float, output: int) -> Callable[[BoxPrompt], Slices]:
    """Predicts one output everywhere in the prompt's slices, and only those, as `predict_slices` does."""

    def predict(prompt: BoxPrompt) -> Slices:
        logits = torch.zeros((labels.num_outputs, *properties.resampled_shape[1:]), dtype=torch.float16)
        logits[output] = value
        return ((z, logits) for z in prompt.slices)

    return predict


@pytest.mark.parametrize(
    ("labels", "factor", "separate"), [(TWO, 1.0, False), (TWO, 1.9, True), (REGIONS, 0.6, True), (REGIONS, 1.9, False)]
)
@pytest.mark.parametrize("axis_order", ORDERS)
def test_foreground_fills_exactly_the_boxs_slices(
    labels: Labels, axis_order: tuple[int, int, int], factor: float, separate: bool
) -> None:
    cropped = [(7, 10, 10)[axis] for axis in axis_order]
    resampled = (round(cropped[0] * factor), *cropped[1:])
    properties = make_properties(axis_order, resampled)  # type: ignore[arg-type]
    box: Box = ((3, 5), (4, 7), (6, 9))
    result = segment_boxes(
        constant(labels, properties, 5.0, 1), [box], properties, labels, make_configuration(separate_slices=separate)
    )
    expected = np.zeros((8, 10, 12), bool)
    slices: list[slice] = [slice(1, 8), slice(0, 10), slice(2, 12)]
    slices[axis_order[0]] = slice(*box[axis_order[0]])
    expected[tuple(slices)] = True
    np.testing.assert_array_equal(result > 0, expected)


def test_of_several_boxes_the_one_with_the_larger_margin_wins() -> None:
    properties = make_properties((0, 1, 2), (7, 10, 10))
    by_first_row = {3.0: (2.0, 1), 5.0: (3.0, 2)}  # which box: its margin and class

    def predict(prompt: BoxPrompt) -> Slices:
        value, output = by_first_row[prompt.rows[0]]
        return constant(TWO, properties, value, output)(prompt)

    one: Box = ((2, 6), (3, 7), (3, 7))
    two: Box = ((4, 8), (5, 9), (5, 9))
    for boxes in ([one, two], [two, one]):
        result = segment_boxes(predict, boxes, properties, TWO, make_configuration())
        assert [np.unique(result[z, :, 2:]).tolist() for z in range(8)] == [[0], [0], [1], [1], [2], [2], [2], [2]]
    by_first_row[5.0] = (-9.0, 1)  # sure of background: it takes nothing from the other
    result = segment_boxes(predict, [one, two], properties, TWO, make_configuration())
    assert (result[2:6, :, 2:] == 1).all() and not result[6:].any()


def test_a_box_where_the_image_is_zero_gives_background(caplog: pytest.LogCaptureFixture) -> None:
    properties = make_properties((0, 1, 2), (7, 10, 10))
    result = segment_boxes(
        constant(TWO, properties, 5.0, 1), [((0, 1), (3, 7), (3, 7))], properties, TWO, make_configuration()
    )
    assert not result.any()
    assert "holds only zeros" in caplog.text


class Brightness(nn.Module):
    """Two classes: within the box, bright pixels are class 1; without a box, all of them class 2."""

    def __init__(self) -> None:
        super().__init__()
        self.eval()

    def forward(self, windows: torch.Tensor, boxes: torch.Tensor | None = None) -> torch.Tensor:
        bright = windows[:, :, :1] - 50
        nothing = torch.zeros_like(bright)
        if boxes is None:
            return torch.cat([nothing, nothing - 999, bright], dim=2)
        y, x = torch.meshgrid(torch.arange(windows.shape[3]), torch.arange(windows.shape[4]), indexing="ij")
        x0, y0, x1, y1 = boxes[..., None, None].unbind(2)
        inside = (x + 0.5 > x0) & (x + 0.5 < x1) & (y + 0.5 > y0) & (y + 0.5 < y1)
        return torch.cat([nothing, torch.where(inside[:, :, None], bright, -bright.abs()), nothing - 999], dim=2)


@pytest.fixture
def case(raw_dataset: Callable[..., Path]) -> Path:
    return raw_dataset(cases=3, shape=(6, 16, 14), spacing=(3.0, 1.0, 0.8))


def make_predictor(raw: Path, prompt: str = "box") -> Predictor:
    description = read_description(raw / "dataset.json", name=raw.name)
    configuration = make_configuration(spacing=(3.0, 1.0, 0.8))
    plan = Plan(
        name="masam",
        dataset_name=raw.name,
        channel_names=description.channel_names,
        gpu_memory_gb=0,
        default_configuration="axis0",
        configurations={"axis0": configuration},
        network=NetworkPlan(encoder="vit_t", decoder="multiscale", weights="none", trained="all", prompt=prompt),  # type: ignore[arg-type]
        training=TrainingPlan(),
        inference=InferencePlan(),
    )
    member = Member(networks=(Brightness(),), plan=plan, configuration=configuration)
    return Predictor(members=(member,), description=description, device=torch.device("cpu"))


def test_a_folder_within_boxes(case: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    predictor = make_predictor(case)
    geometry = read_geometry(case / "imagesTr" / "case_001_0000.nii.gz")
    box: Box = ((2, 4), (5, 9), (4, 10))
    ranges = np.array(box[::-1], dtype=float)
    centre = (geometry.affine @ [*(ranges.mean(1) - 0.5), 1])[:3]
    sides = np.diff(ranges)[:, 0] * geometry.spacing[::-1]
    in_mm = WorldBox(centre=tuple(centre), sides=tuple(sides), axes=geometry.direction)
    boxes = {"case_000": (VoxelBox(box=box),), "case_001": (in_mm,)}
    outcome = predict_folder(predictor, case / "imagesTr", tmp_path / "out", boxes=boxes)
    assert len(outcome.predicted) == 3
    expected = np.zeros((6, 16, 14), bool)
    expected[2:4, 5:9, 4:10] = True
    found = [read_labels(tmp_path / "out" / f"case_00{number}.nii.gz")[0] for number in range(3)]
    np.testing.assert_array_equal(found[0] == 1, expected)
    np.testing.assert_array_equal(found[1][:6] == 1, expected)
    assert (found[2] == 2).sum() > expected.sum(), "without a box: automatic"
    assert "no box for case_002: predicted without a prompt" in caplog.text


def test_an_oblique_box_is_said(case: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="masam_auto")
    geometry = read_geometry(case / "imagesTr" / "case_000_0000.nii.gz")
    centre = tuple((geometry.affine @ [7, 8, 3, 1])[:3])
    boxes = {"case_000": (WorldBox(centre=centre, sides=(4.0, 4.0, 4.0)),)}
    predict_folder(make_predictor(case), case / "imagesTr", tmp_path / "out", boxes=boxes, only=["case_000"])
    assert "case case_000: the box is oblique to the image" in caplog.text
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == ["case_000.nii.gz"]


def test_a_box_outside_one_image_does_not_stop_the_others(case: Path, tmp_path: Path) -> None:
    inside, outside = VoxelBox(box=((0, 3), (0, 9), (0, 9))), VoxelBox(box=((50, 60), (0, 9), (0, 9)))
    boxes = {"case_000": (inside, outside), "case_001": (inside,)}
    outcome = predict_folder(make_predictor(case), case / "imagesTr", tmp_path / "out", boxes=boxes)
    assert outcome.predicted == ("case_001", "case_002")
    (problem,) = outcome.problems
    assert problem.startswith("case case_000, box 2: the box") and "is outside the image" in problem


def test_models_without_boxes_refuse_them(case: Path, tmp_path: Path) -> None:
    predictor = make_predictor(case, prompt="none")
    box = VoxelBox(box=((0, 3), (0, 9), (0, 9)))
    (tmp_path / "boxes.json").write_text('{"case_000": {"unit": "voxel", "min": [0, 0, 0], "max": [3, 9, 9]}}')
    for attempt in (
        lambda: predict_folder(predictor, case / "imagesTr", tmp_path / "out", boxes={}),
        lambda: read_case_boxes(predictor, case / "imagesTr", tmp_path / "boxes.json"),
        lambda: predictor.predict_array(np.ones((1, 6, 16, 14)), (3, 1, 0.8), boxes=[box]),
    ):
        with pytest.raises(ModelError, match="this model was trained without boxes"):
            attempt()
    assert not (tmp_path / "out").exists()


def test_arrays_in_memory_take_boxes(case: Path) -> None:
    predictor = make_predictor(case)
    image, geometry = np.full((1, 6, 16, 14), 100.0, np.float32), Geometry(shape=(6, 16, 14), spacing=(3.0, 1.0, 0.8))
    boxes = [VoxelBox(box=((1, 3), (2, 6), (3, 8))), VoxelBox(box=((2, 5), (10, 14), (3, 8)))]
    found = predictor.predict_array(image, geometry, boxes=boxes).labels
    expected = np.zeros((6, 16, 14), bool)
    expected[1:3, 2:6, 3:8] = True
    expected[2:5, 10:14, 3:8] = True
    np.testing.assert_array_equal(found == 1, expected)
    with pytest.raises(ModelError, match="boxes give only labels"):
        predictor.predict_array(image, geometry, boxes=boxes, returned="both")
    (outside,) = [dataclasses.replace(boxes[0], box=((6, 7), (0, 1), (0, 1)))]
    with pytest.raises(DatasetError, match="outside the image"):
        predictor.predict_array(image, geometry, boxes=[outside])


def test_boxes_are_read_for_the_cases_of_a_folder(case: Path, tmp_path: Path) -> None:
    path = tmp_path / "boxes.json"
    path.write_text('{"case_001": {"unit": "voxel", "min": [0, 0, 0], "max": [3, 9, 9]}}')
    boxes = read_case_boxes(make_predictor(case), case / "imagesTr", path)
    assert boxes == {"case_001": (VoxelBox(box=((0, 3), (0, 9), (0, 9))),)}
    path.write_text('{"case_009": {"unit": "voxel", "min": [0, 0, 0], "max": [3, 9, 9]}}')
    with pytest.raises(DatasetError, match="boxes for case_009, but there are no such images"):
        read_case_boxes(make_predictor(case), case / "imagesTr", path)
