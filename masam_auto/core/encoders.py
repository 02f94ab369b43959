"""The image encoders: the sizes to build them from, and what planning needs to choose one."""

from dataclasses import dataclass
from typing import Literal, get_args

from masam_auto.core.checks import check, check_finite, check_limits
from masam_auto.core.plugins import find_entry

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


def _stem_levels(channels: tuple[int, ...]) -> tuple[LevelSpec, ...]:
    return tuple(
        LevelSpec(channels=width, stride=2**level, width=width, target=2**level) for level, width in enumerate(channels)
    )


def _tiny_vit(
    *,
    strides: tuple[int, int, int, int],
    levels: tuple[LevelSpec, ...],
    pixel_mean: tuple[float, ...] = (),
    pixel_std: tuple[float, ...] = (),
) -> TinyViTSpec:
    """TinyViT-5M: its stages at the given strides."""
    sizes = zip((64, 128, 160, 320), (2, 2, 6, 2), strides, (0, 4, 5, 10), (0, 7, 14, 7), strict=True)
    return TinyViTSpec(
        stages=tuple(
            StageSpec(dim=dim, depth=depth, stride=stride, heads=heads, window=window)
            for dim, depth, stride, heads, window in sizes
        ),
        levels=levels,
        pixel_mean=pixel_mean,
        pixel_std=pixel_std,
    )


# Of channels in 0..1. SAM's pixel mean and deviation are these times 255, MobileSAM's, SAM 2's and DINO's too.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Strides to which levels are lifted, finest first, by the tokens' stride: each must divide the next one.
_DINO_TARGETS = {14: (2, 14), 16: (2, 4, 8)}


def dino(size: str, *, patch: int, registers: int, positions: int, norm_eps: float) -> DinoSpec:
    """A ViT of DINOv2 or DINOv3: "s", "b" or "l", with patches of 14 or 16 px."""
    dim, depth, heads = {"s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16)}[size]
    targets = _DINO_TARGETS[patch]
    return DinoSpec(
        dim=dim,
        depth=depth,
        heads=heads,
        token_stride=patch,
        registers=registers,
        positions=positions,
        norm_eps=norm_eps,
        pixel_mean=IMAGENET_MEAN,
        pixel_std=IMAGENET_STD,
        taps=tuple(depth * (place + 1) // (len(targets) + 1) - 1 for place in range(len(targets))),
        levels=tuple(LevelSpec(channels=dim, stride=patch, width=16 * target, target=target) for target in targets),
        adapter_channels=min(384, dim // 2),
    )


def _hiera(
    *,
    dim: int,
    heads: int,
    depths: tuple[int, int, int, int],
    global_blocks: tuple[int, ...],
    background: int = 7,
    windows: tuple[int, int, int, int] = (8, 4, 14, 7),
) -> HieraSpec:
    """A Hiera of SAM 2.1: widths and heads double from stage to stage. `dim` and `heads` are the first stage's."""
    stages = tuple(
        StageSpec(dim=dim << place, depth=depth, stride=4 << place, heads=heads << place, window=window)
        for place, (depth, window) in enumerate(zip(depths, windows, strict=True))
    )
    return HieraSpec(
        stages=stages,
        global_blocks=global_blocks,
        background=background,
        levels=tuple(
            LevelSpec(channels=stage.dim, stride=stage.stride, width=8 * stage.stride, target=stage.stride // 2)
            for stage in stages[:-1]
        ),
        pixel_mean=IMAGENET_MEAN,
        pixel_std=IMAGENET_STD,
    )


# The encoder name in plans that give their own sizes, in `NetworkPlan.custom_encoder`.
CUSTOM = "custom"

# Source: vit_t's sizes were measured on Hippocampus (documentation/log.md); those of vit_b, vit_l and vit_h come from
# build_sam in segment-anything. lite_medsam and mobile_sam are a TinyViT-5M each: LiteMedSAM (bowang-lab/MedSAM, branch
# LiteMedSAM) begins with 1 x 1 convolutions at full resolution, MobileSAM (Zhang et al. 2023) with two of stride 2. The
# sizes of DINOv2's and DINOv3's ViTs come from hub/backbones.py in facebookresearch/dinov2 and dinov3, and those of SAM
# 2.1's Hiera from sam2/configs/sam2.1 in facebookresearch/sam2.
ENCODERS: dict[str, EncoderSizes] = {
    "vit_t": EncoderSpec(
        dim=128,
        depth=2,
        heads=4,
        global_blocks=(0, 1),
        mlp_ratio=2.0,
        token_stride=8,
        stem=(16, 48, 96),
        neck="norm",
        embedding=128,
        levels=_stem_levels((16, 48, 96)),
        conv=ConvSpec(norm="batch", across=True),
        decoder_heads=4,
        decoder_mlp=256,
        adapter_channels=32,
    ),
    "vit_b": sam_encoder(dim=768, depth=12, heads=12, global_blocks=(2, 5, 8, 11)),
    "vit_l": sam_encoder(dim=1024, depth=24, heads=16, global_blocks=(5, 11, 17, 23)),
    "vit_h": sam_encoder(dim=1280, depth=32, heads=16, global_blocks=(7, 15, 23, 31)),
    "lite_medsam": _tiny_vit(
        strides=(1, 2, 4, 4),
        levels=(
            LevelSpec(channels=64, stride=1, width=16, target=1),
            LevelSpec(channels=128, stride=2, width=48, target=2),
            LevelSpec(channels=160, stride=4, width=96, target=4),
        ),
    ),
    "mobile_sam": _tiny_vit(
        strides=(4, 8, 16, 16),
        levels=(
            LevelSpec(channels=64, stride=4, width=32, target=2),
            LevelSpec(channels=128, stride=8, width=64, target=4),
            LevelSpec(channels=160, stride=16, width=128, target=8),
        ),
        pixel_mean=IMAGENET_MEAN,
        pixel_std=IMAGENET_STD,
    ),
    **{
        f"dinov2_vit{size}14{name}": dino(size, patch=14, registers=registers, positions=37, norm_eps=1e-6)
        for name, registers in (("", 0), ("_reg", 4))
        for size in ("s", "b", "l")
    },
    **{
        f"dinov3_vit{size}16": dino(size, patch=16, registers=4, positions=0, norm_eps=1e-5) for size in ("s", "b", "l")
    },
    "sam2.1_hiera_t": _hiera(dim=96, heads=1, depths=(1, 2, 7, 2), global_blocks=(5, 7, 9)),
    "sam2.1_hiera_s": _hiera(dim=96, heads=1, depths=(1, 2, 11, 2), global_blocks=(7, 10, 13)),
    "sam2.1_hiera_b+": _hiera(dim=112, heads=2, depths=(2, 3, 16, 3), global_blocks=(12, 16, 20), background=14),
    "sam2.1_hiera_l": _hiera(dim=144, heads=2, depths=(2, 6, 36, 4), global_blocks=(23, 33, 43), windows=(8, 4, 16, 8)),
}


def sams_own() -> dict[str, EncoderSpec]:
    """The encoders of SAM's form, by name: plain ViTs without a stem."""
    return {name: spec for name, spec in ENCODERS.items() if isinstance(spec, EncoderSpec) and not spec.stem}


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRule:
    """The steps of an encoder on a machine without a GPU.

    `pixels`: canvas px a step of a fold without a budget, or more if the machine has time for it. `steps`: a time
    budget for this many steps of that size uses it; twice the budget means steps 1.4 times as large, and 1.4 times as
    many. `windows`: fewest a step; one only if nothing else is left to shorten. `multiple`: canvas sides are multiples
    of so many px, which its attention windows fill well. `coarser`: smaller steps show slices in coarser pixels before
    they show only part of a slice; otherwise they show part of it at once.
    """

    pixels: int
    steps: int
    windows: int
    multiple: int
    coarser: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedEncoder:
    """An encoder that the planner may choose, and the inputs that suit it.

    `detail`: side in px of the smallest thing the decoder can draw from features alone: the token, or the stem's finest
    level. `budget`: largest canvas side in px. `longest_window`: most slices in a training window. `whole_from`: with
    training windows of at least this many slices, a whole volume may be predicted as one window. `decoder`: the decoder
    that belongs to it. `sam`: starts from SAM's weights and is adapted; otherwise trained from scratch. `pixels`: what
    its weights were trained on, channels scaled to 0..1 ("unit") or z-scores. `without_gpu`: how a machine without a
    GPU trains it; None if that would take days. `whose`: who made the weights, and their licence where it is not SAM's.
    `only_encoder`: they hold no neck, prompt encoder or mask decoder, which start from random numbers.
    """

    name: str
    spec: EncoderSizes
    detail: int
    budget: int
    longest_window: int
    whole_from: int
    decoder: str
    sam: bool
    pixels: Literal["zscore", "unit"] = "zscore"
    without_gpu: StepRule | None = None
    whose: str = "SAM's"
    only_encoder: bool = False

    @property
    def token(self) -> int:
        """Side in canvas px of the encoder's largest token. Canvas sides are whole tokens."""
        return self.spec.canvas_unit

    @property
    def windowed(self) -> int:
        """Side in tokens of the attention windows that a canvas should fill; 0 if every block attends globally."""
        return self.spec.windowed


def _planned(name: str, spec: EncoderSizes) -> PlannedEncoder:
    """What suits an encoder in SAM's form, one with a stem, a TinyViT, one of DINO's, or a Hiera.

    Source: budget 512 px and progressive upsampling are the paper's; vit_t's budget and window are measured.
    """
    if isinstance(spec, HieraSpec):
        return PlannedEncoder(
            name=name,
            spec=spec,
            detail=spec.token_stride,
            budget=512,
            longest_window=9,
            whole_from=5,
            decoder="progressive",
            sam=True,
            pixels="unit",
        )
    if isinstance(spec, TinyViTSpec):
        return PlannedEncoder(
            name=name,
            spec=spec,
            detail=spec.token_stride,
            budget=5 * spec.windowed * spec.token_stride,  # 280 px, or 1120: the sides trained with, in whole windows
            longest_window=9,
            whole_from=5,
            decoder="progressive",
            sam=True,
            pixels="unit",
            without_gpu=StepRule(pixels=40_000, steps=320, windows=1, multiple=28, coarser=False)
            if spec.token_stride == 4
            else None,
        )
    if isinstance(spec, DinoSpec):
        return PlannedEncoder(
            name=name,
            spec=spec,
            detail=spec.token_stride,
            budget=round(512 / spec.token_stride) * spec.token_stride,
            longest_window=9,
            whole_from=5,
            decoder="progressive",
            sam=True,
            pixels="unit",
            whose="DINOv2's (Apache-2.0)" if spec.positions else "DINOv3's (Meta's DINOv3 License)",
            only_encoder=True,
        )
    if spec.taps:
        return PlannedEncoder(
            name=name, spec=spec, detail=16, budget=512, longest_window=9, whole_from=5, decoder="progressive", sam=True
        )
    return PlannedEncoder(
        name=name,
        spec=spec,
        detail=1,
        budget=256,
        longest_window=17,
        whole_from=9,
        decoder="multiscale",
        sam=False,
        without_gpu=StepRule(pixels=100_000, steps=7200, windows=2, multiple=8, coarser=True),
    )


PLANNED_ENCODERS: dict[str, PlannedEncoder] = {name: _planned(name, spec) for name, spec in ENCODERS.items()}


def find_encoder(name: str) -> EncoderSizes:
    """Find an encoder by name, ours or a plug-in's. Raises PlanError that lists the known ones."""
    return find_entry("encoders", name, ENCODERS, field="network.encoder", form=get_args(EncoderSizes))


def planned_encoder(name: str) -> PlannedEncoder:
    """What planning needs to know of an encoder, ours or a plug-in's. Raises PlanError that lists the known ones."""
    return PLANNED_ENCODERS[name] if name in PLANNED_ENCODERS else _planned(name, find_encoder(name))
