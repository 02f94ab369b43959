"""Published MA-SAM checkpoints: the names of their tensors, and the network that the tensors' shapes describe.

The reference implementation saves a flat dict of what it trained: q_FacTs_000, v_FacTs_000, ... (one matrix per block),
image_encoder.FacTu and FacTv, the adapters, the prompt encoder and the mask decoder. All else is in the SAM checkpoint.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from masam_auto.core.encoder_sizes import CUSTOM, EncoderSpec, sam_encoder
from masam_auto.core.encoders import sams_own
from masam_auto.core.errors import ModelError, PlanError
from masam_auto.core.plan import NetworkPlan
from masam_auto.network.weight_files import wrong_values

_CORE = re.compile(r"([qv])_FacTs_(\d{1,6})")
_BLOCK = re.compile(r"image_encoder\.blocks\.(\d{1,6})\.")
_TABLE = re.compile(r"image_encoder\.blocks\.(\d{1,6})\.attn\.rel_pos_[hw]")
_ADAPTER = re.compile(r"image_encoder\.ImageEncoderViT\.blocks\.(\d{1,6})\.Block\.adapter_([a-z_]+?)(_2)?\.(\w+)")
_OWN_CORE = re.compile(r"image_encoder\.increments\.([qv])_cores\.(\d{1,6})\.weight")
_OWN_ADAPTER = re.compile(r"image_encoder\.blocks\.(\d{1,6})\.adapter_(before|after)\.(\w+)\.(\w+)")
_UPSCALING = re.compile(r"mask_decoder\.output_upscaling\.\d{1,6}\.weight")
_U, _TOKENS = "image_encoder.increments.u.weight", "mask_decoder.mask_tokens.weight"
SAM_PATCH = 16


def _own_name(name: str) -> str:
    """Our name for a tensor of a published checkpoint; names that are equal in both stay."""
    if core := _CORE.fullmatch(name):
        return f"image_encoder.increments.{core[1]}_cores.{int(core[2])}.weight"
    if adapter := _ADAPTER.fullmatch(name):
        block, module, second, tensor = adapter.groups()
        place = "after" if second else "before"
        return f"image_encoder.blocks.{block}.adapter_{place}.{module.removeprefix('linear_')}.{tensor}"
    name = name.replace("image_encoder.FacTu.", "image_encoder.increments.u.")
    return name.replace("image_encoder.FacTv.", "image_encoder.increments.v.")


def _published_name(name: str) -> str:
    """The name of our tensor in a published checkpoint."""
    if core := _OWN_CORE.fullmatch(name):
        return f"{core[1]}_FacTs_{int(core[2]):03d}"
    if adapter := _OWN_ADAPTER.fullmatch(name):
        block, place, module, tensor = adapter.groups()
        module = f"linear_{module}" if module in ("down", "up") else module
        second = "_2" if place == "after" else ""
        return f"image_encoder.ImageEncoderViT.blocks.{block}.Block.adapter_{module}{second}.{tensor}"
    name = name.replace("image_encoder.increments.u.", "image_encoder.FacTu.")
    return name.replace("image_encoder.increments.v.", "image_encoder.FacTv.")


def fit_published(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], *, origin: str) -> dict[str, Tensor]:
    """A published checkpoint's tensors under our names: exactly the wanted ones.

    Args:
        state: the checkpoint.
        wanted: the network's own tensors; only their shapes are read.
        origin: the file, for messages.

    Raises:
        ModelError: a tensor is missing, unknown, of another shape or not finite, named as in the file.
    """
    own = {_own_name(name): (name, value) for name, value in state.items()}
    for name in wanted:
        if name not in own:
            raise ModelError(
                f"{origin}: {_published_name(name)} is missing, but other tensors need it. The file is incomplete: "
                "download it again."
            )
    for name, (published, value) in own.items():
        if name not in wanted:
            raise ModelError(
                f"{origin}: {published} is unknown; expected only what the reference implementation of MA-SAM saves"
            )
        if value.shape != wanted[name].shape:
            raise ModelError(
                f"{origin}: {published} has shape {tuple(value.shape)}, but the SAM checkpoint and the other tensors "
                f"need {tuple(wanted[name].shape)}"
            )
        if problem := wrong_values(value, wanted[name]):
            raise ModelError(f"{origin}: {published} {problem}. Use another checkpoint.")
    return {name: value for name, (_, value) in own.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """What the names and shapes of a published checkpoint's tensors say about its network.

    `dim` and `depth` are the image encoder's; `num_outputs` is K, background included; `steps` counts the transposed
    convolutions of the decoder.
    """

    dim: int
    depth: int
    rank: int
    adapters: Literal["both", "before", "after", "none"]
    adapter_channels: int
    num_outputs: int
    steps: int


def read_variant(state: Mapping[str, Tensor], *, origin: str) -> Variant:
    """Read the variant of a checkpoint from the shapes of its tensors.

    Args:
        state: its tensors, by their published names.
        origin: the file, for messages.

    Raises:
        ModelError: not a published MA-SAM checkpoint, or parts of it are missing.
    """
    own = {_own_name(name): value for name, value in state.items()}
    for name in (_U, _TOKENS):
        if name not in own or own[name].ndim != 2 or own[name].numel() == 0:
            published = "image_encoder.FacTu.weight" if name == _U else name
            raise ModelError(
                f"{origin}: {published} is missing; expected an adapted MA-SAM checkpoint as the reference "
                "implementation saves it (q_FacTs_000, image_encoder.FacTu.weight, mask_decoder..., prompt_encoder...)"
            )
    rank, dim = own[_U].shape
    downs = {name: value for name, value in own.items() if ".adapter_" in name and name.endswith(".down.weight")}
    places = {place for place in ("before", "after") if any(f".adapter_{place}." in name for name in downs)}
    return Variant(
        dim=dim,
        depth=_depth({int(core[2]) for core in map(_OWN_CORE.fullmatch, own) if core}, origin),
        rank=rank,
        adapters="both" if len(places) == 2 else "before" if "before" in places else "after" if places else "none",
        adapter_channels=next(iter(downs.values())).shape[0] if downs else 1,
        num_outputs=own[_TOKENS].shape[0],
        # a norm's weight has one axis, a convolution's four
        steps=sum(value.ndim == 4 for name, value in own.items() if _UPSCALING.fullmatch(name)),
    )


def network_plan_of(
    variant: Variant, spec: EncoderSpec, *, scale: float, prompt: Literal["none", "box"], origin: str
) -> NetworkPlan:
    """The plan of the network that a published checkpoint and its SAM checkpoint form together.

    Args:
        variant: of the checkpoint.
        spec: of the SAM checkpoint, from `infer_encoder`.
        scale: s; the tensors do not show it.
        prompt: whether it was trained with boxes; the tensors do not show it.
        origin: the checkpoint, for messages.

    Raises:
        ModelError: the two have different encoders, or the decoder is unknown.
    """
    if (variant.dim, variant.depth) != (spec.dim, spec.depth):
        raise ModelError(
            f"{origin} adapts an encoder of {variant.depth} blocks of width {variant.dim}, but the SAM checkpoint has "
            f"{spec.depth} blocks of width {spec.dim}. Give the SAM checkpoint that it was trained on."
        )
    decoders: dict[int, str] = {2: "sam", spec.token_stride.bit_length() - 1: "progressive"}
    if variant.steps not in decoders:
        known = " or ".join(f"{steps} ({name})" for steps, name in decoders.items())
        raise ModelError(f"{origin}: the decoder has {variant.steps} upscaling steps; expected {known}")
    name = next((name for name, known in sams_own().items() if known == spec), CUSTOM)
    return NetworkPlan(
        encoder=name,
        custom_encoder=spec if name == CUSTOM else None,
        decoder=decoders[variant.steps],
        weights="sam",
        trained="adapted",
        increment="fact",
        increment_rank=variant.rank,
        increment_scale=scale,
        adapters=variant.adapters,
        adapter_channels=variant.adapter_channels,
        adapter_start="reference",
        prompt=prompt,
    )


def infer_encoder(state: Mapping[str, Tensor], *, canvas: tuple[int, int], origin: str) -> EncoderSpec:
    """Sizes of the encoder, and of the decoder's transformer, of a SAM checkpoint.

    If width, blocks and heads match a named encoder, it is that one. Otherwise a block attends globally if its tables
    of relative positions have the length that the position table implies; the other blocks' length gives the window.
    The number of heads in the decoder (8) is SAM's.

    Args:
        state: from `load_sam_checkpoint`.
        canvas: (height, width) in pixels of the network.
        origin: the file, for messages.

    Raises:
        ModelError: not a SAM checkpoint, or its sizes are impossible.
    """
    patch, positions, neck, head, lin1, mlp = (
        _shape(state, name, axes, origin)
        for name, axes in (
            ("image_encoder.patch_embed.proj.weight", 4),
            ("image_encoder.pos_embed", 4),
            ("image_encoder.neck.0.weight", 4),
            ("image_encoder.blocks.0.attn.rel_pos_h", 2),
            ("image_encoder.blocks.0.mlp.lin1.weight", 2),
            ("mask_decoder.transformer.layers.0.mlp.lin1.weight", 2),
        )
    )
    dim = patch[0]
    if patch[2:] != (SAM_PATCH, SAM_PATCH):
        raise ModelError(f"{origin}: patches of {patch[2]} x {patch[3]} px; SAM's are {SAM_PATCH} x {SAM_PATCH}")
    depth = _depth({int(match[1]) for match in map(_BLOCK.match, state) if match}, origin)
    heads = dim // head[1]
    for named in sams_own().values():
        if (named.dim, named.depth, named.heads) == (dim, depth, heads):
            return named
    window, global_blocks = _attention_reach(state, (positions[1], positions[2]), canvas, depth, origin)
    try:
        return sam_encoder(
            dim=dim,
            depth=depth,
            heads=heads,
            global_blocks=global_blocks,
            window=window,
            mlp_ratio=lin1[0] / dim,
            embedding=neck[0],
            decoder_mlp=mlp[0],
        )
    except PlanError as error:
        raise ModelError(f"{origin}: {error}; expected a SAM checkpoint") from error


def _attention_reach(
    state: Mapping[str, Tensor], grid: tuple[int, int], canvas: tuple[int, int], depth: int, origin: str
) -> tuple[int, tuple[int, ...]]:
    """Side of the attention windows in tokens, and the blocks that attend globally."""
    lengths: dict[int, list[int]] = {}
    for name in sorted(state):
        if table := _TABLE.fullmatch(name):
            lengths.setdefault(int(table[1]), []).append(state[name].shape[0])
    whole = [2 * side - 1 for side in grid]
    global_blocks = tuple(block for block in range(depth) if lengths.get(block) == whole)
    windowed = {tuple(lengths.get(block, ())) for block in range(depth)} - {tuple(whole)}
    if not windowed:
        if tuple(side // SAM_PATCH for side in canvas) != grid:
            raise ModelError(
                f"{origin}: made for {grid[0] * SAM_PATCH} x {grid[1] * SAM_PATCH} px. It is unclear which blocks "
                "attend within windows; give `canvas` with these sides"
            )
        return sams_own()["vit_b"].window, global_blocks
    sides = {length for pair in windowed for length in pair}
    if len(sides) != 1 or any(len(pair) != 2 for pair in windowed) or (length := sides.pop()) % 2 == 0:
        raise ModelError(
            f"{origin}: tables of relative positions have lengths {sorted(sides | set(whole))}; expected those of the "
            f"position table ({whole[0]}) and of one window. Expected a SAM checkpoint."
        )
    return (length + 1) // 2, global_blocks


def _depth(blocks: set[int], origin: str) -> int:
    """The number of blocks with these numbers. Raises ModelError if one is missing."""
    if missing := set(range(len(blocks))) - blocks:
        raise ModelError(f"{origin}: block {min(missing)} of the image encoder is missing. Download the file again.")
    return len(blocks)


def _shape(state: Mapping[str, Tensor], name: str, axes: int, origin: str) -> tuple[int, ...]:
    if name not in state:
        raise ModelError(f"{origin}: {name} is missing; expected a SAM checkpoint")
    if state[name].ndim != axes or state[name].numel() == 0:
        raise ModelError(f"{origin}: {name} has shape {tuple(state[name].shape)}; expected a SAM checkpoint")
    return tuple(state[name].shape)
