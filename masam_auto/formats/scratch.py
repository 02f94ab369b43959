"""Arrays that may be larger than the memory."""

import contextlib
import errno
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from masam_auto.compute.machine import free_memory
from masam_auto.core.atomic import NO_SPACE
from masam_auto.core.errors import OutputError

MEMORY_SHARE = 0.25  # of the free memory that one array may take; images, networks and other cases need the rest


@contextlib.contextmanager
def scratch_array(shape: tuple[int, ...], *, memory_share: float = MEMORY_SHARE) -> Iterator[np.ndarray]:
    """Give an array of float16 zeros: in memory where it is small, else in a temporary file (TMPDIR says where).

    The file has no name, so that the system takes its space back whatever becomes of the process.

    Args:
        shape: of the array.
        memory_share: of the free memory; larger arrays go to the file.

    Raises:
        OutputError: the disk of the temporary files has no space for it.
    """
    size = 2 * math.prod(shape)
    if size <= memory_share * free_memory():
        yield np.zeros(shape, dtype=np.float16)
        return
    folder = Path(tempfile.gettempdir())
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            reserve(file, size, folder)
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            free = shutil.disk_usage(folder).free
            raise OutputError(
                f"averaging probabilities needs {size / 2**30:.1f} GiB in {folder}, where {free / 2**30:.1f} GiB "
                "are free. Set TMPDIR to a folder on a larger disk, or average fewer models (in memory: models of one "
                "slice axis)."
            ) from error
        yield np.memmap(file, dtype=np.float16, mode="r+", shape=shape)


def reserve(file: IO[bytes], size: int, folder: Path) -> None:
    """Give an empty file its bytes on the disk, all zero, before any is written through memory.

    Writing to a mapped file for which the disk has no space would end the process without a word.

    Args:
        file: open for writing.
        size: bytes.
        folder: which it lies in.

    Raises:
        OSError: the disk or the quota has no space for it.
    """
    if shutil.disk_usage(folder).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    file.truncate(size)
    if hasattr(os, "posix_fallocate"):  # also where several processes see the same free space, or a quota is less
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno in NO_SPACE:  # some file systems know no such thing
                raise
