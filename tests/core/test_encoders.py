"""Encoder sizes that a plan may hold: named ones, custom ones, and nonsense."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest

from masam_auto.core.encoder_sizes import CUSTOM, sam_encoder
from masam_auto.core.encoders import ENCODERS
from masam_auto.core.errors import PlanError
from masam_auto.core.jsonio import read_json, write_json
from masam_auto.core.plan import NetworkPlan

OWN = sam_encoder(dim=48, depth=3, heads=3, global_blocks=(1,), window=7, embedding=64, decoder_mlp=128)
FIELDS: dict[str, Any] = {"decoder": "progressive", "weights": "sam", "trained": "adapted"}


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_sams_encoders_are_what_the_sizes_alone_give(name: str) -> None:
    spec = ENCODERS[name]
    assert spec == sam_encoder(dim=spec.dim, depth=spec.depth, heads=spec.heads, global_blocks=spec.global_blocks)


@pytest.mark.parametrize("global_blocks", [(), (0,), (0, 1), (0, 1, 2)])
def test_every_tap_has_a_level(global_blocks: tuple[int, ...]) -> None:
    spec = sam_encoder(dim=48, depth=3, heads=3, global_blocks=global_blocks)
    assert 1 <= len(spec.taps) == len(spec.levels)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 0}, "depth must be at least 1 and at most 256, got 0"),
        ({"depth": 10**9}, "depth must be at least 1 and at most 256, got 1000000000"),
        ({"mlp_ratio": 0.0}, "mlp_ratio must be above 0"),
        ({"mlp_ratio": 1e9}, "mlp_ratio must be above 0 and at most 64"),
        ({"mlp_ratio": float("nan")}, "mlp_ratio must be finite"),
        ({"adapter_channels": 0}, "adapter_channels must be at least 1"),
        ({"heads": 5}, r"heads \(5\) must divide dim \(48\)"),
        ({"decoder_heads": 7}, r"twice decoder_heads \(7\) must divide embedding \(64\)"),
        ({"token_stride": 12}, "token_stride must be a power of 2, got 12"),
        ({"global_blocks": (3,)}, r"global_blocks and taps must be within 0\.\.2"),
        ({"neck": "norm"}, "with neck norm, embedding must be dim"),
        ({"taps": ()}, "either stem or taps"),
        ({"levels": ()}, "one entry for each of taps"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=f"encoder sizes.*{message}"):
        dataclasses.replace(OWN, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"registers": -1}, "registers must be from 0 to 256"),
        ({"positions": -1}, "positions to 1024, got 4 and -1"),
        ({"heads": 5}, r"heads \(5\) must divide dim \(384\), into multiples of 4"),
        ({"heads": 64}, r"heads \(64\) must divide dim \(384\), into multiples of 4"),
        ({"taps": (2, 5, 12)}, r"taps must be within 0\.\.11, one for each level"),
        ({"taps": (2, 5)}, "one for each level"),
        ({"depth": 0}, "depth must be at least 1"),
        ({"token_stride": 65}, "token_stride must be at least 1 and at most 64"),
        ({"mlp_ratio": 0.0}, "mlp_ratio must be above 0"),
        ({"embedding": 20}, r"twice decoder_heads \(8\) must divide embedding \(20\)"),
    ],
)
def test_sizes_of_dino_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=f"encoder sizes.*{message}"):
        dataclasses.replace(ENCODERS["dinov3_vits16"], **changes)


@pytest.mark.parametrize("name", [name for name in ENCODERS if name.startswith("dino")])
def test_levels_of_dino_can_be_reached_step_by_step(name: str) -> None:
    spec = ENCODERS[name]
    targets = [1, *(level.target for level in spec.levels), spec.token_stride]
    assert all(coarse % fine == 0 for fine, coarse in itertools.pairwise(targets))


def test_a_custom_encoder_survives_the_plans_file(tmp_path: Path) -> None:
    plan = NetworkPlan(encoder=CUSTOM, custom_encoder=OWN, **FIELDS)
    write_json(tmp_path / "network.json", plan)
    assert read_json(tmp_path / "network.json", NetworkPlan, what="plan") == plan


@pytest.mark.parametrize(("name", "spec"), [("vit_b", OWN), (CUSTOM, None)])
def test_custom_sizes_and_the_name_custom_go_together(name: str, spec: Any) -> None:
    with pytest.raises(PlanError, match=r'must be "custom" if network\.custom_encoder gives sizes, and only then'):
        NetworkPlan(encoder=name, custom_encoder=spec, **FIELDS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"token_stride": 32}, "must have the form of SAM's encoders; only dim, depth, "),
        ({"stem": (4, 8), "taps": ()}, "levels must have one entry|must have the form"),
        ({"taps": (0,)}, "must have the form"),
        ({"levels": (dataclasses.replace(OWN.levels[0], channels=3),)}, "must have the form"),
        ({"conv": dataclasses.replace(OWN.conv, norm="x")}, "must have the form"),
        ({"embedding": 16}, "embedding must be at least 32, got 16"),
    ],
)
def test_custom_sizes_are_of_sams_form(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        NetworkPlan(encoder=CUSTOM, custom_encoder=dataclasses.replace(OWN, **changes), **FIELDS)
