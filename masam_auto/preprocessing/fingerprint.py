"""Measure a data set once: shapes, spacings, foreground intensities, and where each class is. Decides nothing."""

import collections
import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from masam_auto.compute.parallel import Workers, map_cases
from masam_auto.core.dataset import Case, Dataset, DatasetDescription
from masam_auto.core.errors import DatasetError, ImageError, PlanError
from masam_auto.core.fingerprint import (
    CaseMeasurement,
    ClassMeasurement,
    ClassSummary,
    Fingerprint,
    IntensityStatistics,
)
from masam_auto.core.geometry import Box, Geometry, Triple
from masam_auto.core.jsonio import read_json, write_json
from masam_auto.core.labels import is_foreground
from masam_auto.core.turning import UNKNOWN_AXES, turn_between
from masam_auto.formats.io import read_case, read_case_labels
from masam_auto.imaging.crop import box_around, crop_to, nonzero_box, value_boxes
from masam_auto.imaging.normalize import not_finite
from masam_auto.imaging.placement import check_same_shape, turned_to_place

logger = logging.getLogger(__name__)

SEED = 1234
# Samples for the whole data set, and the fewest per case. nnU-Net draws 10^8 in all. With 2 x 10^6, the percentiles
# differ by less than a thousandth of the intensity range and need a fiftieth of the memory.
SAMPLES, MIN_SAMPLES_PER_CASE = 2_000_000, 10_000
CLASS_SAMPLES_PER_CASE = 1_000
HISTOGRAM_BINS = 64
STRAY_SHARE = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class _Measured:
    """What a worker sends back for one case.

    `samples`: (C, n) foreground intensities; n = 0 without foreground. `lowest`, `highest`: (C,) over all foreground
    voxels. `class_samples`: (C, m) standardised intensities by class name.
    """

    case: CaseMeasurement
    dimensions: int
    samples: np.ndarray
    lowest: np.ndarray
    highest: np.ndarray
    class_samples: dict[str, np.ndarray]


def extract_fingerprint(dataset: Dataset, *, workers: Workers) -> Fingerprint:
    """Measure all training cases.

    Args:
        dataset: the raw data set; every case has labels.
        workers: processes, 0 for this one, or a cluster.

    Raises:
        DatasetError: no case has any foreground.
        CaseErrors: cases that cannot be read.

    Source: spacings, shapes after cropping and intensity statistics are defined as in nnU-Net v2's fingerprint, so both
        agree. Each case contributes the same number of samples (ours are drawn evenly: no voxel is drawn twice before
        every voxel was drawn once).

    Example:
        >>> from masam_auto import extract_fingerprint
        >>> fingerprint = extract_fingerprint(dataset, workers=0)
        >>> [case.shape for case in fingerprint.cases]  # (Z, Y, X) after cropping
        [(5, 16, 14), (6, 16, 14), (5, 16, 14)]
    """
    description = dataclasses.replace(
        dataset.description, raw={}
    )  # workers do not need it; it would be sent with every case
    count = max(MIN_SAMPLES_PER_CASE, SAMPLES // max(len(dataset.cases), 1))
    items = [(case, description, count) for case in dataset.cases]
    names = [case.identifier for case in dataset.cases]
    measured = map_cases(
        _measure_file, items, names=names, what="fingerprint", workers=workers, folders=[dataset.folder]
    )
    fingerprint = summarise(dataset.description, measured)
    _say_axes(fingerprint)
    return fingerprint


def write_fingerprint(path: Path, fingerprint: Fingerprint) -> None:
    """Write fingerprint.json atomically. Raises OutputError."""
    write_json(path, fingerprint)


def read_fingerprint(path: Path) -> Fingerprint:
    """Read fingerprint.json. Raises PlanError naming the file and the field.

    Example:
        >>> from masam_auto.preprocessing.fingerprint import read_fingerprint, write_fingerprint
        >>> write_fingerprint(Path("fingerprint.json"), fingerprint)
        >>> read_fingerprint(Path("fingerprint.json")) == fingerprint
        True
    """
    if not path.is_file():
        raise PlanError(
            f"fingerprint not found: {path}. Make it with masam_plan_and_preprocess, which also plans, or "
            "masam_extract_fingerprint."
        )
    return read_json(path, Fingerprint, what="fingerprint")


def measure_case(
    image: np.ndarray,
    labels: np.ndarray,
    geometry: Geometry,
    *,
    identifier: str,
    classes: Mapping[str, tuple[int, ...]],
    ignore: int | None = None,
    samples: int = MIN_SAMPLES_PER_CASE,
) -> _Measured:
    """Measure one case.

    Args:
        image: (C, Z, Y, X) float32, in the file's units.
        labels: (Z, Y, X) label values.
        geometry: the image's grid.
        identifier: the case's name.
        classes: label values that make up each class or region.
        ignore: label value that does not count as foreground.
        samples: foreground intensities to draw.
    """
    box = nonzero_box(image)
    image, labels = crop_to(image, box), crop_to(labels, box)
    generator = np.random.default_rng(SEED)
    foreground = is_foreground(labels, ignore)
    voxels = image[:, foreground]
    drawn = np.resize(generator.permutation(voxels.shape[1]), samples if voxels.shape[1] else 0)
    measurements, class_samples = _measure_classes(image, labels, geometry, classes, generator)
    channels = len(image)
    case = CaseMeasurement(
        identifier=identifier,
        spacing=geometry.spacing,
        shape=geometry.shape,
        shape_after_cropping=(labels.shape[0], labels.shape[1], labels.shape[2]),
        direction=geometry.direction,
        classes=measurements,
        axes=geometry.axes,
    )
    return _Measured(
        case=case,
        dimensions=geometry.dimensions,
        samples=voxels[:, drawn].astype(np.float32),
        lowest=voxels.min(axis=1, initial=np.inf) if channels else np.zeros(0),
        highest=voxels.max(axis=1, initial=-np.inf) if channels else np.zeros(0),
        class_samples=class_samples,
    )


def _measure_classes(
    image: np.ndarray,
    labels: np.ndarray,
    geometry: Geometry,
    classes: Mapping[str, tuple[int, ...]],
    generator: np.random.Generator,
) -> tuple[dict[str, ClassMeasurement], dict[str, np.ndarray]]:
    """Measure each class that the case has, and sample its standardised intensities, (C, m)."""
    mean = image.mean(axis=(1, 2, 3), dtype=np.float64)
    std = np.maximum(image.std(axis=(1, 2, 3), dtype=np.float64), 1e-8)
    boxes = value_boxes(labels)
    measurements, samples = {}, {}
    for name, values in classes.items():
        inside = box_around(boxes[value] for value in values if value in boxes)
        if inside is None:
            continue
        mask = np.isin(crop_to(labels, inside), values)
        intensities = crop_to(image, inside)[:, mask]
        measurements[name] = _measure_class(mask, inside, intensities, geometry)
        picked = intensities[:, generator.integers(0, intensities.shape[1], CLASS_SAMPLES_PER_CASE)]
        samples[name] = ((picked - mean[:, None]) / std[:, None]).astype(np.float32)
    return measurements, samples


def summarise(description: DatasetDescription, measured: Sequence[_Measured]) -> Fingerprint:
    """Join the measurements of all cases, turned to the most frequent axes.

    Raises:
        DatasetError: no case has any foreground.
    """
    axes = most_frequent_axes([item.case.axes for item in measured])
    along = _slices_along([item.case for item in measured if item.case.axes == axes])
    measured = [dataclasses.replace(item, case=_turned(item.case, axes, along)) for item in measured]
    if not any(item.class_samples for item in measured):
        raise DatasetError(
            f"{description.name}: none of the {len(measured)} training cases has a labelled foreground voxel "
            "inside the non-zero part of its image, so there is nothing to learn. Check labelsTr."
        )
    samples = np.concatenate([item.samples for item in measured], axis=1)  # cases without foreground add nothing
    lowest = np.min([item.lowest for item in measured], axis=0)
    highest = np.max([item.highest for item in measured], axis=0)
    statistics = [_statistics(*channel) for channel in zip(samples, lowest, highest, strict=True)]
    pooled = _pool_classes(description, measured)
    edges = _histogram_edges(list(pooled.values()), channels=len(samples))
    kept = [math.prod(m.case.shape_after_cropping) / math.prod(m.case.shape) for m in measured]
    return Fingerprint(
        dataset_name=description.name,
        channel_names=description.channel_names,
        class_names=tuple(description.labels.foreground),
        dimensions=3 if description.is_video else max(item.dimensions for item in measured),
        is_video=description.is_video,
        median_relative_size_after_cropping=float(np.median(kept)),
        intensities=tuple(statistics),
        classes={name: _summarise_class(name, values, measured, edges) for name, values in pooled.items()},
        histogram_edges=tuple(tuple(row.tolist()) for row in edges),
        cases=tuple(item.case for item in measured),
        num_outputs=description.labels.num_outputs,
        axes=axes,
        slices_along=along,
    )


def _pool_classes(description: DatasetDescription, measured: Sequence[_Measured]) -> dict[str, np.ndarray]:
    """The intensity samples of each class from all cases. Warns of classes that no case has."""
    names = description.labels.foreground
    present = {name: [m.class_samples[name] for m in measured if name in m.class_samples] for name in names}
    if missing := [name for name, parts in present.items() if not parts]:
        logger.warning(
            "warning: no case of %s has %s, so it cannot be learned. Correct the labels if it got lost, or take it out "
            "of dataset.json.",
            description.name,
            ", ".join(f'"{name}"' for name in missing),
        )
    return {name: np.concatenate(parts, axis=1) for name, parts in present.items() if parts}


def most_frequent_axes(found: Sequence[str | None]) -> str:
    """The axis code of most cases; the first one if several are equally frequent; "unknown" if no case has one."""
    known = [axes for axes in found if axes is not None]
    return collections.Counter(known).most_common(1)[0][0] if known else UNKNOWN_AXES


def _slices_along(cases: Sequence[CaseMeasurement]) -> str | None:
    """The letter of the slice axis in most cases with one code, if most of them clearly have slices."""
    found = [
        None if (axis := case.grid.slice_axis) is None or case.axes is None else case.axes[2 - axis] for case in cases
    ]
    return collections.Counter(found).most_common(1)[0][0] if found else None


def _turned(case: CaseMeasurement, axes: str, along: str | None) -> CaseMeasurement:
    """A case turned to `axes`. Its own axes take its slices into account (`Geometry.axes_with_slices`)."""
    if case.axes is None:
        return case
    own = case.grid.axes_with_slices(along) or case.axes
    return dataclasses.replace(case.turned(turn_between(own, axes)), axes=own)


def _say_axes(fingerprint: Fingerprint) -> None:
    """Log which cases are turned, and which cannot be turned."""
    counts = collections.Counter(case.axes for case in fingerprint.cases)
    silent = counts.pop(None, 0)
    if len(counts) > 1:
        listed = ", ".join(f"{axes} in {count}" for axes, count in counts.most_common())
        logger.warning(
            "the voxel axes (x, y, z) of the training images point in different directions (%s). All are turned to %s.",
            listed,
            fingerprint.axes,
        )
    if silent:
        logger.info(
            "%s of %s training images do not say where their axes point. They are used as stored.",
            silent,
            len(fingerprint.cases),
        )


def _measure_file(item: tuple[Case, DatasetDescription, int]) -> _Measured:
    """Read and measure a case (in a worker). Raises MasamError if its files cannot be used."""
    case, description, samples = item
    image, geometry = read_case(case, description)
    labels, _ = turned_to_place(*read_case_labels(case, description), geometry)
    check_same_shape(image.shape[1:], labels.shape, what=f"{case.identifier}: image", other="labels")
    if problem := not_finite(image):
        raise ImageError(f"{case.identifier}: {problem}")
    return measure_case(
        image,
        labels,
        geometry,
        identifier=case.identifier,
        classes=description.labels.foreground,
        ignore=description.labels.ignore,
        samples=samples,
    )


def _measure_class(mask: np.ndarray, box: Box, intensities: np.ndarray, geometry: Geometry) -> ClassMeasurement:
    """Measure one class from its mask (Z, Y, X) within `box` and its intensities (C, voxels)."""
    spacing = np.asarray(geometry.spacing)
    counts = [mask.sum(axis=tuple(other for other in range(3) if other != axis)) for axis in range(3)]
    total = int(counts[0].sum())
    positions = [np.arange(low, high) + 0.5 for low, high in box]
    # pixel area of slices across an axis: the product of the other two spacings, at any angle between them
    areas = [count[count > 0] * (spacing.prod() / spacing[axis]) for axis, count in enumerate(counts)]
    diameters = [float(np.median(2 * np.sqrt(area / math.pi))) for area in areas]
    extents = [float(mask.shape[axis] * spacing[axis]) for axis in range(3)]
    return ClassMeasurement(
        volume=total * geometry.voxel_volume,
        centroid=_triple([float(p @ c / total * s) for p, c, s in zip(positions, counts, spacing, strict=True)]),
        extent=_triple(extents),
        diameters=_triple(diameters),
        slices=(len(areas[0]), len(areas[1]), len(areas[2])),
        mean=tuple(intensities.mean(axis=1, dtype=np.float64).tolist()),
        std=tuple(intensities.std(axis=1, dtype=np.float64).tolist()),
        components=_triple([_component_diameter(mask, axis) * _pixel(spacing, axis) for axis in range(3)]),
    )


def _component_diameter(mask: np.ndarray, axis: int) -> float:
    """Median diameter in px of the connected components in slices across an axis, each taken as a disc of equal area.

    A class may consist of a hundred specks. A large class may also have stray voxels, which say nothing about it. So
    the smallest components, which together have less than a tenth of the class's area, are ignored.
    """
    within = ndimage.generate_binary_structure(3, 1)
    within[tuple(slice(None, None, 2) if other == axis else slice(None) for other in range(3))] = False
    labelled, _ = ndimage.label(mask, within)
    areas = np.sort(np.bincount(labelled.ravel())[1:])
    kept = areas[np.cumsum(areas) > STRAY_SHARE * areas.sum()]
    return float(np.median(2 * np.sqrt(kept / math.pi)))


def _pixel(spacing: np.ndarray, axis: int) -> float:
    """Side in mm of a square with the area of a pixel, in slices across an axis."""
    return math.sqrt(spacing.prod() / spacing[axis])


def _triple(values: Sequence[float]) -> Triple:
    return (values[0], values[1], values[2])


def _statistics(samples: np.ndarray, lowest: float, highest: float) -> IntensityStatistics:
    low, median, high = np.percentile(samples, (0.5, 50.0, 99.5))
    return IntensityStatistics(
        mean=float(samples.mean(dtype=np.float64)),
        median=float(median),
        std=float(samples.std(dtype=np.float64)),
        min=float(lowest),
        max=float(highest),
        percentile_00_5=float(low),
        percentile_99_5=float(high),
    )


def _histogram_edges(samples: Sequence[np.ndarray], *, channels: int) -> np.ndarray:
    """(C, bins + 1) edges over the middle 99 % of all classes' standardised intensities."""
    together = np.concatenate([*samples, np.zeros((channels, 0), dtype=np.float32)], axis=1)
    low, high = np.percentile(together, (0.5, 99.5), axis=1)
    return np.linspace(low, np.maximum(high, low + 1e-3), HISTOGRAM_BINS + 1, axis=1)


def _summarise_class(name: str, samples: np.ndarray, measured: Sequence[_Measured], edges: np.ndarray) -> ClassSummary:
    found = [item.case.classes[name] for item in measured if name in item.case.classes]
    histograms = []
    for values, row in zip(samples, edges, strict=True):
        counts, _ = np.histogram(np.clip(values, row[0], row[-1]), bins=row)
        histograms.append(tuple((counts / counts.sum()).tolist()))
    return ClassSummary(
        cases=len(found),
        median_volume=float(np.median([item.volume for item in found])),
        median_diameters=_triple(np.median([item.diameters for item in found], axis=0).tolist()),
        histograms=tuple(histograms),
        median_components=_triple(np.median([item.components or item.diameters for item in found], axis=0).tolist()),
    )
