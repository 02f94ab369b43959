"""Losses: what is right costs nothing, what is ignored counts nowhere."""

import numpy as np
import pytest
import torch

from masam_auto.core.errors import PlanError
from masam_auto.core.labels import Labels, parse_labels
from masam_auto.training.loss import LOSSES, ce_dice, choose_loss, decide, targets

CLASSES = parse_labels({"background": 0, "a": 1, "b": 2}, None)
IGNORING = parse_labels({"background": 0, "a": 1, "b": 2, "ignore": 3}, None)
REGIONS = parse_labels({"background": 0, "whole": [1, 2], "core": 2}, [1, 2])
WEIGHTS = (0.2, 0.8)


def volume(highest: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, highest + 1, (2, 3, 8, 8), generator=torch.Generator().manual_seed(seed))


def certain(target: torch.Tensor, labels: Labels) -> torch.Tensor:
    return targets(target, labels).float() * 40 - 20


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("labels", [CLASSES, REGIONS])
def test_the_truth_costs_nothing_and_its_opposite_much(name: str, labels: Labels) -> None:
    target = volume(2)
    right = LOSSES[name](certain(target, labels), target, labels, WEIGHTS)
    wrong = LOSSES[name](-certain(target, labels), target, labels, WEIGHTS)
    assert right < 0.01
    assert wrong > 1


@pytest.mark.parametrize("name", LOSSES)
def test_the_ignore_label_has_no_part_in_it(name: str) -> None:
    target = volume(2)
    target[:, :, :4] = 3
    logits = torch.randn(2, 3, 3, 8, 8)
    changed = logits.clone()
    changed[:, :, :, :4] = 100 * torch.randn(2, 3, 3, 4, 8)
    loss = LOSSES[name](logits, target, IGNORING, WEIGHTS)
    torch.testing.assert_close(loss, LOSSES[name](changed, target, IGNORING, WEIGHTS))
    kept = LOSSES[name](logits[:, :, :, 4:], target[:, :, 4:], CLASSES, WEIGHTS)
    torch.testing.assert_close(loss, kept)


def test_everything_ignored_is_finite() -> None:
    target = torch.full((1, 1, 4, 4), 3)
    logits = torch.randn(1, 1, 3, 4, 4, requires_grad=True)
    loss = ce_dice(logits, target, IGNORING, WEIGHTS)
    loss.backward()
    assert torch.isfinite(loss)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_the_gradient_reaches_every_logit_and_bf16_is_accepted() -> None:
    logits = torch.randn(1, 2, 3, 4, 4).bfloat16().requires_grad_()
    loss = ce_dice(logits, volume(2)[:1, :2, :4, :4], CLASSES, WEIGHTS)
    loss.backward()
    assert loss.dtype == torch.float32
    assert logits.grad is not None
    assert (logits.grad != 0).all()


def test_dice_is_taken_over_the_batch() -> None:
    target = torch.zeros(2, 1, 4, 4, dtype=torch.long)
    target[0] = 1
    logits = certain(target, CLASSES)
    assert ce_dice(logits, target, CLASSES, (0.0, 1.0)) < 0.01  # class b is nowhere, class a in one window only


def test_targets_of_regions_overlap_and_of_classes_do_not() -> None:
    target = torch.tensor([0, 1, 2, 3]).view(1, 1, 1, 4)
    assert targets(target, REGIONS)[0, 0, :, 0].tolist() == [[False, True, True, False], [False, False, True, False]]
    assert targets(target, IGNORING).sum().item() == 3


@pytest.mark.parametrize("labels", [CLASSES, REGIONS])
def test_decide_undoes_targets(labels: Labels) -> None:
    target = volume(2)
    assert torch.equal(decide(certain(target, labels), labels), targets(target, labels))


def test_an_unknown_loss_is_refused() -> None:
    with pytest.raises(PlanError, match="ce_dice"):
        choose_loss("hinge")


def reference_loss(logits: np.ndarray, target: np.ndarray, ignored: int) -> float:
    """The reference MA-SAM's loss by its formula: logits (slices, K, H, W), target (slices, H, W).

    0.2 cross-entropy, mean over the voxels that count, and 0.8 Dice: for each class, background among them,
    1 - (2 sum(p t) + 1e-5) / (sum(p^2) + sum(t^2) + 1e-5) over all slices, all classes weighing the same.
    """
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    p = exponentials / exponentials.sum(axis=1, keepdims=True)
    counted = target != ignored
    entropy = [-np.log(p[s, target[s, y, x], y, x]) for s, y, x in zip(*np.nonzero(counted), strict=True)]
    dice = []
    for k in range(logits.shape[1]):
        score, truth = p[:, k][counted], (target == k)[counted].astype(float)
        dice.append(1 - (2 * (score * truth).sum() + 1e-5) / ((score**2).sum() + (truth**2).sum() + 1e-5))
    return 0.2 * float(np.mean(entropy)) + 0.8 * float(np.mean(dice))


@pytest.mark.parametrize("labels", [CLASSES, IGNORING])
@pytest.mark.parametrize("seed", [0, 1])
def test_squared_dice_is_the_references_loss(labels: Labels, seed: int) -> None:
    target = volume(3 if labels is IGNORING else 2, seed=seed)
    target[target == 1] = 0 if seed else 1  # seed 1: a class that is nowhere
    logits = 3 * torch.randn(2, 3, 3, 8, 8, generator=torch.Generator().manual_seed(seed + 7)).double()
    ours = LOSSES["ce_dice_squared"](logits, target, labels, WEIGHTS)
    theirs = reference_loss(logits.flatten(0, 1).numpy(), target.flatten(0, 1).numpy(), ignored=3)
    assert ours.item() == pytest.approx(theirs, rel=1e-5)
