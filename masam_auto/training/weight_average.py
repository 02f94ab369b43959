"""The running average of the tensors that training changes."""

import contextlib
from collections.abc import Iterator, Mapping

import torch


class WeightAverage:
    """Exponential moving average of the learned tensors, which is validated and saved as the model.

    It starts like a plain mean, so that the first, bad weights are soon forgotten.

    Source: the warm-up min(decay, (1 + step) / (10 + step)) is TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], *, decay: float) -> None:
        """Start from the network's present tensors. With `decay` 0 the average is always the newest."""
        self.decay = decay
        self.tensors = {name: tensor.detach().clone() for name, tensor in tensors.items()}

    @torch.no_grad()
    def update(self, tensors: Mapping[str, torch.Tensor], step: int) -> None:
        """Take in the network's tensors after `step` updates; whole numbers (counters) are copied."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averaged = [name for name, tensor in tensors.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([self.tensors[n] for n in averaged], [tensors[n] for n in averaged], 1 - decay)
        for name in tensors.keys() - set(averaged):
            self.tensors[name].copy_(tensors[name])

    @contextlib.contextmanager
    def shown_by(self, tensors: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """Put the average into the network during the block."""
        before = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        _copy(self.tensors, tensors)
        try:
            yield
        finally:
            _copy(before, tensors)


@torch.no_grad()
def _copy(source: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in target.items():
        tensor.copy_(source[name])
