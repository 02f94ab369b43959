"""Random changes of training windows: first drawn as plain numbers, then applied."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from masam_auto.core.plan import AugmentationPlan, Range
from masam_auto.core.plugins import find_entry
from masam_auto.imaging.canvas import CanvasMap


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """The changes of one window; the defaults change nothing.

    `rotation` and `shear` are in degrees. `scale` enlarges the image. `translation` (rows, columns) moves it by a share
    of the canvas. `flips` lists the axes to reverse (0 slices, 1 rows, 2 columns). `intensity` lists names of
    AUGMENTATIONS or plug-ins with their strengths, in order. `erased` (top, bottom, left, right) is a box in shares of
    the canvas. `seed` is for the noise.
    """

    rotation: float = 0.0
    shear: float = 0.0
    scale: float = 1.0
    translation: tuple[float, float] = (0.0, 0.0)
    flips: tuple[int, ...] = ()
    intensity: tuple[tuple[str, float], ...] = ()
    erased: tuple[float, float, float, float] | None = None
    seed: int = 0


IDENTITY = Augmentation()


def draw_augmentation(
    plan: AugmentationPlan, mirror_axes: tuple[int, ...], generator: np.random.Generator
) -> Augmentation:
    """Draw one window's augmentation.

    Args:
        plan: ranges and probabilities.
        mirror_axes: axes that may be flipped, each half of the time.
        generator: the only source of randomness.
    """
    moved = generator.random() < plan.spatial_probability
    rotation, shear = _uniform(plan.rotation, generator), _uniform(plan.shear, generator)
    scale = math.exp(_uniform((math.log(plan.scaling[0]), math.log(plan.scaling[1])), generator))
    translation = (_uniform(plan.translation, generator), _uniform(plan.translation, generator))
    flips = tuple(axis for axis in mirror_axes if generator.random() < 0.5)
    ranges: dict[str, Range] = {
        "gamma": plan.gamma,
        "contrast": plan.contrast,
        "brightness": plan.brightness,
        "sharpness": plan.sharpness,
        "posterise": (float(plan.posterise[0]), float(plan.posterise[1])),
        "noise": plan.noise,
        **plan.added,
    }
    intensity = tuple(
        (name, _uniform(bounds, generator))
        for name, bounds in ranges.items()
        if generator.random() < plan.intensity_probability
    )
    erased = _draw_box(plan.erasing, generator) if generator.random() < plan.erasing_probability else None
    seed = int(generator.integers(2**31))
    if not moved:
        return Augmentation(flips=flips, intensity=intensity, erased=erased, seed=seed)
    return Augmentation(
        rotation=rotation, shear=shear, scale=scale, translation=translation,
        flips=flips, intensity=intensity, erased=erased, seed=seed,
    )  # fmt: skip


def apply_augmentation(
    image: torch.Tensor,
    labels: torch.Tensor,
    tile: CanvasMap,
    augmentation: Augmentation,
    *,
    spacing: tuple[float, float] = (1.0, 1.0),
) -> tuple[torch.Tensor, torch.Tensor]:
    """Put a window on the canvas with the drawn changes, the same for all slices.

    Intensities change before the window is put on the canvas. So padding stays zero, as in prediction, and noise and
    sharpness change the acquired pixels. All spatial changes are one resampling.

    Args:
        image: (N, C, h, w) float32, preprocessed slices.
        labels: (N, h, w) label values.
        tile: what the canvas shows before any change.
        augmentation: what to change.
        spacing: (rows, columns) in mm, so that rotations are correct if pixels are not square.

    Returns:
        image (N, C, H, W) float32, bilinear, zero outside; labels (N, H, W) int16, nearest, background outside.

    Example:
        >>> from masam_auto.imaging.canvas import canvas_map
        >>> from masam_auto.training.augmentation import Augmentation, apply_augmentation
        >>> image, labels = torch.rand(5, 1, 40, 30), torch.zeros(5, 40, 30).short()  # (N, C, h, w), (N, h, w)
        >>> tile = canvas_map((40, 30), (64, 64), 1.0)
        >>> image, labels = apply_augmentation(image, labels, tile, Augmentation(rotation=10, flips=(2,)))
        >>> image.shape, labels.shape  # (N, C, H, W), (N, H, W)
        (torch.Size([5, 1, 64, 64]), torch.Size([5, 64, 64]))
    """
    if 0 in augmentation.flips:
        image, labels = image.flip(0), labels.flip(0)
    matrix = _canvas_to_slice(tile, augmentation, spacing)
    rows, columns = _needed(matrix, tile)
    image, labels = image[..., rows, columns], labels[..., rows, columns]
    centre = (tile.centre[0] - rows.start, tile.centre[1] - columns.start)
    generator = np.random.default_rng(augmentation.seed)
    for name, strength in augmentation.intensity:
        image = find_augmentation(name)(image, strength, generator)
    count, channels = image.shape[:2]
    grid = _sampling_grid(matrix, centre, tile.canvas, (image.shape[-2], image.shape[-1]))
    shown = F.grid_sample(
        image.flatten(0, 1).unsqueeze(0), grid, mode="bilinear", padding_mode="zeros", align_corners=False
    ).view(count, channels, *tile.canvas)
    classes = F.grid_sample(
        labels.unsqueeze(0).float(), grid, mode="nearest", padding_mode="zeros", align_corners=False
    )[0]
    if augmentation.erased is not None:
        shown = _erase(shown, augmentation.erased)
    return shown, classes.to(torch.int16)


def gamma(image: torch.Tensor, strength: float, generator: np.random.Generator) -> torch.Tensor:
    """Raise to a power between each channel's lowest and highest value, which do not change."""
    lowest, highest = _limits(image)
    width = (highest - lowest).clamp(min=1e-6)
    return ((image - lowest) / width).clamp(min=0).pow(strength) * width + lowest


def contrast(image: torch.Tensor, strength: float, generator: np.random.Generator) -> torch.Tensor:
    """Stretch about each channel's mean, within its own limits. Source: the limits are batchgenerators'."""
    lowest, highest = _limits(image)
    mean = image.mean((0, 2, 3), keepdim=True)
    return torch.clamp((image - mean) * strength + mean, lowest, highest)


def brightness(image: torch.Tensor, strength: float, generator: np.random.Generator) -> torch.Tensor:
    """Add `strength` of each channel's standard deviation."""
    return image + strength * _deviation(image)


def sharpness(image: torch.Tensor, strength: float, generator: np.random.Generator) -> torch.Tensor:
    """Unsharp mask: add `strength` times the difference from the 3 x 3 mean (inside the image); -1 gives the mean."""
    height, width = image.shape[-2:]
    weights = -strength / (_neighbours(height)[:, None] * _neighbours(width))
    # sums along one axis, then the other: a third of the time of avg_pool2d
    return torch.addcmul(image * (1 + strength), _sum_of_three(_sum_of_three(image, -1), -2), weights)


def posterise(image: torch.Tensor, strength: float, generator: np.random.Generator) -> torch.Tensor:
    """Round to `strength` grey levels between each channel's lowest and highest value."""
    lowest, highest = _limits(image)
    step = (highest - lowest).clamp(min=1e-6) / max(round(strength) - 1, 1)
    return ((image - lowest) / step).round() * step + lowest


def noise(image: torch.Tensor, strength: float, generator: np.random.Generator) -> torch.Tensor:
    """Add Gaussian noise of `strength` times each channel's standard deviation."""
    # torch draws normal numbers 2.5 x as fast as numpy
    seeded = torch.Generator().manual_seed(int(generator.integers(2**63)))
    values = torch.empty_like(image, memory_format=torch.contiguous_format).normal_(generator=seeded)
    return image + values * (strength * _deviation(image))


Change = Callable[[torch.Tensor, float, np.random.Generator], torch.Tensor]
AUGMENTATIONS: dict[str, Change] = {
    "gamma": gamma,
    "contrast": contrast,
    "brightness": brightness,
    "sharpness": sharpness,
    "posterise": posterise,
    "noise": noise,
}


def find_augmentation(name: str) -> Change:
    """An intensity change by name, ours or a plug-in's. Raises PlanError that lists the known ones."""
    return find_entry("augmentations", name, AUGMENTATIONS, field="training.augmentation.added")


def _uniform(bounds: Range, generator: np.random.Generator) -> float:
    return float(generator.uniform(bounds[0], bounds[1]))


def _draw_box(sides: Range, generator: np.random.Generator) -> tuple[float, float, float, float]:
    height, width = _uniform(sides, generator), _uniform(sides, generator)
    top, left = float(generator.uniform(0, 1 - height)), float(generator.uniform(0, 1 - width))
    return (top, top + height, left, left + width)


def _limits(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return image.amin((0, 2, 3), keepdim=True), image.amax((0, 2, 3), keepdim=True)


def _deviation(image: torch.Tensor) -> torch.Tensor:
    return image.std((0, 2, 3), keepdim=True, correction=0)


def _sum_of_three(image: torch.Tensor, axis: int) -> torch.Tensor:
    """The sum of each pixel and its neighbours along an axis; zero beyond the edge."""
    total, size = image.clone(), image.shape[axis] - 1
    total.narrow(axis, 0, size).add_(image.narrow(axis, 1, size))
    total.narrow(axis, 1, size).add_(image.narrow(axis, 0, size))
    return total


def _neighbours(size: int) -> torch.Tensor:
    """(size,) how many pixels `_sum_of_three` adds up at each place."""
    return _sum_of_three(torch.ones(size), 0)


def _canvas_to_slice(tile: CanvasMap, augmentation: Augmentation, spacing: tuple[float, float]) -> np.ndarray:
    """(2, 3) matrix from canvas offsets (rows, columns, 1) to slice offsets, both from the middle of the canvas."""
    angle, skew = math.radians(augmentation.rotation), math.tan(math.radians(augmentation.shear))
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    flip = np.diag([-1.0 if axis in augmentation.flips else 1.0 for axis in (1, 2)])
    to_mm = np.diag(spacing)
    linear = np.linalg.inv(to_mm) @ turn @ np.array([[1.0, skew], [0.0, 1.0]]) @ flip @ to_mm
    linear /= augmentation.scale * tile.magnification
    shift = np.multiply(augmentation.translation, tile.canvas)
    return np.concatenate([linear, -(linear @ shift)[:, None]], axis=1)


def _needed(matrix: np.ndarray, tile: CanvasMap) -> tuple[slice, slice]:
    """The rows and columns of the slice that the canvas can show; only these need computing."""
    half = np.subtract(tile.canvas, 1) / 2
    corners = np.array([(r, c, 1.0) for r in (-half[0], half[0]) for c in (-half[1], half[1])])
    places = corners @ matrix.T + np.asarray(tile.centre)
    bounds = []
    for axis in (0, 1):
        low = int(np.clip(np.floor(places[:, axis].min()) - 1, 0, tile.size[axis] - 1))
        high = int(np.clip(np.ceil(places[:, axis].max()) + 2, low + 1, tile.size[axis]))
        bounds.append(slice(low, high))
    return bounds[0], bounds[1]


def _sampling_grid(
    matrix: np.ndarray, centre: tuple[float, float], canvas: tuple[int, int], size: tuple[int, int]
) -> torch.Tensor:
    """(1, H, W, 2) grid for `grid_sample`: for each canvas pixel (x, y) in the slice's [-1, 1] from edge to edge."""
    (height, width), (h, w) = canvas, size
    (a, b, e), (c, d, f) = matrix
    theta = [
        [d * width / w, c * height / w, (2 * (f + centre[1]) + 1) / w - 1],
        [b * width / h, a * height / h, (2 * (e + centre[0]) + 1) / h - 1],
    ]
    return F.affine_grid(torch.tensor([theta], dtype=torch.float32), [1, 1, height, width], align_corners=False)


def _erase(image: torch.Tensor, box: tuple[float, float, float, float]) -> torch.Tensor:
    height, width = image.shape[-2:]
    rows = slice(round(box[0] * height), round(box[1] * height))
    columns = slice(round(box[2] * width), round(box[3] * width))
    image = image.clone()
    image[..., rows, columns] = 0
    return image
