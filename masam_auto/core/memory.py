"""An analytic model of the memory that training and prediction need: parameters, optimiser, activations, input.

It counts the values that the layers keep for the backward pass (or need at once in prediction). How far it is from
measured peaks stands in documentation/benchmarks.md; `SAFETY` covers that, the allocator's losses and the libraries.
"""

from dataclasses import dataclass

from masam_auto.core.encoders import EncoderSpec
from masam_auto.core.plan import NetworkPlan

GIB = 1024**3
CONTEXT = 0.8 * GIB  # what CUDA and its libraries take before the first tensor
SAFETY = 0.85  # share of the rest that the model may plan with
TRAINED_BYTES = 4 + 4 + 8 + 4  # float32 weight, gradient, two moments of AdamW, moving average
FROZEN_BYTES = 4
LIBRARIES = 64 * 1024**2  # workspaces of the libraries, whatever the size of the network
LOSS_VALUES = 6  # values a logit that the loss keeps or needs at once in its backward pass
TRANSIENTS = 1.1  # gradients of activations that live beside the kept activations
PREDICTED_VALUES = 4  # values a logit that prediction holds: logits, softmax, tiles and their sums


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """What the memory depends on. `precision_bytes`: 2 where activations are bf16, 4 in float32.

    `fused`: attention runs in a fused kernel, which keeps no (tokens x tokens) scores (GPU); plain products do (CPU).
    """

    encoder: EncoderSpec
    network: NetworkPlan
    canvas: tuple[int, int]
    window: int
    in_channels: int
    num_outputs: int
    precision_bytes: int = 2
    fused: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Parameters:
    """Numbers of parameters."""

    trained: int
    frozen: int


def count_parameters(load: Load) -> Parameters:
    """Parameters of the network that a plan asks for."""
    encoder, network = load.encoder, load.network
    added = encoder.depth * _adapters(network) * _adapter_parameters(encoder, network)
    if network.increment == "fact":
        added += 2 * encoder.dim * network.increment_rank + 2 * encoder.depth * network.increment_rank**2
    elif network.increment == "lora":
        added += 4 * encoder.depth * encoder.dim * network.increment_rank
    base = _encoder_parameters(encoder, load.canvas, load.in_channels)
    decoder = _decoder_parameters(encoder, network.decoder, load.num_outputs)
    if network.trained == "all":
        return Parameters(trained=base + added + decoder, frozen=0)
    if network.trained == "none":
        return Parameters(trained=decoder, frozen=base + added)
    return Parameters(trained=added + decoder, frozen=base)


def training_bytes(load: Load, *, batch: int, checkpointing: bool) -> float:
    """Peak bytes of a training step on `batch` windows, without the context of the device's libraries."""
    parameters = count_parameters(load)
    copies = load.precision_bytes if load.precision_bytes < 4 else 0  # casts that the backward pass keeps
    fixed = LIBRARIES + parameters.trained * (TRAINED_BYTES + copies) + parameters.frozen * (FROZEN_BYTES + copies)
    return fixed + batch * load.window * _slice_training_bytes(load, checkpointing) * TRANSIENTS


def prediction_bytes(load: Load, *, slices: int) -> float:
    """Peak bytes of predicting one window of `slices` slices without gradients."""
    parameters = count_parameters(load)
    tokens = _tokens(load)
    attention = _grid_attention_values(load, *_grid(load)) + 8 * load.encoder.dim * tokens  # a global block's
    pixels = load.canvas[0] * load.canvas[1]
    decoder = _decoder_values(load, keep=False) + load.num_outputs * PREDICTED_VALUES * pixels
    values = max(attention, decoder) + tokens * load.encoder.dim
    fixed = LIBRARIES + (parameters.trained + parameters.frozen) * FROZEN_BYTES
    return fixed + slices * values * load.precision_bytes


def fitting_batch(load: Load, *, gpu_memory_gb: float, checkpointing: bool) -> int:
    """Most windows that fit a device in training, 0 where not even one does."""
    room = available_bytes(gpu_memory_gb)
    none = training_bytes(load, batch=0, checkpointing=checkpointing)
    one = training_bytes(load, batch=1, checkpointing=checkpointing) - none
    return max(0, int((room - none) // one))


def fitting_slices(load: Load, *, gpu_memory_gb: float) -> int:
    """Most slices that fit a device in prediction, 0 where not even one does."""
    none = prediction_bytes(load, slices=0)
    one = prediction_bytes(load, slices=1) - none
    return max(0, int((available_bytes(gpu_memory_gb) - none) // one))


def available_bytes(gpu_memory_gb: float) -> float:
    """Bytes that may be planned with on a device of so many GiB."""
    return max(0.0, gpu_memory_gb * GIB - CONTEXT) * SAFETY


def _adapters(network: NetworkPlan) -> int:
    return {"both": 2, "before": 1, "after": 1, "none": 0}[network.adapters]


def _adapter_parameters(encoder: EncoderSpec, network: NetworkPlan) -> int:
    inner = network.adapter_channels
    return 2 * encoder.dim + 2 * encoder.dim * inner + 3 * inner**2 + inner


def _grid(load: Load) -> tuple[int, int]:
    return load.canvas[0] // load.encoder.token_stride, load.canvas[1] // load.encoder.token_stride


def _tokens(load: Load) -> int:
    height, width = _grid(load)
    return height * width


def _encoder_parameters(encoder: EncoderSpec, canvas: tuple[int, int], in_channels: int) -> int:
    dim, head = encoder.dim, encoder.dim // encoder.heads
    height, width = canvas[0] // encoder.token_stride, canvas[1] // encoder.token_stride
    blocks = encoder.depth * int(4 * dim**2 + 2 * encoder.mlp_ratio * dim**2 + (9 + encoder.mlp_ratio) * dim)
    tables = len(encoder.global_blocks) * (2 * height + 2 * width - 2) * head
    tables += (encoder.depth - len(encoder.global_blocks)) * 2 * (2 * encoder.window - 1) * head
    stem, inputs = 0, in_channels
    for channels in encoder.stem:
        stem += 9 * inputs * channels + 3 * channels**2 + 2 * channels
        inputs = channels
    patch = encoder.token_stride // 2 ** max(len(encoder.stem) - 1, 0)
    neck = dim * 256 + 9 * 256**2 + 4 * 256 if not encoder.stem else 2 * dim
    return stem + patch**2 * inputs * dim + dim + height * width * dim + blocks + tables + neck


def _decoder_parameters(encoder: EncoderSpec, decoder: str, num_outputs: int) -> int:
    """Mask decoder and the prompt encoder's part of it, within a few per cent.

    Source: SAM's decoder with K + 1 mask tokens: 3.5 million and 0.13 million an output.
    """
    if decoder != "multiscale":
        return 3_520_000 + 133_000 * num_outputs
    total, channels = 0, encoder.embedding
    for width in reversed(encoder.stem or (32, 64, 128)):
        total += 4 * channels * width + width + 18 * width**2 + 3 * width**2 + 2 * width
        channels = width
    return total + channels * num_outputs


def _attention_values(load: Load) -> float:
    """Values that the attentions' products hold for a slice, mean over the blocks."""
    encoder = load.encoder
    height, width = _grid(load)
    total = len(encoder.global_blocks) * _grid_attention_values(load, height, width)
    windowed_blocks = encoder.depth - len(encoder.global_blocks)
    if windowed_blocks:
        side = encoder.window
        windows = -(-height // side) * -(-width // side)
        total += windowed_blocks * windows * _grid_attention_values(load, side, side)
    return total / max(encoder.depth, 1)


def _grid_attention_values(load: Load, height: int, width: int) -> float:
    encoder, tokens = load.encoder, height * width
    channels = encoder.dim + encoder.heads * (height + width)  # relative positions are extra channels
    if load.fused:
        return tokens * 4.0 * channels  # queries, keys, padded values and the result
    return tokens * (2.0 * channels + encoder.dim + 2 * encoder.heads * tokens)


def _slice_training_bytes(load: Load, checkpointing: bool) -> float:
    encoder, tokens = load.encoder, _tokens(load)
    residual = 4 * tokens * encoder.dim  # bytes: the residual stream stays float32
    block = _block_bytes(load, tokens)
    blocks = encoder.depth * residual + block if checkpointing else encoder.depth * block
    pixels = load.canvas[0] * load.canvas[1]
    loss = 4 * LOSS_VALUES * load.num_outputs * pixels
    return blocks + load.precision_bytes * _decoder_values(load, keep=True) + loss + 4 * load.in_channels * pixels


def _block_bytes(load: Load, tokens: int) -> float:
    """Bytes that one block keeps for the backward pass of a slice."""
    encoder, network, width = load.encoder, load.network, load.precision_bytes
    adapters, learns = _adapters(network), network.trained == "all"
    residuals = (2 + adapters) * 4 * encoder.dim
    adapter = adapters * (encoder.dim + 3 * network.adapter_channels)
    projections = encoder.dim if learns or network.increment != "none" else 0
    increments = 6 * network.increment_rank if network.increment != "none" else 0
    mlp = encoder.mlp_ratio * encoder.dim + ((1 + encoder.mlp_ratio) * encoder.dim if learns else 0)
    attention = _attention_values(load) + (2 * encoder.dim * tokens if learns else 0)
    return tokens * (residuals + width * (adapter + projections + increments + mlp)) + width * attention


def _decoder_values(load: Load, *, keep: bool) -> float:
    """Values that stem and decoder keep for the backward pass of a slice, or (`keep` false) hold at once."""
    encoder, tokens = load.encoder, _tokens(load)
    pixels = load.canvas[0] * load.canvas[1]
    if load.network.decoder == "multiscale":
        stem = encoder.stem or (32, 64, 128)
        levels = sum(channels / 4**level for level, channels in enumerate(stem))
        return pixels * (8 * levels if keep else levels + 5 * stem[0])
    steps = encoder.token_stride.bit_length() - 1 if load.network.decoder == "progressive" else 2
    transformer = 13 * encoder.embedding * tokens
    widths = [encoder.embedding / 2 ** (step + 2) * tokens * 4 ** (step + 1) for step in range(steps)]
    if keep:
        return transformer + sum(3 * values for values in widths)
    return max(transformer, 2.5 * widths[-1])
