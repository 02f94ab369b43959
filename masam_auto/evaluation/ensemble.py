"""Average the saved probabilities of several models into one segmentation, a few rows at a time."""

import contextlib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from masam_auto.compute.parallel import choose_workers, map_cases
from masam_auto.core.dataset import DatasetDescription, read_description
from masam_auto.core.errors import DatasetError, ImageError, MasamError, ModelError, OutputError, first_few
from masam_auto.core.geometry import Box, Geometry
from masam_auto.core.jsonio import read_plain, write_json
from masam_auto.core.labels import Labels
from masam_auto.core.turning import STAY
from masam_auto.evaluation.validation_mirroring import RECORD_NAME, read_record
from masam_auto.formats.io import label_ending, write_labels
from masam_auto.formats.probability_files import (
    ENDING,
    Probabilities,
    new_probabilities,
    open_probabilities,
    values_bytes,
)
from masam_auto.imaging.crop import crop_to
from masam_auto.imaging.resample import BLOCK_BYTES
from masam_auto.prediction.output_folder import check_output, refuse_to_overwrite
from masam_auto.prediction.predict_folder import Outcome
from masam_auto.prediction.restore import decide_labels, output_names

logger = logging.getLogger(__name__)

CASES_LOOKED_AT = 10
FEW_BYTES = 5e8  # one process averages this many in about the time that workers take to start


@dataclass(frozen=True, kw_only=True, slots=True)
class _AveragedCase:
    """One case: its probabilities in every folder, and where the result goes."""

    identifier: str
    files: tuple[Path, ...]
    folder: Path
    description: DatasetDescription
    save_probabilities: bool


def average_files(files: Sequence[Path], labels: Labels, *, saved: Path | None = None) -> tuple[np.ndarray, Geometry]:
    """Segment one image by the mean of the probabilities in several files.

    Args:
        files: .npz files of one image. Files with other voxel axes are turned to those of the first.
        labels: what the outputs mean: the most probable class, or regions above 1/2 in `regions_class_order`.
        saved: also write the mean probabilities to this .npz file.

    Returns:
        (Z, Y, X) label values on the image's original grid, and the grid.

    Raises:
        ImageError: a file is missing or damaged, or belongs to another image or other classes.
        OutputError: no space.

    Example:
        >>> from masam_auto.evaluation.ensemble import average_files
        >>> files = [Path("predictions/case_000.npz"), Path("predictions_2/case_000.npz")]
        >>> labels, geometry = average_files(files, dataset.description.labels)
        >>> labels.shape == geometry.shape, labels.shape  # (Z, Y, X)
        (True, (5, 16, 14))
    """
    with contextlib.ExitStack() as stack:
        members = _turned_alike([stack.enter_context(open_probabilities(file)) for file in files])
        _check_members(files, members, labels)
        box = _common_box(members)
        result = np.zeros(members[0].geometry.shape, dtype=np.uint8 if max(labels.declared) <= 255 else np.int16)
        target = crop_to(result, box)
        kept = None
        if saved is not None:
            kept = stack.enter_context(
                new_probabilities(
                    saved,
                    crop=box,
                    geometry=members[0].geometry,
                    outputs=members[0].outputs,
                    has_regions=labels.has_regions,
                )
            )
        for z, rows, mean in _mean_slabs(members, box):
            target[z, rows] = decide_labels(mean, labels, are_logits=False).numpy()
            if kept is not None:
                kept[:, z, rows] = mean.numpy()
        return result, members[0].geometry


def ensemble_folders(
    sources: Sequence[Path],
    folder: Path,
    *,
    save_probabilities: bool = False,
    overwrite: bool = False,
    workers: int | None = None,
) -> Outcome:
    """Segment every case by the mean of the probabilities in several folders. Failures are reported at the end.

    Args:
        sources: folders with ID.npz of the same cases and dataset.json, or `validation` folders of folds.
        folder: where the segmentations go. It also gets dataset.json.
        save_probabilities: also write ID.npz.
        overwrite: replace existing files.
        workers: processes; 0 works in this one, None lets cores and memory decide.

    Raises:
        DatasetError: a folder is missing or has no probabilities, or the folders hold different cases.
        ModelError: the models of the folders have different labels.
        OutputError: files exist and `overwrite` is not given, the folder is one of the sources, or it cannot be
            written.

    Example:
        >>> from masam_auto.evaluation.ensemble import ensemble_folders
        >>> outcome = ensemble_folders([Path("predictions"), Path("predictions_2")], Path("ensemble"), workers=0)
        >>> outcome.predicted, outcome.problems
        (('case_000', 'case_001', 'case_002'), ())
    """
    identifiers = _common_cases(sources)
    description = _common_description(sources)
    if {True, False} <= {read_record(source).get("mirror") for source in sources}:
        logger.warning(
            "Some folders hold predictions with flips, others without (%s). Unless you want this, validate all with "
            "flips: masam_train ... "
            "`validate save_probabilities mirror`", RECORD_NAME,
        )  # fmt: skip
    for source in sources:
        check_output(source, folder)
    if not overwrite:
        more = [f"{name}{ENDING}" for name in identifiers if save_probabilities]
        present = folder / "dataset.json"
        more += [present.name] if present.is_file() and read_plain(present, what="data set") != description.raw else []
        refuse_to_overwrite(folder, [*_label_files(folder, identifiers, description), *more])
    files = {name: tuple(source / f"{name}{ENDING}" for source in sources) for name in identifiers}
    problems = average_cases(files, folder, description, save_probabilities=save_probabilities, workers=workers)
    done = tuple(name for name in identifiers if name not in problems)
    for name in done if overwrite and not save_probabilities else ():
        (folder / f"{name}{ENDING}").unlink(missing_ok=True)  # belongs to the replaced segmentation
    if done:
        write_json(folder / "dataset.json", description.raw)
    return Outcome(predicted=done, skipped=(), problems=tuple(problems.values()))


def average_cases(
    files: Mapping[str, tuple[Path, ...]],
    folder: Path,
    description: DatasetDescription,
    *,
    save_probabilities: bool = False,
    workers: int | None = None,
) -> dict[str, str]:
    """Segment cases by the mean of the probabilities in their files, and write the results.

    Args:
        files: identifier -> .npz files of the case.
        folder: where the segmentations go.
        description: names, labels and file ending.
        save_probabilities: also write ID.npz.
        workers: processes; 0 works in this one, None lets cores and memory decide.

    Returns:
        Identifier -> problem, for each case that could not be averaged.

    Raises:
        OutputError: the results cannot be written.
    """
    cases = [
        _AveragedCase(
            identifier=identifier,
            files=parts,
            folder=folder,
            description=description,
            save_probabilities=save_probabilities,
        )
        for identifier, parts in files.items()
    ]
    if workers is None:
        workers = _choose_workers(list(files.values()))
    results = map_cases(_ensemble_case, cases, names=list(files), what="averaging", workers=workers)
    return {name: problem for name, problem in zip(files, results, strict=True) if problem is not None}


def write_case_labels(
    folder: Path, identifier: str, labels: np.ndarray, geometry: Geometry, description: DatasetDescription, source: Path
) -> None:
    """Write (Z, Y, X) labels as ID.ext, or a video as one file per frame.

    Frames of a video outside the data set are numbered: ID_0000.ext, ID_0001.ext, ... `source` is a folder with
    segmentations of the same images. For NIfTI, the new files copy how those store their position.
    """
    ending = label_ending(description.file_ending)
    depth = geometry.shape[0]
    if identifier not in description.sequences and (depth == 1 or not description.is_video):
        write_labels(folder / f"{identifier}{ending}", labels, geometry, like=source / f"{identifier}{ending}")
        return
    numbered = tuple(f"{identifier}_{number:04d}" for number in range(depth))
    frame_geometry = replace(geometry, shape=(1, *geometry.shape[1:]), dimensions=2)
    for number, frame in enumerate(description.sequences.get(identifier, numbered)):
        write_labels(folder / f"{frame}{ending}", labels[number : number + 1], frame_geometry)


def _label_files(folder: Path, identifiers: Sequence[str], description: DatasetDescription) -> list[str]:
    """Names of files that `write_case_labels` may write. Of numbered frames: those already in the folder."""
    ending = label_ending(description.file_ending)
    frames = [frame for name in identifiers for frame in description.sequences.get(name, (name,))]
    there = sorted(folder.iterdir()) if description.is_video and folder.is_dir() else []
    numbered, known = re.compile(rf"(.+)_\d{{4,}}{re.escape(ending)}"), set(identifiers)
    matches = [match for path in there if (match := numbered.fullmatch(path.name))]
    return [*(f"{frame}{ending}" for frame in frames), *(match[0] for match in matches if match[1] in known)]


def _ensemble_case(case: _AveragedCase) -> str | None:
    """Average and write one case. Returns its problem, or None."""
    saved = case.folder / f"{case.identifier}{ENDING}" if case.save_probabilities else None
    try:
        labels, geometry = average_files(case.files, case.description.labels, saved=saved)
        source = case.files[0].parent
        write_case_labels(case.folder, case.identifier, labels, geometry, case.description, source)
    except OutputError:
        raise  # the next case could not be written either
    except MasamError as error:
        return str(error)
    return None


def _choose_workers(files: Sequence[tuple[Path, ...]]) -> int:
    """Number of worker processes, from the sizes of a few cases."""
    sizes = []
    for parts in files[:: max(1, len(files) // CASES_LOOKED_AT)]:
        with contextlib.suppress(ImageError):  # reported when its turn comes
            sizes.append(sum(map(values_bytes, parts)))
    quick = not sizes or sum(sizes) / len(sizes) * len(files) < FEW_BYTES
    return choose_workers(len(files), bytes_each=max(sizes, default=0), quick=quick)


def _mean_slabs(members: Sequence[Probabilities], box: Box) -> Iterator[tuple[int, slice, torch.Tensor]]:
    """Mean probabilities of a few rows of a slice at a time.

    Args:
        members: probabilities of one image.
        box: the part of the image to average; it contains all members' crops.

    Yields:
        Slice number and rows within the box, and (K, rows, X) float32.
    """
    depth, height, width = (high - low for low, high in box)
    outputs = len(members[0].outputs)
    step = max(1, BLOCK_BYTES // (4 * outputs * width))
    for z in range(depth):
        for start in range(0, height, step):
            rows = slice(start, min(start + step, height))
            total = torch.zeros(outputs, rows.stop - rows.start, width)
            for member in members:
                _add_rows(total, member, box, z, rows)
            yield z, rows, total.div_(len(members))


def _add_rows(total: torch.Tensor, member: Probabilities, box: Box, z: int, rows: slice) -> None:
    """Add a member's probabilities of some rows of the box's slice `z`. Outside its crop there is only background."""
    z_low, z_high, y_low, y_high, x_low, x_high = (
        edge - low for (low, _), side in zip(box, member.crop, strict=True) for edge in side
    )
    first, last = max(rows.start, y_low), min(rows.stop, y_high)
    inside = total[:, first - rows.start : max(first, last) - rows.start, x_low:x_high]
    if not member.has_regions:
        total[0] += 1
    if z_low <= z < z_high and first < last:
        if not member.has_regions:
            inside[0] -= 1
        # copies turned values: torch takes no arrays with negative strides
        inside += torch.from_numpy(np.ascontiguousarray(member.values[:, z - z_low, first - y_low : last - y_low]))


def _turned_alike(members: Sequence[Probabilities]) -> list[Probabilities]:
    """All members turned to the voxel axes of the first one's image. Their values are views."""
    turns = [member.geometry.turn_to(members[0].geometry.axes) for member in members]
    return [
        replace(
            member,
            values=turn.array(member.values),
            crop=turn.ranges(member.crop, member.geometry.shape),
            geometry=member.geometry.turned(turn),
        )
        if turn != STAY
        else member
        for member, turn in zip(members, turns, strict=True)
    ]


def _common_box(members: Sequence[Probabilities]) -> Box:
    """The smallest box that contains all members' crops."""
    z, y, x = (
        (min(low for low, _ in sides), max(high for _, high in sides))
        for sides in zip(*(member.crop for member in members), strict=True)
    )
    return z, y, x


def _check_members(files: Sequence[Path], members: Sequence[Probabilities], labels: Labels) -> None:
    """Raise ImageError if probabilities are of other classes than the labels, or of different images."""
    expected = output_names(labels)
    for file, member in zip(files, members, strict=True):
        if member.outputs != expected or member.has_regions != labels.has_regions:
            raise ImageError(
                f"{file}: holds probabilities of {', '.join(member.outputs)}, but dataset.json has "
                f"{', '.join(expected)}. Write it again with the current model."
            )
        if difference := members[0].geometry.difference(member.geometry):
            raise ImageError(
                f"{file}: lies on another grid than {files[0]}: {difference}. Both must be predictions of one image."
            )


def _common_cases(sources: Sequence[Path]) -> list[str]:
    """Identifiers of the cases in the folders. Raises DatasetError if the folders hold different cases."""
    found = []
    for source in sources:
        if not source.is_dir():
            raise DatasetError(f"folder not found: {source}")
        there = sorted(path.name for path in source.glob(f"*{ENDING}") if not path.name.startswith("."))
        found.append({name.removesuffix(ENDING) for name in there})
        if not found[-1]:
            raise DatasetError(
                f"{source}: no probabilities (ID{ENDING}). Write them with `masam_predict ... save_probabilities`, or "
                "for a validation folder `masam_train ... validate save_probabilities`"
            )
    everywhere = set.union(*found)
    lacking = [(source, sorted(everywhere - there)) for source, there in zip(sources, found, strict=True)]
    if problems := [f"{source} lacks {first_few(missing)}" for source, missing in lacking if missing]:
        raise DatasetError(
            f"the folders do not hold the same cases: {'; '.join(problems)}. Predict them with `save_probabilities`, "
            f"or move their {ENDING} files out of the other folders."
        )
    return sorted(everywhere)


def _common_description(sources: Sequence[Path]) -> DatasetDescription:
    """The folders' dataset.json. Raises DatasetError if one has none, ModelError if labels differ."""
    descriptions = []
    for source in sources:
        whole = source.absolute()
        places = [whole, *([whole.parents[1]] if whole.name == "validation" else [])]
        file = next((place / "dataset.json" for place in places if (place / "dataset.json").is_file()), None)
        if file is None:
            raise DatasetError(f"{source} has no dataset.json. Copy the model's file there; it names the outputs.")
        descriptions.append(read_description(file, name=file.parent.name))
        if descriptions[-1].labels != descriptions[0].labels:
            raise ModelError(f"{sources[0]} and {source} cannot be averaged: their models have different labels.")
    return descriptions[0]
