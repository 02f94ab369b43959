"""DinoEncoder: DINOv2's and DINOv3's vision transformers, adapted to windows of slices."""

import contextlib
import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from masam_auto.core.encoder_sizes import DinoSpec
from masam_auto.core.plan import NetworkPlan
from masam_auto.network.activations import EncoderMemory, Load, count_adapters
from masam_auto.network.adapter import Adapter3D
from masam_auto.network.attention import attend, project
from masam_auto.network.encoder import Features, conv_neck
from masam_auto.network.fact import Increments, find_increments
from masam_auto.network.sam import PatchEmbed
from masam_auto.network.slicewise import add, by_parts

RGB = 3
ROTARY_BASE = 100.0  # Source: hub/backbones.py in facebookresearch/dinov3
SMALL_SCALE = 1e-5  # Source: configs/ssl_default_config.yaml in facebookresearch/dinov2; the same in DINOv3


class Place(NamedTuple):
    """Where patch tokens are: (rows, columns) of them, and sines and cosines of their rotary positions, if used."""

    grid: tuple[int, int]
    turn: tuple[Float[Tensor, "t 1 e"], Float[Tensor, "t 1 e"]] | None


class LayerScale(nn.Module):
    """A learned factor for each channel."""

    def __init__(self, dim: int, start: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), start))

    def forward(self, x: Float[Tensor, "*tokens c"]) -> Float[Tensor, "*tokens c"]:
        """The scaled tokens."""
        return x * self.gamma


class Mlp(nn.Module):
    """Two layers with GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "*tokens c"]) -> Float[Tensor, "*tokens c"]:
        """Tokens of the same shape."""
        return self.fc2(F.gelu(self.fc1(x)))


class GlobalAttention(nn.Module):
    """Attention of all tokens of a slice to each other. With rotary positions, queries and keys are turned first.

    Then keys have no bias: their part of `qkv.bias` is taken as zero.
    """

    def __init__(self, spec: DinoSpec) -> None:
        super().__init__()
        self.heads, self.key_bias = spec.heads, spec.positions > 0
        self.qkv = nn.Linear(spec.dim, 3 * spec.dim)
        self.proj = nn.Linear(spec.dim, spec.dim)

    def forward(
        self, x: Float[Tensor, "s t c"], increments: Increments | None, block: int, place: Place
    ) -> Float[Tensor, "s t c"]:
        """Attention within each of `s` slices; the `increments` of q and v are those of block number `block`."""
        slices, tokens, channels = x.shape
        qkv = project(x, self.qkv.weight, self._bias(), increments, block)
        q, k, v = qkv.view(slices, tokens, 3, self.heads, channels // self.heads).unbind(2)
        if place.turn is not None:
            q, k = rotate(q, *place.turn), rotate(k, *place.turn)
        out = attend(q, k, v, (channels // self.heads) ** -0.5)
        return self.proj(out.reshape(x.shape))

    def _bias(self) -> Float[Tensor, "c3"]:
        if self.key_bias:
            return self.qkv.bias
        queries, keys, values = self.qkv.bias.chunk(3)
        return torch.cat([queries, torch.zeros_like(keys), values])


def rotary_turn(
    grid: tuple[int, int], width: int, extra: int, device: torch.device
) -> tuple[Float[Tensor, "t 1 e"], Float[Tensor, "t 1 e"]]:
    """Sines and cosines for `extra` tokens without a place, which are not turned, and then those of a grid, row by row.

    Rows and columns go from -1 to 1, each by itself, at the patches' centres. The first half of the angles is of the
    row, the second of the column, each with periods from 1 to nearly `ROTARY_BASE`; `width` / 2 angles for a head of
    `width` channels.

    Source: Simeoni et al., DINOv3, 2025, axial rotary positions; computed, not kept: files may not have them.
    """
    periods = ROTARY_BASE ** (torch.arange(width // 4, device=device) / (width // 4))
    row, column = (2 * (torch.arange(side, device=device) + 0.5) / side - 1 for side in grid)
    places = torch.stack(torch.meshgrid(row, column, indexing="ij"), dim=-1).flatten(0, 1)
    angles = (2 * math.pi * places[:, :, None] / periods).flatten(1)
    angles = F.pad(angles, (0, 0, extra, 0))[:, None]
    return angles.sin(), angles.cos()


def rotate(
    x: Float[Tensor, "s t n d"], sine: Float[Tensor, "t 1 e"], cosine: Float[Tensor, "t 1 e"]
) -> Float[Tensor, "s t n d"]:
    """Queries or keys, with the pairs (channel i, channel i + D/2) of each head turned by angle i."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1).to(x.dtype)


class DinoBlock(nn.Module):
    """Attention, then an MLP, each scaled per channel; with one adapter before the attention and one after it.

    Adapters see only the patch tokens, because class token and registers have no place in the slice.
    """

    def __init__(self, spec: DinoSpec, plan: NetworkPlan, *, number: int) -> None:
        super().__init__()
        self.number = number
        # From scratch, a block starts nearly as the identity, as DINO's own do; a frozen one must not.
        scale = SMALL_SCALE if plan.weights == "none" and plan.trained == "all" else 1.0
        self.adapter_before = _adapter(spec, plan) if plan.adapters in ("both", "before") else None
        self.norm1 = nn.LayerNorm(spec.dim, eps=spec.norm_eps)
        self.attn = GlobalAttention(spec)
        self.ls1 = LayerScale(spec.dim, scale)
        self.adapter_after = _adapter(spec, plan) if plan.adapters in ("both", "after") else None
        self.norm2 = nn.LayerNorm(spec.dim, eps=spec.norm_eps)
        self.mlp = Mlp(spec.dim, int(spec.dim * spec.mlp_ratio))
        self.ls2 = LayerScale(spec.dim, scale)

    def forward(
        self, x: Float[Tensor, "s t c"], increments: Increments | None, num_slices: int, place: Place
    ) -> Float[Tensor, "s t c"]:
        """Tokens of slices through the block; without gradients, in place."""
        x = _adapt(self.adapter_before, x, num_slices, place)
        x = add(x, lambda part: self.ls1(self.attn(self.norm1(part), increments, self.number, place)), x)
        x = _adapt(self.adapter_after, x, num_slices, place)
        return add(x, lambda part: self.ls2(self.mlp(self.norm2(part))), x)


def _adapt(
    adapter: Adapter3D | None, x: Float[Tensor, "s t c"], num_slices: int, place: Place
) -> Float[Tensor, "s t c"]:
    """Tokens whose patches went through an adapter."""
    if adapter is None:
        return x
    patches = _patches(x, place.grid)
    adapted = adapter(patches, num_slices)
    if not torch.is_grad_enabled():  # then the adapter changed x itself
        return x
    return torch.cat([x[:, : -patches.shape[1] * patches.shape[2]], adapted.flatten(1, 2)], dim=1)


def _patches(x: Float[Tensor, "s t c"], grid: tuple[int, int]) -> Float[Tensor, "s h w c"]:
    """The patch tokens, which come last, in their places; a view."""
    return x[:, -grid[0] * grid[1] :].unflatten(1, grid)


def _adapter(spec: DinoSpec, plan: NetworkPlan) -> Adapter3D:
    return Adapter3D(dim=spec.dim, channels=plan.adapter_channels, start=plan.adapter_start)


class DinoEncoder(nn.Module):
    """Slices of whole windows -> features. `increments`, adapters and `neck` are additions; the other state-dict names
    are those of DINOv2 with registers. The class token has its position added, the table of positions is (1, h, w, c).

    Pixels are in 0..1; one channel is shown as three equal ones. Mean and deviation of the pretraining images are
    applied here, for other counts of channels those of the three on average. Features, and the levels of the blocks
    `taps`, are the patch tokens after the last norm. If nothing before the neck learns, it has no backward pass.
    """

    def __init__(
        self, spec: DinoSpec, plan: NetworkPlan, *, canvas: tuple[int, int], in_channels: int, with_levels: bool
    ) -> None:
        super().__init__()
        self.spec = spec
        self.taps = spec.taps if with_levels else ()
        self.activation_checkpointing = False
        grid = (canvas[0] // spec.token_stride, canvas[1] // spec.token_stride)
        self.cls_token = nn.Parameter(torch.empty(1, 1, spec.dim))
        self.register_tokens = nn.Parameter(torch.empty(1, spec.registers, spec.dim)) if spec.registers else None
        self.patch_embed = PatchEmbed(
            kernel_size=(spec.token_stride, spec.token_stride),
            stride=(spec.token_stride, spec.token_stride),
            in_chans=RGB if in_channels == 1 else in_channels,
            embed_dim=spec.dim,
        )
        self.pos_embed = nn.Parameter(torch.empty(1, *grid, spec.dim)) if spec.positions else None
        self.increments = find_increments(plan.increment)(
            dim=spec.dim,
            depth=spec.depth,
            rank=plan.increment_rank,
            scale=plan.increment_scale,
            dropout=plan.increment_dropout,
        )
        self.blocks = nn.ModuleList(DinoBlock(spec, plan, number=number) for number in range(spec.depth))
        self.norm = nn.LayerNorm(spec.dim, eps=spec.norm_eps)
        self.neck = conv_neck(spec.dim, spec.embedding)
        for table in (self.cls_token, self.register_tokens, self.pos_embed):
            if table is not None:
                nn.init.trunc_normal_(table, std=0.02)

    def forward(self, slices: Float[Tensor, "s c h w"], num_slices: int) -> Features:
        """Features of slices, window by window; `num_slices` is N, any."""
        learns = any(weight.requires_grad for name, weight in self.named_parameters() if not name.startswith("neck."))
        with contextlib.nullcontext() if learns else torch.no_grad():
            x, place, levels = self._tokens(slices, num_slices)
        embedding = by_parts(lambda part: self.neck(self.norm(_patches(part, place.grid)).permute(0, 3, 1, 2)), x)
        return Features(embedding=embedding, levels=levels)

    def _tokens(
        self, slices: Float[Tensor, "s c h w"], num_slices: int
    ) -> tuple[Float[Tensor, "s t c2"], Place, tuple[Float[Tensor, "s c2 h2 w2"], ...]]:
        """Tokens after the last block, their places, and the levels."""
        patches = by_parts(self._embed, slices)
        extra = self.cls_token if self.register_tokens is None else torch.cat([self.cls_token, self.register_tokens], 1)
        x = torch.cat([extra.expand(len(patches), -1, -1), patches.flatten(1, 2)], dim=1)
        place = self._place((patches.shape[1], patches.shape[2]), x)
        levels: tuple[Tensor, ...] = ()
        for block in self.blocks:
            if self.activation_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, self.increments, num_slices, place, use_reentrant=False)
            else:
                x = block(x, self.increments, num_slices, place)
            if block.number in self.taps:
                levels = (*levels, self.norm(_patches(x, place.grid)).permute(0, 3, 1, 2))
        return x, place, levels

    def _embed(self, slices: Float[Tensor, "s c h w"]) -> Float[Tensor, "s h2 w2 c2"]:
        """Patch tokens of slices, with their positions if there is a table."""
        mean, std = slices.new_tensor(self.spec.pixel_mean), slices.new_tensor(self.spec.pixel_std)
        if slices.shape[1] not in (1, RGB):
            mean, std = mean.mean(), std.mean()
        else:
            mean, std = mean[:, None, None], std[:, None, None]
        x = self.patch_embed((slices - mean) / std)
        return x if self.pos_embed is None else x + self.pos_embed

    def _place(self, grid: tuple[int, int], x: Float[Tensor, "s t c"]) -> Place:
        if self.spec.positions:
            return Place(grid, None)
        extra = x.shape[1] - grid[0] * grid[1]
        return Place(grid, rotary_turn(grid, self.spec.dim // self.spec.heads, extra, x.device))


def dino_memory(load: Load) -> EncoderMemory:
    """What a DINO encoder takes for one slice of a load."""
    spec, width = load.sizes(DinoSpec), load.precision_bytes
    tokens, scores = load.tokens + 1 + spec.registers, _score_values(load)
    # Without anything that learns in the blocks there is no backward pass through them.
    depth = spec.depth if _blocks_learn(load.built) else 0
    block = width * max(8 * spec.dim * tokens + 2 * scores, (2 + 2 * spec.mlp_ratio) * spec.dim * tokens)
    return EncoderMemory(
        tables=0.0,
        stem=0.0,
        blocks=depth * _block_bytes(load),
        residuals=4.0 * depth * tokens * spec.dim,
        again=_block_bytes(load) + 2 * width * scores if depth else 0.0,  # with the scores' gradients
        levels=width * load.tokens * len(spec.levels) * spec.dim,
        block=block,
        held=4.0 * tokens * spec.dim + 2 * width * load.tokens * load.built.adapter_channels,
        peak=block,
    )


def _blocks_learn(plan: NetworkPlan) -> bool:
    return plan.trained == "all" or plan.increment != "none" or plan.adapters != "none"


def _score_values(load: Load) -> float:
    """(tokens x tokens) scores of all heads, which a fused kernel does not keep."""
    spec = load.sizes(DinoSpec)
    return 0.0 if load.fused else spec.heads * float(load.tokens + 1 + spec.registers) ** 2


def _block_bytes(load: Load) -> float:
    """Bytes that one block keeps for the backward pass of a slice. The residual stream stays float32."""
    spec, plan, width = load.sizes(DinoSpec), load.built, load.precision_bytes
    adapters, learns = count_adapters(plan), plan.trained == "all"
    residuals = (2 + adapters) * 4 * spec.dim
    adapter = adapters * (spec.dim + 3 * plan.adapter_channels)
    # Queries, keys and values; for a fused kernel also its result, and, unless they are turned, the projection's.
    attention = (3 if not load.fused else 5 if spec.positions else 4) * spec.dim
    projections = spec.dim if learns or plan.increment != "none" else 0
    increments = 6 * plan.increment_rank if plan.increment != "none" else 0
    mlp = spec.mlp_ratio * spec.dim + ((4 + spec.mlp_ratio) * spec.dim if learns else 0)
    kept = residuals + width * (adapter + attention + projections + increments + mlp)
    return (load.tokens + 1 + spec.registers) * kept + width * _score_values(load)
