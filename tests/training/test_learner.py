"""Learners at their beginning: SAM's weights where they belong, rounded once where they are kept in bf16."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from masam_auto.core.dataset import DatasetDescription, read_description
from masam_auto.core.encoders import ENCODERS
from masam_auto.core.plan import Plan
from masam_auto.models.sam_files import SamWeights, weights_to_start_from
from masam_auto.network.masam import MaSam
from masam_auto.network.weight_files import load_sam_checkpoint
from masam_auto.training import learner as module
from masam_auto.training.learner import new_learner
from tests import tiny_training as tiny

CPU = torch.device("cpu")


@pytest.fixture
def sam(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SamWeights:
    monkeypatch.setitem(ENCODERS, "vit_b", tiny.TINY_SAM)
    tiny.write_sam_file(tmp_path / "vit_b.pth")
    return weights_to_start_from("vit_b", file=None, folder=tmp_path)


@pytest.fixture
def description(tmp_path: Path) -> DatasetDescription:
    paths = tiny.write_preprocessed(tmp_path, tiny.make_configuration(), cases=2)
    return read_description(paths.preprocessed / tiny.DATASET / "dataset.json", name=tiny.DATASET)


def begin(plan: Plan, description: DatasetDescription, sam: SamWeights | None) -> MaSam:
    return new_learner(plan, plan.configuration(None), description, device=CPU, sam=sam).network


def test_sams_weights_are_where_they_belong_and_the_rest_is_as_without(
    sam: SamWeights, description: DatasetDescription
) -> None:
    with_sam, without = (begin(tiny.make_sam_plan(), description, given).state_dict() for given in (sam, None))
    state = load_sam_checkpoint(sam.path)
    assert torch.equal(
        with_sam["image_encoder.blocks.1.attn.qkv.weight"], state["image_encoder.blocks.1.attn.qkv.weight"]
    )
    assert torch.equal(with_sam["mask_decoder.iou_token.weight"], state["mask_decoder.iou_token.weight"])
    assert with_sam["image_encoder.pos_embed"].shape == (1, 2, 2, 8)
    for name in ("image_encoder.increments.u.weight", "mask_decoder.mask_tokens.weight"):
        assert torch.equal(with_sam[name], without[name])


def test_frozen_weights_in_bf16_are_sams_rounded_once(
    sam: SamWeights, description: DatasetDescription, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = tiny.make_sam_plan(tiny.make_configuration(canvas=(32, 48)))
    exact = begin(plan, description, sam)
    monkeypatch.setattr(module, "computes_in_bf16", lambda device: True)
    lean = begin(replace(plan, training=replace(plan.training, precision="bf16")), description, sam)
    rounded = 0
    for (name, value), expected in zip(lean.named_parameters(), exact.parameters(), strict=True):
        assert torch.equal(value, expected.to(value.dtype)), name
        rounded += value.dtype == torch.bfloat16
    assert rounded >= 10
    assert lean.image_encoder.pos_embed.dtype == torch.bfloat16  # resized in float32, then rounded
