"""Which cases a folder, or a file, given to prediction holds."""

import re
from dataclasses import replace
from pathlib import Path

from masam_auto.core.dataset import (
    Case,
    DatasetDescription,
    find_images,
    group_sequences,
    parse_sequences,
)
from masam_auto.core.errors import DatasetError
from masam_auto.core.jsonio import read_plain
from masam_auto.imaging.io import IMAGE_ENDINGS

CHANNEL = re.compile(r"(.+)_(\d{4})")
FRAME = re.compile(r"(.*?)[_-]?(\d+)")


def find_inputs(source: Path, description: DatasetDescription) -> tuple[Case, ...]:
    """Cases to predict.

    In a folder these are the images called ID_0000.ext, ID_0001.ext, ... or, where no name ends in a channel number,
    every image is a case of one file. A single file brings its other channels along. A model of videos groups frames
    by `sequences.json` ({"sequence": ["frame", ...]}) in the folder, else by the training data's own sequences, else
    by the name before the last number.

    Args:
        source: a folder or an image file. Endings other than the training data's are accepted.
        description: of the data set that the model was trained on.

    Raises:
        DatasetError: nothing there, no images, or names that make no sense together.
    """
    if not source.exists():
        raise DatasetError(f"input not found: {source}")
    folder = source if source.is_dir() else source.parent
    ending = _choose_ending(source, description.file_ending)
    images = _folder_images(folder, ending) if source.is_dir() else _file_images(source, ending)
    _check_channels(images, folder, ending, description)
    singles = {
        identifier: Case(identifier=identifier, frames=(identifier,), images=(files,))
        for identifier, files in images.items()
    }
    if not description.is_video:
        return group_sequences(singles, replace(description, sequences={}))
    sequences = _find_sequences(folder, description, list(singles))
    return group_sequences(singles, replace(description, sequences=sequences))


def _choose_ending(source: Path, preferred: str) -> str:
    """The ending of the image files: the training data's, else the one that readable files there have."""
    endings = sorted({preferred, *IMAGE_ENDINGS}, key=lambda ending: (ending != preferred, -len(ending)))
    if source.is_file():
        found = [ending for ending in endings if source.name.lower().endswith(ending.lower())]
        if not found:
            raise DatasetError(f"{source}: cannot read this kind of file; known: {', '.join(sorted(endings))}")
        return source.name[-len(found[0]) :]
    names = [path.name for path in sorted(source.iterdir()) if path.is_file() and not path.name.startswith(".")]
    if any(name.endswith(preferred) for name in names):
        return preferred
    present = {next((ending for ending in endings if name.endswith(ending)), None) for name in names} - {None}
    if not present:
        there = f"there: {', '.join(names[:5])}" if names else "the folder is empty"
        raise DatasetError(f"{source}: no images like ID_0000{preferred} or ID{preferred} ({there})")
    if len(present) > 1:
        listed = ", ".join(sorted(str(ending) for ending in present))
        raise DatasetError(f"{source}: images of several kinds ({listed}) and none {preferred}. Keep one kind.")
    return str(present.pop())


def _folder_images(folder: Path, ending: str) -> dict[str, tuple[Path, ...]]:
    names = [p for p in sorted(folder.iterdir()) if p.name.endswith(ending) and not p.name.startswith(".")]
    plain = [path for path in names if not CHANNEL.fullmatch(path.name[: -len(ending)])]
    if len(plain) == len(names):
        return {path.name[: -len(ending)]: (path,) for path in plain}
    if plain:
        listed = ", ".join(path.name for path in plain[:5])
        raise DatasetError(
            f"{folder}: some images are called ID_0000{ending} and {len(plain)} are not ({listed}). Those may be "
            "segmentations: move them elsewhere, or give every image its channel number."
        )
    return find_images(folder, ending)


def _file_images(source: Path, ending: str) -> dict[str, tuple[Path, ...]]:
    stem = source.name[: -len(ending)]
    match = CHANNEL.fullmatch(stem)
    if match is None:
        return {stem: (source,)}
    return {match[1]: find_images(source.parent, ending)[match[1]]}


def _check_channels(
    images: dict[str, tuple[Path, ...]], folder: Path, ending: str, description: DatasetDescription
) -> None:
    """Channel numbers must run from 0, and there cannot be more files than channels. Fewer may be RGB pictures."""
    for identifier, files in images.items():
        numbers = [int(match[2]) for file in files if (match := CHANNEL.fullmatch(file.name[: -len(ending)]))]
        expected = f"the model takes {description.num_channels} ({', '.join(description.channel_names)})"
        if numbers and numbers != list(range(len(numbers))):
            found = ", ".join(f"{number:04d}" for number in numbers)
            raise DatasetError(
                f"{folder}: case {identifier} has the channel files {found}; {expected}, numbered from 0000. "
                "If these are separate images, add _0000 to every name."
            )
        if len(files) > description.num_channels:
            raise DatasetError(
                f"{folder}: case {identifier} has {len(files)} channel files; {expected}. Remove the others, or, if "
                "these are separate images, add _0000 to every name."
            )


def _find_sequences(
    folder: Path, description: DatasetDescription, identifiers: list[str]
) -> dict[str, tuple[str, ...]]:
    """The folder's sequences.json, else the training data's own sequences and, for other frames, their names."""
    file = folder / "sequences.json"
    if file.is_file():
        try:
            return parse_sequences(read_plain(file, what="sequences"))
        except DatasetError as error:
            raise DatasetError(f"{file}: {error}") from error
    present = set(identifiers)
    sequences = {name: frames for name, frames in description.sequences.items() if present.issuperset(frames)}
    known = {frame for frames in sequences.values() for frame in frames}
    numbered: dict[str, list[tuple[int, str]]] = {}
    for identifier in identifiers:
        if identifier not in known and (match := FRAME.fullmatch(identifier)):
            numbered.setdefault(match[1] or "frames", []).append((int(match[2]), identifier))
    return {name: tuple(frame for _, frame in sorted(frames)) for name, frames in numbered.items()} | sequences
