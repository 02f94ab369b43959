"""Boxes from reference labels: made, predicted with, recorded."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from torch import nn

from masam_auto.core.boxes import VoxelBox
from masam_auto.core.dataset import read_description
from masam_auto.core.errors import DatasetError, ModelError, OutputError
from masam_auto.core.plan import Configuration, InferencePlan, NetworkPlan, NormalizationPlan, Plan, TrainingPlan
from masam_auto.evaluation.box_protocol import (
    BoxProtocol,
    predict_with_reference_boxes,
    reference_boxes,
    reference_prompts,
)
from masam_auto.evaluation.evaluate import evaluate_folder
from masam_auto.formats.inputs import find_inputs
from masam_auto.formats.io import read_image, read_labels
from masam_auto.imaging.crop import bounding_box, nonzero_box
from masam_auto.models.load_model import Member
from masam_auto.prediction.predict import Predictor
from tests import raw_data

TIGHT, RELAXED = BoxProtocol(kind="tight"), BoxProtocol(kind="relaxed", relaxation=0.5)


class Filling(nn.Module):
    """Fills the box with class 1; without a box all is background."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs
        self.eval()

    def forward(self, windows: torch.Tensor, boxes: torch.Tensor | None = None) -> torch.Tensor:
        logits = windows.new_zeros((*windows.shape[:2], self.outputs, *windows.shape[3:]))
        if boxes is not None:
            y, x = torch.meshgrid(torch.arange(windows.shape[3]), torch.arange(windows.shape[4]), indexing="ij")
            x0, y0, x1, y1 = boxes[..., None, None].unbind(2)
            logits[:, :, 1] = ((x + 0.5 > x0) & (x + 0.5 < x1) & (y + 0.5 > y0) & (y + 0.5 < y1)) * 2.0 - 1
        return logits


def make_predictor(raw: Path, **network: Any) -> Predictor:
    description = read_description(raw / "dataset.json", name=raw.name)
    configuration = Configuration(
        name="axis0",
        axis_order=(0, 1, 2),
        spacing=(3.0, 1.0, 0.8) if description.file_ending != ".png" else (1.0, 1.0, 1.0),
        median_shape=(6, 16, 14),
        normalization=(NormalizationPlan(scheme="noNorm"),) * description.num_channels,
        separate_slices=False,
        window=3,
        canvas=(32, 32),
        magnification=1.0,
        mirror_axes=(),
        batch_size=1,
    )
    fields: dict[str, Any] = {"prompt": "box", **network}
    plan = Plan(
        name="masam",
        dataset_name=raw.name,
        channel_names=description.channel_names,
        gpu_memory_gb=0,
        default_configuration="axis0",
        configurations={"axis0": configuration},
        network=NetworkPlan(encoder="vit_t", decoder="multiscale", weights="none", trained="all", **fields),
        training=TrainingPlan(),
        inference=InferencePlan(),
    )
    network_double = Filling(description.labels.num_outputs)
    member = Member(networks=(network_double,), plan=plan, configuration=configuration)
    return Predictor(members=(member,), description=description, device=torch.device("cpu"))


@pytest.mark.parametrize("protocol", [TIGHT, RELAXED])
def test_each_case_is_predicted_within_its_references_box(
    raw_dataset: Callable[..., Path], tmp_path: Path, protocol: BoxProtocol
) -> None:
    raw = raw_dataset(cases=3)
    (raw / "labelsTr" / "case_002.nii.gz").unlink()  # an image without a reference is left out
    outcome, record = predict_with_reference_boxes(
        make_predictor(raw), raw / "imagesTr", raw / "labelsTr", tmp_path / "out", protocol
    )
    assert outcome.predicted == ("case_000", "case_001")
    for name in outcome.predicted:
        predicted, reference = (
            read_labels(folder / f"{name}.nii.gz")[0] for folder in (tmp_path / "out", raw / "labelsTr")
        )
        tight, box = bounding_box(reference > 0), record["boxes"][name]
        assert tight is not None
        expected = np.zeros(reference.shape, bool)
        shown = nonzero_box(read_image(raw / "imagesTr" / f"{name}_0000.nii.gz")[0])
        cut = [(max(a, low), min(b, high)) for (a, b), (low, high) in zip(box, shown, strict=True)]
        expected[tuple(slice(*side) for side in cut)] = True
        np.testing.assert_array_equal(predicted == 1, expected)
        inside = [low <= a and b <= high for (a, b), (low, high) in zip(tight, box, strict=True)]
        assert all(inside)
        assert (box == [list(side) for side in tight]) == (protocol.kind == "tight")
    summary = evaluate_folder(
        tmp_path / "out",
        _only(raw, outcome.predicted, tmp_path),
        make_predictor(raw).description.labels,
        ".nii.gz",
        protocol=record,
    )
    written = json.loads((tmp_path / "out" / "summary.json").read_text())["protocol"]
    assert written == summary["protocol"] == record
    assert written["boxes_from_labels"] == protocol.kind
    assert written.get("relaxation") == (0.5 if protocol.kind == "relaxed" else None)


def _only(raw: Path, names: tuple[str, ...], tmp_path: Path) -> Path:
    folder = tmp_path / "references"
    folder.mkdir()
    for name in names:
        (folder / f"{name}.nii.gz").write_bytes((raw / "labelsTr" / f"{name}.nii.gz").read_bytes())
    return folder


def test_ignored_voxels_are_no_foreground_and_regions_are_one(raw_dataset: Callable[..., Path], tmp_path: Path) -> None:
    raw = raw_dataset(cases=2, regions=True, ignore=True)
    predictor = make_predictor(raw)
    cases = find_inputs(raw / "imagesTr", predictor.description)
    boxes = reference_boxes(cases, raw / "labelsTr", ".nii.gz", predictor.description.labels, TIGHT)
    for case in cases:
        reference, _ = read_labels(raw / "labelsTr" / f"{case.identifier}.nii.gz")
        assert boxes[case.identifier][0].box == bounding_box((reference == 1) | (reference == 2))


def test_a_case_without_foreground_is_predicted_automatically_and_named(
    raw_dataset: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    raw = raw_dataset(cases=2)
    raw_data.write_volume(raw / "labelsTr" / "case_001.nii.gz", np.zeros((7, 16, 14), np.uint8))
    outcome, record = predict_with_reference_boxes(
        make_predictor(raw), raw / "imagesTr", raw / "labelsTr", tmp_path / "out", TIGHT
    )
    assert len(outcome.predicted) == 2
    assert set(record["boxes"]) == {"case_000"}
    assert not read_labels(tmp_path / "out" / "case_001.nii.gz")[0].any()
    assert "no box for case_001" in caplog.text


def test_videos_have_a_box_over_their_frames(video_dataset: Callable[..., Path], tmp_path: Path) -> None:
    raw = video_dataset(sequences=2, frames=3, colour=False)
    outcome, record = predict_with_reference_boxes(
        make_predictor(raw), raw / "imagesTr", raw / "labelsTr", tmp_path / "out", TIGHT
    )
    assert outcome.predicted == ("clip0", "clip1")
    for name, box in record["boxes"].items():
        frames = [read_labels(raw / "labelsTr" / f"{name}_frame{number:03d}.png")[0] for number in range(3)]
        assert box == [list(side) for side in bounding_box(np.concatenate(frames) > 0)]  # type: ignore[union-attr]


def test_mistakes(raw_dataset: Callable[..., Path], tmp_path: Path) -> None:
    raw = raw_dataset(cases=1)
    arguments = (raw / "imagesTr", raw / "labelsTr", tmp_path / "out", TIGHT)
    with pytest.raises(ModelError, match="trained without boxes"):
        predict_with_reference_boxes(make_predictor(raw, prompt="none"), *arguments)
    with pytest.raises(DatasetError, match=r"no image of .* has a reference ID.nii.gz in"):
        predict_with_reference_boxes(make_predictor(raw), raw / "imagesTr", tmp_path, tmp_path / "out", TIGHT)
    with pytest.raises(OutputError, match="the output folder is the references'"):
        predict_with_reference_boxes(
            make_predictor(raw),
            raw / "imagesTr",
            raw / "labelsTr",
            raw / "imagesTr" / ".." / "labelsTr",
            TIGHT,
            overwrite=True,
        )
    lonely = raw / "labelsTr" / "z.nii.gz"
    lonely.touch()
    with pytest.raises(DatasetError, match=r"no image for 1 of the references in .*: z\. Add the images"):
        predict_with_reference_boxes(make_predictor(raw), *arguments)
    lonely.unlink()
    shutil.copytree(raw / "labelsTr", tmp_path / "cut")
    labels = sitk.ReadImage(str(tmp_path / "cut" / "case_000.nii.gz"))
    sitk.WriteImage(labels[:, :, :3], str(tmp_path / "cut" / "case_000.nii.gz"))
    with pytest.raises(DatasetError, match=r"reference of case case_000 in .* has shape \(3, .*, but its image \("):
        predict_with_reference_boxes(make_predictor(raw), raw / "imagesTr", tmp_path / "cut", tmp_path / "out", TIGHT)
    assert not (tmp_path / "out").exists()
    predict_with_reference_boxes(make_predictor(raw), *arguments)
    with pytest.raises(OutputError, match="already holds"):
        predict_with_reference_boxes(make_predictor(raw), *arguments)
    wider = dataclasses.replace(RELAXED, relaxation=0.1)
    outcome, _ = predict_with_reference_boxes(make_predictor(raw), *arguments[:3], wider, overwrite=True)
    assert outcome.predicted == ("case_000",)


@pytest.mark.parametrize("kind", ["tight", "relaxed", "slice"])
def test_a_box_for_each_class_of_a_reference(raw_dataset: Callable[..., Path], kind: str) -> None:
    raw = raw_dataset(cases=2)
    (raw / "labelsTr" / "case_001.nii.gz").unlink()
    description = read_description(raw / "dataset.json", name=raw.name)
    protocol = BoxProtocol(kind=kind, relaxation=0.5)  # type: ignore[arg-type]
    prompts = reference_prompts(raw / "imagesTr", raw / "labelsTr", description, protocol)
    assert list(prompts) == ["case_000"] and [prompt.label for prompt in prompts["case_000"]] == [1, 2]
    reference, _ = read_labels(raw / "labelsTr" / "case_000.nii.gz")
    for prompt in prompts["case_000"]:
        tight = bounding_box(reference == prompt.label)
        assert tight is not None and isinstance(prompt.shape, VoxelBox)
        sizes, own = ([high - low for low, high in box] for box in (prompt.shape.box, tight))
        if kind == "tight":
            assert prompt.shape.box == tight
        elif kind == "relaxed":
            assert all(size > before for size, before in zip(sizes[1:], own[1:], strict=True))
        else:
            z = prompt.shape.box[0][0]
            assert sizes[0] == 1 and prompt.shape.box[1:] == bounding_box((reference == prompt.label)[z : z + 1])[1:]  # type: ignore[index]


def test_classes_need_a_reference_and_no_regions(raw_dataset: Callable[..., Path], tmp_path: Path) -> None:
    raw = raw_dataset(cases=1, regions=True)
    description = read_description(raw / "dataset.json", name=raw.name)
    with pytest.raises(DatasetError, match="has regions, which may overlap"):
        reference_prompts(raw / "imagesTr", raw / "labelsTr", description, TIGHT)
    (tmp_path / "none").mkdir()
    plain = raw_dataset(number=2, cases=1)
    with pytest.raises(DatasetError, match="has a reference"):
        description = read_description(plain / "dataset.json", name=plain.name)
        reference_prompts(plain / "imagesTr", tmp_path / "none", description, TIGHT)
