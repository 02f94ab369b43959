"""The meaning of the integers in a label file: names, regions, ignore."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from masam_auto.core.errors import DatasetError
from masam_auto.core.file_names import visible

LIMIT = 1000  # names and values: pairs of classes are compared, and the network has an output for each class
DIGITS = 18
SIDES = (
    ("left", "right"),
    ("anterior", "posterior"),
    ("superior", "inferior"),
    ("upper", "lower"),
    ("ventral", "dorsal"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Labels:
    """Names of the classes in nnU-Net's dataset.json form.

    `values` maps each name to its label value or, for regions, to the values that form it. It is in file order and
    includes background and ignore. With regions the outputs are sigmoids, one per region, written in
    `regions_class_order`; otherwise the output is a softmax over background and classes.
    """

    values: dict[str, tuple[int, ...]]
    has_regions: bool = False
    regions_class_order: tuple[int, ...] | None = None
    ignore: int | None = field(default=None)

    def __post_init__(self) -> None:
        if self.values.get("background") != (0,):
            raise DatasetError('dataset.json: "labels" must contain "background": 0')
        if len(self.foreground) < 1:
            raise DatasetError('dataset.json: "labels" names no foreground class')
        declared = self.declared
        if max(len(self.values), len(declared)) > LIMIT:
            raise DatasetError(
                f'dataset.json: "labels" has {max(len(self.values), len(declared))} classes; the limit is {LIMIT}. '
                "Join some, or remove some."
            )
        if self.ignore is None and declared != tuple(range(len(declared))):
            raise DatasetError(
                f"dataset.json: label values must be consecutive from 0, got {declared}. Renumber the labels."
            )
        if self.ignore is not None and (*declared, self.ignore) != tuple(range(len(declared) + 1)):
            raise DatasetError(
                f"dataset.json: label values must be consecutive from 0 with ignore last, got {declared} and ignore "
                f"{self.ignore}"
            )
        if not self.has_regions and any(len(value) != 1 for value in self.values.values()):
            raise DatasetError('dataset.json: a label with several values is a region and needs "regions_class_order"')
        single = sorted(value[0] for value in self.foreground.values())
        if not self.has_regions and len(set(single)) < len(single):
            raise DatasetError(
                f'dataset.json: "labels" gives several names to one value, values {single}. Renumber them.'
            )
        if self.has_regions:
            self._check_regions(declared)

    def _check_regions(self, declared: tuple[int, ...]) -> None:
        order = self.regions_class_order
        if order is None or len(order) != len(self.foreground):
            raise DatasetError(
                f'dataset.json: "regions_class_order" must list one value for each of the {len(self.foreground)} '
                "regions, "
                f"got {order}"
            )
        if undeclared := sorted(set(order) - set(declared)):
            raise DatasetError(f'dataset.json: "regions_class_order" has undeclared values {undeclared}')
        for value in declared:
            written = self.written(value)
            if self._regions_with(written) != self._regions_with(value):
                raise DatasetError(
                    f'dataset.json: "regions_class_order" {list(order)} writes label {value} as {written}, which '
                    "belongs to other regions, so this label is lost. Later regions overwrite earlier ones: order "
                    "them from the largest to the innermost, each with the value that is left in it."
                )

    def written(self, value: int) -> int:
        """What a voxel of a label value becomes after all regions are written in order."""
        written = 0
        for region, left in zip(self.foreground.values(), self.regions_class_order or (), strict=True):
            written = left if value in region else written
        return written

    def _regions_with(self, value: int) -> set[str]:
        return {name for name, members in self.foreground.items() if value in members}

    @property
    def foreground(self) -> dict[str, tuple[int, ...]]:
        """Classes by value, or regions in file order: the order of the network's outputs."""
        found = {name: value for name, value in self.values.items() if name not in ("background", "ignore")}
        return found if self.has_regions else dict(sorted(found.items(), key=lambda item: item[1]))

    @property
    def declared(self) -> tuple[int, ...]:
        """All label values allowed in a label file, without ignore, sorted."""
        found = {v for name, value in self.values.items() if name != "ignore" for v in value}
        return tuple(sorted(found))

    @property
    def num_outputs(self) -> int:
        """Channels of the network's logits: K + 1 with background for softmax, the number of regions for sigmoid."""
        return len(self.foreground) if self.has_regions else len(self.foreground) + 1


def is_foreground(values: np.ndarray, ignore: int | None) -> np.ndarray:
    """Where label values belong to a class or region: not background, not the ignore label. bool."""
    found: np.ndarray = values > 0
    if ignore is not None:
        found &= values != ignore
    return found


def parse_labels(raw: dict, regions_class_order: list | None) -> Labels:
    """Read the "labels" entry of dataset.json.

    Args:
        raw: name -> int, or list of ints for regions; nnU-Net v1's value -> name form is refused, with its remedy.
        regions_class_order: that key of dataset.json, or None.

    Raises:
        DatasetError: naming the entry and what was expected.

    Example:
        >>> from masam_auto.core.labels import parse_labels
        >>> labels = parse_labels({"background": 0, "organ": 1, "lesion": 2}, None)
        >>> labels.foreground, labels.num_outputs
        ({'organ': (1,), 'lesion': (2,)}, 3)
        >>> regions = parse_labels({"background": 0, "whole": [1, 2], "core": 2}, [1, 2])
        >>> regions.foreground, regions.num_outputs  # one sigmoid a region, no background
        ({'whole': (1, 2), 'core': (2,)}, 2)
    """
    if not isinstance(raw, dict) or not raw:
        raise DatasetError('dataset.json: "labels" must map names to values, e.g. {"background": 0, "liver": 1}')
    if all(isinstance(value, str) and not value.strip().isdecimal() for value in raw.values()):
        raise DatasetError(
            'dataset.json: "labels" maps values to names (nnU-Net v1). Swap them: {"background": 0, "liver": 1}'
        )
    values: dict[str, tuple[int, ...]] = {}
    for name, value in raw.items():
        if visible(name) != name:
            raise DatasetError(f"dataset.json: label {name!a} contains a line break or control character. Rename it.")
        members = [as_number(member) for member in (value if isinstance(value, list) else [value])]
        if not members or not all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in members):
            raise DatasetError(
                f'dataset.json: label "{name}" must be a non-negative whole number or a list of them, got {value!r}'
            )
        values[name] = tuple(members)
    if len(values.get("ignore", ())) > 1:
        raise DatasetError(f'dataset.json: "ignore" must be one value, got {raw["ignore"]!r}')
    has_regions = any(len(members) > 1 for members in values.values())  # nnU-Net's rule
    ignore = values["ignore"][0] if "ignore" in values else None
    order = tuple(regions_class_order) if has_regions and regions_class_order is not None else None
    return Labels(values=values, has_regions=has_regions, regions_class_order=order, ignore=ignore)


def as_number(value: Any) -> Any:
    """Convert a whole number written as text ("1"); return anything else unchanged."""
    is_number = isinstance(value, str) and value.strip().isdecimal() and len(value) <= DIGITS
    return int(value) if is_number else value


def named_sides(names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Pairs of side words that occur in label names, e.g. (("left", "right"),) for "left kidney".

    A full side word counts in any name. Initials ("kidney_l", "kidney_r") count if two names differ only in them.
    """
    spoken = {word for name in names for word in _words(name)}
    by_initials = {_side_of(a, b) for i, a in enumerate(names) for b in names[i + 1 :]}
    return tuple(pair for pair in SIDES if spoken & set(pair) or pair in by_initials)


def _side_of(a: str, b: str) -> tuple[str, str] | None:
    words_a, words_b = _words(a), _words(b)
    if len(words_a) != len(words_b):
        return None
    different = [(x, y) for x, y in zip(words_a, words_b, strict=True) if x != y]
    if len(different) != 1:
        return None
    x, y = different[0]
    for first, second in SIDES:
        for one, other in ((first, second), (first[0], second[0])):
            if {x, y} == {one, other}:
                return (first, second)
    return None


def _words(name: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower())
