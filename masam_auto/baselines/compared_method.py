"""What all compared methods share: they train, they predict, and they report the cost of both."""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from masam_auto.core.dataset import Case, Dataset
from masam_auto.core.jsonio import digest


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """The facts and the cost of a training.

    `seconds` are wall clock. `cpu_seconds` are of all threads and workers. `memory_gib` is the peak of the GPU if there
    is one, else of the training process. `parameters` counts those that learn. `planned_batch` is the batch that the
    method planned.
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
    """Wall-clock and CPU-seconds of each case, by identifier, from raw images to written segmentations."""

    seconds: dict[str, float]
    cpu_seconds: dict[str, float]


def raw_digest(dataset: Dataset) -> str:
    """Digest of dataset.json, the label files' content, and the images' names and sizes. Copies have the same one."""

    def described(case: Case) -> list[Any]:
        images = [[(file.name, file.stat().st_size) for file in frame] for frame in case.images]
        return [case.identifier, images, [zlib.crc32(file.read_bytes()) for file in case.labels or ()]]

    return digest([dataset.description.raw, [described(case) for case in dataset.cases]])[:12]


def nothing_there() -> None:
    """The default `trained`, for methods whose models only the comparison makes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """One method on one fold.

    `request` is what was asked of it, as plain JSON (budget, batch, ...). Results of another request are not reused.
    `train` leaves a model where `predict` finds it. `predict` writes ID.ext for each case, or frame, into a folder.
    `trained` describes the model that exists now, if any. Predictions of an earlier model are not reused.
    """

    name: str
    train: Callable[[], Training]
    predict: Callable[[Sequence[Case], Path], PredictionCost]
    trained: Callable[[], Training | None] = nothing_there
    request: dict[str, Any] = field(default_factory=dict)
