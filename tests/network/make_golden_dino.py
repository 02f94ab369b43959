"""Write golden_dino.safetensors: what the original code of DINOv2 and DINOv3, timm and transformers say of small random
encoders.

Run once, with three repositories in folders (none is a dependency of the tests): github.com/facebookresearch/dinov2 at
commit b8931f7, facebookresearch/dinov3 at 6876159, huggingface/pytorch-image-models at aa4b585, and with transformers
5.24.0 installed: python -m tests.network.make_golden_dino DINOV2 DINOV3 TIMM [FILE]

Their code runs as it is, in float32 on a CPU, in evaluation mode; only sizes differ, so that the file stays small. Each
state is stored under its original names. timm's are made of Meta's by timm's own conversion, and computed by timm;
transformers' by the names of its own models, and computed by it. Every weight is a float8 number, which float32 holds
exactly.
"""

import sys
from collections.abc import Mapping
from functools import partial
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

FILE = Path(__file__).with_name("golden_dino.safetensors")
DIM, DEPTH, HEADS, NATIVE, REGISTERS = 16, 2, 2, 5, 3
PATCH = {"dinov2": 7, "dinov2_reg": 7, "dinov3": 8}
GRIDS = {"native": (NATIVE, NATIVE), "other": (4, 6)}
SEED = 11


def main() -> None:
    """Write the file."""
    sys.path[:0] = sys.argv[1:4]
    hubs = {name: hubs_network(name) for name in PATCH}  # first: it looks whether torchvision is there
    sys.meta_path.append(StandIn())  # type: ignore[arg-type]
    file = Path(sys.argv[4]) if len(sys.argv) > 4 else FILE
    generator = torch.Generator().manual_seed(SEED)
    content: dict[str, Tensor] = {}
    for name, patch in PATCH.items():
        images = {grid: drawn_image(patch, size, generator) for grid, size in GRIDS.items()}
        content |= {f"{name}.image.{grid}": image.to(torch.float8_e4m3fn) for grid, image in images.items()}
        meta = metas_network(name)
        state = {key: drawn(key, value, generator) for key, value in meta.state_dict().items()}
        content |= said(f"{name}.meta", meta, state, images)
        for form, bias in (("timm", True), ("timm_without_bias", False)) if name == "dinov3" else (("timm", True),):
            theirs = timms_network(name, bias=bias)
            converted = timms_state(name, state, theirs)
            # timm resizes every table with antialiasing; DINOv2 without registers was trained otherwise
            seen = images if name != "dinov2" else {"native": images["native"]}
            content |= said(f"{name}.{form}", theirs, converted, seen)
        state = hubs_state(state, hubs[name].state_dict())
        content |= said(f"{name}.transformers", hubs[name], state, {"native": images["native"]})
    save_file(content, file, {"by": "facebookresearch/dinov2, facebookresearch/dinov3, huggingface/timm"})
    print(f"{file}: {file.stat().st_size} bytes")


class StandIn:
    """Gives mocks for a library that the originals import and this does not use."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """A mock of torchvision and its parts; nothing else."""
        mocked = name.partition(".")[0] == "torchvision"
        return ModuleSpec(name, self, is_package=True) if mocked else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> Any:
        """The mock."""
        return MagicMock(name=spec.name)

    def exec_module(self, module: Any) -> None:
        """Nothing is executed."""


def metas_network(name: str) -> nn.Module:
    """Meta's class, with the arguments of its own hub/backbones.py except the sizes."""
    sizes: dict[str, Any] = {"embed_dim": DIM, "depth": DEPTH, "num_heads": HEADS, "patch_size": PATCH[name]}
    if name == "dinov3":
        from dinov3.models.vision_transformer import DinoVisionTransformer as Newer

        return Newer(
            **sizes,
            pos_embed_rope_dtype="fp32",
            layerscale_init=1e-5,
            norm_layer="layernormbf16",
            n_storage_tokens=REGISTERS,
            mask_k_bias=True,
        )
    from dinov2.models.vision_transformer import DinoVisionTransformer

    registers = {"num_register_tokens": REGISTERS, "interpolate_antialias": True, "interpolate_offset": 0.0}
    return DinoVisionTransformer(
        **sizes,
        **(registers if name == "dinov2_reg" else {}),
        img_size=NATIVE * PATCH[name],
        init_values=1.0,
        block_chunks=0,
    )


def timms_network(name: str, *, bias: bool) -> nn.Module:
    """timm's class, with the arguments of its own entries except the sizes."""
    sizes: dict[str, Any] = {
        "embed_dim": DIM,
        "depth": DEPTH,
        "num_heads": HEADS,
        "patch_size": PATCH[name],
        "img_size": NATIVE * PATCH[name],
        "init_values": 1e-5,
        "num_classes": 0,
        "dynamic_img_size": True,
    }
    if name == "dinov3":
        from timm.models.eva import Eva

        return Eva(
            **sizes,
            qkv_bias=bias,
            rope_type="dinov3",
            rope_temperature=100,
            rope_rotate_half=True,
            use_rot_pos_emb=True,
            use_abs_pos_emb=False,
            num_reg_tokens=REGISTERS,
            use_fc_norm=False,
            norm_layer=partial(nn.LayerNorm, eps=1e-5),
        )
    from timm.models.vision_transformer import VisionTransformer

    registers = {"reg_tokens": REGISTERS, "no_embed_class": True} if name == "dinov2_reg" else {}
    return VisionTransformer(**sizes, **registers, global_pool="token")


def hubs_network(name: str) -> nn.Module:
    """transformers' class, with its default configuration except the sizes."""
    import transformers as hub

    sizes: dict[str, Any] = {
        "hidden_size": DIM,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": HEADS,
        "patch_size": PATCH[name],
        "image_size": NATIVE * PATCH[name],
    }
    if name == "dinov3":
        return hub.DINOv3ViTModel(
            hub.DINOv3ViTConfig(**sizes, intermediate_size=4 * DIM, num_register_tokens=REGISTERS)
        )
    if name == "dinov2_reg":
        return hub.Dinov2WithRegistersModel(hub.Dinov2WithRegistersConfig(**sizes, num_register_tokens=REGISTERS))
    return hub.Dinov2Model(hub.Dinov2Config(**sizes))


HUBS_NAMES = (
    ("embeddings.patch_embeddings.projection.", "patch_embed.proj."),
    ("embeddings.patch_embeddings.", "patch_embed.proj."),
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.", ""),
    ("layernorm.", "norm."),
    ("encoder.layer.", "blocks."),
    ("model.layer.", "blocks."),
    (".attention.o_proj.", ".attn.proj."),
    (".layer_scale1.lambda1", ".ls1.gamma"),
    (".layer_scale2.lambda1", ".ls2.gamma"),
    (".mlp.up_proj.", ".mlp.fc1."),
    (".mlp.down_proj.", ".mlp.fc2."),
)


def hubs_state(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Meta's state under transformers' names; its queries, keys and values stand alone, and registers have one name."""
    found = {}
    for name in wanted:
        metas = name
        for theirs, own in HUBS_NAMES:
            metas = metas.replace(theirs, own)
        start, part, end = metas.partition("_proj.")
        if part:
            found[name] = state[f"{start[:-12]}.attn.qkv.{end}"].chunk(3)["qkv".index(start[-1])].clone()
        else:
            metas = metas if metas in state else "storage_tokens"
            found[name] = state[metas].view(wanted[name].shape)
    return found


def timms_state(name: str, state: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Meta's state as timm itself converts it."""
    from timm.models import eva, vision_transformer

    convert = eva.checkpoint_filter_fn if name == "dinov3" else vision_transformer.checkpoint_filter_fn
    return convert(dict(state), network)


def said(case: str, network: nn.Module, state: Mapping[str, Tensor], images: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state, and the patch tokens after the last norm that its network makes of images."""
    network.load_state_dict(dict(state), strict=True)
    content = {f"{case}.state.{name}": packed(value) for name, value in state.items()}
    for grid, image in images.items():
        with torch.inference_mode():
            found = getattr(network.eval(), "forward_features", network)(image)
        if not isinstance(found, Tensor):  # Meta's, transformers'
            found = found["x_norm_patchtokens" if "x_norm_patchtokens" in found else "last_hidden_state"]
        tokens = found[:, -GRIDS[grid][0] * GRIDS[grid][1] :]
        content[f"{case}.tokens.{grid}"] = tokens.clone()
    return content


def packed(value: Tensor) -> Tensor:
    """As float8 where that loses nothing: class tokens with their position added may need float32."""
    small = value.to(torch.float8_e4m3fn)
    return small if torch.equal(small.float(), value) else value.clone()


def drawn(name: str, value: Tensor, generator: torch.Generator) -> Tensor:
    """Random values of a state's tensor; what is no weight stays."""
    if name.endswith("periods"):
        return value
    if name.endswith("bias_mask"):
        third = len(value) // 3
        return torch.cat([torch.ones(third), torch.zeros(third), torch.ones(third)])
    around = 1.0 if name.endswith(("gamma", "norm1.weight", "norm2.weight")) or name == "norm.weight" else 0.0
    return float8(around + 0.3 * torch.randn(value.shape, generator=generator))


def drawn_image(patch: int, grid: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Random pixels of three channels, mean 0 and deviation 1."""
    return float8(torch.randn(1, 3, grid[0] * patch, grid[1] * patch, generator=generator))


def float8(value: Tensor) -> Tensor:
    """The nearest float8 numbers, as float32."""
    return value.to(torch.float8_e4m3fn).float()


if __name__ == "__main__":
    main()
