"""The look at the validation windows after an epoch, by which the best checkpoint is chosen."""

from collections.abc import Callable

import numpy as np
import torch

from masam_auto.compute.device import autocast
from masam_auto.core.labels import Labels
from masam_auto.training.batches import make_batch, on_device
from masam_auto.training.learner import Learner
from masam_auto.training.loss import decide, targets
from masam_auto.training.sampling import CaseStore, Sampling


@torch.no_grad()
def judge_windows(
    learner: Learner,
    store: CaseStore,
    sampling: Sampling,
    labels: Labels,
    *,
    precision: str,
    batches: int,
    on_batch: Callable[[int], bool] = lambda done: True,
) -> dict[str, float | None] | None:
    """Dice by class of the averaged weights on a fixed set of windows, their voxels counted together.

    This is a cheap estimate, not the score of the validation cases: no tiles, no averaging, no boxes, and voxels in
    several windows count several times. A class has None if neither truth nor prediction has it.

    Args:
        learner: whose network and average are used; all its processes share the batches.
        store, sampling: the windows, in batches of the configuration's size.
        labels: of the data set.
        precision: as in the plan.
        batches: how many, of all processes together.
        on_batch: called before every batch with the number done; if it returns False, the check is abandoned.

    Returns:
        Dice by class name; None if it was abandoned.
    """
    network, world, size = learner.network, learner.together.world, sampling.configuration.batch_size
    device = next(network.parameters()).device
    shared, sizes = np.zeros(labels.num_outputs), np.zeros(labels.num_outputs)
    with learner.average.shown_by(learner.tensors):
        network.eval()
        try:
            for first in range(0, batches, world.size):
                if not on_batch(first):
                    return None
                if first + world.rank >= batches:
                    break
                batch = on_device(make_batch(store, sampling, 0, (first + world.rank) * size, size), device)
                with autocast(device, precision):
                    predicted = decide(network(batch["data"]).float(), labels)
                truth = targets(batch["target"], labels)
                if labels.ignore is not None:
                    predicted &= (batch["target"] != labels.ignore).unsqueeze(2)
                shared += (predicted & truth).sum((0, 1, 3, 4)).cpu().numpy()
                sizes += (predicted.sum((0, 1, 3, 4)) + truth.sum((0, 1, 3, 4))).cpu().numpy()
        finally:
            network.train()
    shared, sizes = world.total(np.stack([shared, sizes]))
    places = enumerate(labels.foreground) if labels.has_regions else ((v[0], n) for n, v in labels.foreground.items())
    return {name: 2 * float(shared[at]) / float(sizes[at]) if sizes[at] else None for at, name in places}
