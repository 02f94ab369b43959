"""Losses over the logits of windows, at canvas resolution."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from masam_auto.core.labels import Labels
from masam_auto.core.plugins import find_entry

Total = Callable[[torch.Tensor], torch.Tensor]
Loss = Callable[..., torch.Tensor]
SMOOTH = 1.0


def here(sums: torch.Tensor) -> torch.Tensor:
    """The sums over a batch that is in this process as a whole."""
    return sums


def ce_dice(
    logits: torch.Tensor, target: torch.Tensor, labels: Labels, weights: tuple[float, float], total: Total = here
) -> torch.Tensor:
    """Weighted sum of cross-entropy and soft Dice.

    The Dice of a class is computed over all windows of the batch together, because it is undefined in a window without
    the class. Background is left out. Regions use the binary forms (sigmoid).

    Args:
        logits: (B, N, K, H, W).
        target: (B, N, H, W) label values; voxels of the ignore label do not count.
        labels: their meaning.
        weights: of cross-entropy and of Dice.
        total: adds up the sums over the parts of a batch that several processes split; see `compute.distributed`.

    Returns:
        a scalar, float32, of the whole batch.

    Source: the weights 0.2 and 0.8 are the reference MA-SAM's; Dice over the batch, without background and without
    squares is nnU-Net's (`MemoryEfficientSoftDiceLoss`, `batch_dice`, `do_bg=False`).

    Example:
        >>> from masam_auto.training.loss import ce_dice
        >>> logits = torch.zeros(1, 5, 3, 8, 8)  # (B, N, K, H, W)
        >>> logits[:, :, 1] = 100  # sure of class 1, and right
        >>> target = torch.ones(1, 5, 8, 8)  # (B, N, H, W)
        >>> ce_dice(logits, target, dataset.description.labels, (1.0, 0.0)).item()
        0.0
    """
    cross_entropy, score = _scores(logits, target, labels, total, first=0 if labels.has_regions else 1)
    return weights[0] * cross_entropy + weights[1] * (1 - score.mean())


def ce_dice_squared(
    logits: torch.Tensor, target: torch.Tensor, labels: Labels, weights: tuple[float, float], total: Total = here
) -> torch.Tensor:
    """As `ce_dice`, with squared terms in the Dice's denominator, background counted, and hardly any smoothing.

    Source: the reference implementation of MA-SAM (its DiceLoss: all windows of the batch together, mean over all
    classes, smoothing 1e-5), which it took from SAMed and TransUNet. The test compares with the formula.
    """
    cross_entropy, score = _scores(logits, target, labels, total, first=0, power=2, smooth=1e-5)
    return weights[0] * cross_entropy + weights[1] * (1 - score.mean())


LOSSES: dict[str, Loss] = {"ce_dice": ce_dice, "ce_dice_squared": ce_dice_squared}


def choose_loss(name: str) -> Loss:
    """A loss by the plan's name, ours or a plug-in's. Raises PlanError listing the known ones.

    Example:
        >>> from masam_auto.training.loss import choose_loss, here
        >>> logits, target = torch.zeros(1, 5, 3, 8, 8), torch.ones(1, 5, 8, 8)  # (B, N, K, H, W), (B, N, H, W)
        >>> loss = choose_loss("ce_dice")(logits, target, dataset.description.labels, (0.2, 0.8), here)
        >>> loss.shape, loss.item() > 0
        (torch.Size([]), True)
    """
    return find_entry("losses", name, LOSSES, field="training.loss")


def targets(target: torch.Tensor, labels: Labels) -> torch.Tensor:
    """The target of each output.

    Args:
        target: (B, N, H, W) label values.
        labels: their meaning.

    Returns:
        (B, N, K, H, W) bool: one-hot classes with background first, or the regions, which may overlap. Voxels of the
        ignore label belong to nothing.
    """
    if labels.has_regions:
        members = [torch.as_tensor(values, device=target.device) for values in labels.foreground.values()]
        return torch.stack([torch.isin(target, values) for values in members], dim=2)
    classes = torch.arange(labels.num_outputs, device=target.device)
    return target.unsqueeze(2) == classes.view(1, 1, -1, 1, 1)


def decide(logits: torch.Tensor, labels: Labels) -> torch.Tensor:
    """(B, N, K, H, W) logits to bool memberships of the same shape: the strongest class, or each region above 1/2."""
    if labels.has_regions:
        return logits > 0
    strongest = logits.argmax(dim=2, keepdim=True)
    return torch.zeros_like(logits, dtype=torch.bool).scatter_(2, strongest, value=True)


def _scores(
    logits: torch.Tensor,
    target: torch.Tensor,
    labels: Labels,
    total: Total,
    *,
    first: int,
    power: int = 1,
    smooth: float = SMOOTH,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean cross-entropy, and (K - first,) soft Dice of the outputs from `first` on, over all windows together."""
    logits = logits.float()
    truth = targets(target, labels).to(logits.dtype)
    if labels.has_regions:
        probabilities = logits.sigmoid()
        voxelwise = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(dim=2)
    else:
        logarithms = logits.log_softmax(dim=2)
        probabilities = logarithms.exp()
        voxelwise = -(logarithms * truth).sum(dim=2)
    p, t = probabilities[:, :, first:], truth[:, :, first:]
    count = voxelwise.new_full((), voxelwise.numel())  # no copy from the host, which a GPU waits for
    if labels.ignore is not None:
        counted = target != labels.ignore
        voxelwise, p, count = voxelwise * counted, p * counted.unsqueeze(2), counted.sum().to(voxelwise.dtype)
    over = (0, 1, 3, 4)
    intersections = (p * t).sum(over)
    sizes = p.pow(power).sum(over) + t.sum(over)
    sums = total(torch.cat([torch.stack([voxelwise.sum(), count]), intersections, sizes]))
    (cross_entropy, count), (intersections, sizes) = sums[:2], sums[2:].chunk(2)
    return cross_entropy / count.clamp(min=1), (2 * intersections + smooth) / (sizes + smooth)
