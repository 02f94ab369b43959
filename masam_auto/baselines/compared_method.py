"""What all methods that are compared have in common: they train, they predict, and they say what that took."""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from masam_auto.core.dataset import Case, Dataset
from masam_auto.core.jsonio import digest


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """What a training was and used.

    `seconds` of wall clock; `cpu_seconds` of all threads and workers; `memory_gib` is the peak, of the GPU where there
    is one, else of the training process. `parameters` are those that learn. `planned_batch` is what the method's own
    planning wants.
    """

    seconds: float
    cpu_seconds: float
    memory_gib: float
    parameters: int
    iterations: int
    batch: int
    planned_batch: int
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictionCost:
    """Wall-clock and CPU-seconds of each case, by identifier: from raw images to written segmentations."""

    seconds: dict[str, float]
    cpu_seconds: dict[str, float]


def raw_digest(dataset: Dataset) -> str:
    """Of dataset.json, of the label files' content, and of the images' names and sizes; copies have the same at other
    times."""

    def described(case: Case) -> list[Any]:
        images = [[(file.name, file.stat().st_size) for file in frame] for frame in case.images]
        return [case.identifier, images, [zlib.crc32(file.read_bytes()) for file in case.labels or ()]]

    return digest([dataset.description.raw, [described(case) for case in dataset.cases]])[:12]


def nothing_there() -> None:
    """`trained` of a method whose models nobody else makes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """One method on one fold.

    `request` is what was asked of it, as plain JSON (budget, batch, ...): results of another request are not reused.
    `train` leaves a model where `predict` finds it; `predict` writes ID.ext for each case, or frame of it, into a
    folder. `trained` tells of the model that is there now, if any: what an earlier one predicted does not count for it.
    """

    name: str
    train: Callable[[], Training]
    predict: Callable[[Sequence[Case], Path], PredictionCost]
    trained: Callable[[], Training | None] = nothing_there
    request: dict[str, Any] = field(default_factory=dict)
