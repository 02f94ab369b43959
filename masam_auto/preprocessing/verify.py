"""Is the raw data set whole? All problems are found and reported together, before anything is computed."""

import collections
import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path

from masam_auto.compute.parallel import Workers, map_cases
from masam_auto.core.dataset import Case, Dataset, DatasetDescription, has_ending
from masam_auto.core.errors import CaseErrors, DatasetError, ImageError, PlanError, first_few
from masam_auto.core.file_names import image_endings
from masam_auto.core.geometry import Geometry
from masam_auto.core.labels import as_number
from masam_auto.core.patients import patients_of
from masam_auto.core.splits import read_splits
from masam_auto.formats.io import (
    SAME_GRID,
    grid_difference,
    label_ending,
    label_values,
    read_image,
    read_labels,
)
from masam_auto.formats.reader_names import check_reader
from masam_auto.formats.storage import check_name_length
from masam_auto.formats.tiff import UNKNOWN_SPACING
from masam_auto.imaging.normalize import not_finite
from masam_auto.preprocessing.dataset_files import NNUNET_SPLITS_NAME, SPLITS_NAME

LOGGER = logging.getLogger(__name__)
USUAL_FOLDS = 5
WARNINGS_SHOWN = 10
IN_PROCESS_BYTES = 32e6
"""Files below this size together are read sooner than worker processes start (measured: 2 s for two workers)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CaseReport:
    """What was found in one case."""

    problems: tuple[str, ...]
    warnings: tuple[str, ...]


def verify_dataset(dataset: Dataset, *, workers: Workers) -> None:
    """Check a raw data set: that files belong together, can be read, share a grid and hold what is declared.

    What may be meant (few cases, a shifted origin, a wrong numTraining) is logged as a warning.

    Args:
        dataset: description and cases; each file is read once.
        workers: processes, 0 for this one, or a cluster; a small data set is always read in this one.

    Raises:
        DatasetError: the file ending or reader is unknown.
        CaseErrors: all other problems, each with its file and its remedy.
    """
    description = dataset.description
    check_reader(description)
    if "dataset" not in description.raw and label_ending(description.file_ending) != description.file_ending:
        raise DatasetError(
            f"{dataset.folder}: labels cannot be JPEG, which alters their values. Convert images and labels to .png, or "
            'list the files in a "dataset" entry of dataset.json.'
        )
    problems = [*_folder_problems(dataset), *_identifier_problems(dataset), *_split_problems(dataset)]
    reports = map_cases(
        verify_case,
        [(case, description) for case in dataset.cases],
        names=[case.identifier for case in dataset.cases],
        what=f"verifying {dataset.name}",
        workers=0 if _size(dataset) < IN_PROCESS_BYTES else workers,
        folders=[dataset.folder],
    )
    problems += [problem for report in reports for problem in report.problems]
    _warn([*_dataset_warnings(dataset), *(warning for report in reports for warning in report.warnings)])
    if problems:
        inside = f"{dataset.folder}/"
        raise CaseErrors([text.replace(inside, "") for text in problems], what=f"verifying {dataset.folder}")


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
                f"{files[0]}: frame of shape {grid.shape} (Z, Y, X) in sequence {case.identifier}, whose first frame has "
                f"{first.shape}. All frames of a sequence must be pictures of one size; resize or take it out."
            )
    return CaseReport(problems=tuple(problems), warnings=tuple(warnings))


def _check_image(
    files: tuple[Path, ...], name: str, description: DatasetDescription, problems: list[str], warnings: list[str]
) -> Geometry | None:
    """Check the channels of one image; the grid of the first one that can be read, or None."""
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
            f"{path}: its axes (x, y, z) point to {geometry.axes}, those of {reference.name} to {grid.axes}: it is turned"
        )
    elif problem := grid_difference(geometry, grid):
        problems.append(f"{path}: does not lie on the grid of {reference.name}: {problem} there. {SAME_GRID}")
    elif shift := geometry.difference(grid):
        warnings.append(f"{path}: {shift} in {reference.name}, taken as the same place. Do they overlap in a viewer?")


def _channel_problem(files: tuple[Path, ...], name: str, found: int, description: DatasetDescription) -> str:
    names = ", ".join(description.channel_names)
    expected = f"dataset.json names {description.num_channels} ({names})"
    if found < description.num_channels and "dataset" not in description.raw:
        present = {path.name for path in files}
        wanted = [f"{name}_{number:04d}{description.file_ending}" for number in range(description.num_channels)]
        missing = [file for file in wanted if file not in present]
        return f"{files[0].parent / name}: has {found} of the channels, {expected}. Missing: {', '.join(missing)}."
    return (
        f"{files[0]}: {name} has {found} channels in {len(files)} files, but {expected}. A colour picture counts as three. "
        "Correct channel_names, or the files."
    )


def _folder_problems(dataset: Dataset) -> list[str]:
    """Files of imagesTr and labelsTr that have no counterpart or no proper name."""
    if "dataset" in dataset.description.raw:
        return []
    ending = dataset.description.file_ending
    identifiers = {frame for case in dataset.cases for frame in case.frames}
    problems = []
    for path in _files(dataset.folder / "imagesTr", ending):
        identifier, _, channel = path.name[: -len(ending)].rpartition("_")
        if identifier not in identifiers or not (len(channel) == 4 and channel.isdecimal()):
            problems.append(f"{path}: is not called ID_0000{ending} (ID_0001{ending}, ...). Rename it or take it out.")
    labelled = {path.name[: -len(ending)] for path in _files(dataset.folder / "labelsTr", ending)}
    for identifier in sorted(identifiers - labelled):
        problems.append(
            f"{dataset.folder / 'imagesTr' / identifier}_0000{ending}: has no labelsTr/{identifier}{ending}. Add the label "
            "file, or move the image to imagesTs."
        )
    for identifier in sorted(labelled - identifiers):
        problems.append(
            f"{dataset.folder / 'labelsTr' / identifier}{ending}: has no imagesTr/{identifier}_0000{ending}. Add the image, "
            "or take the label file out."
        )
    for case in dataset.cases:
        for name, files in zip(case.frames, case.images, strict=True):
            numbers = [int(path.name[: -len(ending)][-4:]) for path in files]
            if numbers[-1] >= len(numbers) and numbers[-1] < dataset.description.num_channels:
                continue  # a gap, which is reported with the names of the missing channels when the case is read
            if numbers != list(range(len(numbers))):
                problems.append(
                    f"{files[0].parent / name}: its channel files are numbered {', '.join(f'{n:04d}' for n in numbers)}. "
                    "Number them from 0000 without gaps."
                )
    return problems


def _identifier_problems(dataset: Dataset) -> list[str]:
    """Identifiers that differ only by upper and lower case or are too long, and files that belong to two cases."""
    owners: dict[Path, list[str]] = collections.defaultdict(list)
    for case in dataset.cases:
        for name, files in zip(case.frames, case.images, strict=True):
            for path in files:
                owners[path].append(name)
        for name, path in zip(case.frames, case.labels or (), strict=False):
            owners[path].append(name)
    alike = {
        *_alike([case.identifier for case in dataset.cases]),
        *_alike([name for case in dataset.cases for name in case.frames]),
    }
    problems = [
        f"{' and '.join(names)}: duplicate identifiers, which would overwrite each other (upper and lower case are the "
        "same on many systems). Rename one, or take it out."
        for names in sorted(alike)
    ]
    for path, names in owners.items():
        if len(names) > 1:
            problems.append(
                f"{path}: belongs to {' and '.join(names)}. Every file may be used once; correct dataset.json."
            )
    for case in dataset.cases:
        try:
            check_name_length(case.identifier)
        except DatasetError as error:
            problems.append(str(error))
    return problems


def _split_problems(dataset: Dataset) -> list[str]:
    """What is wrong with folds and patients that the raw folder brings along."""
    problems = []
    for name in (SPLITS_NAME, NNUNET_SPLITS_NAME):
        if (path := dataset.folder / name).is_file():
            try:
                read_splits(path, dataset.cases)
            except PlanError as error:
                problems.append(str(error))
    try:
        patients_of([case.identifier for case in dataset.cases], dataset.folder)
    except (DatasetError, PlanError) as error:
        problems.append(str(error))
    return problems


def _alike(names: list[str]) -> list[tuple[str, ...]]:
    """Groups of names that are equal but for upper and lower case."""
    spellings: dict[str, list[str]] = collections.defaultdict(list)
    for name in names:
        spellings[name.casefold()].append(name)
    return [tuple(group) for group in spellings.values() if len(group) > 1]


def _dataset_warnings(dataset: Dataset) -> list[str]:
    warnings = []
    count = len(dataset.cases)
    noun = "videos and single pictures" if dataset.description.is_video else "cases"
    if count == 1:
        warnings.append(f"{dataset.name} has a single case: it will be validated on itself, which says little")
    elif count < USUAL_FOLDS:
        warnings.append(f"{dataset.name} has only {count} {noun}: there will be {count} folds instead of {USUAL_FOLDS}")
    present = sum(len(case.frames) for case in dataset.cases)
    announced = dataset.description.raw.get("numTraining")
    if announced is not None and as_number(announced) != present:
        warnings.append(f"dataset.json says numTraining {announced}, but there are {present}; nnU-Net would refuse it")
    labels = dataset.description.labels
    for value in labels.declared if labels.has_regions else ():
        if (written := labels.written(value)) != value:
            warnings.append(
                f"label {value} belongs to the same regions as label {written} and will be written as {written} in predictions"
            )
    if dataset.description.reader == "NibabelIOWithReorient":
        warnings.append(
            "NibabelIOWithReorient: volumes are not turned to RAS here, but to the axes that most of them have"
        )
    warnings += _other_endings(dataset)
    return warnings


def _other_endings(dataset: Dataset) -> list[str]:
    """Images and labels that are not used, because their ending is not the data set's."""
    if "dataset" in dataset.description.raw:
        return []
    known = {f"{frame}_0000" for case in dataset.cases for frame in case.frames}
    ending = dataset.description.file_ending
    unused = []
    for folder in ("imagesTr", "labelsTr"):
        for path in sorted((dataset.folder / folder).iterdir()) if (dataset.folder / folder).is_dir() else ():
            other = next((e for e in image_endings() if has_ending(path, e)), None)
            if other is None or has_ending(path, ending) or path.name.startswith("."):
                continue
            if path.name[: -len(other)] in known:
                unused.append(f"{path}: the same image exists as {ending}, which is the one that is used")
            else:
                unused.append(f"{path}: is not used, because file_ending in dataset.json is {ending}. Convert it.")
    return unused


def _size(dataset: Dataset) -> int:
    """Bytes of all files of a data set; missing ones count nothing."""
    paths = [path for case in dataset.cases for files in (*case.images, case.labels or ()) for path in files]
    return sum(path.stat().st_size for path in paths if path.is_file())


def _files(folder: Path, ending: str) -> list[Path]:
    if not folder.is_dir():
        return []
    return [path for path in sorted(folder.iterdir()) if has_ending(path, ending) and not path.name.startswith(".")]


def _warn(warnings: list[str]) -> None:
    for warning in warnings[:WARNINGS_SHOWN]:
        LOGGER.warning("warning: %s", warning)
    if len(warnings) > WARNINGS_SHOWN:
        LOGGER.warning("warning: and %d more like these", len(warnings) - WARNINGS_SHOWN)
