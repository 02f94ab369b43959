import subprocess
import sys
from functools import partial

import pytest
import torch

from masam_auto.core.errors import ModelError
from masam_auto.network import sam
from masam_auto.network.build import load_sam_weights
from tests.network.small_networks import make_network


@pytest.fixture
def checkpoint():
    """A SAM checkpoint for 128 px, of the small encoder's sizes."""
    torch.manual_seed(3)
    encoder = sam.ImageEncoderViT(
        depth=3,
        embed_dim=24,
        img_size=128,
        mlp_ratio=2,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        num_heads=2,
        use_rel_pos=True,
        global_attn_indexes=(1,),
        window_size=4,
        out_chans=32,
    )
    prompt = sam.PromptEncoder(embed_dim=32, image_embedding_size=(8, 8), input_image_size=(128, 128), mask_in_chans=16)
    decoder = sam.MaskDecoder(
        transformer_dim=32,
        transformer=sam.TwoWayTransformer(depth=2, embedding_dim=32, mlp_dim=32, num_heads=2),
        iou_head_hidden_dim=32,
    )
    rooms = {"image_encoder": encoder, "prompt_encoder": prompt, "mask_decoder": decoder}
    return {
        f"{room}.{name}": torch.randn_like(value)
        for room, module in rooms.items()
        for name, value in module.state_dict().items()
    }


def test_only_modeling_is_imported():
    code = (
        "import sys, masam_auto.network.sam as sam; sam.LayerNorm2d(3); "
        "print('torchvision' in sys.modules, 'segment_anything' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_missing_package_is_one_line(monkeypatch):
    monkeypatch.delitem(sys.modules, sam._PRIVATE_NAME)  # the tests of this process have loaded it
    monkeypatch.setattr(sam.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="pip install segment-anything"):
        sam._load_modeling()


def test_resized_tables():
    ramp = torch.arange(8.0)[None, :, None, None].expand(1, 8, 6, 2)
    half = sam.resize_positions(ramp, (4, 6))
    assert torch.allclose(half[0, :, 0, 0], torch.tensor([0.5, 2.5, 4.5, 6.5]))
    assert sam.resize_positions(ramp, (8, 6)) is ramp
    table = torch.arange(6.0)[:, None].expand(6, 3)
    assert torch.allclose(sam.resize_relative(table, 3)[:, 0], torch.tensor([0.5, 2.5, 4.5]))
    assert sam.resize_relative(table, 6) is table


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_response_to_equal_channels_is_kept(channels):
    weight = torch.randn(4, 3, 2, 2)
    image = torch.randn(1, 1, 2, 2)
    before = torch.nn.functional.conv2d(image.expand(1, 3, 2, 2), weight)
    after = torch.nn.functional.conv2d(image.expand(1, channels, 2, 2), sam.fit_channels(weight, channels))
    assert torch.allclose(before, after, atol=1e-5)


@pytest.mark.parametrize("decoder", ["sam", "progressive", "multiscale"])
def test_checkpoint_loads_on_a_wide_canvas(checkpoint, decoder):
    network = make_network(canvas=(64, 96), decoder=decoder)
    load_sam_weights(network, checkpoint, origin="sam.pth")
    own = network.state_dict()
    assert own["image_encoder.pos_embed"].shape == (1, 4, 6, 24)
    assert own["image_encoder.blocks.1.attn.rel_pos_w"].shape == (11, 12)
    kept = "image_encoder.blocks.0.attn.rel_pos_h"
    assert torch.equal(own[kept], checkpoint[kept])
    if decoder != "multiscale":
        assert torch.equal(
            own["mask_decoder.output_upscaling.3.weight"], checkpoint["mask_decoder.output_upscaling.3.weight"]
        )
        assert torch.equal(own["mask_decoder.iou_token.weight"], checkpoint["mask_decoder.iou_token.weight"])
        assert not torch.equal(
            own["mask_decoder.mask_tokens.weight"], checkpoint["mask_decoder.mask_tokens.weight"][:3]
        )


def test_checkpoint_of_another_encoder_is_refused(checkpoint):
    network = make_network()
    wider = {name: torch.cat([value, value], -1) for name, value in checkpoint.items()}
    with pytest.raises(ModelError, match=r"b\.pth: .*proj\.bias has shape \(48,\), but small needs \(24,\)"):
        load_sam_weights(network, wider, origin="b.pth")
    deeper = checkpoint | {"image_encoder.blocks.3.norm1.weight": torch.ones(24)}
    with pytest.raises(ModelError, match=r"blocks\.3\.norm1\.weight does not exist in small"):
        load_sam_weights(network, deeper, origin="b.pth")
    del checkpoint["image_encoder.blocks.2.norm1.weight"]
    with pytest.raises(ModelError, match=r"blocks\.2\.norm1\.weight is missing"):
        load_sam_weights(network, checkpoint, origin="b.pth")


def test_windowed_tables_are_never_resized(checkpoint):
    name = "image_encoder.blocks.0.attn.rel_pos_h"
    checkpoint[name] = torch.zeros(27, 12)
    with pytest.raises(ModelError, match=r"rel_pos_h has shape \(27, 12\), but small needs \(7, 12\)"):
        load_sam_weights(make_network(), checkpoint, origin="b.pth")
