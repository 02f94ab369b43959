"""SAM's attention with decomposed relative positions: exact, but without storing a (tokens x tokens) bias."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from masam_auto.network.fact import Increments, folded_weight

# On a CPU, plain products are 1.2 to 8 times as fast as the fused kernel (measured, 35 to 1024 tokens). They are used
# as long as all scores together are fewer values than this (256 MiB in float32).
PLAIN_SCORES = 2**26


def attend(
    q: Float[Tensor, "s t n e"],
    k: Float[Tensor, "s u n e"],
    v: Float[Tensor, "s u n d"],
    scale: float = 1.0,
    bias: Float[Tensor, "n t u"] | None = None,
) -> Float[Tensor, "s t n _"]:
    """Softmax attention of products times `scale`, plus `bias`, of `t` tokens to `u`; `s` slices or windows, `n` heads.

    Only the first D channels of the result count. If a fused kernel needs values as wide as queries and keys, zeros
        follow.
    """
    slices, tokens, heads, width = q.shape
    if q.device.type == "cpu" and slices * heads * tokens * k.shape[1] <= PLAIN_SCORES:
        # Autocast would store the probabilities in float32; the kernel sums in float32 anyway.
        with torch.autocast("cpu", enabled=False):
            scores = (q * scale).transpose(1, 2) @ k.permute(0, 2, 3, 1)
            if bias is not None:
                scores = scores + bias.to(scores.dtype)
            return (scores.softmax(-1) @ v.transpose(1, 2)).transpose(1, 2)
    # Padded by `cat`, whose gradient is a view.
    v = torch.cat([v, _zeros(v, width - v.shape[-1])], dim=-1)
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    mask = None if bias is None else bias.to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale).transpose(1, 2)


def _zeros(like: Float[Tensor, "s t n e"], width: int) -> Float[Tensor, "s t n _"]:
    return like.new_zeros(()).expand(*like.shape[:3], width)


def relative_index(size: int, device: torch.device) -> Int[Tensor, "size size"]:
    """Row of the relative-position table for each pair (query position, key position) along an axis."""
    place = torch.arange(size, device=device)
    return place[:, None] - place[None, :] + size - 1


class TakeRows(torch.autograd.Function):
    """Select rows by index, each at most once, and the first channels of each.

    The gradient is put back in one step; those of `index_select` and of a slice are added into zeros one by one.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor, channels: int) -> Tensor:
        """`x[places, ..., :channels]`."""
        ctx.save_for_backward(places)
        ctx.shape = x.shape
        return x[..., :channels].index_select(0, places)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """The gradient back at its places, zeros elsewhere."""
        (places,) = ctx.saved_tensors
        whole = gradient.new_zeros(ctx.shape)
        whole[..., : gradient.shape[-1]].index_copy_(0, places, gradient)
        return whole, None, None


def window_places(
    slices: int, size: tuple[int, int], grid: tuple[int, int], device: torch.device
) -> Int[Tensor, "tokens"]:
    """Index of the tokens of slices of `size` in windows of `grid`, in token order: (windows x tokens of each) rows."""
    rows, columns = grid
    down, right = -(-size[0] // rows), -(-size[1] // columns)
    places = torch.arange(slices * down * right * rows * columns, device=device)
    whole = (
        places.view(slices, down, right, rows, columns).transpose(2, 3).reshape(slices, down * rows, right * columns)
    )
    return whole[:, : size[0], : size[1]].flatten()


def in_windows(
    x: Float[Tensor, "s h w c"], filling: Float[Tensor, "c"], grid: tuple[int, int]
) -> tuple[Float[Tensor, "windows t c"], Int[Tensor, "tokens"]]:
    """Tokens in windows of `grid`, with `filling` beyond the slices' ends; and the place (`window_places`) of each."""
    slices, height, width, _ = x.shape
    places = window_places(slices, (height, width), grid, x.device)
    windows = slices * -(-height // grid[0]) * -(-width // grid[1])
    filled = filling.to(x.dtype).expand(windows * grid[0] * grid[1], -1)
    return filled.index_copy(0, places, x.flatten(0, 2)).unflatten(0, (windows, -1)), places


def project(
    x: Float[Tensor, "*tokens c"],
    weight: Float[Tensor, "c3 c"],
    bias: Float[Tensor, "c3"],
    increments: Increments | None,
    block: int,
) -> Float[Tensor, "*tokens c3"]:
    """Queries, then keys, then values of tokens, with the increments of a block; folded if they do not learn now.

    Where the projection also widens the tokens, the increments see zeros in the channels that these do not have.
    """
    if increments is None:
        return F.linear(x, weight, bias)
    if increments.training:
        missing = len(weight) // 3 - x.shape[-1]
        return increments(block, F.pad(x, (0, missing)) if missing else x, F.linear(x, weight, bias))
    return F.linear(x, folded_weight(weight, increments, block), bias)


class Attention(nn.Module):
    """Multi-head self-attention over (rows, columns) of tokens, or within windows of them; SAM's names and shapes.

    The relative-position terms are extra channels of queries and keys: `q' = [q, rel_h / scale, rel_w / scale]` and
    `k' = [k, onehot(row), onehot(column)]`. So one product of q' and k', times scale, gives the biased scores. Zeros
    pad both to a multiple of 8 channels; otherwise the fused kernels would copy them.

    From projection to result, tokens are rows with all heads side by side. Kernels select heads by strides, and a token
    moves as one piece into its window and back.

    Args:
        dim: channels.
        heads: number of parts that the channels are split into.
        grid: (rows, columns) of the tokens that attend to each other.
        windowed: cut slices of any size into windows of `grid`. SAM pads them with zeros. As keys and values these are
            the bias of `qkv`, so they are added after the projection, which never sees them.
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
        """Attention within each of `s` slices; the `increments` of q and v are those of block number `block`."""
        _, height, width, channels = x.shape
        assert self.windowed or (height, width) == self.grid, f"{height} x {width} tokens, tables for {self.grid}"
        qkv, places = project(x, self.qkv.weight, self.qkv.bias, increments, block), None
        if self.windowed:
            qkv, places = in_windows(qkv, self.qkv.bias, self.grid)
        tokens = self.grid[0] * self.grid[1]
        q, k, v = qkv.view(-1, tokens, 3, self.heads, channels // self.heads).unbind(2)
        tables, marks = self._positions(q.dtype)
        # One product per grid position: each has its own table.
        bias = torch.einsum("bthe,tek->bthk", q, tables)
        extra = bias.shape[-1]
        filled = _zeros(q, -(q.shape[-1] + extra) % 8)
        q = torch.cat([q, bias.to(q.dtype), filled], dim=-1)
        k = torch.cat([k, marks[:, None].expand(*k.shape[:3], extra), filled], dim=-1)
        out = attend(q, k, v, self.scale)
        width = v.shape[-1]
        out = out[..., :width] if places is None else TakeRows.apply(out.flatten(0, 1), places, width)
        return self.proj(out.reshape(x.shape))

    def _positions(self, dtype: torch.dtype) -> tuple[Float[Tensor, "t e k"], Float[Tensor, "t k"]]:
        """For each grid token: what turns its query into row and column terms, and its own row and column, one-hot."""
        rows, columns = self.grid
        device = self.rel_pos_h.device
        in_rows = self.rel_pos_h[relative_index(rows, device)][:, None].expand(-1, columns, -1, -1)
        in_columns = self.rel_pos_w[relative_index(columns, device)][None].expand(rows, -1, -1, -1)
        tables = torch.cat([in_rows, in_columns], dim=2).flatten(0, 1).transpose(1, 2) / self.scale
        row = torch.eye(rows, dtype=dtype, device=device)[:, None].expand(-1, columns, -1)
        column = torch.eye(columns, dtype=dtype, device=device)[None].expand(rows, -1, -1)
        return tables.to(dtype), torch.cat([row, column], dim=2).flatten(0, 1)
