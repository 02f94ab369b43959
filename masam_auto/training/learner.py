"""The learner: built from the plan and SAM's weights, restored from a checkpoint, or saved to one."""

from dataclasses import dataclass, replace

import torch

from masam_auto.compute.device import computes_in_bf16
from masam_auto.compute.distributed import Together
from masam_auto.core.dataset import DatasetDescription
from masam_auto.core.plan import Configuration, Plan
from masam_auto.models.checkpoint import Checkpoint, ModelHeader, TrainingState
from masam_auto.models.sam_files import SamWeights
from masam_auto.network.build import (
    build_network,
    load_sam_weights,
    load_trainable_state,
    pretrained_parameters,
    trainable_state_dict,
)
from masam_auto.network.masam import MaSam
from masam_auto.network.weight_files import load_sam_checkpoint
from masam_auto.training.optimizer import build_optimizers
from masam_auto.training.weight_average import WeightAverage

BY_ITSELF = Together()


@dataclass(frozen=True, kw_only=True, slots=True)
class Learner:
    """What training changes in place: the network, its optimisers, and the running average of its weights.

    `tensors` are the network's learned ones, by name; they share its memory. `together` are the processes training it.
    """

    network: MaSam
    tensors: dict[str, torch.Tensor]
    optimizers: tuple[torch.optim.Optimizer, ...]
    average: WeightAverage
    together: Together = BY_ITSELF


def new_learner(
    plan: Plan,
    configuration: Configuration,
    description: DatasetDescription,
    *,
    device: torch.device,
    sam: SamWeights | None,
) -> Learner:
    """Build network, optimisers and average for a new training, with SAM's weights if the plan uses them.

    If the device computes in bf16, frozen matrices are stored in bf16: SAM's values, fitted in float32, rounded once.

    Raises:
        PlanError: the plan's names or canvas make no network.
        ModelError: the SAM file cannot be read, or is of another encoder.
    """
    training = plan.training
    lean = training.precision == "bf16" and computes_in_bf16(device)
    network = build_network(
        plan.network,
        canvas=configuration.canvas,
        in_channels=description.num_channels,
        num_outputs=description.labels.num_outputs,
        seed=training.seed,
        activation_checkpointing=training.activation_checkpointing,
        frozen_dtype=torch.bfloat16 if lean else torch.float32,
        device=device,
    )
    if sam is not None:
        state = load_sam_checkpoint(sam.path)
        load_sam_weights(network, state, origin=str(sam.path), background=not description.labels.has_regions)
    tensors = trainable_state_dict(network)
    return Learner(
        network=network,
        tensors=tensors,
        optimizers=build_optimizers(network, training, pretrained=pretrained_parameters(network)),
        average=WeightAverage(tensors, decay=training.weight_average),
    )


def restore_learner(learner: Learner, checkpoint: Checkpoint, *, origin: str) -> None:
    """Restore a checkpoint into a new learner that has its SAM weights.

    Raises:
        ModelError: the checkpoint is of another network; `origin` names it.
    """
    load_trainable_state(learner.network, checkpoint.weights, origin=origin)
    for name, tensor in learner.average.tensors.items():
        tensor.copy_(checkpoint.model[name])
    if not checkpoint.optimizers:  # before the first update they have no state
        return
    for optimizer, saved in zip(learner.optimizers, checkpoint.optimizers, strict=True):
        optimizer.load_state_dict({**optimizer.state_dict(), "state": saved})


def checkpoint_of(learner: Learner, header: ModelHeader, state: TrainingState) -> Checkpoint:
    """A learner as a checkpoint. It shares memory with the learner, so further training changes it."""
    return Checkpoint(
        header=replace(header, epoch=state.epoch),
        state=state,
        model=learner.average.tensors,
        weights=learner.tensors,
        optimizers=tuple(optimizer.state_dict()["state"] for optimizer in learner.optimizers),
    )
