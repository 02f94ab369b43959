"""Load a checkpoint. These are the steps, whoever loads it:

1. Read the file once, header and tensors together. Nothing in it is executed (`checkpoint.read_model`).
2. Compare its header with the plan.json and dataset.json to be used (`checkpoint.header_differences`).
3. Build the network from that plan with shapes only, so that a wrong file costs no memory (`build.build_network`).
4. Compare the tensors with the network: none missing, none unknown, shapes, types, finite values
   (`build.check_state`).
5. If the network needs frozen SAM weights, which no checkpoint holds, find the SAM file by the SHA-256 in the header
   (`sam_weights.sam_of_model`), and fit its tensors to this canvas and these channels.
6. Put the tensors into the network.

* Prediction takes all steps for each fold (`load_member`). The folds share the SAM weights.
* Exporting and installing stop after step 4 (`read_fitting`), because the SAM file may be missing.
* Continuing a training also verifies checksums and reads the weights in training and the optimisers' state in step 1.
  It rejects any other plan in step 2, and fills a network that has its SAM weights already
  (`training.learner.restore_learner`).
* A training that starts from another model takes the tensors that fit. Instead of steps 2 to 4, it requires the same
  encoder and the same SAM file (`training.pretrained`).
* Importing a published checkpoint reads another format in step 1 and takes the plan from the tensors
  (`import_checkpoint`). It writes an ordinary checkpoint.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from masam_auto.core.dataset import DatasetDescription
from masam_auto.core.errors import ModelError
from masam_auto.core.plan import Configuration, Plan
from masam_auto.imaging.normalize import find_normalizer
from masam_auto.models.checkpoint import ModelHeader, header_differences, plan_digest, read_model
from masam_auto.models.sam_files import SamWeights
from masam_auto.models.sam_weights import sam_of_model
from masam_auto.network.build import build_network, check_state, sam_tensors
from masam_auto.network.masam import MaSam
from masam_auto.network.weight_files import load_sam_checkpoint

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One trained configuration in memory; the logits of its networks (its folds) are averaged."""

    networks: tuple[nn.Module, ...]
    plan: Plan
    configuration: Configuration


def load_member(
    checkpoints: Sequence[Path],
    plan: Plan,
    description: DatasetDescription,
    *,
    device: torch.device,
    sam_checkpoint: Path | None = None,
    weights: Path | None = None,
) -> Member:
    """Load the networks of checkpoints in evaluation mode. They share frozen SAM weights in memory.

    Args:
        checkpoints: of one model: folders such as fold_0/checkpoint_best.
        plan, description: of the model.
        device: of the networks.
        sam_checkpoint: the SAM file that the model needs, if it was moved and is not in `weights`.
        weights: the folder of SAM files.

    Raises:
        ModelError: a checkpoint is missing, damaged, or of another plan; its SAM file is missing or has changed.
        PlanError: the plan does not have the configuration, or names a plug-in's entry that is not here.
    """
    networks, headers = [], []
    frozen: dict[SamWeights | None, Mapping[str, Tensor]] = {None: {}}
    for folder in checkpoints:
        header, tensors, network = read_fitting(folder, plan, description)
        headers.append(header)
        sam = sam_of_model(header, folder, file=sam_checkpoint, folder=weights)
        if sam is not None and sam not in frozen:
            given = sam_tensors(network, load_sam_checkpoint(sam.path), origin=str(sam.path))
            frozen[sam] = {name: tensor.to(device) for name, tensor in given.items() if name not in tensors}
        # trainings in bf16 store frozen matrices in bf16; devices without it need float32
        learned = {
            name: tensor.to(device, torch.float32 if tensor.is_floating_point() else None)
            for name, tensor in tensors.items()
        }
        network.load_state_dict({**frozen[sam], **learned}, assign=True)  # shared, not copied
        # a buffer that no state dict holds would have stayed without values
        assert not any(value.is_meta for value in (*network.parameters(), *network.buffers())), "tensors without values"
        networks.append(network.eval())
    configuration = common_configuration(headers, plan)
    for channel in configuration.normalization:
        find_normalizer(channel.scheme)  # fails here, once, instead of for each image
    return Member(networks=tuple(networks), plan=plan, configuration=configuration)


def common_configuration(headers: Sequence[ModelHeader], plan: Plan) -> Configuration:
    """The configuration that all folds were trained with; the folder may have been renamed. Raises ModelError if they
    differ.
    """
    names = sorted({header.configuration for header in headers})
    if len(names) > 1:
        raise ModelError(
            f"the folds of {headers[0].dataset_name}, plan {plan.name}, belong to several configurations "
            f"({', '.join(names)}) and cannot be averaged. Choose folds of one configuration."
        )
    return plan.configuration(names[0])


def read_fitting(
    folder: Path, plan: Plan, description: DatasetDescription
) -> tuple[ModelHeader, dict[str, Tensor], MaSam]:
    """Steps 1 to 4: read a checkpoint's header and tensors, and build the network, still without weights.

    Raises:
        ModelError: it is missing, damaged, or of another plan; tensors do not fit the network or are not finite.
        PlanError: the plan does not have the configuration.
    """
    header, tensors = read_model(folder)
    configuration = plan.configuration(header.configuration)
    if found := header_differences(header, plan, configuration, description):
        raise ModelError(
            f"{folder} does not fit {folder.parents[1] / 'plan.json'}: {'; '.join(found)}. Bring back the plan.json "
            "and dataset.json that it was trained with, or train it again."
        )
    # not an error: older versions computed the digest differently, and what matters is compared above
    if header.version >= 2 and header.plan_digest != plan_digest(plan, configuration):
        logger.warning("%s was trained with another plan than %s says", folder, folder.parents[1] / "plan.json")
    network = build_network(
        plan.network,
        canvas=configuration.canvas,
        in_channels=description.num_channels,
        num_outputs=description.labels.num_outputs,
        device="meta",
    )
    check_state(network, tensors, origin=str(folder))
    return header, tensors, network
