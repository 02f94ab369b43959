"""Start a training from another trained model: take the tensors that fit; parts sized by the classes start fresh."""

import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from masam_auto.core.errors import ModelError, first_few
from masam_auto.core.plan import NetworkPlan
from masam_auto.models.checkpoint import BEST, LATEST, MODEL_FILE, ModelHeader, read_model
from masam_auto.models.sam_files import SamWeights
from masam_auto.network.encoder_kinds import kind_of
from masam_auto.network.masam import MaSam
from masam_auto.network.sam import fit_state
from masam_auto.training.learner import Learner

logger = logging.getLogger(__name__)

# Parts whose sizes, or numbers, follow the classes.
CLASS_PARTS = (
    "mask_decoder.mask_tokens.",
    "mask_decoder.output_hypernetworks_mlps.",
    "mask_decoder.iou_prediction_head.",
    "mask_decoder.head.",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Fitted:
    """The tensors a network takes from a model, in its shapes; names that were resized, and those that start fresh."""

    taken: dict[str, torch.Tensor]
    resized: tuple[str, ...]
    anew: tuple[str, ...]


def find_model(path: Path) -> Path:
    """The checkpoint folder for `path`: a checkpoint folder, its model.safetensors, or a fold (best, else latest).

    Raises:
        ModelError: there is none.
    """
    if path.is_file() and path.name == MODEL_FILE:
        return path.parent
    for folder in (path, path / BEST, path / LATEST):
        if (folder / MODEL_FILE).is_file():
            return folder
    folds = sorted(folder.name for folder in path.glob("fold_*")) if path.is_dir() else []
    if folds:
        raise ModelError(f"{path} is a model of several folds; give one of them: {', '.join(folds)}")
    raise ModelError(
        f"{path} holds no trained model. Give a {MODEL_FILE}, a checkpoint's folder or a fold's folder, such as "
        "results/DatasetXXX_Name/masam__axis0/fold_0. SAM's own weights are given with `sam_checkpoint`."
    )


def start_from(learner: Learner, path: Path, *, sam: SamWeights | None) -> tuple[str, str]:
    """Put a trained model's tensors into a new learner, its average included.

    Args:
        learner: with its SAM weights, where it has any; is changed in place.
        path: as `find_model` reads it.
        sam: the SAM file that the learner started from.

    Returns:
        the absolute path of the model, and a line for the log that says how much was taken.

    Raises:
        ModelError: no model, a damaged one, or one of another encoder, other channels, or another SAM file.
    """
    folder = find_model(path).absolute()
    header, given = read_model(folder)
    _check_encoder(header, learner.network, sam, folder)
    other_classes = _outputs(given) != _outputs(learner.tensors)
    fitted = fit_tensors(given, learner, origin=str(folder), other_classes=other_classes)
    with torch.no_grad():
        for name, tensor in fitted.taken.items():
            learner.tensors[name].copy_(tensor)
            learner.average.tensors[name].copy_(learner.tensors[name])
    return str(folder), _describe(fitted, folder, len(learner.tensors))


def fit_tensors(given: Mapping[str, torch.Tensor], learner: Learner, *, origin: str, other_classes: bool) -> Fitted:
    """The tensors of a model that fit a learner; position tables of another canvas are resized.

    Args:
        given: the model's.
        learner: whose tensors are wanted.
        origin: the model, for messages.
        other_classes: leave out parts sized by the classes, even if shapes agree.

    Raises:
        ModelError: nothing fits.
    """
    taken: dict[str, torch.Tensor] = {}
    resized, anew = [], []
    spec = learner.network.spec
    for name, own in learner.tensors.items():
        if name not in given or (other_classes and name.startswith(CLASS_PARTS)):
            anew.append(name)
        elif given[name].shape == own.shape:
            taken[name] = given[name]
        elif "pos" in name.rpartition(".")[2] and given[name].ndim == own.ndim:
            table = {name: given[name].float()}
            taken |= fit_state(
                table,
                {name: own},
                encoder="this network",
                fit=functools.partial(kind_of(spec).fit, spec),
                origin=origin,
            )
            resized.append(name)
        else:
            anew.append(name)
    if not taken:
        raise ModelError(f"{origin}: none of its tensors fits this network; its plan is too different.")
    return Fitted(taken=taken, resized=tuple(resized), anew=tuple(anew))


def _check_encoder(header: ModelHeader, network: MaSam, sam: SamWeights | None, folder: Path) -> None:
    """Raise ModelError if the model's encoder, channels or SAM weights differ from the network's."""
    plan, theirs = network.plan, header.network
    if (theirs.encoder, theirs.custom_encoder) != (plan.encoder, plan.custom_encoder):
        raise ModelError(
            f"{folder} has the encoder {theirs.encoder}, the plan has {plan.encoder}. Plan with "
            f"`backbone={theirs.encoder}`, or give a model of the plan's encoder."
        )
    if header.in_channels not in (None, network.in_channels):
        raise ModelError(
            f"{folder} was trained with {header.in_channels} input channels, the data set has {network.in_channels}. "
            "Give a model of as many channels."
        )
    if plan.stands_on_sam and not theirs.stands_on_sam:
        raise ModelError(
            f"{folder} learned all of its encoder, but the plan keeps SAM's frozen (network.trained={plan.trained}). "
            f"Train with `network.trained=all`{_weights_advice(theirs)}, or give a model that stands on the same SAM "
            "weights."
        )
    if theirs.stands_on_sam and (sam is None or sam.sha256 != header.sam_sha256):
        present = "the plan starts from scratch" if sam is None else f"this training starts from {sam.path}"
        raise ModelError(
            f"{folder} stands on the SAM weights {header.sam_file} (SHA-256 {str(header.sam_sha256)[:12]}...), but "
            f"{present}"
            f"{'' if sam is None else f' ({sam.sha256[:12]}...)'}. Give that file with `sam_checkpoint`."
        )


def _weights_advice(network: NetworkPlan) -> str:
    return " `network.weights=none`" if network.weights == "none" else ""


def _outputs(tensors: Mapping[str, torch.Tensor]) -> int | None:
    """How many outputs a decoder has, by its tensors."""
    named = ("mask_decoder.mask_tokens.weight", "mask_decoder.head.weight")
    return next((tensors[name].shape[0] for name in named if name in tensors), None)


def _describe(fitted: Fitted, folder: Path, total: int) -> str:
    line = f"pretrained weights: {len(fitted.taken)} of {total} learned tensors from {folder}"
    if fitted.resized:
        line += f"; {len(fitted.resized)} position tables are resized to this canvas"
    if fitted.anew:
        rooms = sorted({_part(name) for name in fitted.anew})
        line += f"; {len(fitted.anew)} start from random values ({first_few(rooms)})"
        if any(name.startswith(CLASS_PARTS) for name in fitted.anew):
            line += ", because the classes differ" if all(n.startswith(CLASS_PARTS) for n in fitted.anew) else ""
    return line


def _part(name: str) -> str:
    """The first two words of a tensor's name, or three for the encoder's blocks."""
    words = name.split(".")
    return ".".join(words[: 3 if words[1] == "blocks" else 2])
