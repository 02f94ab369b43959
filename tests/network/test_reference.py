"""Against logits of the public MA-SAM implementation, of a small random network (shared/reference/README.md)."""

import dataclasses
import json
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from masam_auto.core.encoders import ENCODERS
from masam_auto.network import sam
from masam_auto.network.build import assemble, load_published_checkpoint, load_sam_weights

FOLDER = Path(
    os.environ.get("MASAM_REFERENCE") or Path(__file__).resolve().parents[2].parent / "shared" / "reference" / "small"
)
pytestmark = pytest.mark.skipif(not (FOLDER / "case.npz").is_file(), reason=f"no reference at {FOLDER}")
POSITIONS = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"


def reference_network(network_plan, config, mode, in_channels):
    base = ENCODERS["vit_b"]
    spec = dataclasses.replace(
        base,
        dim=config["dim"],
        depth=config["depth"],
        heads=config["heads"],
        global_blocks=tuple(config["global"]),
        embedding=config["prompt_dim"],
        decoder_mlp=config["mlp"],
        taps=tuple(config["global"]),
        levels=base.levels[: len(config["global"])],
    )
    plan = network_plan(
        increment_rank=config["rank"],
        increment_scale=config["scale"],
        adapter_channels=384,
        prompt="box" if mode == "box" else "none",
    )
    side = config["image_size"]
    network = assemble(spec, plan, canvas=(side, side), in_channels=in_channels, num_outputs=config["num_classes"] + 1)
    load_sam_weights(network, sam.load_sam_checkpoint(FOLDER / "sam.pth"), origin="sam.pth")
    adapted = sam.load_sam_checkpoint(FOLDER / f"masam_{mode}.pth")
    adapted[POSITIONS] = unrounded_positions(config, adapted[POSITIONS])
    load_published_checkpoint(network, adapted, origin=f"masam_{mode}.pth")
    return network.eval()


def unrounded_positions(config, rounded):
    """The random matrix of SAM's position encoding as it was when the logits were computed.

    The files hold it rounded to float16, which moves these logits by up to 7e-4. It was drawn with seed 0 after SAM's
    image encoder; that is checked against the rounded one.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sam.ImageEncoderViT(
            depth=config["depth"],
            embed_dim=config["dim"],
            img_size=config["sam_image_size"],
            num_heads=config["heads"],
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            global_attn_indexes=tuple(config["global"]),
            window_size=14,
            out_chans=config["prompt_dim"],
        )
        drawn = torch.randn(2, config["prompt_dim"] // 2)
    assert torch.equal(drawn.half().float(), rounded), "the stored matrix was drawn in another way"
    return drawn


@pytest.mark.parametrize("mode", ["auto", "box"])
@pytest.mark.parametrize("in_channels", [1, 3])
def test_logits_are_the_references(network_plan, mode, in_channels):
    config = json.loads((FOLDER / "config.json").read_text())
    with np.load(FOLDER / "case.npz", allow_pickle=False) as case:
        image = torch.from_numpy(case["image"]).float().expand(-1, -1, in_channels, -1, -1)
        boxes = torch.from_numpy(case["boxes"]) if mode == "box" else None
        expected = torch.from_numpy(case[f"logits_{mode}"])
    network = reference_network(network_plan, config, mode, in_channels)
    with torch.inference_mode():
        logits = network(image, boxes).flatten(0, 1)
    assert (logits - expected).abs().max() <= 2e-5
