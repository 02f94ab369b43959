"""SAM's parts from the segment-anything package, its checkpoints, and resizing its tables to another canvas."""

import importlib.util
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from masam_auto.core.encoder_sizes import EncoderSpec, HieraSpec, TinyViTSpec
from masam_auto.core.errors import ModelError
from masam_auto.network.weight_files import wrong_values

_PRIVATE_NAME = "_masam_auto_segment_anything_modeling"
_BLOCK_TABLE = re.compile(r"image_encoder\.blocks\.(\d+)\.attn\.rel_pos_[hw]")


def _load_modeling() -> ModuleType:
    """Only SAM's `modeling` subpackage: the package's top level imports torchvision, which is not needed here."""
    if _PRIVATE_NAME in sys.modules:
        return sys.modules[_PRIVATE_NAME]
    package = importlib.util.find_spec("segment_anything")
    if package is None or not package.submodule_search_locations:
        raise ModelError("the package segment-anything is not installed; run: pip install segment-anything")
    folder = Path(package.submodule_search_locations[0]) / "modeling"
    spec = importlib.util.spec_from_file_location(
        _PRIVATE_NAME, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[_PRIVATE_NAME] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[_PRIVATE_NAME]
        raise
    return module


_modeling: Any = _load_modeling()
ImageEncoderViT: Any = _modeling.ImageEncoderViT
PatchEmbed: Any = _modeling.image_encoder.PatchEmbed
MaskDecoder: Any = _modeling.MaskDecoder
MLP: Any = _modeling.mask_decoder.MLP
PromptEncoder: Any = _modeling.PromptEncoder
TwoWayTransformer: Any = _modeling.TwoWayTransformer
LayerNorm2d: Any = _modeling.common.LayerNorm2d
MLPBlock: Any = _modeling.common.MLPBlock


def resize_positions(table: Float[Tensor, "1 h w c"], grid: tuple[int, int]) -> Float[Tensor, "1 h2 w2 c"]:
    """Position table resized bilinearly to `grid` (rows, columns) tokens; unchanged if it fits."""
    if tuple(table.shape[1:3]) == grid:
        return table
    resized = F.interpolate(table.permute(0, 3, 1, 2), size=grid, mode="bilinear", align_corners=False)
    return resized.permute(0, 2, 3, 1).contiguous()


def resize_relative(table: Float[Tensor, "l c"], length: int) -> Float[Tensor, "l2 c"]:
    """Relative-position table resized linearly to `length` = 2 * tokens - 1 distances; unchanged if it fits."""
    if table.shape[0] == length:
        return table
    return F.interpolate(table.T[None], size=length, mode="linear", align_corners=False)[0].T.contiguous()


def fit_channels(
    weight: Float[Tensor, "dim channels height width"], in_channels: int
) -> Float[Tensor, "dim channels2 height width"]:
    """Patch-embedding weights for another number of input channels.

    The response to an image whose channels are all equal stays the same. One channel gets the sum of the weights,
    which equals replicating the image but is cheaper; other counts get equal shares of it.
    """
    if weight.shape[1] == in_channels:
        return weight
    return (weight.sum(1, keepdim=True) / in_channels).repeat(1, in_channels, 1, 1)


def fit_state(
    state: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    *,
    encoder: str,
    fit: Callable[[str, Tensor, tuple[int, ...]], Tensor],
    parts: tuple[str, ...] = (),
    origin: str,
) -> dict[str, Tensor]:
    """The needed tensors of a SAM checkpoint, in the needed shapes.

    Args:
        state: the checkpoint.
        wanted: the network's own tensors under SAM's names; only their shapes are read.
        encoder: name of the encoder, for messages.
        fit: resizes a tensor, by its name, to a shape, if its shape follows the canvas or the channels.
        parts: beginnings of names in the file that must all be wanted.
        origin: the file, for messages.

    Returns:
        A tensor for each wanted name, with position tables resized and the patch embedding's channels adapted.

    Raises:
        ModelError: a tensor is missing, has a shape that resizing does not explain, or values that are not finite; or
            the checkpoint's encoder has other tensors.
    """
    # Resized tensors come last, so that the message for a wrong encoder shows widths, not canvases or channels.
    names = sorted(
        wanted, key=lambda name: "pos" in name.rpartition(".")[2] or name.endswith("patch_embed.proj.weight")
    )
    fitted = {}
    for name in names:
        if name not in state:
            raise ModelError(f"{origin}: {name} is missing, which {encoder} needs; expected weights of {encoder}")
        if problem := wrong_values(state[name], wanted[name]):
            raise ModelError(f"{origin}: {name} {problem}. Download it again.")
        value = fit(name, state[name], tuple(wanted[name].shape))
        if value.shape != wanted[name].shape:
            raise ModelError(
                f"{origin}: {name} has shape {tuple(state[name].shape)}, but {encoder} needs "
                f"{tuple(wanted[name].shape)}; expected weights of {encoder}"
            )
        fitted[name] = value
    for name in state:
        if name.startswith(parts) and name not in wanted:
            raise ModelError(f"{origin}: {name} does not exist in {encoder}; expected weights of {encoder}")
    return fitted


def fit_vit(spec: EncoderSpec, name: str, value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A tensor (any shape) of a plain ViT, resized to `shape` if it follows the canvas or the channels."""
    if name == "image_encoder.pos_embed" and value.ndim == 4:
        return resize_positions(value, (shape[1], shape[2]))
    if name == "image_encoder.patch_embed.proj.weight" and value.ndim == 4:
        return fit_channels(value, shape[1])
    table = _BLOCK_TABLE.fullmatch(name)
    if table and value.ndim == 2 and int(table[1]) in spec.global_blocks:
        return resize_relative(value, shape[0])
    return value


def fit_tiny_vit(spec: TinyViTSpec, name: str, value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A tensor (any shape) of a TinyViT. Nothing in it follows the canvas."""
    if name == "image_encoder.patch_embed.seq.0.c.weight" and value.ndim == 4:
        return fit_channels(value, shape[1])
    return value


def fit_hiera(spec: HieraSpec, name: str, value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A tensor (any shape) of a Hiera. Nothing in it follows the canvas: positions are resized when used."""
    if name == "image_encoder.trunk.patch_embed.proj.weight" and value.ndim == 4:
        return fit_channels(value, shape[1])
    return value


_SAM2_NAMES = (
    (re.compile(r"sam_(mask_decoder|prompt_encoder)\."), r"\1."),
    (re.compile(r"(mask_decoder\.transformer\.layers\.\d{1,9}\.mlp)\.layers\.0\."), r"\1.lin1."),
    (re.compile(r"(mask_decoder\.transformer\.layers\.\d{1,9}\.mlp)\.layers\.1\."), r"\1.lin2."),
    (re.compile(r"no_mem_embed"), "image_encoder.no_mem_embed"),
)


def sam_names(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The tensors of a file of SAM 2 by SAM's names; those of any other file as they are.

    Example:
        >>> from masam_auto.network.sam import sam_names
        >>> values = torch.ones(1)
        >>> state = {"image_encoder.trunk.pos_embed": values, "sam_mask_decoder.iou_token.weight": values}
        >>> list(sam_names(state))
        ['image_encoder.trunk.pos_embed', 'mask_decoder.iou_token.weight']
    """
    if not any(name.startswith("image_encoder.trunk.") for name in state):
        return state
    return {_sam_name(name): value for name, value in state.items()}


def _sam_name(name: str) -> str:
    for pattern, ours in _SAM2_NAMES:
        if found := pattern.match(name):
            name = found.expand(ours) + name[found.end() :]
    return name
