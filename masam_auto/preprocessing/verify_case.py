"""Check a raw case: its files can be read, share a grid, and match dataset.json."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from masam_auto.core.dataset import Case, DatasetDescription
from masam_auto.core.errors import ImageError, first_few
from masam_auto.core.geometry import Geometry
from masam_auto.formats.io import SAME_GRID, grid_difference, label_values, read_image, read_labels
from masam_auto.formats.tiff import UNKNOWN_SPACING
from masam_auto.imaging.normalize import not_finite


@dataclass(frozen=True, kw_only=True, slots=True)
class CaseReport:
    """The problems and warnings of one case."""

    problems: tuple[str, ...]
    warnings: tuple[str, ...]


def verify_case(item: tuple[Case, DatasetDescription]) -> CaseReport:
    """Read all files of a case and compare them with each other and with dataset.json."""
    case, description = item
    problems: list[str] = []
    warnings: list[str] = []
    first: Geometry | None = None
    for index, (name, files) in enumerate(zip(case.frames, case.images, strict=True)):
        grid = _check_image(files, name, description, problems, warnings)
        if case.labels is not None:
            _check_labels(case.labels[index], files[0], grid, description, problems, warnings)
        if grid is None:
            continue
        first = first or grid
        if case.is_sequence and (grid.shape != first.shape or grid.shape[0] != 1):
            problems.append(
                f"{files[0]}: frame of shape {grid.shape} (Z, Y, X) in sequence {case.identifier}, whose first frame "
                f"has {first.shape}. All frames of a sequence must be pictures of one size. Resize it, or take it out."
            )
    return CaseReport(problems=tuple(problems), warnings=tuple(warnings))


def _check_image(
    files: tuple[Path, ...], name: str, description: DatasetDescription, problems: list[str], warnings: list[str]
) -> Geometry | None:
    """Check the channels of one image. Returns the grid of the first readable channel, or None."""
    expected = description.num_channels
    grid: tuple[Path, Geometry] | None = None
    found = 0
    readable = True
    for path in files:
        try:
            array, geometry = read_image(path, channels=expected if len(files) == 1 else 1)
        except ImageError as error:
            problems.append(str(error))
            readable = False
            continue
        found += array.shape[0]
        if problem := not_finite(array):
            problems.append(f"{path}: {problem}")
        if grid is None:
            grid = (path, geometry)
        else:
            _compare(path, geometry, *grid, problems, warnings)
    if readable and found != expected:
        problems.append(_channel_problem(files, name, found, description))
    return None if grid is None else grid[1]


def _check_labels(
    path: Path,
    image: Path,
    grid: Geometry | None,
    description: DatasetDescription,
    problems: list[str],
    warnings: list[str],
) -> None:
    try:
        labels, geometry = read_labels(path)
    except ImageError as error:
        problems.append(str(error))
        return
    if grid is not None:
        if path.suffix.lower() in (".tif", ".tiff") and geometry.spacing == UNKNOWN_SPACING:
            geometry = dataclasses.replace(geometry, spacing=grid.spacing)  # most programs save labels without spacing
        _compare(path, geometry, image, grid, problems, warnings)
    allowed = {*description.labels.declared, description.labels.ignore}
    if unknown := [value for value in label_values(labels) if value not in allowed]:
        problems.append(
            f"{path}: has labels {first_few(unknown)}, but "
            f"dataset.json declares {', '.join(str(v) for v in sorted(v for v in allowed if v is not None))}. "
            "Declare them, or change them in the file."
        )


def _compare(
    path: Path, geometry: Geometry, reference: Path, grid: Geometry, problems: list[str], warnings: list[str]
) -> None:
    turned = geometry.turned(geometry.turn_to(grid.axes))
    if turned.axes != geometry.axes and grid.difference(turned) is None:
        warnings.append(
            f"{path}: its axes (x, y, z) point to {geometry.axes}, those of {reference.name} to {grid.axes}. It "
            "is turned to match."
        )
    elif problem := grid_difference(geometry, grid):
        problems.append(f"{path}: does not lie on the grid of {reference.name}: {problem} there. {SAME_GRID}")
    elif shift := geometry.difference(grid):
        warnings.append(
            f"{path}: {shift} in {reference.name}, taken as the same place. Check in a viewer that they overlap."
        )


def _channel_problem(files: tuple[Path, ...], name: str, found: int, description: DatasetDescription) -> str:
    names = ", ".join(description.channel_names)
    expected = f"dataset.json names {description.num_channels} ({names})"
    if found < description.num_channels and "dataset" not in description.raw:
        present = {path.name for path in files}
        wanted = [f"{name}_{number:04d}{description.file_ending}" for number in range(description.num_channels)]
        missing = [file for file in wanted if file not in present]
        return f"{files[0].parent / name}: has {found} channels, but {expected}. Missing: {', '.join(missing)}."
    return (
        f"{files[0]}: {name} has {found} channels in {len(files)} files, but {expected}. A colour picture counts as "
        "three. Correct channel_names, or the files."
    )
