"""Mask decoders: SAM's, MA-SAM's progressive one, and a multi-scale one that fuses the encoder's levels."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from masam_auto.core.encoder_sizes import EncoderSizes
from masam_auto.core.plugins import find_entry
from masam_auto.network.activations import Load
from masam_auto.network.encoder import ChannelNorm, Features
from masam_auto.network.sam import MLP, MaskDecoder, TwoWayTransformer
from masam_auto.network.slicewise import by_parts
from masam_auto.network.stem import ConvBlock


class TokenDecoder(MaskDecoder):
    """SAM's mask decoder with one mask token per output: two-way transformer, upscaling, and a hyper-network for each.

    It receives boxes as SAM's sparse prompt tokens.
    """

    prompt: Literal["tokens", "mask"] = "tokens"

    def __init__(self, spec: EncoderSizes, *, num_outputs: int, steps: int) -> None:
        transformer = TwoWayTransformer(
            depth=2, embedding_dim=spec.embedding, mlp_dim=spec.decoder_mlp, num_heads=spec.decoder_heads
        )
        super().__init__(
            transformer_dim=spec.embedding,
            transformer=transformer,
            num_multimask_outputs=num_outputs - 1,
            iou_head_depth=3,
            iou_head_hidden_dim=spec.embedding,
        )
        self.token_stride = spec.token_stride
        self.output_upscaling = _upscaling(spec.embedding, steps)
        width = spec.embedding // 2 ** (steps + 1)
        self.output_hypernetworks_mlps = nn.ModuleList(
            MLP(spec.embedding, spec.embedding, width, 3) for _ in range(num_outputs)
        )

    def forward(
        self,
        features: Features,
        *,
        positions: Float[Tensor, "1 c h w"],
        sparse: Float[Tensor, "p t c"],
        dense: Float[Tensor, "p c h w"],
        num_slices: int,
    ) -> Float[Tensor, "s k height width"]:
        """Logits at canvas resolution. Prompts are for all slices (p = 1) or one set per slice (p = s)."""
        sets = (sparse.expand(len(features.embedding), -1, -1), dense.expand(len(features.embedding), -1, -1, -1))
        return by_parts(lambda image, *prompts: self._logits(image, positions, *prompts), features.embedding, *sets)

    def _logits(
        self,
        embedding: Float[Tensor, "s c h w"],
        positions: Float[Tensor, "1 c h w"],
        sparse: Float[Tensor, "s t c"],
        dense: Float[Tensor, "s c h w"],
    ) -> Float[Tensor, "s k height width"]:
        slices, channels, height, width = embedding.shape
        tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([tokens.expand(sparse.shape[0], -1, -1), sparse], dim=1)
        queries, image = self.transformer(embedding + dense, positions, tokens)
        image = image.transpose(1, 2).reshape(slices, channels, height, width)
        upscaled = self.output_upscaling(image)
        weights = torch.stack(
            [mlp(queries[:, 1 + output]) for output, mlp in enumerate(self.output_hypernetworks_mlps)], dim=1
        )
        logits = (weights @ upscaled.flatten(2)).unflatten(2, upscaled.shape[2:])
        canvas = (height * self.token_stride, width * self.token_stride)
        if logits.shape[2:] != canvas:
            logits = F.interpolate(logits, size=canvas, mode="bilinear", align_corners=False)
        return logits


def _upscaling(channels: int, steps: int) -> nn.Sequential:
    """`steps` transposed convolutions of stride 2 with GELU, and a norm after all but the last.

    Widths are c/4, c/8, c/16, ... With two steps this is SAM's upscaling, name by name.
    """
    layers: list[nn.Module] = []
    for step in range(steps):
        width = channels // 2 ** (step + 2)
        source = channels if step == 0 else channels // 2 ** (step + 1)
        layers.append(nn.ConvTranspose2d(source, width, kernel_size=2, stride=2))
        if step < steps - 1:
            layers.append(ChannelNorm(width))
        layers.append(nn.GELU())
    return nn.Sequential(*layers)


class MultiscaleDecoder(nn.Module):
    """U-shaped: the tokens are upsampled level by level and fused with the encoder's features; ends in a 1 x 1 head.

    Levels at the tokens' resolution (SAM's blocks) are first lifted to their resolution by a transposed convolution. A
    box arrives as SAM's dense prompt: its mask, downscaled to the tokens.
    """

    prompt: Literal["tokens", "mask"] = "mask"

    def __init__(self, spec: EncoderSizes, *, num_outputs: int) -> None:
        super().__init__()
        self.lifts, self.ups, self.fusions = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        channels, stride = spec.embedding, spec.token_stride
        for level in reversed(spec.levels):
            lifted = level.stride != level.target or level.channels != level.width
            self.lifts.append(
                _up(level.channels, level.width, level.stride // level.target) if lifted else nn.Identity()
            )
            self.ups.append(_up(channels, level.width, stride // level.target))
            self.fusions.append(ConvBlock(2 * level.width, level.width, spec=spec.conv))
            channels, stride = level.width, level.target
        # If the finest level is coarser than the canvas, the rest is upsampled without fusing.
        self.finish = _up(channels, channels // 2, stride) if stride > 1 else nn.Identity()
        self.head = nn.Conv2d(channels // 2 if stride > 1 else channels, num_outputs, kernel_size=1)

    def forward(
        self,
        features: Features,
        *,
        positions: Float[Tensor, "1 c h w"],
        sparse: Float[Tensor, "p t c"],
        dense: Float[Tensor, "p c h w"],
        num_slices: int,
    ) -> Float[Tensor, "s k height width"]:
        """Logits at canvas resolution; `num_slices` is N. Positions and sparse prompts are not used."""
        x = features.embedding + dense
        for level, lift, up, fuse in zip(reversed(features.levels), self.lifts, self.ups, self.fusions, strict=True):
            x = fuse(torch.cat([up(x), lift(level)], dim=1), num_slices)
        return self.head(self.finish(x))


def _up(in_channels: int, out_channels: int, factor: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(in_channels, out_channels, kernel_size=factor, stride=factor)


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderMemory:
    """Bytes that a decoder takes per slice. `kept`: for the backward pass. `held`: in prediction, plus `part` for what
    a CPU computes slice by slice (network/slicewise.py). The encoder's levels and the logits are not counted.
    """

    kept: float
    held: float
    part: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoder:
    """A decoder, and everything that other modules need to know about it."""

    build: Callable[..., Any]
    """Called as build(spec, num_outputs=K). Returns a module called like `TokenDecoder.forward`. Its `prompt` says
    whether it takes a box as SAM's "tokens" or as SAM's "mask"."""
    memory: Callable[[Load], DecoderMemory]
    """Memory per slice."""
    fuses_levels: bool = False
    """Whether it needs the encoder's levels in addition to its last features."""
    features_held: int = 8
    """Values per pixel that a pass without gradients on a CPU holds, in addition to the logits."""


def sam_decoder(spec: EncoderSizes, *, num_outputs: int) -> TokenDecoder:
    """SAM's x4 upscaling, then bilinear to the canvas."""
    return TokenDecoder(spec, num_outputs=num_outputs, steps=2)


def progressive_decoder(spec: EncoderSizes, *, num_outputs: int) -> TokenDecoder:
    """Transposed convolutions all the way to the canvas: four for a token stride of 16. Four also for one of 14, and
    from there bilinear to the canvas, which is a little smaller.

    Source: Chen et al., MA-SAM, Medical Image Analysis 98 (2024) 103310, progressive upsampling.
    """
    return TokenDecoder(spec, num_outputs=num_outputs, steps=_steps_to_canvas(spec))


def _steps_to_canvas(spec: EncoderSizes) -> int:
    return (spec.token_stride - 1).bit_length()


def _token_memory(load: Load, steps: int) -> DecoderMemory:
    """Normed inputs and results are float32; the next step's input is cast. The last step has no norm."""
    width, embedding, tokens = load.precision_bytes, load.encoder.embedding, load.tokens
    # c/4 at twice the tokens' resolution, and so on
    *normed, last = (embedding / 2 ** (step + 2) * tokens * 4 ** (step + 1) for step in range(steps))
    upscaling = sum(normed) * (8 + width) + 2 * width * last
    return DecoderMemory(
        kept=20 * embedding * tokens * width + upscaling, held=8.0 * tokens * embedding, part=10.0 * last
    )


def _multiscale_memory(load: Load) -> DecoderMemory:
    """Every fusion keeps about five values; in prediction the finest one needs most."""
    width, pixels, levels = load.precision_bytes, load.pixels, load.encoder.levels
    finest = width * 5 * levels[0].width * pixels / levels[0].target ** 2
    return DecoderMemory(
        kept=width * pixels * 5 * sum(level.width / level.target**2 for level in levels),
        held=8.0 * load.tokens * load.encoder.embedding + finest,
    )


DECODERS: dict[str, Decoder] = {
    "sam": Decoder(build=sam_decoder, memory=lambda load: _token_memory(load, 2)),
    "progressive": Decoder(
        build=progressive_decoder, memory=lambda load: _token_memory(load, _steps_to_canvas(load.encoder))
    ),
    "multiscale": Decoder(build=MultiscaleDecoder, memory=_multiscale_memory, fuses_levels=True, features_held=32),
}


def choose_decoder(name: str) -> Decoder:
    """Find a decoder by name, ours or a plug-in's. Raises PlanError listing the known ones."""
    return find_entry("decoders", name, DECODERS, field="network.decoder", form=Decoder)
