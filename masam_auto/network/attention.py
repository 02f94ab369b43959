"""SAM's attention with decomposed relative positions, exact and without a stored (tokens x tokens) bias."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from masam_auto.network.fact import Increments, folded_weight

# On a CPU, plain products are 1.2 to 8 times as fast as the fused kernel (measured, 35 to 1024 tokens), and are used
# while all scores together stay below this many values (256 MiB in float32).
PLAIN_SCORES = 2**26


def attend(
    q: Float[Tensor, "s n t e"], k: Float[Tensor, "s n t e"], v: Float[Tensor, "s n t d"]
) -> Float[Tensor, "s n t d"]:
    """Softmax attention with scale 1; `s` slices or windows, `n` heads, `t` tokens."""
    slices, heads, tokens, width = q.shape
    if q.device.type == "cpu" and slices * heads * tokens**2 <= PLAIN_SCORES:
        # Autocast would store the probabilities in float32; the kernel sums in float32 all the same.
        with torch.autocast("cpu", enabled=False):
            return (q @ k.transpose(-1, -2)).softmax(-1) @ v
    # The flash kernels ask for values as wide as queries and keys.
    padded = F.pad(v, (0, width - v.shape[-1]))
    return F.scaled_dot_product_attention(q, k, padded, scale=1.0)[..., : v.shape[-1]]


def relative_index(size: int, device: torch.device) -> Int[Tensor, "size size"]:
    """Row of the relative-position table for each pair (query place, key place) along an axis."""
    place = torch.arange(size, device=device)
    return place[:, None] - place[None, :] + size - 1


class Attention(nn.Module):
    """Multi-head self-attention over (rows, columns) of tokens, or within windows of them; SAM's names and shapes.

    The relative-position terms are extra channels of queries and keys, `q' = [q * scale, rel_h, rel_w]` and
    `k' = [k, onehot(row), onehot(column)]`, so that one product of q' and k' gives the biased scores.

    Args:
        dim: channels.
        heads: parts that they are divided into.
        grid: (rows, columns) of the tokens that attend to one another.
        windowed: slices of any size are cut into windows of `grid`. SAM pads them with zeros, which as keys and values
            are the bias of `qkv`: they are put in after the projection, which never sees them.
    """

    def __init__(self, *, dim: int, heads: int, grid: tuple[int, int], windowed: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.grid = grid
        self.windowed = windowed
        self.scale = (dim // heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * grid[0] - 1, dim // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * grid[1] - 1, dim // heads))

    def forward(
        self, x: Float[Tensor, "s h w c"], increments: Increments | None, block: int
    ) -> Float[Tensor, "s h w c"]:
        """Attention within each of `s` slices; `increments` of q and v belong to block number `block`."""
        slices, height, width, _ = x.shape
        assert self.windowed or (height, width) == self.grid, f"{height} x {width} tokens, tables for {self.grid}"
        q, k, v = (
            self._heads(part, bias)
            for part, bias in zip(self._project(x, increments, block), self.qkv.bias.chunk(3), strict=True)
        )
        rows, columns = self.grid
        index_h, index_w = relative_index(rows, x.device), relative_index(columns, x.device)
        bias_h = torch.einsum("snhwe,hke->snhwk", q, self.rel_pos_h[index_h].to(q.dtype))
        bias_w = torch.einsum("snhwe,wke->snhwk", q, self.rel_pos_w[index_w].to(q.dtype))
        in_row = torch.eye(rows, dtype=k.dtype, device=k.device)[:, None].expand(*k.shape[:4], rows)
        in_column = torch.eye(columns, dtype=k.dtype, device=k.device).expand(*k.shape[:4], columns)
        q = torch.cat([q * self.scale, bias_h.to(q.dtype), bias_w.to(q.dtype)], dim=-1).flatten(2, 3)
        k = torch.cat([k, in_row, in_column], dim=-1).flatten(2, 3)
        out = attend(q, k, v.flatten(2, 3))
        down, right = -(-height // rows), -(-width // columns)
        out = out.view(slices, down, right, self.heads, rows, columns, -1).permute(0, 1, 4, 2, 5, 3, 6)
        return self.proj(out.reshape(slices, down * rows, right * columns, -1)[:, :height, :width])

    def _heads(
        self, part: Float[Tensor, "s h w c"], bias: Float[Tensor, "c"]
    ) -> Float[Tensor, "windows n rows columns e"]:
        """Windows of the grid, window by window and head by head, filled up with what zeros are projected to."""
        slices, height, width, channels = part.shape
        rows, columns = self.grid
        bias = bias.to(part.dtype)
        if extra := -width % columns:
            part = torch.cat([part, bias.expand(slices, height, extra, channels)], dim=2)
        if extra := -height % rows:
            part = torch.cat([part, bias.expand(slices, extra, part.shape[2], channels)], dim=1)
        part = part.view(slices, part.shape[1] // rows, rows, part.shape[2] // columns, columns, self.heads, -1)
        return part.permute(0, 1, 3, 5, 2, 4, 6).flatten(0, 2)

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
