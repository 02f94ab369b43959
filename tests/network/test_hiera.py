"""SAM 2's Hiera: against the numbers of its own code (make_golden_hiera.py), and what our additions must keep."""

import dataclasses
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from masam_auto.core.encoder_sizes import LevelSpec, StageSpec
from masam_auto.core.encoders import ENCODERS
from masam_auto.core.errors import ModelError, PlanError
from masam_auto.core.plan import NetworkPlan
from masam_auto.network.activations import Load
from masam_auto.network.build import build_network, has_encoder, load_sam_weights, trainable_state_dict
from masam_auto.network.encoder_kinds import encoder_memory
from masam_auto.network.promptable import build_promptable
from tests.network.make_golden_hiera import BOX, CANVASES, FILE
from tests.network.small_networks import SPECS, make_network, network_plan

BOUND = 1e-5  # of numbers around one
CANVAS = (64, 96)


@pytest.fixture(scope="module")
def golden():
    """All tensors of the file, as float32."""
    return {name: value.float() for name, value in load_file(FILE).items()}


@pytest.fixture
def state(golden):
    """The SAM 2 checkpoint."""
    return {name.removeprefix("state."): value for name, value in golden.items() if name.startswith("state.")}


def loaded(state, canvas, **fields):
    """A network with the file's weights that computes as SAM 2 does."""
    network = make_network("hiera", canvas=canvas, in_channels=3, **({"trained": "none"} | fields))
    load_sam_weights(network, state, origin="sam2.pt")
    return network.eval()


def test_the_file_is_small():
    assert FILE.stat().st_size <= 300_000


@pytest.mark.parametrize("canvas", CANVASES)
def test_features_are_sam_2s(canvas, golden, state):
    network, numbers = loaded(state, canvas, decoder="multiscale"), f"{canvas[0]}."
    for gradients in (False, True):
        with torch.set_grad_enabled(gradients):
            features = network.image_encoder(golden[f"{numbers}image"], 1)
        assert len(features.levels) == 3
        for place, level in enumerate(features.levels):
            assert (level - golden[f"{numbers}stage{place}"]).abs().max() < BOUND
        assert (features.embedding - golden[f"{numbers}embedding"]).abs().max() < BOUND


@pytest.mark.parametrize("canvas", CANVASES)
@torch.inference_mode()
def test_prompts_and_the_decoders_transformer_are_sam_2s(canvas, golden, state):
    network, numbers = loaded(state, canvas, prompt="box"), f"{canvas[0]}."
    sparse, dense = network.prompt_encoder(points=None, boxes=torch.tensor([BOX]), masks=None)
    assert (sparse - golden[f"{numbers}sparse"]).abs().max() < BOUND
    positions = network.prompt_encoder.get_dense_pe()
    embedding = golden[f"{numbers}embedding"] + dense
    queries, tokens = network.mask_decoder.transformer(embedding, positions, sparse)
    assert (queries - golden[f"{numbers}queries"]).abs().max() < BOUND
    assert (tokens - golden[f"{numbers}tokens"]).abs().max() < BOUND


def test_a_weight_that_is_one_percent_off_shows(golden, state):
    canvas = CANVASES[1]
    for name in ("pos_embed_window", "blocks.1.proj.weight", "blocks.3.attn.qkv.weight", "blocks.5.mlp.layers.0.bias"):
        changed = state | {f"image_encoder.trunk.{name}": 1.01 * state[f"image_encoder.trunk.{name}"]}
        with torch.no_grad():
            found = loaded(changed, canvas).image_encoder(golden[f"{canvas[0]}.image"], 1).embedding
        assert (found - golden[f"{canvas[0]}.embedding"]).abs().max() > 10 * BOUND


def test_masks_start_from_sam_2s_where_the_decoder_has_its_upscaling(state):
    network = loaded(state, CANVAS, decoder="sam", masks_start="sam")
    own = network.state_dict()
    for number in (0, 1, 3):
        name = f"output_upscaling.{number}.weight"
        assert torch.equal(own[f"mask_decoder.{name}"], state[f"sam_mask_decoder.{name}"])
    assert torch.equal(own["mask_decoder.mask_tokens.weight"][2], state["sam_mask_decoder.mask_tokens.weight"][0])
    progressive = loaded(state, CANVAS, decoder="progressive").state_dict()
    assert torch.equal(progressive["mask_decoder.output_upscaling.3.bias"], own["mask_decoder.output_upscaling.3.bias"])
    with pytest.raises(ModelError, match=r"its masks cannot start this decoder .*`network.masks_start=new`"):
        loaded(state, CANVAS, decoder="progressive", masks_start="sam")


def test_only_the_encoders_own_tensors_are_taken(state):
    missing = dict(state)
    del missing["image_encoder.trunk.blocks.2.norm2.bias"]
    with pytest.raises(ModelError, match=r"sam2\.pt: image_encoder\.trunk\.blocks\.2\.norm2\.bias is missing, which"):
        loaded(missing, CANVAS)
    extra = state | {"image_encoder.trunk.blocks.6.norm1.weight": torch.ones(64)}
    with pytest.raises(ModelError, match=r"blocks\.6\.norm1\.weight does not exist in small"):
        loaded(extra, CANVAS)
    narrow = state | {"image_encoder.neck.convs.0.conv.bias": torch.ones(31)}
    with pytest.raises(ModelError, match=r"neck\.convs\.0\.conv\.bias has shape \(31,\), but small needs \(32,\)"):
        loaded(narrow, CANVAS)
    with pytest.raises(ModelError, match=r"no_mem_embed is missing"):
        loaded({name: value for name, value in state.items() if name != "no_mem_embed"}, CANVAS)
    assert any(name.startswith("obj_ptr_proj.") for name in state)  # a part for memory does no harm


def test_a_file_of_another_kind_is_named(state):
    with pytest.raises(ModelError, match=r"its encoder is another one \(sam2\.1_hiera_t or .*_l\), the plan asks for"):
        load_sam_weights(make_network("sam"), state, origin="f")
    with pytest.raises(ModelError, match=r"its encoder is another one \(vit_t or vit_b"):
        load_sam_weights(make_network("hiera"), make_network("sam").state_dict(), origin="f")


def test_sizes_tell_the_encoders_apart():
    plan = NetworkPlan(encoder="sam2.1_hiera_s", decoder="sam", weights="sam", trained="none")
    network = build_network(plan, canvas=(32, 32), in_channels=3, num_outputs=1)
    names = [name for name in ENCODERS if "hiera" in name]
    assert [name for name in names if has_encoder(name, network.state_dict())] == ["sam2.1_hiera_s"]


@pytest.mark.parametrize(
    ("name", "trunk", "windows"),
    [
        ("t", 26_849_472, "8 8 4 4 14 - 14 - 14 - 14 7"),
        ("s", 33_947_328, "8 8 4 4 14 14 14 - 14 14 - 14 14 - 14 7"),
        ("b+", 68_675_712, "8 8 8 4 4 4" + 6 * " 14" + " - 14 14 14 - 14 14 14 - 14 7 7"),
        ("l", 212_149_296, "8 8 8 4 4 4 4 4 4" + 14 * " 16" + " -" + 2 * (9 * " 16" + " -") + " 16 8 8 8"),
    ],
)
def test_sizes_are_those_of_sam_2s_code(name, trunk, windows):
    """Counts and windows were read off networks that SAM 2's code built."""
    plan = NetworkPlan(encoder=f"sam2.1_hiera_{name}", decoder="progressive", weights="sam", trained="none")
    network = build_network(plan, canvas=(64, 64), in_channels=3, num_outputs=2, device="meta")
    encoder = network.image_encoder
    assert sum(parameter.numel() for parameter in encoder.trunk.parameters()) == trunk
    assert " ".join(str(block.attn.window or "-") for block in encoder.trunk.blocks) == windows


@pytest.mark.parametrize("increment", ["fact", "lora", "none"])
def test_starts_as_the_unadapted_encoder(increment):
    network = make_network("hiera", canvas=CANVAS, increment=increment)
    plain = make_network("hiera", canvas=CANVAS, trained="none")
    plain.load_state_dict({name: network.state_dict()[name] for name in plain.state_dict()})
    x = torch.randn(1, 3, 1, *CANVAS)
    assert torch.allclose(network.eval()(x), plain.eval()(x), atol=1e-5)


@pytest.mark.parametrize("increment", ["fact", "lora"])
def test_folded_increments_are_those_of_training(increment):
    network = make_network("hiera", canvas=CANVAS, increment=increment, randomised=True, increment_dropout=0.0)
    encoder, x = network.image_encoder, torch.randn(2, 1, *CANVAS)
    learning = encoder.train()(x, 2).embedding
    assert torch.allclose(learning, encoder.eval()(x, 2).embedding, atol=1e-4)
    for parameter in encoder.increments.parameters():
        parameter.data.zero_()
    assert (learning - encoder(x, 2).embedding).abs().max() > 0.1


def test_every_stage_has_its_own_increments():
    factors = make_network("hiera").image_encoder.increments
    assert [(one.u.in_features, len(one.q_cores)) for one in factors] == [(8, 1), (16, 2), (32, 2), (64, 1)]


def test_adapters_are_at_most_half_as_wide_as_their_stage():
    state = make_network("hiera", adapter_channels=9).state_dict()
    widths = {
        name.removeprefix("image_encoder.trunk.blocks."): value.shape
        for name, value in state.items()
        if name.endswith("down.weight")
    }
    before, after = ([widths[f"{n}.adapter_{place}.down.weight"] for n in range(6)] for place in ("before", "after"))
    assert before == [(4, 8), (4, 8), (8, 16), (8, 16), (9, 32), (9, 32)]
    assert after == [(4, 8), (8, 16), (8, 16), (9, 32), (9, 32), (9, 64)]


def test_neighbouring_slices_matter_only_through_adapters():
    network = make_network("hiera", canvas=CANVAS, randomised=True).eval()
    x = torch.randn(1, 3, 1, *CANVAS)
    other = x.clone()
    other[:, 2] = torch.randn(1, *CANVAS)
    changed = (network.image_encoder(x[0], 3).embedding - network.image_encoder(other[0], 3).embedding).abs()
    assert changed[1].max() > 1e-3
    alone = make_network("hiera", canvas=CANVAS, adapters="none", randomised=True).eval()
    assert torch.allclose(alone(x)[:, :2], alone(other)[:, :2], atol=1e-6)


def test_recomputing_activations_changes_nothing():
    network = make_network("hiera", canvas=CANVAS, randomised=True, increment_dropout=0.0)
    x, found = torch.randn(1, 2, 1, *CANVAS), []
    for recomputed in (False, True):
        network.zero_grad()
        network.image_encoder.activation_checkpointing = recomputed
        logits = network(x)
        logits.square().mean().backward()
        found.append([logits, *(p.grad.clone() for p in network.parameters() if p.requires_grad)])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("trained", ["adapted", "all"])
def test_everything_that_learns_gets_a_gradient(trained):
    network = make_network("hiera", canvas=CANVAS, trained=trained)
    network(torch.randn(1, 2, 1, *CANVAS)).square().mean().backward()
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)
    learns = network.image_encoder.no_mem_embed.requires_grad
    assert learns == (trained == "all")
    names = trainable_state_dict(network)
    assert ("image_encoder.trunk.blocks.0.norm1.weight" in names) == learns
    assert "image_encoder.increments.3.u.weight" in names


def test_one_channel_is_three_equal_ones_and_pixels_are_as_the_weights_were_trained(monkeypatch):
    spec = dataclasses.replace(SPECS["hiera"], pixel_mean=(0.1, 0.2, 0.3), pixel_std=(0.5, 1.0, 2.0))
    monkeypatch.setitem(SPECS, "shifted", spec)
    x = torch.rand(2, 1, *CANVAS)
    grey, rgb = (make_network("shifted", canvas=CANVAS, in_channels=n).image_encoder for n in (1, 3))
    assert torch.equal(grey(x, 2).embedding, rgb(x.expand(-1, 3, -1, -1), 2).embedding)
    plain = make_network("hiera", canvas=CANVAS, in_channels=3).image_encoder
    shifted = (x - torch.tensor(spec.pixel_mean)[:, None, None]) / torch.tensor(spec.pixel_std)[:, None, None]
    assert torch.allclose(rgb(x.expand(-1, 3, -1, -1), 2).embedding, plain(shifted, 2).embedding, atol=1e-6)


def test_patch_embedding_of_other_channels_is_fitted_and_learns(state):
    network = make_network("hiera", canvas=CANVAS, in_channels=2)
    load_sam_weights(network, state, origin="sam2.pt")
    patches = network.image_encoder.trunk.patch_embed.proj
    assert patches.weight.requires_grad and not network.image_encoder.trunk.blocks[0].norm1.weight.requires_grad
    summed = state["image_encoder.trunk.patch_embed.proj.weight"].sum(1)
    assert torch.allclose(patches.weight.sum(1), summed, atol=1e-6)


def test_canvas_sides_are_whole_places_of_the_last_stage():
    with pytest.raises(PlanError, match=r"a canvas of 64 x 48 px does not fit small: both .* multiples of 32 px"):
        make_network("hiera", canvas=(64, 48))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages": SPECS["hiera"].stages[1:]}, r"the strides of a Hiera are 4, 8, 16, \.\.\., got \(8, 16, 32\)"),
        ({"stages": SPECS["hiera"].stages[:1]}, r"strides of a Hiera are .* got \(4,\)"),
        (
            {"stages": (StageSpec(dim=8, depth=1, stride=4), SPECS["hiera"].stages[1])},
            "every stage of a Hiera has heads",
        ),
        (
            {"stages": (dataclasses.replace(SPECS["hiera"].stages[0], window=7), SPECS["hiera"].stages[1])},
            "windows of a Hiera are even, except in its last stage",
        ),
        ({"global_blocks": (6,)}, r"global_blocks must be within 0\.\.5, got \(6,\)"),
    ],
)
def test_sizes_that_make_no_hiera_are_refused(changes, message):
    with pytest.raises(PlanError, match=f"encoder sizes: .*{message}"):
        dataclasses.replace(SPECS["hiera"], **changes)


@pytest.mark.parametrize("fields", [{}, {"adapters": "none"}, {"increment": "none"}, {"trained": "all"}])
def test_the_memory_model_counts_what_is_kept_for_the_backward_pass(fields, monkeypatch):
    """Float32 on a CPU; within 0.9 to 1.25 of what autograd keeps, parameters apart."""
    stages = tuple(dataclasses.replace(stage, dim=4 * stage.dim, window=4) for stage in SPECS["hiera"].stages)
    levels = tuple(LevelSpec(channels=1, stride=4, width=1, target=1) for _ in range(1))
    monkeypatch.setitem(SPECS, "wide", dataclasses.replace(SPECS["hiera"], stages=stages, levels=levels))
    network = make_network("wide", canvas=(128, 128), increment_dropout=0.0, **fields)
    own = {parameter.data_ptr() for parameter in network.parameters()}
    kept, alive = {}, []

    def keep(value):
        storage = value.untyped_storage()
        alive.append(value)
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        features = network.image_encoder(torch.randn(2, 1, 128, 128), 2)
    assert features.embedding.requires_grad
    load = Load(
        encoder=SPECS["wide"],
        network=network_plan(**fields),
        canvas=(128, 128),
        window=2,
        in_channels=1,
        num_outputs=3,
        precision_bytes=4,
        fused=False,
    )
    memory = encoder_memory(load)
    assert 0.9 < (memory.blocks + memory.stem) / (sum(kept.values()) / 2) < 1.25


def test_a_file_of_sam_2_does_not_segment_without_training(state, monkeypatch):
    monkeypatch.setitem(ENCODERS, "small_hiera", SPECS["hiera"])
    with pytest.raises(ModelError, match=r"sam2\.pt: has the encoder small_hiera, but not SAM's decoder"):
        build_promptable("small_hiera", state, canvas=64, origin="sam2.pt")


@pytest.mark.skipif("SAM2_CODE" not in os.environ, reason="SAM2_CODE does not name the folder of SAM 2's code")
def test_the_script_writes_the_same_file(tmp_path):
    made = tmp_path / FILE.name
    command = [sys.executable, "-m", "tests.network.make_golden_hiera", os.environ["SAM2_CODE"], made]
    subprocess.run(command, cwd=FILE.parents[2], check=True)
    new, kept = load_file(made), load_file(FILE)
    assert set(new) == set(kept)
    assert all(torch.allclose(new[name].float(), kept[name].float(), atol=BOUND) for name in kept)
