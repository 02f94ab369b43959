"""Segment objects that boxes or points show, with pretrained SAM weights and without any training.

`Segmenter` loads the weights once. An image takes three steps: its prompts are placed in the slices, each slice is
encoded once and decoded for all of its prompts (`network.promptable`), and objects are followed through the slices
(`prediction.propagation`).
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch

from masam_auto.compute.device import autocast, choose_device
from masam_auto.core.boxes import GivenBox, GivenPoints, Prompt, points_in_voxels, reaches_beyond
from masam_auto.core.errors import DatasetError, ImageError, ModelError
from masam_auto.core.geometry import Box, Geometry
from masam_auto.core.turning import Turn
from masam_auto.imaging.normalize import not_finite
from masam_auto.imaging.square import SquareFit, from_square, onto_square, square_fit
from masam_auto.imaging.unit_range import looks_like_ct, unit_range
from masam_auto.models.sam_files import SAM_FILES, find_sam_file, sam_encoders
from masam_auto.models.sam_weights import encoder_of_file
from masam_auto.network.promptable import CHANNELS, CanvasPrompts, Pixels, PromptableSam, build_promptable
from masam_auto.network.weight_files import load_sam_checkpoint
from masam_auto.prediction.box_prompts import place_boxes
from masam_auto.prediction.input_image import as_volume
from masam_auto.prediction.propagation import (
    SliceBox,
    SliceMask,
    SlicePoints,
    SlicePrompt,
    Track,
    ahead_of,
    found_objects,
)

logger = logging.getLogger(__name__)

Propagation = Literal["single", "all", "none"]
COARSER = 1.2  # times the next spacing, for an axis to be the slices' (as in planning.slice_axes)
KEPT_BYTES = 1 << 29  # of embeddings, for the second pass over the slices
AT_ONCE = {"cpu": 1}  # slices to encode together; on a CPU one fills every core
ON_OTHERS = 8
PROMPTS_AT_ONCE = 16


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
        placed = [_place(prompt, grid, where=_where(identifier, n, given)) for n, prompt in enumerate(given, 1)]
        axis = slice_axis_of(grid, placed) if self.settings.axis is None else self.settings.axis
        turn = _slices_first(axis)
        tracks = [
            _track(prompt, place, turn, grid, self.settings.propagate, where=_where(identifier, number, given))
            for number, (prompt, place) in enumerate(zip(given, placed, strict=True), 1)
        ]
        shown, notes = _shown_channels(volume, grid, self.settings.channels, identifier)
        is_ct = looks_like_ct(shown) if self.settings.is_ct is None else self.settings.is_ct
        low, high = self.settings.window or unit_range(shown, is_ct=is_ct)
        slices = _Slices(
            network=self.network,
            device=self.device,
            volume=turn.array(shown),
            range=(low, high),
            fit=square_fit(turn.triple(grid.shape)[1:], turn.triple(grid.spacing)[1:], self.network.canvas),
            tracks=tracks,
            kept={},
        )
        labels = np.zeros(grid.shape, np.uint8 if max(track.value for track in tracks) <= 255 else np.int16)
        seen = _paint(turn.array(labels), tracks, slices.decode)
        if self.settings.window or is_ct:
            notes += [f"intensities {low:g} to {high:g} are told apart{' (CT)' if is_ct else ''}"]
        notes += [f"slices across axis {axis} (Z, Y, X)"] if axis else []
        left_out = [
            f"prompt {number}: {sentence}"
            for number, (prompt, track, found) in enumerate(zip(given, tracks, seen, strict=True), 1)
            for sentence in _left_out(prompt, track, found, grid)
        ]
        return Segmented(labels=labels, geometry=grid, notes=tuple(notes), left_out=tuple(left_out))

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


def slice_axis_of(geometry: Geometry, placed: Sequence["Box | tuple[np.ndarray, np.ndarray]"]) -> int:
    """The axis of a stored array (Z, Y, X) across slices.

    That of a single slice; that along which all boxes are one voxel thin; the one with the clearly largest spacing;
    the one along the body, if the file says so; else the first.
    """
    if geometry.shape.count(1) == 1:
        return geometry.shape.index(1)
    sizes = [[high - low for low, high in place] for place in placed if len(place) == 3]
    thin = [axis for axis in range(3) if sizes and all(size[axis] == 1 for size in sizes)]
    if len(thin) == 1:
        return thin[0]
    first, second, _ = sorted(range(3), key=lambda axis: -geometry.spacing[axis])
    if geometry.spacing[first] >= COARSER * geometry.spacing[second]:
        return first
    axes = geometry.axes
    return 0 if axes is None else 2 - next(place for place, letter in enumerate(axes) if letter in "SI")


def _known_pixels(file: Path) -> Pixels | None:
    """How the images of a known file are scaled, where its encoder's usual way is another."""
    return "unit" if SAM_FILES["medsam"].is_at(file) else None


def _where(identifier: str, number: int, prompts: Sequence[Prompt]) -> str:
    return f"case {identifier}" + (f", prompt {number}" if len(prompts) > 1 else "")


def _place(prompt: Prompt, geometry: Geometry, *, where: str) -> "Box | tuple[np.ndarray, np.ndarray]":
    """A prompt in the image's voxels: a box, or points on and beside the object."""
    if isinstance(prompt.shape, GivenPoints):
        return points_in_voxels(prompt.shape, geometry, where=where)
    return place_boxes([prompt.shape], geometry, identifier=where.removeprefix("case "))[0]


def _slices_first(axis: int) -> Turn:
    first, second = (other for other in range(3) if other != axis)
    return Turn(order=(axis, first, second))


def _track(
    prompt: Prompt,
    place: "Box | tuple[np.ndarray, np.ndarray]",
    turn: Turn,
    geometry: Geometry,
    propagate: Propagation,
    *,
    where: str,
) -> Track:
    """A prompt on the volume whose first axis goes across slices."""
    value = 1 if prompt.label is None else prompt.label
    if not isinstance(value, int) or not 0 < value < 1 << 15:
        raise ModelError(f"{where}: its class must be a value from 1 on, got {value!r}")
    shown: SlicePrompt
    if len(place) == 3:
        (first, last), rows, columns = turn.ranges(place, geometry.shape)
        shown = SliceBox(rows=(float(rows[0]), float(rows[1])), columns=(float(columns[0]), float(columns[1])))
    else:
        on, beside = (points[:, list(turn.order)] for points in place)
        numbers = sorted({round(float(number)) for number in (*on[:, 0], *beside[:, 0])})
        if len(numbers) > 1:
            raise DatasetError(
                f"{where}: its points are in several slices ({', '.join(map(str, numbers))}). Give the points of one "
                "slice, and further entries of the same class for others."
            )
        first, last = numbers[0], numbers[0] + 1
        shown = SlicePoints(on=_edges(on), beside=_edges(beside))
    beyond = propagate == "all" or (propagate == "single" and last - first == 1)
    return Track(value=value, prompt=shown, slices=range(first, last), beyond=beyond)


def _edges(points: np.ndarray) -> tuple[tuple[float, float], ...]:
    """Rows and columns of (N, 3) voxel indices, measured from the slice's edge."""
    return tuple((float(row) + 0.5, float(column) + 0.5) for _, row, column in points)


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


def _left_out(prompt: Prompt, track: Track, found: set[int], geometry: Geometry) -> list[str]:
    """What of a prompt was not used or not found; `found` are the slices where something was."""
    beyond = not isinstance(prompt.shape, GivenPoints) and reaches_beyond(prompt.shape, geometry)
    cut = ["it reaches beyond the image and was cut to it"] if beyond else []
    empty = [z for z in track.slices if z not in found]
    if not found:
        return [*cut, "nothing was found"]
    return [*cut, f"nothing was found in {len(empty)} of its {len(track.slices)} slices"] if empty else cut


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


@dataclass(frozen=True, kw_only=True, slots=True)
class _Slices:
    """The slices of one image as the network sees them. Embeddings of the last ones are kept."""

    network: PromptableSam
    device: torch.device
    volume: np.ndarray
    range: tuple[float, float]
    fit: SquareFit
    tracks: Sequence[Track]
    kept: dict[int, torch.Tensor]

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
        pixels = (pixels - low) / max(high - low, 1e-8)
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
