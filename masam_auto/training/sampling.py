"""Choose training windows at random, read them from the preprocessed arrays, and put them on the canvas.

Every window has its own generator, seeded by (seed, epoch, number within the epoch). So a draw does not depend on the
process that makes it, nor on interruptions of the training. Processes that train together use different numbers (see
`compute.distributed`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from masam_auto.core.plan import AugmentationPlan, Configuration
from masam_auto.core.windows import SliceWindow
from masam_auto.formats.storage import ClassLocations, array_files, open_array, read_locations
from masam_auto.imaging.canvas import CanvasMap, canvas_map
from masam_auto.training.augmentation import IDENTITY, apply_augmentation, draw_augmentation
from masam_auto.training.box_augmentation import BoxDraws, draw_box

Locations = Mapping[str, ClassLocations]
# Part of every window's seed; other streams of random draws use other numbers.
WINDOW_STREAM = 0
# Boxes use a separate generator, so that windows are the same with and without them.
BOX_STREAM = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class CaseFiles:
    """The preprocessed files of one case; `shape` is (Z, Y, X), slices first."""

    identifier: str
    image: Path
    labels: Path
    locations: Path
    shape: tuple[int, int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowDraw:
    """One window: number of the case, first slice, and where the canvas lies on the magnified slices."""

    case: int
    start: int
    tile: tuple[int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """Everything that a draw depends on, except its numbers. `holders` lists the cases of each class or region.

    Without `augmentation`, windows look as in prediction. Without `boxes`, they have none.
    """

    cases: tuple[CaseFiles, ...]
    holders: dict[str, tuple[int, ...]]
    configuration: Configuration
    foreground_fraction: float
    augmentation: AugmentationPlan | None
    seed: int
    boxes: BoxDraws | None = None


def find_case_files(folder: Path, identifiers: Sequence[str]) -> tuple[CaseFiles, ...]:
    """Open the preprocessed files of cases. Raises ImageError if one is missing or damaged."""
    found = [(name, array_files(folder, name)) for name in identifiers]
    return tuple(
        CaseFiles(
            identifier=name,
            image=files.image,
            labels=files.labels,
            locations=files.locations,
            shape=_shape_of(files.labels),
        )
        for name, files in found
    )


def find_holders(cases: Sequence[CaseFiles]) -> dict[str, tuple[int, ...]]:
    """For each class or region that occurs, the numbers of the cases that hold it."""
    holders: dict[str, list[int]] = {}
    for number, case in enumerate(cases):
        for name, found in read_locations(case.locations).items():
            if len(found.voxels):
                holders.setdefault(name, []).append(number)
    return {name: tuple(holders[name]) for name in sorted(holders)}


def window_generator(sampling: Sampling, epoch: int, number: int) -> np.random.Generator:
    """The generator of one window, seeded by seed, epoch and number within the epoch."""
    return np.random.default_rng([sampling.seed, WINDOW_STREAM, epoch, number])


def draw_window(
    sampling: Sampling, locations: Callable[[int], Locations], generator: np.random.Generator
) -> WindowDraw:
    """Draw a window: at a random place, or around a voxel of a randomly chosen foreground class.

    The class is drawn first and the case after it, so that a rare class is seen as often as a common one.

    Args:
        sampling: the cases and how to draw from them.
        locations: gives the voxels of a case's classes, by the case's number.
        generator: the only source of randomness.
    """
    voxel: np.ndarray | None = None
    if sampling.holders and generator.random() < sampling.foreground_fraction:
        name = str(generator.choice(list(sampling.holders)))
        number = int(generator.choice(sampling.holders[name]))
        voxel = generator.choice(locations(number)[name].voxels)
    else:
        number = int(generator.integers(len(sampling.cases)))
    case, configuration = sampling.cases[number], sampling.configuration
    start = _draw_start(case.shape[0], configuration.window, None if voxel is None else int(voxel[0]), generator)
    fitted = map_of(case, configuration)
    tile = [_draw_tile(fitted, axis, generator) for axis in (0, 1)]
    for axis in (0, 1):
        excess = fitted.extent[axis] - fitted.canvas[axis]
        if voxel is not None and excess > 0:
            place = fitted.to_canvas(float(voxel[1 + axis]), axis)
            tile[axis] = int(np.clip(round(place - (fitted.canvas[axis] - 1) / 2), 0, excess))
    return WindowDraw(case=number, start=start, tile=(tile[0], tile[1]))


def map_of(case: CaseFiles, configuration: Configuration) -> CanvasMap:
    """Where a case's slices lie on the canvas, as in prediction."""
    return canvas_map(case.shape[1:], configuration.canvas, configuration.magnification)


@dataclass(kw_only=True)
class CaseStore:
    """Reads slices of cases; whole arrays stay in memory until `memory` bytes are full. Workers get it empty."""

    cases: tuple[CaseFiles, ...]
    memory: float
    _arrays: dict[Path, Any] = field(default_factory=dict)
    _locations: dict[int, Locations] = field(default_factory=dict)
    _held: int = 0

    def __getstate__(self) -> dict[str, Any]:
        """The copy sent to a worker process, without opened files and arrays."""
        return {"cases": self.cases, "memory": self.memory, "_arrays": {}, "_locations": {}, "_held": 0}

    def read(self, number: int, window: SliceWindow) -> tuple[np.ndarray, np.ndarray]:
        """Slices of one case: image (N, C, h, w) float32 and labels (N, h, w)."""
        case = self.cases[number]
        indices = window.indices(case.shape[0])
        first, last = int(indices[0]), int(indices[-1]) + 1
        image = np.asarray(self._array(case.image)[:, first:last])
        labels = np.asarray(self._array(case.labels)[first:last])
        return np.moveaxis(image, 0, 1)[indices - first].astype(np.float32, copy=False), labels[indices - first]

    def locations(self, number: int) -> Locations:
        """Voxel locations of the classes of one case."""
        if number not in self._locations:
            found = read_locations(self.cases[number].locations)
            size = sum(entry.voxels.nbytes + entry.slices.nbytes for entry in found.values())
            if self._held + size > self.memory:
                return found
            self._held += size
            self._locations[number] = found
        return self._locations[number]

    def _array(self, path: Path) -> Any:
        if path not in self._arrays:
            array = open_array(path)
            size = int(np.prod(array.shape)) * np.dtype(array.dtype).itemsize
            if self._held + size > self.memory:
                return array
            self._held += size
            self._arrays[path] = np.asarray(array[:])
        return self._arrays[path]


def make_window(store: CaseStore, sampling: Sampling, epoch: int, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw, read and augment one window.

    Returns:
        image (N, C, H, W) float32 and labels (N, H, W) int16.
    """
    generator = window_generator(sampling, epoch, number)
    draw = draw_window(sampling, store.locations, generator)
    case, configuration = sampling.cases[draw.case], sampling.configuration
    augmentation = IDENTITY
    if sampling.augmentation is not None:
        augmentation = draw_augmentation(sampling.augmentation, configuration.mirror_axes, generator)
    try:
        image, labels = store.read(draw.case, SliceWindow(start=draw.start, length=configuration.window))
        return apply_augmentation(
            torch.from_numpy(image),
            torch.from_numpy(labels.astype(np.int16, copy=False)),
            map_of(case, configuration).shifted(draw.tile),
            augmentation,
            spacing=configuration.spacing[1:],
        )
    except Exception as error:
        error.add_note(f"This happened in case {case.identifier}, epoch {epoch}, window {number}.")
        raise


def make_boxes(labels: torch.Tensor, sampling: Sampling, epoch: int, number: int) -> np.ndarray:
    """Draw the box of a window that `make_window` made, for each of its slices: (N, 4), not-a-number for none."""
    assert sampling.boxes is not None
    generator = np.random.default_rng([sampling.seed, WINDOW_STREAM, epoch, number, BOX_STREAM])
    return np.tile(draw_box(labels.numpy(), sampling.boxes, generator), (len(labels), 1))


def _draw_start(depth: int, length: int, centre: int | None, generator: np.random.Generator) -> int:
    """First slice of a window, which may extend beyond the volume by a quarter of its length, or more if it is longer
    than the volume.
    """
    if length >= depth:
        lowest, highest = depth - length, 0
    else:
        lowest, highest = -(length // 4), depth - length + length // 4
    if centre is not None:
        return int(np.clip(centre - length // 2, lowest, highest))
    return int(generator.integers(lowest, highest + 1))


def _draw_tile(fitted: CanvasMap, axis: int, generator: np.random.Generator) -> int:
    excess = fitted.extent[axis] - fitted.canvas[axis]
    return int(generator.integers(excess + 1)) if excess > 0 else fitted.start[axis]


def _shape_of(path: Path) -> tuple[int, int, int]:
    depth, height, width = open_array(path).shape
    return depth, height, width
