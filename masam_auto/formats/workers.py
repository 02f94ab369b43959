"""The number of worker processes for a set of image files, if the user gives none."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from masam_auto.compute.parallel import Workers, choose_workers
from masam_auto.core.errors import MasamError
from masam_auto.formats.io import read_geometry

FILES_LOOKED_AT = 10
FEW_VOXELS = 5e7  # one process handles these in about the time that workers need to start (measured: 4 s)

Asked = TypeVar("Asked", bound=Workers)


def workers_for(files: Sequence[Path], *, bytes_per_voxel: float, asked: Asked | None) -> Asked | int:
    """Worker processes for cases of one file each, by cores and free memory; 0 if starting them takes longer.

    Args:
        files: one image per case; the headers of a few give the size of a case.
        bytes_per_voxel: a worker's peak memory per voxel of the file.
        asked: the user's choice, used as it is.
    """
    if asked is not None:
        return asked
    try:
        sizes = [
            math.prod(read_geometry(file).shape) for file in files[:: max(1, math.ceil(len(files) / FILES_LOOKED_AT))]
        ]
    except MasamError:
        return 0  # processing will report the bad file
    if not sizes:
        return 0
    quick = sum(sizes) / len(sizes) * len(files) < FEW_VOXELS
    return choose_workers(len(files), bytes_each=bytes_per_voxel * max(sizes), quick=quick)
