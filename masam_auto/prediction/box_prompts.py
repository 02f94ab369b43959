"""Segmentation within boxes: predict each box, choose labels, and keep the box's slices on the original grid."""

import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch

from masam_auto.core.boxes import BoxPrompt, GivenBox, box_prompt, box_slices, is_oblique, voxels_of
from masam_auto.core.geometry import Box, CaseProperties, Geometry
from masam_auto.core.labels import Labels
from masam_auto.core.plan import Configuration
from masam_auto.imaging.crop import crop_to
from masam_auto.prediction.restore import MemberLogits, Slices, decide_labels, empty_labels, in_order, restored_slabs

logger = logging.getLogger(__name__)

LARGEST_MARGIN = 6e4  # margins are kept in float16


def place_boxes(boxes: Sequence[GivenBox], geometry: Geometry, *, identifier: str) -> tuple[Box, ...]:
    """The voxels of a case's boxes. Raises DatasetError for a box outside the image."""
    placed = []
    for number, given in enumerate(boxes, 1):
        where = f"case {identifier}" + (f", box {number}" if len(boxes) > 1 else "")
        box = voxels_of(given, geometry, where=where)
        if is_oblique(given, geometry):
            logger.info("%s: the box is oblique to the image; using the enclosing voxels %s (Z, Y, X)", where, box)
        placed.append(box)
    return tuple(placed)


def segment_boxes(
    predict: Callable[[BoxPrompt], Slices],
    boxes: Sequence[Box],
    properties: CaseProperties,
    labels: Labels,
    configuration: Configuration,
) -> np.ndarray:
    """Label map on the image's original grid, with foreground only on the boxes' slices.

    Boxes are predicted one after the other. Where several boxes claim a voxel, the largest margin wins. The margin is
    the largest foreground logit minus the background logit, or minus 0 for regions.

    Args:
        predict: returns the logits of a box's slices; the box is on the preprocessed grid.
        boxes: half-open voxel ranges in the original image.
        properties: properties of the case.
        labels: what the logits mean.
        configuration: the configuration that the case was preprocessed with.

    Returns:
        (Z, Y, X) uint8, or int16 where label values need it.
    """
    result = empty_labels(properties, labels)
    target = in_order(crop_to(result, properties.crop), properties)
    margins = np.full(target.shape, -np.inf, dtype=np.float16) if len(boxes) > 1 else None
    for box in boxes:
        prompt = box_prompt(box, properties)
        if prompt is None:
            logger.warning("%s: the box %s holds only zeros; it becomes background", properties.identifier, box)
            continue
        logits = MemberLogits(slices=predict(prompt), properties=properties, configuration=configuration)
        slabs = restored_slabs(logits, labels, only=box_slices(box, properties))
        with torch.inference_mode():
            for z, rows, slab in slabs:
                decided = decide_labels(slab, labels).cpu().numpy()
                if margins is None:
                    target[z, rows] = decided
                    continue
                margin = foreground_margin(slab, labels).cpu().numpy()
                leads = margin > margins[z, rows]
                target[z, rows] = np.where(leads, decided, target[z, rows])
                margins[z, rows] = np.where(leads, margin, margins[z, rows])
    return result


def foreground_margin(logits: torch.Tensor, labels: Labels) -> torch.Tensor:
    """Best foreground logit of (K, ...) minus the background logit, or minus 0 for regions. float16."""
    lead = logits.amax(dim=0) if labels.has_regions else logits[1:].amax(dim=0) - logits[0]
    return lead.clamp(-LARGEST_MARGIN, LARGEST_MARGIN).half()
