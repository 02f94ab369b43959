"""DINO's published files, of Meta's own repositories and of timm: their names, and their tables on another canvas."""

import math
import re
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from masam_auto.core.encoders import DinoSpec
from masam_auto.network.dino import ROTARY_BASE
from masam_auto.network.sam import fit_channels

_PREFIX = "image_encoder."
_FIRST_SCALES = ("blocks.0.ls1.gamma", "blocks.0.gamma_1")  # Meta's and timm's names; no other kind's
_SCALE = re.compile(r"(blocks\.\d{1,6}\.)gamma_([12])")
_BIAS = re.compile(r"(blocks\.\d{1,6}\.attn\.)v_bias")
_WEIGHT = re.compile(r"(blocks\.\d{1,6}\.attn\.qkv\.)weight")
_REGISTERS = ("register_tokens", "storage_tokens", "reg_token")
# Only for the pretraining, or a classifier's; and what masks the biases of keys, which are not used anyway.
_UNUSED = re.compile(r"mask_token|head\..*|blocks\.\d{1,6}\.attn\.qkv\.bias_mask")
_PERIODS = "rope_embed.periods"
# Published periods are rounded to bf16; others are those of another network.
_ROUNDING = 0.01


def rename_dino(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The tensors of a DINO file (any shapes) under our names; any other file's as they are.

    The position of the class token is added to it, and the table of the others becomes (1, h, w, C). In timm's DINOv3
    files biases of queries and values stand alone, or are left out where all are zero.
    """
    if not any(name in state for name in _FIRST_SCALES):
        return state
    ours = {}
    for name, value in state.items():
        if _UNUSED.fullmatch(name) or (name == _PERIODS and _is_usual(value)):
            continue
        scale, bias = _SCALE.fullmatch(name), _BIAS.fullmatch(name)
        if name in _REGISTERS:
            ours["register_tokens"] = value
        elif scale:
            ours[f"{scale[1]}ls{scale[2]}.gamma"] = value
        elif bias and (queries := state.get(f"{bias[1]}q_bias")) is not None and queries.ndim == value.ndim == 1:
            ours[f"{bias[1]}qkv.bias"] = torch.cat([queries, torch.zeros_like(value), value])
        elif not name.endswith(".attn.q_bias"):
            ours[name] = value
    ours |= _separated(ours)
    if "pos_embed" not in ours and not any(name.endswith(".attn.qkv.bias") for name in ours):
        ours |= {f"{found[1]}bias": value.new_zeros(len(value)) for name, value in ours.items()
                 if (found := _WEIGHT.fullmatch(name)) and value.ndim == 2}  # fmt: skip
    return {f"{_PREFIX}{name}": value for name, value in ours.items()}


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
