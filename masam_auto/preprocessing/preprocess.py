"""Turn images into the arrays that the network sees.

`preprocess_case` is used in training and prediction; `prediction.restore` undoes its geometry. `preprocess_dataset`
writes a whole data set. It may be stopped at any time; the next run makes only what is missing.
"""

import contextlib
import logging
import math
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from masam_auto.compute.machine import check_memory
from masam_auto.compute.parallel import Workers, choose_workers, map_cases
from masam_auto.core.claims import claimed
from masam_auto.core.dataset import Case, Dataset, DatasetDescription
from masam_auto.core.errors import DatasetError, MasamError, OutputError, PlanError, first_few
from masam_auto.core.geometry import CaseProperties, Geometry
from masam_auto.core.jsonio import digest, read_json, write_json
from masam_auto.core.labels import Labels
from masam_auto.core.partial import remove_abandoned
from masam_auto.core.paths import Paths
from masam_auto.core.plan import Configuration, Plan
from masam_auto.core.raw_files import are_unchanged, note_files
from masam_auto.core.turning import STAY
from masam_auto.formats.io import read_case, read_case_labels, read_geometry
from masam_auto.formats.storage import array_files, check_name_length, find_locations, write_array, write_locations
from masam_auto.imaging.crop import crop_to, nonzero_box
from masam_auto.imaging.normalize import find_normalizer, normalize
from masam_auto.imaging.placement import check_same_shape, turned_to_place
from masam_auto.imaging.resample import resample_image, resample_labels, resampled_shape
from masam_auto.preprocessing.dataset_files import write_companions

logger = logging.getLogger(__name__)

RECORD_NAME = "preprocessing.json"
LOCATIONS_SEED = 1234
# Data sets with fewer voxels are done before worker processes would have started.
FEW_VOXELS = 2e7


@dataclass(frozen=True, kw_only=True, slots=True)
class PreprocessedCase:
    """A case as the network sees it, slice axis first.

    `image` is float32 (C, Z, Y, X). `labels` is int8 or int16 (Z, Y, X) with the label file's values, or None.
    """

    image: np.ndarray
    labels: np.ndarray | None
    properties: CaseProperties


@dataclass(frozen=True, kw_only=True, slots=True)
class PreprocessingRecord:
    """preprocessing.json: the decisions that the arrays in its folder were made with."""

    version: int = 1
    configuration: str
    digest: str
    labels_digest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class _PendingCase:
    """A case, and the configurations (with folders) that it still has to be preprocessed for."""

    case: Case
    description: DatasetDescription
    configurations: tuple[tuple[Configuration, Path], ...]


def preprocess_case(
    image: np.ndarray,
    geometry: Geometry,
    labels: np.ndarray | None,
    configuration: Configuration,
    *,
    identifier: str,
    files: Sequence[str] = (),
) -> PreprocessedCase:
    """Turn to the plan's axes, crop to the non-zero box, normalise, put the slice axis first and resample.

    Args:
        image: (C, Z, Y, X) in the file's units and axis order; not changed.
        geometry: its grid.
        labels: (Z, Y, X) label values, or None.
        configuration: what to do.
        identifier: the case's name, for messages and the properties.
        files: the files the image was read from, kept in the properties.

    Raises:
        DatasetError: image and labels differ in shape.
        ImageError: channels or intensities do not fit the plan.

    Example:
        >>> from masam_auto.formats.io import read_case
        >>> from masam_auto.preprocessing.preprocess import preprocess_case
        >>> image, geometry = read_case(dataset.cases[0], dataset.description)
        >>> case = preprocess_case(image, geometry, None, configuration, identifier="case_000")
        >>> image.shape, case.image.shape  # (C, Z, Y, X); (C, slices, rows, columns), cropped and resampled
        ((1, 5, 16, 14), (1, 5, 14, 12))
    """
    if labels is not None:
        check_same_shape(image.shape[1:], labels.shape, what=f"{identifier}: image", other="labels")
    box, order = nonzero_box(image), configuration.axis_order
    turn = configuration.turn_of(geometry)
    seen = turn.then(order)
    if (
        turn != STAY
    ):  # copied into the memory order of a file stored this way: the order of a sum affects its last digit
        image = np.ascontiguousarray(turn.array(image))
    try:
        normalized = normalize(crop_to(image, turn.ranges(box, geometry.shape)), configuration.normalization)
    except MasamError as error:
        raise type(error)(f"{identifier}: {error}") from error
    normalized = normalized.transpose(0, *(axis + 1 for axis in order))
    spacing = seen.triple(geometry.spacing)
    shape = resampled_shape(normalized.shape[1:], spacing, configuration.spacing)
    check_memory(
        f"{identifier}: resampled from {spacing} to the plan's {configuration.spacing} mm, it",
        normalized.itemsize * len(normalized) * math.prod(shape),
    )
    properties = CaseProperties(
        identifier=identifier,
        geometry=geometry,
        crop=box,
        axis_order=seen.order,
        reversed_axes=seen.reversed_axes,
        spacing=configuration.spacing,
        resampled_shape=shape,
        files=tuple(files),
    )
    apart, between = configuration.separate_slices, configuration.order_slices
    resampled = resample_image(
        normalized, shape, order=configuration.order_image, separate_slices=apart, order_slices=between
    )
    if labels is not None:
        cropped = seen.array(crop_to(labels, box))
        labels = _smallest_type(
            resample_labels(
                cropped, shape, order=configuration.order_labels, separate_slices=apart, order_slices=between
            )
        )
    return PreprocessedCase(image=np.ascontiguousarray(resampled), labels=labels, properties=properties)


def _smallest_type(labels: np.ndarray) -> np.ndarray:
    """Labels as int8 if their values fit, else int16."""
    fits_a_byte = labels.max() <= np.iinfo(np.int8).max and labels.min() >= np.iinfo(np.int8).min
    return np.ascontiguousarray(labels, dtype=np.int8 if fits_a_byte else np.int16)


def preprocess_dataset(
    dataset: Dataset,
    plan: Plan,
    paths: Paths,
    *,
    configurations: Sequence[str] | None = None,
    workers: Workers | None = None,
) -> None:
    """Preprocess all training cases of a data set and write its folds.

    Each case is read once for all configurations. Cases that are done, and whose raw files have not changed since, are
    skipped. Arrays made with another plan or other labels are removed and made again.

    Args:
        dataset: the raw data set.
        plan: with the configurations.
        paths: where to write.
        configurations: names; by default all in the plan.
        workers: processes, 0 for this one, or a cluster; by default as many as cores and free memory allow.

    Raises:
        CaseErrors: cases that cannot be preprocessed, all in one message.
        OutputError: the folder is not writable, the disk is full, or another process is using the folder.
        DatasetError: a case whose name is too long.
        PlanError: unknown configuration or normalisation, folds that do not fit the data set, or arrays of a newer
            version of masam_auto.

    Example:
        >>> from masam_auto import preprocess
        >>> preprocess(dataset, plan, paths, configurations=["axis0"], workers=0)
        >>> arrays = paths.configuration_folder(dataset.name, "axis0")
        >>> sorted(path.name for path in arrays.glob("case_000*"))
        ['case_000.b2nd', 'case_000.json', 'case_000_locations.npz', 'case_000_seg.b2nd']
    """
    chosen = [plan.configuration(name) for name in configurations or plan.configurations]
    for scheme in {channel.scheme for configuration in chosen for channel in configuration.normalization}:
        find_normalizer(scheme)  # fails once here instead of for each case
    for case in dataset.cases:
        check_name_length(case.identifier)
    with contextlib.ExitStack() as claims:
        for configuration in chosen:
            claims.enter_context(claimed(paths.preprocessed / dataset.name, configuration.name))
        _preprocess_cases(dataset, chosen, paths, workers)


def _preprocess_cases(dataset: Dataset, chosen: Sequence[Configuration], paths: Paths, workers: Workers | None) -> None:
    """The cases that still have to be preprocessed for these configurations."""
    write_companions(dataset, paths.preprocessed / dataset.name, nnunet_preprocessed=paths.nnunet_preprocessed)
    folders = []
    for configuration in chosen:
        folder = paths.configuration_folder(dataset.name, configuration.name)
        _prepare_folder(folder, configuration, dataset.description.labels)
        folders.append((configuration, folder))
    pending = []
    for case in dataset.cases:
        if missing := tuple(pair for pair in folders if not _is_done(case, pair[1])):
            pending.append(_PendingCase(case=case, description=dataset.description, configurations=missing))
    if not pending:
        logger.info("preprocessing: nothing to do, all %d cases are done", len(dataset.cases))
        return
    if workers is None:
        sizes = [_estimate(case) for case in pending]
        quick = sum(voxels for voxels, _ in sizes) < FEW_VOXELS
        workers = choose_workers(len(pending), bytes_each=max(peak for _, peak in sizes), quick=quick)
    if any(configuration.axes is None for configuration in chosen) and not dataset.description.is_video:
        logger.info(
            "the plan is from an older release, which did not record where the images' axes point. Nothing is turned. "
            "If your images have mixed orientations, plan again with masam_plan_and_preprocess."
        )
    logger.info("preprocessing %d of %d cases, workers: %s", len(pending), len(dataset.cases), workers)
    names = [one.case.identifier for one in pending]
    places = [dataset.folder, *(folder for _, folder in folders)]
    map_cases(_preprocess_files, pending, names=names, what="preprocessing", workers=workers, folders=places)


def check_preprocessed(
    folder: Path, configuration: Configuration, cases: Collection[str] = (), *, labels: Labels | None = None
) -> None:
    """Check that a folder holds arrays of the given cases, made with this configuration.

    Args:
        folder: of the configuration.
        configuration: that the arrays should be made with.
        cases: that should be in the folder.
        labels: that the arrays should be made with; not checked if None.

    Raises:
        PlanError: there are no arrays, they were made with another plan or other labels, or cases are missing.
    """
    remedy = "Run masam_plan_and_preprocess, or masam_preprocess to keep the plan."
    if not (folder / RECORD_NAME).is_file():
        others = ", ".join(sorted(file.parent.name for file in folder.parent.glob(f"*/{RECORD_NAME}")))
        raise PlanError(
            f"no preprocessed data in {folder}. "
            f"{remedy}{f' There is data of {others} (choose with `configuration`).' if others else ''}"
        )
    record = read_json(folder / RECORD_NAME, PreprocessingRecord, what="preprocessing record")
    if record.digest != configuration.preprocessing_digest:
        raise PlanError(
            f"{folder} was preprocessed with another plan: spacing, axis order, normalisation or resampling differ "
            f"from the present configuration {configuration.name}. {remedy}"
        )
    if labels is not None and record.labels_digest != digest(labels):
        raise PlanError(f"{folder} was preprocessed with other labels than those in dataset.json. {remedy}")
    missing = [name for name in sorted(cases) if not all(file.is_file() for file in array_files(folder, name))]
    if missing:
        raise PlanError(
            f"{folder}: {len(missing)} of {len(cases)} cases are not preprocessed ({first_few(missing)}). {remedy}"
        )


def _prepare_folder(folder: Path, configuration: Configuration, labels: Labels) -> None:
    """Remove arrays made with other settings and the remains of a killed run; record the present settings."""
    wanted = PreprocessingRecord(
        configuration=configuration.name,
        digest=configuration.preprocessing_digest,
        labels_digest=digest(labels),
    )
    record = folder / RECORD_NAME
    same = record.is_file() and read_json(record, PreprocessingRecord, what="preprocessing record") == wanted
    if folder.is_dir():
        if not same and any(folder.glob("*.b2nd")):
            logger.info("%s: removed arrays that were made with another plan or other labels", folder)
        remove_abandoned(folder)
        # remove the record last: if this is interrupted, the old record still describes what is left
        stale = [path for path in folder.iterdir() if path.name != record.name and not same]
        try:
            for path in stale:
                if path.is_file():
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(
                f"cannot remove old files from {folder}: {error.strerror}. Check its permissions."
            ) from error
    if not same:
        write_json(record, wanted)


def _is_done(case: Case, folder: Path) -> bool:
    """Whether a case has all its files, made from its present raw files.

    Data from earlier versions do not record their raw files. They count as up to date if they are newer.
    """
    made, raw = array_files(folder, case.identifier), _raw_files(case)
    if not all(file.is_file() for file in made):
        return False
    noted = read_json(made.properties, CaseProperties, what="case properties").raw
    if noted:
        return are_unchanged(noted, raw)
    try:
        return min(file.stat().st_mtime_ns for file in made) >= max(file.stat().st_mtime_ns for file in raw)
    except FileNotFoundError:
        return False


def _raw_files(case: Case) -> list[Path]:
    """Image and label files of a case, in a fixed order."""
    return [file for frame in case.images for file in frame] + list(case.labels or ())


def _preprocess_files(pending: _PendingCase) -> None:
    case, description = pending.case, pending.description
    if case.labels is None:
        raise DatasetError(f"{case.identifier}: has no label file. Add it to labelsTr, or move its image to imagesTs.")
    noted = note_files(_raw_files(case))  # noted first, so that a change during reading is noticed next time
    image, geometry = read_case(case, description)
    labels, _ = turned_to_place(*read_case_labels(case, description), geometry)
    raw_files = [os.fspath(file) for frame in case.images for file in frame]
    for configuration, folder in pending.configurations:
        done = preprocess_case(image, geometry, labels, configuration, identifier=case.identifier, files=raw_files)
        assert done.labels is not None
        files = array_files(folder, case.identifier)
        write_array(files.image, done.image)
        write_array(files.labels, done.labels)
        write_locations(files.locations, find_locations(done.labels, description.labels, seed=LOCATIONS_SEED))
        write_json(files.properties, replace(done.properties, raw=noted))


def _estimate(pending: _PendingCase) -> tuple[float, float]:
    """Voxels that a case reads and writes, and the bytes it needs at most, from the image's header."""
    try:
        geometry = read_geometry(pending.case.images[0][0])
    except MasamError:
        return 0.0, 0.0  # the error is reported when the case is preprocessed
    raw = float(np.prod(geometry.shape)) * len(pending.case.images)
    resampled = []
    for configuration, _ in pending.configurations:
        resampled.append(raw * float(np.prod(geometry.spacing) / np.prod(configuration.spacing)))
    channels = pending.description.num_channels
    turned = any(configuration.turn_of(geometry) != STAY for configuration, _ in pending.configurations)
    # raw, turned, normalised and resampled image; one channel in float32 between two axes; labels, a score and its
    # maximum
    peak = raw * ((12 if turned else 8) * channels + 8) + max(resampled) * (4 * channels + 20)
    return raw * len(resampled) + sum(resampled), peak
