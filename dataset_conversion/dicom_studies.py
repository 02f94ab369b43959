"""The series and annotations that a folder of DICOM studies holds, and which belong together."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dataset_conversion.dicom_annotations import Annotation, is_annotation, normal_name, read_annotation
from dataset_conversion.download import archives_hint, check_download
from masam_auto.core.errors import DatasetError, ImageError
from masam_auto.core.jsonio import read_plain
from masam_auto.formats.dicom_series import Series, find_dicom_files, find_series, name_series


@dataclass(frozen=True, kw_only=True, slots=True)
class Studies:
    """What a folder holds, by the series' keys.

    `series` are those that may be taken, `drawn` what is drawn on them, newest first. `names` are for files; `patients`
    are only compared, never written. `missing` lists annotations that cannot be used.
    """

    series: tuple[Series, ...]
    names: dict[str, str]
    patients: dict[str, str]
    drawn: dict[str, list[Annotation]]
    missing: tuple[str, ...]
    notes: tuple[str, ...]


def look_through(download: Path, modality: str | None, description: str | None) -> Studies:
    """Find series and what is drawn on them.

    Args:
        download: the folder.
        modality: take only series of this one.
        description: take only series whose description holds this text.

    Raises:
        DatasetError: nothing is drawn, or on series of several modalities; pydicom is not installed.
    """
    check_download(download)
    annotations, images, broken = _sort_files(find_dicom_files(download))
    every, left_out = find_series(images)
    wanted = {one.key for one in every if _is_wanted(one, modality, description)}
    drawn, missing, passed = _belong_together(annotations, every, wanted)
    missing = [*broken, *missing]
    if not drawn:
        listed = f" Not usable: {'; '.join(missing)}." if missing else ""
        raise DatasetError(
            f"{download}: holds no DICOM series with an RTSTRUCT or SEG object that refers to it.{listed}"
            f"{archives_hint(download)}"
        )
    kinds = Counter(one.modality for one in every if one.key in drawn)
    if len(kinds) > 1:
        listed = ", ".join(f"{kind} ({count} series)" for kind, count in sorted(kinds.items()))
        raise DatasetError(f"{download}: ROIs are drawn on {listed}. Choose one with --modality.")
    return Studies(
        series=tuple(one for one in every if one.key in wanted and one.modality in kinds),
        names={one.key: name for name, one in name_series(every, download).items()},
        patients={one.key: one.patient or one.study or one.key for one in every},
        drawn=drawn,
        missing=tuple(missing),
        notes=(*passed, *left_out),
    )


def _is_wanted(series: Series, modality: str | None, description: str | None) -> bool:
    of_modality = modality is None or series.modality.upper() == modality.upper()
    return of_modality and normal_name(description or "") in normal_name(series.description)


def _belong_together(
    annotations: Iterable[Annotation], every: Sequence[Series], wanted: set[str]
) -> tuple[dict[str, list[Annotation]], list[str], list[str]]:
    """Annotations by the series that they refer to, newest first; those without one; what was passed over.

    One that names no series belongs to that of its images; one that names none of these, to the series in its frame of
    reference. Both are of one patient and, where several fit, of one study: UIDs alone are not unique after careless
    anonymisation.
    """
    drawn: dict[str, list[Annotation]] = {}
    missing, passed = [], []
    for annotation in sorted(annotations, key=lambda one: (one.made, str(one.file)), reverse=True):
        of_patient = [one for one in every if annotation.patient in ("", one.patient)]
        fitting = [one for one in of_patient if one.uid in annotation.series or one.images & annotation.images]
        if not annotation.series and not annotation.images:
            fitting = [one for one in of_patient if one.frame in annotation.frames]
        fitting = [one for one in fitting if one.study == annotation.study] or fitting
        taken = [one for one in fitting if one.key in wanted]
        if not annotation.rois:
            passed.append(f"{annotation.file}: left out, as nothing is drawn in it")
        elif len(taken) == 1:
            drawn.setdefault(taken[0].key, []).append(annotation)
        elif taken:
            listed = "; ".join(map(str, taken))
            missing.append(
                f"{annotation.file}: refers to several series ({listed}). Choose with --modality or "
                "--series_description"
            )
        elif fitting:
            passed.append(f"{annotation.file}: left out with its series, which was not asked for")
        else:
            missing.append(f"{annotation.file}: the series that this {annotation.modality} refers to")
    return drawn, missing, passed


def _sort_files(files: Iterable[Path]) -> tuple[list[Annotation], list[Path], list[str]]:
    """Annotations, all other files, and annotations that cannot be read."""
    annotations, others, broken = [], [], []
    for file in files:
        try:
            if not is_annotation(file):
                others.append(file)
                continue
        except ImageError:  # `find_series` knows what it spoils
            others.append(file)
            continue
        try:
            annotations.append(read_annotation(file))
        except ImageError as error:
            broken.append(str(error))
    return annotations, others, broken


def read_map(path: Path | None) -> dict[str, str]:
    """Names as `normal_name` gives them, and what they become. Raises DatasetError."""
    if path is None:
        return {}
    raw = read_plain(path, what="map of ROI names")
    if not isinstance(raw, dict) or not all(isinstance(new, str) for new in raw.values()):
        raise DatasetError(f'{path}: must map names to names, e.g. {{"Liver_1": "liver"}}')
    return {normal_name(old): normal_name(new) for old, new in raw.items()}


def count_rois(studies: Studies, renamed: Mapping[str, str]) -> dict[str, dict[str, set[str]]]:
    """For each ROI's name in the data set the names as written, each with the series that have it."""
    counted: dict[str, dict[str, set[str]]] = {}
    for uid, annotations in studies.drawn.items():
        for annotation in annotations:
            for _, written in annotation.rois:
                counted.setdefault(name_in_data_set(written, renamed), {}).setdefault(written.strip(), set()).add(uid)
    return counted


def name_in_data_set(written: str, renamed: Mapping[str, str]) -> str:
    name = normal_name(written)
    return renamed.get(name, name)


def tell_rois(studies: Studies, counted: Mapping[str, Mapping[str, set[str]]]) -> dict[str, str]:
    """A line for each ROI, the most frequent first."""
    having = {roi: len(set().union(*written.values())) for roi, written in counted.items()}
    return {
        roi: f"{roi or '(without a name)'}: in {having[roi]} of {len(studies.drawn)} series, written "
        + ", ".join(sorted(written))
        for roi, written in sorted(counted.items(), key=lambda item: (-having[item[0]], item[0]))
    }
