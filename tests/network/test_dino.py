import dataclasses
import re

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from masam_auto.core.encoders import ENCODERS
from masam_auto.core.errors import ModelError, PlanError
from masam_auto.core.plan import NetworkPlan
from masam_auto.network.build import (
    assemble,
    build_network,
    cast_frozen,
    has_encoder,
    load_sam_weights,
    load_trainable_state,
    sam_tensors,
    trainable_state_dict,
)
from masam_auto.network.dino import rotary_turn
from masam_auto.network.dino_files import rename_dino, resize_dino_positions
from masam_auto.network.encoder_kinds import kind_in
from masam_auto.planning.planned_encoders import PLANNED_ENCODERS
from tests.network.make_golden_dino import FILE, GRIDS, PATCH, REGISTERS
from tests.network.small_networks import SPECS, make_network, network_plan, small_dino

BOUND = 2e-5  # of tokens with deviation 1
CASES = [
    (name, form) for name in PATCH for form in ("meta", "timm", *(("timm_without_bias",) if name == "dinov3" else ()))
]
SMALL = ("dino2", "dino2_reg", "dino3")


@pytest.fixture(scope="module")
def golden():
    """All tensors of the file, as float32."""
    return {name: value.float() for name, value in load_file(FILE).items()}


def state_of(golden, name, form):
    start = f"{name}.{form}.state."
    return {key.removeprefix(start): value for key, value in golden.items() if key.startswith(start)}


def spec_of(name):
    registers = 0 if name == "dinov2" else REGISTERS
    spec = small_dino(PATCH[name], registers=registers, positions=0 if name == "dinov3" else 5, targets=(1,))
    return dataclasses.replace(spec, pixel_mean=(0.0, 0.0, 0.0), pixel_std=(1.0, 1.0, 1.0))


def loaded(state, name, grid, **fields):
    """The network of a file's weights; its encoder without the neck, which the file does not have."""
    spec = spec_of(name)
    canvas = (grid[0] * spec.token_stride, grid[1] * spec.token_stride)
    plan = network_plan(**({"trained": "none", "decoder": "sam"} | fields))
    network = assemble(spec, plan, canvas=canvas, in_channels=3, num_outputs=3)
    load_sam_weights(network, state, origin="dino.pth")
    network.image_encoder.neck = nn.Identity()
    return network.eval()


def error(network, golden, case, name, grid):
    with torch.no_grad():
        found = network.image_encoder(golden[f"{name}.image.{grid}"], 1).embedding
    return (found.flatten(2).mT - golden[f"{case}.tokens.{grid}"]).abs().max()


def test_the_file_is_small():
    assert FILE.stat().st_size <= 200_000


@pytest.mark.parametrize(("name", "form"), CASES)
@pytest.mark.parametrize("grid", GRIDS)
def test_tokens_are_the_originals(golden, name, form, grid):
    case = f"{name}.{form}"
    if f"{case}.tokens.{grid}" not in golden:
        pytest.skip("the others resize tables of positions otherwise than their authors")
    network = loaded(state_of(golden, name, form), name, GRIDS[grid])
    assert golden[f"{case}.tokens.{grid}"].std() > 0.5
    assert error(network, golden, case, name, grid) < BOUND


@pytest.mark.parametrize("name", PATCH)
def test_every_weight_shows(golden, name):
    network = loaded(state_of(golden, name, "meta"), name, GRIDS["other"])
    for key, value in network.image_encoder.named_parameters():
        kept = value.data.clone()
        value.data *= 1.1
        assert error(network, golden, f"{name}.meta", name, "other") > 10 * BOUND, key
        value.data = kept
    assert error(network, golden, f"{name}.meta", name, "other") < BOUND


def test_keys_have_no_bias_with_rotary_positions(golden):
    network = loaded(state_of(golden, "dinov3", "meta"), "dinov3", GRIDS["other"])
    for block in network.image_encoder.blocks:
        block.attn.qkv.bias.data[16:32] += 1
    assert error(network, golden, "dinov3.meta", "dinov3", "other") < BOUND


@pytest.mark.parametrize("name", PATCH)
def test_a_files_tensors_are_all_used_or_known_to_be_useless(golden, name):
    state = state_of(golden, name, "meta")
    renamed = rename_dino(state)
    useless = {"mask_token", "rope_embed.periods"} | {key for key in state if key.endswith("bias_mask")}
    assert len(renamed) == len(state) - len(useless & set(state))
    assert rename_dino(renamed) is renamed
    other = {"image_encoder.patch_embed.proj.weight": torch.zeros(1)}
    assert rename_dino(other) is other


@pytest.mark.parametrize("name", PATCH)
def test_files_on_the_hub_have_older_names(golden, name):
    older = [(r"attention\.([qkv])_proj", r"attention.attention.\1"), (r"attention\.o_proj", "attention.output.dense")]
    words = {"q": "query", "k": "key", "v": "value"}
    state = {}
    for key, value in state_of(golden, name, "transformers").items():
        if name == "dinov3":
            key = key.replace("model.layer.", "layer.")
        else:
            for now, then in older:
                key = re.sub(now, then, key)
            key = re.sub(r"attention\.attention\.([qkv])\.", lambda m: f"attention.attention.{words[m[1]]}.", key)
        state[key] = value
    assert set(state) != set(state_of(golden, name, "transformers"))
    network = loaded(state, name, GRIDS["native"])
    assert error(network, golden, f"{name}.transformers", name, "native") < BOUND


def without(state, *names):
    return {key: value for key, value in state.items() if key not in names}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("dinov2", lambda s: without(s, "blocks.1.attn.qkv.bias"), r"blocks\.1\.attn\.qkv\.bias is missing"),
        ("dinov2", lambda s: {k: v for k, v in s.items() if "qkv.bias" not in k}, r"qkv\.bias is missing"),
        ("dinov3", lambda s: without(s, "blocks.1.attn.qkv.bias"), r"blocks\.1\.attn\.qkv\.bias is missing"),
        ("dinov2_reg", lambda s: without(s, "register_tokens"), r"register_tokens is missing"),
        ("dinov2", lambda s: s | {"register_tokens": torch.zeros(1, 4, 16)}, r"register_tokens does not exist"),
        ("dinov2", lambda s: s | {"pos_embed": s["pos_embed"][:, :20]}, r"pos_embed has shape \(1, 20, 16\)"),
        ("dinov2", lambda s: s | {"cls_token": torch.zeros(1, 1, 8)}, r"cls_token has shape \(1, 1, 8\)"),
        ("dinov3", lambda s: s | {"local_cls_norm.weight": torch.zeros(16)}, r"local_cls_norm\.weight does not exist"),
        ("dinov3", lambda s: s | {"rope_embed.periods": torch.tensor([1.0, 9.0])}, r"periods does not exist"),
        ("dinov3", lambda s: s | {"rope_embed.periods": torch.zeros(0)}, r"periods does not exist"),
        ("dinov3", lambda s: s | {"norm.weight": torch.full((16,), float("nan"))}, r"norm\.weight has values that"),
        ("dinov3", lambda s: s | {"blocks.7.ls1.gamma": torch.ones(16)}, r"blocks\.7\.ls1\.gamma does not exist"),
    ],
)
def test_another_file_is_refused(golden, name, change, message):
    with pytest.raises(ModelError, match=f"dino.pth: .*{message}"):
        loaded(change(dict(state_of(golden, name, "meta"))), name, GRIDS["native"])


def test_periods_rounded_to_bf16_are_the_usual_ones(golden):
    state = state_of(golden, "dinov3", "meta")
    state["rope_embed.periods"] = (100 ** (torch.arange(2) / 2)).bfloat16().float() * 1.004
    assert "image_encoder.rope_embed.periods" not in rename_dino(state)


@pytest.mark.parametrize(
    ("name", "form", "change"),
    [
        ("dinov3", "timm", {"blocks.0.attn.v_bias": torch.zeros(4, 4)}),
        ("dinov3", "timm", {"blocks.0.attn.v_bias": torch.zeros(())}),
        ("dinov3", "timm", {"blocks.0.attn.q_bias": torch.zeros(15)}),
        ("dinov3", "timm", {"blocks.0.attn.q_bias": None}),
        ("dinov3", "timm", {"blocks.0.ls1.gamma": torch.ones(16)}),
        ("dinov3", "transformers", {"model.layer.0.attention.q_proj.weight": torch.zeros(16, 15)}),
        ("dinov3", "transformers", {"model.layer.0.attention.k_proj.weight": None}),
        ("dinov2", "transformers", {"encoder.layer.0.attention.k_proj.bias": None}),
        ("dinov2", "transformers", {"norm.weight": torch.ones(16)}),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(golden, name, form, change):
    state = {key: value for key, value in (state_of(golden, name, form) | change).items() if value is not None}
    with pytest.raises(ModelError, match=r"dino\.pth: image_encoder\."):
        loaded(state, name, GRIDS["native"])


def test_positions_stay_at_the_native_grid_and_for_a_square_of_another_model():
    table = torch.randn(1, 5, 5, 3)
    assert resize_dino_positions(table, (5, 5), exact=False) is table
    for exact in (False, True):
        assert resize_dino_positions(table, (7, 3), exact=exact).shape == (1, 7, 3, 3)


def test_class_and_register_tokens_are_not_turned():
    sine, cosine = rotary_turn((2, 3), 8, 4, torch.device("cpu"))
    assert sine.shape == cosine.shape == (10, 1, 4)
    assert torch.equal(sine[:4], torch.zeros(4, 1, 4)) and torch.equal(cosine[:4], torch.ones(4, 1, 4))
    assert torch.allclose(sine[4, 0, 0], torch.sin(torch.tensor(2 * torch.pi * -0.5))), "first row of two, period 1"


# Source: hub/backbones.py of both repositories, counted on their own classes; less mask token and keys' bias, which are
# not weights of ours, and the class token's position, which is added to the token.
PUBLISHED = {
    "dinov2_vits14": 22056576,
    "dinov2_vitb14": 86580480,
    "dinov2_vitl14": 304368640,
    "dinov2_vits14_reg": 22058112,
    "dinov2_vitb14_reg": 86583552,
    "dinov2_vitl14_reg": 304372736,
    "dinov3_vits16": 21601152,
    "dinov3_vitb16": 85669632,
    "dinov3_vitl16": 303154176,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_named_sizes_are_the_published_ones(name):
    spec = ENCODERS[name]
    side = spec.token_stride * (spec.positions or 14)
    plan = NetworkPlan(encoder=name, decoder="sam", weights="sam", trained="none")
    network = build_network(plan, canvas=(side, side), in_channels=1, num_outputs=2, device="meta")
    count = sum(p.numel() for n, p in network.image_encoder.named_parameters() if not n.startswith("neck."))
    assert count + spec.dim * (2 if spec.positions else 1) == PUBLISHED[name]
    assert re.fullmatch(r"DINOv[23]'s \(.*(Apache-2\.0|License)\)", PLANNED_ENCODERS[name].whose)


@pytest.mark.parametrize("size", SMALL)
@pytest.mark.parametrize("increment", ["fact", "lora", "none"])
def test_starts_as_the_unadapted_encoder(size, increment):
    spec = SPECS[size]
    canvas = (3 * spec.token_stride, 2 * spec.token_stride)
    network = make_network(size, canvas=canvas, increment=increment)
    plain = make_network(size, canvas=canvas, trained="none")
    plain.load_state_dict({name: network.state_dict()[name] for name in plain.state_dict()})
    x = torch.rand(1, 3, 1, *canvas)
    assert torch.allclose(network.eval()(x), plain.eval()(x), atol=1e-5)


@pytest.mark.parametrize("size", SMALL)
@pytest.mark.parametrize("increment", ["fact", "lora"])
def test_without_gradients_and_folded_it_computes_the_same(size, increment):
    spec = SPECS[size]
    canvas = (3 * spec.token_stride, 2 * spec.token_stride)
    options = {"increment": increment, "randomised": True, "increment_dropout": 0.0, "decoder": "multiscale"}
    network = make_network(size, canvas=canvas, **options)
    x = torch.rand(1, 3, 1, *canvas)
    expected = network.train()(x)
    network.image_encoder.activation_checkpointing = True
    assert torch.allclose(network(x), expected, atol=1e-4)
    with torch.no_grad():
        assert torch.allclose(network.eval()(x), expected, atol=1e-4)


@pytest.mark.parametrize("size", SMALL)
def test_in_bf16_and_with_a_fused_kernel_it_computes_about_the_same(size, monkeypatch):
    canvas = (3 * SPECS[size].token_stride, 2 * SPECS[size].token_stride)
    encoder = make_network(size, canvas=canvas, adapter_start="reference").eval().image_encoder
    x = torch.rand(3, 1, *canvas)
    expected = encoder(x, 3).embedding
    monkeypatch.setattr("masam_auto.network.attention.PLAIN_SCORES", 0)
    assert torch.allclose(encoder(x, 3).embedding, expected, atol=1e-5)
    network = make_network(size, canvas=canvas, adapter_start="reference").eval()
    cast_frozen(network, torch.bfloat16)
    for plain in (0, 2**26):
        monkeypatch.setattr("masam_auto.network.attention.PLAIN_SCORES", plain)
        with torch.autocast("cpu", torch.bfloat16):
            network.train()(x[None]).float().sum().backward()
            with torch.no_grad():
                found = network.eval().image_encoder(x, 3).embedding
        assert (found.float() - expected).abs().max() < 0.1 * expected.std()


@pytest.mark.parametrize("size", SMALL)
def test_neighbouring_slices_matter_only_through_adapters(size):
    canvas = (SPECS[size].token_stride * 2,) * 2
    network = make_network(size, canvas=canvas, randomised=True).eval()
    x = torch.rand(1, 3, 1, *canvas)
    other = x.clone()
    other[:, 2] = torch.rand(1, *canvas)
    changed = (network.image_encoder(x[0], 3).embedding - network.image_encoder(other[0], 3).embedding).abs()
    assert changed[1].max() > 1e-3
    alone = make_network(size, canvas=canvas, adapters="none", randomised=True).eval()
    assert torch.allclose(alone(x)[:, :2], alone(other)[:, :2], atol=1e-6)


def test_adapters_see_patches_only():
    network = make_network("dino3", canvas=(32, 48), randomised=True)
    seen = []
    for block in network.image_encoder.blocks:
        for adapter in (block.adapter_before, block.adapter_after):
            adapter.register_forward_hook(lambda module, given, result: seen.append(given[0].shape))
    network(torch.rand(1, 3, 1, 32, 48))
    assert seen == [(3, 2, 3, 16)] * 4


@pytest.mark.parametrize("size", SMALL)
@pytest.mark.parametrize("trained", ["adapted", "all", "none"])
@pytest.mark.parametrize("decoder", ["progressive", "sam", "multiscale"])
@pytest.mark.parametrize("prompt", ["none", "box"])
def test_what_learns_has_a_gradient_and_the_rest_is_restored(size, trained, decoder, prompt):
    """The neck, prompt encoder and decoder are in no file: they learn, or are in the checkpoint."""
    canvas = (2 * SPECS[size].token_stride,) * 2
    options = {"trained": trained, "decoder": decoder, "prompt": prompt, "canvas": canvas}
    network = make_network(size, randomised=True, **options)
    windows = torch.rand(1, 2, 1, *canvas)
    boxes = None if prompt == "none" else torch.tensor([[[2.0, 2.0, 20.0, 20.0]] * 2])
    network(windows, boxes).sum().backward()
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)
    assert all(p.requires_grad for p in network.image_encoder.neck.parameters())
    saved = {name: value.clone() for name, value in trainable_state_dict(network).items()}
    assert all(name in saved for name in network.state_dict() if name.startswith(("prompt_encoder.", "mask_decoder.")))
    file = {n: v for n, v in network.state_dict().items() if n.startswith("image_encoder.") and ".neck." not in n}
    file = {n: v for n, v in file.items() if "increments" not in n and ".adapter_" not in n}
    again = make_network(size, seed=5, **options)
    load_sam_weights(again, file, origin="dino.pth")
    load_trainable_state(again, saved, origin="model")
    assert torch.allclose(again.eval()(windows, boxes), network.eval()(windows, boxes), atol=1e-6)
    assert set(sam_tensors(again, file, origin="dino.pth")) == set(file)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_any_number_of_channels(channels):
    network = make_network("dino3", canvas=(32, 32), in_channels=channels, trained="adapted")
    load_sam_weights(network, file_of("dino3"), origin="dino.pth")
    assert network(torch.rand(1, 1, channels, 32, 32)).isfinite().all()
    learns = network.image_encoder.patch_embed.proj.weight.requires_grad
    assert learns is (channels not in (1, 3))


def file_of(size):
    """A made-up file, under our names."""
    state = make_network(size, canvas=(70, 70) if size != "dino3" else (32, 32), in_channels=3, trained="none")
    return {
        name: value
        for name, value in state.state_dict().items()
        if name.startswith("image_encoder.") and ".neck." not in name
    }


def test_one_channel_is_three_equal_ones():
    one = make_network("dino2", canvas=(28, 28)).eval()
    three = make_network("dino2", canvas=(28, 28), in_channels=3).eval()
    three.load_state_dict(one.state_dict())
    x = torch.rand(1, 2, 1, 28, 28)
    assert torch.allclose(one(x), three(x.expand(-1, -1, 3, -1, -1)), atol=1e-5)


@pytest.mark.parametrize("size", SMALL)
def test_a_canvas_of_whole_patches_only(size):
    stride = SPECS[size].token_stride
    with pytest.raises(PlanError, match=f"both sides must be multiples of {stride} px"):
        make_network(size, canvas=(stride, stride + 2))


def test_masks_cannot_start_as_sams():
    with pytest.raises(PlanError, match=r"masks_start=sam needs .* those of small hold only an encoder\. Give `netw"):
        make_network("dino3", canvas=(32, 32), decoder="sam", masks_start="sam")


def test_from_scratch_a_block_starts_nearly_as_the_identity():
    scratch = make_network("dino3", canvas=(32, 32), weights="none", trained="all", adapters="none", increment="none")
    control = make_network("dino3", canvas=(32, 32), weights="none", adapters="none", increment="none")
    assert scratch.image_encoder.blocks[0].ls1.gamma.max() < 1e-4
    assert control.image_encoder.blocks[0].ls1.gamma.min() == 1


@pytest.mark.parametrize("size", SMALL)
def test_files_name_their_kind(size, monkeypatch):
    state = file_of(size)
    assert kind_in(state) is type(SPECS[size])
    for name in SMALL:
        monkeypatch.setitem(ENCODERS, name, SPECS[name])
    assert [name for name in SMALL if has_encoder(name, state)] == [size]
    sams = dict.fromkeys(("image_encoder.blocks.0.mlp.lin1.weight",), torch.zeros(1))
    assert kind_in(sams) is type(SPECS["sam"])
