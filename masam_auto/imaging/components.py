"""Connected components of label maps: which ones postprocessing removes, and what removing them changes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from acvl_utils.morphology.morphology_helper import cc3d_label_with_component_sizes, generic_filter_components_cc3d

from masam_auto.core.geometry import Box
from masam_auto.core.postprocessing import Postprocessing, PostprocessingStep
from masam_auto.imaging.crop import bounding_box, crop_to

CONNECTIVITY: Final = 26  # voxels that touch at a corner are connected, as in nnU-Net
WITHOUT_ROOM: Final = (slice(-1),) * 3  # undoes `_roomy`


@dataclass(frozen=True, kw_only=True, slots=True)
class Components:
    """The connected components of a segmentation's mask, and their overlap with a reference.

    `sizes` are (N,) voxels. `meetings` are (M, 4) rows of whole numbers: component (from 0), its label value, the
    reference's value, and the number of voxels with both.
    """

    sizes: np.ndarray
    meetings: np.ndarray


def apply_postprocessing(labels: np.ndarray, postprocessing: Postprocessing, *, voxel_volume: float) -> np.ndarray:
    """Apply the steps of a postprocessing in order.

    Args:
        labels: (Z, Y, X) label values; not changed.
        postprocessing: the steps.
        voxel_volume: cubic mm (`Geometry.voxel_volume`).

    Returns:
        (Z, Y, X) of the same type; `labels` itself if there are no steps.

    Example:
        >>> from masam_auto.core.postprocessing import Postprocessing, PostprocessingStep
        >>> from masam_auto.imaging.components import apply_postprocessing
        >>> labels = np.array([[[1, 1, 0, 1]]], np.int16)  # (Z, Y, X)
        >>> largest = PostprocessingStep(target="organ", values=(1,), rule="keep_largest")
        >>> apply_postprocessing(labels, Postprocessing(steps=(largest,)), voxel_volume=1.0)
        array([[[1, 1, 0, 0]]], dtype=int16)
    """
    if not postprocessing.steps:
        return labels
    result = labels.copy()
    parts = [result[z : z + 1] for z in range(len(result))] if postprocessing.each_slice else [result]
    for part in parts:
        for step in postprocessing.steps:
            _take_out(part, step, voxel_volume)
    return result


def staying(sizes: np.ndarray, steps: Sequence[PostprocessingStep], voxel_volume: float) -> np.ndarray:
    """Which components of a mask remain after applying steps to this mask in order.

    Args:
        sizes: (N,) voxels.
        steps: all on the same mask.
        voxel_volume: cubic mm.

    Returns:
        (N,) bool. Equally large ones all count as the largest, because their order depends on the file's orientation.
    """
    stays = np.ones(len(sizes), dtype=bool)
    for step in steps:
        largest = sizes[stays].max(initial=0)
        stays &= sizes == largest if step.rule == "keep_largest" else sizes * voxel_volume >= step.volume
    return stays


def find_components(labels: np.ndarray, reference: np.ndarray, values: Sequence[int]) -> Components:
    """The components of the mask formed by some label values.

    Args:
        labels: (Z, Y, X) label values from 0 on.
        reference: (Z, Y, X) label values from 0 on.
        values: the values that form the mask together.
    """
    mask, box = _mask(labels, values)
    numbers, sizes = number_components(mask)
    keys = np.stack([part[mask].astype(np.int64) for part in (numbers, crop_to(labels, box), crop_to(reference, box))])
    # one number per triple, so that counting needs no sort of rows
    spans = keys.max(axis=1, initial=0) + 1
    distinct, counts = np.unique(np.ravel_multi_index(tuple(keys), tuple(spans)), return_counts=True)
    number, value, met = np.unravel_index(distinct, tuple(spans))
    return Components(sizes=sizes, meetings=np.stack([number - 1, value, met, counts], axis=1))


def smallest_component(labels: np.ndarray, values: Sequence[int]) -> int | None:
    """Size in voxels of the smallest component of some label values (Z, Y, X); None if there is none."""
    _, sizes = number_components(_mask(labels, values)[0])
    return int(sizes.min()) if len(sizes) else None


def number_components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number the components of a (Z, Y, X) boolean mask from 1, 0 elsewhere. Also returns their (N,) sizes, voxels."""
    numbers, sizes = cc3d_label_with_component_sizes(_roomy(mask), CONNECTIVITY)
    return numbers[WITHOUT_ROOM], np.fromiter(sizes.values(), dtype=np.int64)


def _mask(labels: np.ndarray, values: Sequence[int]) -> tuple[np.ndarray, Box]:
    """Where some label values are, cut to their bounding box; and the box."""
    mask = np.isin(labels, values)
    box = bounding_box(mask) or ((0, 1), (0, 1), (0, 1))
    return crop_to(mask, box), box


def _take_out(labels: np.ndarray, step: PostprocessingStep, voxel_volume: float) -> None:
    """Apply one step to `labels` in place."""
    mask, box = _mask(labels, step.values)

    def stay(numbers: list[int], sizes: list[int]) -> np.ndarray:
        return np.array(numbers)[staying(np.array(sizes), [step], voxel_volume)]

    kept = generic_filter_components_cc3d(_roomy(mask), stay, CONNECTIVITY)[WITHOUT_ROOM]
    crop_to(labels, box)[mask & ~kept] = 0


def _roomy(mask: np.ndarray) -> np.ndarray:
    """Add one empty voxel along each axis: cc3d 4.1.1 fails when no more components would fit (101 in a row)."""
    return np.pad(mask, (0, 1))
