"""The memory that SAM's image encoder and vit_t take. Other encoders and the decoders state their own.

It counts the values that layers keep for the backward pass, or need at once without gradients. For how plans use it and
how well it matches measured peaks, see planning/memory.py and documentation/benchmarks.md.
"""

import math
from dataclasses import dataclass
from typing import TypeVar

from masam_auto.core.encoder_sizes import EncoderSizes, EncoderSpec
from masam_auto.core.plan import NetworkPlan

Sizes = TypeVar("Sizes", bound=EncoderSizes)


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """What the memory depends on. `precision_bytes`: 2 for bf16 activations, 4 for float32.

    `fused`: attention runs in a fused kernel (GPU), which keeps no (tokens x tokens) scores. Plain products (CPU) do.
    """

    encoder: EncoderSizes
    network: NetworkPlan
    canvas: tuple[int, int]
    window: int
    in_channels: int
    num_outputs: int
    precision_bytes: int = 2
    fused: bool = True

    def sizes(self, form: type[Sizes]) -> Sizes:
        """The encoder's sizes, which are of this form."""
        assert isinstance(self.encoder, form)
        return self.encoder

    @property
    def built(self) -> NetworkPlan:
        """The plan without parts that are not built."""
        return self.network.as_built

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return self.canvas[0] // self.encoder.token_stride, self.canvas[1] // self.encoder.token_stride

    @property
    def tokens(self) -> int:
        """Tokens of a slice."""
        return self.grid[0] * self.grid[1]

    @property
    def pixels(self) -> int:
        """Canvas pixels of a slice."""
        return self.canvas[0] * self.canvas[1]


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderMemory:
    """Bytes that the image encoder takes per slice, except `tables`, which are kept once.

    In training, `stem` and `blocks` are kept for the backward pass. If blocks are recomputed, `residuals` are kept
    between them, and `again` is for the largest one. `peak` is what a frozen part before them needs for a moment.
    `levels` are what a multi-scale decoder fuses. In prediction, `block` is for the largest block, plus `held`.
    """

    tables: float
    stem: float
    blocks: float
    residuals: float
    again: float
    levels: float
    block: float
    held: float
    peak: float = 0.0


def vit_memory(load: Load) -> EncoderMemory:
    """What SAM's encoder, or vit_t, takes for one slice of a load."""
    encoder, width, tokens = load.sizes(EncoderSpec), load.precision_bytes, load.tokens
    adapter = 2 * width * load.built.adapter_channels if count_adapters(load.built) else 0
    attention = 6 * encoder.dim * tokens + _grid_attention_values(load, *load.grid, scores=2)
    return EncoderMemory(
        tables=_tables_bytes(load),
        stem=3.0 * width * load.pixels * sum(c / 4**level for level, c in enumerate(encoder.stem)),
        blocks=encoder.depth * _block_bytes(load, _attention_values(load)),
        residuals=4.0 * encoder.depth * tokens * encoder.dim,  # the residual stream stays float32
        again=_block_bytes(load, _grid_attention_values(load, *load.grid, scores=3)),  # with their gradients
        levels=width * load.pixels * sum(level.channels / level.stride**2 for level in encoder.levels),
        block=width * max(attention, (1 + 2 * encoder.mlp_ratio) * encoder.dim * tokens),
        held=tokens * (4.0 * encoder.dim + adapter),
    )


def count_adapters(network: NetworkPlan) -> int:
    """3D adapters in a block."""
    return {"both": 2, "before": 1, "after": 1, "none": 0}[network.adapters]


def _attention_values(load: Load) -> float:
    """Values that the attention products keep per slice, as a mean over the blocks."""
    encoder = load.sizes(EncoderSpec)
    height, width = load.grid
    total = len(encoder.global_blocks) * _grid_attention_values(load, height, width, scores=1)
    windowed_blocks = encoder.depth - len(encoder.global_blocks)
    if windowed_blocks:
        side = encoder.window
        windows = -(-height // side) * -(-width // side)
        total += windowed_blocks * windows * _grid_attention_values(load, side, side, scores=1)
    return total / max(encoder.depth, 1)


def _grid_attention_values(load: Load, height: int, width: int, *, scores: int) -> float:
    """Queries, keys, values, and `scores` (tokens x tokens) arrays; if fused, padded values and the result instead.

    The projection's output is kept as well, because queries and values are parts of it: 1 and 1.5 times the channels by
    measurement.
    """
    encoder, tokens = load.sizes(EncoderSpec), height * width
    channels = encoder.heads * _wide(encoder, height, width)
    if load.fused:
        return tokens * (4.0 * channels + 1.5 * encoder.dim)
    return tokens * (2.0 * channels + 2.0 * encoder.dim + scores * encoder.heads * tokens)


def _wide(encoder: EncoderSpec, height: int, width: int) -> int:
    """Channels of a head's queries and keys: relative positions add channels, padded to a multiple of 8."""
    return math.ceil((encoder.dim // encoder.heads + height + width) / 8) * 8


def _tables_bytes(load: Load) -> float:
    """Tables of relative positions. Blocks keep one per token, for any number of windows."""
    encoder = load.sizes(EncoderSpec)
    height, width = load.grid
    side, whole = encoder.window, len(encoder.global_blocks)
    values = whole * height * width * (height + width) + (encoder.depth - whole) * 2 * side**3
    return load.precision_bytes * values * encoder.dim / encoder.heads


def _block_bytes(load: Load, attention: float) -> float:
    """Bytes that one block keeps for the backward pass of a slice; `attention` is the number of attention values."""
    encoder, network, width = load.sizes(EncoderSpec), load.built, load.precision_bytes
    adapters, learns = count_adapters(network), network.trained == "all"
    residuals = (2 + adapters) * 4 * encoder.dim
    adapter = adapters * (encoder.dim + 3 * network.adapter_channels)
    projections = encoder.dim if learns or network.increment != "none" else 0
    increments = 6 * network.increment_rank if network.increment != "none" else 0
    mlp = encoder.mlp_ratio * encoder.dim + ((1 + encoder.mlp_ratio) * encoder.dim if learns else 0)
    learnt = 2 * encoder.dim if learns else 0
    kept = residuals + width * (adapter + projections + increments + mlp + learnt)
    return load.tokens * kept + width * attention
