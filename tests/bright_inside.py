"""A Segmenter that needs no weights: it takes what is bright inside a box."""

import torch

from masam_auto.network.promptable import CanvasPrompts, Masks
from masam_auto.prediction.segmenter import Segmenter, SegmentSettings


class BrightInside(torch.nn.Module):
    """Stands for a network: what is brighter than the middle of the range inside each box, or anywhere for points."""

    def __init__(self, canvas: int, pixels: str) -> None:
        super().__init__()
        self.canvas, self.pixels, self.padding = canvas, pixels, (0.0, 0.0, 0.0)
        self.encoded: list[int] = []

    def encode(self, slices: torch.Tensor) -> torch.Tensor:
        self.encoded.append(len(slices))
        return slices

    def decode(self, embedding: torch.Tensor, prompts: CanvasPrompts) -> Masks:
        count = len(prompts.boxes if prompts.boxes is not None else prompts.points)  # type: ignore[arg-type]
        logits = 10 * (embedding[:, 0] - 0.5).repeat(count, 1, 1)
        for one, corners in zip(logits, prompts.boxes if prompts.boxes is not None else (), strict=False):
            x0, y0, x1, y1 = (round(float(value)) for value in corners)
            outside = torch.ones_like(one, dtype=torch.bool)
            outside[y0:y1, x0:x1] = False
            one[outside] = -5
        return Masks(logits=logits, quality=torch.full((count,), 0.9))


def bright(canvas: int = 48, pixels: str = "unit", **settings: object) -> Segmenter:
    return Segmenter(
        network=BrightInside(canvas, pixels),  # type: ignore[arg-type]
        device=torch.device("cpu"),
        settings=SegmentSettings(**settings),  # type: ignore[arg-type]
    )
