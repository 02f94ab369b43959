"""The plan's own rules, `--set`, and plan.json edited by hand."""

import dataclasses
import json

import pytest

from masam_auto.core.errors import PlanError
from masam_auto.core.jsonio import read_json, to_plain, write_json
from masam_auto.core.plan import (
    AugmentationPlan,
    Configuration,
    InferencePlan,
    NetworkPlan,
    NormalizationPlan,
    Plan,
    TrainingPlan,
)
from masam_auto.planning.overrides import override
from tests import fingerprints

CONFIGURATION = Configuration(
    name="axis0",
    axis_order=(0, 1, 2),
    spacing=(3.0, 1.0, 1.0),
    median_shape=(40, 256, 256),
    normalization=(NormalizationPlan(scheme="zscore"),),
    separate_slices=True,
    window=5,
    canvas=(256, 256),
    magnification=1.0,
    mirror_axes=(1, 2),
    batch_size=2,
)
PLAN = Plan(
    name="masam",
    dataset_name="Dataset001_Toy",
    channel_names=("MRI",),
    gpu_memory_gb=0.0,
    default_configuration="axis0",
    configurations={"axis0": CONFIGURATION},
    network=NetworkPlan(encoder="vit_t", decoder="multiscale", weights="none", trained="all"),
    training=TrainingPlan(),
    inference=InferencePlan(),
    reasons={"axis0.window": "because"},
)


@pytest.mark.parametrize(
    ("assignment", "section", "field", "value"),
    [
        ("training.num_epochs=50", "training", "num_epochs", 50),
        ("training.learning_rate=1e-3", "training", "learning_rate", 1e-3),
        ("training.loss_weights=1,0", "training", "loss_weights", (1.0, 0.0)),
        ("training.activation_checkpointing=true", "training", "activation_checkpointing", True),
        ("network.encoder=vit_b", "network", "encoder", "vit_b"),
        ("network.prompt=box", "network", "prompt", "box"),
        ("training.box_relaxation=0.1,0.3", "training", "box_relaxation", (0.1, 0.3)),
        ("inference.mirror = false", "inference", "mirror", False),
        ("inference.depth=windows", "inference", "depth", "windows"),
    ],
)
def test_override_types_the_value_and_changes_nothing_else(assignment, section, field, value):
    changed = override(PLAN, [assignment])
    expected = dataclasses.replace(getattr(PLAN, section), **{field: value})
    assert getattr(changed, section) == expected
    assert changed.reasons[f"{section}.{field}"] == "set by hand"
    rest = dataclasses.replace(changed, **{section: getattr(PLAN, section)}, reasons=PLAN.reasons)
    assert rest == PLAN


def test_override_of_configurations_and_augmentation():
    changed = override(PLAN, ["axis0.canvas=(448,448)", "axis0.mirror_axes=", "training.augmentation.rotation=-5,5"])
    assert changed.configurations["axis0"].canvas == (448, 448)
    assert changed.configurations["axis0"].mirror_axes == ()
    assert changed.training.augmentation.rotation == (-5.0, 5.0)
    assert changed.reasons["axis0.window"] == "because"


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("training.num_epochs", "expected section.field=value"),
        ("num_epochs=3", "expected section.field=value"),
        ("nothing.num_epochs=3", "unknown section 'nothing'; known: training, network, inference, axis0"),
        ("training.epochs=3", "unknown field 'epochs'; known: num_epochs"),
        ("axis0.name=axis1", "unknown field 'name'"),
        ("training.num_epochs=many", "training.num_epochs=many"),
        ("training.num_epochs=0", "must be at least 1"),
        ("axis0.window=4", "window must be odd"),
        ("axis0.canvas=448", "axis0.canvas=448"),
        ("training.augmentation=3", "augmentation has several fields. Name one:"),
        ("training.augmentation.spin=3", "unknown field 'spin'"),
        ("training.augmentation.scaling=0,1", "training.augmentation.scaling must be at least 0.001"),
        ("training.learning_rate=nan", "training.learning_rate=nan"),
        ("training.num_epochs.more=3", "num_epochs is a single value"),
        ("inference.depth=sideways", "inference.depth"),
        ("inference.tile_overlap=0.9999999", "inference.tile_overlap must be within 0..0.95"),
        ("inference.max_slices=1000000000", "inference.max_slices must be at least 1 and at most 4096"),
        ("inference.slice_stride=0", "inference.slice_stride must be at least 1"),
        ("network.increment_rank=100000", "network.increment_rank must be at least 1 and at most 4096"),
        ("network.adapter_channels=0", "network.adapter_channels must be at least 1"),
    ],
)
def test_override_refuses_with_one_clear_line(assignment, message):
    with pytest.raises(PlanError) as caught:
        override(PLAN, [assignment])
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"axis_order": (0, 0, 1)}, "permutation"),
        ({"spacing": (0.0, 1.0, 1.0)}, "spacing must be positive"),
        ({"window": 2}, "odd"),
        ({"spacing": (1e-9, 1.0, 1.0)}, "spacing must be positive and within"),
        ({"spacing": (1.0, 1.0, 1e6)}, "spacing must be positive and within"),
        ({"spacing": (float("nan"), 1.0, 1.0)}, "spacing must be positive"),
        ({"canvas": (8, 64)}, "at least 16"),
        ({"canvas": (64, 4112)}, "at most 4096"),
        ({"mirror_axes": (1, 1)}, "each at most once"),
        ({"name": "../axis0"}, "configuration's name"),
        ({"magnification": 0.0}, "magnification"),
        ({"mirror_axes": (3,)}, "mirror_axes"),
        ({"batch_size": 0}, "batch_size must be at least 1 and at most 16384, got 0"),
        ({"accumulation": 10**9}, "accumulation must be at least 1 and at most 16384"),
        ({"window": 10**12 + 1}, "window must be at least 1 and at most 1023"),
        ({"normalization": ()}, "normalization"),
        ({"order_image": 2}, "orders"),
    ],
)
def test_configuration_refuses_nonsense(changes, message):
    with pytest.raises(PlanError, match=message):
        dataclasses.replace(CONFIGURATION, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window": 10**12}, "window must be at least 1 and at most 1023"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"canvas": (64, 10**6)}, "canvas sides must be from 16 to 4096 px"),
    ],
)
def test_step_sizes_have_the_limits_of_configurations(changes, message):
    with pytest.raises(PlanError, match=f"step size: {message}"):
        dataclasses.replace(CONFIGURATION.size, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_epochs": 0},
        {"learning_rate": 0.0},
        {"pretrained_rate": 0.0},
        {"adam_beta2": 1.0},
        {"pretrained_rate": 1.5},
        {"weight_decay": -1.0},
        {"weight_average": 1.0},
        {"foreground_fraction": 1.5},
        {"loss_weights": (0.0, 0.0)},
        {"box_dropout": 1.1},
        {"box_relaxation": (0.5, 0.2)},
        {"box_relaxation": (-0.1, 0.2)},
        {"box_relaxation": (0.0, float("nan"))},
        {"box_jitter": 0.5},
        {"box_jitter": -0.1},
        {"loss_weights": (float("inf"), 0.0)},
        {"seed": -1},
        {"warmup_steps": -1},
        {"gradient_clip": -0.5},
        {"gradient_clip": float("nan")},
        {"schedule_exponent": 0.0},
        {"schedule_exponent": float("inf")},
        {"learning_rate": float("inf")},
        {"weight_decay": float("inf")},
    ],
)
def test_training_refuses_nonsense(changes):
    with pytest.raises(PlanError, match=next(iter(changes))):
        dataclasses.replace(TrainingPlan(), **changes)


@pytest.mark.parametrize(
    "changes",
    [
        *({name: (0.5, 0.4)} for name in ("rotation", "shear", "translation", "brightness", "sharpness", "noise")),
        *({name: (1.5, 1.4)} for name in ("scaling", "gamma", "contrast")),
        *({name: (0.0, 1.0)} for name in ("scaling", "gamma", "contrast")),
        *({name: (0.1, float("nan"))} for name in ("rotation", "noise", "scaling", "erasing")),
        *({f"{name}_probability": value} for name in ("spatial", "intensity", "erasing") for value in (-0.1, 1.1)),
        {"spatial_probability": float("nan")},
        {"shear": (-61.0, 0.0)},
        {"shear": (0.0, 90.0)},
        {"translation": (0.0, float("inf"))},
        {"posterise": (1, 8)},
        {"posterise": (64, 16)},
        {"noise": (-0.1, 0.1)},
        {"erasing": (-0.1, 0.1)},
        {"erasing": (0.1, 1.1)},
    ],
)
def test_augmentation_refuses_nonsense(changes):
    with pytest.raises(PlanError, match=f"training.augmentation.{next(iter(changes))} must") as caught:
        dataclasses.replace(AugmentationPlan(), **changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": float("nan")}, "normalization.mean must be finite"),
        ({"upper": float("inf")}, "normalization.upper must be finite"),
        ({"std": -1.0}, "std must not be negative"),
        ({"scheme": "ct", "std": 0.0, "upper": 9.0}, "std must be above 0"),
        ({"lower": 2.0, "upper": 1.0}, "lower must not be above"),
    ],
)
def test_normalization_refuses_nonsense(changes, message):
    with pytest.raises(PlanError, match=message):
        NormalizationPlan(**({"scheme": "zscore"} | changes))


def test_a_channel_of_one_value_can_be_planned():
    for scheme in ("ct", "zscore"):
        constant = NormalizationPlan(scheme=scheme, mean=7.0, std=0.0, lower=7.0, upper=7.0)
        assert dataclasses.replace(CONFIGURATION, normalization=(constant,)).normalization == (constant,)


@pytest.mark.parametrize("name", ["", ".", ".hidden", "a/b", "../up", "a__b", "a b", "naïve", "a\n"])
def test_names_that_cannot_be_folders_are_refused(name):
    with pytest.raises(PlanError, match="the plan's name must be made of"):
        dataclasses.replace(PLAN, name=name)


def test_names_that_can_be_folders_are_taken():
    for name in ("masam", "v1.2-test_B", "_x", "2"):
        assert dataclasses.replace(PLAN, name=name).name == name


def test_a_whole_plan_must_be_finite():
    with pytest.raises(PlanError, match="gpu_memory_gb must be finite"):
        dataclasses.replace(PLAN, gpu_memory_gb=float("nan"))


def test_network_and_inference_refuse_nonsense():
    for changes in (
        {"increment_scale": float("inf")},
        {"increment_scale": 0.0},
        {"neck_trained": True, "trained": "none"},
        {"increment_rank": 0},
        {"adapter_channels": 0},
        {"increment_dropout": 1.0},
    ):
        with pytest.raises(PlanError, match=next(iter(changes))):
            dataclasses.replace(PLAN.network, **changes)
    for wrong in ({"slice_stride": 0}, {"max_slices": 0}, {"tile_overlap": 1.0}, {"reversed_axes": (3,)}):
        with pytest.raises(PlanError, match=next(iter(wrong))):
            dataclasses.replace(InferencePlan(), **wrong)


def test_decoder_only_is_one_field_and_leaves_out_what_would_not_learn():
    network = override(PLAN, ["network.trained=none"]).network
    assert (network.increment, network.adapters) == (PLAN.network.increment, PLAN.network.adapters)
    assert (network.as_built.increment, network.as_built.adapters) == ("none", "none")
    assert PLAN.network.as_built is PLAN.network


@pytest.mark.parametrize(
    ("assignment", "known"),
    [("adapters=some", "both, before, after, none"), ("trained=some", "adapted, all, none")],
)
def test_a_variant_that_is_unknown_is_refused_while_planning(assignment, known):
    with pytest.raises(PlanError, match=rf"^`network\.{assignment}`: \w+ must be one of {known}$"):
        override(PLAN, [f"network.{assignment}"])


def test_plan_refuses_a_missing_default_and_wrong_channels():
    with pytest.raises(PlanError, match="default_configuration 'axis9'"):
        dataclasses.replace(PLAN, default_configuration="axis9")
    with pytest.raises(PlanError, match="1 normalisations for 2 channels"):
        dataclasses.replace(PLAN, channel_names=("T1", "T2"))
    with pytest.raises(PlanError, match="calls itself 'axis0'"):
        dataclasses.replace(PLAN, configurations={"2d": CONFIGURATION}, default_configuration="2d")


def test_configuration_by_name():
    assert PLAN.configuration(None) is PLAN.configuration("axis0") is CONFIGURATION
    with pytest.raises(PlanError, match="configuration '3d' is not in the plan of Dataset001_Toy; it has axis0"):
        PLAN.configuration("3d")


def test_only_fields_that_arrays_depend_on_change_the_preprocessing_digest():
    same = {"window": 7, "canvas": (448, 448), "batch_size": 9, "mirror_axes": (), "magnification": 2.0}
    for field, value in same.items():
        changed = dataclasses.replace(CONFIGURATION, **{field: value})
        assert changed.preprocessing_digest == CONFIGURATION.preprocessing_digest
    other = {"spacing": (2.0, 1.0, 1.0), "axis_order": (1, 0, 2), "separate_slices": False, "order_labels": 0}
    for field, value in other.items():
        changed = dataclasses.replace(CONFIGURATION, **{field: value})
        assert changed.preprocessing_digest != CONFIGURATION.preprocessing_digest


def test_plan_survives_its_file_and_edits_by_hand(tmp_path):
    path = tmp_path / "plan.json"
    write_json(path, PLAN)
    assert read_json(path, Plan, what="plan") == PLAN
    plain = json.loads(path.read_text())
    plain["training"]["num_epochs"] = 7
    plain["configurations"]["axis0"]["canvas"] = [128, 256]
    path.write_text(json.dumps(plain))
    edited = read_json(path, Plan, what="plan")
    assert edited.training.num_epochs == 7 and edited.configurations["axis0"].canvas == (128, 256)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("version",), 99, "version 99"),
        (("training", "num_epochs"), "many", "num_epochs"),
        (("training", "num_epochs"), -1, "at least 1"),
        (("training", "epochs"), 3, "unknown fields: training.epochs"),
        (("configurations", "axis0", "window"), 4, "odd"),
        (("configurations", "axis0", "spacing"), [1.0, 1.0], "spacing"),
        (("training", "augmentation", "gamma"), [-1.0, 1.0], "training.augmentation.gamma must be at least 0.001"),
        (("training", "seed"), -3, "training.seed must not be negative"),
        (("training", "seed"), 10**40, "training.seed must be below"),
        (("name",), "../elsewhere", "the plan's name"),
        (("default_configuration",), "axis7", "axis7"),
        (("network", "weights"), "imagenet", "weights"),
    ],
)
def test_edited_to_nonsense_is_refused_naming_the_file(tmp_path, place, value, message):
    plain = to_plain(PLAN)
    section = plain
    for key in place[:-1]:
        section = section[key]
    section[place[-1]] = value
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plain))
    with pytest.raises(PlanError) as caught:
        read_json(path, Plan, what="plan")
    assert message in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_made_fingerprints_are_valid():
    fingerprint = fingerprints.make_fingerprint()
    with pytest.raises(PlanError, match="no cases"):
        dataclasses.replace(fingerprint, cases=())
    with pytest.raises(PlanError, match="0 intensity records for 1 channels"):
        dataclasses.replace(fingerprint, intensities=())
