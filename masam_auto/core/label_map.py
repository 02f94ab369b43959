"""Label maps: to score a model of one data set on the references of another."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from masam_auto.core.errors import DatasetError, PlanError
from masam_auto.core.jsonio import read_plain
from masam_auto.core.labels import Labels, parse_labels

KEYS = ("labels", "prediction", "reference")
LARGEST = np.iinfo(np.int16).max


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelMap:
    """`labels` are the classes to score. `prediction` and `reference` map label values in the files to new ones."""

    labels: Labels
    prediction: dict[int, int] = field(default_factory=dict)
    reference: dict[int, int] = field(default_factory=dict)


def read_label_map(path: Path) -> LabelMap:
    """Read {"labels": {"spleen": 1, ...}, "prediction": {"8": 0, ...}, "reference": {"13": 0, ...}}.

    Raises:
        DatasetError: missing, or not in that form; the message names file and entry.
    """
    try:
        plain = read_plain(path, what="label map")
    except PlanError as error:
        raise DatasetError(str(error)) from error
    if not isinstance(plain, dict) or "labels" not in plain or set(plain) - set(KEYS):
        raise DatasetError(f'{path}: must have "labels" and, if values change, "prediction" and "reference"')
    try:
        labels = parse_labels({"background": 0} | plain["labels"], None)
    except TypeError as error:
        raise DatasetError(f'{path}: "labels" must map names to values, e.g. {{"spleen": 1}}') from error
    except DatasetError as error:
        raise DatasetError(str(error).replace("dataset.json", str(path), 1)) from error
    return LabelMap(
        labels=labels,
        prediction=_parse_values(plain.get("prediction", {}), f'{path}: "prediction"'),
        reference=_parse_values(plain.get("reference", {}), f'{path}: "reference"'),
    )


def map_labels(array: np.ndarray, new_values: Mapping[int, int]) -> np.ndarray:
    """Replace label values; values that are not mentioned stay.

    Args:
        array: int16, any shape.
        new_values: value in the file -> value to compare. All are replaced at once: {1: 2, 2: 1} swaps.
    """
    if not new_values:
        return array
    table = np.arange(1 << 16, dtype=np.uint16).view(np.int16)
    table[list(new_values)] = list(new_values.values())
    return table[array.view(np.uint16)]


def _parse_values(raw: Any, where: str) -> dict[int, int]:
    valid = isinstance(raw, dict) and all(
        key.isdecimal() and int(key) <= LARGEST and type(value) is int and 0 <= value <= LARGEST
        for key, value in raw.items()
    )
    if not valid:
        raise DatasetError(f'{where} must map label values to label values, e.g. {{"13": 0, "12": 11}}')
    return {int(key): value for key, value in raw.items()}
