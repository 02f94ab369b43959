"""Prompted segmentation for evaluation: make a box from each reference and predict with it."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from masam_auto.core.boxes import Prompt, VoxelBox, relaxed_box
from masam_auto.core.dataset import Case, DatasetDescription
from masam_auto.core.errors import DatasetError, OutputError, first_few
from masam_auto.core.geometry import Box
from masam_auto.core.labels import Labels, is_foreground
from masam_auto.formats.box_files import Prompts
from masam_auto.formats.inputs import find_inputs
from masam_auto.formats.io import label_ending, read_geometry, read_labels
from masam_auto.imaging.crop import bounding_box
from masam_auto.imaging.placement import check_same_shape, turned_onto
from masam_auto.prediction.predict import Predictor
from masam_auto.prediction.predict_folder import Outcome, PredictionOptions, predict_folder
from masam_auto.prediction.prompt_tracks import slice_axis_of

Kind = Literal["tight", "relaxed", "slice"]
# Our choice: neither MA-SAM's code nor the papers that we have say how far its relaxed boxes reach.
RELAXATION = 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class BoxProtocol:
    """How boxes are made from reference labels.

    "tight" is the box around all foreground of a case. "relaxed" moves each side outwards by `relaxation` times the
    box's length along that axis, and by at least one voxel. "slice" is the tight box of the middle slice alone.
    """

    kind: Kind
    relaxation: float = RELAXATION


def predict_with_reference_boxes(
    predictor: Predictor,
    images: Path,
    references: Path,
    output: Path,
    protocol: BoxProtocol,
    *,
    overwrite: bool = False,
) -> tuple[Outcome, dict[str, Any]]:
    """Predict the cases that have references, each within a box made from its reference.

    Cases without foreground get no box. They are predicted automatically, and this is logged.

    Args:
        predictor: a model trained with boxes.
        images: folder of images; images without a reference are left out.
        references: folder of reference segmentations, ID.ext.
        output: where segmentations go.
        protocol: how boxes are made.
        overwrite: replace existing segmentations.

    Returns:
        The outcome, and the protocol as written to summary.json.

    Raises:
        DatasetError: no image has a reference, or a reference has no image.
        ImageError: a reference cannot be read.
        ModelError: the model was trained without boxes.
        OutputError: as `predict_folder`, or the output is the references' folder.
    """
    predictor.check_takes_boxes()
    if output.resolve() == references.resolve():
        raise OutputError(f"the output folder is the references' ({output}). Choose another one.")
    description = predictor.description
    ending = label_ending(description.file_ending)
    cases = _cases_with_references(images, references, description)
    _refuse_references_without_image(references, ending, {frame for case in cases for frame in case.frames}, images)
    boxes = reference_boxes(cases, references, ending, description.labels, protocol)
    options = PredictionOptions(overwrite=overwrite)
    outcome = predict_folder(predictor, images, output, options, boxes=boxes, only=[case.identifier for case in cases])
    record: dict[str, Any] = {"boxes_from_labels": protocol.kind}
    if protocol.kind == "relaxed":
        record["relaxation"] = protocol.relaxation
    return outcome, {**record, "boxes": {name: [list(side) for side in box.box] for name, (box,) in boxes.items()}}


def reference_prompts(
    images: Path, references: Path, description: DatasetDescription, protocol: BoxProtocol
) -> Prompts:
    """A box for each class of each case that has a reference, for `prediction.segment_folder`.

    Args:
        images: folder of images, or one; those without a reference are left out.
        references: folder of reference segmentations, ID.ext.
        description: of the data set; its classes must not be regions.
        protocol: how boxes are made.

    Raises:
        DatasetError: no image has a reference, or the classes are regions.
        ImageError: a reference cannot be read.
    """
    labels = description.labels
    if labels.has_regions:
        raise DatasetError(f"{description.name} has regions, which may overlap; boxes are made of classes")
    prompts: Prompts = {}
    for case in _cases_with_references(images, references, description):
        reference = _reference_of(case, references, label_ending(description.file_ending))
        axis = 0 if case.is_sequence else slice_axis_of(read_geometry(case.images[0][0]), ())
        found = {value: _class_box(reference == value, protocol, axis) for (value,) in labels.foreground.values()}
        if any(found.values()):
            prompts[case.identifier] = tuple(
                Prompt(shape=VoxelBox(box=box), label=value) for value, box in found.items() if box is not None
            )
    return prompts


def _class_box(mask: np.ndarray, protocol: BoxProtocol, axis: int) -> Box | None:
    """The box of a (Z, Y, X) mask; None if it is empty. `axis` goes across slices."""
    box = bounding_box(mask)
    if box is None or protocol.kind == "tight":
        return box
    if protocol.kind == "relaxed":
        return relaxed_box(box, protocol.relaxation, mask.shape)
    held = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
    only = np.zeros_like(mask)
    middle = (slice(None),) * axis + (held[len(held) // 2],)
    only[middle] = mask[middle]
    return bounding_box(only)


def _cases_with_references(images: Path, references: Path, description: DatasetDescription) -> list[Case]:
    ending = label_ending(description.file_ending)
    cases = [
        case
        for case in find_inputs(images, description)
        if all((references / f"{frame}{ending}").is_file() for frame in case.frames)
    ]
    if not cases:
        raise DatasetError(
            f"no image of {images} has a reference ID{ending} in {references}. Give the images of these references: "
            "`images`."
        )
    return cases


def _refuse_references_without_image(references: Path, ending: str, known: Collection[str], images: Path) -> None:
    """Raise DatasetError now; the evaluation would only do so after hours of prediction."""
    names = (path.name.removesuffix(ending) for path in references.glob(f"*{ending}") if not path.name.startswith("."))
    missing = sorted(set(names) - set(known))
    if missing:
        raise DatasetError(
            f"{images} has no image for {len(missing)} of the references in {references}: {first_few(missing)}. Add "
            "the images, or move these references out of the folder."
        )


def reference_boxes(
    cases: Sequence[Case], references: Path, ending: str, labels: Labels, protocol: BoxProtocol
) -> dict[str, tuple[VoxelBox]]:
    """One box per case, around all foreground of its reference. Cases without foreground are left out."""
    boxes = {}
    for case in cases:
        reference = _reference_of(case, references, ending)
        found = bounding_box(is_foreground(reference, labels.ignore))
        if found is not None:
            if protocol.kind == "relaxed":
                found = relaxed_box(found, protocol.relaxation, reference.shape)
            boxes[case.identifier] = (VoxelBox(box=found),)
    return boxes


def _reference_of(case: Case, references: Path, ending: str) -> np.ndarray:
    """(Z, Y, X) label values on the grid of a case's image; the frames of a video along Z."""
    grid = read_geometry(case.images[0][0])
    frames = [turned_onto(*read_labels(references / f"{frame}{ending}"), grid)[0] for frame in case.frames]
    reference = np.concatenate(frames)
    depth, *plane = grid.shape
    image = (depth * len(case.frames), *plane)
    what = f"the reference of case {case.identifier} in {references}"
    check_same_shape(reference.shape, image, what=what, other="its image")
    return reference
