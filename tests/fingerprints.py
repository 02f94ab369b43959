"""Made-up fingerprints that trigger planning rules one at a time."""

from collections.abc import Sequence

import numpy as np

from masam_auto.core.fingerprint import (
    CaseMeasurement,
    ClassMeasurement,
    ClassSummary,
    Fingerprint,
    IntensityStatistics,
)

IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
BINS = 8
FLAT = tuple([1 / BINS] * BINS)
DARK = (1.0,) + (0.0,) * (BINS - 1)
BRIGHT = (0.0,) * (BINS - 1) + (1.0,)


def make_class(centroid: Sequence[float], *, diameter: float = 20.0) -> ClassMeasurement:
    """A round class at `centroid` (mm)."""
    return ClassMeasurement(
        volume=diameter**3 / 2,
        centroid=(float(centroid[0]), float(centroid[1]), float(centroid[2])),
        extent=(diameter,) * 3,
        diameters=(diameter,) * 3,
        slices=(5, 5, 5),
        mean=(0.0,),
        std=(1.0,),
    )


def make_fingerprint(
    *,
    shape: tuple[int, int, int] = (40, 256, 256),
    spacing: tuple[float, float, float] = (3.0, 1.0, 1.0),
    count: int = 10,
    channels: Sequence[str] = ("MRI",),
    classes: Sequence[str] = ("liver",),
    diameter: float = 100.0,
    kept: float = 1.0,
    dimensions: int = 3,
    is_video: bool = False,
    direction: tuple[float, ...] = IDENTITY,
    histograms: dict[str, tuple[float, ...]] | None = None,
    centroids: dict[str, np.ndarray] | None = None,
    shapes: Sequence[tuple[int, int, int]] | None = None,
    spacings: Sequence[tuple[float, float, float]] | None = None,
) -> Fingerprint:
    """A fingerprint of `count` equal cases, unless shapes, spacings or centroids ((count, 3) mm) say otherwise."""
    histograms = histograms or {}
    centroids = centroids or {}
    middle = np.multiply(shape, spacing) / 2
    cases = []
    for i in range(count):
        places = {name: centroids[name][i] if name in centroids else middle for name in classes}
        held = {name: place for name, place in places.items() if not np.isnan(place).any()}
        cases.append(
            CaseMeasurement(
                identifier=f"case_{i:03d}",
                spacing=spacings[i] if spacings else spacing,
                shape=shapes[i] if shapes else shape,
                shape_after_cropping=shapes[i] if shapes else shape,
                direction=direction,
                classes={name: make_class(place, diameter=diameter) for name, place in held.items()},
            )
        )
    statistics = IntensityStatistics(
        mean=40.0, median=35.0, std=100.0, min=-800.0, max=1500.0, percentile_00_5=-110.0, percentile_99_5=800.0
    )
    return Fingerprint(
        dataset_name="Dataset001_Toy",
        channel_names=tuple(channels),
        class_names=tuple(classes),
        dimensions=dimensions,
        is_video=is_video,
        median_relative_size_after_cropping=kept,
        intensities=(statistics,) * len(channels),
        classes={
            name: ClassSummary(
                cases=count,
                median_volume=diameter**3 / 2,
                median_diameters=(diameter,) * 3,
                histograms=(histograms.get(name, FLAT),) * len(channels),
            )
            for name in classes
        },
        histogram_edges=(tuple(np.linspace(-3, 3, BINS + 1).tolist()),) * len(channels),
        cases=tuple(cases),
        num_outputs=len(classes) + 1,
    )


def ordered(count: int, *, axis: int, agreeing: int, apart: float = 20.0) -> dict[str, np.ndarray]:
    """Centroids of classes "a" and "b" that come in the same order along `axis` in `agreeing` of `count` cases.

    Along the other axes they change places from case to case.
    """
    sign = np.ones((count, 3))
    sign[::2] = -1
    sign[:, axis] = np.where(np.arange(count) < agreeing, 1, -1)
    middle = np.full((count, 3), 50.0)
    return {"a": middle - sign * apart / 2, "b": middle + sign * apart / 2}
