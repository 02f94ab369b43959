"""The sizes that an image encoder is built from, with its decoder: one class for each kind of encoder."""

from dataclasses import dataclass
from typing import Literal

from masam_auto.core.checks import check, check_finite, check_limits

# The encoder name in plans that give their own sizes, in `NetworkPlan.custom_encoder`.
CUSTOM = "custom"

LIMITS = {
    "dim": 1 << 14,
    "depth": 256,
    "heads": 256,
    "window": 1 << 10,
    "token_stride": 64,
    "embedding": 1 << 14,
    "decoder_heads": 256,
    "decoder_mlp": 1 << 16,
    "adapter_channels": 1 << 14,
}
LARGEST_MLP_RATIO = 64
MOST_REGISTERS = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class ConvSpec:
    """`norm` is a name in `network.stem.NORMS`. `across`: add a convolution across slices after each in-plane one."""

    norm: str
    across: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class LevelSpec:
    """Features that a multi-scale decoder fuses: `channels` at `stride` in the encoder, lifted to `width` at `target`.

    Strides are in canvas pixels. A level of the stem is fused at its own stride (`target` equals `stride`).
    """

    channels: int
    stride: int
    width: int
    target: int


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderSpec:
    """Sizes of an encoder and of the decoder parts that belong to it.

    `global_blocks` attend to the whole slice, the others within windows of `window` x `window` tokens. `stem`:
    channels of the convolutional levels before the tokens; () for SAM's patch embedding. `neck`: SAM's convolutions to
    `embedding` channels, or only a layer norm (embedding = dim). `levels`: what a multi-scale decoder fuses, finest
    first; without a stem each is the output of one block of `taps`. `conv`: the blocks of the stem and the multi-scale
    decoder. `decoder_heads`, `decoder_mlp`: SAM's two-way transformer. `adapter_channels`: the size a plan should use.
    """

    dim: int
    depth: int
    heads: int
    global_blocks: tuple[int, ...]
    window: int = 14
    mlp_ratio: float = 4.0
    token_stride: int = 16
    stem: tuple[int, ...] = ()
    neck: Literal["conv", "norm"] = "conv"
    embedding: int = 256
    taps: tuple[int, ...] = ()
    levels: tuple[LevelSpec, ...]
    conv: ConvSpec
    decoder_heads: int = 8
    decoder_mlp: int = 2048
    adapter_channels: int = 384

    def __post_init__(self) -> None:
        """Raises PlanError: sizes in a plan may be written by hand."""
        where = "encoder sizes"
        check_finite(where, self)
        check_limits(f"{where}: ", self, LIMITS)
        check(
            0 < self.mlp_ratio <= LARGEST_MLP_RATIO,
            f"{where}: mlp_ratio must be above 0 and at most {LARGEST_MLP_RATIO}, got {self.mlp_ratio}",
        )
        check(self.dim % self.heads == 0, f"{where}: heads ({self.heads}) must divide dim ({self.dim})")
        check(
            self.embedding % (2 * self.decoder_heads) == 0,
            f"{where}: twice decoder_heads ({self.decoder_heads}) must divide embedding ({self.embedding})",
        )
        check(
            self.token_stride & (self.token_stride - 1) == 0,
            f"{where}: token_stride must be a power of 2, got {self.token_stride}",
        )
        check(
            all(0 <= block < self.depth for block in (*self.global_blocks, *self.taps)),
            f"{where}: global_blocks and taps must be within 0..{self.depth - 1}, got {self.global_blocks}, "
            f"{self.taps}",
        )
        check(self.neck == "conv" or self.embedding == self.dim, f"{where}: with neck norm, embedding must be dim")
        check(bool(self.stem) != bool(self.taps), f"{where}: give either stem or taps as the source of the levels")
        check(
            len(self.levels) == len(self.stem or self.taps),
            f"{where}: levels must have one entry for each of {'stem' if self.stem else 'taps'}",
        )

    @property
    def canvas_unit(self) -> int:
        """Canvas sides are multiples of this, in px."""
        return self.token_stride

    @property
    def patch(self) -> int:
        """Side of the patch that becomes one token, in pixels of its input (canvas, or the stem's last level)."""
        return self.token_stride // 2 ** (len(self.stem) - 1) if self.stem else self.token_stride

    @property
    def windowed(self) -> int:
        """Side in tokens of the attention windows; 0 if every block attends globally."""
        return self.window if len(self.global_blocks) < self.depth else 0


@dataclass(frozen=True, kw_only=True, slots=True)
class StageSpec:
    """A stage of a hierarchical encoder: `depth` blocks of width `dim` at a stride in canvas px.

    `heads` of attention within windows of `window` x `window` of the stage's places; 0 for a stage of convolutions.
    """

    dim: int
    depth: int
    stride: int
    heads: int = 0
    window: int = 0

    def __post_init__(self) -> None:
        check_limits("encoder sizes: ", self, {name: LIMITS[name] for name in ("dim", "depth")})
        check(
            self.heads == 0 or (self.dim % self.heads == 0 and self.window > 0),
            f"encoder sizes: heads ({self.heads}) must divide dim ({self.dim}), and window must be above 0",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class TinyViTSpec:
    """Sizes of a TinyViT, a hierarchical encoder, and of the decoder parts that belong to it.

    The first stage has convolutions, the others attention. The last stage's stride is the tokens'. `pixel_mean` and
    `pixel_std` are subtracted from, and divide, the three channels of images in 0..1; () if the weights were trained
    without. `levels`: what a multi-scale decoder fuses, the ends of the first stages, finest first. The other fields
    are those of `EncoderSpec`. An adapter is at most half as wide as its stage.

    Source: Wu et al., TinyViT, ECCV 2022.
    """

    stages: tuple[StageSpec, ...]
    expansion: int = 4
    mlp_ratio: float = 4.0
    pixel_mean: tuple[float, ...] = ()
    pixel_std: tuple[float, ...] = ()
    embedding: int = 256
    levels: tuple[LevelSpec, ...]
    conv: ConvSpec = ConvSpec(norm="instance", across=False)
    decoder_heads: int = 8
    decoder_mlp: int = 2048
    adapter_channels: int = 384

    def __post_init__(self) -> None:
        check(
            len(self.stages) > 1 and not self.stages[0].heads and all(stage.heads for stage in self.stages[1:]),
            "encoder sizes: a TinyViT has a first stage without heads, and others with",
        )

    @property
    def token_stride(self) -> int:
        """Side of a token in canvas px."""
        return self.stages[-1].stride

    @property
    def canvas_unit(self) -> int:
        """Canvas sides are multiples of this, in px."""
        return self.token_stride

    @property
    def windowed(self) -> int:
        """Side in tokens of the largest attention windows."""
        return max(stage.window * stage.stride for stage in self.stages) // self.token_stride


@dataclass(frozen=True, kw_only=True, slots=True)
class DinoSpec:
    """Sizes of a vision transformer as DINOv2 and DINOv3 have it, and of the decoder parts that belong to it.

    A token is a patch of `token_stride` px, which need not be a power of 2. All blocks attend to the whole slice, and
    to a class token and `registers` further tokens. `positions`: side in tokens of the table of positions; 0 for rotary
    positions, and keys without a bias. `levels`: what a multi-scale decoder fuses, the outputs of the blocks `taps`,
    finest first. The other fields are those of `EncoderSpec` and `TinyViTSpec`.

    Source: Oquab et al., DINOv2, TMLR 2024; Darcet et al., Vision transformers need registers, ICLR 2024; Simeoni et
    al., DINOv3, 2025.
    """

    dim: int
    depth: int
    heads: int
    token_stride: int
    registers: int
    positions: int
    norm_eps: float
    mlp_ratio: float = 4.0
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]
    embedding: int = 256
    taps: tuple[int, ...]
    levels: tuple[LevelSpec, ...]
    conv: ConvSpec = ConvSpec(norm="instance", across=False)
    decoder_heads: int = 8
    decoder_mlp: int = 2048
    adapter_channels: int

    def __post_init__(self) -> None:
        where = "encoder sizes"
        check_finite(where, self)
        check_limits(f"{where}: ", self, {name: most for name, most in LIMITS.items() if name != "window"})
        check(
            0 < self.mlp_ratio <= LARGEST_MLP_RATIO,
            f"{where}: mlp_ratio must be above 0 and at most {LARGEST_MLP_RATIO}, got {self.mlp_ratio}",
        )
        check(
            0 <= self.registers <= MOST_REGISTERS and 0 <= self.positions <= LIMITS["window"],
            f"{where}: registers must be from 0 to {MOST_REGISTERS}, and positions to {LIMITS['window']}, got "
            f"{self.registers} and {self.positions}",
        )
        check(
            self.embedding % (2 * self.decoder_heads) == 0,
            f"{where}: twice decoder_heads ({self.decoder_heads}) must divide embedding ({self.embedding})",
        )
        check(
            self.dim % self.heads == 0 and (self.positions > 0 or self.dim // self.heads % 4 == 0),
            f"{where}: heads ({self.heads}) must divide dim ({self.dim}), into multiples of 4 for rotary positions",
        )
        check(
            len(self.taps) == len(self.levels) and all(0 <= block < self.depth for block in self.taps),
            f"{where}: taps must be within 0..{self.depth - 1}, one for each level, got {self.taps}",
        )

    @property
    def canvas_unit(self) -> int:
        """Canvas sides are multiples of this, in px."""
        return self.token_stride

    @property
    def windowed(self) -> int:
        """Side in tokens of the attention windows: 0, every block attends to the whole slice."""
        return 0


@dataclass(frozen=True, kw_only=True, slots=True)
class HieraSpec:
    """Sizes of SAM 2's Hiera, a hierarchical encoder, and of the decoder parts that belong to it.

    Every stage has attention; its stride is twice that of the stage before. `global_blocks`, counted through all
    stages, attend to the whole slice. `background`: side of the coarse table of positions. The decoder's tokens are at
    the stride of the last stage but one, which the last stage's features are added to. The other fields are those of
    `TinyViTSpec`.

    Source: Ryali et al., Hiera, ICML 2023; Bolya et al., Window Attention is Bugged, ICLR 2024 (the positions); Ravi et
    al., SAM 2, 2024.
    """

    stages: tuple[StageSpec, ...]
    global_blocks: tuple[int, ...]
    background: int
    mlp_ratio: float = 4.0
    pixel_mean: tuple[float, ...] = ()
    pixel_std: tuple[float, ...] = ()
    embedding: int = 256
    levels: tuple[LevelSpec, ...]
    conv: ConvSpec = ConvSpec(norm="instance", across=False)
    decoder_heads: int = 8
    decoder_mlp: int = 2048
    adapter_channels: int = 384

    def __post_init__(self) -> None:
        strides = tuple(stage.stride for stage in self.stages)
        check(
            len(strides) > 1 and strides == tuple(4 << place for place in range(len(strides))),
            f"encoder sizes: the strides of a Hiera are 4, 8, 16, ..., got {strides}",
        )
        check(all(stage.heads for stage in self.stages), "encoder sizes: every stage of a Hiera has heads")
        check(
            all(stage.window % 2 == 0 for stage in self.stages[:-1]),
            "encoder sizes: windows of a Hiera are even, except in its last stage",
        )
        depth = sum(stage.depth for stage in self.stages)
        check(
            all(0 <= block < depth for block in self.global_blocks),
            f"encoder sizes: global_blocks must be within 0..{depth - 1}, got {self.global_blocks}",
        )

    @property
    def token_stride(self) -> int:
        """Side of a token of the decoder in canvas px."""
        return self.stages[-2].stride

    @property
    def canvas_unit(self) -> int:
        """Canvas sides are multiples of this, in px: the last stage's stride."""
        return self.stages[-1].stride

    @property
    def windowed(self) -> int:
        """Side of the largest attention windows, in places of the last stage."""
        return max(stage.window * stage.stride for stage in self.stages) // self.canvas_unit


EncoderSizes = EncoderSpec | TinyViTSpec | DinoSpec | HieraSpec


def sam_encoder(
    *,
    dim: int,
    depth: int,
    heads: int,
    global_blocks: tuple[int, ...],
    window: int = 14,
    mlp_ratio: float = 4.0,
    embedding: int = 256,
    decoder_mlp: int = 2048,
) -> EncoderSpec:
    """An encoder in SAM's form. A multi-scale decoder fuses the first three global blocks' outputs, earliest finest.

    With fewer global blocks it fuses those; with none, it fuses the last block's output.
    """
    taps = global_blocks[:3] or (depth - 1,)
    return EncoderSpec(
        dim=dim,
        depth=depth,
        heads=heads,
        global_blocks=global_blocks,
        window=window,
        mlp_ratio=mlp_ratio,
        embedding=embedding,
        taps=taps,
        levels=tuple(
            LevelSpec(channels=dim, stride=16, width=16 * target, target=target) for target in (2, 4, 8)[: len(taps)]
        ),
        conv=ConvSpec(norm="instance", across=False),
        decoder_mlp=decoder_mlp,
    )


def check_sam_form(where: str, spec: EncoderSpec) -> None:
    """Raise PlanError for sizes not of SAM's form or too narrow for its decoders. `where` names the field."""
    own = ("dim", "depth", "heads", "global_blocks", "window", "mlp_ratio", "embedding", "decoder_mlp")
    check(
        spec == sam_encoder(**{name: getattr(spec, name) for name in own}),
        f"{where}: must have the form of SAM's encoders; only {', '.join(own)} may be chosen",
    )
    check(spec.embedding >= 2 * spec.token_stride, f"{where}: embedding must be at least 32, got {spec.embedding}")
