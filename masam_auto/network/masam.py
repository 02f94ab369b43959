"""MA-SAM: windows of slices in, logits at canvas resolution out."""

import contextlib
from contextlib import AbstractContextManager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from masam_auto.core.encoder_sizes import EncoderSizes
from masam_auto.core.errors import ModelError
from masam_auto.core.plan import NetworkPlan
from masam_auto.network.decoder import choose_decoder
from masam_auto.network.encoder import Features
from masam_auto.network.encoder_kinds import kind_of
from masam_auto.network.sam import PromptEncoder


class MaSam(nn.Module):
    """The full network for one canvas size and any number of slices in a window.

    Pixels are used as preprocessed: SAM's pixel mean and deviation are not applied.
    """

    def __init__(
        self, spec: EncoderSizes, plan: NetworkPlan, *, canvas: tuple[int, int], in_channels: int, num_outputs: int
    ) -> None:
        super().__init__()
        self.plan = plan
        self.spec = spec
        self.canvas = canvas
        self.in_channels = in_channels
        decoder = choose_decoder(plan.decoder)
        self.features_held = decoder.features_held
        self.image_encoder = kind_of(spec).build(
            spec, plan, canvas=canvas, in_channels=in_channels, with_levels=decoder.fuses_levels
        )
        self.prompt_encoder = PromptEncoder(
            embed_dim=spec.embedding,
            image_embedding_size=(canvas[0] // spec.token_stride, canvas[1] // spec.token_stride),
            input_image_size=canvas,
            mask_in_chans=16,
        )
        # SAM's random start is as large as the features that it is added to
        if plan.weights == "none" or "prompt_encoder." in kind_of(spec).missing:
            nn.init.zeros_(self.prompt_encoder.no_mask_embed.weight)
        self.mask_decoder: Any = decoder.build(spec, num_outputs=num_outputs)

    def forward(
        self, windows: Float[Tensor, "b n c h w"], boxes: Float[Tensor, "b n 4"] | None = None
    ) -> Float[Tensor, "b n k h w"]:
        """Logits of windows.

        Args:
            windows: (B, N, C, H, W) normalised slices, H x W the canvas; any N.
            boxes: (B, N, 4) one box per slice, x0, y0, x1, y1 in canvas pixels; not-a-number for slices without one;
                None for no prompt at all.

        Raises:
            ModelError: a canvas or number of channels that the network was not built for, weights stored in half
                precision without autocast, or boxes for a network built without box prompts.
        """
        batch, num_slices = windows.shape[:2]
        self._check(windows, boxes)
        slices = windows.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        features = self.image_encoder(slices, num_slices)
        logits = self.decode(features, None if boxes is None else boxes.flatten(0, 1), num_slices)
        return logits.unflatten(0, (batch, num_slices))

    def decode(
        self, features: Features, boxes: Float[Tensor, "s 4"] | None, num_slices: int
    ) -> Float[Tensor, "s k h w"]:
        """Logits of encoded slices; windows of `num_slices` follow each other.

        A slice whose box is not-a-number gets the same logits as without boxes. Every trainable parameter always has a
        gradient, whichever slices have boxes, as data-parallel training needs.
        """
        if boxes is None:
            return self._decode(features, self._prompts(), num_slices)
        given = boxes.isfinite().all(dim=1)
        if self.mask_decoder.prompt == "mask":
            masks = box_masks(boxes.nan_to_num(), self.canvas, self.prompt_encoder.mask_input_size)
            sparse, boxed = self._prompts(masks=masks)
            _, plain = self._prompts()
            return self._decode(features, (sparse, torch.where(given[:, None, None, None], boxed, plain)), num_slices)
        if given.all():
            return self._decode(features, self._prompts(boxes=boxes), num_slices)
        # Prompts of one call must have the same number of tokens: decode slices with and without boxes separately.
        plain = self._decode(_some(features, ~given), self._prompts(), 1)
        if not given.any():
            return plain + 0 * sum(table.weight.sum() for table in self.prompt_encoder.point_embeddings[2:])
        boxed = self._decode(_some(features, given), self._prompts(boxes=boxes[given]), 1)
        logits = boxed.new_empty((len(boxes), *boxed.shape[1:]))
        return logits.index_put((given,), boxed).index_put((~given,), plain)

    def _decode(self, features: Features, prompts: tuple[Tensor, Tensor], num_slices: int) -> Float[Tensor, "s k h w"]:
        """Logits of encoded slices with (sparse, dense) prompts, for all slices or one set per slice."""
        sparse, dense = prompts
        with self._in_float32():
            positions = self.prompt_encoder.get_dense_pe()
        return self.mask_decoder(features, positions=positions, sparse=sparse, dense=dense, num_slices=num_slices)

    def _prompts(self, boxes: Tensor | None = None, masks: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """SAM's (sparse, dense) prompts."""
        with self._in_float32():
            return self.prompt_encoder(points=None, boxes=boxes, masks=masks)

    def _in_float32(self) -> AbstractContextManager[Any]:
        """No autocast: positions are sines of large angles, which bf16 would shift by whole tokens."""
        kind = next(self.parameters()).device.type
        if not torch.amp.is_autocast_available(kind):  # "meta", which computes nothing
            return contextlib.nullcontext()
        return torch.autocast(kind, enabled=False)

    def train(self, mode: bool = True) -> "MaSam":
        """Training mode for the parts that learn. Frozen parts stay in evaluation: no dropout, fixed statistics."""
        super().train(mode)
        if mode:
            for module in self.modules():
                parameters = list(module.parameters())
                if parameters and not any(parameter.requires_grad for parameter in parameters):
                    module.eval()
        return self

    def _check(self, windows: Tensor, boxes: Tensor | None) -> None:
        if tuple(windows.shape[3:]) != self.canvas or windows.shape[2] != self.in_channels:
            raise ModelError(
                f"the network was built for {self.in_channels} channels on a canvas of {self.canvas[0]} x "
                f"{self.canvas[1]} px, but the windows have {windows.shape[2]} channels of {windows.shape[3]} x "
                f"{windows.shape[4]} px; use the plan that it was trained with"
            )
        matrices = (parameter for parameter in self.image_encoder.parameters() if parameter.ndim > 1)
        stored = next((matrix.dtype for matrix in matrices if not matrix.requires_grad), windows.dtype)
        if stored != windows.dtype and not torch.is_autocast_enabled(windows.device.type):
            raise ModelError(
                f"the network's frozen weights are stored as {stored}, the windows as {windows.dtype}: use "
                "torch.autocast, or build the network with frozen_dtype=torch.float32"
            )
        if boxes is not None and self.plan.prompt != "box":
            raise ModelError('this network was trained without boxes; train one with network.prompt="box" to give them')


def _some(features: Features, chosen: Tensor) -> Features:
    """Features of the chosen slices only."""
    return Features(features.embedding[chosen], tuple(level[chosen] for level in features.levels))


def box_masks(boxes: Float[Tensor, "s 4"], canvas: tuple[int, int], size: tuple[int, int]) -> Float[Tensor, "s 1 h w"]:
    """Each box as a mask of `size` (rows, columns) over the canvas: the share of each cell that the box covers.

    Args:
        boxes: x0, y0, x1, y1 in canvas pixels, x0 <= x1 and y0 <= y1.
        canvas: (height, width) in pixels.
        size: rows and columns of the mask.
    """
    columns = _coverage(boxes[:, 0], boxes[:, 2], canvas[1], size[1])
    rows = _coverage(boxes[:, 1], boxes[:, 3], canvas[0], size[0])
    return (rows[:, :, None] * columns[:, None, :])[:, None]


def _coverage(start: Float[Tensor, "s"], stop: Float[Tensor, "s"], length: int, cells: int) -> Float[Tensor, "s cells"]:
    """Share of each of `cells` equal parts of an axis that is between start and stop."""
    edges = torch.linspace(0, length, cells + 1, device=start.device, dtype=start.dtype)
    overlap = torch.minimum(stop[:, None], edges[1:]) - torch.maximum(start[:, None], edges[:-1])
    return F.relu(overlap) * (cells / length)
