"""Rules about slice axis, spacing, resampling, canvas and window, each on a fingerprint made to trigger it."""

import dataclasses

import numpy as np
import pytest

from masam_auto.core.encoders import PLANNED_ENCODERS
from masam_auto.core.errors import PlanError
from masam_auto.planning.geometry import (
    PIXELS_ACROSS,
    choose_canvas,
    choose_separate_slices,
    choose_slice_axes,
    choose_spacing,
    choose_window,
    median_shape,
    smallest_diameter,
)
from tests import fingerprints

AXIAL = (0, 1, 2)
VIT_B, VIT_T = PLANNED_ENCODERS["vit_b"], PLANNED_ENCODERS["vit_t"]


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


def test_target_spacing_is_the_median():
    spacings = [(3.0, 1.0, 1.0), (4.0, 0.8, 0.8), (5.0, 0.7, 0.7)]
    fingerprint = fingerprints.make_fingerprint(count=3, spacings=spacings, shape=(200, 256, 256))
    assert choose_spacing(fingerprint, None)[0] == (4.0, 0.8, 0.8)


def test_coarse_axis_with_few_voxels_gets_the_tenth_percentile():
    spacings = [(float(z), 1.0, 1.0) for z in np.linspace(2, 10, 11)]
    fingerprint = fingerprints.make_fingerprint(count=11, spacings=spacings, shape=(20, 256, 256))
    target, reason = choose_spacing(fingerprint, None)
    assert target == pytest.approx((2.8, 1.0, 1.0)) and "2.8 mm" in reason and "median 6 mm" in reason


def test_tenth_percentile_never_gets_finer_than_in_plane():
    spacings = [(0.5, 1.0, 1.0)] * 3 + [(6.0, 1.0, 1.0)] * 7
    target, _ = choose_spacing(fingerprints.make_fingerprint(spacings=spacings, shape=(20, 256, 256)), None)
    assert target == pytest.approx((1.0, 1.0, 1.0), abs=1e-4) and target[0] > 1


def test_target_spacing_by_hand_wins_and_nonsense_is_refused():
    fingerprint = fingerprints.make_fingerprint()
    assert choose_spacing(fingerprint, (2.0, 2.0, 2.0)) == ((2.0, 2.0, 2.0), "set by hand")
    for wrong in ((1.0, 1.0), (1.0, 0.0, 1.0), (1.0, float("nan"), 1.0)):
        with pytest.raises(PlanError, match="three positive numbers"):
            choose_spacing(fingerprint, wrong)


@pytest.mark.parametrize(("distance", "separate"), [(3.0, False), (3.1, True)])
def test_slices_are_resampled_apart_above_an_anisotropy_of_three(distance, separate):
    fingerprint = fingerprints.make_fingerprint(spacing=(distance, 1.0, 1.0))
    chosen = choose_separate_slices(fingerprint, choose_slice_axes(fingerprint), (distance, 1.0, 1.0), 0)
    assert chosen[0] is separate and f"{distance:.2f}" in chosen[1]


def test_median_shape_is_at_the_target_spacing_in_permuted_order():
    fingerprint = fingerprints.make_fingerprint(shape=(10, 20, 30), spacing=(1.0, 2.0, 1.0))
    assert median_shape(fingerprint, (1.0, 1.0, 1.0), (1, 0, 2)) == (40, 10, 30)


@pytest.mark.parametrize(
    ("distance", "window"), [(3.0, 5), (3.27, 5), (5.0, 3), (10.0, 3), (2.0, 7), (1.0, 9), (0.5, 9)]
)
def test_window_is_odd_and_nearest_to_fifteen_millimetres(distance, window):
    fingerprint = fingerprints.make_fingerprint()
    chosen, reason = choose_window(fingerprint, distance=distance, depth=100, encoder=VIT_B)
    assert chosen == window and f"{distance:.3g} mm" in reason


def test_small_encoder_affords_longer_windows():
    assert choose_window(fingerprints.make_fingerprint(), distance=1.0, depth=100, encoder=VIT_T)[0] == 15


def test_window_of_video_and_of_shallow_volumes():
    video = fingerprints.make_fingerprint(is_video=True)
    assert choose_window(video, distance=1.0, depth=100, encoder=VIT_B)[0] == 5
    volume = fingerprints.make_fingerprint()
    assert choose_window(volume, distance=1.0, depth=5, encoder=VIT_B)[0] == 5
    assert choose_window(volume, distance=1.0, depth=4, encoder=VIT_B)[0] == 5
    assert choose_window(volume, distance=1.0, depth=2, encoder=VIT_B)[0] == 3


def canvas_of(shape, encoder, *, diameter=100.0):
    fingerprint = fingerprints.make_fingerprint(shape=(40, *shape), diameter=diameter)
    return choose_canvas(fingerprint, (3.0, 1.0, 1.0), AXIAL, encoder)


@pytest.mark.parametrize("encoder", PLANNED_ENCODERS.values(), ids=PLANNED_ENCODERS)
@pytest.mark.parametrize("shape", [(20, 30), (35, 50), (100, 130), (224, 224), (300, 200), (512, 512), (600, 900)])
@pytest.mark.parametrize("diameter", [2.0, 10.0, 200.0])
def test_canvas_invariants(encoder, shape, diameter):
    choice = canvas_of(shape, encoder, diameter=diameter)
    assert all(side % encoder.token == 0 and 16 <= side <= encoder.budget for side in choice.canvas)
    assert 0.75 <= choice.magnification <= 8
    for side, length in zip(choice.canvas, shape, strict=True):
        fits = side >= length * choice.magnification - 1e-6
        least = min(1.0, max(0.75, PIXELS_ACROSS / diameter))
        assert fits or choice.magnification == pytest.approx(least), "tiles only after shrinking as far as allowed"
    if max(shape) <= encoder.budget:
        assert choice.magnification >= 1


def test_magnify_until_a_token_is_a_quarter_of_the_smallest_class():
    choice = canvas_of((64, 64), VIT_B, diameter=12.8)
    assert choice.magnification == pytest.approx(5.0) and "liver" in choice.magnification_reason


def test_magnify_until_the_budget_is_used_in_whole_attention_windows():
    choice = canvas_of((128, 100), VIT_B, diameter=5.0)
    assert choice.canvas == (448, 352) and choice.magnification == pytest.approx(3.5)
    assert "14-token" in choice.magnification_reason


def test_magnify_eight_times_at_most():
    assert canvas_of((30, 30), VIT_B, diameter=2.0).magnification == pytest.approx(448 / 60)
    assert canvas_of((25, 25), VIT_B, diameter=2.0).magnification == pytest.approx(8.0)


def test_no_magnification_without_need():
    choice = canvas_of((300, 200), VIT_B, diameter=80.0)
    assert choice.magnification == 1 and choice.canvas == (304, 224), "13 tokens of width become 14"


def test_full_images_keep_their_resolution():
    choice = canvas_of((512, 512), VIT_B)
    assert choice.magnification == 1 and choice.canvas == (512, 512)


def test_shrink_then_tile_beyond_the_budget():
    shrunk = canvas_of((600, 400), VIT_B)
    assert shrunk.magnification == pytest.approx(512 / 600) and shrunk.canvas[0] == 512
    tiled = canvas_of((480, 854), VIT_B)
    assert tiled.magnification == 0.75 and tiled.canvas == (368, 448) and "tiles" in tiled.canvas_reason


def test_small_things_are_tiled_rather_than_shrunk():
    small = canvas_of((600, 400), VIT_B, diameter=5.0)
    assert small.magnification == 1 and small.canvas[0] == 448 and "at their own resolution" in small.canvas_reason
    assert '"liver" is only 5.0 px across' in small.magnification_reason
    between = canvas_of((600, 400), VIT_B, diameter=9.0)
    assert between.magnification == pytest.approx(PIXELS_ACROSS / 9.0) and "tiles" in between.canvas_reason
    enough = canvas_of((600, 400), VIT_B, diameter=PIXELS_ACROSS * 600 / 512)
    assert enough.magnification == pytest.approx(512 / 600) and "tiles" not in enough.canvas_reason


@pytest.mark.parametrize(("large", "decides"), [(4, False), (25, False), (26, True), (100, True)])
def test_a_few_large_cases_are_tiled_for_themselves(large: int, decides: bool):
    shapes = [(40, 200, 160)] * (100 - large) + [(40, 900, 900)] * large
    fingerprint = fingerprints.make_fingerprint(count=100, shapes=shapes, diameter=100.0)
    choice = choose_canvas(fingerprint, (3.0, 1.0, 1.0), AXIAL, VIT_T)
    assert (choice.magnification, choice.canvas) == ((0.75, (256, 256)) if decides else (1.0, (200, 160)))
    assert (f"{large} of 100 cases are larger" in choice.canvas_reason) is (large == 25)


def test_large_cases_that_shrink_into_the_budget_decide_as_before():
    shapes = [(40, 200, 160)] * 80 + [(40, 320, 320)] * 20
    fingerprint = fingerprints.make_fingerprint(count=100, shapes=shapes, diameter=100.0)
    assert choose_canvas(fingerprint, (3.0, 1.0, 1.0), AXIAL, VIT_T).magnification == pytest.approx(0.8)


def test_small_encoder_sees_its_finest_level_not_its_tokens():
    assert canvas_of((36, 50), VIT_T, diameter=10.0).magnification == 1
    assert canvas_of((36, 50), VIT_T, diameter=2.0).magnification == 2


def test_height_and_width_are_independent_and_ignore_rare_large_cases():
    shapes = [(40, 100, 60)] * 99 + [(40, 250, 250)]
    fingerprint = fingerprints.make_fingerprint(count=100, shapes=shapes)
    assert choose_canvas(fingerprint, (3.0, 1.0, 1.0), AXIAL, VIT_T).canvas == (104, 64)


@pytest.mark.parametrize("side", [514, 530])
def test_a_few_pixels_above_the_budget_are_not_blurred_away(side: int) -> None:
    fingerprint = fingerprints.make_fingerprint(shape=(40, side, side), spacing=(3.0, 1.0, 1.0))
    choice = choose_canvas(fingerprint, (3.0, 1.0, 1.0), (0, 1, 2), PLANNED_ENCODERS["vit_b"])
    assert choice.magnification == 1 and side <= choice.canvas[0] < side + 16
    assert "hardly more than the 512 px" in choice.magnification_reason


def test_the_smallest_class_is_as_small_as_its_components() -> None:
    fingerprint = fingerprints.make_fingerprint(shape=(40, 200, 200), diameter=30.0)
    specks = {
        name: dataclasses.replace(c, median_components=(3.0, 3.0, 3.0)) for name, c in fingerprint.classes.items()
    }
    order, spacing = (0, 1, 2), (3.0, 1.0, 1.0)
    assert smallest_diameter(fingerprint, spacing, order)[0] == 30.0, "a fingerprint of an earlier version"
    small = dataclasses.replace(fingerprint, classes=specks)
    assert smallest_diameter(small, spacing, order)[0] == 3.0
    before, after = (choose_canvas(found, spacing, order, VIT_B).magnification for found in (fingerprint, small))
    assert after > before
