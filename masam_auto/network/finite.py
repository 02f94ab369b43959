"""Find where numbers stop being finite: the first layer of a network that gives NaN or infinite values."""

import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from masam_auto.core.errors import ModelError


class _Found(Exception):
    """Ends the forward pass at the first value that is not finite."""


def find_nonfinite(network: nn.Module, call: Callable[[], object]) -> str | None:
    """Name the first layer whose output is not finite.

    Args:
        network: the network whose layers are watched.
        call: runs the network. It is called once, without gradients, and stopped at the first such layer.

    Returns:
        One clause that names the layer. It says how many of its values are not finite, where the first one is, how
        large its input was, and which parameter is not finite, if any. None if everything was finite.
    """
    watch = _Watch(network)
    handles = []
    try:
        for name, module in network.named_modules():
            handles.append(module.register_forward_pre_hook(partial(watch.before, name), with_kwargs=True))
            handles.append(module.register_forward_hook(partial(watch.after, name), with_kwargs=True))
        with torch.no_grad():
            call()
    except _Found as found:
        return str(found)
    finally:
        for handle in handles:
            handle.remove()
    return None


def finite_logits(network: nn.Module, *inputs: Tensor) -> Tensor:
    """Run a network once in evaluation.

    Raises:
        ModelError: the logits are not finite; the message names the layer where this starts.
    """
    logits = network(*inputs)
    if _finite_throughout(logits):
        return logits
    culprit = find_nonfinite(network, lambda: network(*inputs))
    raise ModelError(
        f"the network's output is not finite (NaN or infinite); it starts in {culprit}. Check the image's values, and "
        "whether the training diverged (progress.png). If so, use another fold or checkpoint."
    )


def _finite_throughout(logits: Tensor) -> bool:
    """Like `all_finite`, without a copy of the logits' size unless their sum overflows."""
    return bool(torch.isfinite(logits.sum())) or all_finite(logits)


def all_finite(tensor: Tensor) -> bool:
    """Whether every value is finite."""
    return bool(torch.isfinite(tensor).all())


def nonfinite_parameter(network: nn.Module) -> str | None:
    """Name the first parameter, in the network's order, that is not finite; None if all are."""
    return next((name for name, parameter in network.named_parameters() if not all_finite(parameter)), None)


def nonfinite_gradient(network: nn.Module) -> str | None:
    """Name the last parameter, in the network's order, whose gradient is not finite. There it starts in the backward
    pass.
    """
    learned = [(name, parameter.grad) for name, parameter in network.named_parameters() if parameter.grad is not None]
    return next((name for name, gradient in reversed(learned) if not all_finite(gradient)), None)


class _Watch:
    """Checks the inputs and outputs of each layer. `entered` are the running layers, outermost first.

    Other threads may use the network at the same time; their values are not checked.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.thread = threading.get_ident()
        self.entered: list[tuple[str, nn.Module]] = []
        self.largest: list[float | None] = []

    def before(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Earlier layers gave finite values, so a bad input was computed in between by the surrounding layer."""
        if threading.get_ident() != self.thread:
            return
        for number, value in enumerate(_tensors((args, kwargs))):
            if all_finite(value):
                continue
            if not self.entered:
                if number > 0:  # boxes: not-a-number means a slice without one
                    continue
                raise _Found(f"the network's input: {_describe(value)}")
            around, owner = self.entered[-1]
            last = name.removeprefix(f"{around}.")
            raise _Found(f"{_title(around, owner)}, what it gives to {last}: {_describe(value)}{self.weights(owner)}")
        self.entered.append((name, module))
        inputs = [float(tensor.abs().max()) for tensor in _tensors((args, kwargs)) if tensor.numel()]
        self.largest.append(max(inputs, default=None))  # now: some layers change their input

    def after(
        self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object
    ) -> None:
        """The layer's input was finite; its output must be."""
        if threading.get_ident() != self.thread:
            return
        for value in _tensors(output):
            if not all_finite(value):
                reached = self.largest[-1]
                largest = "" if reached is None else f"; its input reaches {reached:.3g}"
                raise _Found(f"{_title(name, module)}: {_describe(value)}{largest}{self.weights(module)}")
        self.entered.pop()
        self.largest.pop()

    def weights(self, module: nn.Module) -> str:
        """A clause on the weights: the layer's own first, as they are the likelier cause."""
        for place, name in (("its", nonfinite_parameter(module)), ("the network's", nonfinite_parameter(self.network))):
            if name is not None:
                return f"; {place} parameter {name} is not finite"
        return "; all parameters are finite"


def _title(name: str, module: nn.Module) -> str:
    return f"{name or 'the network'} ({type(module).__name__})"


def _describe(value: Tensor) -> str:
    wrong = (~torch.isfinite(value)).nonzero()
    place = ", ".join(str(int(index)) for index in wrong[0])
    shape = " x ".join(map(str, value.shape)) or "scalar"
    kind = str(value.dtype).removeprefix("torch.")
    return f"{len(wrong)} of {value.numel()} values are not finite, the first at [{place}] of {shape} {kind}"


def _tensors(value: Any) -> Iterator[Tensor]:
    """The floating-point tensors in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors(part)
