"""One image and one or more trained networks: preprocess -> network -> restore."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from masam_auto.compute.device import autocast
from masam_auto.core.boxes import BoxPrompt
from masam_auto.core.dataset import DatasetDescription
from masam_auto.core.errors import ImageError, ModelError
from masam_auto.core.geometry import Box, CaseProperties, Geometry
from masam_auto.core.labels import Labels
from masam_auto.core.plan import Configuration, Plan
from masam_auto.core.turning import UNKNOWN_AXES
from masam_auto.network.volume import Volume, predict_slices
from masam_auto.prediction.box_prompts import segment_boxes
from masam_auto.prediction.restore import MemberLogits, restore_case
from masam_auto.preprocessing.preprocess import PreprocessedCase, preprocess_case


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One trained configuration; the logits of its networks (its folds) are averaged."""

    networks: tuple[nn.Module, ...]
    plan: Plan
    configuration: Configuration


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedCase:
    """An image as the networks of each member see it: (C, Z, Y, X), in memory or stored, with its properties."""

    images: tuple[Volume, ...]
    properties: tuple[CaseProperties, ...]


def prepare_image(
    members: Sequence[Member],
    description: DatasetDescription,
    image: np.ndarray,
    geometry: Geometry,
    *,
    identifier: str,
) -> PreparedCase:
    """Preprocess an image for every member; those that preprocess alike share one array.

    Args:
        members: the models.
        description: of the data set that they were trained on.
        image: (C, Z, Y, X) float32 in the file's units. It is not changed.
        geometry: its grid.
        identifier: a name for messages.

    Raises:
        ImageError: wrong number of channels, values that are not finite, or the image looks like a segmentation.
    """
    check_image(members, description, image, identifier=identifier)
    known: dict[tuple[str, str | None], PreprocessedCase] = {}
    keys = [(member.configuration.preprocessing_digest, member.configuration.axes) for member in members]
    for key, member in zip(keys, members, strict=True):
        if key not in known:
            known[key] = preprocess_case(image, geometry, None, member.configuration, identifier=identifier)
    cases = [known[key] for key in keys]
    images, properties = tuple(case.image for case in cases), tuple(case.properties for case in cases)
    return PreparedCase(images=images, properties=properties)


def turning_notes(members: Sequence[Member], geometry: Geometry) -> list[str]:
    """What is to be said of how an image's voxel axes meet those that the models were trained with; nothing where they
    are the same."""
    notes = []
    for axes, own in dict.fromkeys((one.configuration.axes, one.configuration.axes_of(geometry)) for one in members):
        if geometry.axes is None:
            notes.append("the image does not say where its axes point: it is taken as it is stored")
        elif axes is None:
            notes.append(
                f"its axes (x, y, z) point to {geometry.axes}; the model, imported or of an older release, does not say where "
                "those of its training images did: nothing is turned. Where they differ, sides are exchanged"
            )
        elif axes == UNKNOWN_AXES:
            notes.append(
                f"its axes (x, y, z) point to {geometry.axes}; the model's training images did not say where theirs do: "
                "nothing is turned"
            )
        elif axes != own:
            notes.append(
                f"the image is turned from its axes (x, y, z) {own} to the model's {axes}, and the segmentation back"
            )
    return list(dict.fromkeys(notes))


def segment_prepared(
    members: Sequence[Member],
    labels: Labels,
    prepared: PreparedCase,
    boxes: Sequence[Box] = (),
    *,
    device: torch.device,
    probabilities: np.ndarray | None = None,
) -> np.ndarray:
    """Segment a preprocessed image, automatically or within boxes.

    Args:
        members: the models; the probabilities of several are averaged.
        labels: what their outputs mean.
        prepared: from `prepare_image`, or preprocessed arrays of a training.
        boxes: voxels of the original image.
        device: where the networks are.
        probabilities: an array to fill in as well (`prediction.probabilities`).

    Returns:
        (Z, Y, X) label values on the original grid.

    Raises:
        ModelError: the network's output is not finite; boxes for an ensemble, or together with probabilities.
        OutputError: as `prediction.restore.restore_case`.
    """
    if boxes and probabilities is not None:
        raise ModelError("boxes give labels only. Leave out the boxes, or do not ask for probabilities.")
    if boxes:
        check_takes_boxes(members)
        (member,), (image,), (properties,) = members, prepared.images, prepared.properties
        return segment_boxes(
            lambda prompt: predict_logits(member, image, labels, device, prompt),
            boxes,
            properties,
            labels,
            member.configuration,
        )
    logits = [
        MemberLogits(
            slices=predict_logits(member, image, labels, device),
            properties=properties,
            configuration=member.configuration,
        )
        for member, image, properties in zip(members, prepared.images, prepared.properties, strict=True)
    ]
    return restore_case(logits, labels, probabilities=probabilities)


def predict_logits(
    member: Member, image: Volume, labels: Labels, device: torch.device, prompt: BoxPrompt | None = None
) -> Iterator[tuple[int, torch.Tensor]]:
    """Logits of a preprocessed image (C, Z, Y, X), slice by slice, without or with a box."""
    slices = predict_slices(
        member.networks,
        image,
        member.configuration,
        member.plan.inference,
        num_outputs=labels.num_outputs,
        device=device,
        prompt=prompt,
    )
    while True:
        with autocast(device, member.plan.training.precision):  # not around what the caller does between slices
            found = next(slices, None)
        if found is None:
            return
        yield found


def change_inference(member: Member, *, step_size: float | None, mirror: bool | None) -> Member:
    """A member that predicts in another way: see `prediction.predict.Predictor.changed`."""
    inference = member.plan.inference
    if step_size is not None:
        stride = max(1, round(step_size * member.configuration.window))
        inference = replace(inference, depth="windows", slice_stride=stride, tile_overlap=1 - step_size)
    if mirror is not None:
        inference = replace(inference, mirror=mirror)
    return replace(member, plan=replace(member.plan, inference=inference))


def check_takes_boxes(members: Sequence[Member]) -> None:
    """Raise ModelError where a model was trained without boxes, or where there are several."""
    if len(members) > 1:
        raise ModelError("an ensemble of several configurations takes no boxes. Leave them out, or choose one model.")
    if members[0].plan.network.prompt != "box":
        raise ModelError(
            "this model was trained without boxes. Leave the boxes out, or train one with --set network.prompt=box."
        )


def check_image(
    members: Sequence[Member], description: DatasetDescription, image: np.ndarray, *, identifier: str
) -> None:
    """Raise ImageError where an image cannot be meant: wrong number of channels, not finite, or label values only."""
    names = description.channel_names
    if image.shape[0] != len(names):
        raise ImageError(
            f"case {identifier} has {image.shape[0]} channels; the model takes {len(names)} ({', '.join(names)})"
        )
    with np.errstate(invalid="ignore"):
        total = image.sum(dtype=np.float64)  # makes no copy, unlike a test of each voxel
    if not np.isfinite(total):
        count = image.size - np.count_nonzero(np.isfinite(image))
        raise ImageError(
            f"case {identifier} has {count} voxels that are not finite (NaN or infinite). Replace them, e.g. by the "
            "background's value."
        )
    highest = max(description.labels.declared)
    if max(plan.upper for member in members for plan in member.configuration.normalization) <= highest:
        return  # the training images themselves have such values
    values = np.unique(image[:, :: max(1, image.shape[1] // 16)])
    if (
        1 < len(values) <= highest + 1
        and np.isin(values, np.arange(highest + 1)).all()
        and len(np.unique(image)) == len(values)
    ):
        listed = ", ".join(f"{value:g}" for value in values[:6])
        raise ImageError(
            f"case {identifier} holds nothing but the label values {listed}: it looks like a segmentation. Give the image."
        )
