"""The image encoders by name, with their sizes."""

from typing import get_args

from masam_auto.core.encoder_sizes import (
    ConvSpec,
    DinoSpec,
    EncoderSizes,
    EncoderSpec,
    HieraSpec,
    LevelSpec,
    StageSpec,
    TinyViTSpec,
    sam_encoder,
)
from masam_auto.core.plugins import find_entry


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


def find_encoder(name: str) -> EncoderSizes:
    """Find an encoder by name, ours or a plug-in's. Raises PlanError that lists the known ones."""
    return find_entry("encoders", name, ENCODERS, field="network.encoder", form=get_args(EncoderSizes))
