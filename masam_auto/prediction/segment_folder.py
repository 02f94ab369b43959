"""Segment a folder of images from prompts alone, without a trained model. The result can be trained on.

The output folder holds a segmentation for each case and a dataset.json. A folder called labelsTr makes a raw data set
of the folder around it, so there the dataset.json goes beside it.
"""

import contextlib
import functools
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from masam_auto.compute.overlap import Steps, overlap
from masam_auto.compute.parallel import is_out_of_memory
from masam_auto.core.boxes import Prompt
from masam_auto.core.claims import claimed
from masam_auto.core.dataset import Case, DatasetDescription, files_by_name, parse_description, read_description
from masam_auto.core.errors import CaseErrors, DatasetError, ImageError, MasamError, OutputError, first_few
from masam_auto.core.file_names import image_endings
from masam_auto.core.jsonio import read_plain, write_json
from masam_auto.core.labels import Labels
from masam_auto.core.log import progress
from masam_auto.core.partial import remove_abandoned
from masam_auto.formats.box_files import Prompts, read_prompts
from masam_auto.formats.inputs import CHANNEL, find_inputs
from masam_auto.formats.io import label_ending, read_case, read_image
from masam_auto.formats.outputs import choose_endings, output_files, write_segmentation
from masam_auto.formats.videos import is_video
from masam_auto.imaging.unit_range import looks_like_ct
from masam_auto.network.promptable import CHANNELS
from masam_auto.prediction.output_folder import check_output, refuse_to_overwrite, refuse_to_replace_images
from masam_auto.prediction.predict_folder import Outcome, is_written, memory_room
from masam_auto.prediction.segmenter import Segmented, Segmenter

logger = logging.getLogger(__name__)

LABELS_FOLDER = "labelsTr"
DESCRIPTION = "dataset.json"
USUAL_ENDING, PICTURE_ENDING = ".nii.gz", ".png"
CHANNELS_LIMIT = 99  # a higher number after a name is that of a frame or patient, which `find_inputs` explains
OBJECT = "object"  # the class of prompts that name none
COLOUR_NAMES = ("R", "G", "B")


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentOptions:
    """How a folder is segmented.

    `overwrite`, `continue_prediction`, `output_format`: as `predict_folder.PredictionOptions`. `dataset_json`: of the
    data set that the images belong to, for its channels, classes and file ending. `labels`: names of the classes 1, 2,
    ... `video`: pictures are frames of videos, grouped as `inputs.find_inputs` does.
    """

    overwrite: bool = False
    continue_prediction: bool = False
    output_format: str | None = None
    dataset_json: Path | None = None
    labels: tuple[str, ...] = ()
    video: bool = False


@dataclass(frozen=True, kw_only=True)
class _Job:
    """How cases are segmented and where they go.

    `is_own`: the description is of a data set that was there before. `record`: where to write it; None to leave it.
    `said` has the notes that were logged.
    """

    segmenter: Segmenter
    folder: Path
    description: DatasetDescription
    endings: Mapping[str, str]
    prompts: Prompts
    is_own: bool
    record: Path | None
    said: set[str] = field(default_factory=set)

    def load(self, case: Case) -> Any:
        """Read a case: (image, geometry)."""
        return read_any_channels(case, self.description)

    def segment(self, case: Case, loaded: Any) -> Segmented:
        """Segment a case."""
        image, geometry = loaded
        settings = self.segmenter.settings
        if case.is_sequence or is_video(case.images[0][0]):
            settings = replace(settings, axis=0, channels=settings.channels or _colours(image))
        shown = (settings.channels or (0,))[0]
        if self.is_own and shown < self.description.num_channels:  # the data set's own names
            settings = replace(settings, is_ct=self.description.channel_names[shown].casefold() == "ct")
        found = self.segmenter.changed(settings).segment(
            image, geometry, self.prompts[case.identifier], identifier=case.identifier
        )
        for note in found.notes:
            if note not in self.said:
                self.said.add(note)
                logger.info("%s (logged once): %s", case.identifier, note)
        for sentence in found.left_out:
            logger.warning("%s: %s", case.identifier, sentence)
        return found

    def write(self, case: Case, made: Segmented) -> None:
        """Write a segmentation, and the dataset.json before the first one."""
        if self.record is not None and not self.record.exists():
            self.write_record()
        write_segmentation(
            case, made.labels, made.geometry, self.folder, self.endings[case.identifier], self.description.labels
        )

    def write_record(self) -> None:
        """Write the dataset.json, which tells of all segmentations in the folder."""
        if self.record is None:
            return
        raw = dict(self.description.raw)
        if self.is_own:
            write_json(self.record, raw)
            return
        before = read_plain(self.record, what="data set") if self.record.exists() else {}
        if sequences := before.get("sequences", {}) | raw.get("sequences", {}):
            raw["sequences"] = sequences
        ending = label_ending(self.description.file_ending)
        if self.folder.is_dir() and (count := len(files_by_name(self.folder, ending))):
            raw["numTraining"] = count
        write_json(self.record, raw)


def segment_folder(
    segmenter: Segmenter,
    source: Path,
    folder: Path,
    prompts: Path | Prompts,
    options: SegmentOptions = SegmentOptions(),
) -> Outcome:
    """Segment the cases of a folder, or one file, that have prompts. Failed cases do not stop the others.

    Args:
        segmenter: the weights, and how to segment.
        source: a folder or file, as for `inputs.find_inputs`.
        folder: where the segmentations go.
        prompts: a file or folder, as for `box_files.read_prompts`, or its content.
        options: which cases to segment, and what the classes are.

    Raises:
        DatasetError: no images, no prompts, or a class that is unknown.
        OutputError: files exist and neither option is given; the folder has other classes, or must not be written to.

    Example:
        >>> from masam_auto.core.jsonio import read_plain, write_json
        >>> from masam_auto.prediction.segment_folder import segment_folder
        >>> box = {"unit": "voxel", "min": [1, 2, 3], "max": [4, 9, 8], "label": "lesion"}
        >>> write_json(Path("lesions.json"), {"case_000": box})
        >>> segment_folder(segmenter, dataset.folder / "imagesTr", Path("lesions"), Path("lesions.json")).predicted
        ('case_000',)
    """
    own = _own_description(folder, options)
    description = own or _describe_images(source, options)
    cases = find_inputs(source, description)
    given = read_prompts(prompts, [case.identifier for case in cases]) if isinstance(prompts, Path) else prompts
    if not given:
        where = f"{prompts}: has" if isinstance(prompts, Path) else "there are"
        raise DatasetError(f"{where} no boxes and no points")
    labels = _classes(given, own, options)
    given = {
        name: tuple(_with_value(prompt, labels, f"case {name}") for prompt in found) for name, found in given.items()
    }
    chosen = [case for case in cases if case.identifier in given]
    if left := [case.identifier for case in cases if case.identifier not in given]:
        logger.warning("no box or points for %s: left out", first_few(left))
    if own is None:
        description = _described(chosen, description, labels)
    record = None if own is not None and folder.name == LABELS_FOLDER else _record_of(folder)
    job = _Job(
        segmenter=segmenter,
        folder=folder,
        description=description,
        endings=choose_endings(chosen, description, options.output_format),
        prompts=given,
        is_own=own is not None,
        record=record,
    )
    waiting = _waiting(job, source, chosen, options)
    problems: dict[str, tuple[str, ...]] = {}
    if waiting:
        with claimed(folder, "prediction"):
            remove_abandoned(folder)
            if options.overwrite and record is not None:
                record.unlink(missing_ok=True)
            problems = _segment_cases(job, waiting)
            job.write_record()
    names = [case.identifier for case in waiting]
    return Outcome(
        predicted=tuple(name for name in names if name not in problems),
        skipped=tuple(case.identifier for case in chosen if case.identifier not in names),
        problems=tuple(problem for name in names for problem in problems.get(name, ())),
    )


def _segment_cases(job: _Job, cases: Sequence[Case]) -> dict[str, tuple[str, ...]]:
    """Segment cases. Returns why some failed; errors that concern more than one case are raised."""
    problems: dict[str, tuple[str, ...]] = {}
    steps = Steps(load=job.load, work=job.segment, save=job.write)
    done = overlap(cases, steps, threads=1, size=_file_bytes, room=functools.partial(memory_room, 1))
    with contextlib.closing(done):
        for case, error in progress(done, what="segmenting", total=len(cases)):
            name = case.identifier
            if error is None:
                continue
            if isinstance(error, CaseErrors):
                problems[name] = error.problems
            elif is_out_of_memory(error):
                problems[name] = (f"case {name}: not enough memory. Segment it alone, or on another machine.",)
            elif isinstance(error, MasamError) and not isinstance(error, OutputError):
                problems[name] = (str(error) if name in str(error) else f"case {name}: {error}",)
            else:
                error.add_note(f"This happened with case {name}.")
                raise error
    return problems


def _waiting(job: _Job, source: Path, cases: Sequence[Case], options: SegmentOptions) -> list[Case]:
    """The cases to segment. Raises OutputError if the folder must not be written to."""
    check_output(source, job.folder, making_labels=job.folder.name == LABELS_FOLDER)
    names = {case.identifier: output_files(case, job.endings[case.identifier]) for case in cases}
    refuse_to_replace_images(job.folder, names, cases)
    if options.overwrite:
        return list(cases)
    if job.record is not None and job.record.exists():
        found = read_description(job.record, name=job.folder.name)
        if found.labels.values != job.description.labels.values:
            raise OutputError(
                f"{job.record} has other classes ({', '.join(found.labels.foreground)} instead of "
                f"{', '.join(job.description.labels.foreground)}). Choose another folder, name the classes in its "
                "order with `labels`, or give `overwrite`."
            )
    if not options.continue_prediction:
        refuse_to_overwrite(job.folder, [file for files in names.values() for file in files])
    return [case for case in cases if not all(is_written(job.folder / file) for file in names[case.identifier])]


def _record_of(folder: Path) -> Path:
    """The dataset.json that belongs to a folder of segmentations."""
    return (folder.absolute().parent if folder.name == LABELS_FOLDER else folder) / DESCRIPTION


def _own_description(folder: Path, options: SegmentOptions) -> DatasetDescription | None:
    """Of the data set that the images belong to, if there is one: the user's file, or the one beside labelsTr."""
    beside = _record_of(folder)
    file = options.dataset_json or (beside if folder.name == LABELS_FOLDER and beside.is_file() else None)
    if file is None:
        return None
    if options.labels:
        raise DatasetError(f"{file} says what the classes are. Leave out `labels`, or use another dataset.json.")
    found = read_description(file, name=file.absolute().parent.name)
    if found.labels.has_regions:
        raise DatasetError(
            f"{file} has regions, which may overlap, but a prompt shows one object. Leave it out and name the classes "
            "with `labels`."
        )
    return found


def _describe_images(source: Path, options: SegmentOptions) -> DatasetDescription:
    """What has to be known of images to find the cases among them: how many channels, and whether they are frames."""
    inside = source if source.is_dir() else source.parent
    files = sorted(inside.iterdir()) if inside.is_dir() else []
    stems = [_stem(path) for path in files]
    numbers = [int(match[2]) for stem in stems if stem and (match := CHANNEL.fullmatch(stem))]
    frames = options.video or (source.is_dir() and (source / "sequences.json").is_file())
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


def _described(cases: Sequence[Case], description: DatasetDescription, labels: Labels) -> DatasetDescription:
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


def _colours(image: Any) -> tuple[int, ...] | None:
    return tuple(range(CHANNELS)) if len(image) == CHANNELS else None


def _classes(prompts: Prompts, own: DatasetDescription | None, options: SegmentOptions) -> Labels:
    """The classes: of the data set, the user's, or those that the prompts name, in the order of the cases."""
    if own is not None:
        return own.labels
    if options.labels:
        return _labels(options.labels)
    named = [prompt.label for _, found in sorted(prompts.items()) for prompt in found if prompt.label is not None]
    names = dict.fromkeys(label for label in named if isinstance(label, str))
    values = [label for label in named if isinstance(label, int)]
    if names and values:
        raise DatasetError(
            f"some prompts name their class ({first_few(list(names))}) and some give its value ({values[0]}). Say "
            "which value each class has with `labels`."
        )
    if values:
        return _labels([f"class {value}" for value in range(1, max(values) + 1)])
    return _labels(list(names) or [OBJECT])


def _labels(names: Iterable[str]) -> Labels:
    return parse_description(
        {
            "channel_names": {"0": "image"},
            "labels": {"background": 0} | {name: value for value, name in enumerate(names, 1)},
            "file_ending": USUAL_ENDING,
        },
        name="",
    ).labels


def _with_value(prompt: Prompt, labels: Labels, where: str) -> Prompt:
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


def _file_bytes(case: Case) -> float:
    """About what a case needs once it is read: compressed files unpack to several times their size."""
    return 16.0 * sum(file.stat().st_size for files in (*case.images, *case.series) for file in files)
