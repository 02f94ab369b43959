"""Optimisers by name, and which tensors decay."""

from collections.abc import Callable, Container, Iterable

import torch
from torch import nn

from masam_auto.compute.device import computes_in_bf16
from masam_auto.core.plan import TrainingPlan
from masam_auto.core.plugins import find_entry

Named = list[tuple[str, nn.Parameter]]
# Tables and tokens: looked up or added, not multiplied with, so neither decayed nor orthogonalised.
TABLES = ("pos_embed", "mem_embed", "rel_pos", "attention_biases", "embed.weight", "embeddings.", "token")
MATRIX_RATE = 15.0
SMALLEST_MATRIX = 16
BETA1 = 0.9  # torch's default
# A short memory of squares, because a training from scratch on a small budget has a few hundred steps.
BETA2_BESIDE_MUON = 0.99


def adamw(parameters: Named, training: TrainingPlan) -> tuple[torch.optim.Optimizer, ...]:
    """AdamW; matrices and convolutions decay, norms, biases and tables do not (in the reference MA-SAM all decay)."""
    return (_adamw(parameters, training, training.adam_beta2),)


def muon(parameters: Named, training: TrainingPlan) -> tuple[torch.optim.Optimizer, ...]:
    """Muon for matrices and convolutions, AdamW for the rest (norms, biases, tables, first layer and last).

    Small networks learn much faster from scratch with it. Matrices get `MATRIX_RATE` times the plan's rate.
    """
    matrices = [parameter for name, parameter in parameters if _is_matrix(name, parameter)]
    rest = [(name, parameter) for name, parameter in parameters if not _is_matrix(name, parameter)]
    optimizers: list[torch.optim.Optimizer] = []
    if matrices:
        optimizers.append(Muon(matrices, lr=training.learning_rate * MATRIX_RATE, weight_decay=training.weight_decay))
    if rest:
        optimizers.append(_adamw(rest, training, BETA2_BESIDE_MUON))
    return tuple(optimizers)


OPTIMIZERS: dict[str, Callable[[Named, TrainingPlan], tuple[torch.optim.Optimizer, ...]]] = {
    "adamw": adamw,
    "muon": muon,
}


def build_optimizers(
    network: nn.Module, training: TrainingPlan, *, pretrained: Container[str] = ()
) -> tuple[torch.optim.Optimizer, ...]:
    """The plan's optimisers over everything that learns.

    Args:
        network: its parameters.
        training: which optimiser, and its rates.
        pretrained: names of the parameters that start from pretrained weights. They learn at the plan's share of the
            rate.

    Raises:
        PlanError: the plan's optimiser is unknown.
    """
    make = find_entry("optimizers", training.optimizer, OPTIMIZERS, field="training.optimizer")
    learning = [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]
    optimizers = make(learning, training)
    share = training.pretrained_rate
    slow = {id(parameter) for name, parameter in learning if share != 1 and name in pretrained}
    for optimizer in optimizers:
        for group in tuple(optimizer.param_groups):
            slowed = [parameter for parameter in group["params"] if id(parameter) in slow]
            others = [parameter for parameter in group["params"] if id(parameter) not in slow]
            if slowed and others:
                group["params"] = others
                optimizer.add_param_group({**group, "params": slowed, "lr": group["lr"] * share})
            elif slowed:
                group["lr"] = group["lr"] * share  # not in place: groups may share a tensor
        for group in optimizer.param_groups:
            group["full_rate"] = group["lr"]
    return optimizers


def set_rate(optimizers: Iterable[torch.optim.Optimizer], share: float) -> None:
    """Set each group's learning rate to a share of its full one."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["full_rate"] * share


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised: every direction of a matrix learns equally fast.

    Convolutions count as matrices of one row an output channel. The update is scaled by 0.2 * sqrt(longer side).

    Source: Keller Jordan et al., Muon, 2024 (Newton-Schulz coefficients, five iterations in bfloat16); the scale is
    Liu et al., Muon is scalable for LLM training, 2025, section 2.2.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], *, lr: float, weight_decay: float, momentum: float = 0.95
    ) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of all parameters that have a gradient. Matrices of one shape are orthogonalised together."""
        for group in self.param_groups:
            alike: dict[tuple[int, ...], list[tuple[nn.Parameter, torch.Tensor]]] = {}
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                mean = state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                direction = parameter.grad.lerp(mean, group["momentum"]).flatten(1)
                alike.setdefault(tuple(direction.shape), []).append((parameter, direction))
            for shape, members in alike.items():
                updates = orthogonalise(torch.stack([direction for _, direction in members]))
                scale = 0.2 * max(shape) ** 0.5
                for (parameter, _), update in zip(members, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(update.view_as(parameter), alpha=-group["lr"] * scale)


def orthogonalise(matrices: torch.Tensor, iterations: int = 5) -> torch.Tensor:
    """(n, rows, columns) matrices with their singular values brought near 1; float32."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    x = x.bfloat16() if computes_in_bf16(x.device) else x
    for _ in range(iterations):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return (x.mT if tall else x).float()


def _adamw(parameters: Named, training: TrainingPlan, beta2: float) -> torch.optim.AdamW:
    decayed = [parameter for name, parameter in parameters if _decays(name, parameter)]
    kept = [parameter for name, parameter in parameters if not _decays(name, parameter)]
    groups = [
        {"params": group, "weight_decay": decay}
        for group, decay in ((decayed, training.weight_decay), (kept, 0.0))
        if group
    ]
    fused = all(parameter.device.type in ("cpu", "cuda") for _, parameter in parameters)
    return torch.optim.AdamW(groups, lr=training.learning_rate, betas=(BETA1, beta2), fused=fused)


def _decays(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim >= 2 and not any(table in name for table in TABLES)


def _is_matrix(name: str, parameter: nn.Parameter) -> bool:
    return _decays(name, parameter) and min(len(parameter), parameter[0].numel()) >= SMALLEST_MATRIX
