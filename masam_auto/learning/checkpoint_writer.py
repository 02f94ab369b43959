"""Checkpoints written by a thread while training goes on."""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch

from masam_auto.learning.checkpoint import Checkpoint, save_checkpoint

logger = logging.getLogger(__name__)


class CheckpointWriter:
    """Copies a checkpoint to the host's memory and writes the copy in a thread, one at a time.

    Training stands still for the copy only: for vit_b 0.3 s of 2.4 s (documentation/decisions.md, 2026-11-21).
    """

    def __init__(self, fold_folder: Path, thread: ThreadPoolExecutor) -> None:
        """Write into the folder of a fold; `thread` runs one job at a time."""
        self.fold_folder, self.thread = fold_folder, thread
        self.under_way: Future[None] | None = None

    def save(self, checkpoint: Checkpoint, *, best: bool) -> None:
        """Begin to write a checkpoint, once the one before is written; its tensors may change from now on.

        Raises:
            OutputError: the one before could not be written.
        """
        self.finish()
        self.under_way = self.thread.submit(save_checkpoint, self.fold_folder, _copied(checkpoint), best=best)

    def finish(self) -> None:
        """Wait until all is written. Raises OutputError where it could not be."""
        under_way, self.under_way = self.under_way, None
        if under_way is not None:
            under_way.result()


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


def _copied(checkpoint: Checkpoint) -> Checkpoint:
    return replace(
        checkpoint,
        model=_copies(checkpoint.model),
        weights=_copies(checkpoint.weights),
        optimizers=tuple({at: _copies(entry) for at, entry in states.items()} for states in checkpoint.optimizers),
    )


def _copies(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
