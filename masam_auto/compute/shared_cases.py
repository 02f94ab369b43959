"""Processes that share out cases among them, each for itself but for a store: who does which case, and what became of
it.

Unlike in training nobody waits for anybody, but the first process, at the end, for all results. The store is that of
torchrun, or of `compute.case_launcher`; a process alone has one in its own memory. It outlives a process that is
killed: the one that is started in its place, with the same rank, takes over what that one had begun.
"""

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from masam_auto.compute.distributed import ALONE, JOIN_SECONDS, World
from masam_auto.core.errors import ModelError, first_few
from masam_auto.core.log import LOGGER_NAME

logger = logging.getLogger(__name__)

PREFIX, REPORT = "masam/cases", "report"
POLL_SECONDS = 0.2  # the store's own waiting could not be interrupted
TELL_SECONDS = 60.0
END_SECONDS = 10.0
DEATHS_LIMIT = 2  # processes that a case may cost
KILLER = (
    "the process that predicted it was killed, and again with no other case beside it, most often for want of memory. "
    "Predict it on a machine with more memory."
)


@dataclass(kw_only=True, slots=True)
class SharedCases:
    """One process's view of the cases. Names are those of `deal`. `finish` may be called in another thread."""

    world: World = ALONE
    store: dist.Store = field(default_factory=dist.HashStore)
    _busy: list[str] = field(default_factory=list)
    _kept: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def _key(self) -> str:
        return f"process/{self.world.rank}"

    def agreed(self, name: str, make: Callable[[], Any]) -> Any:
        """What the first process makes (plain data), for all of them and for those that are started later."""
        key = f"agreed/{name}"
        if self.world.first and not self.store.check([key]):
            self.store.set(key, json.dumps(make()))
        while not self.store.check([key]):
            time.sleep(POLL_SECONDS)
        return json.loads(self.store.get(key))

    def claim(self, name: str) -> bool:
        """Whether this is the first process to ask for `name`, which is not a case."""
        return self.store.add(f"claim/{name}", 1) == 1

    def take_over(self, names: Sequence[str]) -> tuple[list[str], list[str]]:
        """What an earlier process of this rank left unfinished; second, what was at work when one was killed.

        One of the latter may be what killed it: `hold` them one by one. A case is given up that was at work when
        processes were killed, the last time alone.
        """
        if not self.store.check([self._key]):
            return [], []
        found = json.loads(self.store.get(self._key))
        left = [name for name in names if name in found["busy"] + found["kept"] and not self.is_finished(name)]
        killed = [] if found["ended"] else [name for name in left if name in found["busy"]]
        deaths = {name: self.store.add(f"deaths/{name}", name in killed) for name in left}
        with self._lock:
            self._kept = left
            self._tell()
        if len(killed) == 1 and deaths[killed[0]] >= DEATHS_LIMIT and self.begin(killed[0]):
            self.finish(killed[0], f"case {killed[0]}: {KILLER}")
            left = [name for name in left if name != killed[0]]
        return [name for name in left if not deaths[name]], [name for name in left if deaths[name]]

    def deal(self, names: Sequence[str]) -> Iterator[str]:
        """Names for this process to make ready, each when it is asked for; at the end those that others do not come to.

        Being given a name is no promise: call `begin` when the work on it begins.
        """
        given = set()
        for name in names:
            if self.store.add(f"read/{name}", 1) == 1:
                given.add(name)
                self.hold(name)
                yield name
        for name in names:  # what others have made ready, but not begun; what may be deadly is left to its finder
            begun = name in given or self.store.check([f"work/{name}"]) or self.store.add(f"deaths/{name}", 0)
            if not begun and not self.is_finished(name):
                self.hold(name)
                yield name

    def begin(self, name: str) -> bool:
        """Whether this process is the one that does `name`, once and for all."""
        me = str(self.world.rank)
        mine = bool(self.store.compare_set(f"work/{name}", "", me).decode() == me)
        if not mine:
            self._release(name)
        return mine

    def finish(self, name: str, *problems: str) -> None:
        """Note that `name` is done, or that it failed."""
        self.store.set(f"result/{name}", json.dumps(problems))
        self._release(name)

    def is_finished(self, name: str) -> bool:
        """Whether `name` is done or has failed."""
        return bool(self.store.check([f"result/{name}"]))

    def results(self, names: Sequence[str]) -> dict[str, list[str]]:
        """The problems of each name, none where it is done. Waits until all processes have come to their ends."""
        told = time.monotonic()
        while waiting := [name for name in names if not self.is_finished(name)]:
            if time.monotonic() - told > TELL_SECONDS:
                told = time.monotonic()
                logger.info("waiting for other processes, for %s", first_few(waiting))
            time.sleep(POLL_SECONDS)
        return {name: json.loads(self.store.get(f"result/{name}")) for name in names}

    def hold(self, name: str) -> None:
        """Note that this process is about to do something with `name`, which might kill it."""
        with self._lock:
            self._kept = [kept for kept in self._kept if kept != name]
            self._busy.append(name)
            self._tell()

    def put_off(self, name: str) -> None:
        """Note that this process will go on with `name` later."""
        with self._lock:
            self._busy = [busy for busy in self._busy if busy != name]
            self._kept.append(name)
            self._tell()

    def leave(self) -> None:
        """Note that this process ends, not killed. The first one waits a little, because it may keep the store."""
        self._tell(ended=True)
        self.store.set(f"left/{self.world.rank}", "")
        deadline = time.monotonic() + END_SECONDS
        while self.world.first and time.monotonic() < deadline:
            if self.store.check([f"left/{rank}" for rank in range(self.world.size)]):
                return
            time.sleep(POLL_SECONDS)

    def ended(self, code: int | None = None) -> int | None:
        """Note the exit code of the whole, or tell it: torchrun may start processes again after one that is not 0."""
        if code is not None:
            self.store.set("code", str(code))
        return int(self.store.get("code")) if self.store.check(["code"]) else None

    def _release(self, name: str) -> None:
        with self._lock:
            self._busy = [busy for busy in self._busy if busy != name]
            self._kept = [kept for kept in self._kept if kept != name]
            self._tell()

    def _tell(self, *, ended: bool = False) -> None:
        self.store.set(self._key, json.dumps({"busy": self._busy, "kept": self._kept, "ended": ended}))


@contextlib.contextmanager
def shared_cases(world: World) -> Iterator[SharedCases]:
    """Meet at the store. Of the processes that fail, or are ended, the first says why and the others end silently.

    Raises:
        ModelError: the store could not be reached.
        SystemExit: another process has said why it ended.
    """
    if world.size == 1:
        yield SharedCases()
        return
    if not world.first:
        logging.getLogger(LOGGER_NAME).setLevel(logging.ERROR)
    try:
        store, _, _ = next(dist.rendezvous("env://", timeout=timedelta(seconds=JOIN_SECONDS)))
    except (RuntimeError, ValueError) as error:
        raise ModelError(
            f"process {world.rank} of {world.size} found no store within {JOIN_SECONDS} s: {error}. Check MASTER_ADDR, "
            "MASTER_PORT and that every machine was started."
        ) from error
    while isinstance(store, dist.PrefixStore):  # torchrun's prefix is another one after a restart
        store = store.underlying_store
    cases = SharedCases(world=world, store=dist.PrefixStore(PREFIX, store))
    try:
        yield cases
    except GeneratorExit:
        raise
    except BaseException as error:
        with contextlib.suppress(dist.DistError):  # the launcher, which keeps the store, may be gone
            cases._tell(ended=True)
            if cases.claim(f"{REPORT}/{world.restarts}"):
                raise
        raise SystemExit(2) from error
    cases.leave()
