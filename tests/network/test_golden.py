"""Against logits of the public MA-SAM implementation that come with the tests, in every clone (make_golden.py)."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from masam_auto.core.encoder_sizes import sam_encoder
from masam_auto.network.build import assemble, load_published_checkpoint, load_sam_weights
from masam_auto.network.published import network_plan_of, read_variant
from tests.network import plain_masam
from tests.network.make_golden import CANVAS, EMBEDDING, EVERY, FILE, GLOBAL, HEADS, MLP, SCALE, UNUSED

BOUND = 1e-5  # of logits between -1.9 and 1.1
SPEC = sam_encoder(dim=16, depth=2, heads=HEADS, global_blocks=GLOBAL, embedding=EMBEDDING, decoder_mlp=MLP)
MODES = pytest.mark.parametrize("mode", ["auto", "box"])


@pytest.fixture(scope="module")
def golden():
    """All tensors of the file, as float32."""
    return {name: value.float() for name, value in load_file(FILE).items()}


def tensors_of(golden, name):
    """Of a checkpoint: "sam" or "masam"."""
    return {key.removeprefix(f"{name}."): value for key, value in golden.items() if key.startswith(f"{name}.")}


def build(golden, mode, in_channels=1):
    """The network with the file's weights, which are loaded as a published checkpoint's are."""
    adapted = tensors_of(golden, "masam")
    variant = read_variant(adapted, origin=mode)
    plan = network_plan_of(variant, SPEC, scale=SCALE, prompt="box" if mode == "box" else "none", origin=mode)
    network = assemble(SPEC, plan, canvas=(CANVAS, CANVAS), in_channels=in_channels, num_outputs=variant.num_outputs)
    adapted |= {name: value for name, value in network.state_dict().items() if name.startswith(UNUSED)}
    load_sam_weights(network, adapted | tensors_of(golden, "sam"), origin="sam")
    load_published_checkpoint(network, adapted, origin=mode)
    return network.eval()


def error(network, golden, mode):
    """Largest difference between a network's logits and the reference's."""
    with torch.inference_mode():
        logits = network(golden["image"], golden["boxes"] if mode == "box" else None).flatten(0, 1)
    return (logits[..., ::EVERY, ::EVERY] - golden[f"logits_{mode}"]).abs().max()


def test_the_file_is_small():
    assert FILE.stat().st_size <= 200_000


@MODES
def test_logits_are_the_references(golden, mode):
    assert error(build(golden, mode), golden, mode) <= BOUND


@MODES
def test_the_plain_networks_logits_are_the_references_too(golden, mode):
    assert error(plain_masam.plain_twin(build(golden, mode)), golden, mode) <= BOUND


@pytest.mark.parametrize(
    "name",
    [
        "image_encoder.increments.u.weight",
        "image_encoder.blocks.0.attn.rel_pos_h",
        "image_encoder.blocks.1.adapter_before.conv.weight",
        "mask_decoder.output_upscaling.9.weight",
        "prompt_encoder.point_embeddings.3.weight",
    ],
)
def test_a_weight_that_is_one_percent_off_shows(golden, name):
    network = build(golden, "box")
    network.state_dict()[name].mul_(1.01)
    assert error(network, golden, "box") > 100 * BOUND


@pytest.mark.skipif("MASAM_REFERENCE_CODE" not in os.environ, reason="MASAM_REFERENCE_CODE does not name its folder")
def test_the_script_writes_the_same_file(tmp_path):
    made = tmp_path / FILE.name
    command = [sys.executable, "-m", "tests.network.make_golden", os.environ["MASAM_REFERENCE_CODE"], made]
    subprocess.run(command, cwd=FILE.parents[2], check=True)
    new, kept = load_file(made), load_file(FILE)
    assert set(new) == set(kept)
    assert all(torch.allclose(new[name].float(), kept[name].float(), atol=BOUND) for name in kept)
