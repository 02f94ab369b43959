"""The measurements of a data set. Nothing here makes decisions."""

from dataclasses import dataclass, field, replace

from masam_auto.core.checks import check
from masam_auto.core.errors import PlanError
from masam_auto.core.geometry import Geometry, Shape, Triple
from masam_auto.core.turning import STAY, Turn

LONGEST = 1 << 24  # voxels; a video of several days


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
    """One class (or region) in one case. Axes in the case's order (Z, Y, X), lengths in mm.

    `volume` is in cubic mm. `centroid` is in mm from the corner of the cropped image. `extent` is the side lengths of
    the bounding box. `slices[a]` is the number of slices across axis a that contain the class. `diameters[a]` is the
    median, over these slices, of the diameter of a disc of the same area. `components[a]` is the same for the connected
    components in these slices, without the smallest ones that together make up a tenth of the area (stray voxels);
    None in fingerprints of earlier versions. `mean` and `std` have one entry per channel, in the file's units.
    """

    volume: float
    centroid: Triple
    extent: Triple
    diameters: Triple
    slices: Shape
    mean: tuple[float, ...]
    std: tuple[float, ...]
    components: Triple | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class CaseMeasurement:
    """One case: shapes in voxels, spacing in mm, (Z, Y, X). `direction` is ITK's (see Geometry).

    `axes` says where the file's voxel axes x, y, z point ("LPS", ...); None if the file does not say. Everything else,
    `classes` included, is measured along the fingerprint's axes.
    """

    identifier: str
    spacing: Triple
    shape: Shape
    shape_after_cropping: Shape
    direction: tuple[float, ...]
    classes: dict[str, ClassMeasurement]
    axes: str | None = None

    def __post_init__(self) -> None:
        check(
            all(1 <= length <= LONGEST for length in (*self.shape, *self.shape_after_cropping)),
            f"case {self.identifier!a}: sides must be from 1 to {LONGEST} voxels, got {self.shape} and "
            f"{self.shape_after_cropping}",
        )

    @property
    def grid(self) -> Geometry:
        """Its grid, at an arbitrary position."""
        return Geometry(shape=self.shape, spacing=self.spacing, direction=self.direction)

    def turned(self, turn: Turn) -> "CaseMeasurement":
        """The measurements as if the arrays had been turned first. `axes` stays the file's."""
        if turn == STAY:
            return self
        grid = self.grid.turned(turn)
        size = tuple(n * spacing for n, spacing in zip(self.shape_after_cropping, self.spacing, strict=True))
        return replace(
            self,
            spacing=grid.spacing,
            shape=grid.shape,
            shape_after_cropping=turn.triple(self.shape_after_cropping),
            direction=grid.direction,
            classes={name: _turned_class(found, turn, size) for name, found in self.classes.items()},
        )


def _turned_class(found: ClassMeasurement, turn: Turn, size: tuple[float, ...]) -> ClassMeasurement:
    """The class after a turn; before it, the cropped image measures `size` mm."""
    z, y, x = (
        size[axis] - found.centroid[axis] if place in turn.reversed_axes else found.centroid[axis]
        for place, axis in enumerate(turn.order)
    )
    return replace(
        found,
        centroid=(z, y, x),
        extent=turn.triple(found.extent),
        diameters=turn.triple(found.diameters),
        slices=turn.triple(found.slices),
        components=None if found.components is None else turn.triple(found.components),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassSummary:
    """One class over the data set.

    `cases` is the number of cases that contain it; the medians are over those. `histograms` has one entry per channel:
    the shares (they sum to 1) of the class's intensities between the fingerprint's `histogram_edges`. Before that, each
    case is scaled to mean 0 and standard deviation 1 over its cropped image.
    """

    cases: int
    median_volume: float
    median_diameters: Triple
    histograms: tuple[tuple[float, ...], ...]
    median_components: Triple | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Fingerprint:
    """All measurements of a data set.

    `is_video`: cases are sequences along axis 0. `dimensions`: 2 for plain pictures, 3 for volumes and videos.
    `histogram_edges`: one row per channel, see ClassSummary. `num_outputs`: channels of the logits (see Labels).
    `axes`: the most frequent axes of the cases (see CaseMeasurement), "unknown" if no file says, None in fingerprints
    of older releases. `slices_along`: the letter of `axes` across the slices of most cases, if the slices are far apart
    or single.
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
    axes: str | None = None
    slices_along: str | None = None

    def __post_init__(self) -> None:
        if not self.cases:
            raise PlanError("fingerprint has no cases")
        bins = [len(edges) - 1 for edges in self.histogram_edges]
        for name, found in self.classes.items():
            if [len(histogram) for histogram in found.histograms] != bins:
                raise PlanError(
                    f"fingerprint: the histograms of class {name!a} do not fit histogram_edges. Extract it again."
                )
        for what, records in (("intensity", self.intensities), ("histogram", self.histogram_edges)):
            if len(records) != len(self.channel_names):
                raise PlanError(
                    f"fingerprint has {len(records)} {what} records for {len(self.channel_names)} channels; "
                    "extract it again"
                )
