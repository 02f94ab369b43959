"""Trained models in memory, for any number of images: arrays, files, or whatever an iterator gives."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch

from masam_auto.compute.device import choose_device
from masam_auto.core.boxes import GivenBox
from masam_auto.core.dataset import Case, DatasetDescription
from masam_auto.core.errors import DatasetError, ImageError, ModelError, PlanError
from masam_auto.core.geometry import Box, Geometry
from masam_auto.core.plan import LARGEST_OVERLAP
from masam_auto.core.postprocessing import Postprocessing
from masam_auto.core.selection import Selection
from masam_auto.formats.inputs import find_inputs
from masam_auto.formats.io import read_case
from masam_auto.formats.probability_files import Probabilities
from masam_auto.imaging.components import apply_postprocessing
from masam_auto.models.trained_model import (
    TrainedModel,
    choose_folds,
    choose_model,
    configuration_of,
    load_networks,
    open_model,
)
from masam_auto.prediction.box_prompts import place_boxes
from masam_auto.prediction.probabilities import empty_probabilities
from masam_auto.prediction.segment import (
    Member,
    PreparedCase,
    change_inference,
    check_takes_boxes,
    prepare_image,
    segment_prepared,
    turning_notes,
)

logger = logging.getLogger(__name__)

SMALLEST_STEP = 1 - LARGEST_OVERLAP

Returned = Literal["labels", "probabilities", "both"]
Files = Path | str | Sequence[Path | str]
"""An image file, a folder that is one image, or the files of one image's channels in order."""
Input = Files | tuple[np.ndarray, Geometry | Sequence[float]]
"""What one image is read from, or the image itself with its geometry or spacing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """What was found in one image, on the image's own grid `geometry`; None for what was not asked for.

    `labels` (Z, Y, X) are label values, after postprocessing. `probabilities` are the networks' own, of the part of the
    image that holds anything.
    """

    labels: np.ndarray | None
    probabilities: Probabilities | None
    geometry: Geometry


@dataclass(frozen=True, kw_only=True, slots=True)
class Predictor:
    """Trained models in memory, for any number of images. The probabilities of several members are averaged.

    Nothing of it changes while it predicts: one predictor may be used by several threads at once, which share the
    networks' weights and need memory for one image each. Processes load one each (`from_folder`) rather than receive it,
    because a copy of the weights would travel with it, and because CUDA does not survive a fork.
    """

    members: tuple[Member, ...]
    description: DatasetDescription
    device: torch.device
    postprocessing: Postprocessing | None = None

    @classmethod
    def from_folder(
        cls,
        model: Path | str | Sequence[Path | str],
        device: torch.device | str | None = None,
        *,
        folds: Sequence[int | str] | None = None,
        checkpoint: str = "best",
        sam_checkpoint: Path | None = None,
        weights: Path | None = None,
    ) -> "Predictor":
        """Load a trained model, or several as an ensemble.

        Args:
            model: its folder, such as results/DatasetXXX_Name/masam__axis0, or the folders of several.
            device: "cpu", "cuda", "cuda:1", "mps"; None takes the best there is.
            folds, checkpoint, sam_checkpoint, weights: as `load_predictor`, the same for every folder.

        Raises:
            ModelError, PlanError: as `load_predictor` and `combine`.
            MasamError: there is no such device.
        """
        chosen = device if isinstance(device, torch.device) else choose_device(device)
        folders = [model] if isinstance(model, (str, Path)) else model
        loaded = [
            load_predictor(
                choose_model(Path(), folder=Path(folder)),
                folds=folds,
                checkpoint=checkpoint,
                device=chosen,
                sam_checkpoint=sam_checkpoint,
                weights=weights,
            )
            for folder in folders
        ]
        return combine(loaded)

    def changed(self, *, step_size: float | None = None, mirror: bool | None = None) -> "Predictor":
        """Predict in another way than the plans say; None leaves a setting as it is.

        Args:
            step_size: windows of slices and tiles follow each other by this share of their length (at least a slice),
                so that 1 - step_size is their overlap; the depth is then never taken as a whole. At least 0.05, at most 1.
            mirror: whether to average over the flips that the plans allow.

        Raises:
            PlanError: another step size.
        """
        if step_size is not None and not SMALLEST_STEP <= step_size <= 1:
            raise PlanError(
                f"the step size must be at least {SMALLEST_STEP:.2g} and at most 1 (a share of the window), got {step_size:g}"
            )
        members = tuple(change_inference(member, step_size=step_size, mirror=mirror) for member in self.members)
        return replace(self, members=members)

    def prepare(self, image: np.ndarray, geometry: Geometry, *, identifier: str) -> PreparedCase:
        """Check and preprocess an image (C, Z, Y, X): the first half of `predict_array`, on the CPU alone.

        Raises:
            ImageError: as `predict_array`.
        """
        return prepare_image(self.members, self.description, image, geometry, identifier=identifier)

    def segment(
        self, prepared: PreparedCase, boxes: Sequence[Box] = (), *, probabilities: np.ndarray | None = None
    ) -> np.ndarray:
        """Label values (Z, Y, X) of a prepared image, postprocessed: the second half of `predict_array`.

        Args:
            prepared: from `prepare`, or preprocessed arrays of a training.
            boxes: voxels of the original image.
            probabilities: an array to fill in as well (`prediction.probabilities`).

        Raises:
            ModelError, OutputError: as `predict_array`.
        """
        labels = segment_prepared(
            self.members, self.description.labels, prepared, boxes, device=self.device, probabilities=probabilities
        )
        if self.postprocessing is None:
            return labels
        voxel_volume = prepared.properties[0].geometry.voxel_volume
        return apply_postprocessing(labels, self.postprocessing, voxel_volume=voxel_volume)

    def predict_array(
        self,
        image: np.ndarray,
        geometry: Geometry | Sequence[float],
        *,
        boxes: Sequence[GivenBox] = (),
        returned: Returned = "labels",
        identifier: str = "in memory",
    ) -> Prediction:
        """Segment an image in memory.

        Args:
            image: (C, Z, Y, X), or (C, Y, X) for a picture, in the file's units. It is not changed.
            geometry: its grid, or its spacing in mm along (Z, Y, X) or (Y, X). With a grid the image is turned to the axes
                that the model was trained with, and the result back; with a spacing it is taken as it is.
            boxes: prompts; without any the model segments automatically.
            returned: what to give.
            identifier: a name for messages.

        Raises:
            DatasetError: a box outside the image.
            ImageError: wrong number of axes or channels, values that are no finite real numbers, or the image looks like a
                segmentation.
            ModelError: the network's output is not finite, boxes for a model that cannot take them, or an unknown
                `returned`.
            OutputError: an ensemble across slice axes has no space (`formats.scratch`).
        """
        if returned not in get_args(Returned):
            raise ModelError(f"returned={returned!r}: expected is one of {', '.join(get_args(Returned))}")
        said = turning_notes(self.members, geometry) if isinstance(geometry, Geometry) else ()
        for note in said:
            logger.info("%s: %s", identifier, note)
        image, geometry = _as_volume(image, geometry, identifier)
        if boxes:
            check_takes_boxes(self.members)
        placed = place_boxes(boxes, geometry, identifier=identifier)
        prepared = self.prepare(image, geometry, identifier=identifier)
        if returned == "labels":
            return Prediction(labels=self.segment(prepared, placed), probabilities=None, geometry=geometry)
        probabilities = empty_probabilities(prepared.properties[0], self.description.labels)
        labels = self.segment(prepared, placed, probabilities=probabilities.values)
        kept = labels if returned == "both" else None
        return Prediction(labels=kept, probabilities=probabilities, geometry=geometry)

    def predict_files(
        self, files: Files, *, boxes: Sequence[GivenBox] = (), returned: Returned = "labels"
    ) -> Prediction:
        """Segment one image that is stored.

        Args:
            files: see `Files`.
            boxes, returned: as in `predict_array`.

        Raises:
            DatasetError: no image there, or several.
            MasamError: as `predict_array`, and ImageError where a file cannot be read.
        """
        case = _case_of(files, self.description)
        image, geometry = read_case(case, self.description)
        return self.predict_array(image, geometry, boxes=boxes, returned=returned, identifier=case.identifier)

    def predict_all(self, inputs: Iterable[Input], *, returned: Returned = "labels") -> Iterator[Prediction]:
        """Segment images one after the other, each when its prediction is asked for.

        Args:
            inputs: files, or (image, geometry or spacing).
            returned: as in `predict_array`.

        Raises:
            MasamError: as `predict_array` and `predict_files`; the iteration ends there.
        """
        for number, given in enumerate(inputs, 1):
            if isinstance(given, tuple) and isinstance(given[0], np.ndarray):
                image, geometry = given
                yield self.predict_array(image, geometry, returned=returned, identifier=f"number {number}")  # type: ignore[arg-type]
            else:
                yield self.predict_files(given, returned=returned)  # type: ignore[arg-type]


def load_predictor(
    model: TrainedModel,
    *,
    folds: Sequence[int | str] | None = None,
    checkpoint: str = "best",
    device: torch.device,
    sam_checkpoint: Path | None = None,
    weights: Path | None = None,
) -> Predictor:
    """Load a trained model once, for any number of images.

    Args:
        model: from `models.trained_model.choose_model`.
        folds: to average; None for all that are trained.
        checkpoint: "best", "latest" or "final" (`core.selection.CHECKPOINTS`).
        device: where to compute.
        sam_checkpoint: the SAM file that the model stands on, where it is neither where it was nor in `weights`.
        weights: the folder of SAM files.

    Raises:
        ModelError: a fold has no checkpoint of this kind, or it does not fit the plan; its SAM file is missing or has
            changed.
        PlanError: the model's plan.json is damaged or of a newer version.
    """
    checkpoints = choose_folds(model, folds, checkpoint)
    plan, description = open_model(model)
    configuration = configuration_of(checkpoints[0], plan)
    networks = load_networks(
        checkpoints, plan, configuration, description, device=device, sam_checkpoint=sam_checkpoint, weights=weights
    )
    member = Member(networks=networks, plan=plan, configuration=configuration)
    return Predictor(members=(member,), description=description, device=device)


def load_selection(
    selection: Selection,
    results: Path,
    *,
    device: torch.device,
    sam_checkpoint: Path | None = None,
    weights: Path | None = None,
) -> Predictor:
    """Load the models that `masam_find_best_configuration` chose, with the postprocessing that it found.

    Args:
        selection: what was chosen.
        results: root of the results.
        device, sam_checkpoint, weights: as `load_predictor`.

    Raises:
        ModelError, PlanError: as `load_predictor` and `combine`.
    """
    loaded = [
        load_predictor(
            choose_model(results, folder=results / selection.dataset_name / member.folder_name),
            folds=member.folds,
            checkpoint=member.checkpoint,
            device=device,
            sam_checkpoint=sam_checkpoint,
            weights=weights,
        )
        for member in selection.members
    ]
    return replace(combine(loaded), postprocessing=selection.postprocessing)


def combine(predictors: Sequence[Predictor]) -> Predictor:
    """One predictor that averages the probabilities of several; the first one's description and device hold.

    Raises:
        ModelError: there are none, or they were trained with other labels or channels.
    """
    if not predictors:
        raise ModelError("no model is given. Name at least one folder of a trained model.")
    first, *others = predictors
    for other in others:
        for what in ("labels", "channel_names"):
            if getattr(other.description, what) != getattr(first.description, what):
                names = [p.members[0].plan.name + "__" + p.members[0].configuration.name for p in (first, other)]
                raise ModelError(
                    f"{names[0]} and {names[1]} cannot be averaged: they were trained with other {what.replace('_', ' ')}. "
                    "Choose models of one data set."
                )
    return replace(first, members=tuple(member for predictor in predictors for member in predictor.members))


def _as_volume(image: np.ndarray, geometry: Geometry | Sequence[float], identifier: str) -> tuple[np.ndarray, Geometry]:
    """(C, Z, Y, X) float32 and its geometry, from an image of a volume or of a picture. Raises ImageError."""
    if image.ndim not in (3, 4):
        raise ImageError(
            f"case {identifier} has shape {image.shape}; expected are (C, Z, Y, X), or (C, Y, X) for a picture. Add the channel "
            "axis: image[None]."
        )
    if image.dtype.kind not in "biuf":
        raise ImageError(f"case {identifier} has values of type {image.dtype}; expected are real numbers")
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


def _case_of(files: Files, description: DatasetDescription) -> Case:
    """The one case that files hold. Raises DatasetError."""
    if not isinstance(files, (str, Path)):
        images = tuple(Path(file) for file in files)
        if not images:
            raise DatasetError("no file of the image is given. Name one for each channel, in order.")
        identifier = images[0].name.partition(".")[0]
        return Case(identifier=identifier, frames=(identifier,), images=(images,))
    cases = find_inputs(Path(files), description)
    if len(cases) > 1:
        named = ", ".join(case.identifier for case in cases[:5])
        raise DatasetError(
            f"{files} holds {len(cases)} images ({named}{', ...' if len(cases) > 5 else ''}), not one. Give one image, or "
            "predict the folder with masam_predict."
        )
    return cases[0]
