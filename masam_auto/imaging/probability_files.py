"""Files of class probabilities: compressed .npz, read with numpy alone and without unpickling."""

import contextlib
import json
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from masam_auto.core.errors import ImageError
from masam_auto.core.geometry import Box, Geometry
from masam_auto.core.jsonio import atomic_path, decode, to_plain

ENDING = ".npz"
BLOCK = 1 << 24  # bytes compressed at a time


@dataclass(frozen=True, kw_only=True, slots=True)
class Probabilities:
    """What a file holds.

    `values` are (K, z, y, x) float16 on the image's own grid, of the box `crop` of it; outside the box there is background
    only. `outputs` are the names of the K: "background" and the classes, or, with `has_regions`, the regions.
    """

    values: np.ndarray
    crop: Box
    geometry: Geometry
    outputs: tuple[str, ...]
    has_regions: bool


@contextlib.contextmanager
def new_probabilities(
    path: Path, *, crop: Box, geometry: Geometry, outputs: tuple[str, ...], has_regions: bool
) -> Iterator[np.ndarray]:
    """Give an array (K, z, y, x) float16 of zeros to fill, and write it to `path` when the block ends without an error.

    The array lies in a temporary file beside `path`, so that memory holds only what is being worked on.

    Args:
        path: the .npz file.
        crop, geometry, outputs, has_regions: see `Probabilities`.

    Raises:
        OutputError: no space or no permission; what was there is kept.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (len(outputs), *(high - low for low, high in crop))
    facts: dict[str, Any] = {
        "crop": np.asarray(crop, np.int64),
        "geometry": np.asarray(json.dumps(to_plain(geometry))),
        "outputs": np.asarray(outputs),
        "has_regions": np.asarray(has_regions),
    }
    with atomic_path(path) as temporary, tempfile.TemporaryDirectory(dir=path.parent, prefix=".partial-") as folder:
        raw = Path(folder) / "probabilities.npy"
        values = np.lib.format.open_memmap(raw, mode="w+", dtype=np.float16, shape=shape)
        yield values
        values.flush()
        del values
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            with raw.open("rb") as source, archive.open("probabilities.npy", "w", force_zip64=True) as target:
                while block := source.read(BLOCK):
                    target.write(block)
            for name, value in facts.items():
                with archive.open(f"{name}.npy", "w") as target:
                    np.lib.format.write_array(target, value, allow_pickle=False)


def read_probabilities(path: Path) -> Probabilities:
    """Read one file.

    Raises:
        ImageError: it is missing, damaged or something else.
    """
    try:
        with np.load(path, allow_pickle=False) as found:
            first, second, third = ((low, high) for low, high in found["crop"].tolist())
            return Probabilities(
                values=found["probabilities"],
                crop=(first, second, third),
                geometry=decode(json.loads(str(found["geometry"])), Geometry, where=str(path)),
                outputs=tuple(found["outputs"].tolist()),
                has_regions=bool(found["has_regions"]),
            )
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ImageError(
            f"{path}: cannot be read as probabilities ({error}). Write it again: masam_train ... --val --save_probabilities"
        ) from error
