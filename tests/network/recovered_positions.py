"""SAM's random position-encoding matrix as it was before a file rounded it, recovered from logits.

Reference folders hold this buffer in float16, but their logits may have been computed with the matrix before rounding.
How it was drawn is nobody's business here: the logits are smooth in its few entries, so some of the logits give the
entries by least squares, each within the interval that rounds to the stored value. Everything else of the network is
fixed, and the logits that were not used must agree too: a network that is wrong stays wrong, as a test shows.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import lsq_linear
from torch import Tensor, nn

SLICES = 3  # of the first window, whose logits are used; fewer where the canvas is large
PIXELS = 3 * 160**2
EQUATIONS = 2**14  # for each set of logits
STEPS = 4
CHUNK = 16  # entries whose derivatives are computed at once


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """A network, in evaluation mode, and logits that it should give.

    `image` (B, N, C, H, W) and `boxes` (B, N, 4) or None; `logits` (B * N, K, H, W). Of the logits at most half are
    used, from a few slices.
    """

    network: Any
    image: Tensor
    boxes: Tensor | None
    logits: Tensor


class Prompts(nn.Module):
    """SAM's prompt encoder for no prompt or boxes, with a matrix (2, channels / 2) that can be differentiated.

    Source: Kirillov et al., Segment Anything, ICCV 2023: sine and cosine of random projections of the place in -1..1.
    """

    def __init__(self, encoder: Any, canvas: tuple[int, int], dtype: torch.dtype) -> None:
        super().__init__()
        self.canvas = canvas
        self.grid = encoder.image_embedding_size
        self.empty = encoder.no_mask_embed.weight.detach().to(dtype)
        self.corners = torch.cat([encoder.point_embeddings[n].weight.detach() for n in (2, 3)]).to(dtype)
        self.matrix: Any = None

    def encode(self, x: Tensor, y: Tensor) -> Tensor:
        """Of places in 0..1; the last axis is the channels."""
        phases = 2 * math.pi * (2 * torch.stack([x, y], dim=-1) - 1) @ self.matrix
        return torch.cat([phases.sin(), phases.cos()], dim=-1)

    def get_dense_pe(self) -> Tensor:
        y, x = ((torch.arange(side, dtype=self.empty.dtype) + 0.5) / side for side in self.grid)
        rows, columns = torch.meshgrid(y, x, indexing="ij")
        return self.encode(columns, rows).permute(2, 0, 1)[None]

    def forward(self, points: None, boxes: Tensor | None, masks: None) -> tuple[Tensor, Tensor]:
        count = 1 if boxes is None else len(boxes)
        dense = self.empty[:, :, None, None].expand(count, -1, *self.grid)
        if boxes is None:
            return dense.new_zeros(1, 0, self.empty.shape[1]), dense
        corners = boxes.to(self.empty.dtype).reshape(-1, 2, 2) + 0.5
        places = self.encode(corners[..., 0] / self.canvas[1], corners[..., 1] / self.canvas[0])
        return places + self.corners, dense


class Decoding:
    """Some logits of the evidence as a function of the matrix, and what they should be."""

    def __init__(self, evidence: Evidence, dtype: torch.dtype) -> None:
        self.network = copy.deepcopy(evidence.network).to(dtype)
        self.network.prompt_encoder = Prompts(evidence.network.prompt_encoder, self.network.canvas, dtype)
        window = evidence.image[:1].to(dtype)
        self.used = max(1, min(SLICES, window.shape[1], PIXELS // math.prod(self.network.canvas)))
        features = self.network.image_encoder(window.flatten(0, 1), window.shape[1])
        self.features = features._replace(embedding=features.embedding[: self.used])
        self.boxes = None if evidence.boxes is None else evidence.boxes[0, : self.used]
        wanted = evidence.logits[: self.used].flatten()
        self.every = max(2, math.ceil(wanted.numel() / EQUATIONS))
        self.wanted = wanted[:: self.every].to(dtype)

    def __call__(self, matrix: Tensor) -> Tensor:
        self.network.prompt_encoder.matrix = matrix
        return self.network.decode(self.features, self.boxes, self.used).flatten()[:: self.every]


def rounding_interval(stored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest numbers that float16 rounds to the stored ones, less a hair for float32."""
    assert stored.dtype == np.float16
    low, high = (np.nextafter(stored, np.float16(end)) - stored.astype(np.float64) for end in (-np.inf, np.inf))
    return stored + 0.4999 * low, stored + 0.4999 * high


def jacobian(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """(values, entries) derivatives of a function of a matrix, forward mode."""

    def derivative(direction: Tensor) -> Tensor:
        return torch.func.jvp(function, (at,), (direction,))[1]

    directions = torch.eye(at.numel()).reshape(-1, *at.shape)
    return torch.func.vmap(derivative, out_dims=1, chunk_size=CHUNK)(directions)


@torch.no_grad()
def recover_positions(evidence: Sequence[Evidence], stored: np.ndarray) -> Tensor:
    """The matrix within the rounding interval of the stored one with which the logits are nearest to the evidence.

    Args:
        evidence: of one or several modes.
        stored: (2, channels / 2) float16.

    Returns:
        (2, channels / 2) float32.
    """
    low, high = rounding_interval(stored)
    matrix = torch.from_numpy(stored.astype(np.float64))
    derivatives = []
    for decoding in (Decoding(one, torch.float32) for one in evidence):
        derivatives.append(jacobian(decoding, matrix.float()).double())
    q, r = torch.linalg.qr(torch.cat(derivatives))
    decodings = [Decoding(one, torch.float64) for one in evidence]
    for _ in range(STEPS):  # the derivatives change little within the interval
        left = torch.cat([decoding.wanted - decoding(matrix) for decoding in decodings])
        start = matrix.numpy().ravel()
        bounds = (low.ravel() - start, high.ravel() - start)
        step = lsq_linear(r.numpy(), (q.T @ left).numpy(), bounds=bounds, tol=1e-14)
        matrix = torch.from_numpy((start + step.x).reshape(stored.shape))
    return matrix.float()
