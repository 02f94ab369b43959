"""Optimisers: who decays, who is orthogonalised, and that they learn."""

from dataclasses import replace

import pytest
import torch

from masam_auto.core.errors import PlanError
from masam_auto.core.plan import TrainingPlan
from masam_auto.training.optimizer import OPTIMIZERS, Muon, build_optimizers, orthogonalise, set_rate
from tests import tiny_training as tiny


def tiny_network() -> torch.nn.Module:
    return tiny.build_tiny(tiny.make_plan().network, canvas=(16, 16), in_channels=1, num_outputs=3)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_everything_that_learns_is_in_one_group(name: str) -> None:
    network = tiny_network()
    optimizers = build_optimizers(network, TrainingPlan(optimizer=name))
    grouped = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    learning = [p for p in network.parameters() if p.requires_grad]
    assert len(grouped) == len(learning)
    assert {id(p) for p in grouped} == {id(p) for p in learning}


def test_norms_biases_and_tables_do_not_decay() -> None:
    network = tiny_network()
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    (optimizer,) = build_optimizers(network, TrainingPlan(weight_decay=0.1))
    kept = [names[id(p)] for g in optimizer.param_groups if not g["weight_decay"] for p in g["params"]]
    decayed = [names[id(p)] for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]]
    assert any(name.endswith("pos_embed") for name in kept)
    assert any("rel_pos_h" in name for name in kept)
    assert any(name.endswith(".bias") for name in kept)
    assert all(name.endswith("weight") for name in decayed)
    assert any("qkv" in name for name in decayed)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_pretrained_learns_at_a_share_of_the_rate(name: str) -> None:
    network = tiny_network()
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    pretrained = {name for name in names.values() if name.startswith("image_encoder.")}
    training = TrainingPlan(optimizer=name, learning_rate=1e-3)
    whole = rates(build_optimizers(network, training, pretrained=pretrained), names)
    optimizers = build_optimizers(network, replace(training, pretrained_rate=0.1), pretrained=pretrained)
    shared = rates(optimizers, names)
    assert pretrained & set(whole) and set(shared) == set(whole)
    assert shared == {name: pytest.approx(rate * (0.1 if name in pretrained else 1)) for name, rate in whole.items()}
    set_rate(optimizers, 0.5)
    assert rates(optimizers, names) == {name: pytest.approx(rate / 2) for name, rate in shared.items()}


def rates(optimizers: tuple[torch.optim.Optimizer, ...], names: dict[int, str]) -> dict[str, float]:
    """The learning rate of each parameter, by its name."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    return {names[id(parameter)]: group["lr"] for group in groups for parameter in group["params"]}


def test_muon_takes_matrices_and_leaves_the_first_and_last_layer() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 32, 3), torch.nn.Conv2d(32, 32, 3), torch.nn.Conv2d(32, 3, 1))
    first, second = build_optimizers(network, TrainingPlan(optimizer="muon"))
    assert isinstance(first, Muon)
    assert [p.shape for p in first.param_groups[0]["params"]] == [network[1].weight.shape]
    assert sum(len(group["params"]) for group in second.param_groups) == 5


@pytest.mark.parametrize("shape", [(8, 20), (20, 8), (16, 16)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape: tuple[int, int]) -> None:
    matrices = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
    result = orthogonalise(matrices)
    values = torch.linalg.svdvals(result)
    assert result.shape == matrices.shape
    assert values.min() > 0.3
    assert values.max() < 1.4


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_they_learn_and_continue_from_their_state(name: str) -> None:
    def run(split: bool) -> torch.Tensor:
        torch.manual_seed(0)
        network = torch.nn.Linear(24, 20)
        data, wanted = torch.randn(64, 24), torch.randn(64, 20)
        optimizers = build_optimizers(network, TrainingPlan(optimizer=name, learning_rate=2e-3))
        losses = []
        for step in range(30):
            if split and step == 15:
                states = [optimizer.state_dict()["state"] for optimizer in optimizers]
                optimizers = build_optimizers(network, TrainingPlan(optimizer=name, learning_rate=2e-3))
                for optimizer, state in zip(optimizers, states, strict=True):
                    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
            loss = (network(data) - wanted).square().mean()
            losses.append(loss.item())
            loss.backward()
            set_rate(optimizers, 1 - step / 30)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        assert losses[-1] < losses[0]
        return network.weight.detach()

    assert torch.equal(run(False), run(True))


def test_rates_are_shares_of_the_full_one() -> None:
    optimizers = build_optimizers(torch.nn.Linear(20, 20), TrainingPlan(optimizer="muon", learning_rate=1e-3))
    full = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    set_rate(optimizers, 0.5)
    set_rate(optimizers, 0.25)
    halved = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    assert halved == [rate * 0.25 for rate in full]


def test_an_unknown_optimiser_is_refused() -> None:
    with pytest.raises(PlanError, match="adamw"):
        build_optimizers(torch.nn.Linear(2, 2), TrainingPlan(optimizer="magic"))


def test_adamw_remembers_as_long_as_the_references_and_beside_muon_shorter() -> None:
    """The reference MA-SAM trains with betas 0.9 and 0.999."""
    (alone,) = build_optimizers(tiny_network(), TrainingPlan(optimizer="adamw"))
    assert {group["betas"] for group in alone.param_groups} == {(0.9, 0.999)}
    (short,) = build_optimizers(tiny_network(), TrainingPlan(optimizer="adamw", adam_beta2=0.9))
    assert {group["betas"] for group in short.param_groups} == {(0.9, 0.9)}
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 32, 3), torch.nn.Conv2d(32, 32, 3))
    _, beside = build_optimizers(network, TrainingPlan(optimizer="muon"))
    assert {group["betas"] for group in beside.param_groups} == {(0.9, 0.99)}
