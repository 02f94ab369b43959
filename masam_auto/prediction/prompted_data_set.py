"""What data set images and their prompts make: channels, classes, and its dataset.json."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from masam_auto.core.boxes import Prompt
from masam_auto.core.dataset import Case, DatasetDescription, parse_description, read_description
from masam_auto.core.errors import DatasetError, ImageError, first_few
from masam_auto.core.file_names import image_endings
from masam_auto.core.labels import Labels
from masam_auto.formats.box_files import Prompts
from masam_auto.formats.inputs import CHANNEL
from masam_auto.formats.io import read_case, read_image
from masam_auto.formats.videos import is_video
from masam_auto.imaging.unit_range import looks_like_ct
from masam_auto.network.promptable import CHANNELS

LABELS_FOLDER = "labelsTr"
DESCRIPTION = "dataset.json"
USUAL_ENDING, PICTURE_ENDING = ".nii.gz", ".png"
CHANNELS_LIMIT = 99  # a higher number after a name is that of a frame or patient, which `find_inputs` explains
OBJECT = "object"  # the class of prompts that name none
COLOUR_NAMES = ("R", "G", "B")


def record_of(folder: Path) -> Path:
    """The dataset.json that belongs to a folder of segmentations."""
    return (folder.absolute().parent if folder.name == LABELS_FOLDER else folder) / DESCRIPTION


def own_description(folder: Path, *, dataset_json: Path | None, labels: Sequence[str]) -> DatasetDescription | None:
    """Of the data set that the images belong to, if there is one: the user's file, or the one beside labelsTr."""
    beside = record_of(folder)
    file = dataset_json or (beside if folder.name == LABELS_FOLDER and beside.is_file() else None)
    if file is None:
        return None
    if labels:
        raise DatasetError(f"{file} says what the classes are. Leave out `labels`, or use another dataset.json.")
    found = read_description(file, name=file.absolute().parent.name)
    if found.labels.has_regions:
        raise DatasetError(
            f"{file} has regions, which may overlap, but a prompt shows one object. Leave it out and name the classes "
            "with `labels`."
        )
    return found


def describe_images(source: Path, *, video: bool) -> DatasetDescription:
    """What has to be known of images to find the cases among them: how many channels, and whether they are frames."""
    inside = source if source.is_dir() else source.parent
    files = sorted(inside.iterdir()) if inside.is_dir() else []
    stems = [_stem(path) for path in files]
    numbers = [int(match[2]) for stem in stems if stem and (match := CHANNEL.fullmatch(stem))]
    frames = video or (source.is_dir() and (source / "sequences.json").is_file())
    pictures = frames or any(is_video(path) for path in (files if source.is_dir() else [source]))
    return DatasetDescription(
        name=inside.name,
        channel_names=tuple(f"channel {number}" for number in range(1 + min(max(numbers, default=0), CHANNELS_LIMIT))),
        labels=_labels([OBJECT]),
        file_ending=PICTURE_ENDING if pictures else USUAL_ENDING,
        sequences={"": ("",)} if frames else {},
    )


def _stem(path: Path) -> str | None:
    ending = next((ending for ending in image_endings() if path.name.lower().endswith(ending)), None)
    return None if ending is None or path.name.startswith(".") else path.name[: -len(ending)]


def described(cases: Sequence[Case], description: DatasetDescription, labels: Labels) -> DatasetDescription:
    """The data set that cases and their segmentations are, as its dataset.json says it."""
    first = cases[0].images[0][0]
    usual = PICTURE_ENDING if is_video(first) else USUAL_ENDING
    ending = next((ending for ending in image_endings() if first.name.lower().endswith(ending)), usual)
    image, geometry = read_any_channels(cases[0], description)
    count = len(image)
    colours = count == CHANNELS and (geometry.dimensions == 2 or len(cases[0].images[0]) == 1)
    names = COLOUR_NAMES if colours else tuple("CT" if looks_like_ct(channel) else "image" for channel in image)
    raw: dict[str, Any] = {
        "channel_names": {str(number): name for number, name in enumerate(names)},
        "labels": {name: values[0] for name, values in labels.values.items()},
        "file_ending": ending,
    }
    if any(case.is_sequence for case in cases):
        raw["sequences"] = {case.identifier: list(case.frames) for case in cases if case.is_sequence}
    return parse_description(raw, name=description.name)


def read_any_channels(case: Case, description: DatasetDescription) -> Any:
    """Read a case like `io.read_case`, however many channels it has. Returns (image, geometry)."""
    count = len(case.series) if case.series else len(case.images[0])
    if is_video(case.images[0][0]):
        count = CHANNELS
    try:
        return read_case(case, _with_channels(description, max(count, 1)))
    except ImageError:
        if count != 1 or case.series:
            raise
        found = _channels_of(case, description.num_channels)
        if found == 1:
            raise
        return read_case(case, _with_channels(description, found))


def _channels_of(case: Case, expected: int) -> int:
    image, _ = read_image(case.images[0][0], channels=expected)
    return len(image)


def _with_channels(description: DatasetDescription, count: int) -> DatasetDescription:
    return replace(description, channel_names=tuple(f"channel {number}" for number in range(count)))


def find_classes(prompts: Prompts, own: DatasetDescription | None, names: Sequence[str]) -> Labels:
    """The classes: of the data set, the user's, or those that the prompts name, in the order of the cases."""
    if own is not None:
        return own.labels
    if names:
        return _labels(names)
    named = [prompt.label for _, found in sorted(prompts.items()) for prompt in found if prompt.label is not None]
    words = dict.fromkeys(label for label in named if isinstance(label, str))
    values = [label for label in named if isinstance(label, int)]
    if words and values:
        raise DatasetError(
            f"some prompts name their class ({first_few(list(words))}) and some give its value ({values[0]}). Say "
            "which value each class has with `labels`."
        )
    if values:
        return _labels([f"class {value}" for value in range(1, max(values) + 1)])
    return _labels(list(words) or [OBJECT])


def _labels(names: Iterable[str]) -> Labels:
    return parse_description(
        {
            "channel_names": {"0": "image"},
            "labels": {"background": 0} | {name: value for value, name in enumerate(names, 1)},
            "file_ending": USUAL_ENDING,
        },
        name="",
    ).labels


def with_value(prompt: Prompt, labels: Labels, where: str) -> Prompt:
    """A prompt with the value of its class. Raises DatasetError for an unknown class."""
    classes = {name: values[0] for name, values in labels.foreground.items()}
    label = prompt.label
    if label is None and prompt.title in classes:
        label = prompt.title
    if label is None and len(classes) == 1:
        (label,) = classes
    value = classes.get(label) if isinstance(label, str) else label
    if value in classes.values():
        return replace(prompt, label=value)
    said = "does not say its class" if label is None else f"has the class {label!r}, which is unknown"
    listed = ", ".join(f"{name} ({number})" for name, number in classes.items())
    raise DatasetError(f'{where}: a box or point {said}. Give it a "label": {listed}.')
