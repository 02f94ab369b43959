"""The devices of this machine, and the settings to compute with."""

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch

from masam_auto.core.errors import MasamError


def choose_device(name: str | None = None) -> torch.device:
    """A device by name ("cpu", "cuda", "cuda:1", "mps"); None chooses the best one available.

    Raises:
        MasamError: the name is unknown or the machine has no such device.

    Example:
        >>> from masam_auto import choose_device
        >>> choose_device("cpu")
        device(type='cpu')
    """
    if name is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise MasamError(f"device {name!r} is unknown; give cpu, cuda, cuda:0 or mps") from error
    present = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not present.get(device.type, False):
        raise MasamError(f"device {name!r} is not available on this machine; give cpu or leave the device out")
    return device


def computes_in_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32 here: NVIDIA from Ampere on, and CPUs with bf16 instructions."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return False


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """The context for running the network: bf16 if requested and supported by the device, else float32."""
    if precision == "bf16" and computes_in_bf16(device):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def default_workers(device: torch.device, cores: int) -> int:
    """Worker processes that prepare windows.

    None if the network runs on the CPU: it needs every core, and preparing a window takes less than a fiftieth of its
    time there. With a GPU, one worker per core, up to twelve, leaving one core to the training loop.
    """
    return 0 if device.type == "cpu" else max(1, min(12, cores - 1))


@contextlib.contextmanager
def torch_settings(threads: int | None, device: torch.device) -> Iterator[None]:
    """Set threads and denormals for the training, and restore the caller's settings and generators afterwards."""
    before = torch.get_num_threads()
    devices = [device.index or 0] if device.type == "cuda" else []
    try:
        torch.set_num_threads(threads or before)
        torch.set_flush_denormal(True)  # denormal numbers make CPUs a hundred times slower
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        torch.set_num_threads(before)
        torch.set_flush_denormal(False)
