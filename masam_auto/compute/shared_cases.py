"""Processes that share cases through a store: which process does which case, and how each case ended.

Unlike in training, processes do not wait for each other; only the first one waits at the end for all results. The store
is that of torchrun or `compute.case_launcher`. A process that is alone has one in its own memory. The store survives a
killed process: its replacement, with the same rank, takes over the cases it had begun.
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
POLL_SECONDS = 0.2  # polled, because the store's own waiting cannot be interrupted
TELL_SECONDS = 60.0
END_SECONDS = 10.0
DEATHS_LIMIT = 2  # processes that a case may cost
KILLER = (
    "the process that predicted it was killed, and again while working on this case alone, most often because memory "
    "ran out. Predict it on a machine with more memory."
)


@dataclass(kw_only=True, slots=True)
class SharedCases:
    """One process's view of the cases. Names are those of `deal`. `finish` may be called from another thread."""

    world: World = ALONE
    store: dist.Store = field(default_factory=dist.HashStore)
    _busy: list[str] = field(default_factory=list)
    _kept: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def _key(self) -> str:
        return f"process/{self.world.rank}"

    def agreed(self, name: str, make: Callable[[], Any]) -> Any:
        """Plain data that the first process makes, for all processes and for those started later."""
        key = f"agreed/{name}"
        if self.world.first and not self.store.check([key]):
            self.store.set(key, json.dumps(make()))
        while not self.store.check([key]):
            time.sleep(POLL_SECONDS)
        return json.loads(self.store.get(key))

    def claim(self, name: str) -> bool:
        """Whether this process is the first to ask for `name`, which is not a case."""
        return self.store.add(f"claim/{name}", 1) == 1

    def take_over(self, names: Sequence[str]) -> tuple[list[str], list[str]]:
        """What an earlier process of this rank left unfinished: safe cases, and cases in progress when one was killed.

        One of the latter may be the cause: `hold` them one by one. A case is given up if it was in progress in
        `DEATHS_LIMIT` killed processes, alone in the last one.
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
        """Names for this process to prepare, each on request; at the end also those that others have not begun.

        A name is not reserved: call `begin` when its work begins.
        """
        given = set()
        for name in names:
            if self.store.add(f"read/{name}", 1) == 1:
                given.add(name)
                self.hold(name)
                yield name
        for name in names:  # prepared by others, but not begun; cases that may kill are left to their finder
            begun = name in given or self.store.check([f"work/{name}"]) or self.store.add(f"deaths/{name}", 0)
            if not begun and not self.is_finished(name):
                self.hold(name)
                yield name

    def begin(self, name: str) -> bool:
        """Whether this process may do `name`; only one process ever gets True."""
        me = str(self.world.rank)
        mine = bool(self.store.compare_set(f"work/{name}", "", me).decode() == me)
        if not mine:
            self._release(name)
        return mine

    def finish(self, name: str, *problems: str) -> None:
        """Record that `name` is done, or that it failed."""
        self.store.set(f"result/{name}", json.dumps(problems))
        self._release(name)

    def is_finished(self, name: str) -> bool:
        """Whether `name` is done or has failed."""
        return bool(self.store.check([f"result/{name}"]))

    def results(self, names: Sequence[str]) -> dict[str, list[str]]:
        """The problems of each name, empty if it is done. Waits until all processes have finished."""
        told = time.monotonic()
        while waiting := [name for name in names if not self.is_finished(name)]:
            if time.monotonic() - told > TELL_SECONDS:
                told = time.monotonic()
                logger.info("waiting for other processes, for %s", first_few(waiting))
            time.sleep(POLL_SECONDS)
        return {name: json.loads(self.store.get(f"result/{name}")) for name in names}

    def hold(self, name: str) -> None:
        """Record that this process is about to work on `name`, which might kill it."""
        with self._lock:
            self._kept = [kept for kept in self._kept if kept != name]
            self._busy.append(name)
            self._tell()

    def put_off(self, name: str) -> None:
        """Record that this process will work on `name` later."""
        with self._lock:
            self._busy = [busy for busy in self._busy if busy != name]
            self._kept.append(name)
            self._tell()

    def leave(self) -> None:
        """Record that this process ends normally. The first one waits a little, because it may hold the store."""
        self._tell(ended=True)
        self.store.set(f"left/{self.world.rank}", "")
        deadline = time.monotonic() + END_SECONDS
        while self.world.first and time.monotonic() < deadline:
            if self.store.check([f"left/{rank}" for rank in range(self.world.size)]):
                return
            time.sleep(POLL_SECONDS)

    def ended(self, code: int | None = None) -> int | None:
        """Record or return the overall exit code: torchrun may restart processes after a code other than 0."""
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
    """Connect to the store. If processes fail or are ended, the first reports why, and the others end silently.

    Raises:
        ModelError: the store could not be reached.
        SystemExit: another process has reported why it ended.
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
    while isinstance(store, dist.PrefixStore):  # torchrun's prefix changes after a restart
        store = store.underlying_store
    cases = SharedCases(world=world, store=dist.PrefixStore(PREFIX, store))
    try:
        yield cases
    except GeneratorExit:
        raise
    except BaseException as error:
        with contextlib.suppress(dist.DistError):  # the launcher, which holds the store, may be gone
            cases._tell(ended=True)
            if cases.claim(f"{REPORT}/{world.restarts}"):
                raise
        raise SystemExit(2) from error
    cases.leave()
