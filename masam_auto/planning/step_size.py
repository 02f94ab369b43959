"""Planning rules about time: how many pixels one training step sees on a machine without a GPU.

On a CPU, a step costs more the more canvas pixels it sees, and a short training learns more from many small steps than
from few large ones. A plan therefore lists several step sizes, each about half of the one before. A fold without a
budget uses about as many px per step as its encoder's rule says (`StepRule`), or more if its steps then still fit into
an hour. With a time budget, steps are larger the longer the budget is.

Source: ours, measured on ACDC, SarcomaCT and Hippocampus (documentation/log.md).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import fields, replace

from masam_auto.core.plan import BY_HAND, Plan, Speed, StepSize, TrainingPlan
from masam_auto.planning.canvas_size import PIXELS_ACROSS
from masam_auto.planning.planned_encoders import PlannedEncoder, planned_encoder
from masam_auto.planning.window_length import with_depth

HALVINGS = -1  # the smallest size is half of the rule's
TOLERANCE = 1.1  # canvas sides are whole tokens, so sizes are only approximately as planned
ENOUGH_SLICES = 5  # the canvas shrinks before a window gets shorter than this
SHORTEST_WINDOW = 3
SMALLEST_TILE = 64  # px, side of a canvas that shows only part of a slice
FOLD_SECONDS = 3600.0  # a fold without a budget


def step_sizes(natural: StepSize, *, encoder: PlannedEncoder, diameter: float) -> tuple[StepSize, ...]:
    """List the step sizes that a view may be trained with, the largest first.

    Args:
        natural: window, canvas, magnification and batch as they would be if time did not matter.
        encoder: canvas sides are multiples of its token.
        diameter: of the smallest class, px at the target spacing.

    Returns:
        the natural size; if it is large, also smaller sizes: halvings and doublings of the rule's pixels per step.
    """
    assert encoder.without_gpu is not None
    wanted = encoder.without_gpu.pixels
    if natural.pixels <= TOLERANCE * wanted:
        return (natural,)
    sizes = [natural]
    largest = math.ceil(math.log2(natural.pixels / wanted))
    for power in range(largest, HALVINGS - 1, -1):
        limit = round(wanted * 2.0**power)
        smaller = shrink(natural, limit, encoder=encoder, diameter=diameter)
        if smaller.pixels <= TOLERANCE * limit and smaller.pixels * TOLERANCE < sizes[-1].pixels:
            sizes.append(smaller)
    return tuple(sizes)


def shrink(natural: StepSize, limit: int, *, encoder: PlannedEncoder, diameter: float) -> StepSize:
    """Shrink a step to at most about `limit` canvas pixels: fewer windows, then shorter ones, then a smaller canvas.

    A smaller canvas first shows the whole slice in coarser pixels. Once the smallest class would be less than
    `PIXELS_ACROSS` wide, or pixels as coarse as the encoder's rule allows, the canvas shows only part of the slice
    instead. Pretrained encoders, whose features belong to a scale, keep most of the resolution (measured on ACDC), and
    keep their windows for longer.
    """
    rule = encoder.without_gpu
    assert rule is not None
    side = math.prod(natural.canvas)
    fewest = min(rule.windows, natural.batch_size)
    batch = max(fewest, min(natural.batch_size, limit // (natural.window * side)))
    window = natural.window
    while batch * window * side > limit and window > ENOUGH_SLICES:
        window -= 2
    factor = math.sqrt(min(1.0, limit / (batch * window * side)))
    canvas = _multiples([length * factor for length in natural.canvas], rule.multiple, math.floor)
    magnification = natural.magnification * min(new / old for new, old in zip(canvas, natural.canvas, strict=True))
    coarsest = min(natural.magnification, max(PIXELS_ACROSS / diameter, rule.coarsest * natural.magnification))
    if magnification < coarsest:
        magnification, factor = coarsest, coarsest / natural.magnification
        canvas = _multiples([length * factor for length in natural.canvas], rule.multiple, math.ceil)
    size = StepSize(window=window, canvas=canvas, magnification=magnification, batch_size=batch)
    while size.pixels > TOLERANCE * limit and size.window > SHORTEST_WINDOW:
        size = replace(size, window=size.window - 2)
    if not rule.coarsest and size.pixels > TOLERANCE * limit and size.window > 1:
        size = replace(size, batch_size=1)
    if size.pixels > TOLERANCE * limit:
        part = math.sqrt(limit / size.pixels)
        tile = [max(min(SMALLEST_TILE, whole), whole * part) for whole in canvas]
        size = replace(size, canvas=_multiples(tile, rule.multiple, math.floor))
    else:  # whole slices may fill what the canvas was rounded up to
        fills = natural.magnification * min(new / old for new, old in zip(canvas, natural.canvas, strict=True))
        size = replace(size, magnification=min(natural.magnification, max(magnification, fills)))
    return size if size.pixels <= TOLERANCE * limit or size.window == 1 else replace(size, batch_size=1)


def size_within(sizes: tuple[StepSize, ...], pixels: float) -> StepSize:
    """The largest size with at most about `pixels` pixels per step, or the smallest if none is small enough."""
    return next((size for size in sizes if size.pixels <= TOLERANCE * pixels), sizes[-1])


def choose_size(
    sizes: tuple[StepSize, ...], speed: Speed | None, training: TrainingPlan, *, pixels: int
) -> tuple[StepSize, dict[str, str]]:
    """Choose the step size of a fold without a budget, with a reason for each field that it changes.

    Args:
        sizes: as `step_sizes` gives them.
        speed: of the machine; with None, a step has about `pixels`.
        training: its planned number of steps.
        pixels: per step, by the encoder's rule.
    """
    steps = training.num_epochs * training.steps_per_epoch
    size = size_within(sizes, max(pixels, 0.0 if speed is None else speed.wall * FOLD_SECONDS / steps))
    natural = sizes[0]
    lasts = "" if speed is None else f", about {_duration(size.pixels * steps / speed.wall)} a fold here"
    reasons = {"sizes": f"{size.pixels} px per step{lasts}; a budget may choose another of these sizes"}
    if size == natural:
        return size, reasons
    why = f"smaller, so that {steps} steps have at most about {pixels} px each"
    if speed is not None:
        unbounded = _duration(natural.pixels * steps / speed.wall)
        why = f"smaller, because {steps} steps of the size that suits the data would take {unbounded} here"
    changes = {
        "window": (f"{natural.window} slices", size.window != natural.window),
        "canvas": (f"{natural.canvas[0]} x {natural.canvas[1]} px", size.canvas != natural.canvas),
        "magnification": (f"{natural.magnification:.3g}", size.magnification != natural.magnification),
        "batch_size": (f"{natural.batch_size} windows", size.batch_size != natural.batch_size),
    }
    reasons |= {name: f"{why}. Without this limit: {was}" for name, (was, changed) in changes.items() if changed}
    return size, reasons


def fit_budget(plan: Plan, name: str, *, seconds: float, cpu: bool) -> Plan:
    """Give the configuration `name` of a plan the step size that suits a time budget.

    Args:
        plan: of the data set.
        name: of the configuration that will be trained.
        seconds: of the budget.
        cpu: whether they are CPU-seconds, not wall clock.

    Returns:
        the plan unchanged if the machine's speed is unknown, or if size or encoder were set by hand.
    """
    configuration = plan.configuration(name)
    if plan.speed is None or not has_planned_size(plan, name):
        return plan
    rule = planned_encoder(plan.network.encoder).without_gpu
    assert rule is not None
    speed = plan.speed.cpu if cpu else plan.speed.wall
    pixels = math.sqrt(rule.pixels * speed * seconds / rule.steps)
    return with_size(plan, name, size_within(configuration.sizes, pixels))


def has_planned_size(plan: Plan, name: str) -> bool:
    """Whether a configuration has one of its planned sizes, not set by hand, and the encoder of these sizes."""
    configuration = plan.configuration(name)
    if any(plan.reasons.get(f"{name}.{field.name}") == BY_HAND for field in fields(StepSize)):
        return False
    if plan.network.custom_encoder is not None or configuration.size not in configuration.sizes:
        return False
    return planned_encoder(plan.network.encoder).without_gpu is not None


def with_size(plan: Plan, name: str, size: StepSize) -> Plan:
    """The plan with another step size for one configuration, and an inference depth that suits its window length."""
    before = plan.configuration(name)
    if size == before.size:
        return plan
    after = before.resized(size)
    changed = [
        field
        for field in ("window", "canvas", "magnification", "batch_size")
        if getattr(before, field) != getattr(after, field)
    ]
    reasons = {
        f"{name}.{field}": f"for the budget: {size.pixels} px per step, one of the sizes above" for field in changed
    }
    plan = replace(plan, configurations=plan.configurations | {name: after}, reasons=plan.reasons | reasons)
    return plan if before.window == after.window else with_depth(plan, size.window)


def _multiples(sides: Sequence[float], unit: int, to_whole: Callable[[float], int]) -> tuple[int, int]:
    """Canvas sides in whole units of px, at least the 16 px that a canvas must have."""
    height, width = (max(to_whole(round(side / unit, 6)), math.ceil(16 / unit)) * unit for side in sides)
    return height, width


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
