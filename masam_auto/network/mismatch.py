"""Describe the network that a checkpoint's tensors were made for, in a plan's words, and its differences to another."""

import re
from collections.abc import Callable, Mapping

from torch import Tensor

_ADAPTER = re.compile(r"image_encoder\.blocks\.\d+\.adapter_(before|after)\.down\.weight")
_BLOCK = re.compile(r"image_encoder\.(?:blocks|increments\.q_cores|increments\.q_down)\.(\d{1,9})\.")
_UPSCALING = re.compile(r"mask_decoder\.output_upscaling\.\d+\.weight")
_FACT, _LORA = "image_encoder.increments.u.weight", "image_encoder.increments.q_down.0.weight"
_PLACES = {
    frozenset(): "no adapters",
    frozenset({"before"}): "adapters before attention",
    frozenset({"after"}): "adapters after attention",
    frozenset({"before", "after"}): "adapters before and after attention",
}
Tensors = Mapping[str, Tensor]


def network_differences(found: Tensors, needed: Tensors) -> list[str]:
    """Describe how the networks of two sets of tensors differ; [] if there are no plain words for it.

    Args:
        found: a checkpoint's tensors.
        needed: the tensors that the network needs.

    Returns:
        Clauses such as "it holds FacT increments of rank 4, the plan asks for FacT increments of rank 32".
    """
    pairs = [(describe(found), describe(needed)) for describe in DESCRIPTIONS]
    return [f"it holds {a}, the plan asks for {b}" for a, b in pairs if a is not None and b is not None and a != b]


def _increments(state: Tensors) -> str | None:
    for kind, name in (("FacT", _FACT), ("LoRA", _LORA)):
        if name in state:
            return f"{kind} increments of rank {state[name].shape[0]}"
    return None if any(name.startswith("image_encoder.increments.") for name in state) else "no increments"


def _adapters(state: Tensors) -> str:
    found = {name: match[1] for name in state if (match := _ADAPTER.fullmatch(name))}
    widths = sorted({state[name].shape[0] for name in found})
    return _PLACES[frozenset(found.values())] + "".join(f", {width} channels wide" for width in widths)


def _decoder(state: Tensors) -> str | None:
    if "mask_decoder.head.weight" in state:
        return "the decoder multiscale"
    # a norm's weight has one axis, a transposed convolution's four
    steps = sum(value.ndim == 4 for name, value in state.items() if _UPSCALING.fullmatch(name))
    return f"a mask decoder with {steps} upscaling steps ({'sam' if steps == 2 else 'progressive'})" if steps else None


def _outputs(state: Tensors) -> str | None:
    for name in ("mask_decoder.mask_tokens.weight", "mask_decoder.head.weight"):
        if name in state:
            return f"{state[name].shape[0]} outputs (classes with background, or regions)"
    return None


def _channels(state: Tensors) -> str | None:
    """Of the image: the stem's, if there is one, because the patch embedding then sees the stem's channels."""
    for name in ("image_encoder.stem.levels.0.conv.weight", "image_encoder.patch_embed.proj.weight"):
        if name in state:
            return f"{state[name].shape[1]} input channel{'' if state[name].shape[1] == 1 else 's'}"
    return None


def _canvas(state: Tensors) -> str | None:
    table = state.get("image_encoder.pos_embed")
    return None if table is None else f"a canvas of {table.shape[1]} x {table.shape[2]} tokens"


def _encoder(state: Tensors) -> str | None:
    """Blocks and width, if any tensor of the encoder is there."""
    blocks = [int(match[1]) for match in map(_BLOCK.match, state) if match]
    tables = ("image_encoder.pos_embed", _FACT, _LORA, *(name for name in state if _ADAPTER.fullmatch(name)))
    widths = [state[name].shape[-1] for name in tables if name in state]
    return f"an encoder of {1 + max(blocks)} blocks of width {widths[0]}" if blocks and widths else None


# The most informative ones come first.
DESCRIPTIONS: tuple[Callable[[Tensors], str | None], ...] = (
    _encoder,
    _increments,
    _adapters,
    _decoder,
    _outputs,
    _channels,
    _canvas,
)
