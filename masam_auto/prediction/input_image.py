"""Check that an image fits a model, before anything is computed, and collect notes about it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from masam_auto.core.dataset import Case, DatasetDescription
from masam_auto.core.errors import DatasetError, ImageError, first_few
from masam_auto.core.geometry import Geometry
from masam_auto.core.turning import UNKNOWN_AXES
from masam_auto.formats.inputs import find_inputs
from masam_auto.imaging.normalize import not_finite
from masam_auto.models.load_model import Member

Files = Path | str | Sequence[Path | str]
"""An image file, a folder that is one image, or the files of one image's channels in order."""


def one_case(files: Files, description: DatasetDescription) -> Case:
    """The one case that files hold. Raises DatasetError."""
    if not isinstance(files, (str, Path)):
        images = tuple(Path(file) for file in files)
        if not images:
            raise DatasetError("no image file is given. Name one file for each channel, in order.")
        identifier = images[0].name.partition(".")[0]
        return Case(identifier=identifier, frames=(identifier,), images=(images,))
    cases = find_inputs(Path(files), description)
    if len(cases) > 1:
        named = first_few([case.identifier for case in cases])
        raise DatasetError(
            f"{files} holds {len(cases)} images ({named}) instead of one. Give one image, or predict the whole folder "
            "with masam_predict."
        )
    return cases[0]


def check_image(
    members: Sequence[Member],
    description: DatasetDescription,
    image: np.ndarray,
    geometry: Geometry | Sequence[float],
    *,
    identifier: str,
) -> tuple[np.ndarray, Geometry]:
    """Check an image and return it as (C, Z, Y, X) float32 with its geometry.

    The image may be a volume or a picture, with a geometry or a spacing.

    Raises:
        ImageError: wrong number of axes or channels, not finite, or label values only.
    """
    image, grid = as_volume(image, geometry, identifier)
    names = description.channel_names
    if image.shape[0] != len(names):
        raise ImageError(
            f"case {identifier} has {image.shape[0]} channels; the model takes {len(names)} ({', '.join(names)})"
        )
    if problem := not_finite(image):
        raise ImageError(f"case {identifier}: {problem}")
    highest = max(description.labels.declared)
    if max(plan.upper for member in members for plan in member.configuration.normalization) <= highest:
        return image, grid  # the training images themselves have such values
    values = np.unique(image[:, :: max(1, image.shape[1] // 16)])
    if (
        1 < len(values) <= highest + 1
        and np.isin(values, np.arange(highest + 1)).all()
        and len(np.unique(image)) == len(values)
    ):
        listed = first_few([f"{value:g}" for value in values])
        raise ImageError(
            f"case {identifier} holds only the label values {listed}: it looks like a segmentation. Give the image "
            "instead."
        )
    return image, grid


def as_volume(image: np.ndarray, geometry: Geometry | Sequence[float], identifier: str) -> tuple[np.ndarray, Geometry]:
    if image.ndim not in (3, 4):
        raise ImageError(
            f"case {identifier} has shape {image.shape}; expected (C, Z, Y, X), or (C, Y, X) for a picture. Add the "
            "channel axis: image[None]."
        )
    if image.dtype.kind not in "biuf":
        raise ImageError(f"case {identifier} has values of type {image.dtype}; expected real numbers")
    axes = image.ndim - 1
    hint = " A volume needs its channel axis: image[None]." if axes == 2 else ""
    if axes == 2:
        image = image[:, None]
    shape = (image.shape[1], image.shape[2], image.shape[3])
    if not isinstance(geometry, Geometry):
        if len(geometry) != axes:
            raise ImageError(f"case {identifier} needs a spacing along {axes} axes (mm), got {tuple(geometry)}.{hint}")
        z, y, x = (1.0, *geometry) if axes == 2 else geometry
        geometry = Geometry(shape=shape, spacing=(float(z), float(y), float(x)), dimensions=axes, oriented=False)
    elif geometry.shape != shape:
        raise ImageError(f"case {identifier} has shape {shape} (Z, Y, X), but its geometry {geometry.shape}.{hint}")
    return np.asarray(image, dtype=np.float32), geometry


def turning_notes(members: Sequence[Member], geometry: Geometry) -> tuple[str, ...]:
    """Notes on how an image's voxel axes differ from those of the models' training images; empty if they do not."""
    notes = []
    for axes, own in dict.fromkeys((one.configuration.axes, one.configuration.axes_of(geometry)) for one in members):
        if geometry.axes is None:
            notes.append("the image does not say where its axes point; it is used as stored")
        elif axes is None:
            notes.append(
                f"its axes (x, y, z) point to {geometry.axes}; the model (imported, or from an older release) does not "
                "say where those of its training images pointed, so nothing is turned. If they differed, sides are "
                "swapped"
            )
        elif axes == UNKNOWN_AXES:
            notes.append(
                f"its axes (x, y, z) point to {geometry.axes}; the model's training images did not say where theirs "
                "pointed, so nothing is turned"
            )
        elif axes != own:
            notes.append(
                f"the image is turned from its axes (x, y, z) {own} to the model's {axes}, and the segmentation back"
            )
    return tuple(dict.fromkeys(notes))
