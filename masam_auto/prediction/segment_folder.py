"""Segment a folder of images from prompts alone, without a trained model. The result can be trained on.

The output folder holds a segmentation for each case and a dataset.json. A folder called labelsTr makes a raw data set
of the folder around it, so there the dataset.json goes beside it.
"""

import contextlib
import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from masam_auto.compute.overlap import Steps, overlap
from masam_auto.compute.parallel import is_out_of_memory
from masam_auto.core.claims import claimed
from masam_auto.core.dataset import Case, DatasetDescription, files_by_name, read_description
from masam_auto.core.errors import CaseErrors, DatasetError, MasamError, OutputError, first_few
from masam_auto.core.jsonio import read_plain, write_json
from masam_auto.core.log import progress
from masam_auto.core.partial import remove_abandoned
from masam_auto.formats.box_files import Prompts, read_prompts
from masam_auto.formats.inputs import find_inputs
from masam_auto.formats.io import label_ending
from masam_auto.formats.outputs import choose_endings, output_files, write_segmentation
from masam_auto.formats.videos import is_video
from masam_auto.network.promptable import CHANNELS
from masam_auto.prediction.output_folder import check_output, refuse_to_overwrite, refuse_to_replace_images
from masam_auto.prediction.predict_folder import Outcome, is_written, memory_room
from masam_auto.prediction.prompted_data_set import (
    LABELS_FOLDER,
    describe_images,
    described,
    find_classes,
    own_description,
    read_any_channels,
    record_of,
    with_value,
)
from masam_auto.prediction.segmenter import Segmented, Segmenter

logger = logging.getLogger(__name__)


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
        names = self.description.channel_names if self.is_own else ()
        if shown < len(names) and names[shown].casefold() == "ct":  # others are judged by their values
            settings = replace(settings, is_ct=True)
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
    own = own_description(folder, dataset_json=options.dataset_json, labels=options.labels)
    description = own or describe_images(source, video=options.video)
    cases = find_inputs(source, description)
    given = read_prompts(prompts, [case.identifier for case in cases]) if isinstance(prompts, Path) else prompts
    if not given:
        where = f"{prompts}: has" if isinstance(prompts, Path) else "there are"
        raise DatasetError(f"{where} no boxes and no points")
    labels = find_classes(given, own, options.labels)
    given = {
        name: tuple(with_value(prompt, labels, f"case {name}") for prompt in found) for name, found in given.items()
    }
    chosen = [case for case in cases if case.identifier in given]
    if left := [case.identifier for case in cases if case.identifier not in given]:
        logger.warning("no box or points for %s: left out", first_few(left))
    if own is None:
        description = described(chosen, description, labels)
    record = None if own is not None and folder.name == LABELS_FOLDER else record_of(folder)
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
    with claimed(folder, "prediction"):
        remove_abandoned(folder)
        if options.overwrite and record is not None:
            record.unlink(missing_ok=True)
        problems = _segment_cases(job, waiting) if waiting else {}
        if any(case not in waiting or case.identifier not in problems for case in chosen):
            job.write_record()  # also where a run before was interrupted
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


def _colours(image: Any) -> tuple[int, ...] | None:
    return tuple(range(CHANNELS)) if len(image) == CHANNELS else None


def _file_bytes(case: Case) -> float:
    """About what a case needs once it is read: compressed files unpack to several times their size."""
    return 16.0 * sum(file.stat().st_size for files in (*case.images, *case.series) for file in files)
