"""What happens when a checkpoint is loaded, whoever loads it.

1. The file is read once, header and tensors together; nothing in it is executed (`checkpoint.read_model`).
2. Its header is compared with the plan.json and dataset.json that it is to be used with
(`checkpoint.header_differences`). 3. The network is built from that plan, with shapes only, so that a wrong file costs
no memory (`build.build_network`). 4. The tensors are compared with the network: all that are needed, none unknown,
shapes, types, finite values
   (`build.check_state`).
5. Where the network stands on frozen SAM weights, which no checkpoint holds, the SAM file with the SHA-256 in the
header is
   looked for (`sam_weights.sam_of_model`), and its tensors are fitted to this canvas and these channels.
6. The network takes the tensors.

Prediction does all of it for each fold (`load_member`); the folds share the SAM weights. Exporting and installing stop
after step 4 (`read_fitting`): the SAM file may be missing there. Continuing a training also checks the checksums and
reads the weights in training and the optimisers' state in step 1, refuses any other plan in step 2, and fills a
network that has its SAM weights already (`training.learner.restore_learner`). A training that starts from another
model takes what fits: it needs the same encoder and the same SAM file instead of steps 2 to 4 (`training.pretrained`).
Importing a published checkpoint reads another format in step 1 and reads the plan off the tensors
(`import_checkpoint`); what it writes is a checkpoint like any other.
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
    """Networks with the weights of checkpoints, in evaluation mode; frozen SAM weights are in memory once for all.

    Args:
        checkpoints: of one model: folders such as fold_0/checkpoint_best.
        plan, description: of the model.
        device: where the networks go.
        sam_checkpoint: the SAM file that the model stands on, where it is neither where it was nor in `weights`.
        weights: the folder of SAM files.

    Raises:
        ModelError: a checkpoint is missing, damaged, or of another plan; its SAM file is missing or has changed.
        PlanError: the plan has no such configuration, or names what no plug-in here adds.
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
        # a training in bf16 stores its frozen matrices so; devices without bf16 need float32
        learned = {
            name: tensor.to(device, torch.float32 if tensor.is_floating_point() else None)
            for name, tensor in tensors.items()
        }
        network.load_state_dict({**frozen[sam], **learned}, assign=True)  # shared, not copied
        networks.append(network.eval())
    configuration = common_configuration(headers, plan)
    for channel in configuration.normalization:
        find_normalizer(channel.scheme)  # now, and not for each image
    return Member(networks=tuple(networks), plan=plan, configuration=configuration)


def common_configuration(headers: Sequence[ModelHeader], plan: Plan) -> Configuration:
    """What all folds of a model were trained with; its folder may have been renamed. Raises ModelError where they
    differ.
    """
    names = sorted({header.configuration for header in headers})
    if len(names) > 1:
        raise ModelError(
            f"the folds of {headers[0].dataset_name}, plan {plan.name}, are of several configurations "
            f"({', '.join(names)}) and cannot be averaged. Choose the folds of one of them."
        )
    return plan.configuration(names[0])


def read_fitting(
    folder: Path, plan: Plan, description: DatasetDescription
) -> tuple[ModelHeader, dict[str, Tensor], MaSam]:
    """Steps 1 to 4: a checkpoint's header and tensors, and the network without weights that they fit.

    Raises:
        ModelError: it is missing, damaged, or of another plan; tensors are not the network's, or not finite.
        PlanError: the plan has no such configuration.
    """
    header, tensors = read_model(folder)
    configuration = plan.configuration(header.configuration)
    if found := header_differences(header, plan, configuration, description):
        raise ModelError(
            f"{folder} does not fit {folder.parents[1] / 'plan.json'}: {'; '.join(found)}. Bring back the plan.json "
            "and dataset.json that it was trained with, or train it again."
        )
    # older versions made the digest in another way; what matters is compared above
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
