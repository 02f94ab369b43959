"""Published checkpoints: names both ways, and the network that the shapes of tensors describe."""

import pytest
import torch

from masam_auto.core.encoder_sizes import sam_encoder
from masam_auto.core.encoders import ENCODERS
from masam_auto.core.errors import ModelError
from masam_auto.network.build import build_network, encoder_of, part_of
from masam_auto.network.published import (
    _own_name,
    _published_name,
    fit_published,
    infer_encoder,
    network_plan_of,
    read_variant,
)
from tests.network import reference_folder
from tests.network.small_networks import SPECS, make_network, network_plan

CANVAS = (64, 48)


def adapted_of(network):
    """The adapted part of a network, as the reference implementation would save it."""
    return {_published_name(name): value for name, value in network.state_dict().items() if part_of(name) != "encoder"}


def sam_of(network):
    """A SAM-format state dict of a network's encoder and decoder transformer."""
    state = network.state_dict()
    return {name: state[name] for name in state if part_of(name) != "adapters" and ".increments." not in name}


def test_names_go_to_the_reference_and_back():
    network = make_network(canvas=CANVAS)
    for name in network.state_dict():
        published = _published_name(name)
        assert _own_name(published) == name
        if part_of(name) != "encoder":
            assert published == reference_folder.published(name)  # written down a second time, for the tests


@pytest.mark.parametrize(
    "fields",
    [
        {"adapters": "both", "increment_rank": 3, "adapter_channels": 6},
        {"adapters": "before", "increment_rank": 5, "adapter_channels": 4},
        {"adapters": "after", "increment_rank": 1, "adapter_channels": 9, "decoder": "sam"},
        {"adapters": "none", "increment_rank": 2, "decoder": "progressive", "prompt": "box"},
    ],
)
@pytest.mark.parametrize("num_outputs", [2, 5])
def test_the_plan_is_read_off_the_tensors(fields, num_outputs):
    spec = sam_encoder(dim=24, depth=3, heads=2, global_blocks=(1,), window=4, embedding=32)
    network = make_network(canvas=CANVAS, num_outputs=num_outputs, **fields)
    variant = read_variant(adapted_of(network), origin="a.pth")
    plan = network_plan_of(
        variant, spec, scale=network.plan.increment_scale, prompt=network.plan.prompt, origin="a.pth"
    )
    assert variant.num_outputs == num_outputs
    expected = {"increment_rank", "adapters", "decoder", "prompt", *fields} - (
        {"adapter_channels"} if fields["adapters"] == "none" else set()
    )
    assert all(getattr(plan, field) == getattr(network.plan, field) for field in expected)
    assert encoder_of(plan) == spec


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_named_encoders_are_recognised(name):
    plan = network_plan(encoder=name)
    state = sam_of(build_network(plan, canvas=(224, 224), in_channels=3, num_outputs=2, device="meta"))
    spec = infer_encoder(state, canvas=(512, 512), origin="sam.pth")
    assert spec == ENCODERS[name]
    variant = read_variant(
        adapted_of(build_network(plan, canvas=(64, 64), in_channels=3, num_outputs=2, device="meta")), origin="a"
    )
    found = network_plan_of(variant, spec, scale=1.0, prompt="none", origin="a")
    assert (found.encoder, found.custom_encoder) == (name, None)


def sam_tensors(*, grid=(6, 6), window=4, global_blocks=(1,), depth=3, **shapes):
    """The tensors of a SAM checkpoint that its sizes are read off."""
    tables = {
        f"image_encoder.blocks.{block}.attn.rel_pos_{axis}": (
            2 * (side if block in global_blocks else window) - 1,
            8,
        )
        for block in range(depth)
        for axis, side in zip("hw", grid, strict=True)
    }
    named = {
        "image_encoder.patch_embed.proj.weight": (24, 3, 16, 16),
        "image_encoder.pos_embed": (1, *grid, 24),
        "image_encoder.neck.0.weight": (32, 24, 1, 1),
        "image_encoder.blocks.0.mlp.lin1.weight": (60, 24),
        "mask_decoder.transformer.layers.0.mlp.lin1.weight": (50, 32),
    }
    sizes = {**named, **tables, **{name.replace("/", "."): shape for name, shape in shapes.items()}}
    return {name: torch.empty(shape) for name, shape in sizes.items() if shape is not None}


@pytest.mark.parametrize("grid", [(6, 6), (3, 5)])
@pytest.mark.parametrize("global_blocks", [(), (1,), (0, 2), (0, 1, 2)])
def test_other_sizes_are_read_off_the_tables(grid, global_blocks):
    spec = infer_encoder(
        sam_tensors(grid=grid, global_blocks=global_blocks), canvas=(16 * grid[0], 16 * grid[1]), origin="sam.pth"
    )
    window = spec.window if len(global_blocks) == 3 else 4
    assert spec == sam_encoder(
        dim=24,
        depth=3,
        heads=3,
        global_blocks=global_blocks,
        window=window,
        mlp_ratio=2.5,
        embedding=32,
        decoder_mlp=50,
    )


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"image_encoder/pos_embed": None}, "sam.pth: image_encoder.pos_embed is missing; expected a SAM checkpoint"),
        ({"image_encoder/pos_embed": (36, 24)}, r"image_encoder.pos_embed has shape \(36, 24\); expected a SAM"),
        ({"image_encoder/patch_embed/proj/weight": (24, 3, 8, 8)}, "patches of 8 x 8 px; SAM's are 16 x 16"),
        ({"image_encoder/blocks/2/attn/rel_pos_h": (9, 8)}, r"lengths \[7, 9, 11\]; expected those of the position"),
        (
            {"image_encoder/neck/0/weight": (20, 24, 1, 1)},
            "sam.pth: encoder sizes: twice decoder_heads .8. must divide",
        ),
        ({"image_encoder/blocks/999999/norm": (1,)}, "block 3 of the image encoder is missing"),
        ({"image_encoder/blocks/0/attn/rel_pos_h": (7, 0)}, r"rel_pos_h has shape \(7, 0\); expected a SAM"),
        ({"grid": (4, 4)}, "made for 64 x 64 px. It is unclear which blocks attend within windows"),
    ],
)
def test_what_is_no_sam_checkpoint_is_named(tensors, message):
    with pytest.raises(ModelError, match=message):
        infer_encoder(sam_tensors(**tensors), canvas=(96, 96), origin="sam.pth")


def test_where_window_and_canvas_are_one_all_blocks_are_global():
    assert infer_encoder(sam_tensors(grid=(4, 4)), canvas=(64, 64), origin="s").global_blocks == (0, 1, 2)


@pytest.fixture
def parts():
    network = make_network(canvas=CANVAS)
    wanted = {name: value for name, value in network.state_dict().items() if part_of(name) != "encoder"}
    return adapted_of(network), wanted


def test_all_tensors_arrive_under_our_names(parts):
    adapted, wanted = parts
    fitted = fit_published(adapted, wanted, origin="a.pth")
    assert fitted.keys() == wanted.keys()
    assert all(fitted[name] is adapted[_published_name(name)] for name in fitted)


BLOCK = "image_encoder.ImageEncoderViT.blocks.1.Block"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("q_FacTs_001", None, "q_FacTs_001 is missing, but other tensors need it"),
        (f"{BLOCK}.adapter_linear_up_2.weight", None, r"adapter_linear_up_2\.weight is missing"),
        ("image_encoder.FacTv.weight", lambda t: t[:, :2], r"FacTv\.weight has shape \(24, 2\).*need \(24, 3\)"),
        ("image_encoder.blocks.0.norm3.weight", lambda t: torch.ones(2), r"blocks\.0\.norm3\.weight is unknown"),
        ("v_FacTs_000", lambda t: t * float("nan"), "v_FacTs_000 has values that are not finite"),
        ("v_FacTs_000", lambda t: t.int(), r"v_FacTs_000 has values of type torch\.int32, not torch\.float32"),
    ],
)
def test_what_does_not_fit_is_named_as_in_the_file(parts, name, change, message):
    adapted, wanted = parts
    value = adapted.pop(name, None)
    if change is not None:
        adapted[name] = change(value)
    with pytest.raises(ModelError, match=rf"^a\.pth: .*{message}"):
        fit_published(adapted, wanted, origin="a.pth")


@pytest.mark.parametrize("missing", ["image_encoder.FacTu.weight", "mask_decoder.mask_tokens.weight"])
def test_other_checkpoints_are_not_taken_for_published_ones(parts, missing):
    adapted, _ = parts
    del adapted[missing]
    with pytest.raises(ModelError, match=f"a.pth: {missing} is missing; expected an adapted MA-SAM checkpoint"):
        read_variant(adapted, origin="a.pth")


def test_checkpoints_of_different_encoders_are_refused(parts):
    variant = read_variant(parts[0], origin="a.pth")
    with pytest.raises(ModelError, match="3 blocks of width 24, but the SAM checkpoint has 12 blocks of width 768"):
        network_plan_of(variant, ENCODERS["vit_b"], scale=1.0, prompt="none", origin="a.pth")


def test_decoders_of_other_lengths_are_refused(parts):
    adapted = {
        name: value for name, value in parts[0].items() if not name.startswith("mask_decoder.output_upscaling.9")
    }
    variant = read_variant(adapted, origin="a.pth")
    with pytest.raises(ModelError, match=r"3 upscaling steps; expected 2 \(sam\) or 4 \(progressive\)"):
        network_plan_of(variant, SPECS["sam"], scale=1.0, prompt="none", origin="a.pth")
