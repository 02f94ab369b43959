"""Canvas and magnification, each rule on a fingerprint made to trigger it."""

import dataclasses

import pytest

from masam_auto.planning.canvas_size import PIXELS_ACROSS, choose_canvas, smallest_diameter
from masam_auto.planning.planned_encoders import PLANNED_ENCODERS
from tests import fingerprints

AXIAL = (0, 1, 2)
VIT_B, VIT_T = PLANNED_ENCODERS["vit_b"], PLANNED_ENCODERS["vit_t"]


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
    assert "whole windows of 14 tokens" in choice.magnification_reason


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
    assert "slightly larger than the 512 px" in choice.magnification_reason


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
