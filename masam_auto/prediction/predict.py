"""Segment arrays, files or streams of images with trained models that stay in memory.

Each image takes three steps. `preprocess_case` checks, turns, crops, normalises and resamples it.
`network.volume.predict_slices` runs the networks. `prediction.restore` brings the logits back to the image's original
grid; within boxes, `prediction.box_prompts` does.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch

from masam_auto.compute.device import choose_device
from masam_auto.core.boxes import BoxPrompt, GivenBox
from masam_auto.core.dataset import DatasetDescription
from masam_auto.core.errors import ModelError, PlanError
from masam_auto.core.geometry import Box, CaseProperties, Geometry
from masam_auto.core.plan import LARGEST_OVERLAP, InferencePlan
from masam_auto.core.postprocessing import Postprocessing
from masam_auto.core.selection import Selection
from masam_auto.formats.io import read_case
from masam_auto.formats.probability_files import Probabilities
from masam_auto.imaging.components import apply_postprocessing
from masam_auto.models.load_model import Member, load_member
from masam_auto.models.trained_model import choose_folds, model_in, open_model
from masam_auto.network.volume import Volume, predict_slices
from masam_auto.prediction.box_prompts import place_boxes, segment_boxes
from masam_auto.prediction.input_image import Files, check_image, one_case, turning_notes
from masam_auto.prediction.restore import MemberLogits, Slices, empty_probabilities, restore_case
from masam_auto.preprocessing.preprocess import PreprocessedCase, preprocess_case

logger = logging.getLogger(__name__)

SMALLEST_STEP = 1 - LARGEST_OVERLAP

Returned = Literal["labels", "probabilities", "both"]
Input = Files | tuple[np.ndarray, Geometry | Sequence[float]]
"""The files of one image, or the image itself with its geometry or spacing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """The segmentation of one image, on its original grid `geometry`. A field that was not asked for is None.

    `labels` (Z, Y, X) are label values after postprocessing. `probabilities` come straight from the networks and cover
    the part of the image that is not empty.
    """

    labels: np.ndarray | None
    probabilities: Probabilities | None
    geometry: Geometry


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedCase:
    """An image as each member's networks see it: (C, Z, Y, X), in memory or stored, with its properties.

    `boxes` are voxels of the original image. `notes` says how the image was read, for the log.
    """

    images: tuple[Volume, ...]
    properties: tuple[CaseProperties, ...]
    boxes: tuple[Box, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Predictor:
    """Trained models in memory, for any number of images. The probabilities of several members are averaged.

    A predictor never changes, so several threads may use one at once. They share the weights, and each needs memory for
    one image. Several processes should each load their own (`from_folder`): sending a predictor copies its weights,
    and CUDA does not survive a fork.

    Example:
        >>> from masam_auto import Predictor
        >>> predictor = Predictor.from_folder("masam_data/results/Dataset001_Toy/masam__axis0", "cpu")
        >>> found = predictor.predict_array(np.random.rand(1, 5, 16, 14), (3.0, 1.0, 0.75))  # (C, Z, Y, X); mm
        >>> found.labels.shape, found.labels.dtype  # (Z, Y, X)
        ((5, 16, 14), dtype('uint8'))
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
        """Load a trained model, or several as an ensemble. `models.load_model` describes the steps.

        Args:
            model: its folder, such as results/DatasetXXX_Name/masam__axis0, or the folders of several models.
            device: "cpu", "cuda", "cuda:1" or "mps"; None takes the best one available.
            folds: folds to average; None for all trained ones.
            checkpoint: "best", "latest" or "final" (`core.selection.CHECKPOINTS`).
            sam_checkpoint: the SAM file of the models, if it has moved and is not in `weights`.
            weights: the folder of SAM files.

        Raises:
            ModelError: no trained model; a fold has no such checkpoint, or it does not fit the plan; the SAM file is
                missing or has changed; or as `combine`.
            PlanError: a plan.json is damaged or of a newer version.
            MasamError: there is no such device.

        Example:
            >>> from masam_auto import Predictor
            >>> predictor = Predictor.from_folder(paths.model_folder(dataset.name, "masam", "axis0"), "cpu", folds=[0])
            >>> len(predictor.members), predictor.description.channel_names
            (1, ('CT',))
        """
        chosen = device if isinstance(device, torch.device) else choose_device(device)
        loaded = []
        for folder in [model] if isinstance(model, (str, Path)) else model:
            found = model_in(Path(folder))
            checkpoints = choose_folds(found, folds, checkpoint)
            plan, description = open_model(found)
            member = load_member(
                checkpoints, plan, description, device=chosen, sam_checkpoint=sam_checkpoint, weights=weights
            )
            loaded.append(cls(members=(member,), description=description, device=chosen))
        return combine(loaded)

    def changed(
        self, *, inference: InferencePlan | None = None, step_size: float | None = None, mirror: bool | None = None
    ) -> "Predictor":
        """A predictor with other inference settings than the models' plans. None leaves a setting as it is.

        Args:
            inference: replaces all inference settings.
            step_size: step between windows and between tiles, as a share of their length (0.05 to 1, at least one
                slice). Their overlap is 1 - step_size. The whole depth is then never predicted at once.
            mirror: whether to average over the flips that the plans allow.

        Raises:
            PlanError: the step size is out of range.

        Example:
            >>> faster = predictor.changed(mirror=False, step_size=0.9)
            >>> faster.members[0].plan.inference.mirror, faster.predict_files(dataset.cases[0].images[0]).labels.shape
            (False, (5, 16, 14))
        """
        if step_size is not None and not SMALLEST_STEP <= step_size <= 1:
            raise PlanError(
                f"the step size must be at least {SMALLEST_STEP:.2g} and at most 1 (a share of the window), got "
                f"{step_size:g}"
            )

        def change(member: Member) -> Member:
            found = inference or member.plan.inference
            if step_size is not None:
                stride = max(1, round(step_size * member.configuration.window))
                found = replace(found, depth="windows", slice_stride=stride, tile_overlap=1 - step_size)
            if mirror is not None:
                found = replace(found, mirror=mirror)
            return replace(member, plan=replace(member.plan, inference=found))

        return replace(self, members=tuple(map(change, self.members)))

    def check_takes_boxes(self) -> None:
        """Raise ModelError if the model was trained without boxes, or if there are several models."""
        if len(self.members) > 1:
            raise ModelError(
                "an ensemble of several configurations takes no boxes. Leave the boxes out, or choose one model."
            )
        if self.members[0].plan.network.prompt != "box":
            raise ModelError(
                "this model was trained without boxes. Leave the boxes out, or train one with `network.prompt=box`."
            )

    def prepare(
        self,
        image: np.ndarray,
        geometry: Geometry | Sequence[float],
        *,
        boxes: Sequence[GivenBox] = (),
        identifier: str,
    ) -> PreparedCase:
        """Check and preprocess an image: the first half of `predict_array`. It uses only the CPU.

        Members with the same preprocessing share one array. Arguments and errors are those of `predict_array`.
        """
        if boxes:
            self.check_takes_boxes()
        image, grid = check_image(self.members, self.description, image, geometry, identifier=identifier)
        notes = turning_notes(self.members, grid) if isinstance(geometry, Geometry) else ()
        placed = place_boxes(boxes, grid, identifier=identifier) if boxes else ()
        known: dict[tuple[str, str | None], PreprocessedCase] = {}
        cases = []
        for member in self.members:
            key = (member.configuration.preprocessing_digest, member.configuration.axes)
            if key not in known:
                known[key] = preprocess_case(image, grid, None, member.configuration, identifier=identifier)
            cases.append(known[key])
        return PreparedCase(
            images=tuple(case.image for case in cases),
            properties=tuple(case.properties for case in cases),
            boxes=placed,
            notes=notes,
        )

    def segment(self, prepared: PreparedCase, *, probabilities: np.ndarray | None = None) -> np.ndarray:
        """Label values (Z, Y, X) of a prepared image, postprocessed: the second half of `predict_array`.

        Args:
            prepared: from `prepare`, or preprocessed arrays of a training.
            probabilities: an array to fill in as well, from `restore.empty_probabilities` or `new_case_probabilities`.

        Raises:
            ModelError, OutputError: as `predict_array`.
        """
        labels = self.description.labels
        seen = list(zip(self.members, prepared.images, prepared.properties, strict=True))

        def logits(member: Member, image: Volume, prompt: BoxPrompt | None = None) -> Slices:
            return predict_slices(
                member.networks, image, member.configuration, member.plan.inference, num_outputs=labels.num_outputs,
                device=self.device, precision=member.plan.training.precision, prompt=prompt,
            )  # fmt: skip

        if prepared.boxes:
            if probabilities is not None:
                raise ModelError("boxes give only labels. Leave out the boxes, or do not ask for probabilities.")
            ((member, image, properties),) = seen
            found = segment_boxes(
                lambda prompt: logits(member, image, prompt), prepared.boxes, properties, labels, member.configuration
            )
        else:
            given = [
                MemberLogits(slices=logits(member, image), properties=properties, configuration=member.configuration)
                for member, image, properties in seen
            ]
            found = restore_case(given, labels, probabilities=probabilities)
        if self.postprocessing is None:
            return found
        voxel_volume = prepared.properties[0].geometry.voxel_volume
        return apply_postprocessing(found, self.postprocessing, voxel_volume=voxel_volume)

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
            geometry: its grid, or its spacing in mm along (Z, Y, X) or (Y, X). With a grid, the image is turned to the
                axes that the model was trained with, and the result is turned back. With a spacing, nothing is turned.
            boxes: prompts; without boxes the model segments automatically.
            returned: what to return.
            identifier: a name for messages.

        Raises:
            DatasetError: a box lies outside the image.
            ImageError: wrong number of axes or channels, values that are not finite real numbers, or the image looks
                like a segmentation.
            ModelError: the network's output is not finite, the model takes no boxes, or `returned` is unknown.
            OutputError: no space for the sums of an ensemble across slice axes (`formats.scratch`).

        Example:
            >>> image = np.random.rand(1, 5, 16, 14)  # (C, Z, Y, X)
            >>> found = predictor.predict_array(image, (3.0, 1.0, 0.75), returned="both")
            >>> found.labels.shape, found.probabilities.values.shape  # (Z, Y, X); (K, Z, Y, X) with background first
            ((5, 16, 14), (3, 5, 16, 14))
        """
        if returned not in get_args(Returned):
            raise ModelError(f"returned={returned!r}: expected one of {', '.join(get_args(Returned))}")
        prepared = self.prepare(image, geometry, boxes=boxes, identifier=identifier)
        for note in prepared.notes:
            logger.info("%s: %s", identifier, note)
        properties = prepared.properties[0]
        if returned == "labels":
            return Prediction(labels=self.segment(prepared), probabilities=None, geometry=properties.geometry)
        probabilities = empty_probabilities(properties, self.description.labels)
        labels = self.segment(prepared, probabilities=probabilities.values)
        kept = labels if returned == "both" else None
        return Prediction(labels=kept, probabilities=probabilities, geometry=properties.geometry)

    def predict_files(
        self, files: Files, *, boxes: Sequence[GivenBox] = (), returned: Returned = "labels"
    ) -> Prediction:
        """Segment one stored image.

        Args:
            files: an image file, a folder that is one image, or the files of one image's channels in order.
            boxes, returned: as in `predict_array`.

        Raises:
            DatasetError: there is no image, or there are several.
            MasamError: as `predict_array`, and ImageError if a file cannot be read.

        Example:
            >>> found = predictor.predict_files(dataset.folder / "imagesTr" / "case_001_0000.nii.gz")
            >>> found.labels.shape, found.geometry.spacing  # both (Z, Y, X), spacing in mm
            ((6, 16, 14), (3.0, 1.0, 0.75))
        """
        case = one_case(files, self.description)
        image, geometry = read_case(case, self.description)
        return self.predict_array(image, geometry, boxes=boxes, returned=returned, identifier=case.identifier)

    def predict_all(self, inputs: Iterable[Input], *, returned: Returned = "labels") -> Iterator[Prediction]:
        """Segment images one after the other. Each is predicted when the iterator reaches it.

        Args:
            inputs: files, or (image, geometry or spacing).
            returned: as in `predict_array`.

        Raises:
            MasamError: as `predict_array` and `predict_files`; the iteration ends there.

        Example:
            >>> files = [case.images[0] for case in dataset.cases]
            >>> [found.labels.shape for found in predictor.predict_all(files)]
            [(5, 16, 14), (6, 16, 14), (5, 16, 14)]
        """
        for number, given in enumerate(inputs, 1):
            if isinstance(given, tuple) and isinstance(given[0], np.ndarray):
                image, geometry = given
                yield self.predict_array(image, geometry, returned=returned, identifier=f"number {number}")  # type: ignore[arg-type]
            else:
                yield self.predict_files(given, returned=returned)  # type: ignore[arg-type]


def load_selection(
    selection: Selection,
    results: Path,
    *,
    device: torch.device,
    sam_checkpoint: Path | None = None,
    weights: Path | None = None,
) -> Predictor:
    """Load the models and the postprocessing that `masam_find_best_configuration` chose.

    Args:
        selection: the chosen models.
        results: root of the results.
        device, sam_checkpoint, weights: as `Predictor.from_folder`.

    Raises:
        ModelError, PlanError: as `Predictor.from_folder`.
    """
    loaded = [
        Predictor.from_folder(
            results / selection.dataset_name / member.folder_name,
            device,
            folds=member.folds,
            checkpoint=member.checkpoint,
            sam_checkpoint=sam_checkpoint,
            weights=weights,
        )
        for member in selection.members
    ]
    return replace(combine(loaded), postprocessing=selection.postprocessing)


def combine(predictors: Sequence[Predictor]) -> Predictor:
    """One predictor that averages the probabilities of several. It keeps the first one's description and device.

    Raises:
        ModelError: there are none, or their labels or channels differ.
    """
    if not predictors:
        raise ModelError("no model is given. Name at least one folder of a trained model.")
    first, *others = predictors
    for other in others:
        for what in ("labels", "channel_names"):
            if getattr(other.description, what) != getattr(first.description, what):
                names = [p.members[0].plan.name + "__" + p.members[0].configuration.name for p in (first, other)]
                raise ModelError(
                    f"{names[0]} and {names[1]} cannot be averaged: they were trained with different "
                    f"{what.replace('_', ' ')}. Choose models of one data set."
                )
    return replace(first, members=tuple(member for predictor in predictors for member in predictor.members))
