"""New models take their places among the trained ones of a data set: all of them, or none."""

import contextlib
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

from masam_auto.core.atomic import scratch_folder, take_places

logger = logging.getLogger(__name__)

EXCHANGE = ".exchange"  # has a name of its own, because what was there before may lie in it


@contextlib.contextmanager
def new_models(dataset: Path) -> Iterator[Path]:
    """Give an empty folder; what is in it when the block ends takes its place in `dataset`, instead of what is there.

    Whoever calls holds the claim on the data set's models. What a killed process left is put right first.

    Args:
        dataset: results/DatasetXXX_Name.

    Raises:
        OutputError: it cannot be written; everything is as it was.
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
    """Put models back that a killed process had moved aside before the new ones took their places."""
    # former versions moved them to a folder whose name began with .partial-
    for left in sorted(path for pattern in (EXCHANGE, ".partial-*") for path in dataset.glob(f"{pattern}/old/*")):
        if not (dataset / left.name).exists():
            logger.warning("%s: brought back, an installation was killed", dataset / left.name)
            left.rename(dataset / left.name)
