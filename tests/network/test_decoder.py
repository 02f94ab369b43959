from dataclasses import replace

import pytest
import torch

from masam_auto.core.errors import PlanError
from masam_auto.network import sam
from masam_auto.network.activations import Load
from masam_auto.network.decoder import DECODERS, choose_decoder
from masam_auto.network.encoder import Features
from masam_auto.planning.planned_encoders import PLANNED_ENCODERS
from masam_auto.planning.recipes import choose_network
from tests.network.small_networks import SPECS


def features_for(spec, slices=2, grid=(3, 2)):
    torch.manual_seed(0)
    stride = spec.token_stride
    levels = tuple(
        torch.randn(slices, level.channels, grid[0] * stride // level.stride, grid[1] * stride // level.stride)
        for level in spec.levels
    )
    prompts = {
        "positions": torch.randn(1, spec.embedding, *grid),
        "sparse": torch.randn(slices, 2, spec.embedding),
        "dense": torch.randn(1, spec.embedding, 1, 1).expand(slices, spec.embedding, *grid),
        "num_slices": slices,
    }
    return Features(torch.randn(slices, spec.embedding, *grid), levels), prompts


@pytest.mark.parametrize("size", ["sam", "stem", "dino2"])
@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("num_outputs", [1, 4])
def test_logits_at_canvas_resolution(size, name, num_outputs):
    spec = SPECS[size]
    features, prompts = features_for(spec)
    logits = DECODERS[name].build(spec, num_outputs=num_outputs)(features, **prompts)
    assert logits.shape == (2, num_outputs, 3 * spec.token_stride, 2 * spec.token_stride)


def test_sam_decoder_is_sams():
    spec = SPECS["sam"]
    theirs = sam.MaskDecoder(
        transformer_dim=32,
        transformer=sam.TwoWayTransformer(depth=2, embedding_dim=32, mlp_dim=32, num_heads=2),
        iou_head_hidden_dim=32,
    )
    ours = DECODERS["sam"].build(spec, num_outputs=4)
    ours.load_state_dict(theirs.state_dict())
    features, prompts = features_for(spec, slices=1)
    logits = ours(features, **prompts)
    masks, _ = theirs.predict_masks(features.embedding, prompts["positions"], prompts["sparse"], prompts["dense"])
    expected = torch.nn.functional.interpolate(masks, size=(48, 32), mode="bilinear", align_corners=False)
    assert torch.allclose(logits, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["sam", "progressive"])
def test_shared_prompts_equal_one_set_a_slice(name):
    spec = SPECS["sam"]
    features, prompts = features_for(spec)
    decoder = DECODERS[name].build(spec, num_outputs=3)
    shared = prompts["sparse"][:1]
    once = decoder(features, **(prompts | {"sparse": shared, "dense": prompts["dense"][:1]}))
    each = decoder(features, **(prompts | {"sparse": shared.expand(2, -1, -1)}))
    assert torch.allclose(once, each, atol=1e-5)


def test_progressive_steps_follow_the_tokens():
    names = {name for name, _ in DECODERS["progressive"].build(SPECS["sam"], num_outputs=2).named_parameters()}
    assert "output_upscaling.9.weight" in names and "output_upscaling.10.weight" not in names
    names = {name for name, _ in DECODERS["progressive"].build(SPECS["stem"], num_outputs=2).named_parameters()}
    assert "output_upscaling.3.weight" in names and "output_upscaling.4.weight" not in names
    names = {name for name, _ in DECODERS["progressive"].build(SPECS["dino2"], num_outputs=2).named_parameters()}
    assert "output_upscaling.9.weight" in names, "16 times, and from there to 14 times"


def test_an_unknown_decoder_is_refused_with_the_known_ones():
    with pytest.raises(PlanError, match=r"network\.decoder 'unet' is unknown; known: sam, progressive, multiscale"):
        choose_decoder("unet")


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("encoder", PLANNED_ENCODERS)
def test_each_decoder_says_what_it_takes(name, encoder):
    """More for a larger canvas, and never nothing."""
    shape = PLANNED_ENCODERS[encoder]
    plan = replace(choose_network(shape, "")[0], decoder=name)
    sizes = [
        Load(encoder=shape.spec, network=plan, canvas=(side, side), window=1, in_channels=1, num_outputs=2)
        for side in (64, 128)
    ]
    small, large = (DECODERS[name].memory(load) for load in sizes)
    assert 0 < small.kept < large.kept and 0 < small.held < large.held
    assert (small.part > 0) == (not DECODERS[name].fuses_levels)
