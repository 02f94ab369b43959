"""Planning rules about what fits: the encoder, windows per step, and slices at once in prediction."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from masam_auto.planning.canvas_size import TOKENS_ACROSS
from masam_auto.planning.memory import GIB, Load, fitting_batch, fitting_slices, training_bytes
from masam_auto.planning.planned_encoders import PLANNED_ENCODERS, PlannedEncoder, StepRule, planned_encoder

SCRATCH = "vit_t"
BY_SIZE = ("vit_h", "vit_l", "vit_b")  # Source: the paper's Table 7: the larger, the better
SMALL = "lite_medsam"  # pretrained, and small enough for a CPU
# Source: ours (documentation/log.md): on classes of less than 4 tokens, and with 48 cases, training from scratch was at
# least as good; between 10 and 48 cases nothing was measured.
MOST_CASES = 10
FEWEST_STEPS = 100  # not measured: half of the steps that were seen to help
WINDOWS_PER_UPDATE = 24  # Source: reference MA-SAM
SHARE_PER_UPDATE = 0.05  # Source: nnU-Net v2: at most 5 % of the data set per step
TRAINING_SHARE = 0.8  # of the cases, with five folds
LONGEST_PREDICTION = 64
HIERA = tuple(f"sam2.1_hiera_{size}" for size in ("t", "s", "b+", "l"))
FETCHED = (*BY_SIZE, SMALL, "mobile_sam", *HIERA)  # what masam_fetch_weights brings
ONE_WINDOW = StepRule(pixels=100_000, steps=7200, windows=1, multiple=16)  # of an encoder that a GPU should train


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderChoice:
    """An encoder, where its weights come from, and why."""

    shape: PlannedEncoder
    weights: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchChoice:
    """Windows per device and step, steps summed into one update, and why."""

    batch_size: int
    accumulation: int
    batch_reason: str
    accumulation_reason: str


def choose_encoder(
    loads: dict[str, Load],
    *,
    gpu_memory_gb: float,
    backbone: str | None,
    sam_weights: Sequence[str],
    from_scratch: bool = False,
    smallest: tuple[float, str] = (math.inf, ""),
    steps: float = math.inf,
    cases: int = 1,
) -> EncoderChoice:
    """Choose the largest SAM encoder that has weights and fits in training, or LiteMedSAM, or vit_t from scratch.

    Args:
        loads: of one training window, for every encoder by name.
        gpu_memory_gb: GiB of the GPU; 0 means there is none.
        backbone: the user's choice, or None.
        sam_weights: encoders whose SAM weights are on disk.
        from_scratch: whether to train without SAM's weights.
        smallest: diameter in px at the target spacing, and name, of the smallest class.
        steps: of lite_medsam that the time of a fold is enough for, without a GPU.
        cases: of the data set.

    Raises:
        PlanError: unknown backbone.
    """
    if backbone is not None:
        return _asked_for(backbone, sam_weights, from_scratch)
    scratch = PLANNED_ENCODERS[SCRATCH]
    if from_scratch:
        reason = "from scratch, as asked: our small encoder, which is made for this"
        return EncoderChoice(shape=scratch, weights="none", reason=reason)
    if gpu_memory_gb <= 0:
        return _without_gpu(sam_weights, smallest, steps, cases)
    tried = []
    for name in BY_SIZE:
        if name not in sam_weights:
            tried.append(f"{name}: no SAM weights")
            continue
        needed = training_bytes(loads[name], batch=1, checkpointing=True) / GIB
        if fitting_batch(loads[name], gpu_memory_gb=gpu_memory_gb, checkpointing=True) >= 1:
            larger = f" ({'; '.join(tried)})" if tried else ""
            reason = (
                f"largest whose training window fits {gpu_memory_gb:g} GiB: {needed:.1f} GiB with checkpointing{larger}"
            )
            return EncoderChoice(shape=PLANNED_ENCODERS[name], weights="sam", reason=reason)
        tried.append(f"{name}: a training window needs {needed:.1f} GiB")
    if SMALL in sam_weights and fitting_batch(loads[SMALL], gpu_memory_gb=gpu_memory_gb, checkpointing=True) >= 1:
        reason = f"{'; '.join(tried)}: the small pretrained one"
        return EncoderChoice(shape=PLANNED_ENCODERS[SMALL], weights="sam", reason=reason)
    missing = "no SAM weights found in the weights folder (get them with masam_fetch_weights)"
    why = missing if not sam_weights else "; ".join(tried)
    return EncoderChoice(
        shape=scratch, weights="none", reason=f"{why}: our small encoder, trained from scratch without SAM's weights"
    )


def choose_checkpointing(loads: Sequence[Load], *, gpu_memory_gb: float) -> tuple[bool, str]:
    """Recompute activations only if a window of some configuration does not fit without it."""
    if gpu_memory_gb <= 0:
        return False, "no GPU, so GPU memory sets no limit"
    needed = max(training_bytes(load, batch=1, checkpointing=False) for load in loads) / GIB
    fits = all(fitting_batch(load, gpu_memory_gb=gpu_memory_gb, checkpointing=False) >= 1 for load in loads)
    verdict = "fits" if fits else "does not fit"
    return (
        not fits,
        f"one window without checkpointing needs {needed:.1f} GiB, which {verdict} in {gpu_memory_gb:g} GiB",
    )


def choose_batch(load: Load, *, training_slices: int, gpu_memory_gb: float, checkpointing: bool) -> BatchChoice:
    """Choose the windows per step and the accumulation.

    On a GPU: as many windows as fit, accumulated toward 24 per update, but at most 5 % of the training slices. Without
    a GPU: few windows per step, so that there are many steps.
    """
    allowed = max(1, int(SHARE_PER_UPDATE * training_slices / load.window))
    share = f"5 % of about {training_slices} training slices are {allowed} windows of {load.window}"
    pixels = load.window * load.canvas[0] * load.canvas[1]
    if gpu_memory_gb <= 0:
        rule = planned_encoder(load.network.encoder).without_gpu or ONE_WINDOW
        fewest = rule.windows
        affordable = max(fewest, rule.pixels // pixels)
        batch = max(fewest, min(affordable, WINDOWS_PER_UPDATE, allowed))
        return BatchChoice(
            batch_size=batch,
            accumulation=1,
            batch_reason=f"no GPU: about {rule.pixels} px per step, at least {fewest} "
            f"{'window' if fewest == 1 else 'windows'} (a window has {pixels} px); {share}",
            accumulation_reason="no GPU: every step is an update; many small updates learn faster than few large ones",
        )
    wanted = min(WINDOWS_PER_UPDATE, allowed)
    fits = max(1, fitting_batch(load, gpu_memory_gb=gpu_memory_gb, checkpointing=checkpointing))
    accumulation = math.ceil(wanted / fits)
    batch = max(1, wanted // accumulation)
    one = training_bytes(load, batch=batch, checkpointing=checkpointing) / GIB
    toward = f"toward {WINDOWS_PER_UPDATE} windows per update" + (
        f", but {share}" if allowed < WINDOWS_PER_UPDATE else ""
    )
    return BatchChoice(
        batch_size=batch,
        accumulation=accumulation,
        batch_reason=f"{fits} windows fit in {gpu_memory_gb:g} GiB; {batch} need {one:.1f} GiB ({toward})",
        accumulation_reason=f"{accumulation} x {batch} = {accumulation * batch} windows per update, {toward}",
    )


def choose_longest_prediction(loads: Sequence[Load], *, gpu_memory_gb: float) -> tuple[int, str]:
    """Choose the most slices that go through the network at once in prediction."""
    if gpu_memory_gb <= 0:
        return LONGEST_PREDICTION, "no GPU, so GPU memory sets no limit"
    fits = min(fitting_slices(load, gpu_memory_gb=gpu_memory_gb) for load in loads)
    chosen = max(1, min(LONGEST_PREDICTION, fits))
    return chosen, f"{fits} slices fit in {gpu_memory_gb:g} GiB in prediction; at most {LONGEST_PREDICTION} are used"


def _without_gpu(sam_weights: Sequence[str], smallest: tuple[float, str], steps: float, cases: int) -> EncoderChoice:
    """LiteMedSAM where it was measured to help: weights are here, classes not tiny, cases few, and time enough."""
    pretrained, scratch = PLANNED_ENCODERS[SMALL], PLANNED_ENCODERS[SCRATCH]
    (diameter, name), least = smallest, TOKENS_ACROSS * pretrained.detail
    if SMALL not in sam_weights:
        why = f"no weights of {SMALL} in the weights folder (masam_fetch_weights {SMALL})"
    elif diameter < least:
        why = (
            f'the smallest class, "{name}", is {diameter:.1f} px across, less than {TOKENS_ACROSS:g} tokens of {SMALL} '
            f"({least:g} px), where training from scratch is at least as good (measured)"
        )
    elif cases > MOST_CASES:
        why = (
            f"there are {cases} cases, and {SMALL} was measured to help with few ({MOST_CASES} at most); to try it all "
            f"the same, plan with `backbone={SMALL}`"
        )
    elif steps < FEWEST_STEPS:
        why = f"the time is enough for {steps:.0f} steps of {SMALL}, and {FEWEST_STEPS} are asked for"
    else:
        reason = f"no GPU: {SMALL} is pretrained, and small enough for a CPU (SAM's own encoders would take days)"
        return EncoderChoice(shape=pretrained, weights="sam", reason=reason)
    reason = f"no GPU: our small encoder, trained from scratch, because {why}"
    return EncoderChoice(shape=scratch, weights="none", reason=reason)


def _asked_for(backbone: str, sam_weights: Sequence[str], from_scratch: bool) -> EncoderChoice:
    shape = planned_encoder(backbone)
    if from_scratch or not shape.sam:
        return EncoderChoice(shape=shape, weights="none", reason="asked for; trained from scratch")
    fetch = f" (masam_fetch_weights {backbone})" if backbone in FETCHED else ""
    whose = "weights" if shape.only_encoder else "SAM weights"
    missing = "" if backbone in sam_weights else f"; its {whose} are still missing{fetch}"
    return EncoderChoice(shape=shape, weights="sam", reason=f"asked for{missing}")
