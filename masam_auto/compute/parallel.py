"""Process cases in parallel, in a small process pool or on a cluster. Failures name the case."""

import contextlib
import functools
import logging
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Protocol, TypeVar

from masam_auto.compute.cluster import Cluster, run_on_cluster
from masam_auto.compute.machine import available_cores, free_memory
from masam_auto.core.errors import CaseErrors, MasamError, OutputError
from masam_auto.core.log import LOGGER_NAME, progress
from masam_auto.core.plugins import use_plugins

Item = TypeVar("Item")
Result = TypeVar("Result")

Workers = int | Cluster
"""Where cases are processed: 0 for this process, a number of processes of this machine, or a cluster."""

WORKER_BYTES = 400e6  # of a worker that has read nothing yet: mostly torch
MEMORY_SHARE = 0.7  # of the free memory, for all workers together
ALLOCATOR_FAILURES = ("DefaultCPUAllocator", "std::bad_alloc")


class Executor(Protocol):
    """Goes through items in one of the ways of `Workers`."""

    def __call__(
        self,
        function: Callable[[Item], tuple[Any, str | None]],
        items: Sequence[Item],
        *,
        names: Sequence[str],
        what: str,
        folders: Sequence[Path],
    ) -> Generator[tuple[int, Any, str | None]]:
        """Yield each item's index, result and problem, as they finish."""
        ...


def map_cases(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    names: Sequence[str],
    what: str,
    workers: Workers,
    folders: Sequence[Path] = (),
) -> list[Result]:
    """Apply a function to every item, in worker processes, and return the results in order.

    All items are tried. Problems that users can fix (MasamError) are collected and raised together. Only a result that
    cannot be written stops it at once, because the next one could not be written either.

    Args:
        function: importable (top-level) function of one picklable item.
        items: what to go through.
        names: one name an item, for messages.
        what: what is being done ("preprocessing"), for messages and the progress bar.
        workers: number of processes, 0 for this one, or a cluster.
        folders: what the function reads and writes; workers on other machines must see them.

    Raises:
        CaseErrors: some items failed with a MasamError.
        MasamError: the cluster cannot be used, see `compute.cluster`.
        OutputError: a result could not be written.
        MemoryError: an item needed more memory than is available; the message names it, the cause has the traceback.
        RuntimeError: an item failed with a bug (name and worker's traceback inside) or a worker died, most often
            because memory ran out.

    Example:
        >>> from masam_auto.compute.parallel import map_cases
        >>> map_cases(abs, [-1, 2, -3], names=["a", "b", "c"], what="counting", workers=0)
        [1, 2, 3]
    """
    results: dict[int, Result] = {}
    problems: dict[int, str] = {}
    guarded = functools.partial(_guarded, function)
    # Closed at once after an error: the garbage collector would do it at some random moment, and closing a cluster
    # client while another one starts hangs forever.
    with contextlib.closing(_executor(workers)(guarded, items, names=names, what=what, folders=folders)) as outcomes:
        for index, result, problem in progress(outcomes, what=what, total=len(items)):
            if isinstance(problem, _OutOfMemory):
                raise MemoryError(f"{what} of {names[index]}") from RuntimeError(problem)
            if isinstance(problem, _Bug):
                raise RuntimeError(f"{what} failed for {names[index]}:\n{problem}")
            if isinstance(problem, _Unwritable):
                raise OutputError(str(problem))
            if problem is not None:
                problems[index] = problem
            else:
                results[index] = result
    if problems:
        raise CaseErrors([problems[i] for i in sorted(problems)], what=what)
    return [results[i] for i in range(len(items))]


def choose_workers(cases: int, *, bytes_each: float, quick: bool) -> int:
    """Number of workers if the user gives none: as many as cores and free memory allow.

    Args:
        cases: how many there are.
        bytes_each: peak memory for one case.
        quick: all cases together take less time than starting workers; then the result is 0.
    """
    if quick or cases < 2:
        return 0
    room = MEMORY_SHARE * free_memory() / (WORKER_BYTES + bytes_each)
    return max(1, min(cases, available_cores(), int(room)))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception, or its cause, means that memory ran out, in Python, numpy or torch.

    torch's allocators are recognised by name and message: the CPU one raises a plain RuntimeError, and using the class
    of the others would import torch.
    """
    cause: BaseException | None = error
    while cause is not None:
        plain = isinstance(cause, RuntimeError) and any(text in str(cause) for text in ALLOCATOR_FAILURES)
        if isinstance(cause, MemoryError) or type(cause).__name__ == "OutOfMemoryError" or plain:
            return True
        cause = cause.__cause__
    return False


def end_with_parent() -> None:
    """In a worker process: watch the parent from a thread, and end when the parent has ended, for any reason."""
    threading.Thread(target=_wait_for_parent, name="end with parent", daemon=True).start()


class _OutOfMemory(str):
    """A traceback from a worker that ran out of memory, as text."""


class _Bug(str):
    """A traceback from a worker, as text."""


class _Unwritable(str):
    """The message of an OutputError."""


def _guarded(function: Callable[[Item], Result], item: Item) -> tuple[Any, str | None]:
    try:
        return function(item), None
    except OutputError as error:
        return None, _Unwritable(error)
    except CaseErrors as error:
        return None, "; ".join(error.problems)
    except MasamError as error:
        return None, str(error)
    except Exception as error:  # its traceback must cross the process boundary as text
        return None, (_OutOfMemory if is_out_of_memory(error) else _Bug)(traceback.format_exc())


def _executor(workers: Workers) -> Executor:
    if isinstance(workers, Cluster):
        return functools.partial(run_on_cluster, workers)
    return functools.partial(_in_pool, workers) if workers else _in_process


def _in_process(
    function: Callable[[Item], tuple[Any, str | None]],
    items: Sequence[Item],
    *,
    names: Sequence[str],
    what: str,
    folders: Sequence[Path],
) -> Generator[tuple[int, Any, str | None]]:
    for index, item in enumerate(items):
        yield (index, *function(item))


def _quiet_worker() -> None:
    """Set up a worker: one compute thread, no handling of interrupts, end with the parent, load its plug-ins."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGUSR1"):  # batch systems send it to every process of a job
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    end_with_parent()
    os.environ["OMP_NUM_THREADS"] = "1"
    logging.getLogger(LOGGER_NAME).setLevel(logging.WARNING)
    use_plugins()  # those of the environment; now, because their functions may be sent here


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _in_pool(
    workers: int,
    function: Callable[[Item], tuple[Any, str | None]],
    items: Sequence[Item],
    *,
    names: Sequence[str],
    what: str,
    folders: Sequence[Path],
) -> Generator[tuple[int, Any, str | None]]:
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(max_workers=min(workers, len(items)) or 1, mp_context=context, initializer=_quiet_worker)
    try:
        futures = {pool.submit(function, item): index for index, item in enumerate(items)}
        for future in as_completed(futures):
            index = futures[future]
            try:
                yield (index, *future.result())
            except BrokenProcessPool as error:
                raise RuntimeError(
                    f"{what}: a worker process died while working on {names[index]} or on another case, most often "
                    "because memory ran out. Try fewer workers (`workers=1`) or `workers=0` to see the error in this "
                    "process."
                ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
