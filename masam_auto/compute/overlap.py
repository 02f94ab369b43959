"""A pipeline for cases: while one is processed, threads load the next ones and save the last ones.

It uses threads, not processes: decoders, numpy, torch and zlib let other threads run while they work, and arrays are
handed over without a copy. For measurements see documentation/log.md.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")
Made = TypeVar("Made")

SAVING_LIMIT = 2  # results waiting to be saved; each uses memory


@dataclass(frozen=True, kw_only=True, slots=True)
class Steps(Generic[Item, Loaded, Made]):
    """The steps for an item: `load` and `save` run in other threads, `work` in the caller's, one at a time."""

    load: Callable[[Item], Loaded]
    work: Callable[[Item, Loaded], Made]
    save: Callable[[Item, Made], None]


def overlap(
    items: Iterable[Item],
    steps: Steps[Item, Loaded, Made],
    *,
    threads: int,
    size: Callable[[Item], float],
    room: Callable[[], float],
) -> Generator[tuple[Item, Exception | None], None, None]:
    """Run items through the steps in order. For each, yield None once it is saved, or the error it failed with.

    At the end, also after an error, items being loaded are dropped, finished work is saved, and no thread is left. Wrap
    it in `contextlib.closing`, so that this happens at once if the caller raises.

    Args:
        items: taken one by one as there is room; one is taken ahead.
        steps: what to do with each item.
        threads: how many items may be loaded at the same time; as many again may wait.
        size: what an item needs once loaded, e.g. bytes; called in another thread.
        room: what is available now. Items are loaded at the same time only if all of them fit.
    """
    source = iter(items)
    loading: deque[tuple[Item, Future[float], Future[Loaded]]] = deque()
    saving: deque[tuple[Item, Future[None]]] = deque()
    readers, writer, measurer = (ThreadPoolExecutor(count) for count in (threads, 1, 1))

    def look_ahead() -> tuple[Item, Future[float]] | None:
        item = next(source, None)
        return None if item is None else (item, measurer.submit(size, item))

    def fits(needed: Future[float]) -> bool:
        return sum(found.result() for found in (needed, *(other for _, other, _ in loading))) <= room()

    try:
        ahead = look_ahead()
        while ahead or loading or saving:
            while ahead and (not (loading or saving) or (len(loading) < 2 * threads and fits(ahead[1]))):
                loading.append((*ahead, readers.submit(steps.load, ahead[0])))
                ahead = look_ahead()
            if loading:
                item, _, loaded = loading.popleft()
                error = _work(item, loaded, steps, writer, saving)
                del loaded
                if error is not None:
                    yield item, error
                    del error  # its traceback refers to the item's data
            while saving and (not loading or len(saving) > SAVING_LIMIT or saving[0][1].done()):
                item, future = saving.popleft()
                failure = future.exception()
                yield item, failure if isinstance(failure, Exception) else None
                del future, failure
    finally:
        for pool in (readers, measurer):
            pool.shutdown(wait=True, cancel_futures=True)
        writer.shutdown(wait=True)


def _work(
    item: Item,
    future: "Future[Loaded]",
    steps: Steps[Item, Loaded, Made],
    writer: ThreadPoolExecutor,
    saving: "deque[tuple[Item, Future[None]]]",
) -> Exception | None:
    """Work on what is loaded, and start saving it. Returns the error, if any."""
    try:
        saving.append((item, writer.submit(steps.save, item, steps.work(item, future.result()))))
    except Exception as error:
        return error
    return None
