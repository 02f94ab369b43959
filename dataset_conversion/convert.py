"""Write the raw data set of a conversion: check it first, convert cases in parallel, and write a report.

Each finished case is recorded, so an interrupted conversion can continue. The download is never changed.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from dataset_conversion.conversion import Conversion, SourceCase, SourceImage, Target
from dataset_conversion.download import archives_hint
from masam_auto import __version__
from masam_auto.compute.parallel import choose_workers, map_cases
from masam_auto.core.atomic import write_bytes
from masam_auto.core.dataset import find_training_cases, parse_description
from masam_auto.core.errors import DatasetError, OutputError, first_few
from masam_auto.core.jsonio import digest, read_plain, write_json
from masam_auto.core.paths import DATASET_NAME
from masam_auto.core.patients import FILE_NAME as PATIENTS_NAME
from masam_auto.core.splits import make_splits, write_splits

RECORD_NAME = "conversion.json"
REPORT_NAME = "conversion.txt"
UNFINISHED = ".conversion"
"""Folder of the records of single cases during a conversion."""

CASE_BYTES = 2e9
"""Memory for one large CT: its voxels as stored and as float32, and its labels."""

IN_PROCESS_BYTES = 32e6
"""Smaller downloads are converted faster than worker processes start."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CaseRecord:
    """A written case: its files (path inside the data set -> size in bytes) and notes.

    `sources` is a digest of the names, sizes and times of its source files.
    """

    test: bool
    files: dict[str, int]
    sources: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class ConversionRecord:
    """conversion.json: the sources, the settings, the cases, and the decisions made."""

    version: int = 1
    masam_auto: str
    finished: bool
    download: str
    settings: dict[str, Any]
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    cases: dict[str, CaseRecord] = field(default_factory=dict)

    @property
    def case_notes(self) -> list[str]:
        """The notes of all cases, each with the case's name."""
        return [f"{name}: {note}" for name, case in self.cases.items() for note in case.notes]


@dataclass(frozen=True, kw_only=True, slots=True)
class _CaseToWrite:
    case: SourceCase
    folder: Path
    file_ending: str
    channel_files: int
    write: Callable[[SourceImage, Target], tuple[str, ...]]


def convert(
    conversions: Sequence[Conversion], raw_folder: Path, *, workers: int | None = None, allow_missing: bool = False
) -> dict[Path, ConversionRecord]:
    """Write raw data sets. Before anything is written, all downloads must be complete and all output folders free.

    With `allow_missing`, data sets without training cases are left out.

    Args:
        conversions: the data sets to make.
        raw_folder: the root of raw data sets.
        workers: processes; 0 works in this one. By default as many as cores and free memory allow.
        allow_missing: convert even if the download lacks cases.

    Returns:
        The data sets' folders, each with its record, which is also in its conversion.json.

    Raises:
        DatasetError: the download is incomplete, or there are no training cases.
        CaseErrors: cases cannot be converted; lists all of them.
        OutputError: the folder holds something else, the number is taken, or it cannot be written.
    """
    for conversion in conversions:
        _check_room(conversion, raw_folder)
    missing = [text for conversion in conversions for text in conversion.missing]
    if missing and not allow_missing:
        listed = "".join(f"\n  - {text}" for text in missing).replace(f"{conversions[0].download}/", "")
        raise DatasetError(
            f"{conversions[0].download} is not complete:{listed}\nNothing was written. Complete the download, or give "
            f"--allow_missing to convert the rest.{archives_hint(conversions[0].download)}"
        )
    some = [conversion for conversion in conversions if not all(case.test for case in conversion.cases)]
    if not some:
        raise DatasetError(f"{conversions[0].download}: holds no training cases of {conversions[0].name}")
    return {raw_folder / c.folder_name: _convert_one(c, raw_folder / c.folder_name, workers) for c in some}


def _convert_one(conversion: Conversion, folder: Path, workers: int | None) -> ConversionRecord:
    begun = ConversionRecord(
        masam_auto=__version__,
        finished=False,
        download=str(conversion.download.absolute()),
        settings=conversion.settings,
        missing=conversion.missing,
        notes=conversion.notes,
    )
    known = _known_cases(folder)
    tasks = [
        _CaseToWrite(
            case=case,
            folder=folder,
            file_ending=conversion.file_ending,
            channel_files=conversion.channel_files,
            write=conversion.write,
        )
        for case in conversion.cases
    ]
    pending = [task for task in tasks if not _is_whole(task, known.get(task.case.identifier))]
    if pending:
        (folder / "dataset.json").unlink(missing_ok=True)  # no data set while new and old files are mixed
        _remove_outdated(pending, known)
        write_json(folder / RECORD_NAME, _with_cases(begun, known))
        if workers is None:
            size = sum(p.stat().st_size for task in pending for image in task.case.images for p in image.sources)
            workers = choose_workers(len(pending), bytes_each=CASE_BYTES, quick=size < IN_PROCESS_BYTES)
        names = [task.case.identifier for task in pending]
        what = f"converting {len(pending)} of {len(tasks)} cases of {conversion.name}"
        known |= dict(
            zip(names, map_cases(_convert_case, pending, names=names, what=what, workers=workers), strict=True)
        )
    record = _with_cases(begun, {task.case.identifier: known[task.case.identifier] for task in tasks}, finished=True)
    _write_description(conversion, folder)
    write_bytes(folder / REPORT_NAME, report_text(conversion, record).encode())
    write_json(folder / RECORD_NAME, record)
    _remove_unfinished(folder)
    return record


def report_text(conversion: Conversion, record: ConversionRecord) -> str:
    """The short report: counts, missing files, notes and decisions."""
    training = sum(not case.test for case in record.cases.values())
    settings = ", ".join(f"{key} {value}" for key, value in record.settings.items())
    lines = [
        f"{conversion.folder_name}, from {record.download} ({settings})",
        f"{training} training cases, {len(record.cases) - training} test cases",
    ]
    for heading, texts in (
        ("missing in the download", record.missing),
        ("notes", record.notes),
        ("decided case by case", record.case_notes),
    ):
        if texts:
            lines += ["", f"{heading}:", *(f"  - {text}" for text in texts)]
    return "\n".join(lines) + "\n"


def _check_room(conversion: Conversion, raw_folder: Path) -> None:
    """Raises OutputError if the output would touch the download, another data set, or files of other settings."""
    folder = raw_folder / conversion.folder_name
    if folder.resolve().is_relative_to(conversion.download.resolve()):
        raise OutputError(f"{folder} is inside the download, which is never changed. Choose another folder with -o.")
    for other in sorted(raw_folder.glob(f"Dataset{conversion.number:03d}_*")):
        if other.name != folder.name and DATASET_NAME.fullmatch(other.name):
            raise OutputError(f"number {conversion.number} is taken by {other}. Choose another with -d.")
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / RECORD_NAME).is_file():
        raise OutputError(
            f"{folder} holds files that were not converted by this command. Choose another number with -d."
        )
    found = _read_record(folder / RECORD_NAME, ConversionRecord).settings
    if changed := [key for key in found | conversion.settings if found.get(key) != conversion.settings.get(key)]:
        listed = ", ".join(f"{key} {found.get(key)}, now {conversion.settings.get(key)}" for key in changed)
        raise OutputError(
            f"{folder} was converted with other settings ({listed}). Remove it, or choose another number with -d."
        )
    if gone := sorted(_known_cases(folder).keys() - {case.identifier for case in conversion.cases}):
        raise OutputError(
            f"{folder} holds cases that the download no longer has: {first_few(gone)}. Complete the download, remove "
            "the folder, or choose another number with -d."
        )


def _known_cases(folder: Path) -> dict[str, CaseRecord]:
    """Cases that earlier runs wrote."""
    known: dict[str, CaseRecord] = {}
    if (folder / RECORD_NAME).is_file():
        known |= _read_record(folder / RECORD_NAME, ConversionRecord).cases
    for path in sorted((folder / UNFINISHED).glob("[!.]*.json")):
        known[path.name.removesuffix(".json")] = _read_record(path, CaseRecord)
    return known


def _read_record(path: Path, kind: type[Any]) -> Any:
    try:
        return msgspec.convert(read_plain(path, what="conversion record"), kind)
    except msgspec.ValidationError as error:
        raise OutputError(
            f"{path}: is not a record of a conversion ({error}). Remove its folder and start over."
        ) from error


def _with_cases(record: ConversionRecord, cases: dict[str, CaseRecord], *, finished: bool = False) -> ConversionRecord:
    return dataclasses.replace(record, cases=cases, finished=finished)


def _targets(task: _CaseToWrite) -> list[Target]:
    split, ending = ("Ts" if task.case.test else "Tr"), task.file_ending
    return [
        Target(
            images=tuple(
                task.folder / f"images{split}" / f"{image.identifier}_{channel:04d}{ending}"
                for channel in range(task.channel_files)
            ),
            label=task.folder / f"labels{split}" / f"{image.identifier}{ending}",
        )
        for image in task.case.images
    ]


def _files(task: _CaseToWrite) -> list[Path]:
    """All files of a finished case."""
    files = []
    for image, target in zip(task.case.images, _targets(task), strict=True):
        files += [*target.images, *([] if image.label is None else [target.label])]
    return files


def _is_whole(task: _CaseToWrite, record: CaseRecord | None) -> bool:
    """Whether all files of a case exist with their recorded sizes, made from the current files of the download."""
    if record is None:
        return False
    try:
        return _sizes(task) == record.files and _sources(task.case) == record.sources
    except FileNotFoundError:
        return False


def _sizes(task: _CaseToWrite) -> dict[str, int]:
    return {path.relative_to(task.folder).as_posix(): path.stat().st_size for path in _files(task)}


def _sources(case: SourceCase) -> str:
    """Digest of a case's source files. Times alone are not enough, because archives restore old times."""
    return digest(
        [
            [image.label_member, [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in image.sources]]
            for image in case.images
        ]
    )


def _remove_outdated(tasks: Sequence[_CaseToWrite], known: dict[str, CaseRecord]) -> None:
    """Remove files that a case no longer has, e.g. of lost frames, or after it became a test case."""
    for task in tasks:
        if record := known.get(task.case.identifier):
            wanted = {path.relative_to(task.folder).as_posix() for path in _files(task)}
            for name in record.files.keys() - wanted:
                (task.folder / name).unlink(missing_ok=True)


def _convert_case(task: _CaseToWrite) -> CaseRecord:
    """Write all files of a case, then its record."""
    notes: list[str] = []
    sources = _sources(task.case)  # before reading, so that files changed meanwhile are converted again
    for image, target in zip(task.case.images, _targets(task), strict=True):
        notes += task.write(image, target)
    record = CaseRecord(
        test=task.case.test,
        files=_sizes(task),
        sources=sources,
        notes=tuple(notes),
    )
    write_json(task.folder / UNFINISHED / f"{task.case.identifier}.json", record)
    return record


def _write_description(conversion: Conversion, folder: Path) -> None:
    """Write patients.json (if a patient has several cases), splits.json and, last, dataset.json.

    Without dataset.json the folder does not count as a data set.
    """
    training = [case for case in conversion.cases if not case.test]
    raw: dict[str, Any] = {
        "name": conversion.name,
        **conversion.about,
        "channel_names": {str(number): name for number, name in enumerate(conversion.channel_names)},
        "labels": conversion.labels,
        "numTraining": sum(len(case.images) for case in training),
        "file_ending": conversion.file_ending,
    }
    if videos := [case for case in conversion.cases if case.is_sequence]:
        raw["sequences"] = {case.identifier: [image.identifier for image in case.images] for case in videos}
    if groups := sorted({case.group for case in conversion.cases} - {""}):
        raw["groups"] = {
            group: [case.identifier for case in conversion.cases if case.group == group] for group in groups
        }
    cases = find_training_cases(folder, parse_description(raw, name=folder.name))
    splits = conversion.splits or make_splits([case.identifier for case in cases], patients=conversion.patients)
    if conversion.patients:
        write_json(folder / PATIENTS_NAME, conversion.patients)
    test = [image.identifier for case in conversion.cases if case.test for image in case.images]
    write_splits(folder / "splits.json", splits, cases, test=test)
    write_json(folder / "dataset.json", raw)


def _remove_unfinished(folder: Path) -> None:
    """Remove the records of single cases and the leftovers of killed runs."""
    for path in (*(folder / UNFINISHED).glob("*.json"), *folder.glob("*sT[rs]/.partial-*"), *folder.glob(".partial-*")):
        path.unlink()
    if (folder / UNFINISHED).is_dir():
        (folder / UNFINISHED).rmdir()
