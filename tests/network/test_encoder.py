from functools import partial

import pytest
import torch

from masam_auto.core.encoder_sizes import EncoderSpec
from masam_auto.core.encoders import ENCODERS
from masam_auto.network import sam
from masam_auto.network.encoder import ChannelNorm
from tests.network.small_networks import make_network


def sams_encoder(canvas, in_channels=1):
    """SAM's own image encoder at the small sizes, with tables for a canvas that need not be square."""
    encoder = sam.ImageEncoderViT(
        depth=3,
        embed_dim=24,
        img_size=max(canvas),
        in_chans=in_channels,
        mlp_ratio=2,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        num_heads=2,
        use_rel_pos=True,
        global_attn_indexes=(1,),
        window_size=4,
        out_chans=32,
    )
    rows, columns = canvas[0] // 16, canvas[1] // 16
    encoder.pos_embed = torch.nn.Parameter(torch.zeros(1, rows, columns, 24))
    attention = encoder.blocks[1].attn
    attention.rel_pos_h = torch.nn.Parameter(torch.zeros(2 * rows - 1, 12))
    attention.rel_pos_w = torch.nn.Parameter(torch.zeros(2 * columns - 1, 12))
    return encoder


@pytest.mark.parametrize(
    ("increment", "adapters", "num_slices"),
    [("fact", "both", 3), ("fact", "none", 1), ("lora", "both", 1), ("none", "both", 3), ("none", "none", 1)],
)
@pytest.mark.parametrize("canvas", [(96, 96), (16, 80)])
def test_starts_as_sam_exactly(canvas, num_slices, increment, adapters):
    theirs = sams_encoder(canvas)
    torch.manual_seed(4)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    network = make_network(canvas=canvas, increment=increment, adapters=adapters)
    network.image_encoder.load_state_dict(theirs.state_dict(), strict=False)
    x = torch.randn(num_slices, 1, *canvas)
    for mode in (True, False):
        network.train(mode)
        assert torch.allclose(network.image_encoder(x, num_slices).embedding, theirs(x), atol=1e-4)


def test_sams_names_are_kept():
    network = make_network(canvas=(96, 96))
    names = set(network.image_encoder.state_dict())
    assert set(sams_encoder((96, 96)).state_dict()) == {
        n for n in names if "adapter" not in n and "increments" not in n
    }


@pytest.mark.parametrize("size", ["sam", "stem", "tiny"])
def test_checkpointing_changes_nothing(size):
    network = make_network(size, decoder="multiscale", randomised=True, increment_dropout=0.0)
    x = torch.randn(1, 2, 1, 96, 64)
    gradients = []
    for network.image_encoder.activation_checkpointing in (False, True):
        network.zero_grad()
        network(x).square().mean().backward()
        gradients.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1])
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-5) for a, b in zip(*gradients, strict=True))


def test_levels_only_when_asked_for():
    x = torch.zeros(2, 1, 96, 64)
    assert make_network(decoder="progressive").image_encoder(x, 2).levels == ()
    levels = make_network(decoder="multiscale").image_encoder(x, 2).levels
    assert [tuple(level.shape) for level in levels] == [(2, 24, 6, 4)] * 2


def test_channel_norm_is_layer_norm_2d():
    torch.manual_seed(0)
    x = torch.randn(2, 5, 3, 4)
    ours, theirs = ChannelNorm(5), sam.LayerNorm2d(5)
    torch.nn.init.normal_(theirs.weight)
    ours.load_state_dict(theirs.state_dict())
    assert torch.allclose(ours(x), theirs(x), atol=1e-5)


@pytest.mark.parametrize("name", [name for name, spec in ENCODERS.items() if isinstance(spec, EncoderSpec)])
def test_specs_hang_together(name):
    spec = ENCODERS[name]
    assert max(spec.global_blocks) < spec.depth and spec.patch >= 1
    assert list(spec.levels) == sorted(spec.levels, key=lambda level: level.target)
    if spec.stem:
        assert spec.patch * 2 ** (len(spec.stem) - 1) == spec.token_stride
        assert [level.width for level in spec.levels] == list(spec.stem)
    else:
        assert set(spec.taps) <= set(spec.global_blocks)


@pytest.mark.parametrize("canvas", [(96, 96), (32, 80)])
@pytest.mark.parametrize("in_channels", [1, 3, 4])
def test_one_slice_without_adapters_is_sam_whatever_was_learned_elsewhere(canvas, in_channels):
    """The decoder-only variant: N = 1, nothing to adapt, SAM's encoder number by number."""
    theirs = sams_encoder(canvas, in_channels)
    torch.manual_seed(5)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    network = make_network(canvas=canvas, in_channels=in_channels, trained="none")
    missing, unexpected = network.image_encoder.load_state_dict(theirs.state_dict(), strict=True)
    assert not missing and not unexpected
    x = torch.randn(2, in_channels, *canvas)
    assert torch.allclose(network.image_encoder(x, 1).embedding, theirs(x), atol=1e-4)
