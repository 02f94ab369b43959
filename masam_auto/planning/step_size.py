"""Planning rules about time: how much one training step sees on a machine without a GPU.

There a step's cost grows with the canvas pixels that it sees, and a short training learns more from many small steps
than from few large ones. A plan therefore keeps several step sizes, each about half of the one before. A fold without a
budget takes about 100,000 px a step, or more where its steps then fit into an hour; a budget of time takes larger
steps the longer it is.

Source: ours, measured on ACDC, SarcomaCT and Hippocampus (documentation/log.md).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from masam_auto.core.encoders import PlannedEncoder, planned_encoder
from masam_auto.core.plan import Plan, Speed, StepSize, TrainingPlan
from masam_auto.planning.canvas_size import PIXELS_ACROSS
from masam_auto.planning.window_length import choose_depth

PIXELS_PER_STEP = 100_000  # of a fold without a budget, or more where the machine has the time
HALVINGS = -1  # the smallest size is half of it
TOLERANCE = 1.1  # canvas sides are whole tokens, so that sizes are only about as planned
FEWEST_WINDOWS = 2  # a step; one only where nothing else is left to shorten
ENOUGH_SLICES = 5  # a window is not shortened below this before the canvas is
SHORTEST_WINDOW = 3
SMALLEST_TILE = 64  # px, side of a canvas that shows part of a slice
FOLD_SECONDS = 3600.0  # a fold without a budget
# Steps of PIXELS_PER_STEP that a budget should hold; one twice as large has steps 1.4 times as large, and 1.4 times as
# many.
STEPS_WANTED = 7200


def step_sizes(natural: StepSize, *, encoder: PlannedEncoder, diameter: float) -> tuple[StepSize, ...]:
    """The step sizes that a view of the data may be trained with, the largest first.

    Args:
        natural: window, canvas, magnification and batch as they would be if time did not matter.
        encoder: its token is what canvas sides are multiples of.
        diameter: of the smallest class, px at the target spacing.

    Returns:
        the natural size, alone where it is small enough; else also those of 100,000 px, twice and half as many, and so
        on, that are smaller than it.
    """
    if natural.pixels <= TOLERANCE * PIXELS_PER_STEP:
        return (natural,)
    sizes = [natural]
    largest = math.ceil(math.log2(natural.pixels / PIXELS_PER_STEP))
    for power in range(largest, HALVINGS - 1, -1):
        limit = round(PIXELS_PER_STEP * 2.0**power)
        smaller = shrink(natural, limit, encoder=encoder, diameter=diameter)
        if smaller.pixels <= TOLERANCE * limit and smaller.pixels * TOLERANCE < sizes[-1].pixels:
            sizes.append(smaller)
    return tuple(sizes)


def shrink(natural: StepSize, limit: int, *, encoder: PlannedEncoder, diameter: float) -> StepSize:
    """A step of at most about `limit` canvas pixels: fewer windows, shorter ones, a smaller canvas, in this order.

    A smaller canvas shows the whole slice in coarser pixels, as long as the smallest class is still `PIXELS_ACROSS`
    wide; from there on it shows a part of the slice.
    """
    side = math.prod(natural.canvas)
    batch = max(min(FEWEST_WINDOWS, natural.batch_size), min(natural.batch_size, limit // (natural.window * side)))
    window = natural.window
    while batch * window * side > limit and window > ENOUGH_SLICES:
        window -= 2
    factor = math.sqrt(min(1.0, limit / (batch * window * side)))
    canvas = _tokens([length * factor for length in natural.canvas], encoder.token, math.floor)
    magnification = natural.magnification * min(new / old for new, old in zip(canvas, natural.canvas, strict=True))
    coarsest = min(natural.magnification, PIXELS_ACROSS / diameter)
    if magnification < coarsest:
        magnification, factor = coarsest, coarsest / natural.magnification
        canvas = _tokens([length * factor for length in natural.canvas], encoder.token, math.ceil)
    size = StepSize(window=window, canvas=canvas, magnification=magnification, batch_size=batch)
    while size.pixels > TOLERANCE * limit and size.window > SHORTEST_WINDOW:
        size = replace(size, window=size.window - 2)
    if size.pixels > TOLERANCE * limit and size.window > 1:
        size = replace(size, batch_size=1)
    if size.pixels > TOLERANCE * limit:
        part = math.sqrt(limit / size.pixels)
        tile = [max(min(SMALLEST_TILE, whole), whole * part) for whole in canvas]
        size = replace(size, canvas=_tokens(tile, encoder.token, math.floor))
    return size


def size_within(sizes: tuple[StepSize, ...], pixels: float) -> StepSize:
    """The largest of the sizes that sees no more than about so many pixels a step, or else the smallest."""
    return next((size for size in sizes if size.pixels <= TOLERANCE * pixels), sizes[-1])


def choose_size(
    sizes: tuple[StepSize, ...], speed: Speed | None, training: TrainingPlan
) -> tuple[StepSize, dict[str, str]]:
    """The step size of a fold without a budget, and what to add to the reasons of the fields that it changes.

    Args:
        sizes: as `step_sizes` gives them.
        speed: of the machine; None takes about 100,000 px.
        training: its planned number of steps.
    """
    steps = training.num_epochs * training.steps_per_epoch
    size = size_within(sizes, max(PIXELS_PER_STEP, 0.0 if speed is None else speed.wall * FOLD_SECONDS / steps))
    natural = sizes[0]
    lasts = "" if speed is None else f", about {_duration(size.pixels * steps / speed.wall)} a fold here"
    reasons = {"sizes": f"{size.pixels} px a step{lasts}; a budget may ask for another of these sizes"}
    if size == natural:
        return size, reasons
    why = f"smaller, so that {steps} steps are no more than {PIXELS_PER_STEP} px each"
    if speed is not None:
        unbounded = _duration(natural.pixels * steps / speed.wall)
        why = f"{steps} steps as large as the data ask for would take {unbounded} here"
    changes = {
        "window": (f"{natural.window} slices", size.window != natural.window),
        "canvas": (f"{natural.canvas[0]} x {natural.canvas[1]} px", size.canvas != natural.canvas),
        "magnification": (f"{natural.magnification:.3g}", size.magnification != natural.magnification),
        "batch_size": (f"{natural.batch_size} windows", size.batch_size != natural.batch_size),
    }
    reasons |= {name: f"{why}. The data ask for {was}" for name, (was, changed) in changes.items() if changed}
    return size, reasons


def fit_budget(plan: Plan, name: str, *, seconds: float, cpu: bool) -> Plan:
    """A plan whose configuration `name` takes the step size that a budget of time asks for.

    Args:
        plan: of the data set.
        name: of the configuration that will be trained.
        seconds: of the budget.
        cpu: whether they are CPU-seconds, not wall clock.

    Returns:
        the plan itself where nothing is known of the machine, or size or encoder were set by hand.
    """
    configuration = plan.configuration(name)
    if plan.speed is None or not has_planned_size(plan, name):
        return plan
    speed = plan.speed.cpu if cpu else plan.speed.wall
    pixels = math.sqrt(PIXELS_PER_STEP * speed * seconds / STEPS_WANTED)
    return with_size(plan, name, size_within(configuration.sizes, pixels))


def has_planned_size(plan: Plan, name: str) -> bool:
    """Whether a configuration has one of its planned sizes, and the encoder that these were planned for."""
    configuration = plan.configuration(name)
    if plan.network.custom_encoder is not None or configuration.size not in configuration.sizes:
        return False
    return not planned_encoder(plan.network.encoder).sam


def with_size(plan: Plan, name: str, size: StepSize) -> Plan:
    """The plan with another step size for one configuration, and depth at inference as windows of that length allow."""
    before = plan.configuration(name)
    if size == before.size:
        return plan
    after = before.resized(size)
    changed = [
        field
        for field in ("window", "canvas", "magnification", "batch_size")
        if getattr(before, field) != getattr(after, field)
    ]
    reasons = {f"{name}.{field}": f"for the budget: {size.pixels} px a step, of the sizes above" for field in changed}
    plan = replace(plan, configurations=plan.configurations | {name: after}, reasons=plan.reasons | reasons)
    if plan.reasons.get("inference.depth") == "set by hand" or before.window == after.window:
        return plan
    depth, reason = choose_depth(size.window, planned_encoder(plan.network.encoder))
    inference = replace(plan.inference, depth=depth, slice_stride=(size.window + 1) // 2)
    return replace(plan, inference=inference, reasons=plan.reasons | {"inference.depth": reason})


def _tokens(sides: Sequence[float], token: int, to_whole: Callable[[float], int]) -> tuple[int, int]:
    """Canvas sides in whole tokens, at least the 16 px that a canvas must have."""
    height, width = (max(to_whole(round(side / token, 6)), math.ceil(16 / token)) * token for side in sides)
    return height, width


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
