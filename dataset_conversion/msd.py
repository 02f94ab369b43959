"""Medical Segmentation Decathlon: any of its tasks, e.g. Task04_Hippocampus or Task07_Pancreas."""

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from dataset_conversion.conversion import Conversion, SourceCase, SourceImage
from dataset_conversion.download import find_folder
from dataset_conversion.nifti import AS_DOWNLOADED, VolumeOptions, write_volume
from masam_auto.core.dataset import Case
from masam_auto.core.errors import DatasetError, first_few
from masam_auto.core.jsonio import digest, read_plain, to_plain
from masam_auto.core.splits import Split, read_splits

ENDING = ".nii.gz"
PANCREAS_SPLITS = Path(__file__).parent / "splits" / "msd_pancreas.json"
"""The paper's 196 training, 28 validation and 57 test cases. Source: preprocessing/split_pancreas.pkl of the reference
implementation of MA-SAM (originally from 3DSAM-adapter), read without unpickling."""

ABOUT = {
    "licence": "CC BY-SA 4.0",
    "source": "http://medicaldecathlon.com",
    "citation": "Antonelli et al., The Medical Segmentation Decathlon, Nature Communications 13, 4128, 2022",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Labelled:
    image: str


@dataclass(frozen=True, kw_only=True, slots=True)
class _Description:
    """The parts of a task's dataset.json that are used."""

    modality: Annotated[dict[int, str], msgspec.Meta(min_length=1)]
    labels: dict[int, str]
    training: list[_Labelled]
    test: list[str]


def find_msd(
    download: Path,
    *,
    tumor_only: bool = False,
    splits: Path | None = None,
    volumes: VolumeOptions = AS_DOWNLOADED,
) -> tuple[Conversion, ...]:
    """Look through a task: `imagesTr/ID.nii.gz`, `labelsTr/ID.nii.gz`, `imagesTs`, dataset.json.

    Args:
        download: the task's folder, or a folder that contains it.
        tumor_only: make the tumour label 1 and all else background. For the pancreas this is the paper's protocol, and
            the paper's split is used unless `splits` is given.
        splits: folds in nnU-Net's format. Cases in a "test" list (next to "train" and "val") go to imagesTs and
            labelsTs.
        volumes: how volumes are written.

    Raises:
        DatasetError: there is no task, or its dataset.json or the splits are not as expected.
        PlanError: the splits are not in nnU-Net's format, or name unknown cases.
    """
    folder = find_folder(download, _is_task, what="task folder with dataset.json and imagesTr")
    full_name = (folder if folder.name.strip(".") else folder.resolve()).name  # "." and ".." are no names
    task, name = re.fullmatch(r"(?:Task(\d+)_)?(.+)", full_name).groups()  # type: ignore[union-attr]
    description = _read_description(folder / "dataset.json")
    labels, values = _labels(description.labels, folder, tumor_only=tumor_only)
    if splits is None and tumor_only and name == "Pancreas":
        splits = PANCREAS_SPLITS
    listed = {_identifier(entry.image): True for entry in description.training}
    listed |= {_identifier(file): False for file in description.test}
    labelled = [identifier for identifier, training in listed.items() if training]
    folds, held_out = _read_given_splits(splits, labelled) if splits else (None, frozenset())
    cases, missing = _find_cases(folder, listed, held_out)
    there = {case.identifier for case in cases}
    unlabelled = sum(not training for training in listed.values())
    return (
        Conversion(
            number=int(task or 0),
            name=f"{name}Tumour" if tumor_only else name,
            download=download,
            settings={
                "data_set": "msd",
                "tumor_only": tumor_only,
                "splits": None if folds is None else digest([folds, sorted(held_out)]),
                **to_plain(volumes),
            },
            about={"description": f"Medical Segmentation Decathlon, {full_name}"} | ABOUT,
            channel_names=tuple(name for _, name in sorted(description.modality.items())),
            channel_files=len(description.modality),
            labels=labels,
            file_ending=ENDING,
            cases=tuple(cases),
            write=functools.partial(
                write_volume,
                values=values,
                known=frozenset(labels.values()),
                options=volumes,
            ),
            missing=tuple(missing),
            notes=(f"{unlabelled} test images without labels left out: the splits hold out labelled ones",)
            if held_out and unlabelled
            else (),
            splits=None if folds is None else _present(folds, there),
        ),
    )


def _is_task(folder: Path) -> bool:
    return (folder / "dataset.json").is_file() and (folder / "imagesTr").is_dir()


def _read_description(path: Path) -> _Description:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Description)
    except msgspec.DecodeError as error:
        raise DatasetError(
            f"{path}: is not in the Decathlon's format ({error}). Give the download, not a converted data set."
        ) from error


def _labels(names: dict[int, str], folder: Path, *, tumor_only: bool) -> tuple[dict[str, int], dict[int, int]]:
    """Class names with their values in the result, and the new values of the download's labels."""
    if not tumor_only:
        return {"background": 0} | {names[value]: value for value in sorted(names) if value}, {}
    tumours = [value for value, name in names.items() if re.search("cancer|tumou?r", name, flags=re.IGNORECASE)]
    if len(tumours) != 1:
        raise DatasetError(
            f"{folder}: --tumor_only needs one label called tumour or cancer, but the labels are "
            f"{', '.join(names.values())}"
        )
    return {"background": 0, "tumour": 1}, {value: int(value == tumours[0]) for value in names}


def _identifier(file: str) -> str:
    return Path(file).name.removesuffix(ENDING)


def _find_cases(folder: Path, listed: dict[str, bool], held_out: frozenset[str]) -> tuple[list[SourceCase], list[str]]:
    """Cases, and the listed files that are missing."""
    cases, missing = [], []
    for identifier, training in listed.items():
        if held_out and not training:
            continue
        image = folder / ("imagesTr" if training else "imagesTs") / f"{identifier}{ENDING}"
        label = folder / "labelsTr" / f"{identifier}{ENDING}" if training else None
        if lacking := [path for path in (image, label) if path is not None and not path.is_file()]:
            missing += [f"{path}: listed in dataset.json" for path in lacking]
            continue
        source = SourceImage(identifier=identifier, image=image, label=label)
        cases.append(SourceCase(identifier=identifier, images=(source,), test=not training or identifier in held_out))
    return cases, missing


def _read_given_splits(path: Path, labelled: list[str]) -> tuple[tuple[Split, ...], frozenset[str]]:
    """Folds, and the "test" cases that all of them hold out."""
    cases = [Case(identifier=name, frames=(name,), images=()) for name in labelled]
    folds = read_splits(path, cases)
    listed = [fold.get("test", []) for fold in read_plain(path, what="splits file")]
    if not all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in listed):
        raise DatasetError(f'{path}: "test" must be a list of cases, like "train" and "val"')
    tests = [frozenset(names) for names in listed]
    if len(set(tests)) > 1:
        raise DatasetError(f'{path}: its folds have different "test" cases. Give all folds the same.')
    if unknown := sorted(tests[0] - set(labelled)):
        raise DatasetError(f"{path}: unknown cases in test: {first_few(unknown)}. Remove them.")
    if both := sorted(name for fold in folds for name in (*fold.train, *fold.val) if name in tests[0]):
        raise DatasetError(f"{path}: in test and in train or val: {first_few(both)}. A case may be in only one list.")
    return folds, tests[0]


def _present(folds: tuple[Split, ...], there: set[str]) -> tuple[Split, ...] | None:
    """The folds without missing cases; None if a side would be empty."""
    kept = tuple(
        Split(train=tuple(n for n in fold.train if n in there), val=tuple(n for n in fold.val if n in there))
        for fold in folds
    )
    return kept if all(fold.train and fold.val for fold in kept) else None
