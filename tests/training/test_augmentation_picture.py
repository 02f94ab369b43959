"""augmentation.png: drawn for every kind of data, and never in a training's way."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from masam_auto.core.labels import parse_labels
from masam_auto.core.plan import AugmentationPlan
from masam_auto.formats.storage import write_array
from masam_auto.imaging.picture import WindowPanel
from masam_auto.training import augmentation_picture as module
from masam_auto.training.augmentation_picture import draw_augmented_windows, names_of_values
from masam_auto.training.box_augmentation import BoxDraws
from masam_auto.training.sampling import CaseStore, Sampling, find_case_files, find_holders, make_window
from tests import tiny_training as tiny

BOXES = BoxDraws(dropout=0.0, relaxation=(0.0, 0.1), jitter=0.0, ignore=None)


def sampling_of(folder: Path, *, channels: int = 1, boxes: BoxDraws | None = None, **changes: Any) -> Sampling:
    configuration = tiny.make_configuration(**changes)
    paths = tiny.write_preprocessed(folder, configuration)
    arrays = paths.configuration_folder(tiny.DATASET, configuration.name)
    cases = find_case_files(arrays, ["a", "b", "c"])
    for case in cases:
        generator = np.random.default_rng(0)
        write_array(case.image, generator.normal(size=(channels, *case.shape)).astype(np.float32))
    return Sampling(
        cases=cases,
        holders=find_holders(cases),
        configuration=configuration,
        foreground_fraction=0.5,
        augmentation=AugmentationPlan(),
        seed=1,
        boxes=boxes,
    )


def capture(monkeypatch: pytest.MonkeyPatch) -> list[WindowPanel]:
    seen: list[WindowPanel] = []
    monkeypatch.setattr(module, "draw_windows", lambda path, panels, **more: seen.extend(panels))
    return seen


def draw(folder: Path, sampling: Sampling) -> None:
    draw_augmented_windows(folder, sampling, parse_labels(tiny.LABELS, None), title="Toy")


@pytest.mark.parametrize(("channels", "window"), [(1, 3), (2, 1), (4, 3)])
def test_it_is_drawn_for_any_number_of_channels_and_slices(tmp_path: Path, channels: int, window: int) -> None:
    draw(tmp_path, sampling_of(tmp_path / "data", channels=channels, window=window, boxes=BOXES))
    content = (tmp_path / "augmentation.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) < 2_000_000


def test_it_shows_the_middle_slices_of_the_windows_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = sampling_of(tmp_path / "data", channels=3)
    panels = capture(monkeypatch)
    draw(tmp_path, sampling)
    store = CaseStore(cases=sampling.cases, memory=0)
    assert len(panels) == module.WINDOWS
    for number, panel in enumerate(panels):
        image, labels = make_window(store, sampling, 0, number)
        assert np.array_equal(np.moveaxis(panel.image, -1, 0), image[1].numpy())
        assert np.array_equal(panel.labels, labels[1].numpy())
        assert panel.box is None


def test_boxes_are_shown_where_there_are_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    panels = capture(monkeypatch)
    draw(tmp_path, sampling_of(tmp_path / "data", boxes=BOXES))
    assert any(panel.box is not None for panel in panels)
    draw(tmp_path, sampling_of(tmp_path / "data", boxes=replace(BOXES, dropout=1.0)))
    assert all(panel.box is None for panel in panels[module.WINDOWS :])


def test_what_cannot_be_drawn_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*arguments: Any, **more: Any) -> None:
        raise RuntimeError("no fonts\nat all")

    monkeypatch.setattr(module, "draw_windows", broken)
    draw(tmp_path, sampling_of(tmp_path / "data"))
    assert "could not be drawn (no fonts)" in caplog.text


def test_values_of_regions_are_named_by_all_that_hold_them() -> None:
    labels = parse_labels({"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}, [1, 2])
    assert names_of_values(labels) == {1: "whole", 2: "whole + core", 3: "ignore"}
    assert names_of_values(parse_labels({"background": 0, "b": 2, "a": 1}, None)) == {1: "a", 2: "b"}
