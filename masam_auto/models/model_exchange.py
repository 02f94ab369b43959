"""Put new models among the trained ones of a data set: all of them, or none."""

import contextlib
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

from masam_auto.core.atomic import scratch_folder, take_places

logger = logging.getLogger(__name__)

EXCHANGE = ".exchange"  # not an ordinary temporary folder, because it may hold the replaced models


@contextlib.contextmanager
def new_models(dataset: Path) -> Iterator[Path]:
    """Give an empty folder. When the block ends, its content moves to `dataset` and replaces what is there.

    The caller must hold the claim on the data set's models. Remains of a killed process are restored first.

    Args:
        dataset: results/DatasetXXX_Name.

    Raises:
        OutputError: it cannot be written; nothing has changed.
    """
    bring_back(dataset)
    shutil.rmtree(dataset / EXCHANGE, ignore_errors=True)
    with scratch_folder(dataset / EXCHANGE) as scratch:
        new, old = scratch / "new", scratch / "old"
        new.mkdir()
        old.mkdir()
        yield new
        take_places((path, dataset / path.name, old / path.name) for path in sorted(new.iterdir()))


def bring_back(dataset: Path) -> None:
    """Move models back that a process had moved aside before it was killed."""
    # earlier versions moved them to a folder whose name began with .partial-
    for left in sorted(path for pattern in (EXCHANGE, ".partial-*") for path in dataset.glob(f"{pattern}/old/*")):
        if not (dataset / left.name).exists():
            logger.warning("%s: restored, because an installation had been killed", dataset / left.name)
            left.rename(dataset / left.name)
