"""SAM's attention with decomposed relative positions, exact and without a stored (tokens x tokens) bias."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from masam_auto.network.fact import Increments, folded_weight
from masam_auto.network.sam import window_partition, window_unpartition

# On a CPU, plain products are 1.2 to 8 times as fast as the fused kernel (measured, 35 to 1024 tokens), and are used
# while all scores together stay below this many values (256 MiB in float32).
PLAIN_SCORES = 2**26


def attend(
    q: Float[Tensor, "s n t e"], k: Float[Tensor, "s n t e"], v: Float[Tensor, "s n t d"]
) -> Float[Tensor, "s n t d"]:
    """Softmax attention with scale 1; `s` slices or windows, `n` heads, `t` tokens."""
    slices, heads, tokens, width = q.shape
    if q.device.type == "cpu" and slices * heads * tokens**2 <= PLAIN_SCORES:
        return (q @ k.transpose(-1, -2)).softmax(-1).to(v.dtype) @ v
    # The flash kernels ask for values as wide as queries and keys.
    padded = F.pad(v, (0, width - v.shape[-1]))
    return F.scaled_dot_product_attention(q, k, padded, scale=1.0)[..., : v.shape[-1]]


def relative_index(size: int, device: torch.device) -> Int[Tensor, "size size"]:
    """Row of the relative-position table for each pair (query place, key place) along an axis."""
    place = torch.arange(size, device=device)
    return place[:, None] - place[None, :] + size - 1


class Attention(nn.Module):
    """Multi-head self-attention over a (rows, columns) grid of tokens; SAM's names and shapes.

    The relative-position terms are extra channels of queries and keys, `q' = [q * scale, rel_h, rel_w]` and
    `k' = [k, onehot(row), onehot(column)]`, so that one product of q' and k' gives the biased scores.
    """

    def __init__(self, *, dim: int, heads: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.heads = heads
        self.grid = grid
        self.scale = (dim // heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * grid[0] - 1, dim // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * grid[1] - 1, dim // heads))

    def forward(
        self, x: Float[Tensor, "s h w c"], increments: Increments | None, block: int
    ) -> Float[Tensor, "s h w c"]:
        """Attention within each of `s` grids; `increments` of q and v belong to block number `block`."""
        slices, height, width, channels = x.shape
        assert (height, width) == self.grid, f"{height} x {width} tokens, tables for {self.grid}"
        parts = [
            part.view(slices, height, width, self.heads, -1).permute(0, 3, 1, 2, 4)
            for part in self._project(x, increments, block)
        ]
        q, k, v = parts  # each (s, heads, h, w, width of a head)
        index_h, index_w = relative_index(height, x.device), relative_index(width, x.device)
        bias_h = torch.einsum("snhwe,hke->snhwk", q, self.rel_pos_h[index_h].to(q.dtype))
        bias_w = torch.einsum("snhwe,wke->snhwk", q, self.rel_pos_w[index_w].to(q.dtype))
        rows = torch.eye(height, dtype=k.dtype, device=k.device)[:, None].expand(*k.shape[:4], height)
        columns = torch.eye(width, dtype=k.dtype, device=k.device).expand(*k.shape[:4], width)
        q = torch.cat([q * self.scale, bias_h.to(q.dtype), bias_w.to(q.dtype)], dim=-1).flatten(2, 3)
        k = torch.cat([k, rows, columns], dim=-1).flatten(2, 3)
        out = attend(q, k, v.flatten(2, 3))
        return self.proj(out.transpose(1, 2).reshape(slices, height, width, channels))

    def _project(
        self, x: Float[Tensor, "s h w c"], increments: Increments | None, block: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        if increments is None:
            q, k, v = self.qkv(x).chunk(3, dim=-1)
        elif increments.training:
            q, k, v = self.qkv(x).chunk(3, dim=-1)
            more_q, more_v = increments(block, x)
            q, v = q + more_q, v + more_v
        else:
            q, k, v = F.linear(x, folded_weight(self.qkv.weight, increments, block), self.qkv.bias).chunk(3, dim=-1)
        return q, k, v


def attend_in_windows(
    attention: Attention, x: Float[Tensor, "s h w c"], increments: Increments | None, block: int
) -> Float[Tensor, "s h w c"]:
    """Attention within square windows of the size that `attention` was made for; SAM pads the rest with zeros."""
    windows, padded = window_partition(x, attention.grid[0])
    windows = attention(windows, increments, block)
    return window_unpartition(windows, attention.grid[0], padded, tuple(x.shape[1:3]))
