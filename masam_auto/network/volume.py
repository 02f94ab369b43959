"""Run networks over a full preprocessed volume: windows along the slices, tiles in the plane, flips, several models."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from masam_auto.compute.device import autocast
from masam_auto.core.boxes import BoxPrompt
from masam_auto.core.plan import Configuration, InferencePlan
from masam_auto.core.windows import SliceWindow, covering_windows, triangular_weights
from masam_auto.imaging.canvas import CanvasMap, canvas_box, canvas_map, collect, place, tiles_of
from masam_auto.network.finite import finite_logits

# Limits the memory of one pass for any slice size. A pixel counts its outputs plus about 32 features, or as many as the
# network states (`MaSam.features_held`).
# On a CPU: 16 slices of 512 x 512 pixels with 15 outputs (measured: about 1 GiB); GPUs gain from more at once.
FEATURES = 32
VALUES_AT_ONCE = 16 * 512 * 512 * 48
VALUES_AT_ONCE_ON_GPU = 64 * 512 * 512 * 48
LARGEST_HALF = 6e4  # logits are clipped to this, within the range of float16


class Volume(Protocol):
    """A (C, Z, Y, X) array, in memory or stored, whose slices can be read one range at a time."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, key: Any) -> Any: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightedWindow:
    """A window, and how much each of its slices adds to the result. Over all windows, a slice's shares sum to 1."""

    window: SliceWindow
    shares: tuple[float, ...]


@torch.inference_mode()
def predict_slices(
    networks: Sequence[nn.Module],
    image: Volume,
    configuration: Configuration,
    inference: InferencePlan,
    *,
    num_outputs: int,
    device: torch.device,
    precision: str = "float32",
    prompt: BoxPrompt | None = None,
) -> Iterator[tuple[int, torch.Tensor]]:
    """Logits of a preprocessed volume, averaged over windows, tiles, flips and networks, slice by slice.

    For any depth, only the current window and the slices that later windows still add to are held.

    Args:
        networks: one or more, in evaluation mode and on `device`; (B, N, C, H, W) -> (B, N, K, H, W).
        image: (C, Z, Y, X), slice axis first, normalised and at the target spacing.
        configuration: the one that the networks were trained with.
        inference: how to divide the volume.
        num_outputs: K.
        device: where the networks are.
        precision: what they compute in, as for `compute.device.autocast`.
        prompt: a box for every slice of its range; the slices around it serve as context. Tiles that it does not touch
            get zeros, which mean background.

    Yields:
        The slice's number and its (K, Y, X) float16 logits on `device`. Each slice comes once, in order; with a box,
        only those of its range.

    Raises:
        ModelError: a network gives logits that are not finite.
    """
    assert not any(network.training for network in networks), "networks must be in evaluation mode"
    _, depth, *plane = image.shape
    fitted = canvas_map((plane[0], plane[1]), configuration.canvas, configuration.magnification)
    tiles, flips = tiles_of(fitted, inference.tile_overlap), _flips(configuration, inference)
    boxes = [None if prompt is None else canvas_box(prompt.rows, prompt.columns, tile) for tile in tiles]
    seen = range(depth) if prompt is None else _with_context(prompt.slices, depth, configuration.window)
    limit = slices_at_once(fitted, num_outputs, device, networks)
    planned = plan_windows(len(seen), configuration, inference, limit=limit)
    wanted = seen if prompt is None else prompt.slices
    passes = [(weighted.window, _used_slices(weighted, seen, wanted)) for weighted in planned]
    last_use = {z: number for number, (_, slices) in enumerate(passes) for z, _, _ in slices}
    # Networks of single slices must not look across slices, so slices become the batch.
    batch_axis = 1 if configuration.window == 1 else 0
    unfinished: dict[int, torch.Tensor] = {}
    for number, (window, slices) in enumerate(passes):
        if not slices:
            continue
        shown, chosen = _read(image, window, seen).to(device), slice(slices[0][1], slices[-1][1] + 1)
        predicted = (
            _mean_logits(networks, place(shown, tile).unsqueeze(batch_axis), flips, chosen, box, precision)
            if prompt is None or box is not None
            else shown.new_zeros((chosen.stop - chosen.start, num_outputs, *tile.canvas))
            for tile, box in zip(tiles, boxes, strict=True)
        )
        for (z, _, share), logits in zip(slices, collect(predicted, tiles), strict=True):
            part = logits if share == 1 else logits * share
            total = unfinished.pop(z) + part if z in unfinished else part
            if last_use[z] == number:
                yield z, total.half().clamp_(-LARGEST_HALF, LARGEST_HALF)
            else:
                unfinished[z] = total


def predict_volume(
    networks: Sequence[nn.Module],
    image: Volume,
    configuration: Configuration,
    inference: InferencePlan,
    *,
    num_outputs: int,
    device: torch.device,
    precision: str = "float32",
) -> torch.Tensor:
    """All slices of `predict_slices` together: (K, Z, Y, X) float16 on the host. For small volumes and measurements."""
    result = torch.empty((num_outputs, *image.shape[1:]), dtype=torch.float16)
    slices = predict_slices(
        networks, image, configuration, inference, num_outputs=num_outputs, device=device, precision=precision
    )
    for z, logits in slices:
        result[:, z] = logits.to("cpu")
    return result


def plan_windows(
    depth: int, configuration: Configuration, inference: InferencePlan, *, limit: int
) -> tuple[WeightedWindow, ...]:
    """The windows that cover `depth` slices, in order, and what each contributes.

    With "windows", they have the training length and triangular weights. With "whole", they are as long as `limit` and
    `inference.max_slices` allow, and overlap by half a training window at each end; each slice is taken from the window
    in which it is farthest from a cut. Networks of single slices get plain runs of slices.
    """
    length = configuration.window
    if inference.depth == "windows" and length > 1:
        windows = covering_windows(depth, length, min(inference.slice_stride, length))
        return _shared(windows, np.stack([_spread(w, triangular_weights(length), depth) for w in windows]))
    longest = max(min(inference.max_slices, limit), 1 if length == 1 else 2 * length)
    if depth <= longest:
        windows = covering_windows(depth, max(depth, length), 1)
    else:
        overlap = 2 * (length // 2)
        count = math.ceil((depth - overlap) / (longest - overlap))
        even = math.ceil((depth + (count - 1) * overlap) / count)  # the shortest length for this many windows
        windows = covering_windows(depth, even, even - overlap)
    distance = np.stack([_distance_to_cut(window, depth) for window in windows])
    owner = distance.argmax(axis=0)
    return _shared(windows, (np.arange(len(windows))[:, None] == owner).astype(float))


def slices_at_once(fitted: CanvasMap, num_outputs: int, device: torch.device, networks: Sequence[nn.Module]) -> int:
    """How many slices may go through the network together, so that larger slices do not need more memory."""
    pixels = max(fitted.canvas[0] * fitted.canvas[1], fitted.extent[0] * fitted.extent[1])
    if device.type != "cpu":
        return max(1, VALUES_AT_ONCE_ON_GPU // (pixels * (num_outputs + FEATURES)))
    features = max(getattr(network, "features_held", FEATURES) for network in networks)
    return max(1, VALUES_AT_ONCE // (pixels * (num_outputs + features)))


def _mean_logits(
    networks: Sequence[nn.Module],
    canvas: torch.Tensor,
    flips: Sequence[tuple[int, ...]],
    chosen: slice,
    box: tuple[float, float, float, float] | None,
    precision: str,
) -> torch.Tensor:
    """Mean float32 logits (n, K, H, W) of the chosen slices of (B, N, C, H, W), over flips and networks."""
    total: torch.Tensor | None = None
    for flip, network in itertools.product(flips, networks):
        shown = canvas.flip(flip) if flip else canvas
        with autocast(canvas.device, precision):
            logits = finite_logits(network, shown, *(() if box is None else (_flipped_boxes(box, flip, shown),)))
        logits = (logits.flip(flip) if flip else logits).flatten(0, 1)[chosen].float()
        total = logits if total is None else total.add_(logits)
    assert total is not None
    return total.div_(len(flips) * len(networks))


def _flipped_boxes(
    box: tuple[float, float, float, float], flip: tuple[int, ...], windows: torch.Tensor
) -> torch.Tensor:
    """A box (x0, y0, x1, y1) for each slice of flipped (B, N, C, H, W) windows: (B, N, 4)."""
    (x0, y0, x1, y1), (height, width) = box, windows.shape[3:]
    if 3 in flip:
        y0, y1 = height - y1, height - y0
    if 4 in flip:
        x0, x1 = width - x1, width - x0
    return torch.tensor([x0, y0, x1, y1], dtype=torch.float32, device=windows.device).expand(*windows.shape[:2], 4)


def _flips(configuration: Configuration, inference: InferencePlan) -> list[tuple[int, ...]]:
    """Axes of (B, N, C, H, W) to flip, one entry per pass; the first is no flip, or the plan's reversed axes."""
    axis_of = {1: 3, 2: 4} if configuration.window == 1 else {0: 1, 1: 3, 2: 4}
    always = {axis_of[axis] for axis in inference.reversed_axes if axis in axis_of}
    axes = [axis_of[axis] for axis in configuration.mirror_axes if axis in axis_of and inference.mirror]
    mirrored = (set(flip) for count in range(len(axes) + 1) for flip in itertools.combinations(axes, count))
    return [tuple(sorted(flip ^ always)) for flip in mirrored]


def _with_context(slices: range, depth: int, window: int) -> range:
    """Slices with half a window of neighbours at each end, and at least a full window if the volume has it."""
    low, high = max(0, slices.start - window // 2), min(depth, slices.stop + window // 2)
    low = max(0, min(low, high - window))
    return range(low, min(depth, max(high, low + window)))


def _read(image: Volume, window: SliceWindow, seen: range) -> torch.Tensor:
    """(N, C, h, w) float32 slices of a window on the seen slices; reads only the slices in it."""
    indices = window.indices(len(seen)) + seen.start
    first, last = int(indices[0]), int(indices[-1])
    block = np.asarray(image[:, first : last + 1], dtype=np.float32)
    return torch.from_numpy(np.ascontiguousarray(block.transpose(1, 0, 2, 3)[indices - first]))


def _used_slices(weighted: WeightedWindow, seen: range, wanted: range) -> list[tuple[int, int, float]]:
    """(slice number, position in the window, share) of the wanted slices with a share; windows refer to the seen
    ones."""
    inside = weighted.window.inside(len(seen))
    places = [
        (seen.start + weighted.window.start + position, position) for position in range(inside.start, inside.stop)
    ]
    return [
        (z, position, weighted.shares[position]) for z, position in places if weighted.shares[position] and z in wanted
    ]


def _spread(window: SliceWindow, weights: np.ndarray, depth: int) -> np.ndarray:
    """(depth,) weights of a window, zero outside it."""
    spread = np.zeros(depth)
    inside = window.inside(depth)
    spread[window.start + inside.start : window.start + inside.stop] = weights[inside]
    return spread


def _distance_to_cut(window: SliceWindow, depth: int) -> np.ndarray:
    """(depth,) slices to the nearest end of the window that is not an end of the volume; negative outside it."""
    z = np.arange(depth)
    stop = window.start + window.length
    before = z - window.start if window.start > 0 else np.full(depth, depth)
    after = stop - 1 - z if stop < depth else np.full(depth, depth)
    return np.minimum(before, after)


def _shared(windows: tuple[SliceWindow, ...], weights: np.ndarray) -> tuple[WeightedWindow, ...]:
    """Give each window its part of the (windows, depth) weights, normalised slice by slice."""
    depth = weights.shape[1]
    weights = weights / weights.sum(axis=0)
    weighted = []
    for window, row in zip(windows, weights, strict=True):
        inside = window.inside(depth)
        shares = np.zeros(window.length)
        shares[inside] = row[window.start + inside.start : window.start + inside.stop]
        if shares.any():
            weighted.append(WeightedWindow(window=window, shares=tuple(shares.tolist())))
    return tuple(weighted)
