"""EndoVis 2018: videos of robotic surgery with instruments and organs ("Robotic Scene Segmentation" challenge)."""

import functools
import re
import shutil
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dataset_conversion.conversion import Conversion, SourceCase, SourceImage, Target
from dataset_conversion.download import archives_hint, check_download, find_archives, folders_in, named_files
from masam_auto.core.atomic import atomic_path
from masam_auto.core.errors import DatasetError, ImageError
from masam_auto.formats.bitmaps import bitmap_geometry
from masam_auto.formats.io import read_image, write_labels

TRAINING = (*range(1, 8), *range(9, 17))
"""There is no seq_8."""

TEST = (1, 2, 3, 4)
FRAMES = 149
"""Frames of each training sequence. Source: arXiv 2001.11190.

No source that we have gives the number for the test sequences. Users of the data count 997, 999 or 1000 in all.
"""

CLASSES = {
    "instrument_shaft": (0, 255, 0),
    "instrument_clasper": (0, 255, 255),
    "instrument_wrist": (125, 255, 12),
    "kidney_parenchyma": (255, 55, 0),
    "covered_kidney": (24, 55, 125),
    "thread": (187, 155, 25),
    "clamps": (0, 255, 125),
    "suturing_needle": (255, 255, 125),
    "suction_instrument": (123, 15, 175),
    "small_intestine": (124, 155, 5),
    "ultrasound_probe": (12, 255, 141),
}
"""Colours of the classes, in the order of their values from 1 on. Source: labels.json of the download."""

ABOUT = {
    "description": "Porcine nephrectomy with da Vinci instruments: left camera, 1280 x 1024",
    "licence": "terms of the challenge (registration)",
    "source": "https://endovissub2018-roboticscenesegmentation.grand-challenge.org/",
    "citation": "Allan et al., 2018 Robotic Scene Segmentation Challenge, arXiv 2001.11190, 2020",
}
LARGEST_PNG = 64e6
ENCRYPTED = 1  # in the flags of a member of a zip archive
Repairs = dict[tuple[int, str], tuple[Path, str]]


def find_endovis18(download: Path) -> tuple[Conversion, ...]:
    """Look through the download: `seq_N/left_frames/frameNNN.png`, `seq_N/labels/frameNNN.png` in any folders.

    Sequences in a folder with "test" in its path are the released test set. The organisers' corrected masks, from
    `repairs.zip` or a folder `repairs`, replace those of the training sequences.

    Raises:
        DatasetError: there are no sequences, one exists twice, or repairs.zip cannot be read.
    """
    sequences = _find_sequences(download)
    repairs = _find_repairs(download)
    missing = [] if repairs else [f"{download}: repairs.zip, the organisers' corrected masks of seq_1 and seq_4"]
    cases = []
    for test, number in [(False, n) for n in TRAINING] + [(True, n) for n in TEST]:
        if (test, number) not in sequences:
            missing.append(f"{download}: {'test' if test else 'training'} sequence seq_{number}")
            continue
        case, lacking = _read_sequence(sequences[test, number], number, {} if test else repairs, test=test)
        missing += lacking
        if case.images:
            cases.append(case)
    used = {(image.label, image.label_member) for case in cases for image in case.images}
    notes = [f"corrected masks used: {sum(mask in used for mask in repairs.values())}"]
    notes += [
        f"{path} {member}: belongs to no frame, left out"
        for path, member in repairs.values()
        if (path, member) not in used
    ]
    return (
        Conversion(
            number=30,
            name="EndoVis18",
            download=download,
            settings={"data_set": "endovis18"},
            about=ABOUT,
            channel_names=("R", "G", "B"),
            channel_files=1,
            labels={"background": 0} | {name: value for value, name in enumerate(CLASSES, start=1)},
            file_ending=".png",
            cases=tuple(cases),
            write=functools.partial(
                write_frame, colours={colour: value for value, colour in enumerate(CLASSES.values(), start=1)}
            ),
            missing=tuple(missing),
            notes=tuple(notes),
        ),
    )


def write_frame(source: SourceImage, target: Target, *, colours: Mapping[tuple[int, int, int], int]) -> tuple[str, ...]:
    """Copy a frame and write its mask's colours as label values. Unknown colours become background and are reported.

    Raises:
        ImageError: a file cannot be read or is not in colour, or frame and mask differ in size.
        OutputError: the folder is not writable or the disk is full.
    """
    picture, grid = read_image(source.image)
    if picture.shape[0] != 3:
        raise ImageError(f"{source.image}: must be a colour picture, but has {picture.shape[0]} channels")
    with atomic_path(target.images[0]) as temporary:
        shutil.copyfile(source.image, temporary)
    if source.label is None:
        return ()
    mask = _read_mask(source.label, source.label_member)
    if mask.shape[:2] != grid.shape[1:]:
        raise ImageError(
            f"{source.label}: the mask has {mask.shape[0]} x {mask.shape[1]} pixels, but its frame {grid.shape[1]} x "
            f"{grid.shape[2]} ({source.image.name}). Replace one of them."
        )
    labels, unknown = colours_to_labels(mask, colours)
    write_labels(target.label, labels[None], bitmap_geometry(*labels.shape))
    return tuple(
        f"{source.label_member or source.label.name} ({source.identifier}): colour {colour} is not in the table: "
        f"{count} pixels became background"
        for colour, count in unknown.items()
    )


def colours_to_labels(
    mask: np.ndarray, colours: Mapping[tuple[int, int, int], int]
) -> tuple[np.ndarray, dict[tuple[int, int, int], int]]:
    """Label values of a colour mask.

    Args:
        mask: uint8 (Y, X, 3).
        colours: value of each colour; black is 0.

    Returns:
        uint8 (Y, X), and the number of pixels of each unknown colour.
    """
    codes = mask.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    labels = np.zeros(codes.shape, np.uint8)
    left = codes != 0
    for (red, green, blue), value in colours.items():
        here = codes == (red << 16 | green << 8 | blue)
        labels[here] = value
        left &= ~here
    unknown, counts = np.unique(codes[left], return_counts=True)
    return labels, {
        (int(code) >> 16, int(code) >> 8 & 255, int(code) & 255): int(count)
        for code, count in zip(unknown, counts, strict=True)
    }


def _find_sequences(download: Path) -> dict[tuple[bool, int], Path]:
    """Folders of sequences by (test, number)."""
    check_download(download)
    found: dict[tuple[bool, int], Path] = {}
    for folder in folders_in(download):
        match = re.fullmatch(r"seq_(\d+)", folder.name)
        if match is None or not (folder / "left_frames").is_dir():
            continue
        key = any("test" in part.lower() for part in folder.relative_to(download).parts), int(match[1])
        if key in found:
            raise DatasetError(f"{folder} and {found[key]} are the same sequence. Remove one of them.")
        found[key] = folder
    if not found:
        raise DatasetError(f"{download}: holds no folders like seq_1/left_frames.{archives_hint(download)}")
    return found


def _read_sequence(folder: Path, number: int, repairs: Repairs, *, test: bool) -> tuple[SourceCase, list[str]]:
    """The usable frames of a sequence, and what is missing.

    Training frames need a mask, test frames do not. Frames should be numbered without gaps.
    """
    frames = named_files(folder / "left_frames", r"(frame\d{3})\.png")
    masks = named_files(folder / "labels", r"(frame\d{3})\.png")
    labels = {frame: (path, "") for frame, path in masks.items()}
    labels |= {frame: mask for (sequence, frame), mask in repairs.items() if sequence == number and frame in frames}
    numbers = [*(int(frame[-3:]) for frame in (*frames, *labels)), *(() if test else (0, FRAMES - 1))] or [0]
    expected = [f"frame{n:03d}" for n in range(min(numbers), max(numbers) + 1)]
    name = f"{'test' if test else 'seq'}_{number:02d}"
    images = []
    for frame in expected:
        label, member = labels.get(frame, (None, ""))
        if frame in frames and (test or label is not None):
            images.append(
                SourceImage(identifier=f"{name}_{frame}", image=frames[frame], label=label, label_member=member)
            )
    missing = []
    for kind, files in (("left_frames", frames), ("labels", labels)):
        if lacking := [frame for frame in expected if frame not in files]:
            missing.append(f"{folder / kind}: {_runs(lacking)}")
    return SourceCase(identifier=name, images=tuple(images), test=test), missing


def _runs(frames: Sequence[str]) -> str:
    """Frame names in order, with consecutive ones shortened to first-last."""
    runs: list[list[str]] = []
    for frame in frames:
        if runs and int(frame[-3:]) == int(runs[-1][-1][-3:]) + 1:
            runs[-1].append(frame)
        else:
            runs.append([frame])
    return ", ".join(run[0] if len(run) == 1 else f"{run[0]}-{run[-1][-3:]}" for run in runs)


def _find_repairs(download: Path) -> Repairs:
    """Corrected masks of training frames by (sequence, frame): a file, or an archive and a name in it."""
    found: Repairs = {}
    for archive in find_archives(download):
        if archive.name.lower() == "repairs.zip":
            try:
                with zipfile.ZipFile(archive) as opened:
                    members = opened.infolist()
            except (zipfile.BadZipFile, OSError) as error:
                raise DatasetError(f"{archive}: cannot be read ({error}). Download it again.") from error
            if any(member.flag_bits & ENCRYPTED for member in members):
                raise DatasetError(f"{archive}: has a password. Extract it into a folder `repairs` next to it.")
            names = (member.filename for member in members)
            found |= {key: (archive, name) for name in names if (key := _repaired_frame(name))}
    for folder in folders_in(download):
        if any(part.lower() == "repairs" for part in folder.relative_to(download).parts):
            for path in sorted(folder.glob("*.png")):
                if key := _repaired_frame(path.relative_to(download).as_posix()):
                    found[key] = (path, "")
    return found


def _repaired_frame(name: str) -> tuple[int, str] | None:
    """Sequence and frame of a corrected mask: `seq_1_frame042.png` or `seq_1/labels/frame042.png`."""
    match = re.search(r"(?:^|/)seq_(\d+)(?:_|/labels/)(frame\d{3})\.png$", name)
    return None if match is None or "__MACOSX" in name else (int(match[1]), match[2])


def _read_mask(path: Path, member: str) -> np.ndarray:
    """Mask as uint8 (Y, X, 3) without transparency. Archives are read without extracting files."""
    try:
        if not member:
            with Image.open(path) as picture:
                return _colours(picture, path)
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo(member).file_size > LARGEST_PNG:
                raise ImageError(f"{path}: {member} is too large for a mask")
            with archive.open(member) as file, Image.open(file) as picture:
                return _colours(picture, path)
    except (OSError, SyntaxError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise ImageError(f"{path}: {member} cannot be read ({error}). Download it again.") from error


def _colours(picture: Image.Image, path: Path) -> np.ndarray:
    if picture.mode not in ("RGB", "RGBA", "P"):
        raise ImageError(f"{path}: must be a colour mask, but has mode {picture.mode}")
    return np.asarray(picture.convert("RGB"))
