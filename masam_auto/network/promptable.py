"""PromptableSam: SAM as it was pretrained, an image encoder and a decoder that turns boxes and points into masks."""

import contextlib
import functools
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from masam_auto.core.encoder_sizes import EncoderSizes, TinyViTSpec
from masam_auto.core.encoders import IMAGENET_MEAN, IMAGENET_STD, find_encoder
from masam_auto.core.errors import ModelError
from masam_auto.core.plan import NetworkPlan
from masam_auto.network.encoder_kinds import kind_of
from masam_auto.network.sam import MaskDecoder, PromptEncoder, TwoWayTransformer, fit_state

Pixels = Literal["unit", "sam"]
"""What an encoder was trained on: 0..1 as it is, or minus SAM's mean and divided by its deviation."""

CHANNELS = 3
WHOLE_GRID = 64  # tokens along a side of the canvas that all these weights were trained with
MASKS = 3  # what SAM offers for an ambiguous prompt, besides its single mask


class Masks(NamedTuple):
    """Mask logits of prompts at canvas resolution, and the overlap (IoU) with the object that SAM predicts for each."""

    logits: Float[Tensor, "p h w"]
    quality: Float[Tensor, "p"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CanvasPrompts:
    """Prompts of one slice, in canvas pixels measured from the canvas's edge. All have as many points.

    `boxes`: (P, 4) x0, y0, x1, y1. `points`: (P, N, 2) x, y; `on_object` (P, N) 1 for points on the object, 0 for
    points beside it.
    """

    boxes: Tensor | None = None
    points: Tensor | None = None
    on_object: Tensor | None = None


class PromptableSam(nn.Module):
    """SAM's three parts for a square canvas. State-dict names are those of SAM's files.

    `pixels`: how the encoder wants its images; both kinds are given as 0..1.
    """

    def __init__(self, spec: EncoderSizes, *, encoder: str, canvas: int, pixels: Pixels) -> None:
        super().__init__()
        plan = NetworkPlan(encoder=encoder, decoder="sam", weights="sam", trained="none").as_built
        self.spec, self.canvas, self.pixels = spec, canvas, pixels
        self.image_encoder = kind_of(spec).build(
            spec, plan, canvas=(canvas, canvas), in_channels=CHANNELS, with_levels=False
        )
        grid = canvas // spec.token_stride
        self.prompt_encoder = PromptEncoder(
            embed_dim=spec.embedding,
            image_embedding_size=(grid, grid),
            input_image_size=(canvas, canvas),
            mask_in_chans=16,
        )
        transformer = TwoWayTransformer(
            depth=2, embedding_dim=spec.embedding, mlp_dim=spec.decoder_mlp, num_heads=spec.decoder_heads
        )
        self.mask_decoder: Any = MaskDecoder(
            transformer_dim=spec.embedding,
            transformer=transformer,
            num_multimask_outputs=MASKS,
            iou_head_depth=3,
            iou_head_hidden_dim=spec.embedding,
        )

    @property
    def padding(self) -> tuple[float, ...]:
        """Value of each channel beside the image: what the encoder sees as zero."""
        return IMAGENET_MEAN if self.pixels == "sam" else (0.0,) * CHANNELS

    def encode(self, slices: Float[Tensor, "s 3 h w"]) -> Float[Tensor, "s c gh gw"]:
        """Embeddings of slices in 0..1."""
        if self.pixels == "sam" and not _normalises(self.spec):
            mean, std = slices.new_tensor(IMAGENET_MEAN), slices.new_tensor(IMAGENET_STD)
            slices = (slices - mean[:, None, None]) / std[:, None, None]
        return self.image_encoder(slices.contiguous(memory_format=torch.channels_last), 1).embedding.float()

    def decode(self, embedding: Float[Tensor, "1 c gh gw"], prompts: CanvasPrompts) -> Masks:
        """Masks of one slice's prompts. For a single point SAM offers three; the one it thinks best is taken."""
        points = None if prompts.points is None else (prompts.points - 0.5, prompts.on_object)  # SAM adds the half
        boxes = None if prompts.boxes is None else prompts.boxes - 0.5
        with _in_float32(embedding.device):
            sparse, dense = self.prompt_encoder(points=points, boxes=boxes, masks=None)
            positions = self.prompt_encoder.get_dense_pe()
        several = boxes is None and prompts.points is not None and prompts.points.shape[1] == 1
        logits, quality = self.mask_decoder(
            image_embeddings=embedding,
            image_pe=positions,
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=several,
        )
        best = quality.argmax(dim=1)
        logits, quality = (values[torch.arange(len(best)), best].float() for values in (logits, quality))
        if logits.shape[-1] != self.canvas:
            size = (self.canvas, self.canvas)
            logits = F.interpolate(logits[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
        return Masks(logits=logits, quality=quality)


def build_promptable(
    encoder: str,
    state: Mapping[str, Tensor],
    *,
    canvas: int | None = None,
    pixels: Pixels | None = None,
    device: torch.device | str = "cpu",
    origin: str,
) -> PromptableSam:
    """SAM with its pretrained weights, in evaluation mode.

    Args:
        encoder: its name.
        state: all tensors of a SAM checkpoint, from `load_sam_checkpoint`.
        canvas: side in px; None for the one that the weights were trained with.
        pixels: how images are scaled; None for what the encoder's official weights want.
        device: where the network goes.
        origin: the file, for messages.

    Raises:
        ModelError: the state is of another encoder or incomplete, or the canvas is not a whole number of tokens.
        PlanError: an unknown encoder.

    Example:
        >>> from masam_auto.network.promptable import PromptableSam, build_promptable, CanvasPrompts
        >>> from masam_auto.core.encoders import find_encoder
        >>> made = PromptableSam(find_encoder("lite_medsam"), encoder="lite_medsam", canvas=256, pixels="unit")
        >>> sam = build_promptable("lite_medsam", made.state_dict(), canvas=32, origin="made up")
        >>> box = CanvasPrompts(boxes=torch.tensor([[4.0, 4.0, 20.0, 9.0]]))  # x0, y0, x1, y1
        >>> masks = sam.decode(sam.encode(torch.rand(1, 3, 32, 32)), box)
        >>> masks.logits.shape, masks.quality.shape
        (torch.Size([1, 32, 32]), torch.Size([1]))
    """
    spec = find_encoder(encoder)
    side = usual_canvas(spec) if canvas is None else canvas
    if side < spec.token_stride or side % spec.token_stride:
        raise ModelError(
            f"`canvas={side}`: the canvas of {encoder} must be a multiple of {spec.token_stride} px; its weights were "
            f"trained with {usual_canvas(spec)}."
        )
    with torch.device("meta"):
        network = PromptableSam(spec, encoder=encoder, canvas=side, pixels=pixels or usual_pixels(spec))
    if not any(name.startswith("mask_decoder.transformer.") for name in state):
        raise ModelError(
            f"{origin}: has the encoder {encoder}, but not SAM's decoder, which turns boxes into masks. Give weights "
            "of a whole SAM: LiteMedSAM, MobileSAM, or SAM's vit_b, vit_l or vit_h."
        )
    kind = kind_of(spec)
    fitted = fit_state(
        state,
        network.state_dict(),
        encoder=encoder,
        fit=functools.partial(kind.fit, spec),
        parts=(*kind.parts, "prompt_encoder.", "mask_decoder."),
        origin=origin,
    )
    network.load_state_dict(fitted, assign=True)
    return network.requires_grad_(False).eval().to(device)


def usual_canvas(spec: EncoderSizes) -> int:
    """Side in px of the canvas that an encoder's pretrained weights were trained with."""
    return WHOLE_GRID * spec.token_stride


def usual_pixels(spec: EncoderSizes) -> Pixels:
    """How an encoder's official weights want their images."""
    return "sam" if _normalises(spec) or not isinstance(spec, TinyViTSpec) else "unit"


def _normalises(spec: EncoderSizes) -> bool:
    """Whether the encoder itself subtracts SAM's mean."""
    return isinstance(spec, TinyViTSpec) and bool(spec.pixel_mean)


def _in_float32(device: torch.device) -> AbstractContextManager[Any]:
    """No autocast: positions are sines of large angles, which bf16 would shift by whole tokens."""
    return torch.autocast(device.type, enabled=False) if device.type != "meta" else contextlib.nullcontext()
