"""Slice axes and the resampling of slices, each on a fingerprint made to trigger the rule."""

import pytest

from masam_auto.planning.slice_axes import choose_separate_slices, choose_slice_axes
from tests import fingerprints


@pytest.mark.parametrize(
    ("spacing", "shape", "axes"),
    [
        ((3.0, 1.0, 1.0), (40, 256, 256), (0,)),
        ((1.0, 3.0, 1.0), (256, 40, 256), (1,)),
        ((1.0, 1.0, 1.2), (99, 99, 99), (2,)),
        ((1.0, 1.0, 1.0), (36, 50, 35), (2, 0, 1)),
        ((1.0, 1.0, 1.19), (50, 36, 70), (1, 0, 2)),
    ],
)
def test_slice_axis_is_the_coarse_one_else_all_with_the_shortest_first(spacing, shape, axes):
    chosen = choose_slice_axes(fingerprints.make_fingerprint(spacing=spacing, shape=shape))
    assert chosen.axes == axes and not chosen.single


def test_video_runs_along_time_whatever_the_spacing():
    video = fingerprints.make_fingerprint(is_video=True, spacing=(1.0, 5.0, 1.0), shape=(30, 480, 854))
    assert choose_slice_axes(video).axes == (0,)
    assert choose_separate_slices(video, choose_slice_axes(video), (1.0, 5.0, 1.0), 0)[0]


def test_pictures_and_volumes_of_one_slice_are_single():
    picture = choose_slice_axes(fingerprints.make_fingerprint(shape=(1, 300, 400), spacing=(1.0,) * 3, dimensions=2))
    assert picture.single and picture.axes == (0,)
    sagittal = choose_slice_axes(fingerprints.make_fingerprint(shape=(300, 400, 1), spacing=(1.0, 1.0, 5.0)))
    assert sagittal.single and sagittal.axes == (2,)


@pytest.mark.parametrize(("distance", "separate"), [(3.0, False), (3.1, True)])
def test_slices_are_resampled_apart_above_an_anisotropy_of_three(distance, separate):
    fingerprint = fingerprints.make_fingerprint(spacing=(distance, 1.0, 1.0))
    chosen = choose_separate_slices(fingerprint, choose_slice_axes(fingerprint), (distance, 1.0, 1.0), 0)
    assert chosen[0] is separate and f"{distance:.2f}" in chosen[1]
