"""Check a raw data set. All problems are reported together, before anything is computed."""

import collections
import logging
from pathlib import Path

from masam_auto.compute.parallel import Workers, map_cases
from masam_auto.core.dataset import Dataset, DatasetDescription, has_ending
from masam_auto.core.errors import CaseErrors, DatasetError, PlanError
from masam_auto.core.file_names import image_endings
from masam_auto.core.labels import as_number
from masam_auto.core.patients import patients_of
from masam_auto.core.splits import read_splits
from masam_auto.formats.io import (
    label_ending,
)
from masam_auto.formats.storage import check_name_length
from masam_auto.preprocessing.dataset_files import NNUNET_SPLITS_NAME, SPLITS_NAME
from masam_auto.preprocessing.verify_case import verify_case

LOGGER = logging.getLogger(__name__)
USUAL_FOLDS = 5
WARNINGS_SHOWN = 10
IN_PROCESS_BYTES = 32e6
"""Files smaller than this in total are read before worker processes would have started (2 s for two, measured)."""

READER_NAMES: dict[str, tuple[str, ...]] = {
    "SimpleITKIO": (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".gipl"),
    "NibabelIO": (".nii.gz", ".nii", ".mgz", ".mgh"),
    "NibabelIOWithReorient": (".nii.gz", ".nii", ".mgz", ".mgh"),
    "NaturalImage2DIO": (".png", ".bmp", ".jpg", ".jpeg", ".tif", ".tiff"),
    "Tiff3DIO": (".tif", ".tiff"),
}
"""nnU-Net's names for "overwrite_image_reader_writer", each with the file endings that our reader reads the same."""


def verify_dataset(dataset: Dataset, *, workers: Workers) -> None:
    """Check that the files of a raw data set belong together, can be read, share a grid and match dataset.json.

    What may be intended (few cases, a shifted origin, a wrong numTraining) is only logged as a warning.

    Args:
        dataset: description and cases; each file is read once.
        workers: processes, 0 for this one, or a cluster; a small data set is always read in this process.

    Raises:
        DatasetError: the file ending or reader is unknown.
        CaseErrors: all other problems, each with its file and what to do.

    Example:
        >>> from masam_auto.preprocessing.verify import verify_dataset
        >>> verify_dataset(dataset, workers=0)  # raises an error if something is wrong
    """
    description = dataset.description
    check_reader(description)
    if "dataset" not in description.raw and label_ending(description.file_ending) != description.file_ending:
        raise DatasetError(
            f"{dataset.folder}: labels cannot be JPEG, which alters their values. Convert images and labels to .png, "
            "or "
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


def check_reader(description: DatasetDescription) -> None:
    """Check that a data set's reader is known.

    All readers of nnU-Net give the same voxels as ours, except that NibabelIOWithReorient turns volumes first. Here,
    volumes and results keep the axes of the files.

    Raises:
        DatasetError: unknown reader, or a reader that does not read this ending.
    """
    ending, name = description.file_ending, description.reader
    if name is None or name == "None":
        return
    if name not in READER_NAMES:
        raise DatasetError(
            f'{description.name}: dataset.json has "overwrite_image_reader_writer" {name!r}; known readers: '
            f"{', '.join(READER_NAMES)}. Choose one of them, or remove the entry; then the file ending decides."
        )
    if ending.lower() not in READER_NAMES[name]:
        raise DatasetError(
            f"{description.name}: {name} reads {', '.join(READER_NAMES[name])}, not {ending}. Take "
            '"overwrite_image_reader_writer" out of dataset.json; then the file ending decides.'
        )


def _folder_problems(dataset: Dataset) -> list[str]:
    """Files in imagesTr and labelsTr that lack a counterpart or are not named as expected."""
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
            f"{dataset.folder / 'imagesTr' / identifier}_0000{ending}: has no labelsTr/{identifier}{ending}. Add the "
            "label file, or move the image to imagesTs."
        )
    for identifier in sorted(labelled - identifiers):
        problems.append(
            f"{dataset.folder / 'labelsTr' / identifier}{ending}: has no imagesTr/{identifier}_0000{ending}. Add the "
            "image, or take the label file out."
        )
    for case in dataset.cases:
        for name, files in zip(case.frames, case.images, strict=True):
            numbers = [int(path.name[: -len(ending)][-4:]) for path in files]
            if numbers[-1] >= len(numbers) and numbers[-1] < dataset.description.num_channels:
                continue  # a gap; reading the case reports it with the names of the missing channels
            if numbers != list(range(len(numbers))):
                problems.append(
                    f"{files[0].parent / name}: its channel files are numbered "
                    f"{', '.join(f'{n:04d}' for n in numbers)}. Number them from 0000 without gaps."
                )
    return problems


def _identifier_problems(dataset: Dataset) -> list[str]:
    """Identifiers that are too long or differ only in upper and lower case, and files that belong to two cases."""
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
                f"{path}: belongs to {' and '.join(names)}. A file may be used only once; correct dataset.json."
            )
    for case in dataset.cases:
        try:
            check_name_length(case.identifier)
        except DatasetError as error:
            problems.append(str(error))
    return problems


def _split_problems(dataset: Dataset) -> list[str]:
    """Problems with the files of folds and patients in the raw folder."""
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
    """Groups of names that differ only in upper and lower case."""
    spellings: dict[str, list[str]] = collections.defaultdict(list)
    for name in names:
        spellings[name.casefold()].append(name)
    return [tuple(group) for group in spellings.values() if len(group) > 1]


def _dataset_warnings(dataset: Dataset) -> list[str]:
    warnings = []
    count = len(dataset.cases)
    noun = "videos and single pictures" if dataset.description.is_video else "cases"
    if count == 1:
        warnings.append(
            f"{dataset.name} has a single case: it will be trained and validated on the same case, which says little"
        )
    elif count < USUAL_FOLDS:
        warnings.append(f"{dataset.name} has only {count} {noun}: there will be {count} folds instead of {USUAL_FOLDS}")
    present = sum(len(case.frames) for case in dataset.cases)
    announced = dataset.description.raw.get("numTraining")
    if announced is not None and as_number(announced) != present:
        warnings.append(
            f"dataset.json says numTraining {announced}, but there are {present}; nnU-Net would reject this"
        )
    labels = dataset.description.labels
    for value in labels.declared if labels.has_regions else ():
        if (written := labels.written(value)) != value:
            warnings.append(
                f"label {value} belongs to the same regions as label {written} and will be written as {written} in "
                "predictions"
            )
    if dataset.description.reader == "NibabelIOWithReorient":
        warnings.append(
            "NibabelIOWithReorient: here, volumes are not turned to RAS but to the axes that most of them have"
        )
    warnings += _other_endings(dataset)
    return warnings


def _other_endings(dataset: Dataset) -> list[str]:
    """Images and labels that are not used because of their file ending."""
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
                unused.append(f"{path}: is not used, because the same image exists as {ending}")
            else:
                unused.append(f"{path}: is not used, because file_ending in dataset.json is {ending}. Convert it.")
    return unused


def _size(dataset: Dataset) -> int:
    """Bytes of all files of a data set; missing files count as 0."""
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
