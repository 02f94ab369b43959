"""Images to segmentations: read -> preprocess -> network -> restore -> write, case by case."""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from masam_auto.core.boxes import BoxPrompt, GivenBox
from masam_auto.core.dataset import Case, DatasetDescription
from masam_auto.core.errors import CaseErrors, ImageError, MasamError, ModelError, OutputError
from masam_auto.core.geometry import Box, CaseProperties, Geometry
from masam_auto.core.jsonio import write_json
from masam_auto.core.log import progress
from masam_auto.core.plan import Configuration, Plan
from masam_auto.imaging.box_files import Boxes, read_boxes
from masam_auto.imaging.inputs import find_inputs
from masam_auto.imaging.io import label_ending, read_case, read_geometry, write_labels
from masam_auto.learning.device import autocast
from masam_auto.learning.models import TrainedModel, choose_folds, load_networks, open_model
from masam_auto.network.volume import Volume, predict_volume
from masam_auto.stages.box_prompts import place_boxes, segment_boxes
from masam_auto.stages.preprocess import preprocess_case, restore_case

logger = logging.getLogger(__name__)

RAW_FOLDERS = ("imagesTr", "labelsTr", "imagesTs", "labelsTs")


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """A trained model in memory; the networks of its folds are averaged."""

    networks: tuple[nn.Module, ...]
    plan: Plan
    configuration: Configuration
    description: DatasetDescription
    device: torch.device


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of a folder: identifiers of the cases predicted and skipped, and one sentence for each failure."""

    predicted: tuple[str, ...]
    skipped: tuple[str, ...]
    problems: tuple[str, ...]


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
        model: from `learning.models.choose_model`.
        folds: to average; None for all that are trained.
        checkpoint: "best", "latest" or "final" (`learning.models.CHECKPOINTS`).
        device: where to compute.
        sam_checkpoint: the SAM file that the model stands on, where it is neither where it was nor in `weights`.
        weights: the folder of SAM files.

    Raises:
        ModelError: a fold has no checkpoint, or it does not fit the plan; its SAM file is missing or has changed.
        PlanError: the model's plan.json is damaged or of a newer version.
    """
    plan, description = open_model(model)
    configuration = plan.configuration(model.configuration)
    networks = load_networks(
        choose_folds(model, folds, checkpoint), plan, configuration, description,
        device=device, sam_checkpoint=sam_checkpoint, weights=weights,
    )  # fmt: skip
    return Predictor(networks=networks, plan=plan, configuration=configuration, description=description, device=device)


def predict_logits(predictor: Predictor, image: Volume, prompt: BoxPrompt | None = None) -> torch.Tensor:
    """Logits (K, Z, Y, X), float16 on the host, of a preprocessed image (C, Z, Y, X), without or with a box."""
    with autocast(predictor.device, predictor.plan.training.precision):
        return predict_volume(
            predictor.networks,
            image,
            predictor.configuration,
            predictor.plan.inference,
            num_outputs=predictor.description.labels.num_outputs,
            device=predictor.device,
            prompt=prompt,
        )


def predict_image(
    predictor: Predictor, image: np.ndarray, geometry: Geometry, *, identifier: str, boxes: Sequence[GivenBox] = ()
) -> np.ndarray:
    """Segment one image in memory.

    Args:
        predictor: the model.
        image: (C, Z, Y, X) float32 in the file's units. It is not changed.
        geometry: its grid.
        identifier: a name for messages.
        boxes: prompts; without any the model segments automatically.

    Returns:
        (Z, Y, X) label values on the image's own grid.

    Raises:
        DatasetError: a box outside the image.
        ImageError: wrong number of channels, or the image looks like a segmentation.
        ModelError: the network's output is not finite, or boxes for a model that was trained without.
    """
    if boxes:
        check_takes_boxes(predictor)
    check_image(predictor, image, identifier=identifier)
    placed = place_boxes(boxes, geometry, identifier=identifier)
    prepared = preprocess_case(image, geometry, None, predictor.configuration, identifier=identifier)
    return segment_preprocessed(predictor, prepared.image, prepared.properties, placed)


def segment_preprocessed(
    predictor: Predictor, image: Volume, properties: CaseProperties, boxes: Sequence[Box] = ()
) -> np.ndarray:
    """Segment a preprocessed image (C, Z, Y, X), automatically or within boxes (voxels of the original image).

    Returns:
        (Z, Y, X) label values on the original grid.
    """
    labels, configuration = predictor.description.labels, predictor.configuration
    if boxes:
        return segment_boxes(
            lambda prompt: predict_logits(predictor, image, prompt), boxes, properties, labels, configuration
        )
    return restore_case(predict_logits(predictor, image), properties, labels, configuration)


def predict_case(predictor: Predictor, case: Case, folder: Path, boxes: Sequence[GivenBox] = ()) -> None:
    """Read, segment and write one case, or one video of several frames.

    Raises:
        MasamError: of any kind that reading, predicting or writing may raise, naming the case.
    """
    image, geometry = read_case(case, predictor.description)
    check_image(predictor, image, identifier=case.identifier)
    placed = place_boxes(boxes, geometry, identifier=case.identifier)
    prepared = preprocess_case(image, geometry, None, predictor.configuration, identifier=case.identifier)
    del image  # a volume less in memory while the network works
    segmentation = segment_preprocessed(predictor, prepared.image, prepared.properties, placed)
    write_segmentation(case, segmentation, geometry, folder, label_ending(predictor.description.file_ending))


def write_segmentation(case: Case, segmentation: np.ndarray, geometry: Geometry, folder: Path, ending: str) -> None:
    """Write (Z, Y, X) labels as ID.ext, or, for a video, one file a frame on the frame's own grid."""
    if not case.is_sequence:
        write_labels(folder / f"{case.identifier}{ending}", segmentation, geometry)
        return
    for number, (frame, files) in enumerate(zip(case.frames, case.images, strict=True)):
        write_labels(folder / f"{frame}{ending}", segmentation[number : number + 1], read_geometry(files[0]))


def read_case_boxes(predictor: Predictor, source: Path, boxes_file: Path) -> Boxes:
    """Read the boxes for the cases of a folder.

    Raises:
        DatasetError: no images, or the boxes are for other cases, damaged, or make no sense.
        ModelError: the model was trained without boxes.
    """
    check_takes_boxes(predictor)
    return read_boxes(boxes_file, [case.identifier for case in find_inputs(source, predictor.description)])


def predict_folder(
    predictor: Predictor,
    source: Path,
    folder: Path,
    *,
    overwrite: bool = False,
    continue_prediction: bool = False,
    boxes: Mapping[str, Sequence[GivenBox]] | None = None,
    only: Collection[str] | None = None,
) -> Outcome:
    """Predict all cases of a folder (or one file); what fails is reported at the end, the rest is done.

    Args:
        predictor: the model.
        source: folder in nnU-Net's naming or of plain images, or one image file.
        folder: where the segmentations go; also gets the model's dataset.json and plan.json.
        overwrite: replace segmentations that are there.
        continue_prediction: keep them, and predict the others.
        boxes: of each case; cases without any are predicted automatically. None where no boxes are wanted.
        only: identifiers of the cases to predict; None for all.

    Raises:
        DatasetError: no images, or their names make no sense.
        ModelError: boxes for a model that was trained without.
        OutputError: segmentations are there and neither option is given, the folder is the input's, or nothing can
            be written.
    """
    if boxes is not None:
        check_takes_boxes(predictor)
    cases = [case for case in find_inputs(source, predictor.description) if only is None or case.identifier in only]
    ending = label_ending(predictor.description.file_ending)
    check_output(source, folder)
    done = {case.identifier for case in cases if all((folder / f"{f}{ending}").exists() for f in case.frames)}
    if not (overwrite or continue_prediction):
        _refuse_to_overwrite(cases, folder, ending)
    skipped = done if continue_prediction and not overwrite else set()
    predicted: list[str] = []
    problems: list[str] = []
    waiting = [case for case in cases if case.identifier not in skipped]
    if without := [case.identifier for case in waiting if boxes is not None and not boxes.get(case.identifier)]:
        logger.warning("no box for %s: predicted without a prompt", ", ".join(without))
    for case in progress(waiting, what="predicting"):
        try:
            predict_case(predictor, case, folder, (boxes or {}).get(case.identifier, ()))
            if not predicted:  # not before: a folder where nothing was predicted is left as it was
                write_json(folder / "dataset.json", predictor.description.raw)
                write_json(folder / "plan.json", predictor.plan)
            predicted.append(case.identifier)
        except OutputError:
            raise  # the next case could not be written either
        except CaseErrors as error:
            problems += error.problems
        except MasamError as error:
            problems.append(_naming(case.identifier, str(error)))
    return Outcome(predicted=tuple(predicted), skipped=tuple(sorted(skipped)), problems=tuple(problems))


def _refuse_to_overwrite(cases: Sequence[Case], folder: Path, ending: str) -> None:
    """Raise OutputError where segmentations of the cases are there."""
    present = [f"{f}{ending}" for case in cases for f in case.frames if (folder / f"{f}{ending}").exists()]
    if present:
        more = f" and {len(present) - 5} more" if len(present) > 5 else ""
        raise OutputError(
            f"{folder} already holds {', '.join(present[:5])}{more}. Give --overwrite to replace them, another folder, or to "
            "masam_predict --continue_prediction to predict only the others."
        )


def check_output(source: Path, folder: Path) -> None:
    """Refuse to write among the images. Raises OutputError."""
    images = source if source.is_dir() else source.parent
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; the output must be a folder")
    if folder.resolve() == images.resolve():
        raise OutputError(f"the output folder is the input folder ({folder}). Choose another one.")
    whole = folder.resolve()
    part = whole.name in RAW_FOLDERS and (whole.parent / "dataset.json").is_file()
    if (folder / "imagesTr").is_dir() or part:
        raise OutputError(
            f"the output folder is {'part of ' if part else ''}a raw data set ({folder}). Choose another one."
        )


def check_takes_boxes(predictor: Predictor) -> None:
    """Raise ModelError where a model was trained without boxes."""
    if predictor.plan.network.prompt != "box":
        raise ModelError(
            "this model was trained without boxes. Leave the boxes out, or train one with --set network.prompt=box."
        )


def check_image(predictor: Predictor, image: np.ndarray, *, identifier: str) -> None:
    """Raise ImageError where an image cannot be meant: wrong number of channels, or label values only."""
    names = predictor.description.channel_names
    if image.shape[0] != len(names):
        raise ImageError(
            f"case {identifier} has {image.shape[0]} channels; the model takes {len(names)} ({', '.join(names)})"
        )
    highest = max(predictor.description.labels.declared)
    if max(plan.upper for plan in predictor.configuration.normalization) <= highest:
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


def _naming(identifier: str, message: str) -> str:
    return message if identifier in message else f"case {identifier}: {message}"
