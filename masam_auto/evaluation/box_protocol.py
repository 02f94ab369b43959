"""Prompted segmentation for evaluation: make a box from each reference and predict with it."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from masam_auto.core.boxes import VoxelBox, relaxed_box
from masam_auto.core.dataset import Case
from masam_auto.core.errors import DatasetError, OutputError, first_few
from masam_auto.core.labels import Labels, is_foreground
from masam_auto.formats.inputs import find_inputs
from masam_auto.formats.io import label_ending, read_geometry, read_labels
from masam_auto.imaging.crop import bounding_box
from masam_auto.imaging.placement import check_same_shape, turned_onto
from masam_auto.prediction.predict import Predictor
from masam_auto.prediction.predict_folder import Outcome, PredictionOptions, predict_folder

Kind = Literal["tight", "relaxed"]
# Our choice: neither MA-SAM's code nor the papers that we have say how far its relaxed boxes reach.
RELAXATION = 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class BoxProtocol:
    """How boxes are made from reference labels.

    "tight" is the box around all foreground of a case. "relaxed" moves each side outwards by `relaxation` times the
    box's length along that axis, and by at least one voxel.
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
    _refuse_references_without_image(references, ending, {frame for case in cases for frame in case.frames}, images)
    boxes = reference_boxes(cases, references, ending, description.labels, protocol)
    options = PredictionOptions(overwrite=overwrite)
    outcome = predict_folder(predictor, images, output, options, boxes=boxes, only=[case.identifier for case in cases])
    record: dict[str, Any] = {"boxes_from_labels": protocol.kind}
    if protocol.kind == "relaxed":
        record["relaxation"] = protocol.relaxation
    return outcome, {**record, "boxes": {name: [list(side) for side in box.box] for name, (box,) in boxes.items()}}


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
        grid = read_geometry(case.images[0][0])
        frames = [turned_onto(*read_labels(references / f"{frame}{ending}"), grid)[0] for frame in case.frames]
        reference = np.concatenate(frames)
        depth, *plane = grid.shape
        image = (depth * len(case.frames), *plane)
        what = f"the reference of case {case.identifier} in {references}"
        check_same_shape(reference.shape, image, what=what, other="its image")
        found = bounding_box(is_foreground(reference, labels.ignore))
        if found is not None:
            if protocol.kind == "relaxed":
                found = relaxed_box(found, protocol.relaxation, reference.shape)
            boxes[case.identifier] = (VoxelBox(box=found),)
    return boxes
