"""Arrays that may be larger than memory."""

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

MEMORY_SHARE = 0.25  # of the free memory, for one array; images, networks and other cases need the rest


@contextlib.contextmanager
def scratch_array(shape: tuple[int, ...], *, memory_share: float = MEMORY_SHARE) -> Iterator[np.ndarray]:
    """Give a float16 array of zeros: in memory if small, else in a temporary file (set TMPDIR to choose its folder).

    The file has no name, so the system frees its space however the process ends.

    Args:
        shape: of the array.
        memory_share: of the free memory; larger arrays go to a file.

    Raises:
        OutputError: the disk of the temporary files has not enough space.
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
                f"averaging probabilities needs {size / 2**30:.1f} GiB in {folder}, but only {free / 2**30:.1f} GiB "
                "are free. Set TMPDIR to a folder on a larger disk, or average fewer models (in memory: models of one "
                "slice axis)."
            ) from error
        yield np.memmap(file, dtype=np.float16, mode="r+", shape=shape)


def reserve(file: IO[bytes], size: int, folder: Path) -> None:
    """Reserve disk space for an empty file and fill it with zeros, before it is written through memory.

    Writing to a mapped file on a full disk would end the process without a message.

    Args:
        file: open for writing.
        size: bytes.
        folder: the file's folder.

    Raises:
        OSError: the disk or the quota has not enough space.
    """
    if shutil.disk_usage(folder).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    file.truncate(size)
    if hasattr(os, "posix_fallocate"):  # also notices quotas, and other processes that use the same free space
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno in NO_SPACE:  # other errors: some file systems do not support this
                raise
