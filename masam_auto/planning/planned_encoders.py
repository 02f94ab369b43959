"""What planning needs to know of an encoder to choose it, and the inputs that suit it."""

from dataclasses import dataclass
from typing import Literal

from masam_auto.core.encoder_sizes import DinoSpec, EncoderSizes, HieraSpec, TinyViTSpec
from masam_auto.core.encoders import ENCODERS, find_encoder


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRule:
    """The steps of an encoder on a machine without a GPU.

    `pixels`: canvas px a step of a fold without a budget, or more if the machine has time for it. `steps`: a time
    budget for this many steps of that size uses it; twice the budget means steps 1.4 times as large, and 1.4 times as
    many. `windows`: fewest a step; one only if nothing else is left to shorten. `multiple`: canvas sides are multiples
    of so many px, which its attention windows fill well. `coarsest`: smaller steps show slices in coarser pixels, down
    to this share of their resolution, before they show only part of a slice. `overlap`: share of a tile that the next
    one also has, in prediction.
    """

    pixels: int
    steps: int
    windows: int
    multiple: int
    coarsest: float = 0.0
    overlap: float = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedEncoder:
    """An encoder that the planner may choose, and the inputs that suit it.

    `detail`: side in px of the smallest thing the decoder can draw from features alone: the token, or the stem's finest
    level. `budget`: largest canvas side in px. `longest_window`: most slices in a training window. `whole_from`: with
    training windows of at least this many slices, a whole volume may be predicted as one window. `decoder`: the decoder
    that belongs to it. `sam`: starts from SAM's weights and is adapted; otherwise trained from scratch. `pixels`: what
    its weights were trained on, channels scaled to 0..1 ("unit") or z-scores. `without_gpu`: how a machine without a
    GPU trains it; None if that would take days. `whose`: who made the weights, and their licence where it is not SAM's.
    `only_encoder`: they hold no neck, prompt encoder or mask decoder, which start from random numbers.
    """

    name: str
    spec: EncoderSizes
    detail: int
    budget: int
    longest_window: int
    whole_from: int
    decoder: str
    sam: bool
    pixels: Literal["zscore", "unit"] = "zscore"
    without_gpu: StepRule | None = None
    whose: str = "SAM's"
    only_encoder: bool = False

    @property
    def token(self) -> int:
        """Side in canvas px of the encoder's largest token. Canvas sides are whole tokens."""
        return self.spec.canvas_unit

    @property
    def windowed(self) -> int:
        """Side in tokens of the attention windows that a canvas should fill; 0 if every block attends globally."""
        return self.spec.windowed


def _planned(name: str, spec: EncoderSizes) -> PlannedEncoder:
    """What suits an encoder in SAM's form, one with a stem, a TinyViT, one of DINO's, or a Hiera.

    Source: budget 512 px and progressive upsampling are the paper's; vit_t's budget and window are measured.
    """
    if isinstance(spec, HieraSpec):
        return PlannedEncoder(
            name=name,
            spec=spec,
            detail=spec.token_stride,
            budget=512,
            longest_window=9,
            whole_from=5,
            decoder="progressive",
            sam=True,
            pixels="unit",
        )
    if isinstance(spec, TinyViTSpec):
        return PlannedEncoder(
            name=name,
            spec=spec,
            detail=spec.token_stride,
            budget=5 * spec.windowed * spec.token_stride,  # 280 px, or 1120: the sides trained with, in whole windows
            longest_window=9,
            whole_from=3,
            decoder="progressive",
            sam=True,
            pixels="unit",
            # two windows of 3 x 84 x 84 px
            without_gpu=StepRule(pixels=43_000, steps=180, windows=2, multiple=28, coarsest=0.75, overlap=0.25)
            if spec.token_stride == 4
            else None,
        )
    if isinstance(spec, DinoSpec):
        return PlannedEncoder(
            name=name,
            spec=spec,
            detail=spec.token_stride,
            budget=round(512 / spec.token_stride) * spec.token_stride,
            longest_window=9,
            whole_from=5,
            decoder="progressive",
            sam=True,
            pixels="unit",
            whose="DINOv2's (Apache-2.0)" if spec.positions else "DINOv3's (Meta's DINOv3 License)",
            only_encoder=True,
        )
    if spec.taps:
        return PlannedEncoder(
            name=name, spec=spec, detail=16, budget=512, longest_window=9, whole_from=5, decoder="progressive", sam=True
        )
    return PlannedEncoder(
        name=name,
        spec=spec,
        detail=1,
        budget=256,
        longest_window=17,
        whole_from=9,
        decoder="multiscale",
        sam=False,
        without_gpu=StepRule(pixels=100_000, steps=7200, windows=2, multiple=8),
    )


PLANNED_ENCODERS: dict[str, PlannedEncoder] = {name: _planned(name, spec) for name, spec in ENCODERS.items()}


def planned_encoder(name: str) -> PlannedEncoder:
    """What planning needs to know of an encoder, ours or a plug-in's. Raises PlanError that lists the known ones."""
    return PLANNED_ENCODERS[name] if name in PLANNED_ENCODERS else _planned(name, find_encoder(name))
