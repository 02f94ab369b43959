"""Probabilities of a case on its image's own grid, from logits on the preprocessed one, a few rows at a time."""

from pathlib import Path

import numpy as np
import torch

from masam_auto.core.geometry import CaseProperties
from masam_auto.core.labels import Labels
from masam_auto.core.plan import Configuration
from masam_auto.imaging.probability_files import new_probabilities
from masam_auto.imaging.resample import iterate_slabs


def write_case_probabilities(
    path: Path,
    logits: torch.Tensor,
    properties: CaseProperties,
    labels: Labels,
    configuration: Configuration,
) -> None:
    """Write what `stages.preprocess.restore_case` decides by: softmax over the classes, or a sigmoid for each region.

    The logits are interpolated as there, so that the most probable class is the one in the segmentation. Only the box is
    kept that preprocessing cropped to; outside there is background.

    Args:
        path: the .npz file.
        logits: (K, Z, Y, X) float16 or float32 on the preprocessed grid.
        properties: of the case.
        labels: names of the outputs.
        configuration: the one that the case was preprocessed with.

    Raises:
        OutputError: no space or no permission.
    """
    names = tuple(labels.foreground) if labels.has_regions else ("background", *labels.foreground)
    nearest_slices = configuration.separate_slices and configuration.order_slices == 0
    order = tuple(axis + 1 for axis in properties.axis_order)
    with (
        new_probabilities(
            path, crop=properties.crop, geometry=properties.geometry, outputs=names, has_regions=labels.has_regions
        ) as values,
        torch.inference_mode(),
    ):
        # a view: what is written to it in the preprocessed orientation lands in the original one
        target = values.transpose(0, *order)
        for z, rows, slab in iterate_slabs(logits, properties.permuted_shape, nearest_slices=nearest_slices):
            shares = slab.sigmoid() if labels.has_regions else slab.softmax(dim=0)
            target[:, z, rows] = shares.cpu().numpy().astype(np.float16)
