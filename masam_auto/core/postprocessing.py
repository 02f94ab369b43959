"""Postprocessing of a segmentation: which of its connected components are removed."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from masam_auto.core.checks import check
from masam_auto.core.errors import PlanError
from masam_auto.core.jsonio import read_json, read_plain

POSTPROCESSING_NAME = "postprocessing.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class PostprocessingStep:
    """One step: voxels of some label values form a mask, and some connected components of it become background.

    `target` names the mask for readers: a class, a region, or "foreground". `values` are the label values that form it.
    `rule` says which components stay: "keep_largest" the one with most voxels; "remove_small" those of at least
    `volume` cubic mm.
    """

    target: str
    values: tuple[int, ...]
    rule: Literal["keep_largest", "remove_small"]
    volume: float = 0.0

    def __post_init__(self) -> None:
        check(
            len(self.values) > 0 and min(self.values) > 0 and len(set(self.values)) == len(self.values),
            f"postprocessing of {self.target}: values must be different label values above 0, got {self.values}",
        )
        check(
            math.isfinite(self.volume) and (self.volume > 0) == (self.rule == "remove_small"),
            f"postprocessing of {self.target}: volume must be above 0 mm^3 for remove_small and 0 for keep_largest, "
            f"got {self.volume}",
        )

    def __str__(self) -> str:
        if self.rule == "keep_largest":
            return f"keep the largest component of {self.target}"
        return f"remove components of {self.target} below {self.volume:g} mm^3"


@dataclass(frozen=True, kw_only=True, slots=True)
class Postprocessing:
    """Steps in the order to apply them. Without steps, segmentations stay unchanged.

    `each_slice`: process slices one by one, as for videos, whose frames are separate files.
    """

    version: int = 1
    steps: tuple[PostprocessingStep, ...] = ()
    each_slice: bool = False

    def __str__(self) -> str:
        return ", then ".join(map(str, self.steps)) or "none"


def read_postprocessing(path: Path) -> Postprocessing:
    """Read postprocessing.json. Raises PlanError if it is missing, damaged or of a newer version."""
    plain = read_plain(path, what="postprocessing")
    if not isinstance(plain, dict) or "steps" not in plain:
        raise PlanError(
            f"{path} is not a postprocessing.json: it has no steps. masam_find_best_configuration writes them."
        )
    return read_json(path, Postprocessing, what="postprocessing")
