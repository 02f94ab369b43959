"""SliceEncoder: SAM's image encoder adapted to windows of slices, or our small one with a convolutional stem."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from masam_auto.core.encoder_sizes import EncoderSpec
from masam_auto.core.plan import NetworkPlan
from masam_auto.network.adapter import Adapter3D
from masam_auto.network.attention import Attention
from masam_auto.network.fact import Increments, find_increments
from masam_auto.network.sam import LayerNorm2d, MLPBlock, PatchEmbed
from masam_auto.network.slicewise import add
from masam_auto.network.stem import Stem


class Features(NamedTuple):
    """The decoder's input: the token grid, and the levels to fuse (finest first; empty unless requested)."""

    embedding: Float[Tensor, "s c h w"]
    levels: tuple[Float[Tensor, "s _ _ _"], ...]


class Block(nn.Module):
    """SAM's transformer block, with one adapter before the attention and one after it, before the MLP."""

    def __init__(self, spec: EncoderSpec, plan: NetworkPlan, *, number: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.number = number
        self.adapter_before = _adapter(spec, plan) if plan.adapters in ("both", "before") else None
        self.norm1 = nn.LayerNorm(spec.dim, eps=1e-6)
        windowed = number not in spec.global_blocks
        self.attn = Attention(
            dim=spec.dim,
            heads=spec.heads,
            grid=(spec.window, spec.window) if windowed else grid,
            windowed=windowed,
        )
        self.adapter_after = _adapter(spec, plan) if plan.adapters in ("both", "after") else None
        self.norm2 = nn.LayerNorm(spec.dim, eps=1e-6)
        self.mlp = MLPBlock(embedding_dim=spec.dim, mlp_dim=int(spec.dim * spec.mlp_ratio))
        # From scratch, a block that starts as the identity learns faster (measured); a frozen one must not be it.
        if plan.weights == "none" and plan.trained == "all":
            for last in (self.attn.proj, self.mlp.lin2):
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)

    def forward(
        self, x: Float[Tensor, "s h w c"], increments: Increments | None, num_slices: int
    ) -> Float[Tensor, "s h w c"]:
        """Tokens of slices through the block; without gradients, in place."""
        if self.adapter_before is not None:
            x = self.adapter_before(x, num_slices)
        x = add(x, lambda part: self.attn(self.norm1(part), increments, self.number), x)
        if self.adapter_after is not None:
            x = self.adapter_after(x, num_slices)
        return add(x, lambda part: self.mlp(self.norm2(part)), x)


class ChannelNorm(nn.Module):
    """SAM's LayerNorm2d, over channels at each pixel, with the fused kernel: same results, a third of the memory."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Float[Tensor, "s c h w"]) -> Float[Tensor, "s c h w"]:
        """Normalised features."""
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, eps=1e-6)
        return x.permute(0, 3, 1, 2)


class SliceEncoder(nn.Module):
    """Slices of whole windows -> features. SAM's state-dict names; `increments`, adapters and `stem` are additions.

    `activation_checkpointing` recomputes each block in the backward pass instead of keeping its activations.
    """

    def __init__(
        self, spec: EncoderSpec, plan: NetworkPlan, *, canvas: tuple[int, int], in_channels: int, with_levels: bool
    ) -> None:
        super().__init__()
        grid = (canvas[0] // spec.token_stride, canvas[1] // spec.token_stride)
        self.taps = spec.taps if with_levels else ()
        self.activation_checkpointing = False
        self.stem = Stem(in_channels, spec.stem, spec=spec.conv) if spec.stem else None
        self.patch_embed = PatchEmbed(
            kernel_size=(spec.patch, spec.patch),
            stride=(spec.patch, spec.patch),
            in_chans=spec.stem[-1] if spec.stem else in_channels,
            embed_dim=spec.dim,
        )
        self.pos_embed = nn.Parameter(torch.zeros(1, *grid, spec.dim))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.increments = find_increments(plan.increment)(
            dim=spec.dim,
            depth=spec.depth,
            rank=plan.increment_rank,
            scale=plan.increment_scale,
            dropout=plan.increment_dropout,
        )
        self.blocks = nn.ModuleList(Block(spec, plan, number=number, grid=grid) for number in range(spec.depth))
        self.neck = _neck(spec)

    def forward(self, slices: Float[Tensor, "s c h w"], num_slices: int) -> Features:
        """Features of slices, window by window; `num_slices` is N, any."""
        levels = self.stem(slices, num_slices) if self.stem is not None else ()
        x = self.patch_embed(levels[-1] if levels else slices) + self.pos_embed
        for block in self.blocks:
            if self.activation_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, self.increments, num_slices, use_reentrant=False)
            else:
                x = block(x, self.increments, num_slices)
            if block.number in self.taps:
                # Without gradients the next block changes x itself.
                levels = (*levels, (x if torch.is_grad_enabled() else x.clone()).permute(0, 3, 1, 2))
        return Features(embedding=self.neck(x.permute(0, 3, 1, 2)), levels=levels)


def _adapter(spec: EncoderSpec, plan: NetworkPlan) -> Adapter3D:
    return Adapter3D(dim=spec.dim, channels=plan.adapter_channels, start=plan.adapter_start)


def _neck(spec: EncoderSpec) -> nn.Sequential:
    if spec.neck == "norm":
        return nn.Sequential(ChannelNorm(spec.dim))
    return conv_neck(spec.dim, spec.embedding)


def conv_neck(dim: int, embedding: int) -> nn.Sequential:
    """SAM's neck: from the last block's width to the decoder's."""
    return nn.Sequential(
        nn.Conv2d(dim, embedding, kernel_size=1, bias=False),
        LayerNorm2d(embedding),
        nn.Conv2d(embedding, embedding, kernel_size=3, padding=1, bias=False),
        LayerNorm2d(embedding),
    )
