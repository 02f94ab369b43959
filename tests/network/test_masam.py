import pytest
import torch
from jaxtyping import TypeCheckError

from masam_auto.core.errors import ModelError
from masam_auto.network.build import cast_frozen
from masam_auto.network.fact import Increments
from masam_auto.network.masam import box_masks
from tests.network.small_networks import make_network

BOXES = torch.tensor([4.0, 6.0, 40.0, 50.0]).expand(2, 3, 4)


@pytest.mark.parametrize(("size", "canvas"), [("sam", (96, 64)), ("sam", (16, 80)), ("stem", (12, 20))])
@pytest.mark.parametrize("num_slices", [1, 2, 5])
@pytest.mark.parametrize("decoder", ["progressive", "multiscale"])
def test_any_window_and_canvas(size, canvas, num_slices, decoder):
    network = make_network(size, canvas=canvas, decoder=decoder)
    assert network(torch.randn(2, num_slices, 1, *canvas)).shape == (2, num_slices, 3, *canvas)


@pytest.mark.parametrize("size", ["sam", "stem"])
def test_windows_of_a_batch_are_independent(size):
    network = make_network(size, decoder="multiscale", randomised=True).eval()
    x = torch.randn(2, 3, 1, 96, 64)
    assert torch.allclose(network(x)[1:], network(x[1:]), atol=1e-3)


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("size", ["sam", "stem"])
def test_any_number_of_channels(size, channels):
    network = make_network(size, in_channels=channels)
    assert network(torch.randn(1, 2, channels, 96, 64)).shape == (1, 2, 3, 96, 64)


@pytest.mark.parametrize("increment", ["fact", "lora"])
def test_training_without_dropout_equals_evaluation(increment):
    network = make_network(increment=increment, increment_dropout=0.0, randomised=True)
    x = torch.randn(3, 1, 96, 64)
    trained = network.train().image_encoder(x, 3).embedding
    assert torch.allclose(trained, network.eval().image_encoder(x, 3).embedding, atol=1e-4)


@pytest.mark.parametrize("decoder", ["sam", "progressive", "multiscale"])
def test_boxes_change_the_logits_and_none_is_another_prompt(decoder):
    network = make_network(decoder=decoder, prompt="box", randomised=True).eval()
    x = torch.randn(2, 3, 1, 96, 64)
    boxed, moved = network(x, BOXES), network(x, BOXES + 5)
    assert boxed.shape == network(x).shape
    assert not torch.allclose(boxed, moved) and not torch.allclose(boxed, network(x))


def test_boxes_need_a_network_trained_with_them():
    with pytest.raises(ModelError, match="trained without boxes"):
        make_network()(torch.zeros(2, 3, 1, 96, 64), BOXES)


@pytest.mark.parametrize("shape", [(1, 2, 3, 96, 64), (1, 2, 1, 64, 96)])
def test_other_inputs_are_refused(shape):
    with pytest.raises(ModelError, match=r"built for 1 channels on a canvas of 96 x 64 px, but the windows have"):
        make_network()(torch.zeros(shape))


def test_annotations_are_checked():
    with pytest.raises(TypeCheckError):
        make_network()(torch.zeros(2, 1, 96, 64))
    with pytest.raises(TypeCheckError):
        make_network()(torch.zeros(1, 2, 1, 96, 64, dtype=torch.int64))


def test_box_masks_are_shares_of_cells():
    masks = box_masks(torch.tensor([[2.0, 0.0, 5.0, 8.0], [0.0, 4.0, 4.0, 4.0]]), (8, 8), (4, 4))
    assert masks[0, 0, 1].tolist() == [0.0, 1.0, 0.5, 0.0]
    assert masks[0].sum() * 4 == 3 * 8  # cells of 2 x 2 px cover the box's area
    assert not masks[1].any()


@pytest.mark.parametrize("trained", ["none", "adapted", "all"])
def test_frozen_parts_stay_in_evaluation(trained):
    network = make_network("stem", trained=trained)
    assert network.image_encoder.stem.levels[0].norm.training == (trained == "all")
    assert network.mask_decoder.training
    increments = [m for m in network.modules() if isinstance(m, Increments)]
    assert [m.training for m in increments] == ([] if trained == "none" else [True])
    assert not any(module.training for module in network.eval().modules())


@pytest.mark.parametrize("size", ["sam", "stem"])
def test_bf16_autocast_with_frozen_bf16_weights(size):
    network = make_network(size, decoder="multiscale", randomised=True).eval()
    x = torch.randn(1, 2, 1, 96, 64)
    expected = network(x)
    cast_frozen(network, torch.bfloat16)
    assert network.image_encoder.patch_embed.proj.weight.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(x)
    assert (logits.float() - expected).abs().mean() < 0.1 * expected.std()


NONE = torch.full((1, 3, 4), torch.nan)


@pytest.mark.parametrize("decoder", ["sam", "progressive", "multiscale"])
def test_windows_with_and_without_a_box_in_one_batch(decoder):
    network = make_network(decoder=decoder, prompt="box", randomised=True).eval()
    x = torch.randn(3, 3, 1, 96, 64)
    boxes = torch.cat([BOXES[:1], NONE, BOXES[:1] + 7])
    mixed = network(x, boxes)
    assert torch.allclose(mixed[1], network(x)[1], atol=1e-4)
    for place in (0, 2):
        assert torch.allclose(
            mixed[place], network(x, BOXES[:1].expand(3, 3, 4) + (7 if place else 0))[place], atol=1e-4
        )
    assert torch.equal(network(x, NONE.expand(3, 3, 4)), network(x))


@pytest.mark.parametrize("decoder", ["sam", "progressive", "multiscale"])
@pytest.mark.parametrize("with_boxes", [(True, True), (True, False), (False, False)])
def test_every_trainable_parameter_always_has_a_gradient(decoder, with_boxes):
    network = make_network("stem", decoder=decoder, prompt="box", randomised=True)
    boxes = torch.cat([BOXES[:1] if given else NONE for given in with_boxes])
    network(torch.randn(2, 3, 1, 96, 64), boxes).square().mean().backward()
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("decoder", ["progressive", "multiscale"])
def test_mixed_batches_train_both_kinds_of_prompt(decoder):
    network = make_network("stem", decoder=decoder, prompt="box", randomised=True)
    network(torch.randn(2, 3, 1, 96, 64), torch.cat([BOXES[:1], NONE])).square().mean().backward()
    learned = [parameter for parameter in network.prompt_encoder.parameters() if parameter.requires_grad]
    assert len(learned) > 1
    assert all(parameter.grad.any() for parameter in learned)


@pytest.mark.parametrize("frozen", [torch.bfloat16, torch.float16])
def test_half_precision_weights_without_autocast_are_a_clear_error(frozen):
    network = make_network(in_channels=2)  # whose patch embedding learns, and stays in float32
    cast_frozen(network, frozen)
    with pytest.raises(
        ModelError, match=r"stored as torch\..*float16, the windows as torch\.float32: use torch\.autocast"
    ):
        network(torch.zeros(1, 2, 2, 96, 64))


@pytest.mark.parametrize("decoder", ["progressive", "multiscale"])
def test_bf16_autocast_trains_beside_frozen_bf16_weights(decoder):
    network = make_network(decoder=decoder)
    cast_frozen(network, torch.bfloat16)
    learning = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        loss = network(torch.randn(1, 3, 1, 96, 64)).float().square().mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in learning)
    optimizer.step()
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in learning)


@pytest.mark.parametrize("num_slices", range(1, 10))
def test_every_length_up_to_nine(num_slices):
    network = make_network(canvas=(32, 48), randomised=True).eval()
    assert network(torch.randn(1, num_slices, 1, 32, 48)).shape == (1, num_slices, 3, 32, 48)


@pytest.mark.parametrize("channels", [2, 3, 4, 7])
@pytest.mark.parametrize("trained", ["adapted", "all", "none"])
def test_every_number_of_channels_in_every_mode(channels, trained):
    network = make_network(canvas=(32, 48), in_channels=channels, trained=trained)
    network(torch.randn(1, 2, channels, 32, 48)).mean().backward()
    learns = network.image_encoder.patch_embed.proj.weight.requires_grad
    assert learns == (trained == "all" or (trained == "adapted" and channels != 3))


def test_one_slice_alone_is_a_window_of_one():
    """Without adapters nothing looks across slices: any window equals its slices one by one."""
    network = make_network(canvas=(32, 48), adapters="none", randomised=True).eval()
    x = torch.randn(1, 4, 1, 32, 48)
    assert torch.allclose(network(x)[0], network(x.transpose(0, 1))[:, 0], atol=1e-4)


@pytest.mark.parametrize("decoder", ["progressive", "multiscale"])
@pytest.mark.parametrize("size", ["sam", "stem"])
def test_mixed_batches_under_bf16_autocast(size, decoder):
    network = make_network(size, decoder=decoder, prompt="box", randomised=True).eval()
    x, boxes = torch.randn(2, 3, 1, 96, 64), torch.cat([BOXES[:1], NONE])
    expected = network(x, boxes)
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(x, boxes)
    assert (logits.float() - expected).abs().mean() < 0.1 * expected.std()


def test_positions_of_prompts_and_tokens_are_not_rounded_by_autocast(monkeypatch):
    network = make_network(prompt="box", randomised=True).eval()
    seen = []
    forward = network.mask_decoder.forward
    monkeypatch.setattr(network.mask_decoder, "forward", lambda *a, **k: seen.append(k) or forward(*a, **k))
    windows = torch.randn(1, 2, 1, 96, 64, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([4.0, 7.0, 50.0, 80.0]).expand(1, 2, 4)
    with torch.inference_mode():
        network(windows, boxes)
        with torch.autocast("cpu", torch.bfloat16):
            network(windows, boxes)
    exact, under_autocast = seen
    for name in ("positions", "sparse", "dense"):
        assert torch.equal(under_autocast[name], exact[name])
