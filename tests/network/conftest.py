"""Small networks: SAM's structure and the stem's, at sizes that compute in milliseconds."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from masam_auto.core.encoders import ConvSpec, EncoderSpec, LevelSpec
from masam_auto.core.plan import NetworkPlan
from masam_auto.network.build import assemble
from masam_auto.network.masam import MaSam

SPECS = {
    "sam": EncoderSpec(
        dim=24,
        depth=3,
        heads=2,
        global_blocks=(1,),
        window=4,
        mlp_ratio=2.0,
        token_stride=16,
        embedding=32,
        taps=(0, 1),
        levels=tuple(LevelSpec(channels=24, stride=16, width=2 * target, target=target) for target in (4, 8)),
        conv=ConvSpec(norm="instance", across=False),
        decoder_heads=2,
        decoder_mlp=32,
    ),
    "stem": EncoderSpec(
        dim=16,
        depth=2,
        heads=2,
        global_blocks=(0, 1),
        mlp_ratio=2.0,
        token_stride=4,
        stem=(4, 8),
        neck="norm",
        embedding=16,
        levels=(
            LevelSpec(channels=4, stride=1, width=4, target=1),
            LevelSpec(channels=8, stride=2, width=8, target=2),
        ),
        conv=ConvSpec(norm="batch", across=True),
        decoder_heads=2,
        decoder_mlp=32,
    ),
}


def make_plan(**fields: Any) -> NetworkPlan:
    """SAM adapted, small rank and adapters."""
    base = {
        "encoder": "small",
        "decoder": "progressive",
        "weights": "sam",
        "trained": "adapted",
        "increment_rank": 3,
        "adapter_channels": 6,
    }
    return NetworkPlan(**{**base, **fields})


@pytest.fixture(scope="session")
def specs() -> dict[str, EncoderSpec]:
    """Small encoders: "sam" (16 px tokens, windowed and global blocks) and "stem" (4 px tokens, convolutional stem)."""
    return SPECS


@pytest.fixture(scope="session")
def network_plan() -> Callable[..., NetworkPlan]:
    """Factory: `network_plan(decoder="sam", ...)`."""
    return make_plan


@pytest.fixture(scope="session")
def plain_masam() -> ModuleType:
    """The module tests/network/plain_masam.py: PlainMaSam, plain_twin, predict_plainly."""
    name = "plain_masam"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("plain_masam.py"))
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(scope="session")
def make_network() -> Callable[..., MaSam]:
    """Factory: `make_network("stem", canvas=(16, 24), in_channels=1, num_outputs=3, randomised=True, **plan_fields)`.

    `randomised` draws every parameter, so that nothing that starts at zero hides a difference.
    """

    def make(
        size: str = "sam",
        *,
        canvas: tuple[int, int] = (96, 64),
        in_channels: int = 1,
        num_outputs: int = 3,
        seed: int = 0,
        randomised: bool = False,
        **fields: Any,
    ) -> MaSam:
        network = assemble(
            SPECS[size], make_plan(**fields), canvas=canvas, in_channels=in_channels, num_outputs=num_outputs, seed=seed
        )
        if randomised:
            generator = torch.Generator().manual_seed(seed)
            for parameter in network.parameters():
                parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
        return network

    return make


@pytest.fixture(scope="session")
def reference_folder() -> ModuleType:
    """The module tests/network/reference_folder.py: read_reference, build, error, make_reference."""
    return _beside("reference_folder")


@pytest.fixture(scope="session")
def recovered_positions() -> ModuleType:
    """The module tests/network/recovered_positions.py: recover_positions."""
    return _beside("recovered_positions")


def _beside(name: str) -> ModuleType:
    """Import a module beside this file; pytest's importlib mode puts no test folder on the path."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]
