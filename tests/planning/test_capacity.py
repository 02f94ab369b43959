"""Rules about what fits: encoder, checkpointing, batch, slices at once."""

import dataclasses

import pytest

from masam_auto.core.errors import PlanError
from masam_auto.planning.capacity import (
    choose_batch,
    choose_checkpointing,
    choose_encoder,
    choose_longest_prediction,
)
from masam_auto.planning.memory import GIB, Load, available_bytes, training_bytes
from masam_auto.planning.planned_encoders import PLANNED_ENCODERS
from masam_auto.planning.recipes import choose_network

SAM = ("vit_b", "vit_l", "vit_h")


def make_load(name: str = "vit_b", canvas: tuple[int, int] = (512, 512), window: int = 5) -> Load:
    shape = PLANNED_ENCODERS[name]
    return Load(
        encoder=shape.spec,
        network=choose_network(shape, "")[0],
        canvas=canvas,
        window=window,
        in_channels=1,
        num_outputs=14,
    )


LOADS = {name: make_load(name) for name in PLANNED_ENCODERS}


def chosen(gpu_memory_gb: float, **options):
    options = {"backbone": None, "sam_weights": SAM} | options
    return choose_encoder(LOADS, gpu_memory_gb=gpu_memory_gb, **options)


def test_encoder_grows_with_the_memory():
    names = [chosen(gb).shape.name for gb in (1, 2, 4, 8, 12, 16, 24, 40, 80)]
    order = [("vit_t", "vit_b", "vit_l", "vit_h").index(name) for name in names]
    assert order == sorted(order) and names[0] == "vit_t" and names[-1] == "vit_h" and "vit_b" in names
    assert "80 GiB" in chosen(80).reason


def test_without_a_gpu_or_weights_the_small_encoder_learns_from_scratch_and_says_so():
    for choice in (chosen(0), chosen(80, sam_weights=())):
        assert choice.shape.name == "vit_t" and choice.weights == "none" and "from scratch" in choice.reason
    assert "no GPU" in chosen(0).reason and "no SAM weights" in chosen(80, sam_weights=()).reason


def test_encoder_whose_weights_are_missing_is_passed_over():
    choice = chosen(80, sam_weights=("vit_b",))
    assert choice.shape.name == "vit_b" and "vit_h: no SAM weights" in choice.reason


SMALL = (*SAM, "lite_medsam")


def test_without_a_gpu_the_small_pretrained_encoder_is_chosen_where_it_helps():
    choice = chosen(0, sam_weights=SMALL, smallest=(28.0, "LV"), steps=300.0)
    assert (choice.shape.name, choice.weights) == ("lite_medsam", "sam") and "small enough for a CPU" in choice.reason
    for options, why in (
        ({"sam_weights": SAM}, "no weights of lite_medsam in the weights folder (masam_fetch_weights lite_medsam)"),
        ({"smallest": (10.4, "Posterior")}, 'the smallest class, "Posterior", is 10.4 px across, less than 4 tokens'),
        ({"cases": 60}, "there are 60 cases, and lite_medsam was measured to help with few (10 at most)"),
        ({"steps": 40.0}, "the time is enough for 40 steps of lite_medsam"),
    ):
        choice = chosen(0, **{"sam_weights": SMALL, "smallest": (28.0, "LV"), "steps": 300.0} | options)
        assert (choice.shape.name, choice.weights) == ("vit_t", "none") and why in choice.reason


def test_a_gpu_prefers_the_small_pretrained_encoder_to_none():
    assert chosen(24, sam_weights=SMALL).shape.name != "lite_medsam"
    choice = chosen(24, sam_weights=("lite_medsam",))
    assert choice.shape.name == "lite_medsam" and "vit_b: no SAM weights" in choice.reason


def test_backbone_by_hand_wins():
    assert chosen(0, backbone="vit_b").shape.name == "vit_b"
    assert "still missing (masam_fetch_weights vit_l)" in chosen(80, backbone="vit_l", sam_weights=()).reason
    assert chosen(80, backbone="vit_l").reason == "asked for"
    assert chosen(80, backbone="vit_t").weights == "none"
    with pytest.raises(PlanError, match="'vit_x' is unknown; known: vit_t, vit_b, vit_l, vit_h"):
        chosen(80, backbone="vit_x")


def test_from_scratch_takes_the_small_encoder_unless_another_is_asked_for():
    choice = chosen(80, from_scratch=True)
    assert (choice.shape.name, choice.weights) == ("vit_t", "none") and "as asked" in choice.reason
    choice = chosen(80, from_scratch=True, backbone="vit_b", sam_weights=())
    assert (choice.shape.name, choice.weights) == ("vit_b", "none")
    assert choice.reason == "asked for; trained from scratch"


def test_checkpointing_only_where_a_window_does_not_fit_otherwise():
    load = make_load("vit_h")
    needs = training_bytes(load, batch=1, checkpointing=False) / GIB
    assert choose_checkpointing([load], gpu_memory_gb=needs * 1.3 + 1)[0] is False
    assert choose_checkpointing([load], gpu_memory_gb=needs)[0] is True
    assert choose_checkpointing([make_load("vit_b", (224, 224)), load], gpu_memory_gb=needs)[0] is True
    assert choose_checkpointing([load], gpu_memory_gb=0)[0] is False


@pytest.mark.parametrize("gpu_memory_gb", [6, 11, 24, 48, 80, 141])
def test_batch_fits_and_accumulates_toward_twenty_four(gpu_memory_gb):
    load = make_load()
    batch = choose_batch(load, training_slices=100_000, gpu_memory_gb=gpu_memory_gb, checkpointing=False)
    assert 20 <= batch.batch_size * batch.accumulation <= 24
    used = training_bytes(load, batch=batch.batch_size, checkpointing=False)
    assert used <= available_bytes(gpu_memory_gb) or batch.batch_size == 1


def test_at_most_five_percent_of_the_slices_an_update():
    batch = choose_batch(make_load(), training_slices=400, gpu_memory_gb=80, checkpointing=False)
    assert (batch.batch_size, batch.accumulation) == (4, 1) and "5 %" in batch.batch_reason
    tiny = choose_batch(make_load(), training_slices=10, gpu_memory_gb=80, checkpointing=False)
    assert (tiny.batch_size, tiny.accumulation) == (1, 1)


def test_batch_without_a_gpu_is_small_and_never_accumulated():
    small = choose_batch(make_load("vit_t", (48, 56), 15), training_slices=5000, gpu_memory_gb=0, checkpointing=False)
    assert (small.batch_size, small.accumulation) == (2, 1)
    flat = choose_batch(make_load("vit_t", (48, 56), 1), training_slices=5000, gpu_memory_gb=0, checkpointing=False)
    assert flat.batch_size == 24 <= 100_000 // (48 * 56)
    large = choose_batch(make_load("vit_t", (256, 256), 5), training_slices=10, gpu_memory_gb=0, checkpointing=False)
    assert large.batch_size == 2
    assert choose_batch(make_load(), training_slices=5000, gpu_memory_gb=0, checkpointing=False).batch_size == 1


def test_longest_prediction_follows_the_memory_up_to_its_limit():
    load = make_load("vit_h")
    few, many = (choose_longest_prediction([load], gpu_memory_gb=gb)[0] for gb in (6, 80))
    assert 1 <= few < many == 64
    assert choose_longest_prediction([dataclasses.replace(load, canvas=(64, 64))], gpu_memory_gb=0)[0] == 64
