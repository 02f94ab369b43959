"""Write checkpoints in a thread while training continues."""

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

# How often a checkpoint is written within an epoch; less often if it would cost more than this share of the time.
SAVE_SECONDS, SAVE_SHARE = 300.0, 0.01


class CheckpointWriter:
    """Copies a checkpoint to the host's memory and writes the copy in a thread, one at a time.

    Training stops only for the copy: for vit_b 0.3 s of 2.4 s (documentation/log.md, 2026-11-21).
    """

    def __init__(self, fold_folder: Path, thread: ThreadPoolExecutor) -> None:
        """Write into the folder of a fold; `thread` runs one job at a time."""
        self.fold_folder, self.thread = fold_folder, thread
        self.under_way: Future[float] | None = None
        self.saved, self.cost = time.perf_counter(), 0.0

    def is_due(self) -> bool:
        """Whether the last checkpoint, or the beginning, is long enough ago to write another."""
        written = self.under_way is None or self.under_way.done()
        return written and time.perf_counter() - self.saved >= max(SAVE_SECONDS, self.cost / SAVE_SHARE)

    def save(self, checkpoint: Checkpoint, *, best: bool) -> None:
        """Start writing a checkpoint once the previous one is written. The tensors may change after this call.

        Raises:
            OutputError: the previous one could not be written.
        """
        self.finish()
        self.saved = time.perf_counter()
        copied = _copied(checkpoint)
        self.cost = time.perf_counter() - self.saved
        self.under_way = self.thread.submit(_timed_save, self.fold_folder, copied, best=best)

    def finish(self) -> None:
        """Wait until everything is written. Raises OutputError if that failed."""
        under_way, self.under_way = self.under_way, None
        if under_way is not None:
            self.cost += under_way.result()


@contextlib.contextmanager
def open_writer(fold_folder: Path) -> Iterator[CheckpointWriter]:
    """A writer that has written everything when the block ends, even with an error.

    Raises:
        OutputError: the last checkpoint could not be written. If the block ends with an error, this is only logged.
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
