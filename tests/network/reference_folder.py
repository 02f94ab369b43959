"""Folders of reference numbers (shared/reference/README.md): reading one, its network, and making one of other
sizes."""

import dataclasses
import functools
import json
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from masam_auto.core.encoder_sizes import EncoderSpec, sam_encoder
from masam_auto.network import sam
from masam_auto.network.build import assemble, load_published_checkpoint, load_sam_weights
from masam_auto.network.masam import MaSam
from masam_auto.network.published import network_plan_of, read_variant
from masam_auto.network.weight_files import load_sam_checkpoint

MODES = ("auto", "box")
POSITIONS = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
# Sizes of a made folder; none is the small reference folder's.
SIZES: dict[str, Any] = {
    "dim": 40, "depth": 4, "heads": 2, "global": [0, 3], "prompt_dim": 96, "mlp": 72, "sam_image_size": 160,
    "image_size": 80, "num_classes": 2, "rank": 6, "scale": 0.5, "N": 3, "batch": 1, "seed": 5,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A folder. `image` (B, N, 1, H, W), `boxes` (B, N, 4), `expected` mode -> (B * N, K, H, W) logits, float32.

    `stored` is the position-encoding matrix in the type that the file has it in.
    """

    folder: Path
    config: dict[str, Any]
    image: Tensor
    boxes: Tensor | None
    expected: dict[str, Tensor]
    stored: Tensor

    @property
    def spec(self) -> EncoderSpec:
        """Sizes as config.json says."""
        c = self.config
        return sam_encoder(
            dim=c["dim"],
            depth=c["depth"],
            heads=c["heads"],
            global_blocks=tuple(c["global"]),
            embedding=c["prompt_dim"],
            decoder_mlp=c["mlp"],
        )

    def boxes_of(self, mode: str) -> Tensor | None:
        """The boxes that a mode is given."""
        return self.boxes if mode == "box" else None


def read_reference(folder: Path) -> Reference:
    """Read a folder; modes without a checkpoint or logits are left out."""
    with np.load(folder / "case.npz", allow_pickle=False) as case:
        arrays = {name: torch.from_numpy(case[name]) for name in case.files}
    present = [mode for mode in MODES if (folder / f"masam_{mode}.pth").is_file() and f"logits_{mode}" in arrays]
    assert present, f"{folder} has neither mode"
    return Reference(
        folder=folder,
        config=json.loads((folder / "config.json").read_text()),
        image=arrays["image"].float(),
        boxes=arrays["boxes"].float() if "boxes" in arrays else None,
        expected={mode: arrays[f"logits_{mode}"] for mode in present},
        stored=torch.load(folder / f"masam_{present[0]}.pth", weights_only=True)[POSITIONS],
    )


def build(
    reference: Reference, mode: str, *, in_channels: int = 1, positions: Tensor | None = None, **changes: Any
) -> MaSam:
    """The folder's network in evaluation mode; `changes` are fields of its plan."""
    adapted = load_sam_checkpoint(reference.folder / f"masam_{mode}.pth")
    if positions is not None:
        adapted[POSITIONS] = positions
    variant = read_variant(adapted, origin=mode)
    assert variant.rank == reference.config["rank"] and variant.num_outputs == reference.config["num_classes"] + 1
    prompt = "box" if mode == "box" else "none"
    plan = network_plan_of(variant, reference.spec, scale=reference.config["scale"], prompt=prompt, origin=mode)  # type: ignore[arg-type]
    network = assemble(
        reference.spec,
        dataclasses.replace(plan, **changes),
        canvas=(reference.image.shape[3], reference.image.shape[4]),
        in_channels=in_channels,
        num_outputs=variant.num_outputs,
    )
    load_sam_weights(network, load_sam_checkpoint(reference.folder / "sam.pth"), origin="sam.pth")
    load_published_checkpoint(network, adapted, origin=mode)
    return network.eval()


def error(network: MaSam, reference: Reference, mode: str) -> float:
    """Largest difference between a network's logits and the folder's."""
    image = reference.image.expand(-1, -1, network.in_channels, -1, -1)
    with torch.inference_mode():
        logits = network(image, reference.boxes_of(mode)).flatten(0, 1)
    return float((logits.float() - reference.expected[mode]).abs().max())


def make_reference(folder: Path, plain: ModuleType, *, rounded: bool, config: dict[str, Any] = SIZES) -> Path:
    """Write a folder whose numbers come from the plain network (tests/network/plain_masam.py).

    Args:
        folder: to be made.
        plain: the module plain_masam.
        rounded: whether the logits are computed with the position-encoding matrix that the files hold, or with the one
            before rounding.
        config: the content of config.json.
    """
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(config["seed"])
    start = {name: half(drawn(name, value, generator)) for name, value in sam_state(config).items()}
    network = plain_network(plain, config, start, generator)
    image = torch.rand(config["batch"], config["N"], 1, config["image_size"], config["image_size"], generator=generator)
    boxes = config["image_size"] * torch.rand(config["batch"], config["N"], 2, 2, generator=generator).sort(2).values
    case = {"image": image.half().numpy(), "boxes": boxes.flatten(2).round().numpy()}
    unrounded = network.get_buffer(POSITIONS).clone()
    network.get_buffer(POSITIONS).copy_(half(unrounded) if rounded else unrounded)
    with torch.inference_mode():
        windows = torch.from_numpy(case["image"]).float().expand(-1, -1, 3, -1, -1)
        case["logits_auto"] = network(windows).flatten(0, 1).numpy()
        case["logits_box"] = network(windows, torch.from_numpy(case["boxes"])).flatten(0, 1).numpy()
    adapted = {published(name): value.half() for name, value in network.state_dict().items() if adapts(name)}
    torch.save({name: value.half() for name, value in start.items()}, folder / "sam.pth")
    for mode in MODES:
        torch.save(adapted, folder / f"masam_{mode}.pth")
    (folder / "config.json").write_text(json.dumps(config))
    np.savez(folder / "case.npz", **case)
    return folder


def sam_state(config: dict[str, Any]) -> dict[str, Tensor]:
    """A SAM-format state dict at SAM's own canvas, from the segment-anything package."""
    width, side = config["prompt_dim"], config["sam_image_size"]
    encoder = sam.ImageEncoderViT(
        depth=config["depth"],
        embed_dim=config["dim"],
        img_size=side,
        num_heads=config["heads"],
        window_size=14,
        norm_layer=functools.partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        out_chans=width,
        global_attn_indexes=tuple(config["global"]),
    )
    prompts = sam.PromptEncoder(
        embed_dim=width, image_embedding_size=(side // 16,) * 2, input_image_size=(side,) * 2, mask_in_chans=16
    )
    transformer = sam.TwoWayTransformer(depth=2, embedding_dim=width, mlp_dim=config["mlp"], num_heads=8)
    decoder = sam.MaskDecoder(
        transformer_dim=width,
        transformer=transformer,
        num_multimask_outputs=3,
        iou_head_depth=3,
        iou_head_hidden_dim=width,
    )
    parts = {"image_encoder": encoder, "prompt_encoder": prompts, "mask_decoder": decoder}
    return {f"{room}.{name}": value for room, part in parts.items() for name, value in part.state_dict().items()}


def plain_network(
    plain: ModuleType, config: dict[str, Any], start: dict[str, Tensor], generator: torch.Generator
) -> Any:
    """The plain network with SAM's weights, resized as the reference does, and random adapted ones."""
    grid = config["image_size"] // 16
    spec = sam_encoder(
        dim=config["dim"],
        depth=config["depth"],
        heads=config["heads"],
        global_blocks=tuple(config["global"]),
        embedding=config["prompt_dim"],
        decoder_mlp=config["mlp"],
    )
    plan = network_plan_of(
        read_variant(published_shapes(config), origin="made"), spec, scale=config["scale"], prompt="box", origin="made"
    )
    network = plain.PlainMaSam(
        spec, plan, canvas=(config["image_size"],) * 2, in_channels=3, num_outputs=config["num_classes"] + 1
    ).eval()
    own = network.state_dict()
    for name, value in own.items():
        if adapts(name):
            value.copy_(value if name == POSITIONS else half(drawn(name, value, generator)))
        elif name.endswith("pos_embed"):
            resized = F.interpolate(start[name].permute(0, 3, 1, 2), (grid, grid), mode="bilinear", align_corners=False)
            value.copy_(resized.permute(0, 2, 3, 1))
        elif "rel_pos" in name and value.shape != start[name].shape:
            value.copy_(F.interpolate(start[name][None, None], value.shape, mode="bilinear", align_corners=False)[0, 0])
        else:
            value.copy_(start[name])
    return network


def published_shapes(config: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors that tell a published network's variant."""
    names = [f"q_FacTs_{block:03d}" for block in range(config["depth"])]
    adapter = "image_encoder.ImageEncoderViT.blocks.0.Block.adapter_linear_down"
    ups = [f"mask_decoder.output_upscaling.{layer}.weight" for layer in (0, 3, 6, 9)]
    return {
        **dict.fromkeys(names, torch.empty(config["rank"], config["rank"])),
        "image_encoder.FacTu.weight": torch.empty(config["rank"], config["dim"]),
        f"{adapter}.weight": torch.empty(24, config["dim"]),
        f"{adapter}_2.weight": torch.empty(24, config["dim"]),
        "mask_decoder.mask_tokens.weight": torch.empty(config["num_classes"] + 1, config["prompt_dim"]),
        **dict.fromkeys(ups, torch.empty(1, 1, 2, 2)),
    }


def adapts(name: str) -> bool:
    """Whether a tensor of the plain network is in an adapted checkpoint."""
    return not name.startswith("image_encoder.") or ".increments." in name or ".adapter_" in name


def published(name: str) -> str:
    """The reference implementation's name for a tensor of the plain network."""
    room, _, rest = name.partition(".")
    if room != "image_encoder":
        return name
    if rest.startswith("increments."):
        _, which, *number, _ = rest.split(".")
        return f"{which[0]}_FacTs_{int(number[0]):03d}" if number else f"image_encoder.FacT{which}.weight"
    _, block, adapter, module, tensor = rest.split(".")
    module = {"down": "linear_down", "up": "linear_up"}.get(module, module)
    second = "_2" if adapter == "adapter_after" else ""
    return f"image_encoder.ImageEncoderViT.blocks.{block}.Block.adapter_{module}{second}.{tensor}"


def drawn(name: str, value: Tensor, generator: torch.Generator) -> Tensor:
    """Random weights that keep activations near one and logits well below it; norms near the identity."""
    noise = torch.randn(value.shape, generator=generator)
    if ".output_hypernetworks_mlps." in name and ".layers.2." in name:
        return 0.03 * noise
    if value.ndim == 1:
        return 0.1 * noise + (1.0 if name.endswith("weight") else 0.0)
    if "pos" in name.rpartition(".")[2]:
        return 0.3 * noise
    return noise * value[0].numel() ** -0.5


def half(value: Tensor) -> Tensor:
    """Rounded to float16."""
    return value.half().float()
