"""Build a network from a plan: sizes, first weights, what learns, and weights by name."""

import functools
from collections.abc import Mapping

import torch
from torch import Tensor

from masam_auto.core.encoder_sizes import EncoderSizes
from masam_auto.core.encoders import ENCODERS, find_encoder
from masam_auto.core.errors import ModelError, PlanError
from masam_auto.core.plan import NetworkPlan
from masam_auto.network.encoder_kinds import EncoderKind, kind_in, kind_of, with_our_names
from masam_auto.network.masam import MaSam
from masam_auto.network.mismatch import network_differences
from masam_auto.network.published import fit_published
from masam_auto.network.sam import fit_state
from masam_auto.network.weight_files import wrong_values

WHOLE_CANVAS = (1024, 1024)  # px; the canvas of SAM's own checkpoints
# Parts of SAM's mask decoder that do not depend on the number of classes. Its upscaling is the first two steps of ours.
_SAMS_DECODER = (
    "transformer.",
    "iou_token.",
    *(f"output_upscaling.{layer}." for layer in (0, 1, 3)),
)
_PROMPT_PARTS = {
    ("tokens", "none"): ("no_mask_embed.",),
    ("tokens", "box"): ("no_mask_embed.", "point_embeddings.2.", "point_embeddings.3."),
    ("mask", "none"): ("no_mask_embed.",),
    ("mask", "box"): ("no_mask_embed.", "mask_downscaling."),
}


def build_network(
    plan: NetworkPlan,
    *,
    canvas: tuple[int, int],
    in_channels: int,
    num_outputs: int,
    seed: int = 0,
    activation_checkpointing: bool = False,
    frozen_dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> MaSam:
    """Build the network of a plan, with random weights, trainable parts marked, in training mode.

    With `plan.weights == "sam"`, call `load_sam_weights` next.

    Args:
        plan: names, sizes, and what learns.
        canvas: (height, width) in pixels, a whole number of tokens.
        in_channels: C.
        num_outputs: K, background included if there is one.
        seed: of the first weights; the same seed gives the same network on every device.
        activation_checkpointing: recompute the encoder's blocks in the backward pass, to save memory.
        frozen_dtype: of the encoder's frozen matrices, e.g. bfloat16 if training runs under autocast.
        device: where the network goes; "meta" builds shapes without weights.

    Raises:
        PlanError: an unknown name, or a canvas that is not a whole number of tokens.

    Example:
        >>> from masam_auto.core.plan import NetworkPlan
        >>> from masam_auto.network.build import build_network
        >>> network_plan = NetworkPlan(encoder="vit_t", decoder="multiscale", weights="none", trained="all")
        >>> network = build_network(network_plan, canvas=(32, 32), in_channels=1, num_outputs=3)
        >>> network(torch.zeros(1, 5, 1, 32, 32)).shape  # (B, N, C, H, W) to (B, N, K, H, W)
        torch.Size([1, 5, 3, 32, 32])
    """
    network = assemble(
        encoder_of(plan),
        plan,
        canvas=canvas,
        in_channels=in_channels,
        num_outputs=num_outputs,
        seed=seed,
        device=device,
    )
    network.image_encoder.activation_checkpointing = activation_checkpointing
    cast_frozen(network, frozen_dtype)
    return network


def encoder_of(plan: NetworkPlan) -> EncoderSizes:
    """Sizes of a plan's encoder: by name, or the plan's own. Raises PlanError for an unknown name."""
    return find_encoder(plan.encoder) if plan.custom_encoder is None else plan.custom_encoder


def assemble(
    spec: EncoderSizes,
    plan: NetworkPlan,
    *,
    canvas: tuple[int, int],
    in_channels: int,
    num_outputs: int,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> MaSam:
    """Build a network of any sizes. `build_network` does it for named encoders; arguments and errors are the same."""
    plan = plan.as_built
    unit = spec.canvas_unit
    if any(side < unit or side % unit for side in canvas):
        raise PlanError(
            f"a canvas of {canvas[0]} x {canvas[1]} px does not fit {plan.encoder}: both sides must be multiples of "
            f"{unit} px"
        )
    if plan.masks_start == "sam" and "mask_decoder." in kind_of(spec).missing:
        raise PlanError(
            f"network.masks_start=sam needs weights with SAM's mask decoder, but those of {plan.encoder} hold only an "
            "encoder. Give `network.masks_start=new`."
        )
    construct = functools.partial(
        MaSam, spec, plan, canvas=(canvas[0], canvas[1]), in_channels=in_channels, num_outputs=num_outputs
    )
    if torch.device(device).type == "meta":
        with torch.device("meta"):
            network = construct()
    else:
        with torch.random.fork_rng(devices=[]):  # drawn on the CPU, so that the start is the same on every device
            torch.manual_seed(seed)
            network = construct()
        network = network.to(device)
    mark_trainable(network)
    return network.train()


def mark_trainable(network: MaSam) -> None:
    """Freeze what the plan says, and what never gets a gradient in the plan's mode.

    The increments, adapters and mask decoder learn. The rest of the image encoder learns only with `trained="all"`.
    With `trained="none"`, none of it does, and increments and adapters are not even built (`NetworkPlan.as_built`). The
    patch embedding also learns for channel counts that SAM has no weights for, and the neck with `neck_trained`, or if
    the encoder's files have none. In the prompt encoder, the parts used by the prompt mode and the decoder learn. SAM's
    IoU head is never used.
    """
    plan = network.plan
    prompt_parts = _PROMPT_PARTS[network.mask_decoder.prompt, plan.prompt]
    for name, parameter in network.named_parameters():
        room, _, rest = name.partition(".")
        if room == "image_encoder":
            alone = name.startswith(kind_of(network.spec).missing)
            parameter.requires_grad_(alone or _encoder_learns(rest, plan, network.in_channels))
        elif room == "prompt_encoder":
            parameter.requires_grad_(rest.startswith(prompt_parts))
        else:
            parameter.requires_grad_(not rest.startswith("iou_prediction_head."))


def _encoder_learns(name: str, plan: NetworkPlan, in_channels: int) -> bool:
    if plan.trained == "all" or (plan.neck_trained and name.startswith("neck.")):
        return True
    if plan.trained == "none":
        return False
    inflated = in_channels not in (1, 3)
    return (
        name.startswith("increments.")
        or ".adapter_" in name
        or (inflated and name.startswith(("patch_embed.", "stem.", "trunk.patch_embed.")))
    )


def cast_frozen(network: MaSam, dtype: torch.dtype) -> None:
    """Store the image encoder's frozen matrices in `dtype`; norms and biases are small and stay unchanged."""
    for parameter in network.image_encoder.parameters():
        if not parameter.requires_grad and parameter.ndim > 1:
            parameter.data = parameter.data.to(dtype)


def part_of(name: str) -> str:
    """The part of the network that a parameter belongs to, by its name."""
    if name.startswith("image_encoder.increments."):
        return "increments"
    if name.startswith("image_encoder.") and ".adapter_" in name:
        return "adapters"
    return {"image_encoder": "encoder", "prompt_encoder": "prompt encoder", "mask_decoder": "decoder"}[
        name.partition(".")[0]
    ]


def count_parameters(network: MaSam) -> dict[str, tuple[int, int]]:
    """Count parameters, and those that learn, per part and in total.

    Example:
        >>> from masam_auto.network.build import build_network, count_parameters
        >>> network = build_network(plan.network, canvas=(32, 32), in_channels=1, num_outputs=3, device="meta")
        >>> counts = count_parameters(network)
        >>> list(counts)
        ['encoder', 'increments', 'adapters', 'prompt encoder', 'decoder', 'total']
        >>> parameters, learning = counts["total"]
    """
    counts = dict.fromkeys(("encoder", "increments", "adapters", "prompt encoder", "decoder", "total"), (0, 0))
    for name, parameter in network.named_parameters():
        learns = parameter.numel() if parameter.requires_grad else 0
        for part in (part_of(name), "total"):
            total, trainable = counts[part]
            counts[part] = (total + parameter.numel(), trainable + learns)
    return counts


def learning_summary(network: MaSam) -> str:
    """One log line on what learns; it warns if the encoder is random and stays so."""
    counts = count_parameters(network)
    parts = [f"{part} {learns / 1e6:.3g}" for part, (_, learns) in counts.items() if learns and part != "total"]
    total, learns = counts["total"]
    line = f"{learns / 1e6:.3g} of {total / 1e6:.3g} million parameters learn: {', '.join(parts)}"
    if network.plan.weights == "none" and network.plan.trained != "all":
        line += (
            "; the rest of the image encoder is random and stays so (network.weights=none with network.trained="
            f"{network.plan.trained}): only useful as an ablation, else give network.trained=all"
        )
    return line


def trainable_state_dict(network: MaSam) -> dict[str, Tensor]:
    """The tensors a checkpoint needs: those not restored from a SAM checkpoint, or all if there is none.

    They share the network's memory.
    """
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    frozen |= {f"image_encoder.{name}" for name, _ in network.image_encoder.named_buffers()}  # pretrained statistics
    kind = kind_of(network.spec)
    given_back = {name for name in frozen if network.plan.stands_on_sam and _from_sam(kind, name)}
    return {name: value for name, value in network.state_dict().items() if name not in given_back}


def load_trainable_state(network: MaSam, state: Mapping[str, Tensor], *, origin: str) -> None:
    """Load a checkpoint's tensors; frozen tensors not in it stay. Raises ModelError like `check_state`."""
    check_state(network, state, origin=origin)
    _copy(network.state_dict(), state)


def load_sam_weights(network: MaSam, state: Mapping[str, Tensor], *, origin: str, background: bool = True) -> None:
    """Start from a SAM checkpoint: image and prompt encoder, and mask decoder parts independent of the class count.

    Args:
        network: built for any canvas and channels; tables and patch embedding are adapted.
        state: from `load_sam_checkpoint`.
        origin: the file, for messages.
        background: whether the first output is the background.

    Raises:
        ModelError: the checkpoint belongs to another encoder.
    """
    state = with_our_names(state)
    own, fitted = network.state_dict(), sam_tensors(network, state, origin=origin)
    _copy(own, fitted)
    if network.plan.masks_start == "sam":
        _copy(own, _masks_from_sam(own, state, origin=origin, background=background))


def _masks_from_sam(
    own: Mapping[str, Tensor], state: Mapping[str, Tensor], *, origin: str, background: bool
) -> dict[str, Tensor]:
    """Mask tokens and hyper-networks as copies of SAM's for a single mask; the background's logits have the opposite
    sign, so that each class begins as what SAM takes for the object.
    """
    fitted = {}
    for name, value in own.items():
        if name == "mask_decoder.mask_tokens.weight":
            source = state[name][:1].expand(len(value), -1)
        elif name.startswith("mask_decoder.output_hypernetworks_mlps."):
            _, _, number, rest = name.split(".", 3)
            source = state[f"mask_decoder.output_hypernetworks_mlps.0.{rest}"]
            source = -source if background and number == "0" and rest.startswith("layers.2.") else source
        else:
            continue
        if source.shape != value.shape:
            raise ModelError(
                f"{origin}: its masks cannot start this decoder ({name} has shape {tuple(source.shape)}, the decoder "
                f"needs {tuple(value.shape)}). Plan with `network.masks_start=new`."
            )
        fitted[name] = source
    return fitted


def sam_tensors(network: MaSam, state: Mapping[str, Tensor], *, origin: str) -> dict[str, Tensor]:
    """What `load_sam_weights` loads: a SAM checkpoint's tensors, in this network's shapes. Uses only these.

    Arguments and errors are the same; the network may be on the meta device.
    """
    kind, state = kind_of(network.spec), with_our_names(state)
    if kind_in(state) not in (None, type(network.spec)):
        raise ModelError(
            f"{origin}: its encoder is another one ({similar_encoders(state)}), the plan asks for "
            f"{network.plan.encoder}. Give weights of {network.plan.encoder} (`sam_checkpoint`), or plan again with "
            "the encoder of this file (`backbone`)."
        )
    return fit_state(
        state,
        {name: value for name, value in network.state_dict().items() if _from_sam(kind, name)},
        encoder=network.plan.encoder,
        fit=functools.partial(kind.fit, network.spec),
        parts=kind.parts,
        origin=origin,
    )


def similar_encoders(state: Mapping[str, Tensor]) -> str:
    """Names of the encoders that a SAM checkpoint may be of, by the names of its tensors."""
    form = kind_in(with_our_names(state))
    return " or ".join(name for name, spec in ENCODERS.items() if type(spec) is form) or "unknown"


def has_encoder(name: str, state: Mapping[str, Tensor]) -> bool:
    """Whether a SAM checkpoint has the encoder of this name (ours or a plug-in's)."""
    plan = NetworkPlan(encoder=name, decoder="sam", weights="sam", trained="none")
    unit = find_encoder(name).canvas_unit
    canvas = (WHOLE_CANVAS[0] // unit * unit, WHOLE_CANVAS[1] // unit * unit)
    network = build_network(plan, canvas=canvas, in_channels=3, num_outputs=1, device="meta")
    try:
        sam_tensors(network, state, origin="")
    except ModelError:
        return False
    return True


def _from_sam(kind: EncoderKind, name: str) -> bool:
    """Whether a tensor of this name, of any network of this kind, starts from SAM's file."""
    room, _, rest = name.partition(".")
    if name.startswith(kind.missing):
        return False
    if room == "image_encoder":
        return not rest.startswith("increments.") and ".adapter_" not in rest
    return room == "prompt_encoder" or rest.startswith(_SAMS_DECODER)


def pretrained_parameters(network: MaSam) -> set[str]:
    """Names of the parameters that start from SAM's weights and go on doing what they did; none without these weights.

    Mask tokens and hyper-networks are not among them: they become classes, even if they start as SAM's (`masks_start`).
    """
    if network.plan.weights != "sam":
        return set()
    return {name for name, _ in network.named_parameters() if _from_sam(kind_of(network.spec), name)}


def load_published_checkpoint(network: MaSam, state: Mapping[str, Tensor], *, origin: str) -> None:
    """Load the tensors of a published MA-SAM checkpoint (flat names) into a network that has its SAM weights.

    Raises:
        ModelError: the checkpoint belongs to another network.
    """
    _copy(network.state_dict(), published_tensors(network, state, origin=origin))


def published_tensors(network: MaSam, state: Mapping[str, Tensor], *, origin: str) -> dict[str, Tensor]:
    """What `load_published_checkpoint` loads, by this network's names; the network may be on the meta device."""
    wanted = {name: value for name, value in network.state_dict().items() if part_of(name) != "encoder"}
    return fit_published(state, wanted, origin=origin)


def check_state(network: MaSam, state: Mapping[str, Tensor], *, origin: str) -> None:
    """Check that a checkpoint has the tensors that this network needs.

    Args:
        network: may be on the meta device.
        state: the tensors.
        origin: the checkpoint, for messages.

    Raises:
        ModelError: the checkpoint belongs to another network (tensors are missing, unknown, or of another shape or
            kind), or values are not finite.
    """
    own, expected = network.state_dict(), set(trainable_state_dict(network))
    advice = "it was made by another plan or version"
    if found := network_differences(state, {name: own[name] for name in expected}):
        raise ModelError(
            f"{origin}: the checkpoint belongs to another network: {'; '.join(found)}. Use the plan that it was "
            "trained with, or train again."
        )
    for name in sorted(expected - set(state)):
        raise ModelError(f"{origin}: {name} is missing; {advice}")
    for name, value in state.items():
        if name not in own:
            raise ModelError(f"{origin}: {name} is unknown to this network; {advice}")
        if value.shape != own[name].shape:
            raise ModelError(
                f"{origin}: {name} has shape {tuple(value.shape)}, this network needs {tuple(own[name].shape)}; "
                f"{advice}"
            )
        if problem := wrong_values(value, own[name]):
            raise ModelError(f"{origin}: {name} {problem}. Use another checkpoint, or train again.")


def _copy(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, value in state.items():
            own[name].copy_(value)
