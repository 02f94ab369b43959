"""Segment objects that boxes or points show, with pretrained SAM weights and without any training.

`Segmenter` loads the weights once. An image takes three steps: its prompts are placed in the slices, each slice is
encoded once and decoded for all of its prompts (`network.promptable`), and objects are followed through the slices
(`prediction.propagation`).
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from masam_auto.compute.device import choose_device
from masam_auto.core.boxes import GivenBox, GivenPoints, Prompt
from masam_auto.core.errors import DatasetError, ImageError, ModelError
from masam_auto.core.geometry import Geometry
from masam_auto.imaging.normalize import not_finite
from masam_auto.imaging.square import square_fit
from masam_auto.imaging.unit_range import looks_like_ct, unit_range
from masam_auto.models.sam_files import SAM_FILES, find_sam_file, sam_encoders
from masam_auto.models.sam_weights import encoder_of_file
from masam_auto.network.promptable import CHANNELS, Pixels, PromptableSam, build_promptable
from masam_auto.network.weight_files import load_sam_checkpoint
from masam_auto.prediction.encoded_slices import EncodedSlices
from masam_auto.prediction.input_image import as_volume
from masam_auto.prediction.prompt_tracks import Propagation, left_out, place_prompts
from masam_auto.prediction.propagation import SliceMask, Track, found_objects

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentSettings:
    """How images are segmented.

    `axis`: of the stored array (Z, Y, X), across slices; None chooses (`slice_axis_of`). `propagate`: objects are
    followed beyond the slices that their prompts show: those shown in a "single" slice, "all", or "none".
    `channels`: which are shown, one or three; None shows three as colours if the image is a picture, else the first.
    `is_ct`: whether values are Hounsfield units; None judges by the values. `window`: lowest and highest intensity to
    tell apart; None takes MedSAM's soft-tissue window for CT and percentiles for others.
    """

    axis: int | None = None
    propagate: Propagation = "single"
    channels: tuple[int, ...] | None = None
    is_ct: bool | None = None
    window: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.propagate not in get_args(Propagation):
            raise ModelError(f"`propagate={self.propagate}`: expected one of {', '.join(get_args(Propagation))}")
        if self.axis not in (None, 0, 1, 2):
            raise ModelError(f"`axis={self.axis}`: the axes of a stored array (Z, Y, X) are 0, 1 and 2")
        if self.window is not None and not self.window[0] < self.window[1]:
            raise ModelError(f"`intensity`: the lower end must be below the upper one, got {self.window}")
        if self.channels is not None and (len(self.channels) not in (1, CHANNELS) or min(self.channels) < 0):
            raise ModelError(f"channels {self.channels}: SAM sees one channel or three, counted from 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class Segmented:
    """The result of one image: label values (Z, Y, X) on its own grid.

    `notes` say how the image was seen, `left_out` what of the prompts was not used or not found.
    """

    labels: np.ndarray
    geometry: Geometry
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Segmenter:
    """Pretrained SAM weights in memory, for any number of images. It never changes, so several threads may use one.

    Example:
        >>> from masam_auto import Segmenter
        >>> from masam_auto.core.boxes import VoxelBox
        >>> segmenter = Segmenter.from_weights("masam_data/weights/lite_medsam.pth", "cpu", canvas=64)
        >>> box = VoxelBox(box=((1, 4), (2, 12), (3, 9)))  # Z, Y, X; the ends are outside
        >>> segmenter.segment(np.random.rand(1, 5, 16, 14), (3.0, 1.0, 0.75), [box]).labels.shape
        (5, 16, 14)
    """

    network: PromptableSam
    device: torch.device
    settings: SegmentSettings = SegmentSettings()

    @classmethod
    def from_weights(
        cls,
        weights: Path | str,
        device: torch.device | str | None = None,
        *,
        canvas: int | None = None,
        pixels: Pixels | None = None,
        settings: SegmentSettings = SegmentSettings(),
    ) -> "Segmenter":
        """Load weights.

        Args:
            weights: a SAM-format checkpoint of a known encoder: LiteMedSAM, MobileSAM, or SAM and its fine-tunes.
            device: "cpu", "cuda", ...; None takes the best one available.
            canvas: side in px of the square that slices are scaled to; None for the one that the weights were trained
                with. Smaller is faster.
            pixels: "unit" for weights that were trained on images in 0..1 (MedSAM, LiteMedSAM), "sam" for SAM's mean
                and deviation; None decides by the encoder, and knows MedSAM's file.
            settings: how images are segmented.

        Raises:
            ModelError: not such a file, or a canvas that the encoder cannot have.
            MasamError: there is no such device.

        Example:
            >>> from masam_auto import Segmenter
            >>> segmenter = Segmenter.from_weights(paths.weights / "lite_medsam.pth", "cpu", canvas=64)
            >>> segmenter.network.canvas, segmenter.network.pixels
            (64, 'unit')
        """
        file = Path(weights)
        chosen = device if isinstance(device, torch.device) else choose_device(device)
        encoder = encoder_of_file(file)
        network = build_promptable(
            encoder,
            load_sam_checkpoint(file),
            canvas=canvas,
            pixels=pixels or _known_pixels(file),
            device=chosen,
            origin=str(file),
        )
        logger.info(
            "segmenting with %s (%s), canvas %d px, pixels as %s", file, encoder, network.canvas, network.pixels
        )
        return cls(network=network, device=chosen, settings=settings)

    def segment(
        self,
        image: np.ndarray,
        geometry: Geometry | Sequence[float],
        prompts: Sequence[GivenBox | GivenPoints | Prompt],
        *,
        identifier: str = "in memory",
    ) -> Segmented:
        """Segment the objects of an image.

        Args:
            image: (C, Z, Y, X), or (C, Y, X) for a picture, in the file's units. It is not changed.
            geometry: its grid, or its spacing in mm along (Z, Y, X) or (Y, X).
            prompts: a box or points for each object. The `label` of a `Prompt` is the value of its class, else 1.
                Where objects overlap, the higher logit wins.
            identifier: a name for messages.

        Raises:
            DatasetError: a prompt outside the image, or points of one object in several slices.
            ImageError: wrong number of axes or channels, or values that are not finite real numbers.
            ModelError: points for weights that know only boxes, or a class that is no value.

        Example:
            >>> from masam_auto.core.boxes import Prompt, VoxelBox
            >>> box = VoxelBox(box=((2, 3), (2, 12), (3, 9)))  # one slice: followed through the others
            >>> image = np.random.rand(1, 5, 16, 14)  # (C, Z, Y, X)
            >>> found = segmenter.segment(image, (3.0, 1.0, 0.75), [Prompt(shape=box, label=2)])
            >>> found.labels.shape, found.labels.dtype
            ((5, 16, 14), dtype('uint8'))
        """
        volume, grid = as_volume(image, geometry, identifier)
        if problem := not_finite(volume):
            raise ImageError(f"case {identifier}: {problem}")
        given = [prompt if isinstance(prompt, Prompt) else Prompt(shape=prompt) for prompt in prompts]
        self._check_points(given, identifier)
        placed = place_prompts(
            given, grid, axis=self.settings.axis, propagate=self.settings.propagate, identifier=identifier
        )
        shown, notes = _shown_channels(volume, grid, self.settings.channels, identifier)
        is_ct = looks_like_ct(shown) if self.settings.is_ct is None else self.settings.is_ct
        low, high = self.settings.window or unit_range(shown, is_ct=is_ct)
        slices = EncodedSlices(
            network=self.network,
            device=self.device,
            volume=placed.turn.array(shown),
            range=(low, high),
            fit=square_fit(
                placed.turn.triple(grid.shape)[1:], placed.turn.triple(grid.spacing)[1:], self.network.canvas
            ),
            tracks=placed.tracks,
        )
        highest = max(track.value for track in placed.tracks)
        labels = np.zeros(grid.shape, np.uint8 if highest <= 255 else np.int16)
        seen = _paint(placed.turn.array(labels), placed.tracks, slices.decode)
        if is_ct and not self.settings.window and shown.min() >= 0:
            notes += [
                "its values are taken for Hounsfield units, but none is below 0; if they are not, give `intensity`"
            ]
        if self.settings.window or is_ct:
            notes += [f"intensities {low:g} to {high:g} are told apart{' (CT)' if is_ct else ''}"]
        notes += [f"slices across axis {placed.axis} (Z, Y, X)"] if placed.axis else []
        sentences = [
            f"prompt {number}: {sentence}"
            for number, (prompt, track, found) in enumerate(zip(given, placed.tracks, seen, strict=True), 1)
            for sentence in left_out(prompt, track, found, grid)
        ]
        return Segmented(labels=labels, geometry=grid, notes=tuple(notes), left_out=tuple(sentences))

    def changed(self, settings: SegmentSettings) -> "Segmenter":
        """The same weights with other settings."""
        return replace(self, settings=settings)

    def _check_points(self, prompts: Sequence[Prompt], identifier: str) -> None:
        if not prompts:
            raise DatasetError(f"case {identifier} has no box and no points")
        if self.network.pixels == "unit" and any(isinstance(prompt.shape, GivenPoints) for prompt in prompts):
            raise ModelError(
                f"case {identifier} has points, but these weights were trained with boxes only. Give boxes, or weights "
                "that know points: SAM's vit_b, vit_l, vit_h or mobile_sam."
            )


def pretrained_file(folder: Path, encoder: str) -> Path:
    """The weights of an encoder in the weights folder. Raises ModelError if there are none."""
    if encoder in sam_encoders(folder):
        return find_sam_file(folder, encoder)
    there = ", ".join(sam_encoders(folder)) or "none"
    raise ModelError(
        f"no weights of {encoder} in {folder} (there: {there}). Fetch them (`masam_fetch_weights {encoder}`), choose "
        "another encoder (`backbone`), or name a file (`sam_checkpoint=PATH`)."
    )


def _known_pixels(file: Path) -> Pixels | None:
    """How the images of a known file are scaled, where its encoder's usual way is another."""
    return "unit" if SAM_FILES["medsam"].is_at(file) else None


def _shown_channels(
    volume: np.ndarray, geometry: Geometry, chosen: tuple[int, ...] | None, identifier: str
) -> tuple[np.ndarray, list[str]]:
    """The channels that the network sees, (1 or 3, Z, Y, X), and a note on those left out."""
    count = len(volume)
    if chosen is None:
        colours = count == CHANNELS and geometry.dimensions == 2
        chosen = tuple(range(CHANNELS)) if colours else (0,)
    if max(chosen) >= count:
        raise ImageError(
            f"case {identifier} has {count} channels, 0 to {count - 1}, so there is no channel {max(chosen)}"
        )
    left = [str(number) for number in range(count) if number not in chosen]
    notes = [f"channel {chosen[0]} is used; not used: {', '.join(left)}"] if left else []
    return volume[list(chosen)] if left or count != len(chosen) else volume, notes


def _paint(target: np.ndarray, tracks: Sequence[Track], decode: Callable[..., Sequence[SliceMask]]) -> list[set[int]]:
    """Write the objects' values into a volume, slice axis first. Returns the slices where each object was found."""
    best = np.full(target.shape, -np.inf, np.float16) if len(tracks) > 1 else None
    seen: list[set[int]] = [set() for _ in tracks]
    for number, z, mask in found_objects(tracks, target.shape, decode):
        wins = (mask.logits > 0).cpu().numpy()
        if wins.any():
            seen[number].add(z)
        if best is not None:
            logits = mask.logits.clamp(max=6e4).half().cpu().numpy()
            wins &= logits > best[z]
            best[z][wins] = logits[wins]
        target[z][wins] = tracks[number].value
    return seen
