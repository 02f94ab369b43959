"""DICOM studies with RTSTRUCT or SEG objects: each annotated series becomes a training case.

A study without annotation gives one test case: its series with the most files. Each ROI comes from the newest
annotation that has it. Case names come from folder names, and no patient tags are written.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataset_conversion.conversion import Conversion, SourceCase, SourceImage, Target
from dataset_conversion.dicom_annotations import Annotation, draw_rois, normal_name
from dataset_conversion.dicom_studies import Studies, count_rois, look_through, name_in_data_set, read_map, tell_rois
from masam_auto.core.errors import DatasetError
from masam_auto.core.geometry import Geometry
from masam_auto.formats.dicom import read_series
from masam_auto.formats.io import write_labels
from masam_auto.formats.volumes import write_nifti

NUMBER = 50
ENDING = ".nii.gz"
RESERVED = ("", "background", "ignore")
"""Names that mean something else in dataset.json."""

Drawn = tuple[tuple[Annotation, dict[str, tuple[int, ...]]], ...]
"""Annotations, each with the ROIs to take from it (name -> numbers)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawnSeries(SourceImage):
    """A series with its annotations. `image` is its folder."""

    files: tuple[Path, ...]
    drawn: Drawn

    @property
    def sources(self) -> tuple[Path, ...]:
        """All source files of the series."""
        return (*self.files, *(annotation.file for annotation, _ in self.drawn))


def find_dicom(
    download: Path,
    *,
    name: str = "DICOM",
    rois: Sequence[str] = (),
    roi_map: Path | None = None,
    modality: str | None = None,
    series_description: str | None = None,
) -> tuple[Conversion, ...]:
    """Look through a folder of studies.

    Args:
        download: the folder. Files are recognised by their content; names and subfolders do not matter.
        name: name of the data set.
        rois: ROIs to use, in the order of their label values; all by default. Case does not matter.
        roi_map: a JSON file {"name in DICOM": "name in the data set"}.
        modality: use only series of this modality.
        series_description: use only series whose description contains this text.

    Raises:
        DatasetError: no annotation, unknown ROIs, several modalities, or pydicom is not installed.
    """
    if not re.fullmatch(r"[\w-]+", name):
        raise DatasetError(f'--name: "{name}" cannot be part of a folder\'s name. Use letters, digits, "_" and "-".')
    studies = look_through(download, modality, series_description)
    renamed = read_map(roi_map)
    counted = count_rois(studies, renamed)
    chosen = list(dict.fromkeys(map(normal_name, rois))) or sorted(roi for roi in counted if roi not in RESERVED)
    if unknown := [roi for roi in chosen if roi not in counted or roi in RESERVED]:
        raise DatasetError(
            f"{download}: no ROI is called {', '.join(unknown)}. There are: {', '.join(sorted(counted)) or 'none'}."
        )
    labels = {"background": 0} | {roi: value for value, roi in enumerate(chosen, start=1)}
    cases, left = _make_cases(studies, chosen, renamed)
    kinds = sorted({one.modality for one in studies.series if studies.drawn.get(one.key)})
    patients, about_patients = _number_patients(cases, studies)
    return (
        Conversion(
            number=NUMBER,
            name=name,
            download=download,
            settings={
                "data_set": "dicom",
                "labels": labels,
                "roi_map": renamed,
                "modality": modality,
                "series_description": series_description,
            },
            about={"description": "DICOM series with RTSTRUCT or SEG objects, converted by masam_convert_dataset"},
            channel_names=(kinds[0],),
            channel_files=1,
            labels=labels,
            file_ending=ENDING,
            cases=cases,
            write=functools.partial(write_series, labels=labels),
            missing=studies.missing,
            notes=(
                *(
                    f"ROI {text}{'' if labels.get(roi) else ': left out'}"
                    for roi, text in tell_rois(studies, counted).items()
                ),
                *about_patients,
                *left,
                *studies.notes,
            ),
            patients=patients,
        ),
    )


def list_rois(
    download: Path,
    *,
    roi_map: Path | None = None,
    modality: str | None = None,
    series_description: str | None = None,
) -> tuple[str, ...]:
    """One line per ROI with its number of series, most frequent first. Arguments as for `find_dicom`."""
    studies = look_through(download, modality, series_description)
    return tuple(tell_rois(studies, count_rois(studies, read_map(roi_map))).values())


def write_series(source: SourceImage, target: Target, *, labels: Mapping[str, int]) -> tuple[str, ...]:
    """Write a series and its ROIs on the series' grid. Where ROIs overlap, the higher value wins.

    Args:
        source: a `DrawnSeries`.
        target: where it goes.
        labels: values of the ROIs by name.

    Returns:
        The decisions made.

    Raises:
        ImageError: the series is incomplete, or an annotation does not fit it.
        OutputError: the folder is not writable or the disk is full.
    """
    assert isinstance(source, DrawnSeries)
    grid = _write_image(source.files, target.images[0])
    if not source.drawn:
        return ()
    values, notes = _draw_all(source, labels, grid)
    write_labels(target.label, values, grid)
    return notes


def _draw_all(source: DrawnSeries, labels: Mapping[str, int], grid: Geometry) -> tuple[np.ndarray, tuple[str, ...]]:
    """Label values (Z, Y, X), and the decisions made."""
    masks: dict[str, np.ndarray] = {}
    notes = []
    for annotation, rois in source.drawn:
        for roi, mask, said in draw_rois(annotation, rois, grid):
            masks[roi] = np.packbits(mask)  # all ROIs of a large CT must fit in memory at once
            notes += [f"{roi}: {text}" for text in said]
    result = np.zeros(grid.shape, np.int16)
    for roi, value in labels.items():
        if value == 0:
            continue
        if roi not in masks:
            notes.append(f"{roi}: not drawn")
            continue
        mask = np.unpackbits(masks[roi], count=result.size).reshape(result.shape).astype(bool)
        if not mask.any():
            notes.append(f"{roi}: drawn, but contains no voxel")
        if overlap := np.count_nonzero(result[mask]):
            notes.append(f"{roi}: overwrites {overlap} voxels of earlier ROIs")
        result[mask] = value
    return result, tuple(notes)


def _write_image(files: Sequence[Path], path: Path) -> Geometry:
    """Write a series as int16 if that holds every value (true for most scanners), else as float32."""
    raw = read_series(files)
    array = raw.array[0]
    with np.errstate(invalid="ignore"):  # values that int16 cannot hold
        whole = array.astype(np.int16)
    write_nifti(path, whole if np.array_equal(whole, array) else array, raw.geometry)
    return raw.geometry


def _make_cases(
    studies: Studies, chosen: Sequence[str], renamed: Mapping[str, str]
) -> tuple[tuple[SourceCase, ...], tuple[str, ...]]:
    """Training cases, then one test case per study without a wanted ROI; and notes on what was left out."""
    taken: dict[str, Drawn] = {}
    notes = []
    for one in studies.series:
        taken[one.key], said = _newest(studies.drawn.get(one.key, []), chosen, renamed)
        notes += said
    training = [one for one in studies.series if taken[one.key]]
    done = {one.study_key for one in training}
    test = []
    for one in sorted(studies.series, key=lambda one: (-len(one.files), one.number or 0, studies.names[one.key])):
        if (one.study_key) not in done:
            done.add(one.study_key)
            test.append(one)
            if one.key in studies.drawn:
                notes.append(f"{studies.names[one.key]}: a test case, because it has none of the ROIs")
        elif not taken[one.key]:
            notes.append(f"left out, because another series of its study is used: {one}")
    cases = []
    for one in (*training, *test):
        drawn, name = taken[one.key], studies.names[one.key]
        image = DrawnSeries(
            identifier=name,
            image=one.folder,
            label=drawn[0][0].file if drawn else None,
            files=one.files,
            drawn=drawn,
        )
        cases.append(SourceCase(identifier=name, images=(image,), test=not drawn))
    return tuple(cases), tuple(notes)


def _newest(
    annotations: Sequence[Annotation], chosen: Sequence[str], renamed: Mapping[str, str]
) -> tuple[Drawn, list[str]]:
    """The ROIs to take from each annotation, newest first, and notes on ROIs that older ones repeat."""
    taken, notes = [], []
    waiting = set(chosen)
    for annotation in annotations:
        there: dict[str, tuple[int, ...]] = {}
        for number, written in annotation.rois:
            if (roi := name_in_data_set(written, renamed)) in chosen:
                there[roi] = (*there.get(roi, ()), number)
        if fresh := {roi: numbers for roi, numbers in there.items() if roi in waiting}:
            taken.append((annotation, fresh))
            waiting -= set(fresh)
        if older := sorted(set(there) - set(fresh)):
            notes.append(f"{annotation.file}: {', '.join(older)} left out; a newer annotation of the series has it")
    return tuple(taken), notes


def _number_patients(cases: Sequence[SourceCase], studies: Studies) -> tuple[dict[str, str], tuple[str, ...]]:
    """The patient of each training case as an anonymous number, and notes for the report.

    There are no numbers if every patient has one case, or if all cases share one PatientID.
    """
    keys = {name: key for key, name in studies.names.items()}
    training = sorted(case.identifier for case in cases if not case.test)
    patients = dict.fromkeys(studies.patients[keys[name]] for name in training)
    if len(patients) == len(training):
        return {}, ()
    if len(patients) == 1:
        return {}, ("all cases have the same PatientID, so folds may split patients",)
    numbers = {patient: f"patient_{number:03d}" for number, patient in enumerate(patients, start=1)}
    told = f"{len(training)} cases of {len(patients)} patients; folds keep a patient's cases together"
    return {name: numbers[studies.patients[keys[name]]] for name in training}, (told,)
