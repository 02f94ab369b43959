"""Small networks: SAM's structure and the stem's, at sizes that compute in milliseconds."""

from typing import Any

import torch

from masam_auto.core.encoder_sizes import (
    ConvSpec,
    DinoSpec,
    EncoderSizes,
    EncoderSpec,
    HieraSpec,
    LevelSpec,
    StageSpec,
    TinyViTSpec,
)
from masam_auto.core.plan import NetworkPlan
from masam_auto.network.build import assemble
from masam_auto.network.masam import MaSam


def small_dino(token_stride: int, *, registers: int, positions: int, targets: tuple[int, ...]) -> DinoSpec:
    """Two blocks of two heads, as DINOv2 has them (with a table of positions) or DINOv3 (without)."""
    return DinoSpec(
        dim=16,
        depth=2,
        heads=2,
        token_stride=token_stride,
        registers=registers,
        positions=positions,
        norm_eps=1e-6 if positions else 1e-5,
        pixel_mean=(0.4, 0.5, 0.6),
        pixel_std=(0.2, 0.3, 0.4),
        embedding=32,
        taps=(0, 1)[: len(targets)],
        levels=tuple(LevelSpec(channels=16, stride=token_stride, width=2 * t, target=t) for t in targets),
        decoder_heads=2,
        decoder_mlp=32,
        adapter_channels=6,
    )


# "sam": 16 px tokens, windowed and global blocks; "stem": 4 px tokens, a convolutional stem; "tiny": a TinyViT;
# "dino2", "dino2_reg": patches of 14 px and a table of positions, without and with registers; "dino3": patches of 16 px
# and rotary positions; "hiera": SAM 2's kind.
SPECS: dict[str, EncoderSizes] = {
    "sam": EncoderSpec(
        dim=24,
        depth=3,
        heads=2,
        global_blocks=(1,),
        window=4,
        mlp_ratio=2.0,
        token_stride=16,
        embedding=32,
        taps=(0, 1),
        levels=tuple(LevelSpec(channels=24, stride=16, width=2 * target, target=target) for target in (4, 8)),
        conv=ConvSpec(norm="instance", across=False),
        decoder_heads=2,
        decoder_mlp=32,
    ),
    "stem": EncoderSpec(
        dim=16,
        depth=2,
        heads=2,
        global_blocks=(0, 1),
        mlp_ratio=2.0,
        token_stride=4,
        stem=(4, 8),
        neck="norm",
        embedding=16,
        levels=(
            LevelSpec(channels=4, stride=1, width=4, target=1),
            LevelSpec(channels=8, stride=2, width=8, target=2),
        ),
        conv=ConvSpec(norm="batch", across=True),
        decoder_heads=2,
        decoder_mlp=32,
    ),
    "tiny": TinyViTSpec(
        stages=(
            StageSpec(dim=8, depth=1, stride=1),
            StageSpec(dim=12, depth=2, stride=2, heads=2, window=3),
            StageSpec(dim=16, depth=1, stride=4, heads=2, window=4),
            StageSpec(dim=20, depth=1, stride=4, heads=4, window=3),
        ),
        expansion=2,
        mlp_ratio=2.0,
        embedding=16,
        levels=(
            LevelSpec(channels=8, stride=1, width=4, target=1),
            LevelSpec(channels=12, stride=2, width=8, target=2),
            LevelSpec(channels=16, stride=4, width=16, target=4),
        ),
        decoder_heads=2,
        decoder_mlp=32,
    ),
    "dino2": small_dino(14, registers=0, positions=5, targets=(2, 14)),
    "dino2_reg": small_dino(14, registers=3, positions=5, targets=(2, 14)),
    "dino3": small_dino(16, registers=3, positions=0, targets=(4, 8)),
    "hiera": HieraSpec(
        stages=(
            StageSpec(dim=8, depth=1, stride=4, heads=1, window=8),
            StageSpec(dim=16, depth=2, stride=8, heads=2, window=4),
            StageSpec(dim=32, depth=2, stride=16, heads=4, window=6),
            StageSpec(dim=64, depth=1, stride=32, heads=8, window=3),
        ),
        global_blocks=(4,),
        background=5,
        embedding=32,
        levels=(
            LevelSpec(channels=8, stride=4, width=4, target=2),
            LevelSpec(channels=16, stride=8, width=8, target=4),
            LevelSpec(channels=32, stride=16, width=16, target=8),
        ),
        decoder_heads=2,
        decoder_mlp=32,
    ),
}


def network_plan(**fields: Any) -> NetworkPlan:
    """SAM adapted, small rank and adapters."""
    base = {
        "encoder": "small",
        "decoder": "progressive",
        "weights": "sam",
        "trained": "adapted",
        "increment_rank": 3,
        "adapter_channels": 6,
    }
    return NetworkPlan(**{**base, **fields})


def make_network(
    size: str = "sam",
    *,
    canvas: tuple[int, int] = (96, 64),
    in_channels: int = 1,
    num_outputs: int = 3,
    seed: int = 0,
    randomised: bool = False,
    **fields: Any,
) -> MaSam:
    """A network of `SPECS[size]`; `fields` are of its plan.

    `randomised` draws every parameter, so that nothing that starts at zero hides a difference.
    """
    network = assemble(
        SPECS[size], network_plan(**fields), canvas=canvas, in_channels=in_channels, num_outputs=num_outputs, seed=seed
    )
    if randomised:
        generator = torch.Generator().manual_seed(seed)
        for parameter in network.parameters():
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return network
