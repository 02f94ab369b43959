"""SAM as it was pretrained: parts, prompts and weights."""

import re

import pytest
import torch
from torch import Tensor

from masam_auto.core.encoders import find_encoder
from masam_auto.core.errors import ModelError
from masam_auto.network.promptable import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    CanvasPrompts,
    PromptableSam,
    build_promptable,
    usual_canvas,
    usual_pixels,
)
from tests.network.small_networks import SPECS

BOXES = torch.tensor([[4.0, 6.0, 20.0, 30.0], [10.0, 2.0, 31.0, 17.0]])


def small(kind: str, *, canvas: int = 32, pixels: str = "unit") -> PromptableSam:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return PromptableSam(SPECS[kind], encoder="small", canvas=canvas, pixels=pixels).eval()  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """LiteMedSAM with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return PromptableSam(find_encoder("lite_medsam"), encoder="lite_medsam", canvas=32, pixels="unit").state_dict()


@pytest.mark.parametrize(("kind", "canvas"), [("tiny", 20), ("tiny", 32), ("sam", 48)])
@torch.no_grad()
def test_masks_have_the_canvas_resolution(kind: str, canvas: int) -> None:
    sam = small(kind, canvas=canvas)
    masks = sam.decode(sam.encode(torch.rand(1, 3, canvas, canvas)), CanvasPrompts(boxes=BOXES))
    assert masks.logits.shape == (2, canvas, canvas) and masks.quality.shape == (2,)


@torch.no_grad()
def test_boxes_together_are_boxes_one_by_one_and_slices_likewise() -> None:
    sam, slices = small("tiny"), torch.rand(3, 3, 32, 32)
    embeddings = sam.encode(slices)
    torch.testing.assert_close(embeddings[1:2], sam.encode(slices[1:2]))
    together = sam.decode(embeddings[:1], CanvasPrompts(boxes=BOXES))
    for number in range(2):
        alone = sam.decode(embeddings[:1], CanvasPrompts(boxes=BOXES[number : number + 1]))
        torch.testing.assert_close(alone.logits[0], together.logits[number])
        torch.testing.assert_close(alone.quality[0], together.quality[number])


@torch.no_grad()
def test_a_single_point_gets_the_best_of_three_masks_and_several_points_get_one() -> None:
    sam = small("tiny", pixels="sam")
    embedding = sam.encode(torch.rand(1, 3, 32, 32))
    points, kinds = torch.tensor([[[9.0, 12.0], [20.0, 3.0]]]), torch.tensor([[1.0, 0.0]])
    for count in (1, 2):
        prompts = CanvasPrompts(points=points[:, :count], on_object=kinds[:, :count])
        found = sam.decode(embedding, prompts)
        sparse, dense = sam.prompt_encoder((points[:, :count] - 0.5, kinds[:, :count]), None, None)
        logits, quality = sam.mask_decoder(embedding, sam.prompt_encoder.get_dense_pe(), sparse, dense, count == 1)
        assert logits.shape[1] == (3 if count == 1 else 1)
        torch.testing.assert_close(found.logits, logits[:, int(quality.argmax())])
        torch.testing.assert_close(found.quality, quality.amax(dim=1))


@torch.no_grad()
def test_pixels_are_what_the_encoder_was_trained_on() -> None:
    plain, scaled, image = small("sam"), small("sam", pixels="sam"), torch.rand(1, 3, 32, 32)
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    torch.testing.assert_close(scaled.encode(image), plain.encode((image - mean) / std))
    assert plain.padding == (0, 0, 0) and scaled.padding == IMAGENET_MEAN
    assert [usual_pixels(find_encoder(name)) for name in ("lite_medsam", "mobile_sam", "vit_b")] == [
        "unit",
        "sam",
        "sam",
    ]
    assert [usual_canvas(find_encoder(name)) for name in ("lite_medsam", "mobile_sam", "vit_b")] == [256, 1024, 1024]


@torch.no_grad()
def test_weights_load_by_name_at_any_canvas(state: dict[str, Tensor]) -> None:
    sam = build_promptable("lite_medsam", state, canvas=36, origin="f.pth")
    assert not sam.training and not any(parameter.requires_grad for parameter in sam.parameters())
    assert all(torch.equal(value, sam.state_dict()[name]) for name, value in state.items())
    assert sam.encode(torch.rand(1, 3, 36, 36)).shape == (1, 256, 9, 9)


@pytest.mark.parametrize(
    ("change", "canvas", "message"),
    [
        ({"mask_decoder.iou_token.weight": None}, 32, "f.pth: mask_decoder.iou_token.weight is missing"),
        ({"mask_decoder.extra": torch.zeros(1)}, 32, "f.pth: mask_decoder.extra does not exist in lite_medsam"),
        ({"image_encoder.layers.9.x": torch.zeros(1)}, 32, "image_encoder.layers.9.x does not exist"),
        ({"mask_decoder.mask_tokens.weight": torch.zeros(5, 256)}, 32, r"has shape \(5, 256\)"),
        ({"mask_decoder.iou_token.weight": torch.full((1, 256), torch.nan)}, 32, "values that are not finite"),
        (
            {},
            30,
            "`canvas=30`: the canvas of lite_medsam must be a multiple of 4 px; its weights were trained with 256",
        ),
    ],
)
def test_other_weights_and_canvases_are_refused(
    state: dict[str, Tensor], change: dict[str, Tensor | None], canvas: int, message: str
) -> None:
    changed = {name: value for name, value in (state | change).items() if value is not None}
    with pytest.raises(ModelError, match=message) as caught:
        build_promptable("lite_medsam", changed, canvas=canvas, origin="f.pth")
    assert not re.search("\n", str(caught.value))


def test_an_encoder_without_a_decoder_is_refused(state: dict[str, Tensor]) -> None:
    alone = {name: value for name, value in state.items() if name.startswith("image_encoder.")}
    with pytest.raises(ModelError, match=r"f.pth: has the encoder lite_medsam, but not SAM's decoder"):
        build_promptable("lite_medsam", alone, canvas=32, origin="f.pth")
