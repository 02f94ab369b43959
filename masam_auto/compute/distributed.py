"""Training one network with several processes: their roles, their share of the work, and how they agree.

Every update uses the plan's windows (`batch_size` times `accumulation`), for any number of processes (ranks). Ranks
form teams: as many as can share the batches evenly. The members of a team split each of its batches. The loss of a
split batch is that of the whole batch, so the loss curve is the same as with one process.
"""

import contextlib
import gc
import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from masam_auto.compute.device import choose_device
from masam_auto.core.errors import Interrupted, ModelError, PlanError, Terminated
from masam_auto.core.log import LOGGER_NAME
from masam_auto.core.plan import Configuration

JOIN_SECONDS = 300
# A process that ends closes its connections, and the others notice at once. This limit is for one that hangs. It must
# be longer than predicting a validation case, which the others wait for.
HANG = timedelta(hours=6)


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """The processes that train together, and this one's place among them; by default it is alone.

    `rank` counts over all machines, `local_rank` on this one. `store` is the launcher's shared store.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    restarts: int = 0
    store: dist.Store | None = None

    @property
    def first(self) -> bool:
        """Whether this process writes the files and the log."""
        return self.rank == 0

    def largest(self, *values: float) -> tuple[float, ...]:
        """The largest value over all ranks, for each argument. All ranks must call it."""
        if self.size == 1:
            return values
        found = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return tuple(found.tolist())

    def total(self, values: np.ndarray) -> np.ndarray:
        """The sum of all ranks' arrays, float64. All ranks must call it."""
        if self.size == 1:
            return values
        found = torch.from_numpy(values.astype(np.float64))
        dist.all_reduce(found)
        return found.numpy()

    def agree(self, good: bool) -> bool:
        """Whether `good` is true in all ranks. All ranks must call it."""
        return self.largest(0.0 if good else 1.0) == (0.0,)

    def meet(self) -> None:
        """Wait for all ranks."""
        self.largest(0.0)

    def claim(self, name: str) -> bool:
        """Whether this is the first rank to ask for `name`."""
        return self.store is None or self.store.add(f"claim/{name}", 1) == 1

    def begin(self) -> None:
        """Record that this training has its folder, for `has_begun` after a restart."""
        if self.store is not None:
            _innermost(self.store).set("masam/begun", "yes")

    def has_begun(self) -> bool:
        """Whether the launcher restarted a training that already had its folder, so that it must be resumed."""
        return self.restarts > 0 and self.store is not None and _innermost(self.store).check(["masam/begun"])


ALONE = World()


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """One rank's share of every update: part of the `windows` windows of each of its team's `batches` batches."""

    batches: int
    windows: int
    teams: int = 1
    team: int = 0
    members: int = 1
    place: int = 0

    def first_window(self, number: int) -> int:
        """The number, within the epoch, of the first window of the rank's batch `number`."""
        step, own = divmod(number, self.batches)
        batch = (step * self.batches + own) * self.teams + self.team
        return (batch * self.members + self.place) * self.windows


@dataclass(frozen=True, kw_only=True, slots=True)
class Together:
    """A network in joint training: `parallel` averages its gradients over all ranks, `team` splits batches."""

    world: World = ALONE
    parallel: DistributedDataParallel | None = None
    team: dist.ProcessGroup | None = None

    def team_total(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over the members of the team, with its gradient."""
        return tensor if self.team is None else _TeamTotal.apply(tensor, self.team)

    def gathering(self, *, last: bool) -> AbstractContextManager[Any]:
        """A context in which gradients stay in this process, except for the `last` batch of an update."""
        return contextlib.nullcontext() if self.parallel is None or last else self.parallel.no_sync()

    def average_statistics(self, network: nn.Module) -> None:
        """Average the running statistics of batch norms, which each rank computes from its own windows."""
        layers = [layer for layer in network.modules() if isinstance(layer, _BatchNorm) and layer.training]
        buffers = [b for layer in layers for b in (layer.running_mean, layer.running_var) if b is not None]
        if self.world.size == 1 or not buffers:
            return
        mean = torch.cat(buffers) / self.world.size
        dist.all_reduce(mean)
        with torch.no_grad():
            for buffer, value in zip(buffers, mean.split([len(buffer) for buffer in buffers]), strict=True):
                buffer.copy_(value)


class _TeamTotal(torch.autograd.Function):
    """The sum over a team. Every member computes the same loss from it, so each already has the full gradient.

    The gradient is multiplied by the number of members, because DistributedDataParallel divides by it.
    """

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, team: dist.ProcessGroup) -> torch.Tensor:
        ctx.members = team.size()
        total = tensor.detach().clone()
        dist.all_reduce(total, group=team)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0] * ctx.members, None


def share_of(world: World, configuration: Configuration) -> Share:
    """One rank's share of every update of the configuration.

    Raises:
        PlanError: the windows of an update cannot be shared evenly.
    """
    teams = math.gcd(configuration.accumulation, world.size)
    members = world.size // teams
    if configuration.batch_size % members:
        name = configuration.name
        raise PlanError(
            f"{world.size} processes cannot share {configuration.accumulation} x {configuration.batch_size} windows "
            f"evenly. Give `{name}.batch_size={_multiple(configuration.batch_size, members)}`, which "
            "trains with larger batches, or fewer processes."
        )
    team, place = divmod(world.rank, members)
    return Share(
        batches=configuration.accumulation // teams,
        windows=configuration.batch_size // members,
        teams=teams,
        team=team,
        members=members,
        place=place,
    )


def read_world(environment: Mapping[str, str]) -> World:
    """The world that torchrun, or `launch`, describes in the environment. Without it, this process is alone."""
    size = int(environment.get("WORLD_SIZE", 1))
    if size == 1:
        return World()
    rank = int(environment["RANK"])
    return World(
        rank=rank,
        size=size,
        local_rank=int(environment.get("LOCAL_RANK", rank)),
        local_size=int(environment.get("LOCAL_WORLD_SIZE", 1)),
        restarts=int(environment.get("TORCHELASTIC_RESTART_COUNT", 0)),
    )


def device_of(world: World, name: str | None) -> torch.device:
    """Like `choose_device`, but with several GPUs each process of a machine gets its own.

    Raises:
        MasamError: there is no such device, or not one per process.
    """
    device = choose_device(name)
    return choose_device(f"cuda:{world.local_rank}") if world.size > 1 and device.type == "cuda" else device


@contextlib.contextmanager
def joined(world: World, device: torch.device) -> Iterator[World]:
    """Connect to the other processes: NCCL for a GPU, and gloo for data on the CPU.

    If one rank ends, all end. The first that fails reports why, and the others end silently.

    Raises:
        ModelError: another process ended without a message, or never arrived.
        SystemExit: another rank has reported why.
    """
    if world.size == 1:
        yield world
        return
    world = _meet(world, device)
    try:
        yield world
    except (Exception, Terminated) as error:
        if not _claim_report(world):
            raise SystemExit(128 + error.signal_number if isinstance(error, Interrupted | Terminated) else 2) from None
        if _is_lost_connection(error):
            raise ModelError(
                f"another process of this training has ended ({_line(error)}). The last checkpoint is unharmed: "
                "continue with `resume`."
            ) from error
        raise
    # Anything that still refers to the group must go first: its threads must end before the interpreter does.
    gc.collect()
    dist.destroy_process_group()


def _meet(world: World, device: torch.device) -> World:
    """Wait for the other processes and form a group with them."""
    if not world.first:
        logging.getLogger(LOGGER_NAME).setLevel(logging.ERROR)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    wait = timedelta(seconds=JOIN_SECONDS)
    try:
        found, rank, size = next(dist.rendezvous("env://", timeout=wait))
        # the launcher's store survives a restart: do not read what the earlier processes left
        store = dist.PrefixStore(f"masam/{world.restarts}", found)
        store.set(f"here/{rank}", "yes")
        store.wait([f"here/{other}" for other in range(size)], wait)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=HANG)
    except (RuntimeError, ValueError) as error:  # every torch.distributed error is one of the two
        raise ModelError(
            f"process {world.rank} of {world.size} did not meet the others within {JOIN_SECONDS} s: {_line(error)}. "
            "Check MASTER_ADDR, MASTER_PORT and that every machine was started."
        ) from error
    return replace(world, store=store)


def learn_together(network: nn.Module, world: World, configuration: Configuration) -> Together:
    """Prepare a network, identical in all ranks, for joint training. All ranks must call it.

    Only trained parameters are reduced. Each has a gradient in every step (see `MaSam.decode`), so unused ones need not
    be searched for. Buffers are not broadcast: see `Together.average_statistics`.
    """
    if world.size == 1:
        return Together()
    share = share_of(world, configuration)
    groups = [
        dist.new_group(list(range(team * share.members, (team + 1) * share.members)))
        for team in range(share.teams if share.members > 1 else 0)
    ]
    device = next(network.parameters()).device
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # newer versions of torch call broadcast_buffers differently
        parallel = DistributedDataParallel(
            network,
            device_ids=None if device.type == "cpu" else [device.index],
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )
    return Together(world=world, parallel=parallel, team=groups[share.team] if groups else None)


def _innermost(store: dist.Store) -> dist.Store:
    """The store that survives a restart."""
    while isinstance(store, dist.PrefixStore):
        store = store.underlying_store
    return store


def _multiple(number: int, of: int) -> int:
    return -(-number // of) * of


def _claim_report(world: World) -> bool:
    try:
        return world.claim("report")
    except dist.DistError:  # the launcher, which holds the store, is gone
        return False


def _is_lost_connection(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, RuntimeError) and (
        isinstance(error, dist.DistError) or "gloo" in text or "connection" in text or "nccl" in text
    )


def _line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
