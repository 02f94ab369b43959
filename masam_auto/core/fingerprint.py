"""What was measured of a data set. Nothing in here decides."""

from dataclasses import dataclass, field

from masam_auto.core.errors import PlanError
from masam_auto.core.geometry import Shape, Triple


@dataclass(frozen=True, kw_only=True, slots=True)
class IntensityStatistics:
    """Foreground intensities of one channel, in the file's units (HU for CT)."""

    mean: float
    median: float
    std: float
    min: float
    max: float
    percentile_00_5: float
    percentile_99_5: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassMeasurement:
    """One class (or region) in one case. Axes in the file's order (Z, Y, X), lengths in mm.

    `volume` is in cubic mm. `centroid` is in mm from the corner of the cropped image. `extent` is the side lengths of
    the bounding box. `diameters[a]` is the median, over the slices across axis a that hold the class, of the diameter
    of the disc of the same area; `slices[a]` is how many such slices there are. `mean` and `std` have one entry a
    channel, in the file's units.
    """

    volume: float
    centroid: Triple
    extent: Triple
    diameters: Triple
    slices: Shape
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class CaseMeasurement:
    """One case: shapes in voxels, spacing in mm, (Z, Y, X). `direction` is ITK's (see Geometry)."""

    identifier: str
    spacing: Triple
    shape: Shape
    shape_after_cropping: Shape
    direction: tuple[float, ...]
    classes: dict[str, ClassMeasurement]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassSummary:
    """One class over the data set.

    `cases` is the number of cases that hold it; the medians are over those. `histograms` has one entry a channel: the
    shares (summing to 1) of the class's intensities between the fingerprint's `histogram_edges`, after each case has
    been brought to mean 0 and standard deviation 1 over its cropped image.
    """

    cases: int
    median_volume: float
    median_diameters: Triple
    histograms: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Fingerprint:
    """All measurements of a data set.

    `is_video`: cases are sequences along axis 0. `dimensions`: 2 for plain pictures, 3 for volumes and videos.
    `histogram_edges`: one row a channel, see ClassSummary. `num_outputs`: channels of the logits (see Labels).
    """

    version: int = 1
    dataset_name: str
    channel_names: tuple[str, ...]
    class_names: tuple[str, ...]
    dimensions: int
    is_video: bool
    median_relative_size_after_cropping: float
    intensities: tuple[IntensityStatistics, ...]
    classes: dict[str, ClassSummary]
    histogram_edges: tuple[tuple[float, ...], ...]
    cases: tuple[CaseMeasurement, ...]
    num_outputs: int = field(default=2)

    def __post_init__(self) -> None:
        if not self.cases:
            raise PlanError("fingerprint has no cases")
        for what, records in (("intensity", self.intensities), ("histogram", self.histogram_edges)):
            if len(records) != len(self.channel_names):
                raise PlanError(
                    f"fingerprint has {len(records)} {what} records for {len(self.channel_names)} channels; "
                    "extract it anew"
                )
