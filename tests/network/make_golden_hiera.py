"""Write golden_hiera.safetensors: what SAM 2's own code says of a small random network.

Run once, with the code of github.com/facebookresearch/sam2 at commit 2b90b9f (it is no dependency of the tests) in a
folder: python -m tests.network.make_golden_hiera sam2 [FILE]

Its code runs as it is, in float32 on a CPU, in evaluation mode. Only sizes differ, so that the file stays small. The
file has the whole state, by SAM 2's names. Every weight is a float8 number, which float32 holds exactly.
"""

import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.network.make_golden import float8
from tests.network.small_networks import SPECS

FILE = Path(__file__).with_name("golden_hiera.safetensors")
CANVASES = ((64, 64), (96, 128))
BOX = (10.0, 20.0, 50.0, 40.0)  # x0, y0, x1, y1 in px
SEED = 5


class Sam2(nn.Module):
    """The parts of SAM 2 that see one image."""

    def __init__(self, canvas: tuple[int, int]) -> None:
        from sam2.modeling.backbones.hieradet import Hiera
        from sam2.modeling.backbones.image_encoder import FpnNeck, ImageEncoder
        from sam2.modeling.position_encoding import PositionEmbeddingSine
        from sam2.modeling.sam.mask_decoder import MaskDecoder
        from sam2.modeling.sam.prompt_encoder import PromptEncoder
        from sam2.modeling.sam.transformer import TwoWayTransformer

        super().__init__()
        spec: Any = SPECS["hiera"]
        trunk = Hiera(
            embed_dim=spec.stages[0].dim,
            num_heads=spec.stages[0].heads,
            stages=tuple(stage.depth for stage in spec.stages),
            global_att_blocks=spec.global_blocks,
            window_pos_embed_bkg_spatial_size=(spec.background, spec.background),
            window_spec=tuple(stage.window for stage in spec.stages),
        )
        neck = FpnNeck(
            PositionEmbeddingSine(spec.embedding, warmup_cache=False),
            spec.embedding,
            [stage.dim for stage in reversed(spec.stages)],
            fpn_top_down_levels=[2, 3],
            fpn_interp_model="nearest",
        )
        self.image_encoder = ImageEncoder(trunk, neck, scalp=1)
        self.no_mem_embed = nn.Parameter(torch.zeros(1, 1, spec.embedding))
        self.sam_prompt_encoder = PromptEncoder(
            embed_dim=spec.embedding,
            image_embedding_size=(canvas[0] // 16, canvas[1] // 16),
            input_image_size=canvas,
            mask_in_chans=16,
        )
        transformer = TwoWayTransformer(
            depth=2, embedding_dim=spec.embedding, mlp_dim=spec.decoder_mlp, num_heads=spec.decoder_heads
        )
        self.sam_mask_decoder = MaskDecoder(
            transformer_dim=spec.embedding,
            transformer=transformer,
            num_multimask_outputs=1,
            iou_head_hidden_dim=8,
            use_high_res_features=True,
            pred_obj_scores=True,
            pred_obj_scores_mlp=True,
        )
        self.obj_ptr_proj = nn.Linear(4, 4)  # stands for what remembers other images

    def numbers(self, image: Tensor) -> dict[str, Tensor]:
        """What its parts make of an image and a box."""
        stages = self.image_encoder.trunk(image)
        found = self.image_encoder(image)["vision_features"]
        embedding = found + self.no_mem_embed[0, 0, :, None, None]
        sparse, dense = self.sam_prompt_encoder(points=None, boxes=torch.tensor([BOX]), masks=None)
        positions = self.sam_prompt_encoder.get_dense_pe()
        queries, tokens = self.sam_mask_decoder.transformer(embedding + dense, positions, sparse)
        named = {f"stage{place}": stage for place, stage in enumerate(stages)}
        return {**named, "embedding": embedding, "sparse": sparse, "queries": queries, "tokens": tokens}


def main() -> None:
    """Write the file."""
    file = Path(sys.argv[2]) if len(sys.argv) > 2 else FILE
    sys.path.insert(0, sys.argv[1])
    for name in ("hydra", "hydra.core", "hydra.core.global_hydra", "iopath", "iopath.common", "iopath.common.file_io"):
        sys.modules.setdefault(name, MagicMock())
    generator = torch.Generator().manual_seed(SEED)
    weights = {name: drawn(name, value, generator) for name, value in Sam2((64, 64)).state_dict().items()}
    content = {f"state.{name}": value.to(torch.float8_e4m3fn) for name, value in weights.items()}
    for height, width in CANVASES:
        network = Sam2((height, width)).eval()
        network.load_state_dict(weights)
        image = float8(torch.randn(1, 3, height, width, generator=generator))
        content[f"{height}.image"] = image.to(torch.float8_e4m3fn)
        with torch.inference_mode():
            numbers = network.numbers(image)
        content |= {f"{height}.{name}": value.contiguous() for name, value in numbers.items()}
    save_file(content, file, {"by": "github.com/facebookresearch/sam2 at 2b90b9f"})
    print(f"{file}: {file.stat().st_size} bytes")


def drawn(name: str, value: Tensor, generator: torch.Generator) -> Tensor:
    """Random float8 numbers that keep activations near one."""
    noise = torch.randn(value.shape, generator=generator)
    if value.ndim == 1:
        return float8(0.1 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
    if "pos_embed" in name or "mem_embed" in name or "token" in name:
        return float8(0.3 * noise)
    return float8(noise * value[0].numel() ** -0.5)


if __name__ == "__main__":
    main()
