"""The memory that training and prediction need: parameters, optimiser, activations, input.

Encoders and decoders say what their activations need (network/activations.py, network/decoder.py).
documentation/benchmarks.md compares the estimates with measured peaks. `SAFETY` covers the difference, the allocator's
losses and the libraries.
"""

import functools
from dataclasses import dataclass

from masam_auto.core.encoder_sizes import EncoderSizes
from masam_auto.core.plan import NetworkPlan
from masam_auto.network.activations import Load
from masam_auto.network.build import assemble, count_parameters
from masam_auto.network.decoder import choose_decoder
from masam_auto.network.encoder_kinds import encoder_memory

GIB = 1024**3
CONTEXT = 0.8 * GIB  # what CUDA and its libraries take before the first tensor
SAFETY = 0.85  # share of the rest that the model may plan with
LEARNED_BYTES = 4 + 8 + 4  # float32 weight, two moments of AdamW, moving average
LIBRARIES = 16 * 1024**2  # workspaces of the libraries, whatever the size of the network
LOSS_VALUES = 6  # float32 values a logit: logarithms, probabilities, truth, and their gradients


@dataclass(frozen=True, kw_only=True, slots=True)
class Parameters:
    """Numbers of parameters."""

    trained: int
    frozen: int


def parameters_of(load: Load) -> Parameters:
    """Parameters of the network that a plan asks for, counted on a network without weights."""
    return _built_parameters(load.encoder, load.network, load.canvas, load.in_channels, load.num_outputs)


def training_bytes(load: Load, *, batch: int, checkpointing: bool) -> float:
    """Peak bytes of a training step on `batch` windows, without the context of the device's libraries."""
    activations = encoder_memory(load).tables + batch * _window_bytes(load, checkpointing)
    return _learner_bytes(load) + max(activations, _update_bytes(load))


def prediction_bytes(load: Load, *, slices: int) -> float:
    """Peak bytes of predicting one window of `slices` slices without gradients, including the sums over flips."""
    return _predictor_bytes(load) + max(once + slices * each for once, each in _phases(load))


def fitting_batch(load: Load, *, gpu_memory_gb: float, checkpointing: bool) -> int:
    """Most windows that fit a device in training; 0 if not even one fits."""
    room = available_bytes(gpu_memory_gb) - _learner_bytes(load)
    if room < _update_bytes(load):
        return 0
    return max(0, int((room - encoder_memory(load).tables) // _window_bytes(load, checkpointing)))


def fitting_slices(load: Load, *, gpu_memory_gb: float) -> int:
    """Most slices that fit a device in prediction; 0 if not even one fits."""
    room = available_bytes(gpu_memory_gb) - _predictor_bytes(load)
    return max(0, min(int((room - once) // each) for once, each in _phases(load)))


def available_bytes(gpu_memory_gb: float) -> float:
    """Bytes that may be planned with on a device of so many GiB."""
    return max(0.0, gpu_memory_gb * GIB - CONTEXT) * SAFETY


@functools.cache
def _built_parameters(
    encoder: EncoderSizes, network: NetworkPlan, canvas: tuple[int, int], in_channels: int, num_outputs: int
) -> Parameters:
    built = assemble(encoder, network, canvas=canvas, in_channels=in_channels, num_outputs=num_outputs, device="meta")
    total, trained = count_parameters(built)["total"]
    return Parameters(trained=trained, frozen=total - trained)


def _learner_bytes(load: Load) -> float:
    """Bytes that training holds all the time: weights (frozen ones in the computing type) and the optimiser's state."""
    parameters, width = parameters_of(load), load.precision_bytes
    casts = width if width < 4 else 0  # of what learns, for the backward pass
    return LIBRARIES + parameters.trained * (LEARNED_BYTES + casts) + parameters.frozen * width


def _update_bytes(load: Load) -> float:
    """Bytes of the gradients, complete once the activations are freed; on a GPU AdamW needs as much again."""
    return parameters_of(load).trained * (8 if load.fused else 4)


def _predictor_bytes(load: Load) -> float:
    """Weights, and casts of those that learned."""
    parameters, width = parameters_of(load), load.precision_bytes
    casts = parameters.trained * (width if width < 4 else 0)
    return LIBRARIES + (parameters.trained + parameters.frozen) * 4 + casts


def _window_bytes(load: Load, checkpointing: bool) -> float:
    """Bytes of one window when the backward pass begins, or when the largest block is recomputed."""
    encoder, decoder = encoder_memory(load), choose_decoder(load.built.decoder)
    end = (
        decoder.memory(load).kept + encoder.stem + 4 * (LOSS_VALUES * load.num_outputs + load.in_channels) * load.pixels
    )
    peak = encoder.peak if load.fused else 0.0  # a CPU computes one slice at a time
    if not checkpointing:
        return load.window * max(encoder.blocks + end, peak)
    levels = encoder.levels if decoder.fuses_levels else 0.0  # their gradients wait
    return load.window * max(encoder.residuals + max(end, encoder.stem + levels + encoder.again), peak)


def _phases(load: Load) -> tuple[tuple[float, float], tuple[float, float]]:
    """(bytes needed once, bytes per slice) of prediction in the encoder's blocks and in the decoder.

    A CPU computes one slice at a time (network/slicewise.py), except in a multi-scale decoder. A GPU computes all at
    once.
    """
    encoder, decoder = encoder_memory(load), choose_decoder(load.built.decoder)
    levels = encoder.levels if decoder.fuses_levels else 0.0
    outputs = load.num_outputs * load.pixels
    encoding = encoder.held + levels + 4 * outputs  # with the logits of the flip before
    # The network's logits, their float32 copy, and the float32 sum over flips.
    decoding = decoder.memory(load).held + levels + outputs * (load.precision_bytes + 8)
    part = decoder.memory(load).part
    if load.fused:
        return (0.0, encoding + encoder.block), (0.0, decoding + part)
    return (encoder.block, encoding), (part, decoding)
