"""make_plan: every rule reaches its field, moves no other, and gives a reason."""

import dataclasses
from pathlib import Path

import pytest

from masam_auto.core.dataset import open_dataset
from masam_auto.core.errors import PlanError
from masam_auto.core.jsonio import read_json, to_plain, write_json
from masam_auto.core.paths import Paths
from masam_auto.core.plan import Configuration, Plan, Speed
from masam_auto.planning.make_plan import make_plan, plan_table
from masam_auto.planning.recipes import ADAPTED, SCRATCH
from masam_auto.preprocessing.fingerprint import extract_fingerprint
from tests import fingerprints

SAM = ("vit_b", "vit_l", "vit_h")


def moved(before: Plan, after: Plan, *, configuration: str | None = None) -> set[str]:
    """Dotted names of the fields that differ, reasons apart; of one configuration, at its natural size, if given."""

    def leaves(value, prefix=""):
        if isinstance(value, dict):
            for key, part in value.items():
                yield from leaves(part, f"{prefix}{key}.")
        else:
            yield prefix.rstrip("."), value

    sides = []
    for plan in (before, after):
        plain = to_plain(natural(plan.configurations[configuration]) if configuration else plan)
        sides.append(dict(leaves({key: value for key, value in plain.items() if key != "reasons"})))
    return {key for key in sides[0] | sides[1] if sides[0].get(key) != sides[1].get(key)}


def natural(configuration: Configuration) -> Configuration:
    """As it would be if time did not matter."""
    sizes = configuration.sizes or (configuration.size,)
    return dataclasses.replace(configuration.resized(sizes[0]), sizes=())


def volume_plan(*, gpu_memory_gb: float = 0, **options) -> Plan:
    return make_plan(fingerprints.make_fingerprint(**options), gpu_memory_gb=gpu_memory_gb, sam_weights=SAM)


def test_from_scratch_changes_what_it_must_and_its_reasons_stay_true():
    options = {"gpu_memory_gb": 24, "backbone": "vit_b", "sam_weights": SAM}
    fingerprint = fingerprints.make_fingerprint()
    adapted, scratch = (make_plan(fingerprint, **options, from_scratch=value) for value in (False, True))
    assert (scratch.network.weights, scratch.network.trained) == ("none", "all")
    assert dataclasses.replace(scratch.network, weights="sam", trained="adapted") == adapted.network
    assert not any("SAM's" in reason for key, reason in scratch.reasons.items() if key != "network.weights")
    small = make_plan(fingerprint, gpu_memory_gb=80, sam_weights=SAM, from_scratch=True)
    assert small.network.encoder == "vit_t" and small.reasons["network.encoder"].startswith("from scratch, as asked")


def test_configurations_by_kind_of_data():
    def names(**options):
        plan = volume_plan(**options)
        return plan.default_configuration, set(plan.configurations)

    assert names() == ("axis0", {"axis0", "2d"})
    assert names(spacing=(1.0, 4.0, 1.0)) == ("axis1", {"axis1", "2d"})
    assert names(spacing=(1.0, 1.0, 1.0), shape=(36, 50, 35)) == ("axis2", {"axis0", "axis1", "axis2", "2d"})
    assert names(is_video=True, spacing=(1.0, 1.0, 1.0)) == ("axis0", {"axis0", "2d"})
    assert names(dimensions=2, shape=(1, 200, 200), spacing=(1.0,) * 3) == ("2d", {"2d"})


def test_axis_order_puts_the_slice_axis_first():
    plan = volume_plan(spacing=(1.0, 1.0, 1.0), shape=(36, 50, 35))
    orders = {name: c.axis_order for name, c in plan.configurations.items()}
    assert orders == {"axis0": (0, 1, 2), "axis1": (1, 0, 2), "axis2": (2, 0, 1), "2d": (2, 0, 1)}
    assert plan.configurations["axis1"].median_shape == (50, 36, 35)


def test_2d_differs_from_the_default_only_where_single_slices_must():
    plan = volume_plan()
    flat, default = plan.configurations["2d"], plan.configurations["axis0"]
    assert flat.window == 1 and flat.mirror_axes == (1, 2) and natural(flat).canvas == natural(default).canvas
    assert flat.preprocessing_digest == default.preprocessing_digest


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"kept": 0.5}, {"normalization"}),
        ({"channels": ("CT",)}, {"normalization"}),
        ({"spacing": (3.3, 1.0, 1.0)}, {"spacing", "separate_slices"}),
        ({"spacing": (5.0, 1.0, 1.0)}, {"spacing", "separate_slices", "window"}),
        ({"shape": (40, 256, 128)}, {"median_shape", "canvas"}),
        ({"diameter": 3.0}, {"canvas", "magnification"}),
        ({"classes": ("left kidney", "right kidney")}, {"mirror_axes"}),
        ({"count": 12}, set()),
    ],
)
def test_a_rule_moves_its_own_fields_and_no_other(changes, fields):
    base = {"shape": (40, 128, 128), "diameter": 100.0, "count": 10}
    before, after = volume_plan(**base), volume_plan(**(base | changes))
    assert moved(before, after, configuration="axis0") == fields
    assert before.network == after.network and before.training == after.training


def test_normalisation_by_channel_names():
    names = ("CT", "ct", "MRI", "noNorm", "rgb_to_0_1", "Rescale_To_0_1")
    plan = volume_plan(channels=names, kept=0.5)
    schemes = [n.scheme for n in plan.configurations["axis0"].normalization]
    assert schemes == ["ct", "ct", "zscore", "noNorm", "rgb_to_0_1", "rescale_to_0_1"]
    assert [n.inside_mask for n in plan.configurations["axis0"].normalization] == [s == "zscore" for s in schemes]
    ct = plan.configurations["axis0"].normalization[0]
    assert (ct.lower, ct.upper, ct.mean, ct.std) == (-110.0, 800.0, 40.0, 100.0)
    full = volume_plan(channels=names, kept=0.75)
    assert not any(n.inside_mask for n in full.configurations["axis0"].normalization)


def test_without_a_gpu_everything_learns_from_scratch_and_the_plan_says_so():
    plan = volume_plan()
    assert (plan.network.encoder, plan.network.decoder) == ("vit_t", "multiscale")
    assert (plan.network.weights, plan.network.trained) == ("none", "all")
    assert plan.training == SCRATCH and "from scratch" in plan.reasons["network.encoder"]


def test_with_a_gpu_sam_is_adapted_as_in_the_paper():
    plan = volume_plan(gpu_memory_gb=80)
    network = plan.network
    assert (network.encoder, network.weights, network.trained) == ("vit_h", "sam", "adapted")
    assert (network.increment, network.increment_rank, network.increment_scale) == ("fact", 32, 1.0)
    assert (network.adapters, network.adapter_channels, network.decoder) == ("both", 384, "progressive")
    training = plan.training
    assert training == ADAPTED and (training.learning_rate, training.weight_decay) == (8e-4, 0.1)
    assert training.num_epochs * training.steps_per_epoch == 20_000 and training.warmup_steps == 250
    assert (training.schedule, training.schedule_exponent, training.loss_weights) == ("poly", 7.0, (0.2, 0.8))


def test_memory_moves_batch_and_checkpointing_only():
    options = {"shape": (400, 512, 512)}
    small = make_plan(fingerprints.make_fingerprint(**options), gpu_memory_gb=24, backbone="vit_b", sam_weights=SAM)
    tiny = make_plan(fingerprints.make_fingerprint(**options), gpu_memory_gb=3, backbone="vit_b", sam_weights=SAM)
    large = make_plan(fingerprints.make_fingerprint(**options), gpu_memory_gb=80, backbone="vit_b", sam_weights=SAM)
    batch = {f"configurations.{name}.{field}" for name in ("axis0", "2d") for field in ("batch_size", "accumulation")}
    allowed = batch | {"gpu_memory_gb", "training.activation_checkpointing", "inference.max_slices"}
    assert moved(small, tiny) <= allowed and moved(small, large) <= allowed
    assert tiny.training.activation_checkpointing and not large.training.activation_checkpointing
    updates = [p.configurations["axis0"].batch_size * p.configurations["axis0"].accumulation for p in (small, large)]
    assert all(20 <= update <= 24 for update in updates)


def test_channel_counts_are_explained():
    def reason(count):
        return volume_plan(gpu_memory_gb=80, channels=("a", "b", "c", "d")[:count]).reasons["channel_names"]

    assert "summed" in reason(1) and "as SAM has them" in reason(3) and "inflated" in reason(4)


def test_every_configuration_field_has_a_reason_with_numbers():
    plan = volume_plan(gpu_memory_gb=24, spacing=(3.27, 0.98, 0.98))
    for field in ("axis_order", "spacing", "window", "canvas", "magnification", "mirror_axes", "batch_size"):
        assert plan.reasons[f"axis0.{field}"], field
    assert "3.27 mm" in plan.reasons["axis0.window"] and "15 mm" in plan.reasons["axis0.window"]
    assert "24 GiB" in plan.reasons["axis0.batch_size"] and "3.27" in plan.reasons["default_configuration"]
    for key in plan.reasons:
        section, _, field = key.partition(".")
        owner = plan.configurations.get(section, getattr(plan, section, None))
        assert not field or hasattr(owner, field), f"{key} names no field"


def test_choices_by_hand():
    fingerprint = fingerprints.make_fingerprint()
    base = make_plan(fingerprint, gpu_memory_gb=0)
    spaced = make_plan(fingerprint, gpu_memory_gb=0, target_spacing=(1.5, 1.0, 1.0))
    assert spaced.configurations["axis0"].spacing == (1.5, 1.0, 1.0)
    assert spaced.reasons["axis0.spacing"] == "set by hand"
    chosen = make_plan(fingerprint, gpu_memory_gb=0, overrides=["training.num_epochs=3", "axis0.window=3"])
    by_hand, following = (
        {"training.num_epochs", "configurations.axis0.window"},
        {"inference.depth", "inference.slice_stride"},
    )
    assert by_hand <= moved(base, chosen) <= by_hand | following
    assert chosen.inference.slice_stride == 2 and chosen.reasons["inference.slice_stride"].startswith(
        "half of the window of 3"
    )
    kept = make_plan(fingerprint, gpu_memory_gb=0, overrides=["axis0.window=3", "inference.slice_stride=1"])
    assert (kept.inference.slice_stride, kept.inference.depth) == (1, "windows")
    assert make_plan(fingerprint, gpu_memory_gb=0, backbone="vit_b").network.encoder == "vit_b"
    assert make_plan(fingerprint, gpu_memory_gb=0, name="mine").name == "mine"
    with pytest.raises(PlanError, match="is unknown; known: vit_t"):
        make_plan(fingerprint, gpu_memory_gb=0, backbone="resnet")
    with pytest.raises(PlanError, match="three positive numbers"):
        make_plan(fingerprint, gpu_memory_gb=0, target_spacing=(1.0, -1.0, 1.0))
    with pytest.raises(PlanError, match="unknown field"):
        make_plan(fingerprint, gpu_memory_gb=0, overrides=["training.epochs=3"])
    for field in ("encoder", "decoder"):
        with pytest.raises(PlanError, match=rf"network\.{field} 'unet' is unknown; known: "):
            make_plan(fingerprint, gpu_memory_gb=0, overrides=[f"network.{field}=unet"])


def test_the_plan_is_pure_and_survives_its_file(tmp_path: Path):
    fingerprint = fingerprints.make_fingerprint()
    plan = make_plan(fingerprint, gpu_memory_gb=11, sam_weights=SAM)
    assert plan == make_plan(fingerprint, gpu_memory_gb=11, sam_weights=SAM)
    write_json(tmp_path / "plan.json", plan)
    assert read_json(tmp_path / "plan.json", Plan, what="plan") == plan


def test_table_shows_decisions_with_their_reasons():
    plan = volume_plan(spacing=(1.0, 1.0, 1.0), shape=(36, 50, 35))
    lines = plan_table(plan).splitlines()
    assert "Dataset001_Toy" in lines[0] and "without a GPU" in lines[0] and max(map(len, lines)) <= 140
    rows = {line.split()[0]: line for line in lines[3:] if line and not line.startswith(" ")}
    assert "vit_t" in rows["network.encoder"] and "15" in rows["axis2.window"]
    assert "axis0.canvas" in rows and "axis0.spacing" not in rows, "what equals the default is not repeated"
    by_hand = dataclasses.replace(plan, gpu_memory_gb=24.0, reasons={"training.num_epochs": "set by hand"})
    assert "24 GiB" in plan_table(by_hand).splitlines()[0] and "set by hand" in plan_table(by_hand)


def test_hippocampus_forbids_mirroring_along_anterior_posterior(shared_data: Path):
    root = shared_data / "raw"
    dataset = open_dataset(Paths(raw=root, preprocessed=root, results=root, weights=root), "4")
    fingerprint = extract_fingerprint(dataclasses.replace(dataset, cases=dataset.cases[::8]), workers=0)
    renamed = dict(zip(fingerprint.classes, ("one", "two"), strict=True))  # names must not be what decides
    nameless = dataclasses.replace(
        fingerprint,
        class_names=("one", "two"),
        classes={renamed[name]: summary for name, summary in fingerprint.classes.items()},
        cases=tuple(
            dataclasses.replace(case, classes={renamed[name]: m for name, m in case.classes.items()})
            for case in fingerprint.cases
        ),
    )
    for found in (fingerprint, nameless):
        for configuration in make_plan(found, gpu_memory_gb=0).configurations.values():
            assert configuration.axis_order.index(1) not in configuration.mirror_axes


@pytest.mark.parametrize(
    ("budget", "encoder"),
    [("300cpus", "lite_medsam"), ("20cpus", "vit_t"), ("5epochs", "lite_medsam"), (None, "lite_medsam")],
)
def test_the_time_of_a_fold_decides_whether_a_pretrained_encoder_is_used(budget, encoder):
    plan = make_plan(
        fingerprints.make_fingerprint(shape=(10, 256, 256), spacing=(10.0, 1.5, 1.5), diameter=42.0),
        gpu_memory_gb=0,
        sam_weights=("lite_medsam",),
        speeds={"lite_medsam": Speed(wall=40_000.0, cpu=40_000.0), "vit_t": Speed(wall=3e5, cpu=3e5)},
        overrides=[f"training.budget={budget}"] if budget else [],
    )
    assert plan.network.encoder == encoder and plan.reasons["network.encoder"]
    if encoder == "lite_medsam":
        configuration = plan.configuration(None)
        assert plan.speed == Speed(wall=40_000.0, cpu=40_000.0)
        assert configuration.magnification == 0.75 and all(side % 28 == 0 for side in configuration.canvas)
        assert configuration.normalization[0].scheme == "percentiles_to_0_1"
        assert (plan.network.masks_start, plan.network.weights, plan.training.schedule) == ("sam", "sam", "cosine")
        assert plan.training.pretrained_rate == 0.1 and "SAM's decoder" in plan.reasons["training.pretrained_rate"]
        assert (plan.inference.depth, plan.inference.tile_overlap) == ("whole", 0.25)
    else:
        assert plan.training.pretrained_rate == 1 and plan.inference.tile_overlap == 0.5
