"""Every variant of the paper is one field of the plan: each is trained a little on one window."""

import dataclasses
import itertools
import re
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from masam_auto.network.build import assemble, build_network
from masam_auto.network.masam import MaSam
from masam_auto.planning.overrides import override
from tests import tiny_training as tiny
from tests.network.small_networks import SPECS, network_plan

CANVAS = (32, 48)
STEPS = 25
VARIANTS = (
    [{}]
    + [{"increment": name} for name in ("lora", "none")]
    + [{"increment_rank": rank} for rank in (4, 16, 64)]
    + [{"increment": "lora", "increment_rank": 64}]
    + [{"adapters": place} for place in ("none", "before", "after")]
    + [{"adapter_start": "reference"}]
    + [{"trained": what} for what in ("all", "none")]
    + [{"decoder": name} for name in ("sam", "multiscale")]
    + [{"weights": "none"}, {"weights": "none", "trained": "all"}, {"weights": "none", "trained": "none"}]
    + [{"neck_trained": True}, {"neck_trained": True, "increment": "none", "adapters": "none"}]
    + [{"prompt": "box"}, {"prompt": "box", "decoder": "multiscale"}]
)


@pytest.fixture
def make():
    """Factory of small SAM-type networks without dropout, whose progressive decoder ends in more than one channel."""
    spec = dataclasses.replace(SPECS["sam"], embedding=128)

    def make(**fields) -> MaSam:
        plan = network_plan(**{"increment_dropout": 0.0, **fields})
        return assemble(spec, plan, canvas=CANVAS, in_channels=1, num_outputs=3)

    return make


def should_learn(name: str, fields: dict) -> bool:
    """What the plan's words say, apart from the code under test."""
    trained = fields.get("trained", "adapted")
    if name.startswith("prompt_encoder."):
        box = (
            ("mask_downscaling",)
            if fields.get("decoder") == "multiscale"
            else ("point_embeddings.2", "point_embeddings.3")
        )
        return any(part in name for part in ("no_mask_embed", *(box if fields.get("prompt") == "box" else ())))
    if name.startswith("mask_decoder."):
        return "iou_prediction_head" not in name
    if "increments" in name or "adapter_" in name:
        return trained != "none"
    return trained == "all" or (".neck." in name and fields.get("neck_trained", False))


def toy_window(num_slices: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A noisy window (1, N, 1, H, W) with two rectangles that move from slice to slice, its classes, and boxes."""
    generator = torch.Generator().manual_seed(3)
    target = torch.zeros(1, num_slices, *CANVAS, dtype=torch.long)
    boxes = torch.empty(1, num_slices, 4)
    for z in range(num_slices):
        target[:, z, 6 + z : 24 + z, 8:30] = 1
        target[:, z, 12 + z : 20 + z, 14:22] = 2
        boxes[:, z] = torch.tensor([8.0, 6.0 + z, 30.0, 24.0 + z])
    image = target.float() - 1 + 0.2 * torch.randn(target.shape, generator=generator)
    return image.unsqueeze(2), target, boxes


def train(network, windows, *, boxes: bool = False, steps: int = STEPS) -> list[float]:
    """Losses of plain AdamW steps without decay, on the windows in turn; every trainable parameter gets a gradient."""
    learning = {name: p for name, p in network.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(learning.values(), lr=5e-3, weight_decay=0)
    losses = []
    for step, (image, target, box) in zip(range(steps), itertools.cycle(windows), strict=False):
        if boxes:  # half of the slices have none, as half of the windows in training
            box = box.clone()
            box[:, step % 2 :: 2] = float("nan")
        logits = network(image, box if boxes else None)
        loss = F.cross_entropy(logits.transpose(1, 2), target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        assert {name for name, p in learning.items() if p.grad is None} == set()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.slow
@pytest.mark.parametrize("fields", VARIANTS, ids=lambda fields: " ".join(map(str, fields.values())) or "default")
def test_a_variant_learns_what_it_says_and_nothing_else(make, fields):
    network = make(**fields)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    window = toy_window(2)
    losses = train(network, [window], boxes=fields.get("prompt") == "box")
    assert losses[-1] < 0.6 * losses[0]  # the shares of the classes alone give 0.69
    changed = {name for name, p in network.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if should_learn(name, fields)}
    with torch.no_grad():
        trained, folded = network(window[0]), network.eval()(window[0])
    assert torch.allclose(folded, trained, atol=1e-4 * float(trained.abs().max()))


def test_decoder_only_builds_nothing_to_adapt(make):
    network = make(trained="none")
    assert network.image_encoder.increments is None
    assert not any("adapter_" in name or "increments" in name for name, _ in network.named_parameters())


def test_a_frozen_random_encoder_passes_its_increments_on(make):
    """Where frozen blocks started as the identity, increments inside them could never change anything."""
    network = make(weights="none")
    network.image_encoder.increments.v.weight.data.fill_(0.1)
    image = toy_window(2)[0]
    with torch.no_grad():
        adapted = network.eval()(image)
        network.image_encoder.increments.v.weight.data.zero_()
        assert not torch.allclose(adapted, network(image), atol=1e-6)


def test_windows_of_any_length_in_one_training(make):
    network = make(increment_dropout=0.1)
    losses = train(network, [toy_window(length) for length in (1, 2, 5)])
    assert max(losses[-3:]) < 0.7 * min(losses[:3])


@pytest.mark.parametrize("decoder", ["sam", "progressive", "multiscale"])
def test_no_field_but_its_own_changes_the_decoder(make, decoder):
    """Names and shapes of the decoder's tensors, whatever the encoder's variant."""
    shapes = [
        {name: p.shape for name, p in make(decoder=decoder, **fields).mask_decoder.named_parameters()}
        for fields in ({}, {"increment": "lora"}, {"adapters": "none"}, {"trained": "all"}, {"prompt": "box"})
    ]
    assert all(other == shapes[0] for other in shapes)


def ablations() -> list[tuple[str, list[str]]]:
    """Names and --set assignments of the commands in documentation/ablations.md."""
    text = (Path(__file__).parents[2] / "documentation" / "ablations.md").read_text(encoding="utf-8")
    return [(name, words.split()) for name, words in re.findall(r"`-p (\w+) --set ([^`]+)`", text)]


@pytest.mark.parametrize(("name", "assignments"), ablations())
def test_the_commands_of_the_documentation_are_plans_that_can_be_built(name, assignments):
    base = tiny.make_plan()
    sam = dataclasses.replace(base.network, encoder="vit_b", decoder="progressive", weights="sam", trained="adapted")
    changed = override(dataclasses.replace(base, network=sam), assignments)
    network = build_network(changed.network, canvas=(64, 64), in_channels=1, num_outputs=3, device="meta")
    learning = {parameter for parameter, p in network.named_parameters() if p.requires_grad}
    assert learning == {
        n for n, _ in network.named_parameters() if should_learn(n, dataclasses.asdict(changed.network))
    }


def test_the_documentations_commands_have_names_of_their_own():
    names = [name for name, _ in ablations()]
    assert len(names) > 20 and len(set(names)) == len(names)
