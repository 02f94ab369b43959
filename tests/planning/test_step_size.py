"""How much a step sees without a GPU: sizes, the one that time allows, and what a budget changes."""

import dataclasses
import itertools

from hypothesis import given
from hypothesis import strategies as st

from masam_auto.core.plan import Plan, Speed, StepSize
from masam_auto.planning.canvas_size import PIXELS_ACROSS
from masam_auto.planning.make_plan import make_plan
from masam_auto.planning.planned_encoders import PLANNED_ENCODERS
from masam_auto.planning.recipes import SCRATCH
from masam_auto.planning.step_size import (
    choose_size,
    fit_budget,
    shrink,
    size_within,
    step_sizes,
    with_size,
)
from tests import fingerprints

VIT_T = PLANNED_ENCODERS["vit_t"]
RULE = VIT_T.without_gpu
assert RULE is not None
LITE = PLANNED_ENCODERS["lite_medsam"]
ACDC = StepSize(window=3, canvas=(256, 256), magnification=1.0, batch_size=2)
SPEED = Speed(wall=300_000.0, cpu=200_000.0)


def size(window: int = 3, canvas: tuple[int, int] = (256, 256), magnification: float = 1.0, batch: int = 2) -> StepSize:
    return StepSize(window=window, canvas=canvas, magnification=magnification, batch_size=batch)


def test_acdc_is_halved_from_100000_px_both_ways():
    sizes = step_sizes(ACDC, encoder=VIT_T, diameter=28.0)
    assert sizes[0] == ACDC and size(canvas=(128, 128), magnification=0.5) in sizes
    assert [round(s.pixels / RULE.pixels, 1) for s in sizes] == [3.9, 1.9, 1.0, 0.5]
    assert [s.magnification for s in sizes] == [1.0, 0.6875, 0.5, 0.34375]


def test_what_is_small_enough_stays_as_the_data_ask_for():
    hippocampus = size(window=15, canvas=(48, 64), batch=2)
    assert step_sizes(hippocampus, encoder=VIT_T, diameter=12.0) == (hippocampus,)


def test_a_size_that_cannot_be_made_smaller_stands_alone():
    smallest = size(window=1, canvas=(64, 64), batch=1)
    assert step_sizes(smallest, encoder=VIT_T, diameter=2.0) == (smallest,)


def test_windows_go_first_then_their_length_then_the_canvas():
    many = shrink(size(canvas=(96, 96), batch=24), 300_000, encoder=VIT_T, diameter=40.0)
    assert many == size(canvas=(96, 96), batch=10)
    shorter = shrink(size(window=17, canvas=(96, 96)), 100_000, encoder=VIT_T, diameter=40.0)
    assert shorter == size(window=5, canvas=(96, 96))
    coarser = shrink(size(window=17, canvas=(192, 192)), 100_000, encoder=VIT_T, diameter=40.0)
    assert coarser == size(window=5, canvas=(96, 96), magnification=0.5)


def test_small_things_are_tiled_rather_than_shrunk_away():
    found = shrink(size(window=5), 100_000, encoder=VIT_T, diameter=3.2)
    assert found.magnification == 1.0 and found.canvas[0] < 256 and found.window == 3
    half = shrink(size(window=5), 50_000, encoder=VIT_T, diameter=2 * PIXELS_ACROSS)
    assert half.magnification == 0.5


@given(
    st.sampled_from([1, 3, 5, 9, 17]),
    st.tuples(st.integers(2, 128), st.integers(2, 128)),
    st.floats(0.5, 8.0),
    st.integers(1, 24),
    st.floats(0.5, 200.0),
    st.integers(20_000, 2_000_000),
)
def test_shrinking_never_grows_anything_and_keeps_to_tokens(window, tokens, magnification, batch, diameter, limit):
    natural = size(window, (8 * tokens[0], 8 * tokens[1]), magnification, batch)
    found = shrink(natural, limit, encoder=VIT_T, diameter=diameter)
    assert found.window <= natural.window and found.window % 2 == 1
    assert found.batch_size <= natural.batch_size and found.magnification <= natural.magnification + 1e-9
    assert all(a <= b and a % 8 == 0 for a, b in zip(found.canvas, natural.canvas, strict=True))
    assert found.magnification >= min(natural.magnification, PIXELS_ACROSS / diameter) - 1e-9
    sizes = step_sizes(natural, encoder=VIT_T, diameter=diameter)
    assert all(a.pixels > b.pixels for a, b in itertools.pairwise(sizes))


def test_pretrained_encoders_keep_most_of_the_resolution_and_two_windows():
    sizes = step_sizes(size(canvas=(280, 280), batch=2), encoder=LITE, diameter=28.0)
    assert [s.canvas[0] for s in sizes] == [280, 224, 168, 112, 84, 56]
    assert [s.magnification for s in sizes] == [1.0, 0.8, 0.75, 0.75, 0.75, 0.75]
    assert all((s.batch_size, s.window) == (2, 3) for s in sizes)


def test_no_resolution_is_lost_where_the_canvas_does_not_shrink():
    for side, sides, magnification in ((84, 84, 1.0), (140, 112, 0.8)):
        found = shrink(size(window=5, canvas=(side, side)), 76_000, encoder=LITE, diameter=28.0)
        assert (found.canvas, found.magnification) == ((sides, sides), magnification)


def test_a_fold_without_a_budget_takes_what_an_hour_allows():
    sizes = step_sizes(ACDC, encoder=VIT_T, diameter=28.0)
    slow, notes = choose_size(sizes, SPEED, SCRATCH, pixels=RULE.pixels)
    assert (
        slow == sizes[2]
        and "Without this limit: 256 x 256 px" in notes["canvas"]
        and "min a fold here" in notes["sizes"]
        and "Without this limit: 256 x 256 px" in notes["canvas"]
        and "min a fold here" in notes["sizes"]
    )
    fast, notes = choose_size(sizes, Speed(wall=2e6, cpu=2e5), SCRATCH, pixels=RULE.pixels)
    assert fast == sizes[0] and set(notes) == {"sizes"}
    unknown, notes = choose_size(sizes, None, SCRATCH, pixels=RULE.pixels)
    assert unknown == sizes[2] and str(RULE.pixels) in notes["canvas"] and "a fold here" not in notes["sizes"]


def test_size_within_is_the_largest_that_fits_or_the_smallest():
    sizes = step_sizes(ACDC, encoder=VIT_T, diameter=28.0)
    assert size_within(sizes, 1e9) == sizes[0]
    assert size_within(sizes, sizes[1].pixels) == sizes[1]
    assert size_within(sizes, 10.0) == sizes[-1]


def acdc_plan(**options: object) -> Plan:
    fingerprint = fingerprints.make_fingerprint(shape=(10, 256, 256), spacing=(10.0, 1.5, 1.5), diameter=42.0)
    return make_plan(fingerprint, gpu_memory_gb=0, speeds={"vit_t": SPEED}, **options)


def test_a_budget_moves_the_step_size_and_nothing_else():
    plan = acdc_plan()
    assert plan.configuration(None).size == plan.configuration(None).sizes[2]
    seconds = plan.configuration(None).sizes[0].pixels ** 2 / RULE.pixels * RULE.steps / SPEED.cpu
    longer = fit_budget(plan, "axis0", seconds=seconds, cpu=True)
    assert longer.configuration("axis0").size == plan.configuration("axis0").sizes[0]
    assert longer.configuration("2d") == plan.configuration("2d") and longer.training == plan.training
    assert "for the budget" in longer.reasons["axis0.canvas"]
    assert longer.configuration("axis0").preprocessing_digest == plan.configuration("axis0").preprocessing_digest
    short = fit_budget(longer, "axis0", seconds=60, cpu=False)
    assert short.configuration("axis0").size == plan.configuration("axis0").sizes[-1]


def test_a_size_set_by_hand_stays():
    by_hand = acdc_plan(overrides=["axis0.canvas=200,200"])
    assert fit_budget(by_hand, "axis0", seconds=1e6, cpu=True) == by_hand
    planned = acdc_plan().configuration("axis0").canvas
    as_planned = acdc_plan(overrides=[f"axis0.canvas={planned[0]},{planned[1]}"])
    assert fit_budget(as_planned, "axis0", seconds=60, cpu=True) == as_planned
    unknown = dataclasses.replace(acdc_plan(), speed=None)
    assert fit_budget(unknown, "axis0", seconds=1e6, cpu=True) == unknown


def test_depth_follows_the_window_unless_it_was_set_by_hand():
    fingerprint = fingerprints.make_fingerprint(shape=(160, 160, 160), spacing=(1.0,) * 3, diameter=40.0)
    plan = make_plan(fingerprint, gpu_memory_gb=0, speeds={"vit_t": SPEED})
    configuration = plan.configuration(None)
    assert configuration.sizes[0].window >= 15 and configuration.window == 5
    assert (plan.inference.depth, plan.inference.slice_stride) == ("windows", 3)
    long = with_size(plan, configuration.name, configuration.sizes[0])
    assert (long.inference.depth, long.inference.slice_stride) == ("whole", 8)
    whole = make_plan(fingerprint, gpu_memory_gb=0, speeds={"vit_t": SPEED}, overrides=["inference.depth=whole"])
    assert with_size(whole, configuration.name, configuration.sizes[0]).inference.depth == "whole"


def test_plans_for_a_gpu_have_no_sizes_and_no_speed():
    plan = make_plan(fingerprints.make_fingerprint(), gpu_memory_gb=24, sam_weights=("vit_b",), speeds={"vit_t": SPEED})
    assert plan.speed is None and all(c.sizes == () for c in plan.configurations.values())


def test_a_plan_made_for_a_budget_keeps_it():
    plan = acdc_plan(overrides=["training.budget=90h"])
    assert plan.training.budget == "90h"
    assert plan.configuration("axis0").size == plan.configuration("axis0").sizes[0]
