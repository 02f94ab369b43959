import pytest
import torch

from masam_auto.network import slicewise as parts
from masam_auto.network.slicewise import add, by_parts
from tests.network.small_networks import make_network


@pytest.mark.parametrize("at_once", [1, 2, 3, 7])
@pytest.mark.parametrize("gradients", [True, False])
def test_parts_are_the_whole(monkeypatch, at_once, gradients):
    monkeypatch.setattr(parts, "SLICES_AT_ONCE", at_once)
    x, y = torch.randn(5, 2, 3), torch.randn(5, 2, 3)
    sizes = []

    def function(*values):
        sizes.append(len(values[0]))
        return values[0].sin() * values[-1]

    with torch.set_grad_enabled(gradients):
        assert torch.equal(by_parts(function, x, y), x.sin() * y)
        assert torch.equal(add(x.clone(), function, y), x + y.sin() * y)
    assert max(sizes) == (5 if gradients else min(5, at_once))


def test_only_without_gradients_is_the_input_changed():
    x = torch.zeros(3, 1)
    assert add(x, lambda part: part + 1, x) is not x and not x.any()
    with torch.no_grad():
        assert add(x, lambda part: part + 1, x) is x and x.all()


def test_a_pass_without_gradients_leaves_image_and_levels_alone():
    network = make_network("sam", decoder="multiscale", canvas=(64, 48), randomised=True).eval()
    image = torch.randn(3, 1, 64, 48)
    kept = image.clone()
    expected = network.image_encoder(image, 3)
    with torch.inference_mode():
        found = network.image_encoder(image, 3)
    assert torch.equal(image, kept)
    assert torch.allclose(found.embedding, expected.embedding, atol=1e-5)
    for mine, other in zip(found.levels, expected.levels, strict=True):
        assert torch.allclose(mine, other, rtol=1e-4, atol=1e-4)


def test_parts_keep_their_order_in_memory():
    x = torch.rand(3, 4, 5, 6)
    with torch.no_grad():
        last = by_parts(lambda part: part + 1, x.contiguous(memory_format=torch.channels_last))
        plain = by_parts(lambda part: part + 1, x)
    assert torch.equal(last, x + 1) and torch.equal(plain, x + 1)
    assert last.is_contiguous(memory_format=torch.channels_last) and plain.is_contiguous()
