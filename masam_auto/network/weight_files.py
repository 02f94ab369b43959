"""Read SAM-format weights from any source. Nothing in a file is executed, and reading takes no more memory than its
content."""

import pickle
import pickletools
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from masam_auto.core.errors import ModelError

# The errors of torch and safetensors for files that are damaged or of another kind.
_DAMAGED = (
    OSError, EOFError, RuntimeError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError,
    MemoryError, AssertionError, SafetensorError, struct.error, zlib.error, zipfile.BadZipFile, pickle.UnpicklingError,
)  # fmt: skip
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# Of the calls that torch allows in a pickle, these make something as large as a number in it says.
_GROWING = ("bytearray", "encode")
_ZIP = b"PK\x03\x04"
_OLD_PICKLES = 5  # magic number, version, system, the object, its storages: before torch 1.6
_TIED = 2  # times the file's size: a tensor may be stored under two names


def load_sam_checkpoint(path: Path, *, what: str = "SAM") -> dict[str, Tensor]:
    """Read SAM-format weights: a `.pth` state dict (never unpickled beyond tensors) or `.safetensors`.

    This includes files of fine-tunes that keep the state dict under "model" or "state_dict", or whose names begin with
    "module.". Floating-point tensors become float32, on the CPU. `what` is the kind of weights, for messages.

    Raises:
        ModelError: the file is missing, damaged, contains something other than named tensors, or needs more memory than
            it has content.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such file; expected a {what} checkpoint, .pth or .safetensors")
    try:
        if path.suffix.lower() == ".safetensors":
            found: Any = load_file(path, device="cpu")
        else:
            _check_pickle(path)
            found = torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGED as error:
        raise ModelError(
            f"{path}: cannot be read as weights ({_reason(error)}); expected a {what} state dict, .pth or "
            ".safetensors. Download the file again, or save only the state dict: torch.save(model.state_dict(), ...)."
        ) from error
    for wrapper in ("model", "state_dict"):
        if isinstance(found, dict) and isinstance(found.get(wrapper), dict):
            found = found[wrapper]
    if not isinstance(found, dict) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise ModelError(f"{path}: has no named tensors; expected a {what} state dict")
    _check_sizes(path, list(found.values()))
    return {
        str(name).removeprefix("module."): value.float() if value.dtype in FLOATS else value
        for name, value in found.items()
    }


def _reason(error: BaseException) -> str:
    """A library's message, without its advice to unpickle the file."""
    text = str(error).strip()
    if named := re.search(r"Unsupported global: GLOBAL (\S+)", text):
        return f"it contains {named[1]}, which weights never need"
    return text.splitlines()[0].split(". ")[0] if text else type(error).__name__


def wrong_values(value: Tensor, wanted: Tensor) -> str | None:
    """What is wrong with a tensor's values (any shape) if it is to replace another one; None if nothing is."""
    fits = value.dtype in FLOATS if wanted.is_floating_point() else value.dtype == wanted.dtype
    if not fits:
        return f"has values of type {value.dtype}, not {wanted.dtype}"
    return None if value.isfinite().all() else "has values that are not finite"


def _check_pickle(path: Path) -> None:
    """Raises one of `_DAMAGED` if a file unpacks to more than its size, or its pickle makes more than tensors."""
    with path.open("rb") as file:
        if file.read(len(_ZIP)) != _ZIP:  # torch's own test; Python would also find an archive after other data
            file.seek(0)
            for _ in range(_OLD_PICKLES):
                _check_calls(file)
            return
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if archive.comment or min((entry.header_offset for entry in entries), default=0):
            raise ValueError("there is something before or after its content, which torch never writes")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("its content is compressed, which torch never does")
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise ValueError("its content claims to be larger than the file")
        for entry in entries:
            if entry.filename.endswith("data.pkl"):
                with archive.open(entry) as content:
                    _check_calls(content)


def _check_calls(content: IO[bytes]) -> None:
    for name in _called(content):
        if name.split()[-1] in _GROWING:
            raise ValueError(f"it contains {name}, which weights never need")


def _called(content: IO[bytes]) -> Iterator[str]:
    """The names in a pickle, without running it. torch reads no other operations that name something."""
    return (str(argument) for operation, argument, _ in pickletools.genops(content) if operation.name == "GLOBAL")


def _check_sizes(path: Path, tensors: list[Tensor]) -> None:
    """Raise ModelError if tensors are larger than the file: one repeated number can stand for any size."""
    plain = all(
        tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_nested for tensor in tensors
    )
    if not plain or sum(tensor.numel() * tensor.itemsize for tensor in tensors) > _TIED * path.stat().st_size:
        raise ModelError(
            f"{path}: its tensors are larger than the file's content. Download the file again from a trusted source."
        )
