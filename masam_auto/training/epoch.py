"""One epoch of training, and the look at the validation windows after it."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import torch
from tqdm import tqdm

from masam_auto.compute.device import autocast, computes_in_bf16
from masam_auto.compute.distributed import Together, share_of
from masam_auto.core.labels import Labels
from masam_auto.core.plan import Configuration, TrainingPlan
from masam_auto.models.checkpoint import EpochSoFar
from masam_auto.network.masam import MaSam
from masam_auto.training.batches import make_batch, on_device
from masam_auto.training.loss import choose_loss, decide, targets
from masam_auto.training.optimizer import set_rate
from masam_auto.training.overflow import Overflows
from masam_auto.training.sampling import CaseStore, Sampling
from masam_auto.training.schedule import rate_share
from masam_auto.training.weight_average import WeightAverage

Batches = Iterator[dict[str, np.ndarray]]
# After so many updates in all: the share of the budget that is used, and whether to stop here.
Ask = Callable[[int], tuple[float, bool]]
# Told after every step what the epoch did up to now.
OnStep = Callable[[EpochSoFar], None]
NOTHING_YET = EpochSoFar()
BY_ITSELF = Together()


@dataclass(frozen=True, kw_only=True, slots=True)
class Learner:
    """What training changes in place: the network, its optimisers, and the running average of its weights.

    `tensors` are the network's learned ones, by name; they share its memory. `together` are the processes it trains in.
    """

    network: MaSam
    tensors: dict[str, torch.Tensor]
    optimizers: tuple[torch.optim.Optimizer, ...]
    average: WeightAverage
    together: Together = BY_ITSELF


@dataclass(kw_only=True)
class Clock:
    """Seconds that a training has used, earlier sessions included: wall clock, and CPU of all its processes.

    Of `processes` that train together, each counts its own and takes the others to use as much.
    """

    earlier_wall: float = 0.0
    earlier_cpu: float = 0.0
    processes: int = 1
    _wall: float = field(default_factory=time.perf_counter)
    _cpu: float = field(default_factory=time.process_time)
    _workers: list[psutil.Process] = field(default_factory=list)

    def watch_workers(self) -> None:
        """Count the child processes that there are now; what they have used so far is counted too."""
        self._workers = psutil.Process().children(recursive=True)

    @property
    def wall(self) -> float:
        """Seconds of wall clock."""
        return self.earlier_wall + time.perf_counter() - self._wall

    @property
    def cpu(self) -> float:
        """CPU-seconds of this process, all its threads, and the workers; as much for each of the other processes."""
        own = time.process_time() - self._cpu + sum(map(_cpu_seconds, self._workers))
        return self.earlier_cpu + self.processes * own


def train_epoch(
    learner: Learner,
    batches: Batches,
    training: TrainingPlan,
    configuration: Configuration,
    labels: Labels,
    *,
    epoch: int,
    first_step: int,
    ask: Ask,
    so_far: EpochSoFar = NOTHING_YET,
    left_out: int = 0,
    is_over: Callable[[float], bool] = lambda progress: False,
    on_step: OnStep = lambda so_far: None,
) -> tuple[EpochSoFar, bool]:
    """Train for an epoch, or what is left of it, or for what is left of the budget.

    torch's generators (dropout) are seeded by the plan's seed and by the number of the step as windows are drawn by: its
    planned epoch and place in it. A training resumed at any step equals an uninterrupted one.

    Args:
        learner: is changed in place.
        batches: endless; the next one is the first of the step after those in `so_far`.
        training, configuration, labels: how, on what, and what for.
        epoch: its number from 0.
        first_step: updates made before the epoch.
        ask: called before every step; decides learning rate and end.
        so_far: what an earlier session did of this epoch.
        left_out: steps that earlier epochs had less than planned and that draws are numbered without.
        is_over: asked after each step with the share of the budget that is used: whether the epoch ends here.
        on_step: told after each step.

    Returns:
        what the epoch did in all processes, `so_far` included, and whether it was stopped before its end.

    Raises:
        ModelError: the loss or the gradients are not finite, and computing in float32 does not help.
    """
    device = next(learner.network.parameters()).device
    precision = training.precision if computes_in_bf16(device) else "float32"
    world = learner.together.world
    batches_a_step = share_of(world, configuration).batches
    overflows = Overflows(rescued=so_far.rescued, skipped=so_far.skipped, agree=world.agree)
    started, waited, losses, rate = time.perf_counter(), so_far.waited, list(so_far.losses), so_far.learning_rate
    per_epoch, stop = training.steps_per_epoch, False

    def done() -> EpochSoFar:
        return EpochSoFar(
            losses=tuple(losses),
            learning_rate=rate,
            seconds=so_far.seconds + time.perf_counter() - started,
            waited=waited,
            rescued=overflows.rescued,
            skipped=overflows.skipped,
        )

    with tqdm(
        total=per_epoch,
        initial=so_far.steps,
        desc=f"epoch {epoch}",
        leave=False,
        disable=not (world.first and sys.stderr.isatty()),
    ) as bar:
        for number in range(so_far.steps, per_epoch):
            step = first_step + number
            progress, stop = ask(step)
            if progress >= 1 or stop:
                stop = progress < 1
                break
            if losses and is_over(progress):
                break
            share = rate_share(training, progress)
            rate = share * training.learning_rate
            set_rate(learner.optimizers, share)
            _seed_torch(training.seed, *divmod(epoch * per_epoch + number - left_out, per_epoch), world.rank)
            total = 0.0
            for place in range(batches_a_step):
                asked = time.perf_counter()
                batch = next(batches)
                waited += time.perf_counter() - asked
                tensors = on_device(batch, device)
                loss = partial(_batch_loss, learner, tensors, training, labels, batches_a_step)
                with learner.together.gathering(last=place + 1 == batches_a_step):
                    total += overflows.backward(
                        learner.network,
                        loss,
                        precision=precision,
                        step=step,
                        rate=rate,
                        alone=partial(loss, alone=True),
                    )
            update(learner, training.gradient_clip, step + 1, overflows)
            losses.append(float(world.total(np.array([total]))[0]) / world.size)
            bar.update()
            on_step(done())
    return done(), stop


def update(learner: Learner, gradient_clip: float, step: int, overflows: Overflows) -> None:
    """One update from the gradients at hand: clip, step, average. `step` counts from 1; clip 0 switches clipping off.

    Gradients that are not finite are dropped, and weights, optimisers and average stay as they are.

    Raises:
        ModelError: that happened in too many steps in a row.
    """
    learning = [parameter for parameter in learner.network.parameters() if parameter.grad is not None]
    gradients = [parameter.grad for parameter in learning if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients, foreach=True)
    usable = overflows.may_update(learner.network, norm, step - 1)
    if usable and gradient_clip > 0:  # not before: a norm that is not-a-number would spread to every gradient
        torch.nn.utils.clip_grads_with_norm_(learning, gradient_clip, norm, foreach=True)
    for optimizer in learner.optimizers:
        if usable:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    if usable:
        learner.together.average_statistics(learner.network)
        learner.average.update(learner.tensors, step)


def _seed_torch(*numbers: int) -> None:
    torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))


def _batch_loss(
    learner: Learner,
    batch: Mapping[str, torch.Tensor],
    training: TrainingPlan,
    labels: Labels,
    batches: int,
    precision: str,
    *,
    alone: bool = False,
) -> torch.Tensor:
    """Loss of one batch, divided by the batches of an update; `precision` is "bf16" or "float32".

    With `alone` it is that of this process's windows, whatever the others do.
    """
    together = BY_ITSELF if alone else learner.together
    network = together.parallel or learner.network
    with autocast(batch["data"].device, precision):
        logits = network(batch["data"], batch.get("boxes"))
    loss = choose_loss(training.loss)
    return loss(logits, batch["target"], labels, training.loss_weights, together.team_total) / batches


@torch.no_grad()
def judge_windows(
    learner: Learner,
    store: CaseStore,
    sampling: Sampling,
    labels: Labels,
    *,
    precision: str,
    batch_size: int,
    batches: int,
    stop_asked: Callable[[], bool],
    on_batch: Callable[[int, int], None] = lambda done, batches: None,
) -> dict[str, float | None] | None:
    """Dice by class of the averaged weights on a fixed set of windows, their voxels counted together.

    A cheap look at the validation cases, not their score: no tiles, no averaging, no boxes, and voxels in several
    windows count several times. A class's is None where neither truth nor prediction has it; all is None where
    `stop_asked`, called before every batch, says so. `on_batch` is told after each how many are done, and of how many.
    """
    network, world = learner.network, learner.together.world
    device = next(network.parameters()).device
    shared, sizes = np.zeros(labels.num_outputs), np.zeros(labels.num_outputs)
    with learner.average.shown_by(learner.tensors):
        network.eval()
        try:
            for first in range(0, batches, world.size):
                if stop_asked():
                    return None
                number = first + world.rank
                if number >= batches:
                    break
                batch = make_batch(store, sampling, 0, number * batch_size, batch_size)
                tensors = on_device(batch, device)
                data, target = tensors["data"], tensors["target"]
                with autocast(device, precision):
                    predicted = decide(network(data).float(), labels)
                truth = targets(target, labels)
                if labels.ignore is not None:
                    predicted &= (target != labels.ignore).unsqueeze(2)
                shared = shared + (predicted & truth).sum((0, 1, 3, 4)).cpu().numpy()
                sizes = sizes + (predicted.sum((0, 1, 3, 4)) + truth.sum((0, 1, 3, 4))).cpu().numpy()
                on_batch(number + 1, batches)
        finally:
            network.train()
    shared, sizes = world.total(np.stack([shared, sizes]))
    places = enumerate(labels.foreground) if labels.has_regions else ((v[0], n) for n, v in labels.foreground.items())
    return {name: 2 * float(shared[at]) / float(sizes[at]) if sizes[at] else None for at, name in places}


def peak_memory_gib(device: torch.device) -> float:
    """Peak memory so far: the GPU's where it is one, else this process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return _peak_resident_bytes() / 2**30


def _peak_resident_bytes() -> int:
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    status = Path("/proc/self/status")
    if status.is_file():  # Linux's ru_maxrss remembers the process that started this one
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) * 1024
    import resource  # does not exist on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _cpu_seconds(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:  # it has ended
        return 0.0
    return times.user + times.system
