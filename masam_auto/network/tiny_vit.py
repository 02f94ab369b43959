"""TinyViTEncoder: a hierarchical image encoder, adapted to windows of slices. LiteMedSAM and MobileSAM have one."""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from masam_auto.core.encoder_sizes import StageSpec, TinyViTSpec
from masam_auto.core.plan import NetworkPlan
from masam_auto.network.activations import EncoderMemory, Load, count_adapters
from masam_auto.network.adapter import Adapter3D
from masam_auto.network.attention import attend, project
from masam_auto.network.encoder import Features, conv_neck
from masam_auto.network.fact import Increments, find_increments
from masam_auto.network.slicewise import add, by_parts

RGB = 3


class ConvNorm(nn.Module):
    """A convolution and its batch norm, folded into one convolution unless the norm's statistics are being learned."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int = 1, *, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.c = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Float[Tensor, "s c h w"]) -> Float[Tensor, "s c2 h2 w2"]:
        """Normalised features."""
        if self.bn.training:
            return self.bn(self.c(x))
        assert self.bn.running_mean is not None and self.bn.running_var is not None
        factor = self.bn.weight * torch.rsqrt(self.bn.running_var + self.bn.eps)
        weight, bias = self.c.weight * factor[:, None, None, None], self.bn.bias - self.bn.running_mean * factor
        return F.conv2d(x, weight, bias, self.c.stride, self.c.padding, groups=self.c.groups)


class PatchConvolutions(nn.Module):
    """Pixels to the first stage: two convolutions, of 1 x 1 px at stride 1, or of 3 x 3 px and stride 2 each."""

    def __init__(self, in_channels: int, first: StageSpec) -> None:
        super().__init__()
        kernel, stride = (1, 1) if first.stride == 1 else (3, 2)
        self.seq = nn.Sequential(
            ConvNorm(in_channels, first.dim // 2, kernel, stride=stride),
            nn.GELU(),
            ConvNorm(first.dim // 2, first.dim, kernel, stride=stride),
        )

    def forward(self, x: Float[Tensor, "s c h w"]) -> Float[Tensor, "s c2 h2 w2"]:
        """Features of the first stage."""
        return self.seq(x)


class MBConv(nn.Module):
    """Inverted bottleneck: widen, convolve each channel, narrow, add, GELU. It starts as GELU alone."""

    def __init__(self, dim: int, *, expansion: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(dim, dim * expansion)
        self.conv2 = ConvNorm(dim * expansion, dim * expansion, 3, groups=dim * expansion)
        self.conv3 = ConvNorm(dim * expansion, dim)
        nn.init.zeros_(self.conv3.bn.weight)

    def forward(self, x: Float[Tensor, "s c h w"]) -> Float[Tensor, "s c h w"]:
        """Features of the same shape."""
        return F.gelu(x + self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x))))))


class Merging(nn.Module):
    """To the next stage's width and stride."""

    def __init__(self, before: StageSpec, after: StageSpec) -> None:
        super().__init__()
        self.conv1 = ConvNorm(before.dim, after.dim)
        self.conv2 = ConvNorm(after.dim, after.dim, 3, stride=after.stride // before.stride, groups=after.dim)
        self.conv3 = ConvNorm(after.dim, after.dim)

    def forward(self, x: Float[Tensor, "s c h w"]) -> Float[Tensor, "s c2 h2 w2"]:
        """Features of the next stage."""
        return self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))


class WindowAttention(nn.Module):
    """Layer norm, then attention within windows, with a learned bias for each distance (rows, columns) in a window.

    Slices that are not whole windows are padded with zeros before the norm, and the padding is attended to. In the
    weights, rows of `qkv` go head by head: queries, keys and values of the first head, then of the next.
    """

    def __init__(self, stage: StageSpec) -> None:
        super().__init__()
        self.heads, self.window = stage.heads, stage.window
        self.norm = nn.LayerNorm(stage.dim)
        self.qkv = nn.Linear(stage.dim, 3 * stage.dim)
        self.proj = nn.Linear(stage.dim, stage.dim)
        self.attention_biases = nn.Parameter(torch.zeros(stage.heads, stage.window**2))

    def forward(
        self, x: Float[Tensor, "s h w c"], increments: Increments | None, block: int
    ) -> Float[Tensor, "s h w c"]:
        """Attention within each window; the `increments` of q and v are those of block number `block`."""
        slices, height, width, channels = x.shape
        side = self.window
        down, right = -(-height // side), -(-width // side)
        padded = F.pad(x, (0, 0, 0, right * side - width, 0, down * side - height))
        tokens = padded.view(slices, down, side, right, side, channels).transpose(2, 3).reshape(-1, side**2, channels)
        weight, rows = self._by_kind(self.qkv.weight), self._by_kind(self.qkv.bias)
        qkv = project(self.norm(tokens), weight, rows, increments, block)
        q, k, v = qkv.view(len(tokens), side**2, 3, self.heads, channels // self.heads).unbind(2)
        bias = self.attention_biases[:, bias_index(side, x.device)]
        out = attend(q, k, v, (channels // self.heads) ** -0.5, bias)
        out = out.reshape(slices, down, right, side, side, channels).transpose(2, 3)
        return self.proj(out.reshape(padded.shape)[:, :height, :width])

    def _by_kind(self, rows: Float[Tensor, "c3 *rest"]) -> Float[Tensor, "c3 *rest"]:
        """Rows of all queries, then all keys, then all values, as SAM has them and increments expect them."""
        return rows.unflatten(0, (self.heads, 3, -1)).transpose(0, 1).flatten(0, 2)


def bias_index(side: int, device: torch.device) -> Int[Tensor, "t t"]:
    """Column of the table of biases for each pair of places in a window: row distance times `side`, plus columns."""
    row, column = torch.meshgrid(*(torch.arange(side, device=device),) * 2, indexing="ij")
    rows, columns = ((place.flatten()[:, None] - place.flatten()[None]).abs() for place in (row, column))
    return rows * side + columns


class Mlp(nn.Module):
    """Layer norm, then two layers with GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "s h w c"]) -> Float[Tensor, "s h w c"]:
        """Changes to add to the tokens."""
        return self.fc2(F.gelu(self.fc1(self.norm(x))))


class TinyViTBlock(nn.Module):
    """Attention, a convolution of each channel, MLP; with one adapter before the attention and one after it."""

    def __init__(self, stage: StageSpec, plan: NetworkPlan, *, number: int, mlp_ratio: float) -> None:
        super().__init__()
        self.number = number
        self.adapter_before = stage_adapter(stage, plan) if plan.adapters in ("both", "before") else None
        self.attn = WindowAttention(stage)
        self.adapter_after = stage_adapter(stage, plan) if plan.adapters in ("both", "after") else None
        self.local_conv = ConvNorm(stage.dim, stage.dim, 3, groups=stage.dim)
        self.mlp = Mlp(stage.dim, int(stage.dim * mlp_ratio))

    def forward(
        self, x: Float[Tensor, "s h w c"], increments: Increments | None, num_slices: int
    ) -> Float[Tensor, "s h w c"]:
        """Tokens of slices through the block; without gradients, in place."""
        if self.adapter_before is not None:
            x = self.adapter_before(x, num_slices)
        x = add(x, lambda part: self.attn(part, increments, self.number), x)
        if self.adapter_after is not None:
            x = self.adapter_after(x, num_slices)
        x = by_parts(_on_channels(self.local_conv), x)
        return add(x, self.mlp, x)


class Stage(nn.Module):
    """Blocks of one width, and the step to the next stage, if there is one."""

    def __init__(self, blocks: Iterable[nn.Module], downsample: Merging | None) -> None:
        super().__init__()
        self.blocks, self.downsample = nn.ModuleList(blocks), downsample

    def merge(self, x: Float[Tensor, "s c h w"]) -> Float[Tensor, "s c2 h2 w2"]:
        """Features of the next stage; the last stage's own."""
        return x if self.downsample is None else by_parts(self.downsample, x)


class TinyViTEncoder(nn.Module):
    """Slices of whole windows -> features. State-dict names are MobileSAM's; `increments` and adapters are additions.

    One channel is shown as three equal ones. `increments` has the factors of each stage with attention: its blocks
    share them. Batch norms keep their statistics when they start from pretrained weights. If nothing before the first
    attention learns, it is computed without gradients.
    """

    def __init__(
        self, spec: TinyViTSpec, plan: NetworkPlan, *, canvas: tuple[int, int], in_channels: int, with_levels: bool
    ) -> None:
        super().__init__()
        self.spec, self.fixed_norms = spec, plan.weights == "sam"
        self.num_levels = len(spec.levels) if with_levels else 0
        self.activation_checkpointing = False
        self.patch_embed = PatchConvolutions(RGB if in_channels == 1 else in_channels, spec.stages[0])
        merges = [*(Merging(before, after) for before, after in itertools.pairwise(spec.stages)), None]
        stages = zip(spec.stages, merges, strict=True)
        self.layers = nn.ModuleList(Stage(_blocks(spec, stage, plan), merge) for stage, merge in stages)
        increments = [stage_increments(stage, plan) for stage in spec.stages[1:]]
        self.increments = nn.ModuleList(one for one in increments if one is not None)
        self.neck = conv_neck(spec.stages[-1].dim, spec.embedding)
        for module in self.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, slices: Float[Tensor, "s c h w"], num_slices: int) -> Features:
        """Features of slices, window by window; `num_slices` is N, any."""
        stages: list[Any] = list(self.layers)
        first, *others = stages
        learns = any(weight.requires_grad for part in (self.patch_embed, first) for weight in part.parameters())
        with contextlib.nullcontext() if learns else torch.no_grad():
            level = by_parts(self._convolutions, slices)
            x = first.merge(level)
        levels = [level] if self.num_levels else []
        for place, stage in enumerate(others):
            increments: Any = self.increments[place] if len(self.increments) else None
            x = self._attention(stage, x.permute(0, 2, 3, 1), increments, num_slices).permute(0, 3, 1, 2)
            levels += [x] if place + 1 < self.num_levels else []
            x = stage.merge(x)
        return Features(embedding=by_parts(self.neck, x), levels=tuple(levels))

    def _convolutions(self, slices: Float[Tensor, "s c h w"]) -> Float[Tensor, "s c2 h2 w2"]:
        """Slices up to the end of the first stage."""
        x = self.patch_embed(trained_pixels(slices, self.spec.pixel_mean, self.spec.pixel_std))
        first: Any = self.layers[0]
        for block in first.blocks:
            x = block(x)
        return x

    def _attention(
        self, stage: Any, x: Float[Tensor, "s h w c"], increments: Increments | None, num_slices: int
    ) -> Float[Tensor, "s h w c"]:
        """Tokens through a stage's blocks."""
        for block in stage.blocks:
            if self.activation_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, increments, num_slices, use_reentrant=False)
            else:
                x = block(x, increments, num_slices)
        return x

    def train(self, mode: bool = True) -> "TinyViTEncoder":
        """Training mode; norms with pretrained statistics keep them."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d) and self.fixed_norms:
                module.eval()
        return self


def _blocks(spec: TinyViTSpec, stage: StageSpec, plan: NetworkPlan) -> Iterator[nn.Module]:
    for number in range(stage.depth):
        if stage.heads:
            yield TinyViTBlock(stage, plan, number=number, mlp_ratio=spec.mlp_ratio)
        else:
            yield MBConv(stage.dim, expansion=spec.expansion)


def trained_pixels(
    slices: Float[Tensor, "s c h w"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Tensor, "s c2 h w"]:
    """Slices as an encoder's training images: one channel shown as three equal ones; three have the mean subtracted,
    and are divided by the deviation, if there are any.
    """
    if slices.shape[1] == 1:
        slices = slices.expand(-1, RGB, -1, -1).contiguous(memory_format=torch.channels_last)  # else all layers copy
    if not mean or slices.shape[1] != RGB:
        return slices
    return (slices - slices.new_tensor(mean)[:, None, None]) / slices.new_tensor(std)[:, None, None]


def stage_adapter(stage: StageSpec, plan: NetworkPlan) -> Adapter3D:
    """An adapter at most half as wide as its stage."""
    return Adapter3D(dim=stage.dim, channels=min(plan.adapter_channels, stage.dim // 2), start=plan.adapter_start)


def stage_increments(stage: StageSpec, plan: NetworkPlan) -> Increments | None:
    """The increments of a stage's blocks."""
    return find_increments(plan.increment)(
        dim=stage.dim,
        depth=stage.depth,
        rank=plan.increment_rank,
        scale=plan.increment_scale,
        dropout=plan.increment_dropout,
    )


def _on_channels(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    """A layer of (s, c, h, w) features, on tokens (s, h, w, c)."""
    return lambda x: layer(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def tiny_vit_memory(load: Load) -> EncoderMemory:
    """What a TinyViT takes for one slice of a load. The first stage is the peak: wide, and at the finest stride."""
    spec, width, learns = load.sizes(TinyViTSpec), load.precision_bytes, load.built.trained == "all"
    first, *others = spec.stages
    front = load.pixels / first.stride**2
    wide = first.dim * spec.expansion
    kept = {stage: _block_values(load, stage) * load.pixels / stage.stride**2 for stage in others}
    return EncoderMemory(
        tables=0.0,
        stem=width * front * (first.depth * (4 * wide + 2 * first.dim) + 4 * first.dim) if learns else 0.0,
        blocks=width * sum(stage.depth * kept[stage] for stage in others),
        residuals=width * sum(stage.depth * stage.dim * load.pixels / stage.stride**2 for stage in others),
        again=2 * width * max(kept.values()),  # with their gradients
        levels=width * load.pixels * sum(level.channels / level.stride**2 for level in spec.levels),
        block=width * front * (3 * wide + 2 * first.dim),
        held=width * load.pixels * max(2 * stage.dim / stage.stride**2 for stage in spec.stages),
        peak=width * front * (3 * wide + 2 * first.dim),
    )


def _block_values(load: Load, stage: StageSpec) -> float:
    """Values that one block keeps for each of its places for the backward pass."""
    plan, tokens = load.built, stage.window**2
    adapters, learns = count_adapters(plan), plan.trained == "all"
    adapter = 2 * stage.dim + 3 * min(plan.adapter_channels, stage.dim // 2)
    scores = 0 if load.fused else stage.heads * tokens
    hidden = load.sizes(TinyViTSpec).mlp_ratio * stage.dim
    mlp = 4 * stage.dim + 2 * hidden if learns else 2 * stage.dim + hidden
    return adapters * adapter + 8 * stage.dim + scores + mlp
