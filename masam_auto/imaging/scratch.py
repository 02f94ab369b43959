"""Arrays that may be larger than the memory."""

import contextlib
import math
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil

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
    if size <= memory_share * psutil.virtual_memory().available:
        yield np.zeros(shape, dtype=np.float16)
        return
    folder = Path(tempfile.gettempdir())
    # writing to a mapped file on a full disk would end the process without a word
    if (free := shutil.disk_usage(folder).free) < size:
        raise OutputError(
            f"averaging probabilities needs {size / 2**30:.1f} GiB in {folder}, where {free / 2**30:.1f} GiB "
            "are free. Set TMPDIR to a folder on a larger disk, or average fewer models (in memory: models of one slice axis)."
        )
    with tempfile.TemporaryFile(dir=folder) as file:
        yield np.memmap(file, dtype=np.float16, mode="w+", shape=shape)
