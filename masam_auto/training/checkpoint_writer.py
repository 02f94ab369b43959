"""Checkpoints written by a thread while training goes on."""

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch

from masam_auto.models.checkpoint import Checkpoint, save_checkpoint

logger = logging.getLogger(__name__)

# Within an epoch a checkpoint is written so often, or as seldom as it takes not to cost more than this share of the
# time.
SAVE_SECONDS, SAVE_SHARE = 300.0, 0.01


class CheckpointWriter:
    """Copies a checkpoint to the host's memory and writes the copy in a thread, one at a time.

    Training stands still for the copy only: for vit_b 0.3 s of 2.4 s (documentation/log.md, 2026-11-21).
    """

    def __init__(self, fold_folder: Path, thread: ThreadPoolExecutor) -> None:
        """Write into the folder of a fold; `thread` runs one job at a time."""
        self.fold_folder, self.thread = fold_folder, thread
        self.under_way: Future[float] | None = None
        self.saved, self.cost = time.perf_counter(), 0.0

    def is_due(self) -> bool:
        """Whether the last checkpoint, or the beginning, is so long ago that much would be lost with this process."""
        written = self.under_way is None or self.under_way.done()
        return written and time.perf_counter() - self.saved >= max(SAVE_SECONDS, self.cost / SAVE_SHARE)

    def save(self, checkpoint: Checkpoint, *, best: bool) -> None:
        """Begin to write a checkpoint, once the one before is written; its tensors may change from now on.

        Raises:
            OutputError: the one before could not be written.
        """
        self.finish()
        self.saved = time.perf_counter()
        copied = _copied(checkpoint)
        self.cost = time.perf_counter() - self.saved
        self.under_way = self.thread.submit(_timed_save, self.fold_folder, copied, best=best)

    def finish(self) -> None:
        """Wait until all is written. Raises OutputError where it could not be."""
        under_way, self.under_way = self.under_way, None
        if under_way is not None:
            self.cost += under_way.result()


@contextlib.contextmanager
def open_writer(fold_folder: Path) -> Iterator[CheckpointWriter]:
    """A writer that has written all when the block ends, however it ends.

    Raises:
        OutputError: the last one could not be written. Where the block ends with an error, this one is only logged.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint") as thread:
        writer = CheckpointWriter(fold_folder, thread)
        try:
            yield writer
        except BaseException:
            try:
                writer.finish()
            except Exception as error:  # the error that ended the block is the one to raise
                logger.error("%s", error)
            raise
        writer.finish()


def _timed_save(fold_folder: Path, checkpoint: Checkpoint, *, best: bool) -> float:
    """Write a checkpoint, and tell the seconds that it took."""
    started = time.perf_counter()
    save_checkpoint(fold_folder, checkpoint, best=best)
    return time.perf_counter() - started


def _copied(checkpoint: Checkpoint) -> Checkpoint:
    return replace(
        checkpoint,
        model=_copies(checkpoint.model),
        weights=_copies(checkpoint.weights),
        optimizers=tuple({at: _copies(entry) for at, entry in states.items()} for states in checkpoint.optimizers),
    )


def _copies(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
