"""Overlay pictures: they show what matters, and appear whole."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from masam_auto.core.errors import OutputError
from masam_auto.imaging.picture import WindowPanel, choose_slices, draw_overlay, draw_overlays, draw_windows

PNG = b"\x89PNG\r\n\x1a\n"


def volume() -> np.ndarray:
    labels = np.zeros((8, 10, 12), dtype=np.uint8)
    labels[1:7, 2:8, 2:9] = 1
    labels[4, 3:5, 3:5] = 2
    return labels


def test_slice_of_the_rare_class_is_shown() -> None:
    assert choose_slices(volume(), 1) == (4,)


@pytest.mark.parametrize("count", [2, 3, 6, 20])
def test_slices_are_ascending_distinct_and_hold_foreground(count: int) -> None:
    slices = choose_slices(volume(), count)
    assert list(slices) == sorted(set(slices))
    assert len(slices) == min(count, 6)
    assert all(volume()[number].any() for number in slices)


def test_without_foreground_the_middle_is_shown() -> None:
    assert choose_slices(np.zeros((7, 4, 4), dtype=int), 3) == (3,)


@pytest.mark.parametrize("empty", [False, True])
def test_picture_is_written_small_and_the_inputs_stay(tmp_path: Path, empty: bool) -> None:
    labels = np.zeros_like(volume()) if empty else volume()
    image = np.random.default_rng(0).normal(size=labels.shape).astype(np.float32)
    before = image.copy()
    draw_overlay(tmp_path / "a" / "b.png", image, labels, labels[::-1], names={1: "liver", 2: "lesion"}, title="case")
    content = (tmp_path / "a" / "b.png").read_bytes()
    assert content.startswith(PNG)
    assert len(content) < 200_000
    assert np.array_equal(image, before)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.png"]


def test_prediction_changes_the_picture(tmp_path: Path) -> None:
    image = np.zeros(volume().shape, dtype=np.float32)
    for name, prediction in (("same", volume()), ("other", np.zeros_like(volume()))):
        draw_overlay(tmp_path / f"{name}.png", image, volume(), prediction, names={1: "liver", 2: "lesion"})
    assert (tmp_path / "same.png").read_bytes() != (tmp_path / "other.png").read_bytes()


def test_each_segmentation_has_a_row(tmp_path: Path) -> None:
    image = np.zeros(volume().shape, dtype=np.float32)
    heights = []
    for count in (2, 4):
        rows = {f"method {number} of a long name": volume() for number in range(count)}
        draw_overlays(tmp_path / "rows.png", image, rows, names={1: "liver", 2: "lesion"}, columns=2)
        with Image.open(tmp_path / "rows.png") as picture:
            heights.append(picture.height)
    assert heights[1] - heights[0] == pytest.approx(2 * (heights[0] - 0.8 * 80) / 2, abs=2)


def test_unwritable_place_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        draw_overlay(tmp_path / "file" / "x.png", np.zeros((8, 10, 12)), volume(), volume(), names={1: "a", 2: "b"})


@pytest.mark.parametrize("size", [(16, 16), (1200, 40), (40, 1200)])
@pytest.mark.parametrize("count", [1, 5, 12])
def test_windows_are_drawn_within_bounds_whatever_their_form(tmp_path: Path, size: tuple[int, int], count: int) -> None:
    labels = np.zeros(size, dtype=np.int16)
    labels[4:8, 4:8] = 1
    flat = WindowPanel(title="flat", image=np.zeros(size, np.float32), labels=labels, box=(2.0, 3.0, 9.0, 10.0))
    draw_windows(tmp_path / "windows.png", [flat] * count, names={1: "organ", 9: "ignore"}, title="Toy")
    content = (tmp_path / "windows.png").read_bytes()
    assert content.startswith(PNG)
    width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
    assert max(width, height) <= 1700
