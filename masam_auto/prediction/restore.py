"""Turn logits on the preprocessed grid into labels and probabilities on the image's original grid, slice by slice.

To save memory, the logits of a whole volume are never held at once, and full-resolution probabilities only on request.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from masam_auto.core.errors import ModelError
from masam_auto.core.geometry import CaseProperties
from masam_auto.core.labels import Labels
from masam_auto.core.plan import Configuration
from masam_auto.core.turning import Turn
from masam_auto.formats.probability_files import Probabilities, new_probabilities
from masam_auto.formats.scratch import scratch_array
from masam_auto.imaging.crop import crop_to
from masam_auto.imaging.resample import iterate_slabs

Slices = Iterable[tuple[int, torch.Tensor]]
"""Slice numbers of the preprocessed grid, in rising order, with (K, y, x) logits of any precision on any device."""

Slab = tuple[int, slice, torch.Tensor]
"""Slice number in the cropped and permuted image, a range of its rows, and their (K, rows, X) float32 values."""


@dataclass(frozen=True, kw_only=True)
class MemberLogits:
    """One model's logits of a case that was preprocessed with `configuration`."""

    slices: Slices
    properties: CaseProperties
    configuration: Configuration


def restore_case(
    members: Sequence[MemberLogits], labels: Labels, *, probabilities: np.ndarray | None = None
) -> np.ndarray:
    """Label map on the image's original grid, from one model's logits or the mean probabilities of several models.

    Logits are interpolated linearly, or to the nearest slice if the configuration says so, and turned into labels a
    few rows at a time. Models with one axis order (and its flips) are averaged slice by slice. With several orders, the
    sums of all but the last are kept in float16: in `probabilities`, else in memory or in a temporary file
    (`formats.scratch`).

    Args:
        members: models of one image. Their properties differ only in axis order and preprocessed grid.
        labels: for classes, the largest of the K outputs wins (the first of equal ones). Regions with a probability
            above 1/2 (a logit above 0) are painted in `regions_class_order`, later ones over earlier ones.
        probabilities: zeros (K, z, y, x) of the crop in the image's axis order, to be filled in as well: softmax over
            the classes, or a sigmoid for each region.

    Returns:
        (Z, Y, X) uint8, or int16 where label values need it; background outside the crop.

    Raises:
        ModelError: logits do not have the shape that properties and labels ask for.
        OutputError: no space for the sums.
    """
    with torch.inference_mode(), contextlib.ExitStack() as stack:
        if are_logits := len(members) == 1:
            properties, slabs = members[0].properties, restored_slabs(members[0], labels)
        else:
            properties, slabs = stack.enter_context(_averaged(members, labels, probabilities))
        result = empty_labels(properties, labels)
        small = torch.uint8 if result.dtype == np.uint8 else torch.int16
        target = in_order(crop_to(result, properties.crop), properties)
        kept = None if probabilities is None else in_order(probabilities, properties)
        for z, rows, values in slabs:
            decided = decide_labels(values, labels, are_logits=are_logits)
            # Convert on the device: fetching int64 would copy eight times as many bytes.
            target[z, rows] = decided.to(small).cpu().numpy()
            if kept is not None:
                shares = to_probabilities(values, labels) if are_logits else values
                kept[:, z, rows] = shares.half().cpu().numpy()
        return result


def restored_slabs(member: MemberLogits, labels: Labels, *, only: range | None = None) -> Iterator[Slab]:
    """One model's logits on the cropped and permuted grid, of all slices or `only` some. Raises as `restore_case`."""
    properties, configuration = member.properties, member.configuration
    return iterate_slabs(
        _checked(member.slices, properties, labels),
        properties.resampled_shape,
        properties.permuted_shape,
        nearest_slices=configuration.separate_slices and configuration.order_slices == 0,
        only=only,
    )


def decide_labels(values: torch.Tensor, labels: Labels, *, are_logits: bool = True) -> torch.Tensor:
    """Label values (...), int64 or int16, from logits or probabilities (K, ...). See `restore_case`."""
    if not labels.has_regions:
        return values.max(dim=0).indices  # several times faster on a CPU than argmax
    assert labels.regions_class_order is not None
    result = torch.zeros(values.shape[1:], dtype=torch.int16, device=values.device)
    for region, value in zip(values, labels.regions_class_order, strict=True):
        result.masked_fill_(region > (0 if are_logits else 0.5), value)
    return result


def output_names(labels: Labels) -> tuple[str, ...]:
    """Names of the K outputs: "background" and the classes, or the regions."""
    return tuple(labels.foreground) if labels.has_regions else ("background", *labels.foreground)


def empty_probabilities(properties: CaseProperties, labels: Labels) -> Probabilities:
    """An array of zeros for `restore_case` to fill in. It covers the box that preprocessing cropped to."""
    return Probabilities(
        values=np.zeros((labels.num_outputs, *properties.cropped_shape), dtype=np.float16),
        crop=properties.crop,
        geometry=properties.geometry,
        outputs=output_names(labels),
        has_regions=labels.has_regions,
    )


def new_case_probabilities(
    path: Path, properties: CaseProperties, labels: Labels
) -> AbstractContextManager[np.ndarray]:
    """The same in a temporary file next to `path`. The .npz file `path` is written when the block ends.

    Raises:
        OutputError: no space or no permission.
    """
    return new_probabilities(
        path,
        crop=properties.crop,
        geometry=properties.geometry,
        outputs=output_names(labels),
        has_regions=labels.has_regions,
    )


def to_probabilities(logits: torch.Tensor, labels: Labels) -> torch.Tensor:
    """Softmax over the classes of (K, ...), or a sigmoid for each region."""
    return logits.sigmoid() if labels.has_regions else logits.softmax(dim=0)


def empty_labels(properties: CaseProperties, labels: Labels) -> np.ndarray:
    """Background on the image's original grid (Z, Y, X), in the type that the label values need."""
    return np.zeros(properties.geometry.shape, dtype=np.uint8 if max(labels.declared) <= 255 else np.int16)


def in_order(array: np.ndarray, properties: CaseProperties) -> np.ndarray:
    """View of the crop's array (..., Z, Y, X) in the network's axis order. Values written to it reach the array."""
    return properties.turn.array(array)


@contextlib.contextmanager
def _averaged(
    members: Sequence[MemberLogits], labels: Labels, probabilities: np.ndarray | None
) -> Iterator[tuple[CaseProperties, Iterator[Slab]]]:
    """The mean probabilities of several members, in the axis order of the returned properties."""
    by_order: dict[Turn, list[MemberLogits]] = {}
    for member in members:
        by_order.setdefault(member.properties.turn, []).append(member)
    *earlier, last = by_order.values()
    properties, share = last[0].properties, 1 / len(members)
    if not earlier:
        yield properties, _summed(last, labels, share)
        return
    shape = (labels.num_outputs, *properties.cropped_shape)
    with scratch_array(shape) if probabilities is None else contextlib.nullcontext(probabilities) as sums:
        for group in earlier:
            target = in_order(sums, group[0].properties)
            for z, rows, values in _summed(group, labels, share):
                target[:, z, rows] += values.cpu().numpy().astype(np.float16)
        yield properties, _with_sums(_summed(last, labels, share), in_order(sums, properties))


def _summed(members: Sequence[MemberLogits], labels: Labels, share: float) -> Iterator[Slab]:
    """The sum of the probabilities of members with one axis order, times `share`."""
    for slabs in zip(*(restored_slabs(member, labels) for member in members), strict=True):
        z, rows, _ = slabs[0]
        parts = [to_probabilities(logits, labels) for _, _, logits in slabs]
        yield z, rows, torch.stack(parts).sum(dim=0).mul_(share) if len(parts) > 1 else parts[0].mul_(share)


def _with_sums(slabs: Iterable[Slab], sums: np.ndarray) -> Iterator[Slab]:
    """Add the sums of other members, (K, Z, Y, X) on the cropped and permuted grid."""
    for z, rows, values in slabs:
        yield z, rows, values + torch.from_numpy(sums[:, z, rows].astype(np.float32)).to(values.device)


def _checked(slices: Slices, properties: CaseProperties, labels: Labels) -> Iterator[tuple[int, torch.Tensor]]:
    expected = (labels.num_outputs, *properties.resampled_shape[1:])
    for number, logits in slices:
        if tuple(logits.shape) != expected or number >= properties.resampled_shape[0]:
            raise ModelError(
                f"{properties.identifier}: slice {number} of the logits has shape {tuple(logits.shape)}; expected "
                f"{properties.resampled_shape[0]} slices of {expected} (classes, Y, X). The model was trained for "
                "other labels, or the case was preprocessed with another plan."
            )
        yield number, logits
