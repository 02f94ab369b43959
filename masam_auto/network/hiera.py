"""HieraEncoder: SAM 2's hierarchical image encoder, adapted to windows of slices."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from masam_auto.core.encoder_sizes import HieraSpec, StageSpec
from masam_auto.core.plan import NetworkPlan
from masam_auto.network.activations import EncoderMemory, Load
from masam_auto.network.attention import TakeRows, attend, in_windows, project
from masam_auto.network.encoder import Features
from masam_auto.network.fact import Increments
from masam_auto.network.sam import PatchEmbed
from masam_auto.network.slicewise import add, by_parts
from masam_auto.network.tiny_vit import RGB, stage_adapter, stage_increments, trained_pixels


class PooledAttention(nn.Module):
    """Attention within windows, or of the whole slice without one, from one stage to the next or within a stage.

    Between stages the queries are pooled: of every 2 x 2, the largest value of each channel. Slices that are not whole
    windows are padded with zeros after the layer norm, and the padding is attended to; as keys and values it is the
    projection's bias. Pooling never mixes it with the slice, because windows and slices have even sides.
    """

    def __init__(self, before: StageSpec, stage: StageSpec, *, window: int | None) -> None:
        super().__init__()
        self.heads, self.window, self.pools = stage.heads, window, before.stride < stage.stride
        self.qkv = nn.Linear(before.dim, 3 * stage.dim)
        self.proj = nn.Linear(stage.dim, stage.dim)

    def forward(
        self, x: Float[Tensor, "s h w c"], increments: Increments | None, block: int
    ) -> Float[Tensor, "s h2 w2 c2"]:
        """Attention within each window; the `increments` of q and v are those of block number `block`."""
        qkv = project(x, self.qkv.weight, self.qkv.bias, increments, block)
        width = self.proj.in_features
        q, kv = qkv.split((width, 2 * width), dim=-1)
        q = pool(q) if self.pools else q
        shape, places = q.shape, None
        if self.window is None:
            q, kv = q.flatten(1, 2), kv.flatten(1, 2)
        else:
            side, bias = self.window // 2 if self.pools else self.window, self.qkv.bias
            q, places = in_windows(q, bias[:width], (side, side))
            kv, _ = in_windows(kv, bias[width:], (self.window, self.window))
        k, v = kv.unflatten(2, (2, self.heads, -1)).unbind(2)
        q = q.unflatten(2, (self.heads, -1))
        out = attend(q, k, v, q.shape[-1] ** -0.5)
        if places is not None:
            out = TakeRows.apply(out.flatten(0, 1), places, q.shape[-1])
        return self.proj(out.reshape(shape))


def pool(x: Float[Tensor, "s h w c"]) -> Float[Tensor, "s h2 w2 c"]:
    """The largest value of every 2 x 2."""
    return F.max_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)


class Mlp(nn.Module):
    """Two layers with GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(dim, hidden), nn.Linear(hidden, dim)])

    def forward(self, x: Float[Tensor, "s h w c"]) -> Float[Tensor, "s h w c"]:
        """Changes to add to the tokens."""
        first, last = self.layers
        return last(F.gelu(first(x)))


class HieraBlock(nn.Module):
    """Attention and MLP, with one adapter before the attention and one after it. A stage's first block leads to it.

    `before` is the stage that the block's input comes from; `number` counts the blocks of its own stage.
    """

    def __init__(
        self,
        before: StageSpec,
        stage: StageSpec,
        plan: NetworkPlan,
        *,
        number: int,
        window: int | None,
        mlp_ratio: float,
    ) -> None:
        super().__init__()
        self.number = number
        self.adapter_before = stage_adapter(before, plan) if plan.adapters in ("both", "before") else None
        self.norm1 = nn.LayerNorm(before.dim, eps=1e-6)
        self.attn = PooledAttention(before, stage, window=window)
        self.proj = nn.Linear(before.dim, stage.dim) if before != stage else None
        self.adapter_after = stage_adapter(stage, plan) if plan.adapters in ("both", "after") else None
        self.norm2 = nn.LayerNorm(stage.dim, eps=1e-6)
        self.mlp = Mlp(stage.dim, int(stage.dim * mlp_ratio))

    def forward(
        self, x: Float[Tensor, "s h w c"], increments: Increments | None, num_slices: int
    ) -> Float[Tensor, "s h2 w2 c2"]:
        """Tokens of slices through the block; without gradients, in place."""
        if self.adapter_before is not None:
            x = self.adapter_before(x, num_slices)
        if self.proj is None:
            x = add(x, lambda part: self.attn(self.norm1(part), increments, self.number), x)
        else:
            x = by_parts(lambda part: self._to_the_stage(part, increments), x)
        if self.adapter_after is not None:
            x = self.adapter_after(x, num_slices)
        return add(x, lambda part: self.mlp(self.norm2(part)), x)

    def _to_the_stage(self, x: Float[Tensor, "s h w c"], increments: Increments | None) -> Float[Tensor, "s h2 w2 c2"]:
        """Tokens of the stage, from those of the one before."""
        assert self.proj is not None
        x = self.norm1(x)
        return pool(self.proj(x)) + self.attn(x, increments, self.number)


class Trunk(nn.Module):
    """Pixels to the first stage's places, the positions of these, and the blocks of all stages."""

    def __init__(self, spec: HieraSpec, plan: NetworkPlan, in_channels: int) -> None:
        super().__init__()
        first = spec.stages[0]
        self.patch_embed = PatchEmbed(
            kernel_size=(7, 7), stride=(4, 4), padding=(3, 3), in_chans=in_channels, embed_dim=first.dim
        )
        self.pos_embed = nn.Parameter(torch.zeros(1, first.dim, spec.background, spec.background))
        self.pos_embed_window = nn.Parameter(torch.zeros(1, first.dim, first.window, first.window))
        for table in (self.pos_embed, self.pos_embed_window):
            nn.init.trunc_normal_(table, std=0.02)
        self.blocks = nn.ModuleList(_blocks(spec, plan))

    def places(self, slices: Float[Tensor, "s c h w"]) -> Float[Tensor, "s h2 w2 c2"]:
        """The first stage's input."""
        x = self.patch_embed(slices)
        return x + self.positions(x.shape[1], x.shape[2])

    def positions(self, height: int, width: int) -> Float[Tensor, "1 h w c"]:
        """The coarse table resized to all places, plus the table of a window, repeated."""
        coarse = F.interpolate(self.pos_embed.float(), size=(height, width), mode="bicubic")
        side = self.pos_embed_window.shape[2]
        tiled = self.pos_embed_window.tile(1, 1, -(-height // side), -(-width // side))
        return (coarse + tiled[:, :, :height, :width]).permute(0, 2, 3, 1)


def _blocks(spec: HieraSpec, plan: NetworkPlan) -> list[HieraBlock]:
    """The blocks of all stages. The first block of a stage has the windows of the stage before."""
    blocks: list[HieraBlock] = []
    before = spec.stages[0]
    for stage in spec.stages:
        for number in range(stage.depth):
            window = None if len(blocks) in spec.global_blocks else before.window
            blocks.append(HieraBlock(before, stage, plan, number=number, window=window, mlp_ratio=spec.mlp_ratio))
            before = stage
    return blocks


class Neck(nn.Module):
    """The last two stages as the decoder's tokens: both at its width, the last one enlarged, and added."""

    def __init__(self, spec: HieraSpec) -> None:
        super().__init__()
        coarse_first = (spec.stages[-1], spec.stages[-2])
        self.convs = nn.ModuleList(
            nn.Sequential(OrderedDict(conv=nn.Conv2d(stage.dim, spec.embedding, kernel_size=1)))
            for stage in coarse_first
        )

    def forward(self, fine: Float[Tensor, "s c h w"], coarse: Float[Tensor, "s c2 h2 w2"]) -> Float[Tensor, "s e h w"]:
        """Features of the last stage but one, and of the last one, together."""
        from_coarse, from_fine = self.convs
        return from_fine(fine) + F.interpolate(from_coarse(coarse), scale_factor=2, mode="nearest")


class HieraEncoder(nn.Module):
    """Slices of whole windows -> features. State-dict names are SAM 2's; `increments` and adapters are additions.

    One channel is shown as three equal ones. `increments` has the factors of each stage: its blocks share them.
    `no_mem_embed` is what SAM 2 adds to the features of an image without a memory of others. SAM 2's neck has also two
    layers for the fine features that its own decoder adds to the masks; they are not used.
    """

    def __init__(
        self, spec: HieraSpec, plan: NetworkPlan, *, canvas: tuple[int, int], in_channels: int, with_levels: bool
    ) -> None:
        super().__init__()
        self.spec = spec
        self.num_levels = len(spec.levels) if with_levels else 0
        self.activation_checkpointing = False
        self.trunk = Trunk(spec, plan, RGB if in_channels == 1 else in_channels)
        increments = [stage_increments(stage, plan) for stage in spec.stages]
        self.increments = nn.ModuleList(one for one in increments if one is not None)
        self.neck = Neck(spec)
        self.no_mem_embed = nn.Parameter(torch.zeros(1, 1, spec.embedding))

    def forward(self, slices: Float[Tensor, "s c h w"], num_slices: int) -> Features:
        """Features of slices, window by window; `num_slices` is N, any."""
        x = by_parts(self._places, slices)
        ends: list[Tensor] = []
        blocks = iter(self.trunk.blocks)
        for place, stage in enumerate(self.spec.stages):
            increments: Any = self.increments[place] if len(self.increments) else None
            for _ in range(stage.depth):
                x = self._block(next(blocks), x, increments, num_slices)
            if place < self.num_levels or place >= len(self.spec.stages) - 2:
                # Without gradients the next block changes x itself.
                ends.append((x if torch.is_grad_enabled() else x.clone()).permute(0, 3, 1, 2))
        embedding = by_parts(self.neck, *ends[-2:]) + self.no_mem_embed[0, 0, :, None, None]
        return Features(embedding=embedding, levels=tuple(ends[: self.num_levels]))

    def _places(self, slices: Float[Tensor, "s c h w"]) -> Float[Tensor, "s h2 w2 c2"]:
        return self.trunk.places(trained_pixels(slices, self.spec.pixel_mean, self.spec.pixel_std))

    def _block(self, block: nn.Module, x: Tensor, increments: Increments | None, num_slices: int) -> Tensor:
        """Tokens through a block."""
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, x, increments, num_slices, use_reentrant=False)
        return block(x, increments, num_slices)


def hiera_memory(load: Load) -> EncoderMemory:
    """What a Hiera takes for one slice of a load. The blocks between the first stages are the largest."""
    spec, width, learns = load.sizes(HieraSpec), load.precision_bytes, load.built.trained == "all"
    blocks = _block_sizes(spec, load)
    kept = [_block_bytes(load, block, scores=1) for block in blocks]
    first = spec.stages[0]
    return EncoderMemory(
        tables=4.0 * first.dim * load.pixels / first.stride**2,
        stem=(4.0 * RGB + width * first.dim / first.stride**2) * load.pixels if learns else 0.0,
        blocks=sum(kept),
        residuals=sum(4.0 * block.before.dim * block.places_before for block in blocks),
        again=max(_block_bytes(load, block, scores=3) + _gradient_bytes(load, block) for block in blocks),
        levels=4.0 * load.pixels * sum(level.channels / level.stride**2 for level in spec.levels),
        block=max(_block_at_once(load, block) for block in blocks),
        held=max(block.places_before * 2 * (4.0 * block.before.dim) for block in blocks),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _BlockSizes:
    """A block on a slice: its stage and the one of its input, their places, and (queries x keys) of all windows."""

    before: StageSpec
    stage: StageSpec
    places_before: float
    places: float
    scores: float


def _block_sizes(spec: HieraSpec, load: Load) -> list[_BlockSizes]:
    sizes: list[_BlockSizes] = []
    before = spec.stages[0]
    for stage in spec.stages:
        for _ in range(stage.depth):
            places_before, places = (load.pixels / one.stride**2 for one in (before, stage))
            rows, columns = (side // before.stride for side in load.canvas)
            side = before.window
            windows, keys = -(-rows // side) * -(-columns // side), float(side**2)
            if len(sizes) in spec.global_blocks:
                windows, keys = 1, places_before
            scores = windows * keys**2 * places / places_before
            sizes.append(
                _BlockSizes(before=before, stage=stage, places_before=places_before, places=places, scores=scores)
            )
            before = stage
    return sizes


def _block_bytes(load: Load, block: _BlockSizes, *, scores: int) -> float:
    """Bytes that a block keeps for the backward pass of a slice, with `scores` arrays of (queries x keys), if any."""
    plan, width, dim = load.built, load.precision_bytes, block.stage.dim
    learns, adapted = plan.trained == "all", plan.increment != "none"
    changes = block.places != block.places_before
    before, after = (
        one.dim + 3 * min(plan.adapter_channels, one.dim // 2) if plan.adapters in ("both", place) else 0
        for one, place in ((block.before, "before"), (block.stage, "after"))
    )
    residuals = block.before.dim * block.places_before * (1 + bool(before)) + dim * block.places * (1 + bool(after))
    projected = block.before.dim if learns or adapted else 0
    increments = 6 * plan.increment_rank if adapted else 0
    attention = block.places_before * (projected + increments + 5 * dim) + block.places * 2 * dim
    pooled = block.places_before * 2 * dim + block.places * 4 * dim if changes else 0.0  # places are stored as int64
    hidden = load.sizes(HieraSpec).mlp_ratio * dim
    mlp = block.places * (2 * hidden + 3 * dim if learns else hidden)
    values = block.places_before * before + block.places * after + attention + pooled + mlp
    values += 0 if load.fused else scores * block.stage.heads * block.scores
    return 4 * residuals + width * values


def _gradient_bytes(load: Load, block: _BlockSizes) -> float:
    """Bytes of the gradients within a block, of its attention or its MLP, besides those of the scores."""
    hidden = load.sizes(HieraSpec).mlp_ratio
    return load.precision_bytes * block.stage.dim * max(8 * block.places_before, (2 + 2 * hidden) * block.places)


def _block_at_once(load: Load, block: _BlockSizes) -> float:
    """Bytes that a block needs for a moment without gradients."""
    dim, ratio = block.stage.dim, load.sizes(HieraSpec).mlp_ratio
    attention = 6 * dim * block.places_before + (0 if load.fused else 2 * block.stage.heads * block.scores)
    return load.precision_bytes * max(attention, (1 + 2 * ratio) * dim * block.places)
