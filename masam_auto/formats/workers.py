"""How many worker processes go through a set of image files, where the user does not say."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from masam_auto.compute.parallel import Workers, choose_workers
from masam_auto.core.errors import MasamError
from masam_auto.formats.io import read_geometry

FILES_LOOKED_AT = 10
FEW_VOXELS = 5e7  # one process goes through so many in about the time in which workers start (measured: 4 s)

Asked = TypeVar("Asked", bound=Workers)


def workers_for(files: Sequence[Path], *, bytes_per_voxel: float, asked: Asked | None) -> Asked | int:
    """Worker processes for cases, one file each, by cores and free memory; none where starting them takes longer.

    Args:
        files: one image of each case; the headers of a few tell the size of a case.
        bytes_per_voxel: what a worker holds at its peak, for each voxel of the file.
        asked: what the user said; taken as it is.
    """
    if asked is not None:
        return asked
    try:
        sizes = [
            math.prod(read_geometry(file).shape) for file in files[:: max(1, math.ceil(len(files) / FILES_LOOKED_AT))]
        ]
    except MasamError:
        return 0  # the work itself will report the file
    if not sizes:
        return 0
    quick = sum(sizes) / len(sizes) * len(files) < FEW_VOXELS
    return choose_workers(len(files), bytes_each=bytes_per_voxel * max(sizes), quick=quick)
