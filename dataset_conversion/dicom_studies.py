"""Find the series and annotations in a folder of DICOM studies, and match them."""

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
    """The content of a folder, by the series' keys.

    `series` are those that may be used. `drawn` are their annotations, newest first. `names` are for files. `patients`
    are only compared, never written. `missing` lists annotations that cannot be used.
    """

    series: tuple[Series, ...]
    names: dict[str, str]
    patients: dict[str, str]
    drawn: dict[str, list[Annotation]]
    missing: tuple[str, ...]
    notes: tuple[str, ...]


def look_through(download: Path, modality: str | None, description: str | None) -> Studies:
    """Find series and their annotations.

    Args:
        download: the folder.
        modality: use only series of this modality.
        description: use only series whose description contains this text.

    Raises:
        DatasetError: no annotation, annotated series of several modalities, or pydicom is not installed.
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
    """Annotations by series, newest first; unusable annotations; and notes on what was left out.

    An annotation that names no series belongs to the series of its images. If it names no images either, it belongs to
    the series in its frame of reference. Patients must match, and studies too if several series fit: UIDs alone are not
    unique after careless anonymisation.
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
            passed.append(f"{annotation.file}: left out, because nothing is drawn in it")
        elif len(taken) == 1:
            drawn.setdefault(taken[0].key, []).append(annotation)
        elif taken:
            listed = "; ".join(map(str, taken))
            missing.append(
                f"{annotation.file}: refers to several series ({listed}). Choose with --modality or "
                "--series_description"
            )
        elif fitting:
            passed.append(f"{annotation.file}: left out, because its series was not asked for")
        else:
            missing.append(f"{annotation.file}: the series that this {annotation.modality} refers to")
    return drawn, missing, passed


def _sort_files(files: Iterable[Path]) -> tuple[list[Annotation], list[Path], list[str]]:
    """Sort files into annotations, other files, and problems of unreadable annotations."""
    annotations, others, broken = [], [], []
    for file in files:
        try:
            if not is_annotation(file):
                others.append(file)
                continue
        except ImageError:  # `find_series` reports it
            others.append(file)
            continue
        try:
            annotations.append(read_annotation(file))
        except ImageError as error:
            broken.append(str(error))
    return annotations, others, broken


def read_map(path: Path | None) -> dict[str, str]:
    """Old names -> new names, both as from `normal_name`. Raises DatasetError."""
    if path is None:
        return {}
    raw = read_plain(path, what="map of ROI names")
    if not isinstance(raw, dict) or not all(isinstance(new, str) for new in raw.values()):
        raise DatasetError(f'{path}: must map names to names, e.g. {{"Liver_1": "liver"}}')
    return {normal_name(old): normal_name(new) for old, new in raw.items()}


def count_rois(studies: Studies, renamed: Mapping[str, str]) -> dict[str, dict[str, set[str]]]:
    """ROI name in the data set -> name as written -> series that have it."""
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
    """One line per ROI, most frequent first."""
    having = {roi: len(set().union(*written.values())) for roi, written in counted.items()}
    return {
        roi: f"{roi or '(without a name)'}: in {having[roi]} of {len(studies.drawn)} series, written "
        + ", ".join(sorted(written))
        for roi, written in sorted(counted.items(), key=lambda item: (-having[item[0]], item[0]))
    }
