"""What planning must know of the image encoders: their sizes, and the inputs that suit them.

The encoders themselves are built in `network`; a test keeps both lists equal.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderShape:
    """Sizes of an encoder and of the decoder that goes with it.

    `windowed`: side in tokens of the attention windows of all but the `global_blocks` blocks; 0 where every block
    attends globally. `token`: side of a token in canvas px. `stem`: channels of the convolutional levels before the
    tokens, () for SAM's patch embedding. `embedding`: width of the tokens that the decoder gets.
    `detail`: side in px of the smallest thing the decoder can draw from features alone: the token, or the stem's finest
    level. `budget`: largest canvas side in px. `longest_window`: most slices in a training window.
    `sam`: starts from SAM's weights and is adapted; otherwise trained from scratch.
    """

    name: str
    dim: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    global_blocks: int
    windowed: int
    token: int
    stem: tuple[int, ...] = ()
    embedding: int
    detail: int
    budget: int
    longest_window: int
    adapter_channels: int
    decoder: str
    sam: bool


def _sam(name: str, *, dim: int, depth: int, heads: int) -> EncoderShape:
    return EncoderShape(
        name=name,
        dim=dim,
        depth=depth,
        heads=heads,
        global_blocks=4,
        windowed=14,
        token=16,
        embedding=256,
        detail=16,
        budget=512,
        longest_window=9,
        adapter_channels=384,
        decoder="progressive",
        sam=True,
    )


# Source: SAM's sizes are those of segment-anything's build_sam; budget 512 px, 384 adapter channels and progressive
# upsampling are the paper's. vit_t is ours: its sizes, budget and window are measured (documentation/decisions.md).
ENCODER_SHAPES: dict[str, EncoderShape] = {
    "vit_t": EncoderShape(
        name="vit_t",
        dim=128,
        depth=2,
        heads=4,
        mlp_ratio=2.0,
        global_blocks=2,
        windowed=0,
        token=8,
        stem=(16, 48, 96),
        embedding=128,
        detail=1,
        budget=256,
        longest_window=17,
        adapter_channels=32,
        decoder="multiscale",
        sam=False,
    ),
    "vit_b": _sam("vit_b", dim=768, depth=12, heads=12),
    "vit_l": _sam("vit_l", dim=1024, depth=24, heads=16),
    "vit_h": _sam("vit_h", dim=1280, depth=32, heads=16),
}
