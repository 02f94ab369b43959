"""The message when a GPU's memory is full."""

from dataclasses import replace

import pytest
import torch

from masam_auto.core.dataset import parse_description
from masam_auto.core.encoders import ENCODERS
from masam_auto.core.errors import ModelError
from masam_auto.core.plan import Configuration, InferencePlan, NetworkPlan, NormalizationPlan, Plan, TrainingPlan
from masam_auto.planning.memory import Load
from masam_auto.training.out_of_memory import explain_out_of_memory, out_of_memory_message

CONFIGURATION = Configuration(
    name="axis0",
    axis_order=(0, 1, 2),
    spacing=(3.0, 1.0, 1.0),
    median_shape=(40, 300, 300),
    normalization=(NormalizationPlan(scheme="zscore"),),
    separate_slices=True,
    window=5,
    canvas=(512, 512),
    magnification=1.0,
    mirror_axes=(),
    batch_size=4,
    accumulation=2,
)
PLAN = Plan(
    name="masam",
    dataset_name="Dataset001_Toy",
    channel_names=("MR",),
    gpu_memory_gb=16.0,
    default_configuration="axis0",
    configurations={"axis0": CONFIGURATION},
    network=NetworkPlan(encoder="vit_b", decoder="progressive", weights="sam", trained="adapted"),
    training=TrainingPlan(),
    inference=InferencePlan(),
)


def message(plan: Plan = PLAN, configuration: Configuration = CONFIGURATION) -> str:
    load = Load(
        encoder=ENCODERS[plan.network.encoder],
        network=plan.network,
        canvas=configuration.canvas,
        window=configuration.window,
        in_channels=1,
        num_outputs=5,
    )
    return out_of_memory_message(plan, configuration, load, room="; the device has 16.0 GiB")


def estimates(text: str) -> list[float]:
    words = text.replace("(", " ").replace(")", " ").split()
    return [float(words[at - 1]) for at, word in enumerate(words) if word.startswith("GiB")]


def test_it_names_what_helps_this_plan_with_estimates() -> None:
    text = message()
    for part in (
        "batch_size 4, window 5, canvas 512 x 512 px, vit_b, without activation",
        "the device has 16.0 GiB",
        "`axis0.batch_size=2` `axis0.accumulation=4`",
        "`training.activation_checkpointing=true`",
        "`axis0.window=3`",
        "`backbone=vit_t`",
    ):
        assert part in text
    assert "\n" not in text
    planned, _, *others = estimates(text)  # the second is the device's
    assert len(others) == 3
    assert all(value < planned for value in others)


def test_it_names_nothing_that_is_used_up() -> None:
    plan = replace(
        PLAN,
        network=replace(PLAN.network, encoder="vit_t", decoder="multiscale", weights="none", trained="all"),
        training=TrainingPlan(activation_checkpointing=True),
    )
    text = message(plan, replace(CONFIGURATION, batch_size=1, window=1))
    for part in ("batch_size=", "checkpointing=true", "window=", "backbone"):
        assert part not in text
    assert "`axis0.canvas`" in text


def test_only_the_devices_memory_is_explained() -> None:
    labels = {"background": 0, **{f"organ {number}": number for number in range(1, 5)}}
    plain = {"channel_names": {"0": "MR"}, "labels": labels, "file_ending": ".nii.gz"}
    description = parse_description(plain, name="Dataset001_Organs")
    explained = (PLAN, CONFIGURATION, description, ENCODERS["vit_b"], torch.device("cpu"))
    with (
        pytest.raises(ModelError, match="the device ran out of memory in training"),
        explain_out_of_memory(*explained),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    with pytest.raises(KeyError), explain_out_of_memory(*explained):
        raise KeyError
