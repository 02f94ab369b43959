"""Turn a published MA-SAM checkpoint and the SAM checkpoint it needs into a model folder of masam_auto.

The tensors tell the network's architecture. The rest (canvas, window, intensities, spacing) is taken from the reference
implementation, unless the user gives it.

Source of the defaults: the reference implementation's preprocessing, training and test scripts, at commit 0c3cd90.
"""

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from masam_auto.core.claims import claimed
from masam_auto.core.dataset import DatasetDescription
from masam_auto.core.encoders import sams_own
from masam_auto.core.errors import ModelError, OutputError, PlanError
from masam_auto.core.geometry import Triple, permute
from masam_auto.core.jsonio import write_json
from masam_auto.core.plan import Configuration, InferencePlan, NetworkPlan, NormalizationPlan, Plan, TrainingPlan
from masam_auto.imaging.normalize import choose_scheme, find_normalizer
from masam_auto.models.checkpoint import Checkpoint, ModelHeader, TrainingState, plan_digest, save_checkpoint
from masam_auto.models.model_exchange import bring_back, new_models
from masam_auto.models.sam_files import SamWeights, weights_to_start_from
from masam_auto.models.trained_model import describe_model
from masam_auto.network.build import build_network, published_tensors, sam_tensors, trainable_state_dict
from masam_auto.network.masam import MaSam
from masam_auto.network.published import Variant, infer_encoder, network_plan_of, read_variant
from masam_auto.network.weight_files import load_sam_checkpoint
from masam_auto.planning.overrides import override

logger = logging.getLogger(__name__)

CANVAS, WINDOW, BATCH = (512, 512), 5, 3
CT_RANGE = (-200.0, 250.0)  # Hounsfield units, abdominal CT
FIXED_RANGE = ("clip_to_0_1", "ct")  # schemes that clip at fixed intensities
# Windows as long as in training around every slice, blended; no averaging over flips.
INFERENCE = InferencePlan(depth="windows", slice_stride=1, mirror=False)
# The reference's scripts for BTCV and prostate turn each slice by 180 degrees from its order in NIfTI files. Those for
# RGB frames do not.
TURNED = (1, 2)
ADAPTED = "published MA-SAM"


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """A published checkpoint, with what its tensors do not tell.

    `checkpoint` is the file, `scale` is FacT's s, and `prompt` says how it was trained.
    """

    checkpoint: Path
    scale: float = 1.0
    prompt: Literal["none", "box"] = "none"


def reference_normalization(
    channel_names: Sequence[str], *, scheme: str | None = None, intensity: tuple[float, float] | None = None
) -> tuple[NormalizationPlan, ...]:
    """Choose the normalisation as in the reference, which gives its networks intensities from 0 to 1.

    CT is clipped to -200..250 HU, other volumes to their minimum and 99 % quantile. A channel named like another scheme
    gets that scheme.

    Args:
        channel_names: in channel order.
        scheme: one scheme for all channels instead.
        intensity: lowest and highest intensity, in the file's units, for schemes that clip at fixed intensities.

    Raises:
        PlanError: unknown scheme, an invalid intensity range, or one that the scheme does not use.
    """
    if scheme is not None:
        find_normalizer(scheme)
    lower, upper = intensity or CT_RANGE
    if not lower < upper:
        raise PlanError(f"`intensity={lower:g} {upper:g}`: the lowest intensity must be below the highest")
    if intensity is not None and scheme not in (None, *FIXED_RANGE):
        raise PlanError(f"`normalization={scheme}` does not use `intensity`; leave one of them out")
    usual = {"ct": "clip_to_0_1", "zscore": "quantile_to_0_1"}
    plans = []
    for name in channel_names:
        chosen = scheme or ("clip_to_0_1" if intensity else usual.get(choose_scheme(name), choose_scheme(name)))
        fixed = chosen in FIXED_RANGE
        plans.append(NormalizationPlan(scheme=chosen, lower=lower if fixed else 0.0, upper=upper if fixed else 0.0))
    return tuple(plans)


def reference_configuration(
    planned: Configuration | None,
    *,
    normalization: tuple[NormalizationPlan, ...],
    spacing: Triple | None = None,
    axis: int | None = None,
    canvas: tuple[int, int] = CANVAS,
    window: int | None = None,
) -> Configuration:
    """Make the configuration that prepares volumes for a published network.

    The reference does not resample between slices, and stretches each slice to the canvas. We keep physical sizes:
    slices are resampled in-plane to `spacing`, with the nearest slice across. With a plan, a slice of the data set's
    median size fills the canvas. Without a plan, a preprocessed pixel is a canvas pixel.

    Args:
        planned: a configuration of the data set's plan, whose geometry is used; None without a plan.
        normalization: one entry per channel.
        spacing: mm in the file's order (Z, Y, X), of the volumes that the network was trained on.
        axis: the slice axis in that order; 0 by default. A planned configuration brings its own.
        canvas: (height, width) in pixels.
        window: N; by default 5, or 1 if the planned configuration uses single slices.

    Raises:
        PlanError: no spacing, an axis that differs from the planned one, or a value that a configuration does not
            allow.
    """
    if window is None:
        window = 1 if planned is not None and planned.window == 1 else WINDOW
    if planned is not None:
        if axis is not None and axis != planned.axis_order[0]:
            raise PlanError(
                f"`axis={axis}`: configuration {planned.name} of the data set's plan slices along axis "
                f"{planned.axis_order[0]}. Choose another one with `configuration`."
            )
        own = planned.spacing if spacing is None else _permuted(spacing, planned.axis_order)
        return dataclasses.replace(
            planned, spacing=own, normalization=normalization, canvas=canvas, window=window,
            magnification=_stretch(planned, own, canvas),
        )  # fmt: skip
    return _unplanned(spacing, axis or 0, normalization, canvas, window)


def _unplanned(
    spacing: Triple | None,
    axis: int,
    normalization: tuple[NormalizationPlan, ...],
    canvas: tuple[int, int],
    window: int,
) -> Configuration:
    """The configuration of a data set without a plan."""
    if spacing is None:
        raise PlanError(
            "`spacing=Z Y X` is needed: the voxel spacing in mm of the volumes that the checkpoint was trained on "
            "(their median), in the order of the file's axes. Or plan the data set first (masam_plan), and its "
            "geometry is taken."
        )
    first, second = (other for other in range(3) if other != axis)
    order = (axis, first, second)
    return Configuration(
        name=f"axis{axis}",
        axis_order=order,
        spacing=_permuted(spacing, order),
        median_shape=(window, *canvas),
        normalization=normalization,
        separate_slices=True,
        window=window,
        canvas=canvas,
        magnification=1.0,
        mirror_axes=(),
        batch_size=BATCH,
    )


def import_checkpoint(
    published: Published,
    sam: SamWeights | None,
    description: DatasetDescription,
    configuration: Configuration,
    results: Path,
    *,
    weights_folder: Path,
    name: str = "imported",
    overrides: Sequence[str] = (),
    overwrite: bool = False,
) -> Path:
    """Write the model folder. Nothing is written before everything is known to fit.

    Args:
        published: the published checkpoint.
        sam: the SAM checkpoint that it needs; None looks for one of the encoder in `weights_folder`.
        description: the data set whose labels the network predicts, background included.
        configuration: from `reference_configuration`.
        results: root of the results.
        weights_folder: SAM checkpoints.
        name: of the plan; part of the folder's name.
        overrides: "section.field=value" assignments for the plan.
        overwrite: replace the model of an earlier import.

    Returns:
        results/DatasetXXX_Name/<name>__<configuration>, with the network as fold "all".

    Raises:
        ModelError: a checkpoint cannot be read or has another form, the two do not fit each other, or the classes or
            channels differ from the data set's.
        PlanError: overrides or a canvas that are not allowed.
        OutputError: a model of that name exists, or the folder cannot be written.
    """
    folder = results / description.name / f"{name}__{configuration.name}"
    with claimed(folder.parent, "models"):
        bring_back(folder.parent)
        _refuse_what_is_there(folder, overwrite=overwrite)
        state = load_sam_checkpoint(published.checkpoint, what=ADAPTED)
        origin = str(published.checkpoint)
        variant = read_variant(state, origin=origin)
        _check_data(variant, description, origin)
        sam = sam or _usual_sam(variant, weights_folder, origin)
        sam_state = load_sam_checkpoint(sam.path)
        spec = infer_encoder(sam_state, canvas=configuration.canvas, origin=str(sam.path))
        network_plan = network_plan_of(variant, spec, scale=published.scale, prompt=published.prompt, origin=origin)
        plan = override(_make_plan(description, configuration, network_plan, name=name, origin=origin), overrides)
        configuration = plan.configuration(configuration.name)
        network = build_network(
            plan.network,
            canvas=configuration.canvas,
            in_channels=description.num_channels,
            num_outputs=variant.num_outputs,
            device="meta",  # no memory is allocated before the tensors are known to fit
        )
        frozen = sam_tensors(network, sam_state, origin=str(sam.path))
        network.load_state_dict({**frozen, **published_tensors(network, state, origin=origin)}, assign=True)
        _write(folder, plan, configuration, description, network, sam)
        logger.info("%s: %s of %s, rank %d, adapters %s", folder, plan.network.decoder, plan.network.encoder,
                variant.rank,
                    variant.adapters)  # fmt: skip
        return folder


def _check_data(variant: Variant, description: DatasetDescription, origin: str) -> None:
    """Raise ModelError if the checkpoint does not have these labels or channels."""
    labels = description.labels
    if labels.has_regions:
        raise ModelError(
            f"{description.name} has regions as labels, but {origin} was trained on classes that exclude each other. "
            "Give a dataset.json with one value per class (`dataset_json`)."
        )
    if labels.num_outputs != variant.num_outputs:
        raise ModelError(
            f"{origin} has {variant.num_outputs} outputs (background and {variant.num_outputs - 1} classes), but "
            f"{description.name} has {labels.num_outputs} labels with the background ({', '.join(labels.values)}). "
            "Give the dataset.json of the data that it was trained on (`dataset_json`)."
        )
    if description.num_channels not in (1, 3):
        raise ModelError(
            f"{description.name} has {description.num_channels} channels ({', '.join(description.channel_names)}); "
            "published checkpoints take 1 (replicated for SAM) or 3."
        )


def _usual_sam(variant: Variant, weights_folder: Path, origin: str) -> SamWeights:
    """The SAM checkpoint in the weights folder for an encoder of this size."""
    sizes = {(spec.dim, spec.depth): name for name, spec in sams_own().items()}
    encoder = sizes.get((variant.dim, variant.depth))
    if encoder is None:
        raise ModelError(
            f"{origin} adapts an encoder of {variant.depth} blocks of width {variant.dim}. It is none of "
            f"{', '.join(sizes.values())}. Name its SAM checkpoint with `sam_checkpoint=PATH`."
        )
    return weights_to_start_from(encoder, file=None, folder=weights_folder)


def _make_plan(
    description: DatasetDescription, configuration: Configuration, network: NetworkPlan, *, name: str, origin: str
) -> Plan:
    read = f"read from the tensors of {Path(origin).name}"
    told = "from the reference implementation, or given when the model was imported"
    fields = ("encoder", "decoder", "increment", "increment_rank", "adapters", "adapter_channels")
    reasons = {f"network.{field}": read for field in fields}
    reasons |= {f"{configuration.name}.{field}": told for field in ("spacing", "normalization", "window", "canvas")}
    reasons |= {f"network.{field}": told for field in ("increment_scale", "prompt")}
    reasons |= {"inference.depth": "windows around every slice, as in the reference's test script; whole is faster"}
    reasons |= {"inference.reversed_axes": "the reference's scripts turn volumes by 180 degrees in-plane"}
    return Plan(
        name=name,
        dataset_name=description.name,
        channel_names=description.channel_names,
        gpu_memory_gb=0.0,
        default_configuration=configuration.name,
        configurations={configuration.name: configuration},
        network=network,
        training=TrainingPlan(),
        inference=dataclasses.replace(INFERENCE, reversed_axes=TURNED if description.num_channels == 1 else ()),
        reasons=reasons,
    )


def _write(
    folder: Path,
    plan: Plan,
    configuration: Configuration,
    description: DatasetDescription,
    network: MaSam,
    sam: SamWeights,
) -> None:
    """Write the folder under a temporary name, then move it into place."""
    header = ModelHeader(
        dataset_name=description.name,
        configuration=configuration.name,
        fold="all",
        plan_digest=plan_digest(plan, configuration),
        sam_file=str(sam.path),
        sam_sha256=sam.sha256,
        epoch=0,
        network=plan.network,
        canvas=configuration.canvas,
        in_channels=description.num_channels,
        num_outputs=description.labels.num_outputs,
    )
    checkpoint = Checkpoint(
        header=header,
        state=TrainingState(finished=True),
        model=trainable_state_dict(network),
        weights={},
        optimizers=(),
    )
    with new_models(folder.parent) as new:
        save_checkpoint(new / folder.name / "fold_all", checkpoint, best=True)
        write_json(new / folder.name / "dataset.json", description.raw)
        write_json(new / folder.name / "plan.json", plan)


def _refuse_what_is_there(folder: Path, *, overwrite: bool) -> None:
    """Raise OutputError if importing would replace a model without `overwrite`, or a trained one."""
    if not folder.exists():
        return
    folds = [str(fold) for fold in describe_model(folder).folds]
    # an imported network is fold "all", like some trained ones; only a training writes metrics
    trained = [fold for fold in folds if fold != "all" or (folder / "fold_all" / "metrics.jsonl").exists()]
    if trained:
        raise OutputError(
            f"{folder} holds trained folds ({', '.join(trained)}). Give the imported model another name with "
            "`plan_name`."
        )
    if not overwrite:
        raise OutputError(f"{folder} exists already. Give `overwrite` to replace it, or another name with `plan_name`.")


def _stretch(planned: Configuration, spacing: Triple, canvas: tuple[int, int]) -> float:
    """Canvas pixels per preprocessed pixel with which a slice of the median size fills the canvas."""
    sizes = [planned.median_shape[axis] * planned.spacing[axis] / spacing[axis] for axis in (1, 2)]
    return min(side / size for side, size in zip(canvas, sizes, strict=True))


def _permuted(spacing: Triple, order: tuple[int, int, int]) -> Triple:
    first, second, third = permute(spacing, order)
    return (first, second, third)
