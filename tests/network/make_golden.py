"""Write golden_logits.safetensors: what the public MA-SAM implementation says of a small random network.

Run once, with the reference implementation (github.com/cchen-cc/MA-SAM at commit 0c3cd90; it is no dependency of the
tests) in a folder: python -m tests.network.make_golden MA-SAM/MA-SAM [FILE]

Its code runs as it is, in float32 on a CPU, in evaluation mode, without SAM's pixel normalisation. Only sizes differ,
so
that the file stays small: widths, depth, canvas, and eight adapter channels where its constructor has 384. Every weight
is a float8 number, which float32 holds exactly.
"""

import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import MagicMock

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

FILE = Path(__file__).with_name("golden_logits.safetensors")
DIM, HEADS, GLOBAL, EMBEDDING, MLP, CANVAS = 16, 2, (1,), 64, 16, 48  # two blocks
RANK, SCALE, ADAPTER_CHANNELS, OUTPUTS, NUM_SLICES, SEED = 3, 0.5, 8, 2, 3, 7
EVERY = 3  # of the logits' rows and columns; odd, so that every place of the 2 x 2 upscaling kernels counts
UNUSED = ("mask_decoder.iou_prediction_head.", "prompt_encoder.mask_downscaling.")  # no logit depends on them


def main() -> None:
    """Write the file."""
    file = Path(sys.argv[2]) if len(sys.argv) > 2 else FILE
    sys.path.insert(0, sys.argv[1])
    stand_in()
    networks = {"auto": reference_network(box=False), "box": reference_network(box=True)}
    generator = torch.Generator().manual_seed(SEED)
    weights = {name: drawn(name, value, generator) for name, value in networks["auto"].state_dict().items()}
    image = float8(torch.rand(1, NUM_SLICES, 1, CANVAS, CANVAS, generator=generator))
    corners = CANVAS * torch.rand(1, NUM_SLICES, 2, 2, generator=generator)
    boxes = corners.sort(dim=2).values.flatten(2).round()
    content = {"image": image, "boxes": boxes}
    for mode, network in networks.items():
        network.load_state_dict(weights)
        inputs = (image.expand(-1, -1, 3, -1, -1), True, CANVAS, *([boxes] if mode == "box" else []))
        with torch.inference_mode():
            content[f"logits_{mode}"] = network.eval()(*inputs)["low_res_logits"][..., ::EVERY, ::EVERY].contiguous()
    parts = {"sam": frozen(networks["auto"]), "masam": adapted(networks["auto"])}
    numbers = {f"{part}.{name}": value for part, tensors in parts.items() for name, value in tensors.items()}
    numbers["image"] = content.pop("image")
    packed = {name: value.to(torch.float8_e4m3fn) for name, value in numbers.items()}
    assert all(torch.equal(value.float(), numbers[name]) for name, value in packed.items())
    save_file(content | packed, file, {"by": "github.com/cchen-cc/MA-SAM at 0c3cd90"})
    print(f"{file}: {file.stat().st_size} bytes")


def stand_in() -> None:
    """For libraries that the reference imports and this does not use."""
    for name in ("icecream", "torchvision", "torchvision.transforms.functional", "torchvision.ops.boxes"):
        for number in range(name.count(".") + 1):
            sys.modules.setdefault(name.rsplit(".", number)[0], MagicMock())


def reference_network(*, box: bool) -> nn.Module:
    """The reference implementation's network of our sizes."""
    from sam_fact_tt_image_encoder import Fact_tt_Sam
    from segment_anything.modeling import PromptEncoder, TwoWayTransformer
    from segment_anything.modeling.image_encoder import ImageEncoderViT

    if box:
        from sam_fact_tt_image_encoder_bbox import Fact_tt_Sam
        from segment_anything.modeling.mask_decoder_bbox import MaskDecoder
        from segment_anything.modeling.sam_bbox import Sam
    else:
        from segment_anything.modeling.mask_decoder import MaskDecoder
        from segment_anything.modeling.sam import Sam
    encoder = ImageEncoderViT(
        depth=2,
        embed_dim=DIM,
        img_size=CANVAS,
        num_heads=HEADS,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=14,
        global_attn_indexes=GLOBAL,
        out_chans=EMBEDDING,
    )
    for block in encoder.blocks:
        narrow_adapters(block)
    grid = (CANVAS // 16, CANVAS // 16)
    prompts = PromptEncoder(
        embed_dim=EMBEDDING, image_embedding_size=grid, input_image_size=(CANVAS, CANVAS), mask_in_chans=16
    )
    decoder = MaskDecoder(
        transformer_dim=EMBEDDING,
        transformer=TwoWayTransformer(depth=2, embedding_dim=EMBEDDING, mlp_dim=MLP, num_heads=8),
        num_multimask_outputs=OUTPUTS - 1,
        iou_head_hidden_dim=EMBEDDING,
    )
    return Fact_tt_Sam(Sam(encoder, prompts, decoder, pixel_mean=[0.0] * 3, pixel_std=[1.0] * 3), RANK, s=SCALE)


def narrow_adapters(block: Any) -> None:
    """Its constructor makes 384 channels whatever the encoder's width."""
    block.adapter_channels = ADAPTER_CHANNELS
    for number in ("", "_2"):
        setattr(block, f"adapter_linear_down{number}", nn.Linear(DIM, ADAPTER_CHANNELS, bias=False))
        setattr(block, f"adapter_linear_up{number}", nn.Linear(ADAPTER_CHANNELS, DIM, bias=False))
        conv = nn.Conv3d(ADAPTER_CHANNELS, ADAPTER_CHANNELS, kernel_size=(3, 1, 1), padding="same")
        setattr(block, f"adapter_conv{number}", conv)


def drawn(name: str, value: Tensor, generator: torch.Generator) -> Tensor:
    """Random float8 numbers that keep activations near one; the patches are embedded by their first channel alone."""
    noise = torch.randn(value.shape, generator=generator)
    if name.endswith("patch_embed.proj.weight"):
        return float8(noise / 16) * torch.tensor([1.0, 0.0, 0.0])[:, None, None]
    if "pos" in name.rpartition(".")[2]:
        return float8(0.3 * noise)
    if value.ndim == 1:
        return float8(0.1 * noise + (1.0 if name.endswith("weight") else 0.0))
    return float8(noise * value[0].numel() ** -0.5)


def float8(value: Tensor) -> Tensor:
    """Rounded; in float32."""
    return value.to(torch.float8_e4m3fn).float()


def adapted(network: Any) -> dict[str, Tensor]:
    """The checkpoint that the reference saves, by the names that it gives."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "adapted.pth"
        network.save_parameters(str(file))
        state = torch.load(file, weights_only=True)
    return {name: value.contiguous() for name, value in state.items() if not name.startswith(UNUSED)}


def frozen(network: Any) -> dict[str, Tensor]:
    """SAM's image encoder, by SAM's names, for one channel."""
    found = {}
    for name, value in network.sam.image_encoder.ImageEncoderViT.state_dict().items():
        if "adapter_" in name or "FacTs" in name:
            continue
        sams = name.replace(".Block.", ".").replace(".Attention.", ".").replace(".qkv.qkv.", ".qkv.")
        found[f"image_encoder.{sams}"] = value[:, :1] if sams.startswith("patch_embed.proj.w") else value
    return {name: value.contiguous() for name, value in found.items()}


if __name__ == "__main__":
    main()
