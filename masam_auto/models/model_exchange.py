"""New models take their places among the trained ones of a data set: all of them, or none."""

import contextlib
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from masam_auto.core.jsonio import scratch_folder

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
        exchange(sorted(path.name for path in new.iterdir()), dataset, new, old)


def exchange(names: Sequence[str], target: Path, new: Path, old: Path) -> None:
    """Move entries of `new` into `target`, those that are there to `old`; all of them, or none when that fails.

    Args:
        names: files and folders in `new`.
        target, new, old: folders of one file system.
    """
    moved: list[tuple[Path, Path]] = []
    try:
        for name in names:
            steps = [(target / name, old / name)] if (target / name).exists() else []
            for source, place in (*steps, (new / name, target / name)):
                moved.append((source, place))  # before: a signal may come when it has just been done
                source.rename(place)
    except BaseException:
        for source, place in reversed(moved):
            if place.exists() and not source.exists():
                place.rename(source)
        raise


def bring_back(dataset: Path) -> None:
    """Put models back that a killed process had moved aside before the new ones took their places."""
    # former versions moved them to a folder whose name began with .partial-
    for left in sorted(path for pattern in (EXCHANGE, ".partial-*") for path in dataset.glob(f"{pattern}/old/*")):
        if not (dataset / left.name).exists():
            logger.warning("%s: brought back, an installation was killed", dataset / left.name)
            left.rename(dataset / left.name)
