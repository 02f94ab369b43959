"""The slices of an image through a pretrained SAM: each is encoded once, and decoded for all of its prompts."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from masam_auto.compute.device import autocast
from masam_auto.imaging.square import SquareFit, from_square, onto_square
from masam_auto.network.promptable import CHANNELS, CanvasPrompts, PromptableSam
from masam_auto.prediction.propagation import SliceBox, SliceMask, SlicePoints, SlicePrompt, Track, ahead_of

KEPT_BYTES = 1 << 29  # of embeddings, for the second pass over the slices
AT_ONCE = {"cpu": 1}  # slices to encode together; on a CPU one fills every core
ON_OTHERS = 8
PROMPTS_AT_ONCE = 16
SMALLEST_RANGE = 1e-8


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedSlices:
    """The slices of one image as the network sees them.

    `volume` (1 or 3, Z, Y, X) has the slice axis first, and `range` is what becomes 0 and 1. Embeddings of the last
    slices are in `kept`; `tracks` tell which ones come next.
    """

    network: PromptableSam
    device: torch.device
    volume: np.ndarray
    range: tuple[float, float]
    fit: SquareFit
    tracks: Sequence[Track]
    kept: dict[int, torch.Tensor] = field(default_factory=dict)

    def decode(self, z: int, prompts: Sequence[SlicePrompt]) -> list[SliceMask]:
        """Masks of the objects in a slice, on the slice's own pixels."""
        with torch.inference_mode(), autocast(self.device, "bf16"):
            embedding = self._embedding(z)
            boxes = [number for number, prompt in enumerate(prompts) if isinstance(prompt, SliceBox)]
            groups = [boxes[start : start + PROMPTS_AT_ONCE] for start in range(0, len(boxes), PROMPTS_AT_ONCE)]
            groups += [[number] for number in range(len(prompts)) if number not in boxes]
            found: dict[int, SliceMask] = {}
            for group in groups:
                masks = self.network.decode(embedding, self._on_canvas([prompts[number] for number in group]))
                logits = from_square(masks.logits, self.fit)
                for number, one, quality in zip(group, logits, masks.quality.tolist(), strict=True):
                    found[number] = SliceMask(logits=one, quality=quality)
        return [found[number] for number in range(len(prompts))]

    def _embedding(self, z: int) -> torch.Tensor:
        """(1, c, h, w) of a slice. Those of the next slices are made with it, where that is faster."""
        if z not in self.kept:
            count = AT_ONCE.get(self.device.type, ON_OTHERS)
            together = [z, *(other for other in ahead_of(z, self.tracks, count - 1) if other not in self.kept)]
            for number, embedding in zip(together, self.network.encode(self._pixels(together)), strict=True):
                self.kept[number] = embedding[None]
                size = embedding.numel() * embedding.element_size()
                while len(self.kept) > max(2 * count, KEPT_BYTES // size):
                    del self.kept[next(iter(self.kept))]
        return self.kept[z]

    def _pixels(self, numbers: Sequence[int]) -> torch.Tensor:
        """(S, 3, side, side) in 0..1."""
        low, high = self.range
        slices = np.stack([self.volume[:, number] for number in numbers])
        pixels = torch.from_numpy(np.clip(slices, low, high)).to(self.device).float()
        pixels = (pixels - low) / max(high - low, SMALLEST_RANGE)
        return onto_square(pixels.expand(-1, CHANNELS, -1, -1), self.fit, self.network.padding)

    def _on_canvas(self, prompts: Sequence[SlicePrompt]) -> CanvasPrompts:
        """Boxes, or the points of one object."""
        first = prompts[0]
        if isinstance(first, SlicePoints):
            places = [[self._place(row, column) for row, column in (*first.on, *first.beside)]]
            kinds = [[1.0] * len(first.on) + [0.0] * len(first.beside)]
            return CanvasPrompts(points=self._tensor(places), on_object=self._tensor(kinds))
        boxes = [prompt for prompt in prompts if isinstance(prompt, SliceBox)]
        corners = [
            [*self._place(box.rows[0], box.columns[0]), *self._place(box.rows[1], box.columns[1])] for box in boxes
        ]
        return CanvasPrompts(boxes=self._tensor(corners))

    def _place(self, row: float, column: float) -> tuple[float, float]:
        """x, y on the canvas."""
        return self.fit.to_square(column, 1), self.fit.to_square(row, 0)

    def _tensor(self, values: Sequence) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self.device)
