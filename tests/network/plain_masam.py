"""MA-SAM written plainly, as a test double: the paper's formulas one after another, float32, nothing folded or fused.

What it does and `masam_auto.network` does not: a (tokens x tokens) bias of relative positions is stored and added to
the scores; FacT's increments V S U x are computed from the tokens in evaluation too; the adapters' convolution is a 3D
one between two permutations; a volume is predicted by one window of N slices around every slice. SAM's own parts that
both share (patch embedding, MLP, two-way transformer, prompt encoder) come from the segment-anything package.

Source: Chen et al., MA-SAM, Medical Image Analysis 98 (2024) 103310; Kirillov et al., Segment Anything, ICCV 2023.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from masam_auto.core.encoder_sizes import EncoderSpec
from masam_auto.core.plan import NetworkPlan
from masam_auto.network import sam
from masam_auto.network.masam import MaSam


class FacT(nn.Module):
    """U and V, shared over the blocks, and each block's Sq and Sv: `q += s V dropout(Sq U x)`, likewise v."""

    def __init__(self, spec: EncoderSpec, plan: NetworkPlan) -> None:
        super().__init__()
        rank = plan.increment_rank
        self.scale = plan.increment_scale
        self.u = nn.Linear(spec.dim, rank, bias=False)
        self.v = nn.Linear(rank, spec.dim, bias=False)
        self.q_cores = nn.ModuleList(nn.Linear(rank, rank, bias=False) for _ in range(spec.depth))
        self.v_cores = nn.ModuleList(nn.Linear(rank, rank, bias=False) for _ in range(spec.depth))
        self.dropout = nn.Dropout(plan.increment_dropout)

    def forward(self, x: Tensor, block: int) -> tuple[Tensor, Tensor]:
        q = self.v(self.dropout(self.q_cores[block](self.u(x))))
        v = self.v(self.dropout(self.v_cores[block](self.u(x))))
        return self.scale * q, self.scale * v


class Adapter(nn.Module):
    """`x + Up(GELU(Conv3d(Down(LayerNorm(x)))))`, the convolution (3, 1, 1) over (batch, channels, N, h, w)."""

    def __init__(self, spec: EncoderSpec, plan: NetworkPlan) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(spec.dim, eps=1e-6)
        self.down = nn.Linear(spec.dim, plan.adapter_channels, bias=False)
        self.conv = nn.Conv3d(plan.adapter_channels, plan.adapter_channels, (3, 1, 1), padding="same")
        self.up = nn.Linear(plan.adapter_channels, spec.dim, bias=False)

    def forward(self, x: Tensor, num_slices: int) -> Tensor:
        reduced = self.down(self.norm(x))
        volume = reduced.unflatten(0, (-1, num_slices)).permute(0, 4, 1, 2, 3).contiguous()
        volume = F.gelu(self.conv(volume)).permute(0, 2, 3, 4, 1).contiguous()
        return x + self.up(volume.flatten(0, 1))


def position_bias(q: Tensor, rel_pos_h: Tensor, rel_pos_w: Tensor, grid: tuple[int, int]) -> Tensor:
    """The whole bias, (s, heads, tokens, tokens): `q . rel_h[row - row'] + q . rel_w[column - column']`."""
    height, width = grid
    rows, columns = torch.arange(height, device=q.device), torch.arange(width, device=q.device)
    table_h = rel_pos_h[rows[:, None] - rows[None, :] + height - 1]
    table_w = rel_pos_w[columns[:, None] - columns[None, :] + width - 1]
    q = q.unflatten(2, grid)
    bias_h = torch.einsum("snhwe,hke->snhwk", q, table_h)
    bias_w = torch.einsum("snhwe,wke->snhwk", q, table_w)
    return (bias_h[..., :, None] + bias_w[..., None, :]).flatten(4, 5).flatten(2, 3)


class PlainAttention(nn.Module):
    """`softmax(q k^T / sqrt(e) + bias) v` over a grid of tokens."""

    def __init__(self, spec: EncoderSpec, grid: tuple[int, int]) -> None:
        super().__init__()
        self.heads = spec.heads
        width = spec.dim // spec.heads
        self.scale = width**-0.5
        self.qkv = nn.Linear(spec.dim, 3 * spec.dim)
        self.proj = nn.Linear(spec.dim, spec.dim)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * grid[0] - 1, width))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * grid[1] - 1, width))

    def forward(self, x: Tensor, fact: FacT, block: int) -> Tensor:
        slices, height, width, channels = x.shape
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        more_q, more_v = fact(x, block)
        q, k, v = (
            part.reshape(slices, height * width, self.heads, -1).transpose(1, 2) for part in (q + more_q, k, v + more_v)
        )
        scores = (q * self.scale) @ k.transpose(-2, -1)
        scores = scores + position_bias(q, self.rel_pos_h, self.rel_pos_w, (height, width))
        out = scores.softmax(dim=-1) @ v
        return self.proj(out.transpose(1, 2).reshape(slices, height, width, channels))


class PlainBlock(nn.Module):
    """Adapter, attention (in SAM's zero-padded windows, or over the slice), adapter, MLP."""

    def __init__(self, spec: EncoderSpec, plan: NetworkPlan, number: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.number = number
        self.window = 0 if number in spec.global_blocks else spec.window
        self.adapter_before = Adapter(spec, plan)
        self.norm1 = nn.LayerNorm(spec.dim, eps=1e-6)
        self.attn = PlainAttention(spec, (self.window, self.window) if self.window else grid)
        self.adapter_after = Adapter(spec, plan)
        self.norm2 = nn.LayerNorm(spec.dim, eps=1e-6)
        self.mlp = sam.MLPBlock(embedding_dim=spec.dim, mlp_dim=int(spec.dim * spec.mlp_ratio))

    def forward(self, x: Tensor, fact: FacT, num_slices: int) -> Tensor:
        x = self.adapter_before(x, num_slices)
        x = x + self.attend(self.norm1(x), fact)
        x = self.adapter_after(x, num_slices)
        return x + self.mlp(self.norm2(x))

    def attend(self, x: Tensor, fact: FacT) -> Tensor:
        if not self.window:
            return self.attn(x, fact, self.number)
        slices, height, width, channels = x.shape
        side = self.window
        x = F.pad(x, (0, 0, 0, -width % side, 0, -height % side))
        rows, columns = x.shape[1] // side, x.shape[2] // side
        x = x.reshape(slices, rows, side, columns, side, channels).transpose(2, 3).flatten(0, 2)
        x = self.attn(x, fact, self.number)
        x = x.reshape(slices, rows, columns, side, side, channels).transpose(2, 3)
        return x.reshape(slices, rows * side, columns * side, channels)[:, :height, :width]


class PlainEncoder(nn.Module):
    """Patch embedding, positions, blocks, neck."""

    def __init__(self, spec: EncoderSpec, plan: NetworkPlan, in_channels: int, grid: tuple[int, int]) -> None:
        super().__init__()
        patch = (spec.token_stride, spec.token_stride)
        self.patch_embed = sam.PatchEmbed(kernel_size=patch, stride=patch, in_chans=in_channels, embed_dim=spec.dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, *grid, spec.dim))
        self.increments = FacT(spec, plan)
        self.blocks = nn.ModuleList(PlainBlock(spec, plan, number, grid) for number in range(spec.depth))
        self.neck = nn.Sequential(
            nn.Conv2d(spec.dim, spec.embedding, kernel_size=1, bias=False),
            sam.LayerNorm2d(spec.embedding),
            nn.Conv2d(spec.embedding, spec.embedding, kernel_size=3, padding=1, bias=False),
            sam.LayerNorm2d(spec.embedding),
        )

    def forward(self, slices: Tensor, num_slices: int) -> Tensor:
        x = self.patch_embed(slices) + self.pos_embed
        for block in self.blocks:
            x = block(x, self.increments, num_slices)
        return self.neck(x.permute(0, 3, 1, 2))


class PlainDecoder(nn.Module):
    """SAM's mask decoder with transposed convolutions up to the canvas, a norm after all but the last."""

    def __init__(self, spec: EncoderSpec, num_outputs: int) -> None:
        super().__init__()
        channels, steps = spec.embedding, spec.token_stride.bit_length() - 1
        self.transformer = sam.TwoWayTransformer(
            depth=2, embedding_dim=channels, mlp_dim=spec.decoder_mlp, num_heads=spec.decoder_heads
        )
        self.iou_token = nn.Embedding(1, channels)
        self.mask_tokens = nn.Embedding(num_outputs, channels)
        layers: list[nn.Module] = []
        source = channels
        for step in range(steps):
            width = channels // 2 ** (step + 2)
            layers += [nn.ConvTranspose2d(source, width, kernel_size=2, stride=2), sam.LayerNorm2d(width), nn.GELU()]
            source = width
        del layers[-2]
        self.output_upscaling = nn.Sequential(*layers)
        self.output_hypernetworks_mlps = nn.ModuleList(
            sam.MLP(channels, channels, source, 3) for _ in range(num_outputs)
        )
        self.iou_prediction_head = sam.MLP(channels, channels, num_outputs, 3)

    def forward(self, embedding: Tensor, positions: Tensor, sparse: Tensor, dense: Tensor) -> Tensor:
        slices, channels, height, width = embedding.shape
        tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight]).expand(slices, -1, -1)
        tokens = torch.cat([tokens, sparse.expand(slices, -1, -1)], dim=1)
        queries, image = self.transformer(embedding + dense, positions.expand(slices, -1, -1, -1), tokens)
        upscaled = self.output_upscaling(image.transpose(1, 2).reshape(slices, channels, height, width))
        weights = [mlp(queries[:, 1 + output]) for output, mlp in enumerate(self.output_hypernetworks_mlps)]
        return (torch.stack(weights, dim=1) @ upscaled.flatten(2)).unflatten(2, upscaled.shape[2:])


class PlainMaSam(nn.Module):
    """The whole network: (B, N, C, H, W) windows to (B, N, K, H, W) logits; the names of MaSam's tensors."""

    def __init__(
        self, spec: EncoderSpec, plan: NetworkPlan, *, canvas: tuple[int, int], in_channels: int, num_outputs: int
    ) -> None:
        super().__init__()
        assert (plan.increment, plan.adapters, plan.decoder) == ("fact", "both", "progressive"), "the paper's network"
        grid = (canvas[0] // spec.token_stride, canvas[1] // spec.token_stride)
        self.image_encoder = PlainEncoder(spec, plan, in_channels, grid)
        self.prompt_encoder: Any = sam.PromptEncoder(
            embed_dim=spec.embedding, image_embedding_size=grid, input_image_size=canvas, mask_in_chans=16
        )
        self.mask_decoder = PlainDecoder(spec, num_outputs)
        for name, parameter in self.image_encoder.named_parameters():
            parameter.requires_grad_(name.startswith("increments.") or ".adapter_" in name)

    def forward(self, windows: Tensor, boxes: Tensor | None = None) -> Tensor:
        batch, num_slices = windows.shape[:2]
        embedding = self.image_encoder(windows.flatten(0, 1), num_slices)
        boxes = None if boxes is None else boxes.flatten(0, 1)
        sparse, dense = self.prompt_encoder(points=None, boxes=boxes, masks=None)
        positions = self.prompt_encoder.get_dense_pe()
        return self.mask_decoder(embedding, positions, sparse, dense).unflatten(0, (batch, num_slices))


def plain_twin(network: MaSam) -> PlainMaSam:
    """The plain network with copies of a network's tensors, in the same mode."""
    plain = PlainMaSam(
        network.spec,
        network.plan,
        canvas=network.canvas,
        in_channels=network.in_channels,
        num_outputs=network.mask_decoder.mask_tokens.num_embeddings,
    )
    plain.load_state_dict(network.state_dict())
    return plain.train(network.training)


@torch.inference_mode()
def predict_plainly(network: nn.Module, slices: Tensor, window: int) -> Tensor:
    """Mean probabilities (Z, K, H, W) of (Z, C, H, W) slices from one window around every slice.

    A window is centred on each slice; beyond the volume's ends the last slice is repeated. A slice's probabilities are
    the mean over the windows that it lies in: N of them, each encoded anew.
    """
    depth, half = slices.shape[0], window // 2
    total, count = 0, torch.zeros(depth)
    for centre in range(depth):
        places = torch.arange(centre - half, centre - half + window)
        logits = network(slices[places.clamp(0, depth - 1)][None])[0]
        if centre == 0:
            total = logits.new_zeros((depth, *logits.shape[1:]))
        inside = (places >= 0) & (places < depth)
        total[places[inside]] += logits.softmax(dim=1)[inside]
        count[places[inside]] += 1
    return total / count[:, None, None, None]
