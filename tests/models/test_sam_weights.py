"""Which SAM checkpoint a training starts from, and of which encoder a file is."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from masam_auto.core.encoders import ENCODERS
from masam_auto.core.errors import ModelError
from masam_auto.core.plan import NetworkPlan
from masam_auto.models.sam_files import SAM_FILES
from masam_auto.models.sam_weights import encoder_of_file, sam_to_start_from
from masam_auto.network.build import build_network, load_sam_weights, sam_tensors
from masam_auto.network.weight_files import load_sam_checkpoint
from tests import tiny_training as tiny
from tests.network import make_golden_hiera
from tests.network.small_networks import SPECS


@pytest.fixture(autouse=True)
def tiny_vit_b(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENCODERS, "vit_b", tiny.TINY_SAM)


def test_a_plan_from_scratch_takes_no_file(tmp_path: Path) -> None:
    plan = tiny.make_plan().network
    assert sam_to_start_from(plan, file=None, folder=tmp_path) is None
    with pytest.raises(ModelError, match=r"trains from scratch .*does not use `sam_checkpoint`.*`backbone=vit_b`"):
        sam_to_start_from(plan, file=tmp_path / "sam.pth", folder=tmp_path)


def test_a_file_that_only_has_the_official_name_is_announced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tiny.write_sam_file(tmp_path / SAM_FILES["vit_b"].name)
    found = sam_to_start_from(tiny.make_sam_plan().network, file=None, folder=tmp_path)
    assert found is not None and found.path == path
    assert "is not the official file of that name" in caplog.text and "overwrite`" in caplog.text
    caplog.clear()
    path.rename(tmp_path / "vit_b.pth")
    sam_to_start_from(tiny.make_sam_plan().network, file=None, folder=tmp_path)
    assert caplog.text == ""


def test_a_file_of_sam_2_is_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENCODERS, "small_hiera", SPECS["hiera"])
    state = {
        name.removeprefix("state."): value.float()
        for name, value in load_file(make_golden_hiera.FILE).items()
        if name.startswith("state.")
    }
    torch.save({"model": state}, tmp_path / "sam2.pt")
    assert encoder_of_file(tmp_path / "sam2.pt") == "small_hiera"
    del state["image_encoder.trunk.pos_embed"]
    torch.save({"model": state}, tmp_path / "broken.pt")
    with pytest.raises(ModelError, match=r"broken\.pt: its encoder is like sam2\.1_hiera_t or .*other sizes"):
        encoder_of_file(tmp_path / "broken.pt")


def test_the_encoder_of_a_file_is_recognised(tmp_path: Path) -> None:
    path = tiny.write_sam_file(tmp_path / "weights.safetensors")
    assert encoder_of_file(path) == "vit_b"
    state = load_file(path)
    deeper = {name.replace("blocks.1.", "blocks.2."): value for name, value in state.items() if "blocks.1." in name}
    save_file({**state, **{name: value.clone() for name, value in deeper.items()}}, path)
    with pytest.raises(ModelError, match=r"its encoder is 8 wide and has 3 blocks\..*: vit_b \(8, 2\)"):
        encoder_of_file(path)
    torch.save({"a": torch.ones(1)}, tmp_path / "no.pth")
    with pytest.raises(ModelError, match=r"no\.pth"):
        encoder_of_file(tmp_path / "no.pth")


def tiny_vit_file(path: Path, encoder: str = "lite_medsam", **changes: torch.Tensor | None) -> Path:
    """A made-up checkpoint of a TinyViT in SAM's format; `changes` are of tensors, None for none."""
    plan = NetworkPlan(encoder=encoder, decoder="sam", weights="sam", trained="none")
    state = build_network(plan, canvas=(32, 32), in_channels=3, num_outputs=4).state_dict() | changes
    torch.save({"model": {name: value for name, value in state.items() if value is not None}}, path)
    return path


def test_tiny_vits_are_told_apart_by_their_tensors_not_by_their_names(tmp_path: Path) -> None:
    assert encoder_of_file(tiny_vit_file(tmp_path / "vit_t.pth")) == "lite_medsam"
    head = {"image_encoder.head.weight": torch.zeros(1000, 320), "image_encoder.norm_head.weight": torch.zeros(320)}
    assert encoder_of_file(tiny_vit_file(tmp_path / "vit_t.pt", "mobile_sam", **head)) == "mobile_sam"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image_encoder.neck.0.weight", None),
        ("image_encoder.layers.2.blocks.6.attn.qkv.bias", torch.zeros(480)),
        ("image_encoder.layers.1.blocks.0.attn.attention_biases", torch.zeros(4, 36)),
    ],
)
def test_incomplete_or_foreign_tiny_vits_have_no_name(tmp_path: Path, name: str, value: torch.Tensor | None) -> None:
    path = tiny_vit_file(tmp_path / "weights.pth", **{name: value})
    with pytest.raises(ModelError, match=r"weights\.pth: its encoder is like lite_medsam or mobile_sam, but"):
        encoder_of_file(path)


@pytest.mark.parametrize(
    ("wanted", "given", "match"),
    [
        ("lite_medsam", "vit_b", r"f: its encoder is another one \(.*vit_b.*\), the plan asks for lite_medsam"),
        ("vit_b", "lite_medsam", r"f: its encoder is another one \(lite_medsam or mobile_sam\), the plan asks for vit"),
        ("lite_medsam", "mobile_sam", r"f: image_encoder\..* has shape .*, but lite_medsam needs"),
    ],
)
def test_weights_of_another_encoder_are_refused(wanted: str, given: str, match: str) -> None:
    networks = {
        name: build_network(
            NetworkPlan(encoder=name, decoder="sam", weights="sam", trained="none"),
            canvas=(64, 64),
            in_channels=3,
            num_outputs=4,
        )
        for name in (wanted, given)
    }
    with pytest.raises(ModelError, match=match):
        sam_tensors(networks[wanted], networks[given].state_dict(), origin="f")


def test_half_precision_and_missing_tensors(tmp_path: Path) -> None:
    path = tiny_vit_file(tmp_path / "whole.pth")
    state = load_sam_checkpoint(path)
    torch.save({name: value.half() if value.is_floating_point() else value for name, value in state.items()}, path)
    network = build_network(
        NetworkPlan(encoder="lite_medsam", decoder="progressive", weights="sam", trained="adapted"),
        canvas=(64, 64),
        in_channels=1,
        num_outputs=2,
    )
    load_sam_weights(network, load_sam_checkpoint(path), origin="f")
    name = "image_encoder.neck.0.weight"
    assert torch.allclose(network.state_dict()[name], state[name], atol=1e-3)
    del state["image_encoder.layers.0.blocks.1.conv2.bn.running_var"]
    with pytest.raises(ModelError, match=r"f: image_encoder\.layers\.0\..*\.bn\.running_var is missing"):
        load_sam_weights(network, state, origin="f")
