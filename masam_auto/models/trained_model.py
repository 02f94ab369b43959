"""Trained models on disk: which there are, and which one is meant."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from masam_auto.core.dataset import DatasetDescription, read_description
from masam_auto.core.errors import ModelError
from masam_auto.core.jsonio import read_json
from masam_auto.core.paths import DATASET_NAME, find_dataset_name
from masam_auto.core.plan import Configuration, Plan
from masam_auto.core.selection import CHECKPOINTS
from masam_auto.models.checkpoint import (
    STATE_FILE,
    ModelHeader,
    TrainingState,
    header_differences,
    plan_digest,
    read_header,
    read_model,
)
from masam_auto.models.sam_files import SamWeights
from masam_auto.models.sam_weights import sam_of_model
from masam_auto.network.build import build_network, check_state, sam_tensors, take_tensors
from masam_auto.network.masam import MaSam
from masam_auto.network.weight_files import load_sam_checkpoint

logger = logging.getLogger(__name__)

FOLD = re.compile(r"fold_(0|[1-9]\d{0,5}|all)")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedModel:
    """One trained configuration.

    `folder` is results/<data set>/<plan>__<configuration>; `folds` are those with a checkpoint.
    """

    folder: Path
    dataset_name: str
    plan_name: str
    configuration: str
    folds: tuple[int | str, ...]

    def __str__(self) -> str:
        folds = ", ".join(map(str, self.folds)) or "none"
        return f"{self.dataset_name}, configuration {self.configuration}, plan {self.plan_name}, folds {folds} ({self.folder})"


def find_models(results: Path) -> tuple[TrainedModel, ...]:
    """All models below the results folder that have a plan and at least one checkpoint."""
    if not results.is_dir():
        return ()
    datasets = [path for path in sorted(results.iterdir()) if path.is_dir() and DATASET_NAME.fullmatch(path.name)]
    folders = [folder for dataset in datasets for folder in sorted(dataset.iterdir()) if "__" in folder.name]
    models = [describe_model(folder) for folder in folders if (folder / "plan.json").is_file()]
    return tuple(model for model in models if model.folds)


def choose_model(
    results: Path,
    *,
    dataset: str | None = None,
    configuration: str | None = None,
    plan_name: str | None = None,
    folder: Path | None = None,
) -> TrainedModel:
    """The only model that fits what is said of it.

    Args:
        results: root of the results.
        dataset: number, name or path of the data set.
        configuration: name of the configuration.
        plan_name: name of the plan.
        folder: the model's own folder, of any name; then nothing else is looked at.

    Raises:
        ModelError: none fits, or several do; the message lists what there is.
        DatasetError: the data set is unknown.
    """
    if folder is not None:
        if not (folder / "plan.json").is_file():
            raise ModelError(f"{folder} is no trained model: it has no plan.json. Give a folder such as "
                             "results/DatasetXXX_Name/masam__axis0.")  # fmt: skip
        return describe_model(folder.absolute())
    models = find_models(results)
    if not models:
        raise ModelError(f"no trained model below {results}. Train one (masam_train), or give --results or -m FOLDER.")
    name = find_dataset_name(Path(dataset).name, [results]) if dataset is not None else None
    wanted = {"dataset_name": name, "configuration": configuration, "plan_name": plan_name}
    fitting = [
        model for model in models if all(value in (None, getattr(model, field)) for field, value in wanted.items())
    ]
    if len(fitting) == 1:
        return fitting[0]
    said = ", ".join(f"{field.removesuffix('_name')} {value}" for field, value in wanted.items() if value)
    if fitting:
        listed = "\n".join(f"  - {model}" for model in fitting)
        raise ModelError(f"several trained models fit; choose with -d, -c, -p or -m:\n{listed}")
    listed = "\n".join(f"  - {model}" for model in models)
    raise ModelError(f"no trained model with {said}. There are:\n{listed}")


def choose_folds(model: TrainedModel, folds: Sequence[int | str] | None, checkpoint: str) -> tuple[Path, ...]:
    """Checkpoints of the folds to average.

    Args:
        model: the model.
        folds: None for all numbered folds that are trained ("all" where it is the only one).
        checkpoint: one of `core.selection.CHECKPOINTS`.

    Raises:
        ModelError: there is no such kind of checkpoint, or a fold has none; it is named.
    """
    if checkpoint not in CHECKPOINTS:
        raise ModelError(f"checkpoint {checkpoint!r}: there is no such kind. Choose one of {', '.join(CHECKPOINTS)}.")
    if folds is None:
        folds = [fold for fold in model.folds if fold != "all"] or list(model.folds)
    if not folds:
        raise ModelError(f"{model.folder} has no trained fold. Train one: masam_train {model.dataset_name} 0")
    chosen = [checkpoint_path(model.folder / f"fold_{fold}", checkpoint) for fold in dict.fromkeys(folds)]
    for fold, path in zip(dict.fromkeys(folds), chosen, strict=True):
        if not path.exists():
            trained = ", ".join(map(str, model.folds)) or "none"
            raise ModelError(
                f"fold {fold} of {model.folder} has no checkpoint ({path.name} is missing; folds with one: {trained}). "
                f"Train it: masam_train {model.dataset_name} {fold} -c {model.configuration} -p {model.plan_name}"
            )
    return tuple(chosen)


def checkpoint_path(fold_folder: Path, checkpoint: str) -> Path:
    """Where a fold keeps one of its `CHECKPOINTS`."""
    return fold_folder / CHECKPOINTS[checkpoint]


def open_model(model: TrainedModel) -> tuple[Plan, DatasetDescription]:
    """Plan and data set description that a model was trained with. Raises PlanError or DatasetError."""
    plan = read_json(model.folder / "plan.json", Plan, what="plan")
    return plan, read_description(model.folder / "dataset.json", name=plan.dataset_name)


def configuration_of(checkpoint: Path, plan: Plan) -> Configuration:
    """What a checkpoint was trained with; a model's folder may have been renamed. Raises ModelError or PlanError."""
    return plan.configuration(read_header(checkpoint).configuration)


def load_networks(
    checkpoints: Sequence[Path],
    plan: Plan,
    configuration: Configuration,
    description: DatasetDescription,
    *,
    device: torch.device,
    sam_checkpoint: Path | None = None,
    weights: Path | None = None,
) -> tuple[MaSam, ...]:
    """Networks with the weights of checkpoints, in evaluation mode; frozen SAM weights are in memory once for all.

    Args:
        checkpoints: folders such as fold_0/checkpoint_best.
        plan, configuration, description: of the model.
        device: where they go.
        sam_checkpoint: the SAM file that the model stands on, where it is neither where it was nor in `weights`.
        weights: the folder of SAM files.

    Raises:
        ModelError: a checkpoint is missing, damaged, or of another plan; its SAM file is missing or has changed.
    """
    networks = []
    frozen: dict[SamWeights | None, dict[str, torch.Tensor]] = {None: {}}
    for folder in checkpoints:
        header, tensors = read_model(folder)
        network = _build_for(header, folder, plan, configuration, description)
        sam = sam_of_model(header, folder, file=sam_checkpoint, folder=weights)
        if sam is not None and sam not in frozen:
            given = sam_tensors(network, load_sam_checkpoint(sam.path), origin=str(sam.path))
            frozen[sam] = {name: tensor.to(device) for name, tensor in given.items() if name not in tensors}
        # a training in bf16 stores its frozen matrices so; devices without bf16 need float32
        learned = {
            name: tensor.to(device, torch.float32 if tensor.is_floating_point() else None)
            for name, tensor in tensors.items()
        }
        take_tensors(network, learned, frozen[sam], origin=str(folder))
        networks.append(network.eval())
    return tuple(networks)


def read_fitting(
    folder: Path, plan: Plan, configuration: Configuration, description: DatasetDescription
) -> tuple[ModelHeader, dict[str, torch.Tensor], TrainingState]:
    """Read a checkpoint and check that `load_networks` would take it, though its SAM file may still be missing.

    Raises:
        ModelError: it is missing, damaged, or of another plan; tensors are not the network's, or not finite.
        PlanError: its checkpoint.json is missing or damaged.
    """
    header, tensors = read_model(folder)
    check_state(_build_for(header, folder, plan, configuration, description), tensors, origin=str(folder))
    return header, tensors, read_json(folder / STATE_FILE, TrainingState, what="checkpoint")


def _build_for(
    header: ModelHeader, folder: Path, plan: Plan, configuration: Configuration, description: DatasetDescription
) -> MaSam:
    """The network of a model, without weights. Raises ModelError where the plan beside the model is another."""
    canvas, channels, outputs = configuration.canvas, description.num_channels, description.labels.num_outputs
    found = header_differences(header, plan.network, canvas=canvas, in_channels=channels, num_outputs=outputs)
    if found:
        raise ModelError(
            f"{folder} does not fit {folder.parents[1] / 'plan.json'}: {'; '.join(found)}. Bring back the plan.json and "
            "dataset.json that it was trained with, or train it again."
        )
    # older versions made the digest in another way; what matters is compared above
    if header.version >= 2 and header.plan_digest != plan_digest(plan, configuration):
        logger.warning("%s was trained with another plan than %s says", folder, folder.parents[1] / "plan.json")
    return build_network(plan.network, canvas=canvas, in_channels=channels, num_outputs=outputs, device="meta")


def describe_model(folder: Path) -> TrainedModel:
    """What there is in a model's folder, which need not exist: its name says what it is, its content which folds."""
    plan_name, _, configuration = folder.name.partition("__")
    found = [FOLD.fullmatch(path.name) for path in sorted(folder.glob("fold_*"))]
    folds = [
        int(match[1]) if match[1].isdigit() else match[1]
        for match in found
        if match and any(checkpoint_path(folder / match[0], kind).exists() for kind in CHECKPOINTS)
    ]
    return TrainedModel(
        folder=folder,
        dataset_name=folder.parent.name,
        plan_name=plan_name,
        configuration=configuration,
        folds=tuple(sorted(folds, key=str)),
    )
