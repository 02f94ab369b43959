"""DINO's published files, of Meta, timm and transformers: their names, and their tables on another canvas."""

import math
import re
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from masam_auto.core.encoder_sizes import DinoSpec
from masam_auto.network.dino import ROTARY_BASE
from masam_auto.network.sam import fit_channels

_PREFIX = "image_encoder."
# Names of Meta's DINOv3, of timm and of transformers (old and new), and DINOv2's for the same.
_WHOLE_NAMES = {
    "storage_tokens": "register_tokens",
    "reg_token": "register_tokens",
    "embeddings.cls_token": "cls_token",
    "embeddings.register_tokens": "register_tokens",
    "embeddings.mask_token": "mask_token",
    "embeddings.position_embeddings": "pos_embed",
}
_PARTS_OF_NAMES = (
    (re.compile(r"embeddings\.patch_embeddings\.(?:projection\.)?"), "patch_embed.proj."),
    (re.compile(r"layernorm\."), "norm."),
    (re.compile(r"(?:model\.|encoder\.)?layer\.(?=\d)"), "blocks."),
)
_PARTS_OF_BLOCKS = (
    (re.compile(r"attention\.(?:output\.dense|o_proj)\."), "attn.proj."),
    (re.compile(r"attention\.(?:attention\.)?([qkv])(?:uery|ey|alue|_proj)\."), r"attn.\1_"),
    (re.compile(r"layer_scale([12])\.lambda1"), r"ls\1.gamma"),
    (re.compile(r"gamma_([12])"), r"ls\1.gamma"),
    (re.compile(r"mlp\.up_proj\."), "mlp.fc1."),
    (re.compile(r"mlp\.down_proj\."), "mlp.fc2."),
)
_BLOCK = re.compile(r"(blocks\.\d{1,6}\.)(.+)")
_VALUES = re.compile(r"(blocks\.\d{1,6}\.attn\.)v_(weight|bias)")
_WEIGHT = re.compile(r"(blocks\.\d{1,6}\.attn\.qkv\.)weight")
# Only for the pretraining, or a classifier's; and what masks the biases of keys, which are not used anyway.
_UNUSED = re.compile(r"mask_token|head\..*|blocks\.\d{1,6}\.attn\.qkv\.bias_mask")
_PERIODS = "rope_embed.periods"
# Published periods are rounded to bf16; others are those of another network.
_ROUNDING = 0.01


def rename_dino(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The tensors of a DINO file (any shapes) under our names; any other file's as they are.

    The position of the class token is added to it, and the table of the others becomes (1, h, w, C). Weights and biases
    of queries, keys and values are joined where they stand alone. A DINOv3 file may leave out biases that are zero.
    """
    ours: dict[str, Tensor] = {}
    for name, value in state.items():
        new = _metas_name(name)
        ours[f"{name} (twice)" if new in ours else new] = value  # unknown, and refused
    if "blocks.0.ls1.gamma" not in ours:
        return state
    rotary = "pos_embed" not in ours
    ours |= _separated(ours)
    ours = _joined(ours, rotary=rotary)
    if rotary and not any(name.endswith(".attn.qkv.bias") for name in ours):
        weights = {found[1]: ours[name] for name in ours if (found := _WEIGHT.fullmatch(name))}
        ours |= {f"{start}bias": value.new_zeros(len(value)) for start, value in weights.items() if value.ndim == 2}
    return {
        f"{_PREFIX}{name}": value
        for name, value in ours.items()
        if not _UNUSED.fullmatch(name) and not (name == _PERIODS and _is_usual(value))
    }


def fit_dino(spec: DinoSpec, name: str, value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A tensor (any shape) of a DINO file, resized to `shape` if it follows the canvas or the channels."""
    if name == f"{_PREFIX}pos_embed" and value.ndim == 4:
        return resize_dino_positions(value, (shape[1], shape[2]), exact=spec.registers > 0)
    if name == f"{_PREFIX}patch_embed.proj.weight" and value.ndim == 4:
        return fit_channels(value, shape[1])
    return value


def resize_dino_positions(
    table: Float[Tensor, "1 h w c"], grid: tuple[int, int], *, exact: bool
) -> Float[Tensor, "1 h2 w2 c"]:
    """A table of positions resized to `grid` (rows, columns) tokens, as DINOv2 does it; unchanged if it fits.

    Bicubic. Models with registers resize to the exact size, with antialiasing (`exact`). The older ones without were
    trained and published with a scale that is a tenth of a token too large, and without antialiasing.

    Source: hub/backbones.py and models/vision_transformer.py in facebookresearch/dinov2.
    """
    size = (table.shape[1], table.shape[2])
    if size == grid:
        return table
    channels_first = table.permute(0, 3, 1, 2)
    if exact:
        resized = F.interpolate(channels_first, size=grid, mode="bicubic", antialias=True)
    else:
        scale = [(tokens + 0.1) / side for tokens, side in zip(grid, size, strict=True)]
        resized = F.interpolate(channels_first, scale_factor=scale, mode="bicubic")
    return resized.permute(0, 2, 3, 1).contiguous()


def _metas_name(name: str) -> str:
    """The name in DINOv2's own repository of a tensor of any known form; of others, the same name."""
    if name in _WHOLE_NAMES:
        return _WHOLE_NAMES[name]
    for pattern, new in _PARTS_OF_NAMES:
        if found := pattern.match(name):
            name = new + name[found.end() :]
    if block := _BLOCK.fullmatch(name):
        rest = block[2]
        for pattern, new in _PARTS_OF_BLOCKS:
            if found := pattern.match(rest):
                rest = found.expand(new) + rest[found.end() :]
        return block[1] + rest
    return name


def _joined(ours: Mapping[str, Tensor], *, rotary: bool) -> dict[str, Tensor]:
    """Tensors with those of queries, keys and values joined. With rotary positions, keys may have no bias."""
    joined = dict(ours)
    for name, values in ours.items():
        if not (found := _VALUES.fullmatch(name)):
            continue
        parts = [f"{found[1]}{part}_{found[2]}" for part in "qkv"]
        queries, keys = ours.get(parts[0]), ours.get(parts[1])
        if keys is None and rotary and found[2] == "bias":
            keys = torch.zeros_like(values)
        if queries is None or keys is None or not queries.shape == keys.shape == values.shape or not values.ndim:
            continue  # unknown under these names, and refused
        joined = {name: value for name, value in joined.items() if name not in parts}
        joined[f"{found[1]}qkv.{found[2]}"] = torch.cat([queries, keys, values])
    return joined


def _separated(ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Class token and table of positions as we have them, from a table that may begin with the class token's."""
    table, token = ours.get("pos_embed"), ours.get("cls_token")
    if table is None or token is None or table.ndim != 3 or token.shape != table[:, :1].shape:
        return {}
    side = math.isqrt(table.shape[1])
    if table.shape[1] == side**2:
        return {"pos_embed": table.unflatten(1, (side, side))}
    if table.shape[1] == side**2 + 1:
        return {"cls_token": token + table[:, :1], "pos_embed": table[:, 1:].unflatten(1, (side, side))}
    return {}


def _is_usual(periods: Tensor) -> bool:
    """Whether rotary periods are those that `rotary_turn` computes."""
    if periods.ndim != 1 or periods.numel() == 0:
        return False
    usual = ROTARY_BASE ** (torch.arange(len(periods)) / len(periods))
    return bool(((periods / usual - 1).abs() < _ROUNDING).all())
