"""Baselines as plans: each is a plan that can be built, and differs from ours as it says."""

import pytest

from masam_auto.baselines.nnunet import VARIANTS
from masam_auto.baselines.nnunet_runner import TRAINERS
from masam_auto.baselines.ours import BASELINES
from masam_auto.cli.compare import OTHERS
from masam_auto.network.build import build_network, count_parameters
from masam_auto.planning.overrides import override
from tests import tiny_training as tiny


def test_the_command_offers_all_there_are() -> None:
    assert sorted(OTHERS) == sorted([*VARIANTS, *BASELINES])
    assert {trainer for _, trainer in VARIANTS.values()} == set(TRAINERS)


# what learns where the plan stands on SAM's weights
LEARNING = {
    "samed": {"increments", "decoder"},
    "2d": {"increments", "adapters", "decoder"},
    "decoder_only": {"decoder"},
}


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_is_a_network(name: str) -> None:
    given = override(tiny.make_sam_plan(), ["network.encoder=vit_t"])
    plan = override(given, BASELINES[name].overrides)
    network = build_network(plan.network, canvas=(32, 32), in_channels=1, num_outputs=3, device="meta")
    learning = {part for part, (_, learns) in count_parameters(network).items() if learns} - {"total", "prompt encoder"}
    assert learning == LEARNING[name]
    assert (plan.network != given.network) == (BASELINES[name].plan_name is not None)
