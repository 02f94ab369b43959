"""Low-rank increments of the query and value projections: FacT in tensor-train form, and LoRA."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from masam_auto.core.plugins import find_entry


class Increments(nn.Module):
    """Low-rank changes added to the frozen query and value projections of each block.

    In training the increments are computed from the tokens, with dropout on the low-rank activations. In evaluation
    `weights` gives them as one matrix per projection, which attention adds to the frozen weight.
    """

    def forward(
        self, block: int, x: Float[Tensor, "*tokens c"], qkv: Float[Tensor, "*tokens c3"]
    ) -> Float[Tensor, "*tokens c3"]:
        """Queries, keys and values of a block's tokens `x`. The increments of q and v are added in place."""
        raise NotImplementedError

    def weights(self, block: int) -> tuple[Float[Tensor, "c c"], Float[Tensor, "c c"]]:
        """Increments of the q and v weight matrices of a block, without dropout."""
        raise NotImplementedError


class FacTIncrements(Increments):
    """`q += s V dropout(Sq U x)`, same for v. All blocks share U and V; each block has its own Sq and Sv.

    Source: Chen et al., MA-SAM, Medical Image Analysis 98 (2024) 103310: tensor-train form, V starts at zero.
    """

    def __init__(self, *, dim: int, depth: int, rank: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.scale = scale
        self.u = nn.Linear(dim, rank, bias=False)
        self.v = nn.Linear(rank, dim, bias=False)
        self.q_cores = nn.ModuleList(nn.Linear(rank, rank, bias=False) for _ in range(depth))
        self.v_cores = nn.ModuleList(nn.Linear(rank, rank, bias=False) for _ in range(depth))
        self.dropout = nn.Dropout(dropout)
        nn.init.zeros_(self.v.weight)

    def forward(
        self, block: int, x: Float[Tensor, "*tokens c"], qkv: Float[Tensor, "*tokens c3"]
    ) -> Float[Tensor, "*tokens c3"]:
        """Queries, keys and values of a block's tokens `x`. The increments of q and v are added in place."""
        reduced = self.u(x)
        q = self.dropout(self.q_cores[block](reduced))
        v = self.dropout(self.v_cores[block](reduced))
        return _add_increments(qkv, q, v, self.v.weight, self.v.weight, self.scale)

    def weights(self, block: int) -> tuple[Float[Tensor, "c c"], Float[Tensor, "c c"]]:
        """`s V S U` of a block, for q and v."""
        u, v = self.u.weight, self.scale * self.v.weight
        return v @ (_matrix(self.q_cores[block]) @ u), v @ (_matrix(self.v_cores[block]) @ u)


class LoraIncrements(Increments):
    """`q += s B dropout(A x)`, same for v. Each block and projection has its own matrices; B starts at zero.

    Source: Hu et al., LoRA, ICLR 2022, with dropout at the same place as in FacT, so that the two can be compared.
    """

    def __init__(self, *, dim: int, depth: int, rank: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.scale = scale
        self.q_down = nn.ModuleList(nn.Linear(dim, rank, bias=False) for _ in range(depth))
        self.q_up = nn.ModuleList(nn.Linear(rank, dim, bias=False) for _ in range(depth))
        self.v_down = nn.ModuleList(nn.Linear(dim, rank, bias=False) for _ in range(depth))
        self.v_up = nn.ModuleList(nn.Linear(rank, dim, bias=False) for _ in range(depth))
        self.dropout = nn.Dropout(dropout)
        for up in (*self.q_up, *self.v_up):
            nn.init.zeros_(_matrix(up))

    def forward(
        self, block: int, x: Float[Tensor, "*tokens c"], qkv: Float[Tensor, "*tokens c3"]
    ) -> Float[Tensor, "*tokens c3"]:
        """Queries, keys and values of a block's tokens `x`. The increments of q and v are added in place."""
        q = self.dropout(self.q_down[block](x))
        v = self.dropout(self.v_down[block](x))
        return _add_increments(qkv, q, v, _matrix(self.q_up[block]), _matrix(self.v_up[block]), self.scale)

    def weights(self, block: int) -> tuple[Float[Tensor, "c c"], Float[Tensor, "c c"]]:
        """`s B A` of a block, for q and v."""
        q = _matrix(self.q_up[block]) @ _matrix(self.q_down[block])
        v = _matrix(self.v_up[block]) @ _matrix(self.v_down[block])
        return self.scale * q, self.scale * v


def _add_increments(
    qkv: Float[Tensor, "*tokens c3"],
    q: Float[Tensor, "*tokens r"],
    v: Float[Tensor, "*tokens r"],
    q_up: Float[Tensor, "c r"],
    v_up: Float[Tensor, "c r"],
    scale: float,
) -> Float[Tensor, "*tokens c3"]:
    """Add `scale * q_up q` to the queries and `scale * v_up v` to the values, in place.

    One product adds to the existing values, so its gradient is that of `qkv`, without a copy.
    """
    rank = q.shape[-1]
    up = torch.cat([F.pad(q_up, (0, rank)), q_up.new_zeros(len(q_up), 2 * rank), F.pad(v_up, (rank, 0))])
    rows = qkv.flatten(0, -2)
    reduced = torch.cat([q, v], dim=-1).flatten(0, -2)
    return rows.addmm_(reduced.to(qkv.dtype), up.T.to(qkv.dtype), alpha=scale).view(qkv.shape)


def _matrix(layer: nn.Module) -> Tensor:
    return layer.get_parameter("weight")


def _no_increments(*, dim: int, depth: int, rank: int, scale: float, dropout: float) -> None:
    return None


INCREMENTS: dict[str, Callable[..., Increments | None]] = {
    "fact": FacTIncrements,
    "lora": LoraIncrements,
    "none": _no_increments,
}


def find_increments(name: str) -> Callable[..., Increments | None]:
    """Find the class of increments by name, ours or a plug-in's. Raises PlanError that lists the known ones."""
    return find_entry("increments", name, INCREMENTS, field="network.increment")


def folded_weight(weight: Float[Tensor, "c3 c"], increments: Increments, block: int) -> Float[Tensor, "c3 c"]:
    """A block's frozen qkv weight plus the increments of q and v, in float32 if the increments are.

    If the block's tokens have fewer channels than its queries, only the first columns of the increments count.
    """
    q, v = increments.weights(block)
    return weight + torch.cat([q, torch.zeros_like(q), v])[:, : weight.shape[1]]
