"""Decide everything about a data set from its fingerprint. A pure function: it reads and measures nothing.

Each planning rule is in a file named after it in this folder. It returns its decision and one sentence that says why.
This file puts the decisions together.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from masam_auto.core.budget import parse_budget
from masam_auto.core.fingerprint import Fingerprint
from masam_auto.core.geometry import Triple, permute
from masam_auto.core.plan import Configuration, InferencePlan, Plan, Speed, StepSize, TrainingPlan
from masam_auto.core.turning import UNKNOWN_AXES
from masam_auto.network.activations import Load
from masam_auto.network.build import encoder_of
from masam_auto.network.decoder import choose_decoder
from masam_auto.planning.canvas_size import choose_canvas, smallest_diameter
from masam_auto.planning.capacity import (
    SMALL,
    TRAINING_SHARE,
    choose_batch,
    choose_checkpointing,
    choose_encoder,
    choose_longest_prediction,
)
from masam_auto.planning.mirroring import MirrorRule, choose_mirroring
from masam_auto.planning.normalization import choose_normalization, normalization_reason
from masam_auto.planning.overrides import override
from masam_auto.planning.plan_table import plan_table
from masam_auto.planning.planned_encoders import PLANNED_ENCODERS, PlannedEncoder, planned_encoder
from masam_auto.planning.recipes import Reasons, channels_reason, choose_network, choose_training
from masam_auto.planning.slice_axes import SliceAxes, choose_separate_slices, choose_slice_axes
from masam_auto.planning.spacing import choose_spacing, median_shape, shapes_at
from masam_auto.planning.step_size import FOLD_SECONDS, choose_size, fit_budget, step_sizes
from masam_auto.planning.window_length import choose_depth, choose_window, stride_reason

__all__ = ["make_plan", "plan_table"]

NOT_MEASURED: Mapping[str, Speed] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True, slots=True)
class _View:
    """A configuration to plan: its name, its slice axis, and whether it looks at single slices."""

    name: str
    axis: int
    single: bool

    @property
    def axis_order(self) -> tuple[int, int, int]:
        """The slice axis first, the other two in the fingerprint's order."""
        first, second = (axis for axis in range(3) if axis != self.axis)
        return (self.axis, first, second)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Basis:
    """What all configurations share."""

    fingerprint: Fingerprint
    slices: SliceAxes
    spacing: Triple
    spacing_reason: str
    mirroring: tuple[MirrorRule, MirrorRule, MirrorRule]
    gpu_memory_gb: float
    speeds: Mapping[str, Speed]


def make_plan(
    fingerprint: Fingerprint,
    *,
    gpu_memory_gb: float,
    backbone: str | None = None,
    sam_weights: Sequence[str] = (),
    from_scratch: bool = False,
    target_spacing: Triple | None = None,
    speeds: Mapping[str, Speed] = NOT_MEASURED,
    overrides: Sequence[str] = (),
    name: str = "masam",
) -> Plan:
    """Plan a data set.

    Args:
        fingerprint: the measurements.
        gpu_memory_gb: GiB of the GPU that will train; 0 means there is none.
        backbone: encoder to use, or None to choose.
        sam_weights: names of the encoders whose SAM weights are on disk.
        from_scratch: train without SAM's weights, even with a SAM encoder.
        target_spacing: mm in the fingerprint's order (Z, Y, X), or None to choose.
        speeds: of this machine without a GPU, for encoders by name, as `training.speed` measures them.
        overrides: "section.field=value" assignments, applied last.
        name: the plan's name.

    Raises:
        PlanError: unknown backbone, encoder, decoder or field, or a value that is not allowed.

    Example:
        >>> from masam_auto import make_plan
        >>> plan = make_plan(fingerprint, gpu_memory_gb=0, overrides=["training.num_epochs=5"])
        >>> plan.default_configuration, plan.training.num_epochs
        ('axis0', 5)
        >>> axis0 = plan.configuration("axis0")
        >>> axis0.window, axis0.canvas, axis0.spacing  # slices; (height, width) in px; (slices, rows, columns) in mm
        (5, (16, 16), (3.0, 1.0, 0.75))
        >>> plan.reasons["training.num_epochs"]
        'set by hand'
    """
    basis = _lay_basis(fingerprint, gpu_memory_gb, target_spacing, speeds)
    views = _choose_views(basis.slices)
    choice = choose_encoder(
        {name: _load(basis, views[0], shape) for name, shape in PLANNED_ENCODERS.items()},
        gpu_memory_gb=gpu_memory_gb,
        backbone=backbone,
        sam_weights=sam_weights,
        from_scratch=from_scratch,
        smallest=smallest_diameter(fingerprint, basis.spacing, views[0].axis_order),
        steps=_affordable_steps(speeds.get(SMALL), overrides),
        cases=len(fingerprint.cases),
    )
    loads = [_load(basis, view, choice.shape, from_scratch=from_scratch) for view in views]
    checkpointing, checkpointing_reason = choose_checkpointing(loads, gpu_memory_gb=gpu_memory_gb)
    network, network_reasons = choose_network(choice.shape, choice.reason, from_scratch=from_scratch)
    training, training_reasons = choose_training(
        choice.shape, checkpointing=checkpointing, checkpointing_reason=checkpointing_reason
    )
    reasons = {
        "default_configuration": basis.slices.reason,
        "channel_names": channels_reason(len(fingerprint.channel_names), choice.shape, from_scratch=from_scratch),
    }
    configurations = {}
    for view, load in zip(views, loads, strict=True):
        configurations[view.name], view_reasons = _configure(basis, view, load, checkpointing, training)
        reasons |= _under(view.name, view_reasons)
    inference, inference_reasons = _choose_inference(basis, loads, configurations[views[0].name], choice.shape)
    plan = Plan(
        name=name,
        dataset_name=fingerprint.dataset_name,
        channel_names=fingerprint.channel_names,
        gpu_memory_gb=gpu_memory_gb,
        default_configuration=views[0].name,
        configurations=configurations,
        network=network,
        training=training,
        inference=inference,
        speed=speeds.get(choice.shape.name) if gpu_memory_gb <= 0 else None,
        reasons=reasons
        | _under("network", network_reasons)
        | _under("training", training_reasons)
        | _under("inference", inference_reasons),
    )
    plan = override(plan, overrides)
    encoder_of(plan.network)  # an override may name an unknown one
    choose_decoder(plan.network.decoder)
    budget = parse_budget(None, plan.training)
    if budget.kind != "steps":
        for name in configurations:
            plan = fit_budget(plan, name, seconds=budget.amount, cpu=budget.kind == "cpu")
    return plan


def _lay_basis(
    fingerprint: Fingerprint, gpu_memory_gb: float, target_spacing: Triple | None, speeds: Mapping[str, Speed]
) -> _Basis:
    spacing, spacing_reason = choose_spacing(fingerprint, target_spacing)
    return _Basis(
        fingerprint=fingerprint,
        slices=choose_slice_axes(fingerprint),
        spacing=spacing,
        spacing_reason=spacing_reason,
        mirroring=choose_mirroring(fingerprint),
        gpu_memory_gb=gpu_memory_gb,
        speeds=speeds,
    )


def _affordable_steps(speed: Speed | None, overrides: Sequence[str]) -> float:
    """Steps of the small pretrained encoder that a fold has time for; without a known speed, any number."""
    rule = planned_encoder(SMALL).without_gpu
    given = [text.partition("=")[2] for text in overrides if text.startswith("training.budget=")]
    budget = parse_budget(given[-1] if given else None, TrainingPlan())
    if speed is None or rule is None or (given and budget.kind == "steps"):
        return math.inf
    seconds = budget.amount if given else FOLD_SECONDS
    return seconds * (speed.cpu if budget.kind == "cpu" else speed.wall) / rule.pixels


def _under(section: str, reasons: Reasons) -> Reasons:
    return {f"{section}.{name}": reason for name, reason in reasons.items()}


def _choose_views(slices: SliceAxes) -> tuple[_View, ...]:
    flat = _View(name="2d", axis=slices.axes[0], single=True)
    if slices.single:
        return (flat,)
    return (*(_View(name=f"axis{axis}", axis=axis, single=False) for axis in slices.axes), flat)


def _window(basis: _Basis, view: _View, shape: PlannedEncoder) -> tuple[int, str]:
    if view.single:
        return 1, basis.slices.reason if basis.slices.single else "2d: each slice alone"
    depth = median_shape(basis.fingerprint, basis.spacing, view.axis_order)[0]
    return choose_window(basis.fingerprint, distance=basis.spacing[view.axis], depth=depth, encoder=shape)


def _load(basis: _Basis, view: _View, shape: PlannedEncoder, *, from_scratch: bool = False) -> Load:
    """What one training window of a view costs with an encoder."""
    canvas = choose_canvas(basis.fingerprint, basis.spacing, view.axis_order, shape).canvas
    return Load(
        encoder=shape.spec,
        network=choose_network(shape, "", from_scratch=from_scratch)[0],
        canvas=canvas,
        window=_window(basis, view, shape)[0],
        in_channels=len(basis.fingerprint.channel_names),
        num_outputs=basis.fingerprint.num_outputs,
    )


def _configure(
    basis: _Basis, view: _View, load: Load, checkpointing: bool, training: TrainingPlan
) -> tuple[Configuration, Reasons]:
    fingerprint, order, spacing = basis.fingerprint, view.axis_order, basis.spacing
    normalization = choose_normalization(fingerprint, planned_encoder(load.network.encoder).pixels)
    separate, separate_reason = choose_separate_slices(fingerprint, basis.slices, spacing, view.axis)
    encoder = planned_encoder(load.network.encoder)
    window, window_reason = _window(basis, view, encoder)
    canvas = choose_canvas(fingerprint, spacing, order, encoder)
    slices = int(TRAINING_SHARE * shapes_at(fingerprint, spacing)[:, view.axis].sum())
    batch = choose_batch(load, training_slices=slices, gpu_memory_gb=basis.gpu_memory_gb, checkpointing=checkpointing)
    mirrored, mirror_reason = _mirror_axes(basis, view)
    target = permute(spacing, order)
    reasons = {
        "axes": _axes_reason(fingerprint),
        "axis_order": f"slices across axis {view.axis} of the image's (Z, Y, X); everything below is in this order",
        "spacing": basis.spacing_reason,
        "median_shape": f"median of {len(fingerprint.cases)} cropped cases at the target spacing",
        "normalization": normalization_reason(fingerprint, normalization),
        "separate_slices": separate_reason,
        "window": window_reason,
        "canvas": canvas.canvas_reason,
        "magnification": canvas.magnification_reason,
        "mirror_axes": mirror_reason,
        "batch_size": batch.batch_reason,
        "accumulation": batch.accumulation_reason,
    }
    natural = StepSize(
        window=window, canvas=canvas.canvas, magnification=canvas.magnification, batch_size=batch.batch_size
    )
    sizes: tuple[StepSize, ...] = ()
    size = natural
    if basis.gpu_memory_gb <= 0 and encoder.without_gpu is not None:
        diameter = smallest_diameter(fingerprint, spacing, order)[0]
        sizes = step_sizes(natural, encoder=encoder, diameter=diameter)
        speed = basis.speeds.get(encoder.name)
        size, notes = choose_size(sizes, speed, training, pixels=encoder.without_gpu.pixels)
        reasons |= {name: f"{note}: {reasons[name]}" if name in reasons else note for name, note in notes.items()}
    return Configuration(
        name=view.name,
        axis_order=order,
        spacing=(target[0], target[1], target[2]),
        median_shape=median_shape(fingerprint, spacing, order),
        normalization=normalization,
        separate_slices=separate,
        window=size.window,
        canvas=size.canvas,
        magnification=size.magnification,
        mirror_axes=mirrored,
        batch_size=size.batch_size,
        accumulation=batch.accumulation,
        sizes=sizes,
        axes=fingerprint.axes,
        slices_along=fingerprint.slices_along,
        training_axes=tuple(sorted({case.axes for case in fingerprint.cases if case.axes is not None})),
    ), reasons


def _axes_reason(fingerprint: Fingerprint) -> str:
    count, same = len(fingerprint.cases), sum(case.axes == fingerprint.axes for case in fingerprint.cases)
    if fingerprint.axes is None:
        return "not turned: the fingerprint is from an older release, which did not record where the images' axes point"
    if fingerprint.axes == UNKNOWN_AXES:
        return "not turned: the images do not say where their axes point"
    which = f"all {count}" if same == count else f"{same} of {count}"
    return f"the axes (x, y, z) of {which} cases; other images are turned to these axes, and their segmentations back"


def _mirror_axes(basis: _Basis, view: _View) -> tuple[tuple[int, ...], str]:
    """Axes of the view that may be mirrored; a single slice has no depth to mirror."""
    first = 1 if view.single else 0
    rules = [(position, basis.mirroring[view.axis_order[position]]) for position in range(first, 3)]
    allowed = tuple(position for position, rule in rules if rule.allowed)
    names = ("slices", "height", "width")
    return allowed, "; ".join(f"{names[position]} {rule.reason}" for position, rule in rules)


def _choose_inference(
    basis: _Basis, loads: Sequence[Load], default: Configuration, encoder: PlannedEncoder
) -> tuple[InferencePlan, Reasons]:
    longest, longest_reason = choose_longest_prediction(loads, gpu_memory_gb=basis.gpu_memory_gb)
    depth, depth_reason = choose_depth(default.window, encoder)
    reasons = {
        "depth": depth_reason,
        "slice_stride": stride_reason(default.window, depth),
        "max_slices": longest_reason,
        "mirror": "mean over all flips that a configuration's mirror_axes allow",
    }
    inference = InferencePlan(depth=depth, slice_stride=(default.window + 1) // 2, max_slices=longest)
    rule = encoder.without_gpu
    if basis.gpu_memory_gb <= 0 and rule is not None and rule.overlap != inference.tile_overlap:
        inference = replace(inference, tile_overlap=rule.overlap)
        reasons["tile_overlap"] = "more overlap costs time without a GPU, for 0.01 Dice (measured on ACDC)"
    return inference, reasons
