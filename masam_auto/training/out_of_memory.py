"""What to say when a GPU runs out of memory in training: the plan's estimate, and what to change in it."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import torch

from masam_auto.compute.device import computes_in_bf16
from masam_auto.core.dataset import DatasetDescription
from masam_auto.core.encoder_sizes import EncoderSizes
from masam_auto.core.errors import ModelError
from masam_auto.core.plan import Configuration, Plan
from masam_auto.planning.memory import CONTEXT, GIB, Load, training_bytes

SMALLER = {"vit_h": "vit_b", "vit_l": "vit_b", "vit_b": "vit_t"}


@contextlib.contextmanager
def explain_out_of_memory(
    plan: Plan,
    configuration: Configuration,
    description: DatasetDescription,
    encoder: EncoderSizes,
    device: torch.device,
) -> Iterator[None]:
    """Turn an out-of-memory failure of the device within the block into one message.

    Args:
        plan, configuration: of the training.
        description: of the data set.
        encoder: sizes of its encoder.
        device: that it trains on.

    Raises:
        ModelError: the device's memory is full; it gives the plan's estimate and what to change, with their estimates.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        load = Load(
            encoder=encoder,
            network=plan.network,
            canvas=configuration.canvas,
            window=configuration.window,
            in_channels=description.num_channels,
            num_outputs=description.labels.num_outputs,
            precision_bytes=2 if plan.training.precision == "bf16" and computes_in_bf16(device) else 4,
            fused=device.type != "cpu",
        )
        raise ModelError(out_of_memory_message(plan, configuration, load, room=room_of(device))) from error


def out_of_memory_message(plan: Plan, configuration: Configuration, load: Load, *, room: str) -> str:
    """One message: the requested settings, their estimated memory, and settings that need less.

    Args:
        plan, configuration: of the training.
        load: of the same.
        room: the device's memory, in words, or "".
    """
    batch, checkpointing = configuration.batch_size, plan.training.activation_checkpointing
    asked = (
        f"batch_size {batch}, window {load.window}, canvas {load.canvas[0]} x {load.canvas[1]} px, "
        f"{plan.network.encoder}, {'with' if checkpointing else 'without'} activation checkpointing"
    )
    ways = _ways(plan, configuration, load)
    return (
        f"the device ran out of memory in training ({asked}). The plan's estimate is "
        f"{_gib(load, batch, checkpointing)}{room}. Free memory that other programs take, or change the plan: "
        f"{'; '.join(ways)}. Start a changed plan again (`overwrite`); with the same plan, continue "
        "from the last checkpoint with `resume`."
    )


def room_of(device: torch.device) -> str:
    """The total and free memory of a GPU, in words; "" for other devices."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return ""
    free, total = torch.cuda.mem_get_info(device)
    own = torch.cuda.memory_reserved(device)
    return f"; the device has {total / GIB:.1f} GiB, {(total - free - own) / GIB:.1f} of which others hold"


def _ways(plan: Plan, configuration: Configuration, load: Load) -> list[str]:
    batch, checkpointing = configuration.batch_size, plan.training.activation_checkpointing
    found, name = [], configuration.name
    if batch > 1:
        found.append(
            f"`{name}.batch_size={batch // 2}` `{name}.accumulation={configuration.accumulation * 2}` "
            f"({_gib(load, batch // 2, checkpointing)})"
        )
    if not checkpointing:
        found.append(f"`training.activation_checkpointing=true` ({_gib(load, batch, True)})")
    if load.window > 1:
        shorter = max(1, (load.window // 2) | 1) if load.window > 3 else 1
        found.append(f"`{name}.window={shorter}` ({_gib(replace(load, window=shorter), batch, checkpointing)})")
    if plan.network.encoder in SMALLER:
        found.append(f"plan again with `backbone={SMALLER[plan.network.encoder]}`")
    return [*found, f"or with a smaller `{name}.canvas`"]


def _gib(load: Load, batch: int, checkpointing: bool) -> str:
    context = CONTEXT if load.fused else 0.0
    return f"{(training_bytes(load, batch=batch, checkpointing=checkpointing) + context) / GIB:.2g} GiB"
