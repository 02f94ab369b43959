"""dataset.json and the raw folder: the cases of a data set and the files of each."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from masam_auto.core.errors import DatasetError, first_few
from masam_auto.core.file_names import check_file_name, image_endings, visible
from masam_auto.core.jsonio import parse_json, read_bounded
from masam_auto.core.labels import DIGITS, Labels, as_number, parse_labels
from masam_auto.core.paths import DATASET_NAME, Paths, find_dataset_name

CHANNEL_LIMIT = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetDescription:
    """dataset.json, validated.

    `channel_names` are in channel order. Two keys are ours: `sequences` orders 2D cases into videos, and `groups` lists
    the cases of each site or modality, for evaluation. `reader` is nnU-Net's "overwrite_image_reader_writer", or None.
    `raw` is the full JSON, kept for copying.
    """

    name: str
    channel_names: tuple[str, ...]
    labels: Labels
    file_ending: str
    reader: str | None = None
    sequences: dict[str, tuple[str, ...]] = field(default_factory=dict)
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)
    raw: dict[str, Any] = field(default_factory=dict)

    @property
    def num_channels(self) -> int:
        """Input channels a case has after reading (RGB pictures count as three)."""
        return len(self.channel_names)

    @property
    def is_video(self) -> bool:
        """Whether cases are sequences of frames."""
        return bool(self.sequences)


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One image with its label file, or one video of several frames.

    Files are `images[frame][channel file]` and `labels[frame]`; ordinary cases have one frame. `frames` are the raw
    identifiers of the frames (for an ordinary case, its own identifier). For DICOM series, `series` has the files of
    all slices per channel, and `images` only the first file.
    """

    identifier: str
    frames: tuple[str, ...]
    images: tuple[tuple[Path, ...], ...]
    labels: tuple[Path, ...] | None = None
    series: tuple[tuple[Path, ...], ...] = ()

    def __post_init__(self) -> None:
        for name in (self.identifier, *self.frames):
            check_file_name(name, what="dataset.json:")

    @property
    def is_sequence(self) -> bool:
        """Whether the case is a video."""
        return self.frames != (self.identifier,)


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """A raw data set: description and training cases in sorted order."""

    description: DatasetDescription
    folder: Path
    cases: tuple[Case, ...]

    @property
    def name(self) -> str:
        """Folder name, DatasetXXX_Name."""
        return self.description.name


def open_dataset(paths: Paths, identifier: str) -> Dataset:
    """Open a raw data set by number, name or path.

    Raises:
        DatasetError: not found, or dataset.json or the folder is not in the raw format. Problems in single cases
            are found later, by `preprocessing.verify`, which reports them together.

    Example:
        >>> from masam_auto import open_dataset
        >>> dataset = open_dataset(paths, "1")
        >>> dataset.name, [case.identifier for case in dataset.cases]
        ('Dataset001_Toy', ['case_000', 'case_001', 'case_002'])
        >>> dataset.description.channel_names, list(dataset.description.labels.foreground)
        (('CT',), ['organ1', 'organ2'])
    """
    folder = find_raw_folder(paths, identifier)
    description = read_description(folder / "dataset.json", name=folder.name)
    with _naming_file(folder / "dataset.json"):
        cases = find_training_cases(folder, description)
    return Dataset(description=description, folder=folder, cases=cases)


def find_raw_folder(paths: Paths, identifier: str) -> Path:
    """Folder of a raw data set by number, name or path. Raises DatasetError."""
    path = Path(identifier).expanduser()
    named = len(path.parts) == 1
    if named and (paths.raw / identifier).is_dir():
        return paths.raw / identifier
    # Look up a bare name below the raw root first: preprocessed data sets have a dataset.json as well.
    if not named or ((path / "dataset.json").is_file() and (path / "imagesTr").is_dir()):
        if not path.is_dir():
            raise DatasetError(f"data set folder not found: {path}")
        folder = path.absolute()
        if not DATASET_NAME.fullmatch(folder.name):
            raise DatasetError(f"{folder}: data set folders must be called DatasetXXX_Name (three digits). Rename it.")
        return folder
    return paths.raw / find_dataset_name(identifier, [paths.raw])


def read_description(path: Path, *, name: str) -> DatasetDescription:
    """Read and validate dataset.json.

    Args:
        path: the file.
        name: name of the data set (its folder).

    Raises:
        DatasetError: the file is missing or not JSON, or an entry does not follow nnU-Net's raw format.
    """
    try:
        raw = parse_json(read_bounded(path), pairs=_without_repeats)
    except FileNotFoundError as error:
        raise DatasetError(f"{path} is missing. Every raw data set needs a dataset.json.") from error
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}") from error
    except DatasetError as error:
        raise DatasetError(str(error).replace("dataset.json", str(path), 1)) from error
    except ValueError as error:
        raise DatasetError(f"{path} is not valid JSON: {error}") from error
    with _naming_file(path):
        return parse_description(raw, name=name)


@contextlib.contextmanager
def _naming_file(path: Path) -> Iterator[None]:
    """Replace "dataset.json" in messages by the path of the file."""
    try:
        yield
    except DatasetError as error:
        raise DatasetError(str(error).replace("dataset.json", str(path), 1)) from error


def parse_description(raw: Any, *, name: str) -> DatasetDescription:
    """Validate the content of dataset.json. Raises DatasetError naming the entry."""
    if not isinstance(raw, dict):
        raise DatasetError("dataset.json: must be a JSON object")
    missing = [key for key in ("labels", "file_ending") if key not in raw]
    if missing or ("channel_names" not in raw and "modality" not in raw):
        missing += [] if "channel_names" in raw or "modality" in raw else ["channel_names"]
        raise DatasetError(f"dataset.json: missing {', '.join(missing)}")
    ending = raw["file_ending"]
    if not isinstance(ending, str) or ending.lower() not in image_endings():
        raise DatasetError(
            f'dataset.json: "file_ending" must be one of {", ".join(image_endings())}, got {ending!a}. Correct it, '
            "convert the files to one of these, or use a plug-in that reads them (documentation/extending.md)."
        )
    reader = raw.get("overwrite_image_reader_writer")
    if reader is not None and not isinstance(reader, str):
        raise DatasetError(f'dataset.json: "overwrite_image_reader_writer" must be a name, got {reader!r}')
    order = raw.get("regions_class_order")
    order = [as_number(value) for value in order] if isinstance(order, list) else order
    if order is not None and not (isinstance(order, list) and all(isinstance(v, int) for v in order)):
        raise DatasetError(f'dataset.json: "regions_class_order" must be a list of label values, got {order!r}')
    return DatasetDescription(
        name=name,
        channel_names=_parse_channels(raw.get("channel_names", raw.get("modality"))),
        labels=parse_labels(raw["labels"], order),
        file_ending=ending,
        reader=reader,
        sequences=parse_sequences(raw.get("sequences", {})),
        groups=_parse_groups(raw.get("groups", {})),
        raw=raw,
    )


def find_training_cases(folder: Path, description: DatasetDescription) -> tuple[Case, ...]:
    """Training cases from dataset.json's "dataset" mapping, else from imagesTr and labelsTr.

    Raises:
        DatasetError: no training images at all, or a malformed mapping.
    """
    singles = _mapped_cases(folder, description) if "dataset" in description.raw else _listed_cases(folder, description)
    if not singles:
        there = sorted(path.name for path in folder.glob("imagesTr/*") if not path.name.startswith("."))
        raise DatasetError(
            f"{folder / 'imagesTr'}: no training images like ID_0000{description.file_ending} (there: "
            f"{first_few(there) or 'nothing'}). Put them there, or correct their names, or file_ending in dataset.json."
        )
    return group_sequences(singles, description)


def find_images(folder: Path, file_ending: str) -> dict[str, tuple[Path, ...]]:
    """Images in a folder by case identifier: `ID_0000.ext`, `ID_0001.ext`, ... in channel order.

    Raises:
        DatasetError: the folder is missing, or two file names differ only in upper and lower case.
    """
    if not folder.is_dir():
        raise DatasetError(f"folder not found: {folder}")
    found: dict[str, dict[int, Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not has_ending(path, file_ending):
            continue
        stem = path.name[: -len(file_ending)]
        identifier, _, channel = stem.rpartition("_")
        if identifier and len(channel) == 4 and channel.isdecimal():
            channels = found.setdefault(identifier, {})
            if int(channel) in channels:
                raise DatasetError(
                    f"{path} and {channels[int(channel)].name} differ only in upper and lower case. Keep one of them."
                )
            channels[int(channel)] = path
    return {identifier: tuple(files[i] for i in sorted(files)) for identifier, files in sorted(found.items())}


def has_ending(path: Path, ending: str) -> bool:
    """Whether a file has an ending, in upper or lower case: some cameras and old servers write .PNG or .NII.GZ."""
    return path.name.lower().endswith(ending.lower())


def files_by_name(folder: Path, ending: str) -> dict[str, Path]:
    """Files with an ending, by their names without it, sorted. Hidden files are left out.

    Raises:
        DatasetError: the endings of two files differ only in upper and lower case.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not has_ending(path, ending) or not path.is_file():
            continue
        name = path.name[: -len(ending)]
        if name in found:
            raise DatasetError(f"{path} and {found[name].name} differ only in upper and lower case. Keep one of them.")
        found[name] = path
    return found


def group_sequences(singles: dict[str, Case], description: DatasetDescription) -> tuple[Case, ...]:
    """Join 2D cases into videos by `description.sequences`. Cases in no sequence stay single.

    Raises:
        DatasetError: a sequence names a frame that has no image.
    """
    if not description.sequences:
        return tuple(singles[key] for key in sorted(singles))
    grouped = {frame for frames in description.sequences.values() for frame in frames}
    cases = [case for key, case in singles.items() if key not in grouped]
    for identifier, frames in description.sequences.items():
        present = [singles[frame] for frame in frames if frame in singles]
        if not present:
            continue  # a sequence of another split (its frames are in imagesTs)
        if len(present) != len(frames):
            missing = [frame for frame in frames if frame not in singles]
            raise DatasetError(
                f'dataset.json: sequence "{identifier}" names frames without an image: {first_few(missing)}. '
                "Add the images, or remove the frames from the sequence."
            )
        labels = tuple(case.labels[0] for case in present if case.labels)
        cases.append(
            Case(
                identifier=identifier,
                frames=frames,
                images=tuple(case.images[0] for case in present),
                labels=labels if len(labels) == len(frames) else None,
            )
        )
    return tuple(sorted(cases, key=lambda case: case.identifier))


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dict. Refuse repeated keys, which would silently lose the first value."""
    keys = [key for key, _ in pairs]
    if len(set(keys)) < len(keys):
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise DatasetError(f'dataset.json: "{repeated}" appears twice in the same object. Rename or remove one.')
    return dict(pairs)


def _listed_cases(folder: Path, description: DatasetDescription) -> dict[str, Case]:
    ending = description.file_ending
    labels = files_by_name(folder / "labelsTr", ending) if (folder / "labelsTr").is_dir() else {}
    return {
        identifier: Case(
            identifier=identifier,
            frames=(identifier,),
            images=(files,),
            labels=(labels[identifier],) if identifier in labels else None,
        )
        for identifier, files in find_images(folder / "imagesTr", ending).items()
    }


def _mapped_cases(folder: Path, description: DatasetDescription) -> dict[str, Case]:
    mapping = description.raw["dataset"]
    if not isinstance(mapping, dict):
        raise DatasetError('dataset.json: "dataset" must map identifiers to {"images": [...], "label": ...}')
    cases = {}
    for identifier, entry in mapping.items():
        if (
            not isinstance(entry, dict)
            or not isinstance(entry.get("images"), list)
            or not entry["images"]
            or not isinstance(entry.get("label"), str)
        ):
            raise DatasetError(
                f'dataset.json: "dataset" entry "{identifier}" must have "images" (a list of files) and "label"'
            )
        images = tuple(_located(folder, str(file)) for file in entry["images"])
        label = _located(folder, entry["label"])
        cases[identifier] = Case(identifier=identifier, frames=(identifier,), images=(images,), labels=(label,))
    return cases


def _located(folder: Path, file: str) -> Path:
    return Path(file) if Path(file).is_absolute() else (folder / file)


def _parse_channels(raw: Any) -> tuple[str, ...]:
    if not isinstance(raw, dict) or not raw:
        raise DatasetError('dataset.json: "channel_names" must map channel numbers to names, e.g. {"0": "CT"}')
    if not all(str(key).isdecimal() and len(str(key)) <= DIGITS for key in raw):
        hint = " It looks reversed: write the number first." if all(str(v).isdigit() for v in raw.values()) else ""
        raise DatasetError(f'dataset.json: "channel_names" must have numbers as keys, got {list(raw)}.{hint}')
    if len(raw) > CHANNEL_LIMIT:
        raise DatasetError(f'dataset.json: "channel_names" has {len(raw)} channels; the limit is {CHANNEL_LIMIT}')
    ordered = sorted(raw.items(), key=lambda item: int(item[0]))
    if [int(key) for key, _ in ordered] != list(range(len(ordered))):
        raise DatasetError(f'dataset.json: "channel_names" must be numbered from 0 without gaps, got {list(raw)}')
    if not all(isinstance(name, str) for _, name in ordered):
        raise DatasetError('dataset.json: "channel_names" must map numbers to names')
    if odd := next((name for _, name in ordered if visible(name) != name), None):
        raise DatasetError(f"dataset.json: channel {odd!a} contains a line break or control character. Rename it.")
    return tuple(name for _, name in ordered)


def _parse_groups(raw: Any) -> dict[str, tuple[str, ...]]:
    valid = isinstance(raw, dict) and all(
        isinstance(names, list) and all(isinstance(name, str) for name in names) for names in raw.values()
    )
    if not valid:
        raise DatasetError(
            'dataset.json: "groups" must map each group to the list of its cases, e.g. {"A": ["case_1"]}'
        )
    return {group: tuple(names) for group, names in raw.items()}


def parse_sequences(raw: Any) -> dict[str, tuple[str, ...]]:
    """Validate a mapping of videos to their frames' identifiers. Raises DatasetError."""
    valid = isinstance(raw, dict) and all(
        isinstance(frames, list) and frames and all(isinstance(f, str) for f in frames) for frames in raw.values()
    )
    if not valid:
        raise DatasetError('dataset.json: "sequences" must map each video to the list of its frames\' identifiers')
    seen: set[str] = set()
    for name, frames in raw.items():
        repeated = [f for f in frames if f in seen]
        if not repeated and len(set(frames)) < len(frames):
            repeated = [f for f in frames if frames.count(f) > 1]
        if repeated:
            raise DatasetError(f'dataset.json: frame "{repeated[0]}" appears twice in "sequences" (in "{name}")')
        seen.update(frames)
        for part in (name, *frames):
            check_file_name(part, what='dataset.json: "sequences":')
    return {name: tuple(frames) for name, frames in raw.items()}
