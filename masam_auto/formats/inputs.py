"""Find the cases in a folder or file given to prediction."""

import logging
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from masam_auto.core.dataset import (
    Case,
    DatasetDescription,
    files_by_name,
    find_images,
    group_sequences,
    has_ending,
    parse_sequences,
)
from masam_auto.core.errors import DatasetError, first_few
from masam_auto.core.file_names import image_endings
from masam_auto.core.jsonio import read_plain
from masam_auto.formats.bitmaps import BITMAP_ENDINGS
from masam_auto.formats.dicom import is_dicom
from masam_auto.formats.dicom_series import Series, find_dicom_files, find_series, name_series
from masam_auto.formats.io import is_image
from masam_auto.formats.videos import VIDEO_ENDINGS, is_video

logger = logging.getLogger(__name__)

DICOM = ".dcm"
CHANNEL = re.compile(r"(.+)_(\d{4})", re.DOTALL)
FRAME = re.compile(r"(.*?)[_-]?(\d+)")


def find_inputs(source: Path, description: DatasetDescription) -> tuple[Case, ...]:
    """Find the cases to predict.

    In a folder these are the images called ID_0000.ext, ID_0001.ext, ... If no name ends in a channel number, every
    image is a case of one file. A single file brings its other channels along. For a video model, frames are grouped by
    `sequences.json` ({"sequence": ["frame", ...]}) in the folder, else by the training data's own sequences, else by
    the name before the last number.

    Each video file is a case. If there are no image files, DICOM files are searched in the folder and below: each
    series is a case named after its folder. A model of several channels combines the series of the folders ID_0000,
    ID_0001, ... Series that are not volumes are left out with a warning.

    Args:
        source: a folder, an image or video file, or one file of a DICOM series. Other endings than the training data's
            are accepted.
        description: of the data set that the model was trained on.

    Raises:
        DatasetError: nothing found, no images, names that do not fit together, or an optional library is missing.

    Example:
        >>> from masam_auto.formats.inputs import find_inputs
        >>> cases = find_inputs(dataset.folder / "imagesTr", dataset.description)
        >>> [(case.identifier, case.images[0][0].name) for case in cases][:2]
        [('case_000', 'case_000_0000.nii.gz'), ('case_001', 'case_001_0000.nii.gz')]
    """
    if not source.exists():
        raise DatasetError(f"input not found: {source}")
    folder = source if source.is_dir() else source.parent
    if source.is_file() and is_dicom(source):
        return _dicom_cases([path for path in sorted(folder.iterdir()) if is_dicom(path)], folder, description, source)
    ending = _choose_ending(source, description.file_ending)
    if ending == DICOM:
        return _dicom_cases(find_dicom_files(folder), folder, description)
    if ending in VIDEO_ENDINGS:
        return _video_cases([source] if source.is_file() else sorted(folder.iterdir()), description)
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
    """The ending of the image files: the training data's, else the one of the readable files.

    `DICOM` if the files are DICOM by content and nothing else is found; one of `VIDEO_ENDINGS` for any videos.
    """
    endings = sorted({preferred, *image_endings()}, key=lambda ending: (ending != preferred, -len(ending)))
    if is_video(source):
        return VIDEO_ENDINGS[0]
    if source.is_file():
        found = [ending for ending in endings if source.name.lower().endswith(ending.lower())]
        if not found:
            raise DatasetError(
                f"{source}: cannot read this kind of file; known: {', '.join(sorted(endings))}, videos and DICOM"
            )
        return source.name[-len(found[0]) :]
    files = [path for path in sorted(source.iterdir()) if path.is_file() and not path.name.startswith(".")]
    if any(has_ending(file, preferred) for file in files):
        others = [file for file in files if is_image(file) or is_video(file) or is_dicom(file)]
        if left := [file.name for file in others if not has_ending(file, preferred)]:
            logger.warning("%s: left out, because they are not %s: %s", source, preferred, first_few(left))
        return preferred
    present = {next((ending for ending in endings if has_ending(file, ending)), None) for file in files} - {None}
    present |= {VIDEO_ENDINGS[0] for path in files if is_video(path)} | {DICOM for path in files if is_dicom(path)}
    if not present and next(find_dicom_files(source), None):
        return DICOM
    if not present:
        names = sorted(f"{path.name}/" if path.is_dir() else path.name for path in source.iterdir())
        there = f"there: {first_few(names)}" if names else "the folder is empty"
        raise DatasetError(f"{source}: no images like ID_0000{preferred} or ID{preferred} ({there})")
    if len(present) > 1:
        listed = ", ".join(sorted(str(ending) for ending in present))
        raise DatasetError(f"{source}: images of several kinds ({listed}) and none {preferred}. Keep one kind.")
    return str(present.pop())


def _video_cases(files: Iterable[Path], description: DatasetDescription) -> tuple[Case, ...]:
    """One case per video file, named after it."""
    videos = [path for path in files if is_video(path) and not path.name.startswith(".")]
    if not description.is_video and description.file_ending.lower() not in BITMAP_ENDINGS:
        raise DatasetError(
            f"{videos[0]}: this model was trained on {description.file_ending} volumes, not on pictures or videos"
        )
    counted = Counter(path.stem for path in videos)
    if repeated := [path.name for path in videos if counted[path.stem] > 1]:
        raise DatasetError(f"{videos[0].parent}: {first_few(repeated)} share a name. Rename one of them.")
    return tuple(Case(identifier=path.stem, frames=(path.stem,), images=((path,),)) for path in videos)


def _dicom_cases(
    files: Iterable[Path], folder: Path, description: DatasetDescription, member: Path | None = None
) -> tuple[Case, ...]:
    """One case per series or, with `member`, only for the series of this file. Channels are combined."""
    series, left_out = find_series(files)
    if member is not None:  # other series in the folder do not matter
        series = tuple(one for one in series if member in one.files)
    for sentence in left_out if member is None else ():
        logger.warning("left out: %s", sentence)
    if not series:
        there = f" (left out: {'; '.join(left_out[:3])})" if left_out else ""
        raise DatasetError(f"{member or folder}: no DICOM series of a volume{there}")
    names = name_series(series, folder)
    if description.num_channels > 1:
        named = _series_by_channel(names, description)
    else:
        numbered = all(name.endswith("_0000") for name in names)
        named = {name.removesuffix("_0000") if numbered else name: (one,) for name, one in names.items()}
    return tuple(
        Case(
            identifier=name,
            frames=(name,),
            images=(tuple(one.files[0] for one in channels),),
            series=tuple(one.files for one in channels),
        )
        for name, channels in sorted(named.items())
    )


def _series_by_channel(names: dict[str, Series], description: DatasetDescription) -> dict[str, tuple[Series, ...]]:
    """Series of the folders ID_0000, ID_0001, ... by ID, in channel order."""
    takes = f"the model takes {description.num_channels} channels ({', '.join(description.channel_names)})"
    found: dict[str, dict[int, Series]] = {}
    for name, one in names.items():
        match = CHANNEL.fullmatch(name)
        if match is None:
            raise DatasetError(
                f"{one}: {takes}. Put the series of each channel into its own folder, called ID_0000, ID_0001, ..."
            )
        found.setdefault(match[1], {})[int(match[2])] = one
    for identifier, channels in found.items():
        if sorted(channels) != list(range(description.num_channels)):
            listed = ", ".join(f"{identifier}_{number:04d}" for number in sorted(channels))
            raise DatasetError(f"case {identifier} has the DICOM folders {listed}; {takes}, numbered from 0000")
    return {name: tuple(channels[i] for i in sorted(channels)) for name, channels in found.items()}


def _folder_images(folder: Path, ending: str) -> dict[str, tuple[Path, ...]]:
    files = files_by_name(folder, ending)
    plain = {name: path for name, path in files.items() if not CHANNEL.fullmatch(name)}
    if len(plain) == len(files):
        return {name: (path,) for name, path in plain.items()}
    if plain:
        listed = first_few([path.name for path in plain.values()])
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
    """Channel numbers must run from 0, with no more files than channels. Fewer files may be RGB pictures."""
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
                f"{folder}: case {identifier} has {len(files)} channel files; {expected}. Remove the others or, if "
                "these are separate images, add _0000 to every name."
            )


def _find_sequences(
    folder: Path, description: DatasetDescription, identifiers: list[str]
) -> dict[str, tuple[str, ...]]:
    """The folder's sequences.json, else the training data's own sequences or, for other frames, their names."""
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
