"""Batches of windows, prepared in this process or by worker processes, in the same order either way."""

import contextlib
import itertools
import multiprocessing
import queue
import signal
import traceback
from collections.abc import Iterator, Mapping
from typing import Any, Self

import numpy as np
import torch
from batchgenerators.dataloading.multi_threaded_augmenter import MultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter

from masam_auto.compute.distributed import Share
from masam_auto.compute.interruption import STOP_SIGNALS
from masam_auto.compute.machine import free_memory
from masam_auto.compute.parallel import end_with_parent, is_out_of_memory
from masam_auto.core.errors import MasamError, ModelError
from masam_auto.training.sampling import CaseStore, Sampling, make_boxes, make_window

CACHE_SHARE = 0.25
# How often a waiting training checks that its workers are alive, and how long it waits for the thread that reads them.
LOOK_SECONDS, LEAVE_SECONDS = 0.5, 2.0
# How often waiting workers and that thread check whether to stop. A new item ends the waiting at once. With 0.002 s,
# eight idle workers used a seventh of a core.
IDLE_SECONDS = 0.1


class BatchLoader:
    """Makes one batch after another for batchgenerators' augmenters.

    `number` counts the batches of this process from the start of training. With several workers, worker `thread` makes
    every `workers`-th batch. A failure is sent to the training process as an item.
    """

    def __init__(
        self, store: CaseStore, sampling: Sampling, *, share: Share, per_epoch: int, first: int, workers: int
    ) -> None:
        """Start at batch `first`; `per_epoch` batches of this process make an epoch."""
        self.store, self.sampling = store, sampling
        self.share, self.per_epoch = share, per_epoch
        self.next_number, self.step = first, max(workers, 1)

    def set_thread_id(self, thread: int) -> None:
        """Called by batchgenerators in the worker: take its share, use one thread, and end with the parent.

        Only the parent reacts to signals. A worker stopped by one could leave half a batch in its pipe, which would
        block the reader.
        """
        self.next_number += thread
        torch.set_num_threads(1)
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        end_with_parent()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> dict[str, Any]:
        """{"data": (B, N, C, H, W) float32, "target": (B, N, H, W) int16} or {"error": text, "kind": str}.

        With boxes also "boxes": (B, N, 4) float32, not-a-number for windows without one.

        The kind is "mendable" with the text of a MasamError, or "memory" or "bug" with a traceback.
        """
        epoch, within = divmod(self.next_number, self.per_epoch)
        self.next_number += self.step
        try:
            return make_batch(self.store, self.sampling, epoch, self.share.first_window(within), self.share.windows)
        except MasamError as error:
            return {"error": str(error), "kind": "mendable"}
        except Exception as error:  # its traceback must cross the process boundary as text
            return {"error": traceback.format_exc(), "kind": "memory" if is_out_of_memory(error) else "bug"}


def make_batch(store: CaseStore, sampling: Sampling, epoch: int, first: int, size: int) -> dict[str, Any]:
    """Windows `first` to `first + size` of an epoch, with boxes (B, N, 4) if the sampling has them.

    As numpy arrays, because they can be sent without shared memory.
    """
    windows = [make_window(store, sampling, epoch, first + place) for place in range(size)]
    batch = {
        "data": np.stack([image.numpy() for image, _ in windows]),
        "target": np.stack([labels.numpy() for _, labels in windows]),
    }
    if sampling.boxes is not None:
        drawn = [make_boxes(labels, sampling, epoch, first + place) for place, (_, labels) in enumerate(windows)]
        batch["boxes"] = np.stack(drawn)
    return batch


def on_device(batch: Mapping[str, np.ndarray], device: torch.device) -> dict[str, torch.Tensor]:
    """A batch's arrays as tensors; to a CUDA GPU through pinned memory, so the copy does not block."""
    tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
    if device.type == "cuda":
        return {name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in tensors.items()}
    return {name: tensor.to(device) for name, tensor in tensors.items()}


@contextlib.contextmanager
def open_batches(loader: BatchLoader, workers: int) -> Iterator[Iterator[dict[str, np.ndarray]]]:
    """Iterate over a loader's batches, in `workers` processes or, with 0, in this one.

    Raises (while iterating):
        MasamError: a case could not be read.
        MemoryError: preparing a window needed more memory than there is.
        RuntimeError: a bug in a worker, with its traceback, or a worker that was killed.
    """
    if workers == 0:
        yield _checked(SingleThreadedAugmenter(loader, None))
        return
    augmenter = None
    try:
        with _spawning():
            augmenter = MultiThreadedAugmenter(loader, None, num_processes=workers, wait_time=IDLE_SECONDS)
            with _signals_later():
                augmenter.restart()
        batches = _checked(_received(augmenter))
        first = next(batches)  # so that starting the workers does not count as waiting
        yield itertools.chain([first], batches)
    finally:
        if augmenter is not None:
            _leave(augmenter)


def cache_memory(workers: int) -> float:
    """Bytes of preprocessed arrays that each process may keep: together, a quarter of the free memory."""
    return CACHE_SHARE * free_memory() / max(workers, 1)


def _checked(source: Iterator[dict[str, Any]]) -> Iterator[dict[str, np.ndarray]]:
    while True:
        try:
            batch = next(source)
        except RuntimeError as error:
            raise RuntimeError(
                "a process that prepares windows died, usually because memory ran out. "
                "Try fewer workers, or `workers=0` to prepare them in the training process."
            ) from error
        if "error" in batch:
            if batch["kind"] == "mendable":
                raise ModelError(batch["error"])
            if batch["kind"] == "memory":
                raise MemoryError("preparing training windows") from RuntimeError(batch["error"])
            raise RuntimeError(f"preparing training windows failed:\n{batch['error']}")
        yield batch


def _received(augmenter: MultiThreadedAugmenter) -> Iterator[dict[str, Any]]:
    """The augmenter's batches in order. Its own iterator would wait for ever if a worker died."""
    while True:
        try:
            yield augmenter.pin_memory_queue.get(timeout=LOOK_SECONDS)
        except queue.Empty:
            if not all(process.is_alive() for process in augmenter._processes):
                raise RuntimeError("a worker process died") from None


def _leave(augmenter: MultiThreadedAugmenter) -> None:
    """Stop workers without reading what they still send. They write no files, so killing them is safe.

    Source: replaces batchgenerators' `_finish`, which empties the pipes and waits for ever at half a message.
    """
    augmenter.abort_event.set()
    if augmenter.pin_memory_thread is not None:
        augmenter.pin_memory_thread.join(timeout=LEAVE_SECONDS)
    for process in augmenter._processes:
        process.kill()
    for process in augmenter._processes:
        process.join()
    augmenter._processes, augmenter._queues = [], []
    augmenter.was_initialized = False  # so that its destructor does nothing


@contextlib.contextmanager
def _signals_later() -> Iterator[None]:
    """Block the signals that end a program, so that processes started meanwhile do not get them during imports."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows, where signals are not sent to process groups
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _spawning() -> Iterator[None]:
    """Let batchgenerators start fresh processes: forking a process with running threads can hang."""
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("spawn", force=True)
    try:
        yield
    finally:
        multiprocessing.set_start_method(before, force=True)
