"""An analytic model of the memory that training and prediction need: parameters, optimiser, activations, input.

It counts the values that the layers keep for the backward pass (or need at once in prediction). How far it is from
measured peaks stands in documentation/benchmarks.md; `SAFETY` covers that, the allocator's losses and the libraries.
"""

import math
from dataclasses import dataclass

from masam_auto.core.encoders import EncoderSpec
from masam_auto.core.plan import NetworkPlan

GIB = 1024**3
CONTEXT = 0.8 * GIB  # what CUDA and its libraries take before the first tensor
SAFETY = 0.85  # share of the rest that the model may plan with
LEARNED_BYTES = 4 + 8 + 4  # float32 weight, two moments of AdamW, moving average
LIBRARIES = 16 * 1024**2  # workspaces of the libraries, whatever the size of the network
LOSS_VALUES = 6  # float32 values a logit: logarithms, probabilities, truth, and their gradients


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

    @property
    def built(self) -> NetworkPlan:
        """The plan without what it does not build."""
        return self.network.as_built


@dataclass(frozen=True, kw_only=True, slots=True)
class Parameters:
    """Numbers of parameters."""

    trained: int
    frozen: int


def estimate_parameters(load: Load) -> Parameters:
    """Parameters of the network that a plan asks for, exactly."""
    encoder, network = load.encoder, load.built
    added = encoder.depth * _adapters(network) * _adapter_parameters(encoder, network)
    if network.increment == "fact":
        added += 2 * encoder.dim * network.increment_rank + 2 * encoder.depth * network.increment_rank**2
    elif network.increment == "lora":
        added += 4 * encoder.depth * encoder.dim * network.increment_rank
    patch, blocks, neck = _encoder_parameters(encoder, load.canvas, load.in_channels)
    decoder, unused = _decoder_parameters(encoder, network, load.num_outputs)
    prompted, silent = _prompt_parameters(encoder, network)
    learning = decoder + prompted
    if network.trained != "none":
        learning += added
    if network.trained == "all":
        learning += patch + blocks + neck
    elif network.trained == "adapted":
        learning += (patch if load.in_channels not in (1, 3) else 0) + (neck if network.neck_trained else 0)
    total = added + patch + blocks + neck + decoder + unused + prompted + silent
    return Parameters(trained=learning, frozen=total - learning)


def training_bytes(load: Load, *, batch: int, checkpointing: bool) -> float:
    """Peak bytes of a training step on `batch` windows, without the context of the device's libraries."""
    activations = _tables_bytes(load) + batch * _window_training_bytes(load, checkpointing)
    return _learner_bytes(load) + max(activations, _update_bytes(load, checkpointing))


def prediction_bytes(load: Load, *, slices: int) -> float:
    """Peak bytes of predicting one window of `slices` slices without gradients, sums over flips included."""
    return _predictor_bytes(load) + max(once + slices * each for once, each in _phases(load))


def fitting_batch(load: Load, *, gpu_memory_gb: float, checkpointing: bool) -> int:
    """Most windows that fit a device in training, 0 where not even one does."""
    room = available_bytes(gpu_memory_gb) - _learner_bytes(load)
    if room < _update_bytes(load, checkpointing):
        return 0
    return max(0, int((room - _tables_bytes(load)) // _window_training_bytes(load, checkpointing)))


def fitting_slices(load: Load, *, gpu_memory_gb: float) -> int:
    """Most slices that fit a device in prediction, 0 where not even one does."""
    room = available_bytes(gpu_memory_gb) - _predictor_bytes(load)
    return max(0, min(int((room - once) // each) for once, each in _phases(load)))


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


def _encoder_parameters(encoder: EncoderSpec, canvas: tuple[int, int], in_channels: int) -> tuple[int, int, int]:
    """Parameters of stem and patch embedding, of positions and blocks, and of the neck."""
    dim, head, across = encoder.dim, encoder.dim // encoder.heads, 3 if encoder.conv.across else 0
    height, width = canvas[0] // encoder.token_stride, canvas[1] // encoder.token_stride
    blocks = encoder.depth * int(4 * dim**2 + 2 * encoder.mlp_ratio * dim**2 + (9 + encoder.mlp_ratio) * dim)
    tables = len(encoder.global_blocks) * (2 * height + 2 * width - 2) * head
    tables += (encoder.depth - len(encoder.global_blocks)) * 2 * (2 * encoder.window - 1) * head
    stem, inputs = 0, in_channels
    for channels in encoder.stem:
        stem += 9 * inputs * channels + across * channels**2 + 2 * channels
        inputs = channels
    out = encoder.embedding
    neck = dim * out + 9 * out**2 + 4 * out if encoder.neck == "conv" else 2 * dim
    return stem + encoder.patch**2 * inputs * dim + dim, height * width * dim + blocks + tables, neck


def _decoder_parameters(encoder: EncoderSpec, network: NetworkPlan, num_outputs: int) -> tuple[int, int]:
    """Parameters of the mask decoder that learn, and of SAM's quality head, which never does."""
    if network.decoder == "multiscale":
        return _multiscale_parameters(encoder, num_outputs), 0
    c = encoder.embedding
    whole, halved = 4 * c**2 + 4 * c, 2 * c**2 + c + 3 * (c // 2)  # self-attention; attention of half the width
    layer = whole + 2 * halved + 2 * c * encoder.decoder_mlp + encoder.decoder_mlp + c + 8 * c
    total, source = 2 * layer + halved + 2 * c + (1 + num_outputs) * c, c
    steps = encoder.token_stride.bit_length() - 1 if network.decoder == "progressive" else 2
    for step in range(steps):
        width = c // 2 ** (step + 2)
        total += 4 * source * width + width + (2 * width if step < steps - 1 else 0)
        source = width
    hyper = 2 * (c**2 + c) + c * source + source
    return total + num_outputs * hyper, 2 * (c**2 + c) + (c + 1) * num_outputs


def _multiscale_parameters(encoder: EncoderSpec, num_outputs: int) -> int:
    total, channels, stride, across = 0, encoder.embedding, encoder.token_stride, 3 if encoder.conv.across else 0
    for level in reversed(encoder.levels):
        width = level.width
        if level.stride != level.target:
            total += level.channels * width * (level.stride // level.target) ** 2 + width
        total += channels * width * (stride // level.target) ** 2 + width + (18 + across) * width**2 + 2 * width
        channels, stride = width, level.target
    if stride > 1:
        total += channels * (channels // 2) * stride**2 + channels // 2
        channels //= 2
    return total + (channels + 1) * num_outputs


def _prompt_parameters(encoder: EncoderSpec, network: NetworkPlan) -> tuple[int, int]:
    """Parameters of SAM's prompt encoder that learn in the plan's prompt mode, and the others."""
    c = encoder.embedding
    mask = 20 + 8 + 272 + 32 + 17 * c
    learning = c
    if network.prompt == "box":
        learning += mask if network.decoder == "multiscale" else 2 * c
    return learning, 6 * c + mask - learning


def _learner_bytes(load: Load) -> float:
    """What training holds all the time: weights, frozen ones in the computing type, and what the optimiser keeps."""
    parameters, width = estimate_parameters(load), load.precision_bytes
    casts = width if width < 4 else 0  # of what learns, for the backward pass
    return LIBRARIES + parameters.trained * (LEARNED_BYTES + casts) + parameters.frozen * width


def _update_bytes(load: Load, checkpointing: bool) -> float:
    """Gradients, which are complete when the activations are gone; on a GPU AdamW takes as much again at once."""
    return estimate_parameters(load).trained * (8 if load.fused else 4)


def _predictor_bytes(load: Load) -> float:
    """Weights, and casts of those that learned."""
    parameters, width = estimate_parameters(load), load.precision_bytes
    casts = parameters.trained * (width if width < 4 else 0)
    return LIBRARIES + (parameters.trained + parameters.frozen) * 4 + casts


def _phases(load: Load) -> tuple[tuple[float, float], tuple[float, float]]:
    """(bytes taken once, bytes a slice) of prediction in the encoder's blocks and in the decoder.

    On a CPU one slice is worked on at a time (network/slicewise.py), but by a multi-scale decoder; on a GPU all are.
    """
    encoder, network, width, tokens = load.encoder, load.built, load.precision_bytes, _tokens(load)
    outputs = load.num_outputs * load.canvas[0] * load.canvas[1]
    adapter = 2 * width * network.adapter_channels if _adapters(network) else 0
    levels = width * _level_values(load)
    attention = 6 * encoder.dim * tokens + _grid_attention_values(load, *_grid(load), scores=2)
    block = width * max(attention, (1 + 2 * encoder.mlp_ratio) * encoder.dim * tokens)
    encoding = tokens * (4 * encoder.dim + adapter) + levels + 4 * outputs  # beside the logits of the flip before
    # The network's logits, their float32 copy, and the float32 sum over flips.
    decoding = tokens * 8 * encoder.embedding + levels + outputs * (width + 8)
    if network.decoder == "multiscale":
        finest = encoder.levels[0]
        decoding += width * 5 * finest.width * load.canvas[0] * load.canvas[1] / finest.target**2
        upscaling = 0.0
    else:
        upscaling = 10.0 * _decoder_steps(load)[-1]
    if load.fused:
        return (0.0, encoding + block), (0.0, decoding + upscaling)
    return (block, encoding), (upscaling, decoding)


def _attention_values(load: Load) -> float:
    """Values that the attentions' products keep for a slice, mean over the blocks."""
    encoder = load.encoder
    height, width = _grid(load)
    total = len(encoder.global_blocks) * _grid_attention_values(load, height, width, scores=1)
    windowed_blocks = encoder.depth - len(encoder.global_blocks)
    if windowed_blocks:
        side = encoder.window
        windows = -(-height // side) * -(-width // side)
        total += windowed_blocks * windows * _grid_attention_values(load, side, side, scores=1)
    return total / max(encoder.depth, 1)


def _grid_attention_values(load: Load, height: int, width: int, *, scores: int) -> float:
    """Queries, keys, values, and as many (tokens x tokens) arrays as `scores` says; fused: padded values, the result.

    What the projection gives is kept besides, because queries and values are parts of it: 1 and 1.5 times the channels by
    measurement.
    """
    encoder, tokens = load.encoder, height * width
    channels = encoder.heads * _wide(encoder, height, width)
    if load.fused:
        return tokens * (4.0 * channels + 1.5 * encoder.dim)
    return tokens * (2.0 * channels + 2.0 * encoder.dim + scores * encoder.heads * tokens)


def _wide(encoder: EncoderSpec, height: int, width: int) -> int:
    """Channels of a head's queries and keys: relative positions are extra ones, filled up to a multiple of 8."""
    return math.ceil((encoder.dim // encoder.heads + height + width) / 8) * 8


def _tables_bytes(load: Load) -> float:
    """Tables of relative positions that the blocks keep once, whatever the number of windows: one for each token."""
    encoder = load.encoder
    height, width = _grid(load)
    side, whole = encoder.window, len(encoder.global_blocks)
    values = whole * height * width * (height + width) + (encoder.depth - whole) * 2 * side**3
    return load.precision_bytes * values * encoder.dim / encoder.heads


def _window_training_bytes(load: Load, checkpointing: bool) -> float:
    """Bytes of one window at the beginning of the backward pass, or where the largest block is computed again."""
    encoder, tokens = load.encoder, _tokens(load)
    pixels = load.canvas[0] * load.canvas[1]
    end = _decoder_bytes(load) + 4 * (LOSS_VALUES * load.num_outputs + load.in_channels) * pixels
    if not checkpointing:
        return load.window * (encoder.depth * _block_bytes(load, _attention_values(load)) + end)
    residuals = encoder.depth * 4 * tokens * encoder.dim  # the residual stream stays float32
    again = _block_bytes(load, _grid_attention_values(load, *_grid(load), scores=3))  # with their gradients
    waiting = _stem_bytes(load) + load.precision_bytes * _level_values(load)  # the levels' gradients
    return load.window * (residuals + max(end, waiting + again))


def _block_bytes(load: Load, attention: float) -> float:
    """Bytes that one block, whose attention keeps so many values, keeps for the backward pass of a slice."""
    encoder, network, width, tokens = load.encoder, load.built, load.precision_bytes, _tokens(load)
    adapters, learns = _adapters(network), network.trained == "all"
    residuals = (2 + adapters) * 4 * encoder.dim
    adapter = adapters * (encoder.dim + 3 * network.adapter_channels)
    projections = encoder.dim if learns or network.increment != "none" else 0
    increments = 6 * network.increment_rank if network.increment != "none" else 0
    mlp = encoder.mlp_ratio * encoder.dim + ((1 + encoder.mlp_ratio) * encoder.dim if learns else 0)
    learnt = 2 * encoder.dim if learns else 0
    return tokens * (residuals + width * (adapter + projections + increments + mlp + learnt)) + width * attention


def _stem_bytes(load: Load) -> float:
    """Bytes that a convolutional stem keeps for the backward pass of a slice."""
    pixels = load.canvas[0] * load.canvas[1]
    return 3.0 * load.precision_bytes * pixels * sum(c / 4**level for level, c in enumerate(load.encoder.stem))


def _level_values(load: Load) -> float:
    """Values of the levels that a multi-scale decoder fuses, and of its own finest ones."""
    if load.built.decoder != "multiscale":
        return 0.0
    pixels = load.canvas[0] * load.canvas[1]
    levels = sum(level.channels / level.stride**2 for level in load.encoder.levels)
    return pixels * levels


def _decoder_steps(load: Load) -> list[float]:
    """Values of each upscaling step's output for a slice: c/4 at twice the tokens' resolution, and so on."""
    steps = load.encoder.token_stride.bit_length() - 1 if load.built.decoder == "progressive" else 2
    return [load.encoder.embedding / 2 ** (step + 2) * _tokens(load) * 4 ** (step + 1) for step in range(steps)]


def _decoder_bytes(load: Load) -> float:
    """Bytes that stem and decoder keep for the backward pass of a slice."""
    encoder, width = load.encoder, load.precision_bytes
    if load.built.decoder == "multiscale":
        pixels = load.canvas[0] * load.canvas[1]
        fused = sum(level.width / level.target**2 for level in encoder.levels)
        return width * pixels * 5 * fused + _stem_bytes(load)
    *normed, last = _decoder_steps(load)
    # What is normed and its result are float32, the next step's input is cast; the last step has no norm.
    upscaling = sum(normed) * (8 + width) + 2 * width * last
    transformer = 20 * encoder.embedding * _tokens(load) * width
    return transformer + upscaling
