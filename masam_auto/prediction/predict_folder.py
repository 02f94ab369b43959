"""Segment a folder of images: choose the cases, predict and write them, and report failures.

Reading, predicting and writing overlap (`compute.overlap`). Several processes may share the cases
(`compute.shared_cases`).
"""

import contextlib
import functools
import itertools
import logging
import math
import traceback
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from masam_auto.compute.machine import available_cores, free_memory
from masam_auto.compute.overlap import Steps, overlap
from masam_auto.compute.parallel import is_out_of_memory
from masam_auto.compute.shared_cases import SharedCases
from masam_auto.core.boxes import GivenBox
from masam_auto.core.claims import claimed
from masam_auto.core.dataset import Case
from masam_auto.core.errors import CaseErrors, MasamError, ModelError, OutputError
from masam_auto.core.geometry import Geometry
from masam_auto.core.log import progress
from masam_auto.core.partial import remove_abandoned
from masam_auto.core.turning import STAY
from masam_auto.formats.box_files import Boxes, read_boxes
from masam_auto.formats.inputs import find_inputs
from masam_auto.formats.io import read_case, read_geometry
from masam_auto.formats.outputs import choose_endings, output_files, write_segmentation
from masam_auto.formats.probability_files import ENDING as PROBABILITIES
from masam_auto.formats.videos import is_video
from masam_auto.prediction.output_folder import (
    check_output,
    is_recorded,
    record_model,
    refuse_another_model,
    refuse_to_overwrite,
    refuse_to_replace_images,
)
from masam_auto.prediction.predict import Predictor, PreparedCase
from masam_auto.prediction.restore import new_case_probabilities

logger = logging.getLogger(__name__)

MEMORY_SHARE = 0.5  # of the free memory, for cases that are read ahead; the rest is for the case being predicted
READERS = 4  # threads at most; more did not help


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """Result of a folder: identifiers of predicted and skipped cases, and one sentence for each failure."""

    predicted: tuple[str, ...]
    skipped: tuple[str, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictionOptions:
    """How a folder is predicted.

    `overwrite`: replace existing files. `continue_prediction`: keep existing files and predict the other cases.
    `part`: (k, n) predicts only case k and every n-th case after it. `output_format`: ending of the segmentation files,
    as for `outputs.choose_endings`. `save_probabilities`: also write ID.npz for each case
    (`formats.probability_files`).
    """

    overwrite: bool = False
    continue_prediction: bool = False
    part: tuple[int, int] = (0, 1)
    output_format: str | None = None
    save_probabilities: bool = False


@dataclass(frozen=True, kw_only=True)
class _Segmented:
    """A case that is ready to be written. Closing `probabilities` writes them."""

    geometry: Geometry
    segmentation: np.ndarray
    probabilities: contextlib.ExitStack


@dataclass(frozen=True, kw_only=True)
class _Job:
    """How cases are predicted and where they go. `endings` and `boxes` are by identifier."""

    predictor: Predictor
    folder: Path
    options: PredictionOptions
    endings: Mapping[str, str]
    boxes: Mapping[str, Sequence[GivenBox]]
    shared: SharedCases
    said: dict[str, str] = field(default_factory=dict)

    def load(self, case: Case) -> PreparedCase:
        """Read and preprocess a case. A note is logged only for the first case that has it."""
        image, geometry = read_case(case, self.predictor.description)
        boxes = self.boxes.get(case.identifier, ())
        prepared = self.predictor.prepare(image, geometry, boxes=boxes, identifier=case.identifier)
        for note in prepared.notes:
            if self.said.setdefault(note, case.identifier) == case.identifier:
                logger.info("%s (logged once): %s", case.identifier, note)
        return prepared

    def segment(self, case: Case, prepared: PreparedCase) -> _Segmented:
        """Predict a case. Raises _TakenError if another process has taken it."""
        if not self.shared.begin(case.identifier):
            raise _TakenError
        properties = prepared.properties[0]
        with contextlib.ExitStack() as stack:
            values = None
            if self.options.save_probabilities:
                file, labels = self.folder / f"{case.identifier}{PROBABILITIES}", self.predictor.description.labels
                values = stack.enter_context(new_case_probabilities(file, properties, labels))
            segmentation = self.predictor.segment(prepared, probabilities=values)
            return _Segmented(geometry=properties.geometry, segmentation=segmentation, probabilities=stack.pop_all())

    def write(self, case: Case, made: _Segmented) -> None:
        """Write the probabilities and the segmentation, and mark the case as done."""
        made.probabilities.close()
        ending, labels = self.endings[case.identifier], self.predictor.description.labels
        write_segmentation(case, made.segmentation, made.geometry, self.folder, ending, labels)
        if self.options.overwrite and not self.options.save_probabilities:
            # the old probabilities: an ensemble would average them
            (self.folder / f"{case.identifier}{PROBABILITIES}").unlink(missing_ok=True)
        if self.shared.claim("companions") or not is_recorded(self.folder):
            record_model(self.folder, self.predictor)
        self.shared.finish(case.identifier)

    def file_names(self, case: Case) -> tuple[str, ...]:
        """Names of all files that are written for a case."""
        more = (f"{case.identifier}{PROBABILITIES}",) if self.options.save_probabilities else ()
        return (*output_files(case, self.endings[case.identifier]), *more)


class _TakenError(Exception):
    """Another process predicts this case."""


def read_case_boxes(predictor: Predictor, source: Path, boxes_file: Path) -> Boxes:
    """Read the boxes for the cases of a folder.

    Raises:
        DatasetError: no images, or the boxes are damaged, invalid or for other cases.
        ModelError: the model was trained without boxes.
    """
    predictor.check_takes_boxes()
    return read_boxes(boxes_file, [case.identifier for case in find_inputs(source, predictor.description)])


def predict_folder(
    predictor: Predictor,
    source: Path,
    folder: Path,
    options: PredictionOptions = PredictionOptions(),
    *,
    boxes: Mapping[str, Sequence[GivenBox]] | None = None,
    only: Collection[str] | None = None,
    shared: SharedCases | None = None,
) -> Outcome:
    """Predict all cases of a folder, or one file. Failed cases are reported at the end and do not stop the others.

    A case that runs out of memory is tried again at the end, with nothing else in memory.

    Args:
        predictor: the model.
        source: a folder or file, as for `inputs.find_inputs`.
        folder: where the segmentations go. It also gets the model's dataset.json and plan.json.
        options: which cases to predict, what to write, and how to treat existing files.
        boxes: boxes of each case. Cases without boxes are predicted automatically. None: no boxes at all.
        only: identifiers of the cases to predict; None for all.
        shared: the processes that share the cases. All must get the same arguments.

    Returns:
        The outcome of all processes together; every process returns the same.

    Raises:
        DatasetError: no images, or their names are not understood.
        ModelError: boxes for a model that was trained without them, or boxes together with probabilities.
        OutputError: files exist and neither option is given; the folder holds another model's predictions and
            `overwrite` is not given; it is the input folder; another process predicts into it; or it cannot be written.

    Example:
        >>> from masam_auto.prediction.predict_folder import predict_folder
        >>> outcome = predict_folder(predictor, dataset.folder / "imagesTr", Path("segmentations"))
        >>> outcome.predicted, outcome.problems
        (('case_000', 'case_001', 'case_002'), ())
        >>> sorted(path.name for path in Path("segmentations").iterdir())
        ['case_000.nii.gz', 'case_001.nii.gz', 'case_002.nii.gz', 'dataset.json', 'plan.json']
    """
    if boxes is not None:
        predictor.check_takes_boxes()
        if options.save_probabilities:
            raise ModelError("boxes give only labels. Leave out `boxes` or `save_probabilities`.")
    (first, step), shared = options.part, shared or SharedCases()
    found = find_inputs(source, predictor.description)
    chosen = [case for case in found if only is None or case.identifier in only][first::step]
    cases = {case.identifier: case for case in chosen}
    job = _Job(
        predictor=predictor,
        folder=folder,
        options=options,
        endings=choose_endings(chosen, predictor.description, options.output_format),
        boxes=boxes or {},
        shared=shared,
    )
    waiting = shared.agreed("cases", lambda: _waiting(job, source, chosen))
    if without := [name for name in waiting if boxes is not None and not boxes.get(name)]:
        logger.warning("no box for %s: predicted without a prompt", ", ".join(without))
    incomplete = shared.world.first and len(waiting) < len(cases) and not is_recorded(folder)
    with contextlib.ExitStack() as stack:
        if shared.world.first and (waiting or incomplete):  # for all processes of the command; parts may work together
            stack.enter_context(claimed(folder, "prediction", together=step > 1))
        if incomplete:  # by a run that was interrupted before it wrote them
            record_model(folder, predictor)
        _predict_cases(job, {name: cases[name] for name in waiting})
        results = shared.results(waiting)
    return Outcome(
        predicted=tuple(name for name in waiting if not results[name]),
        skipped=tuple(name for name in cases if name not in results),
        problems=tuple(problem for name in waiting for problem in results[name]),
    )


def _waiting(job: _Job, source: Path, cases: Sequence[Case]) -> list[str]:
    """Identifiers of the cases to predict. Raises OutputError if the folder must not be written to."""
    folder, options = job.folder, job.options
    check_output(source, folder)
    names = {case.identifier: job.file_names(case) for case in cases}
    refuse_to_replace_images(folder, names, cases)
    if options.overwrite:
        return list(names)
    refuse_another_model(folder, job.predictor)
    if not options.continue_prediction:
        refuse_to_overwrite(folder, [file for files in names.values() for file in files])
    return [name for name, files in names.items() if not all(is_written(folder / file) for file in files)]


def _predict_cases(job: _Job, cases: Mapping[str, Case]) -> None:
    """Predict this process's cases. The results go to `job.shared`."""
    shared, world = job.shared, job.shared.world
    left, doubtful = shared.take_over(list(cases))
    remove_abandoned(job.folder)
    again = [cases[name] for name in doubtful]
    threads = max(1, min(READERS, available_cores() // (2 * world.local_size)))
    steps = Steps(load=job.load, work=job.segment, save=job.write)
    size, room = memory_estimate(job.predictor), functools.partial(memory_room, world.local_size)
    others = [name for name in cases if name not in {*left, *doubtful}]
    dealt = (cases[name] for name in itertools.chain(_held(shared, left), shared.deal(others)))
    total = len(cases) if world.size == 1 else None
    with contextlib.closing(overlap(dealt, steps, threads=threads, size=size, room=room)) as done:
        for case, error in progress(done, what="predicting", total=total):
            if error is not None and is_out_of_memory(error):
                _free_memory(error)
                shared.put_off(case.identifier)
                again.append(case)
            else:
                _note(job, case, error)
    for case in again:
        shared.hold(case.identifier)
        for _, error in overlap([case], steps, threads=1, size=size, room=room):
            _note(job, case, error)


def _held(shared: SharedCases, names: Iterable[str]) -> Iterable[str]:
    for name in names:
        shared.hold(name)
        yield name


def _note(job: _Job, case: Case, error: Exception | None) -> None:
    """Record why a case failed, if it did. Errors that concern more than this case (OutputError, bugs) are raised."""
    name = case.identifier
    if error is None or isinstance(error, _TakenError):
        return
    if isinstance(error, CaseErrors):
        job.shared.finish(name, *error.problems)
    elif is_out_of_memory(error):
        _free_memory(error)
        job.shared.finish(
            name,
            f"case {name}: not enough memory, even with no other case in memory. Predict it with `device=cpu` or on a "
            "machine with more memory, or cut the image into parts.",
        )
    elif isinstance(error, MasamError) and not isinstance(error, OutputError):  # the next could not be written either
        job.shared.finish(name, str(error) if name in str(error) else f"case {name}: {error}")
    else:
        error.add_note(f"This happened with case {name}.")
        raise error


def _free_memory(error: Exception) -> None:
    """Free the memory that the failed functions still hold."""
    cause: BaseException | None = error
    while cause is not None:
        traceback.clear_frames(cause.__traceback__)
        cause = cause.__cause__ or cause.__context__
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def memory_estimate(predictor: Predictor) -> Callable[[Case], float]:
    """A function that estimates the bytes needed to load a case, from the header of its first file."""
    channels = predictor.description.num_channels

    def estimate(case: Case) -> float:
        if is_video(case.images[0][0]):
            return math.inf  # its length is unknown, so it is loaded alone
        try:
            geometry = read_geometry(case.images[0][0])
        except MasamError:  # DICOM, or an unreadable image (reported when it is loaded)
            return 16.0 * sum(file.stat().st_size for files in case.series for file in files)
        voxels = math.prod(geometry.shape) * len(case.frames)
        # members that preprocess alike share an image
        configurations = [member.configuration for member in predictor.members]
        resampled = {
            (one.preprocessing_digest, one.axes): math.prod(geometry.spacing) / math.prod(one.spacing)
            for one in configurations
        }.values()
        turned = any(one.turn_of(geometry) != STAY for one in configurations)
        # read, turned, normalised, resampled for each, and on the way to that
        return 4.0 * channels * voxels * (2 + turned + sum(resampled) + max(resampled))

    return estimate


def memory_room(processes: int) -> float:
    """Bytes that each of several processes on this machine may use for loaded cases."""
    return MEMORY_SHARE * free_memory() / processes


def is_written(path: Path) -> bool:
    """Whether an output exists: a folder of masks, or a file that is not empty. Full disks leave empty files."""
    return path.is_dir() or (path.is_file() and path.stat().st_size > 0)
