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
# How often a waiting training looks whether its workers live, and how long it waits for the thread that reads them.
LOOK_SECONDS, LEAVE_SECONDS = 0.5, 2.0
# How often workers and that thread, while they wait, look whether they are to end. An item ends the waiting at once; at
# 0.002 s eight idle workers took a seventh of a core.
IDLE_SECONDS = 0.1


class BatchLoader:
    """Makes batch after batch; what batchgenerators' augmenters draw from.

    Batch `number` counts this process's batches from the start of training. Of several workers, the one called `thread`
    makes every `workers`-th batch. A failure travels to the training process as an item of its own.
    """

    def __init__(
        self, store: CaseStore, sampling: Sampling, *, share: Share, per_epoch: int, first: int, workers: int
    ) -> None:
        """Start at batch `first`; `per_epoch` batches of this process make an epoch."""
        self.store, self.sampling = store, sampling
        self.share, self.per_epoch = share, per_epoch
        self.next_number, self.step = first, max(workers, 1)

    def set_thread_id(self, thread: int) -> None:
        """Called by batchgenerators in the worker process: take its share, one thread, and end with the parent.

        Signals to the process group are the parent's business; a worker that they ended could leave half a batch in
        its pipe, which nobody can read past.
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

        The kind is "mendable" for what a MasamError said, "memory" or "bug" for a traceback.
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
    """Windows `first` to `first + size` of an epoch, with their boxes (B, N, 4) where the sampling has them.

    Numpy arrays, because they need no shared memory to travel.
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
    """A batch's arrays as tensors; to a CUDA GPU through pinned memory, so that nothing waits for the copy."""
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
        first = next(batches)  # so that the start of the workers is not taken for waiting
        yield itertools.chain([first], batches)
    finally:
        if augmenter is not None:
            _leave(augmenter)


def cache_memory(workers: int) -> float:
    """Bytes of preprocessed arrays that each process may keep in memory: a quarter of what is free, between them."""
    return CACHE_SHARE * free_memory() / max(workers, 1)


def _checked(source: Iterator[dict[str, Any]]) -> Iterator[dict[str, np.ndarray]]:
    while True:
        try:
            batch = next(source)
        except RuntimeError as error:
            raise RuntimeError(
                "a process that prepares windows died, most often for want of memory. "
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
    """The augmenter's batches in order. Its own iterator, once a worker died, reads pipes that may never answer."""
    while True:
        try:
            yield augmenter.pin_memory_queue.get(timeout=LOOK_SECONDS)
        except queue.Empty:
            if not all(process.is_alive() for process in augmenter._processes):
                raise RuntimeError("a worker process died") from None


def _leave(augmenter: MultiThreadedAugmenter) -> None:
    """Stop workers without reading what they still send. They write no files, so that killing them harms nothing.

    Source: stands for batchgenerators' `_finish`, which empties the pipes and waits for ever at half a message.
    """
    augmenter.abort_event.set()
    if augmenter.pin_memory_thread is not None:
        augmenter.pin_memory_thread.join(timeout=LEAVE_SECONDS)
    for process in augmenter._processes:
        process.kill()
    for process in augmenter._processes:
        process.join()
    augmenter._processes, augmenter._queues = [], []
    augmenter.was_initialized = False  # so that its destructor finds nothing left to do


@contextlib.contextmanager
def _signals_later() -> Iterator[None]:
    """Hold back the signals that end a program. Processes started meanwhile never get them, while still importing."""
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
