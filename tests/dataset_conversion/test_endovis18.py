"""EndoVis 2018: colours to classes, corrected masks, sequences, and what macOS leaves in the archives."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset_conversion import endovis18
from dataset_conversion.endovis18 import CLASSES, TEST, TRAINING, colours_to_labels, find_endovis18
from masam_auto.core.errors import CaseErrors, DatasetError
from masam_auto.formats.io import read_labels

FRAMES = 3
SIZE = (6, 8)  # rows, columns
RELEASES = {
    range(1, 5): "miccai_challenge_2018_release_1",
    range(5, 8): "miccai_challenge_release_2",
    range(9, 13): "miccai_challenge_release_3",
    range(13, 17): "miccai_challenge_release_4",
}


@pytest.fixture(autouse=True)
def short_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endovis18, "FRAMES", FRAMES)


def mask(*colours: tuple[int, ...], alpha: int | None = None) -> Image.Image:
    """Black, with one pixel of each colour in the first row, and the first colour along the second."""
    pixels = np.zeros((*SIZE, 3), np.uint8)
    for column, colour in enumerate(colours):
        pixels[0, column] = colour
    pixels[1] = colours[0]
    picture = Image.fromarray(pixels)
    if alpha is not None:
        picture.putalpha(alpha)
    return picture


def save(path: Path, picture: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


@pytest.fixture
def download(tmp_path: Path) -> Path:
    """Four releases as they unpack, nested twice and with shadows; the test set with its time-stamped folders."""
    root = tmp_path / "EndoVis"
    generator = np.random.default_rng(0)
    colours = list(CLASSES.values())
    folders = [root / name / name / f"seq_{number}" for numbers, name in RELEASES.items() for number in numbers] + [
        root / "test_data" / "test_data" / f"seq_{number}-20190101-001" / f"seq_{number}" for number in TEST
    ]
    for folder in folders:
        for frame in range(FRAMES):
            picture = Image.fromarray(generator.integers(0, 255, (*SIZE, 3)).astype(np.uint8))
            save(folder / "left_frames" / f"frame{frame:03d}.png", picture)
            save(folder / "labels" / f"frame{frame:03d}.png", mask(*colours[:6], alpha=128 if frame else None))
    shadow = root / RELEASES[range(1, 5)] / "__MACOSX" / "seq_1" / "left_frames" / "._frame000.png"
    shadow.parent.mkdir(parents=True)
    shadow.write_bytes(b"\0\5\x16\7")
    with zipfile.ZipFile(root / "repairs.zip", "w") as archive:
        for name in ("repairs/seq_1_frame001.png", "repairs/seq_4_frame099.png"):
            packed = io.BytesIO()
            mask(colours[10]).save(packed, format="PNG")
            archive.writestr(name, packed.getvalue())
        archive.writestr("__MACOSX/repairs/._seq_1_frame002.png", b"\0\5\x16\7")
    return root


def test_whole_download(download: Path, converted: Callable, verified: Callable) -> None:
    folder, record = converted(find_endovis18(download))
    dataset = verified(folder)
    assert len(dataset.cases) == len(TRAINING) == 15
    assert all(case.is_sequence and len(case.frames) == FRAMES for case in dataset.cases)
    assert dataset.description.channel_names == ("R", "G", "B")
    assert len(list((folder / "imagesTs").iterdir())) == len(list((folder / "labelsTs").iterdir())) == 4 * FRAMES
    description = json.loads((folder / "dataset.json").read_text())
    assert description["numTraining"] == 15 * FRAMES
    assert list(description["sequences"])[-1] == "test_04"
    for fold in json.loads((folder / "splits.json").read_text()):
        videos = [{name[:6] for name in fold[side]} for side in ("train", "val")]
        assert not videos[0] & videos[1]
        assert len(fold["test"]) == 4 * FRAMES
    labels, _ = read_labels(folder / "labelsTr" / "seq_05_frame002.png")
    assert labels[0, 0, :7].tolist() == [1, 2, 3, 4, 5, 6, 0]
    assert record.case_notes == []
    source = download / RELEASES[range(5, 8)] / RELEASES[range(5, 8)] / "seq_5" / "left_frames" / "frame002.png"
    assert (folder / "imagesTr" / "seq_05_frame002_0000.png").read_bytes() == source.read_bytes()


def test_corrected_masks_take_the_place_of_the_wrong_ones(download: Path, converted: Callable) -> None:
    folder, record = converted(find_endovis18(download))
    assert read_labels(folder / "labelsTr" / "seq_01_frame001.png")[0][0, 1].tolist() == [11] * SIZE[1]
    assert read_labels(folder / "labelsTr" / "seq_01_frame002.png")[0][0, 1].tolist() == [1] * SIZE[1]
    assert read_labels(folder / "labelsTs" / "test_01_frame001.png")[0][0, 1].tolist() == [1] * SIZE[1]
    assert record.notes[0] == "corrected masks used: 1"
    assert "seq_4_frame099.png: belongs to no frame" in record.notes[1]


def test_corrected_masks_in_a_folder(download: Path, converted: Callable) -> None:
    with zipfile.ZipFile(download / "repairs.zip") as archive:
        content = archive.read("repairs/seq_1_frame001.png")
    (download / "repairs.zip").unlink()
    (download / "repairs" / "repairs").mkdir(parents=True)
    (download / "repairs" / "repairs" / "seq_1_frame001.png").write_bytes(content)
    folder, _ = converted(find_endovis18(download))
    assert read_labels(folder / "labelsTr" / "seq_01_frame001.png")[0].max() == 11


def test_unknown_colours_are_told_with_file_and_count(download: Path, converted: Callable) -> None:
    path = download / RELEASES[range(5, 8)] / RELEASES[range(5, 8)] / "seq_6" / "labels" / "frame001.png"
    save(path, mask((1, 2, 3), (255, 0, 255), (0, 255, 0)))
    folder, record = converted(find_endovis18(download))
    assert record.case_notes == [
        "seq_06: frame001.png (seq_06_frame001): colour (1, 2, 3) is not in the table: 9 pixels became background",
        "seq_06: frame001.png (seq_06_frame001): colour (255, 0, 255) is not in the table: 1 pixels became background",
    ]
    assert read_labels(folder / "labelsTr" / "seq_06_frame001.png")[0].sum() == 1


def test_missing_frames_sequences_and_masks(download: Path, converted: Callable, verified: Callable) -> None:
    first = download / RELEASES[range(1, 5)] / RELEASES[range(1, 5)]
    (first / "seq_2" / "labels" / "frame001.png").unlink()
    (first / "seq_3" / "left_frames" / "frame001.png").unlink()
    (first / "seq_3" / "left_frames" / "frame002.png").unlink()
    (first / "seq_1" / "labels" / "frame001.png").unlink()  # there is a corrected one
    (download / "test_data" / "test_data" / "seq_1-20190101-001" / "seq_1" / "labels" / "frame000.png").unlink()
    for path in sorted((download / RELEASES[range(13, 17)]).rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (download / "miccai_challenge_release_4.zip").touch()
    with pytest.raises(DatasetError) as caught:
        converted(find_endovis18(download))
    text = str(caught.value)
    assert "seq_2/labels: frame001\n" in text
    assert "seq_3/left_frames: frame001-002\n" in text
    assert "training sequence seq_13" in text
    assert "miccai_challenge_release_4.zip" in text
    assert "seq_1-20190101-001/seq_1/labels: frame000\n" in text
    assert "release_1/seq_1/labels" not in text
    folder, _ = converted(find_endovis18(download), allow_missing=True)
    dataset = verified(folder)
    assert {case.identifier: len(case.frames) for case in dataset.cases}["seq_02"] == FRAMES - 1
    assert (folder / "imagesTs" / "test_01_frame000_0000.png").is_file()
    assert not (folder / "labelsTs" / "test_01_frame000.png").exists()


def test_gaps_in_test_sequences_are_told(download: Path, converted: Callable) -> None:
    """How many frames they have is not known, only that they are numbered one after the other."""
    test = download / "test_data" / "test_data"
    for kind in ("left_frames", "labels"):
        (test / "seq_2-20190101-001" / "seq_2" / kind / "frame001.png").unlink()
        for path in (test / "seq_3-20190101-001" / "seq_3" / kind).iterdir():
            path.unlink()
        (test / "seq_4-20190101-001" / "seq_4" / kind / "frame002.png").unlink()
    with pytest.raises(DatasetError) as caught:
        converted(find_endovis18(download))
    text = str(caught.value)
    assert "seq_2/left_frames: frame001\n" in text and "seq_2/labels: frame001\n" in text
    assert "seq_3/left_frames: frame000\n" in text
    assert "seq_4-" not in text


def test_absent_repairs_are_missed(download: Path, converted: Callable) -> None:
    (download / "repairs.zip").unlink()
    with pytest.raises(DatasetError, match=r"repairs\.zip, the organisers' corrected masks"):
        converted(find_endovis18(download))


def test_damaged_files_are_named(download: Path, converted: Callable) -> None:
    first = download / RELEASES[range(1, 5)] / RELEASES[range(1, 5)]
    save(first / "seq_1" / "labels" / "frame000.png", Image.new("L", SIZE[::-1]))
    save(first / "seq_2" / "labels" / "frame000.png", Image.new("RGB", (3, 3)))
    save(first / "seq_3" / "left_frames" / "frame000.png", Image.new("L", SIZE[::-1]))
    (first / "seq_4" / "labels" / "frame000.png").write_bytes(b"no picture")
    with pytest.raises(CaseErrors) as caught:
        converted(find_endovis18(download))
    for problem, words in zip(
        caught.value.problems,
        (
            "must be a colour mask, but has mode L",
            "the mask has 3 x 3 pixels, but its frame 6 x 8",
            "must be a colour picture",
            "cannot be read",
        ),
        strict=True,
    ):
        assert words in problem
        assert "frame000.png" in problem


def test_repairs_are_read_safely(download: Path, converted: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endovis18, "LARGEST_PNG", 10)
    with pytest.raises(CaseErrors, match=r"repairs/seq_1_frame001\.png is too large for a mask"):
        converted(find_endovis18(download))
    monkeypatch.setattr(endovis18, "LARGEST_PNG", 64e6)
    content = (download / "repairs.zip").read_bytes()
    start = content.index(b".png") + 4
    (download / "repairs.zip").write_bytes(content[:start] + b"\xff" * 8 + content[start + 8 :])
    with pytest.raises(CaseErrors, match=r"repairs/seq_1_frame001\.png cannot be read"):
        converted(find_endovis18(download))
    for change, error, words in (
        ({"compress_type": 9}, CaseErrors, r"seq_1_frame001\.png cannot be read \(That compression method"),
        ({"flag_bits": 1}, DatasetError, r"repairs\.zip: has a password\. Extract it into a folder `repairs`"),
    ):
        with zipfile.ZipFile(download / "repairs.zip", "w") as archive:
            archive.writestr("repairs/seq_1_frame001.png", content)
            for name, value in change.items():
                setattr(archive.infolist()[0], name, value)
        with pytest.raises(error, match=words):
            converted(find_endovis18(download))
    (download / "repairs.zip").write_bytes(b"PK no archive")
    with pytest.raises(DatasetError, match=r"repairs\.zip: cannot be read"):
        find_endovis18(download)


def test_sequences_must_be_there_once(download: Path) -> None:
    (download / "copy" / "seq_7" / "left_frames").mkdir(parents=True)
    with pytest.raises(DatasetError, match="are the same sequence"):
        find_endovis18(download)
    with pytest.raises(DatasetError, match="holds no folders like seq_1/left_frames"):
        find_endovis18(download / "copy" / "seq_7" / "left_frames")


def test_every_colour_has_its_class_and_no_other_has_one() -> None:
    table = {colour: value for value, colour in enumerate(CLASSES.values(), start=1)}
    generator = np.random.default_rng(3)
    wanted = generator.integers(0, len(table) + 1, (40, 30))
    colours = np.array([(0, 0, 0), *table], np.uint8)
    labels, unknown = colours_to_labels(colours[wanted], table)
    assert np.array_equal(labels, wanted)
    assert unknown == {}
    noise = generator.integers(1, 255, (40, 30, 3)).astype(np.uint8)
    labels, unknown = colours_to_labels(noise, table)
    assert labels.sum() == 0 and sum(unknown.values()) == 1200
