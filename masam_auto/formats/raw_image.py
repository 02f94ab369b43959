"""An image as its file has it, before anything is made of it."""

from dataclasses import dataclass

import numpy as np

from masam_auto.core.geometry import Geometry


@dataclass(frozen=True, kw_only=True, slots=True)
class RawImage:
    """An image as its file has it.

    `array` is (C, Z, Y, X) in the file's type, scale slope and intercept applied. `is_series`: the first axis counts
    the volumes of a 4D file, which may be channels or times. `step`: the scale slope, between two values that it can hold;
    0 where the values are as they were stored.
    """

    array: np.ndarray
    geometry: Geometry
    is_series: bool = False
    step: float = 0.0
