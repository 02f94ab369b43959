"""Run slice-wise computations for a few slices at a time if no gradient is kept.

The results are the same. Values between two layers stay small: a volume's pass holds little more than its tokens and
logits. On a CPU the rest stays in the cache, and the allocator need not ask the system for memory.
"""

from collections.abc import Callable

import torch
from torch import Tensor

SLICES_AT_ONCE = 1  # on a CPU; a GPU needs all of them at once to be fully used


def by_parts(function: Callable[..., Tensor], *values: Tensor) -> Tensor:
    """`function(*values)`, where the first axis of all values and of the result counts slices."""
    at_once = _at_once(values[0])
    if len(values[0]) <= at_once:
        return function(*values)
    result: Tensor | None = None
    for start, parts in enumerate(zip(*(value.split(at_once) for value in values), strict=True)):
        part = function(*parts)
        if result is None:
            shape = (len(values[0]), *part.shape[1:])
            result = torch.empty(shape, dtype=part.dtype, device=part.device, memory_format=_format_of(part))
        result[start * at_once : (start + 1) * at_once] = part
    assert result is not None
    return result


def add(x: Tensor, function: Callable[[Tensor], Tensor], source: Tensor) -> Tensor:
    """`x + function(source)`; the first axis counts slices. Without gradients, x itself is changed."""
    if torch.is_grad_enabled():
        return x + function(source)
    at_once = _at_once(x)
    for part, source_part in zip(x.split(at_once), source.split(at_once), strict=True):
        part += function(source_part)
    return x


def _format_of(part: Tensor) -> torch.memory_format:
    """The order in memory of a part, for all of them; another one would be copied by every layer that follows."""
    channels_last = part.ndim == 4 and part.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last else torch.contiguous_format


def _at_once(x: Tensor) -> int:
    if torch.is_grad_enabled() or x.device.type != "cpu":
        return max(1, len(x))
    return SLICES_AT_ONCE
