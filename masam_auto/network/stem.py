"""Convolutions around the tokens: blocks that look across slices, and the stem that makes a pyramid of levels."""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn

from masam_auto.core.encoder_sizes import ConvSpec
from masam_auto.network.adapter import convolve_across_slices

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "instance": lambda channels: nn.GroupNorm(channels, channels),
}


class ConvBlock(nn.Module):
    """In-plane 3 x 3 convolution, optionally a (3, 1, 1) convolution across slices, norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, *, spec: ConvSpec, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.across = (
            nn.Conv3d(out_channels, out_channels, (3, 1, 1), padding="same", bias=False) if spec.across else None
        )
        self.norm = NORMS[spec.norm](out_channels)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: Float[Tensor, "s c h w"], num_slices: int) -> Float[Tensor, "s c2 h2 w2"]:
        """Features of slices; `num_slices` is N."""
        x = self.conv(x)
        if self.across is not None:
            # Channels last in memory, so that both permutations are views.
            x = convolve_across_slices(self.across, x.permute(0, 2, 3, 1), num_slices).permute(0, 3, 1, 2)
        return self.activation(self.norm(x))


class Stem(nn.Module):
    """One block per level: the first at full resolution, each later one at half the resolution of the one before."""

    def __init__(self, in_channels: int, channels: tuple[int, ...], *, spec: ConvSpec) -> None:
        super().__init__()
        inputs = (in_channels, *channels[:-1])
        self.levels = nn.ModuleList(
            ConvBlock(source, target, spec=spec, stride=1 if level == 0 else 2)
            for level, (source, target) in enumerate(zip(inputs, channels, strict=True))
        )

    def forward(self, x: Float[Tensor, "s c h w"], num_slices: int) -> tuple[Float[Tensor, "s _ _ _"], ...]:
        """The levels, finest first."""
        levels = []
        for block in self.levels:
            x = block(x, num_slices)
            levels.append(x)
        return tuple(levels)
