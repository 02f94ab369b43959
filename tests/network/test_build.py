import re

import pytest
import torch

from masam_auto.core.encoders import ENCODERS
from masam_auto.core.errors import ModelError, PlanError
from masam_auto.network.build import (
    assemble,
    build_network,
    check_state,
    count_parameters,
    learning_summary,
    load_published_checkpoint,
    load_trainable_state,
    part_of,
    pretrained_parameters,
    sam_tensors,
    trainable_state_dict,
)
from tests.network.small_networks import make_network, network_plan

BOXES = torch.tensor([4.0, 6.0, 40.0, 50.0]).expand(1, 2, 4)
VARIANTS = [
    {"increment": increment, "adapters": adapters, "decoder": decoder, "trained": trained, "size": "sam"}
    for increment, adapters, decoder, trained in (
        ("fact", "both", "progressive", "adapted"),
        ("fact", "both", "progressive", "all"),
        ("fact", "both", "progressive", "none"),
        ("lora", "before", "sam", "adapted"),
        ("none", "after", "multiscale", "adapted"),
        ("none", "none", "multiscale", "all"),
        ("lora", "none", "sam", "none"),
    )
] + [
    {"increment": "none", "decoder": "multiscale", "trained": "all", "size": "stem", "weights": "none"},
    {"increment": "fact", "decoder": "multiscale", "trained": "adapted", "size": "stem", "in_channels": 2},
    {"decoder": "progressive", "trained": "adapted", "size": "sam", "in_channels": 5, "neck_trained": True},
    {"decoder": "progressive", "trained": "none", "size": "sam", "in_channels": 2},
    {"increment": "none", "adapters": "none", "trained": "adapted", "size": "sam", "neck_trained": True},
    {"decoder": "sam", "trained": "adapted", "size": "sam", "adapter_start": "reference"},
]


def received(network, *, boxes):
    """Names of the parameters that get a gradient when everything may."""
    frozen = [p for p in network.parameters() if not p.requires_grad]
    network.zero_grad()
    windows = torch.randn(1, 2, network.in_channels, 96, 64)
    network(windows).square().mean().backward()
    if boxes:
        network(windows, BOXES).square().mean().backward()
    assert all(p.grad is None for p in frozen)
    return {name for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(map(str, v.values())))
@pytest.mark.parametrize("prompt", ["none", "box"])
def test_gradients_exactly_where_something_learns(variant, prompt):
    network = make_network(prompt=prompt, randomised=True, **variant)
    learning = {name for name, p in network.named_parameters() if p.requires_grad}
    assert received(network, boxes=prompt == "box") == learning
    encoder = {name.removeprefix("image_encoder.") for name in learning if name.startswith("image_encoder.")}
    adapted = {name for name in encoder if ".adapter_" in name or name.startswith("increments.")}
    if variant["trained"] == "all":
        assert encoder == {name for name, _ in network.image_encoder.named_parameters()}
    elif variant["trained"] == "adapted":
        extra = ("neck.",) * ("neck_trained" in variant) + ("patch_embed.", "stem.") * ("in_channels" in variant)
        assert all(name.startswith(extra) if extra else False for name in encoder - adapted)
        assert adapted == {
            n for n, _ in network.image_encoder.named_parameters() if "adapter_" in n or n.startswith("increments.")
        }
    else:
        assert not encoder
    assert any(name.startswith("mask_decoder.") for name in learning)


@pytest.mark.parametrize("size", ["sam", "stem"])
def test_what_is_frozen_for_want_of_a_gradient_would_get_none(size):
    network = make_network(size, trained="all", decoder="progressive", prompt="none")
    frozen = {name for name, p in network.named_parameters() if not p.requires_grad}
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    assert not frozen & received(network, boxes=False)


# Source: the paper and the reference implementation, 12 classes at 512 px (design/network.md), in millions. The
# reference counts SAM's IoU head (0.135 M) among the trainable; it gets no gradient and is frozen here.
@pytest.mark.parametrize(
    ("encoder", "total", "trainable", "adapters", "fact"),
    [("vit_b", 117.4, 30.1, 24.82, 0.074), ("vit_l", 369.6, 64.5, 59.10, 0.115), ("vit_h", 729.9, 96.8, 91.42, 0.147)],
)
def test_sizes_are_the_papers(encoder, total, trainable, adapters, fact):
    network = build_network(
        network_plan(encoder=encoder, increment_rank=32, adapter_channels=384),
        canvas=(512, 512),
        in_channels=3,
        num_outputs=13,
        device="meta",
    )
    counts = {part: (a / 1e6, b / 1e6) for part, (a, b) in count_parameters(network).items()}
    assert counts["total"][0] == pytest.approx(total, abs=0.06)
    assert counts["adapters"] == pytest.approx((adapters, adapters), abs=0.006)
    assert counts["increments"] == pytest.approx((fact, fact), abs=0.0006)
    assert counts["decoder"][0] == pytest.approx(5.24, abs=0.006)
    assert counts["encoder"][1] == 0
    assert counts["total"][1] + 0.135 == pytest.approx(trainable, abs=0.06)


def test_small_encoder_is_small():
    plan = network_plan(encoder="vit_t", decoder="multiscale", trained="all", weights="none", increment="none")
    counts = count_parameters(build_network(plan, canvas=(40, 56), in_channels=1, num_outputs=3, device="meta"))
    assert counts["total"][0] < 1.5e6 and counts["encoder"][0] == counts["encoder"][1]
    assert sum(counts[part][0] for part in counts if part != "total") == counts["total"][0]


def test_same_seed_same_network():
    before = torch.random.get_rng_state()
    first, second, other = make_network(seed=5), make_network(seed=5), make_network(seed=6)
    assert torch.equal(before, torch.random.get_rng_state())
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(first.image_encoder.pos_embed, other.image_encoder.pos_embed)


@pytest.mark.parametrize(("field", "name"), [("encoder", "vit_x"), ("decoder", "unet"), ("increment", "full")])
def test_unknown_names_list_the_known(field, name):
    plan = network_plan(**{"encoder": "vit_t", "decoder": "sam", field: name})
    with pytest.raises(PlanError, match=rf"network\.{field} '{name}' is unknown; known: .*,"):
        build_network(plan, canvas=(64, 64), in_channels=1, num_outputs=2)


@pytest.mark.parametrize(("encoder", "canvas"), [("vit_b", (40, 64)), ("vit_t", (40, 52)), ("vit_t", (0, 8))])
def test_canvas_must_be_whole_tokens(encoder, canvas):
    with pytest.raises(PlanError, match=rf"does not fit {encoder}: both sides must be multiples of"):
        build_network(network_plan(encoder=encoder), canvas=canvas, in_channels=1, num_outputs=2)


def test_build_sets_checkpointing_and_frozen_type():
    plan = network_plan(encoder="vit_t", decoder="multiscale", adapter_channels=4)
    network = build_network(
        plan,
        canvas=(16, 16),
        in_channels=1,
        num_outputs=2,
        activation_checkpointing=True,
        frozen_dtype=torch.bfloat16,
    )
    assert network.training and network.image_encoder.activation_checkpointing
    types = {(p.requires_grad, p.dtype) for p in network.image_encoder.parameters() if p.ndim > 1}
    assert types == {(True, torch.float32), (False, torch.bfloat16)}


@pytest.mark.parametrize("weights", ["sam", "none"])
def test_trained_state_comes_back(weights):
    fields = {"size": "stem", "decoder": "multiscale", "weights": weights}
    first = make_network(**fields, randomised=True)
    state = {name: value.clone() for name, value in trainable_state_dict(first).items()}
    frozen = {name for name, p in first.named_parameters() if not p.requires_grad}
    assert bool(frozen & set(state)) == (weights == "none")
    second = make_network(**fields, seed=1)
    load_trainable_state(second, state, origin="checkpoint")
    assert all(torch.equal(second.state_dict()[name], value) for name, value in state.items())
    if weights == "none":
        x = torch.randn(1, 2, 1, 96, 64)
        assert torch.equal(first.eval()(x), second.eval()(x))


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_checkpoint_and_its_sam_file_are_the_whole_network(variant):
    network = make_network(**variant, randomised=True)
    sizes = {"canvas": (96, 64), "in_channels": network.in_channels, "num_outputs": 3}
    sam = {n: v.clone() for n, v in network.state_dict().items() if ".increments." not in n and ".adapter_" not in n}
    twins = [assemble(network.spec, network.plan, **sizes, device="meta") for _ in range(2)]
    state = trainable_state_dict(network)
    frozen = {n: v for n, v in sam_tensors(twins[0], sam, origin="sam.pth").items() if n not in state}
    for twin in twins:
        check_state(twin, state, origin="run")
        twin.load_state_dict({**frozen, **state}, assign=True)
        assert twin.state_dict().keys() == network.state_dict().keys()
        assert all(torch.equal(value, network.state_dict()[name]) for name, value in twin.state_dict().items())
        learning = [[name for name, p in one.named_parameters() if p.requires_grad] for one in (network, twin)]
        assert learning[0] == learning[1]
    first, second = (twin.state_dict() for twin in twins)
    assert all(first[name].data_ptr() == second[name].data_ptr() == frozen[name].data_ptr() for name in frozen)
    assert bool(frozen) == network.plan.stands_on_sam
    with pytest.raises(ModelError, match="run: extra is unknown to this network"):
        check_state(twins[0], {**state, "extra": torch.zeros(1)}, origin="run")


def test_state_of_another_network_is_refused():
    network = make_network()
    state = dict(trainable_state_dict(network))
    with pytest.raises(ModelError, match=r"run: extra is unknown to this network"):
        load_trainable_state(network, state | {"extra": torch.ones(1)}, origin="run")
    del state["image_encoder.increments.u.weight"]
    with pytest.raises(ModelError, match=r"run: image_encoder\.increments\.u\.weight is missing"):
        load_trainable_state(network, state, origin="run")


def published(network):
    """The network's learned tensors under the names of the public checkpoints."""
    state = {}
    for name, value in network.state_dict().items():
        if part_of(name) in ("decoder", "prompt encoder"):
            state[name] = value.clone()
        elif part_of(name) == "increments":
            rest = name.removeprefix("image_encoder.increments.")
            number = rest.split(".")[1]
            flat = f"{rest[0]}_FacTs_{number:0>3}" if "cores" in rest else f"image_encoder.FacT{rest}"
            state[flat] = value.clone()
        elif part_of(name) == "adapters":
            _, _, number, place, module, tensor = name.split(".")
            module = f"linear_{module}" if module in ("up", "down") else module
            end = "_2" if place.endswith("after") else ""
            state[f"image_encoder.ImageEncoderViT.blocks.{number}.Block.adapter_{module}{end}.{tensor}"] = value.clone()
    return state


def test_published_names_load():
    first, second = make_network(randomised=True), make_network(seed=1)
    state = published(first)
    load_published_checkpoint(second, state, origin="epoch_159.pth")
    for name, value in first.state_dict().items():
        assert part_of(name) == "encoder" or torch.equal(second.state_dict()[name], value)
    with pytest.raises(ModelError, match=r"epoch_159\.pth: .*u\.weight is missing"):
        load_published_checkpoint(second, {n: v for n, v in state.items() if "FacTu" not in n}, origin="epoch_159.pth")


DIFFERENCES = [
    ({}, {"increment_rank": 4}, "FacT increments of rank 3", "FacT increments of rank 4"),
    ({"increment": "lora"}, {}, "LoRA increments of rank 3", "FacT increments of rank 3"),
    ({"increment": "none"}, {}, "no increments", "FacT increments of rank 3"),
    ({}, {"adapters": "none"}, "adapters before and after attention, 6 channels wide", "no adapters"),
    ({"adapters": "after"}, {}, "adapters after attention, 6 channels wide", "adapters before and after attention, 6"),
    ({"adapter_channels": 5}, {}, "adapters before and after attention, 5 channels", "attention, 6 channels wide"),
    ({"decoder": "sam"}, {}, r"a mask decoder with 2 upscaling steps \(sam\)", r"4 upscaling steps \(progressive\)"),
    ({}, {"decoder": "multiscale"}, r"a mask decoder with 4 upscaling steps \(progressive\)", "the decoder multiscale"),
    ({"num_outputs": 4}, {}, r"4 outputs \(classes with background, or regions\)", "3 outputs"),
    ({"num_outputs": 2, "decoder": "multiscale"}, {"decoder": "multiscale"}, "2 outputs", "3 outputs"),
    ({"in_channels": 2, "trained": "all"}, {"trained": "all"}, "2 input channels", "1 input channel"),
    (
        {"canvas": (96, 96), "trained": "all"},
        {"trained": "all"},
        "a canvas of 6 x 6 tokens",
        "a canvas of 6 x 4 tokens",
    ),
    ({"trained": "none"}, {}, "no increments", "FacT increments of rank 3"),
]


@pytest.mark.parametrize(("made", "loaded", "held", "asked"), DIFFERENCES)
def test_a_checkpoint_of_another_variant_is_named_in_the_plans_words(made, loaded, held, asked):
    state = trainable_state_dict(make_network(**made))
    with pytest.raises(
        ModelError, match=rf"^run: the checkpoint belongs to another network: .*it holds {held}.*asks for .*{asked}"
    ):
        load_trainable_state(make_network(**loaded), state, origin="run")


@pytest.mark.parametrize(("size", "other"), [("stem", {"in_channels": 3}), ("stem", {"canvas": (48, 64)})])
def test_the_small_encoders_sizes_are_named_too(size, other):
    fields = {"decoder": "multiscale", "trained": "all", "weights": "none"}
    state = trainable_state_dict(make_network(size, **fields, **other))
    with pytest.raises(ModelError, match=r"it holds (3 input channels|a canvas of 12 x 16 tokens), the plan asks for"):
        load_trainable_state(make_network(size, **fields), state, origin="run")


def test_an_encoder_of_another_size_is_named_alone_with_its_rank():
    state = trainable_state_dict(make_network("stem", decoder="progressive"))
    with pytest.raises(
        ModelError, match=r"it holds an encoder of 2 blocks of width 16, the plan asks for .*3 blocks of width 24"
    ):
        load_trainable_state(make_network("sam"), state, origin="run")


@pytest.mark.parametrize("encoder", ["vit_b", "vit_l", "vit_h"])
@pytest.mark.parametrize(("increment", "rank"), [("fact", 4), ("fact", 64), ("lora", 4), ("lora", 64)])
def test_increments_grow_with_the_rank_as_the_formula_says(encoder, increment, rank):
    plan = network_plan(encoder=encoder, increment=increment, increment_rank=rank, adapters="none")
    counts = count_parameters(build_network(plan, canvas=(512, 512), in_channels=1, num_outputs=2, device="meta"))
    dim, depth = ENCODERS[encoder].dim, ENCODERS[encoder].depth
    shared = 2 * dim * rank + 2 * depth * rank**2
    assert counts["increments"] == 2 * ((shared if increment == "fact" else 4 * depth * dim * rank),)
    assert counts["adapters"] == (0, 0)


def test_the_iou_head_is_what_the_reference_trains_more():
    """0.135 million with 13 outputs; it has no gradient in the reference either."""
    plan = network_plan(encoder="vit_b", increment_rank=32, adapter_channels=384)
    network = build_network(plan, canvas=(512, 512), in_channels=3, num_outputs=13, device="meta")
    head = [p for name, p in network.named_parameters() if "iou_prediction_head" in name]
    assert not any(p.requires_grad for p in head)
    assert sum(p.numel() for p in head) == 2 * (256 * 256 + 256) + 256 * 13 + 13


def test_pretrained_parameters_are_what_sams_file_brings():
    network = make_network(decoder="progressive", weights="sam", masks_start="sam")
    names = pretrained_parameters(network)
    learning = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert "mask_decoder.transformer.layers.0.self_attn.q_proj.weight" in names & learning
    assert {"mask_decoder.output_upscaling.0.weight", "mask_decoder.output_upscaling.3.weight"} <= names
    new = ("increments", "adapter_", "mask_tokens", "output_hypernetworks", "output_upscaling.4.", "iou_prediction")
    assert not [name for name in names if any(part in name for part in new)]
    assert pretrained_parameters(make_network(weights="none")) == set()


def test_the_log_says_what_learns():
    line = learning_summary(make_network(decoder="sam"))
    assert re.fullmatch(
        r"[\d.]+ of [\d.]+ million parameters learn: increments [\d.]+, adapters [\d.]+, "
        r"prompt encoder [\d.e-]+, decoder [\d.]+",
        line,
    )
    assert "increments" not in learning_summary(make_network(trained="none"))


@pytest.mark.parametrize(("trained", "warns"), [("adapted", True), ("none", True), ("all", False)])
def test_the_log_warns_of_a_random_frozen_encoder(trained, warns):
    assert ("is random and stays so" in learning_summary(make_network(weights="none", trained=trained))) == warns
    assert "random" not in learning_summary(make_network(trained=trained))
