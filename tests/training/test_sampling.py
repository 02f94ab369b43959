"""Which windows are drawn, and what is read for them."""

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from masam_auto.core.errors import ImageError
from masam_auto.core.windows import SliceWindow
from masam_auto.formats.storage import open_array
from masam_auto.imaging.canvas import canvas_map
from masam_auto.training.box_augmentation import BoxDraws
from masam_auto.training.sampling import (
    CaseStore,
    Sampling,
    draw_window,
    find_case_files,
    find_holders,
    make_boxes,
    make_window,
    window_generator,
)
from tests import tiny_training as tiny


def make_sampling(folder: Path, *, size: tuple[int, int] = (12, 11), **changes: object) -> Sampling:
    configuration = changes.pop("configuration", None) or tiny.make_configuration()
    paths = tiny.write_preprocessed(folder, configuration, size=size)
    cases = find_case_files(paths.configuration_folder(tiny.DATASET, configuration.name), ["a", "b", "c"])
    sampling = Sampling(
        cases=cases,
        holders=find_holders(cases),
        configuration=configuration,
        foreground_fraction=0.5,
        augmentation=tiny.make_plan().training.augmentation,
        seed=3,
    )
    return dataclasses.replace(sampling, **changes)


def test_a_window_depends_on_its_numbers_alone(tmp_path: Path) -> None:
    sampling = make_sampling(tmp_path)
    store = CaseStore(cases=sampling.cases, memory=1e9)
    fresh = CaseStore(cases=sampling.cases, memory=0)
    for number in (5, 0, 7):  # order and caching do not matter
        first, second = make_window(store, sampling, 2, number), make_window(fresh, sampling, 2, number)
        assert torch.equal(first[0], second[0])
        assert torch.equal(first[1], second[1])
    assert first[0].shape == (3, 1, 16, 16)
    assert first[1].shape == (3, 16, 16)


def test_no_window_is_drawn_twice(tmp_path: Path) -> None:
    sampling = make_sampling(tmp_path)
    store = CaseStore(cases=sampling.cases, memory=1e9)
    seen = set()
    for seed in (3, 4):
        variant = dataclasses.replace(sampling, seed=seed)
        for epoch in range(3):
            for number in range(10):
                seen.add(make_window(store, variant, epoch, number)[0].numpy().tobytes())
    assert len(seen) == 2 * 3 * 10


def test_foreground_windows_hold_their_class_and_rare_cases_are_found(tmp_path: Path) -> None:
    sampling = make_sampling(tmp_path, size=(60, 50), foreground_fraction=1.0, augmentation=None)
    store = CaseStore(cases=sampling.cases, memory=1e9)
    only_first = dataclasses.replace(sampling, holders={"lesion": (1,)})
    for number in range(20):
        assert draw_window(only_first, store.locations, window_generator(sampling, 0, number)).case == 1
        _, labels = make_window(store, only_first, 0, number)
        assert (labels == 2).any()


def test_random_windows_reach_every_slice_and_stay_near_the_volume(tmp_path: Path) -> None:
    configuration = tiny.make_configuration(window=5)
    sampling = make_sampling(tmp_path, configuration=configuration, foreground_fraction=0.0)
    store = CaseStore(cases=sampling.cases, memory=1e9)
    draws = [draw_window(sampling, store.locations, window_generator(sampling, 0, n)) for n in range(200)]
    starts = [draw.start for draw in draws if draw.case == 0]  # 7 slices
    assert min(starts) == -1
    assert max(starts) == 3
    assert {draw.case for draw in draws} == {0, 1, 2}
    assert {draw.tile for draw in draws} == {canvas_map((12, 11), (16, 16), 1.0).start}


@pytest.mark.parametrize("window", [7, 9, 15])
def test_a_window_longer_than_the_volume_holds_all_of_it(tmp_path: Path, window: int) -> None:
    configuration = tiny.make_configuration(window=window)
    sampling = make_sampling(tmp_path, configuration=configuration)
    store = CaseStore(cases=sampling.cases, memory=1e9)
    for number in range(30):
        draw = draw_window(sampling, store.locations, window_generator(sampling, 0, number))
        depth = sampling.cases[draw.case].shape[0]
        if window >= depth:
            indices = SliceWindow(start=draw.start, length=window).indices(depth)
            assert set(indices) == set(range(depth))


def test_reading_repeats_the_nearest_slice_beyond_the_volume(tmp_path: Path) -> None:
    sampling = make_sampling(tmp_path)
    whole = open_array(sampling.cases[0].image)[:]
    for memory in (0, 1e9):
        store = CaseStore(cases=sampling.cases, memory=memory)
        image, labels = store.read(0, SliceWindow(start=-1, length=3))
        assert image.shape == (3, 1, 12, 11)
        assert labels.shape == (3, 12, 11)
        np.testing.assert_array_equal(image[:, 0], whole[0, [0, 0, 1]])


def test_without_foreground_every_draw_is_random(tmp_path: Path) -> None:
    sampling = make_sampling(tmp_path, holders={}, foreground_fraction=1.0)
    store = CaseStore(cases=sampling.cases, memory=0)
    assert draw_window(sampling, store.locations, np.random.default_rng(0)).case in (0, 1, 2)


def test_a_store_travels_without_its_arrays(tmp_path: Path) -> None:
    sampling = make_sampling(tmp_path)
    store = CaseStore(cases=sampling.cases, memory=1e9)
    empty = len(pickle.dumps(store))
    make_window(store, sampling, 0, 0)
    assert store._held > 0
    assert len(pickle.dumps(store)) == empty


def test_a_missing_file_and_a_failing_case_are_named(tmp_path: Path) -> None:
    sampling = make_sampling(tmp_path)
    with pytest.raises(ImageError, match="absent_seg"):
        find_case_files(sampling.cases[0].image.parent, ["absent"])
    for case in sampling.cases:
        case.image.unlink()
    with pytest.raises(ImageError) as caught:
        make_window(CaseStore(cases=sampling.cases, memory=0), sampling, 0, 0)
    assert "in case" in caught.value.__notes__[0]


BOXES = BoxDraws(dropout=0.5, relaxation=(0.0, 0.5), jitter=0.1, ignore=None)


def test_windows_are_the_same_with_and_without_boxes(tmp_path: Path) -> None:
    sampling = make_sampling(tmp_path)
    boxed = dataclasses.replace(sampling, boxes=BOXES)
    store = CaseStore(cases=sampling.cases, memory=1e9)
    for number in range(4):
        for plain, other in zip(
            make_window(store, sampling, 1, number), make_window(store, boxed, 1, number), strict=True
        ):
            assert torch.equal(plain, other)


def test_boxes_depend_on_the_windows_numbers_and_lie_on_their_foreground(tmp_path: Path) -> None:
    sampling = make_sampling(tmp_path, foreground_fraction=1.0, boxes=BOXES)
    store = CaseStore(cases=sampling.cases, memory=1e9)
    seen, dropped = set(), 0
    for epoch in range(3):
        for number in range(20):
            _, labels = make_window(store, sampling, epoch, number)
            boxes = make_boxes(labels, sampling, epoch, number)
            np.testing.assert_array_equal(boxes, make_boxes(labels, sampling, epoch, number))
            assert boxes.shape == (3, 4)
            assert boxes.dtype == np.float32
            if np.isnan(boxes).any():
                assert np.isnan(boxes).all()
                dropped += 1
                continue
            assert (boxes == boxes[0]).all(), "one box for all slices of a window"
            rows, columns = np.nonzero((labels > 0).any(0).numpy())
            x0, y0, x1, y1 = boxes[0]
            assert x0 < columns.mean() + 0.5 < x1 and y0 < rows.mean() + 0.5 < y1
            seen.add(boxes[0].tobytes())
    assert len(seen) + dropped == 60, "no box is drawn twice"
    assert 15 < dropped < 45
