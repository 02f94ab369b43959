"""What stands beside a data set's preprocessed arrays: its description, where its raw data are, and its folds."""

import logging
from pathlib import Path

from masam_auto.core.dataset import Dataset
from masam_auto.core.jsonio import read_plain, write_bytes, write_json
from masam_auto.core.splits import make_splits, read_splits, write_splits

logger = logging.getLogger(__name__)

RAW_DATA_NAME = "raw_data.json"


def write_companions(dataset: Dataset, folder: Path) -> None:
    """Write dataset.json, raw_data.json and, unless it is there already, splits.json.

    Folds come from the raw folder's splits.json where there is one. Folds that are there stay, because trained models
    rest on them; cases that stand in none are announced.

    Args:
        dataset: the raw data set.
        folder: preprocessed/DatasetXXX_Name.

    Raises:
        PlanError: the splits.json that is there, or in the raw folder, does not fit the data set.
        OutputError: the folder is not writable or the disk is full.
    """
    write_json(folder / "dataset.json", dataset.description.raw)
    write_json(folder / RAW_DATA_NAME, {"folder": str(dataset.folder.absolute())})
    path = folder / "splits.json"
    given = dataset.folder / "splits.json"
    identifiers = [case.identifier for case in dataset.cases]
    if given.is_file():
        read_splits(given, dataset.cases)  # refuses what does not fit, before it is copied
        if not path.is_file():
            write_bytes(path, given.read_bytes())
            logger.info("folds: those of %s", given)
        elif read_plain(path, what="splits file") != read_plain(given, what="splits file"):
            logger.warning("warning: %s has other folds than %s, and stays. Remove it to take those.", path, given)
    elif not path.is_file():
        write_splits(path, make_splits(identifiers), dataset.cases)
    known = {name for split in read_splits(path, dataset.cases) for name in (*split.train, *split.val)}
    if new := [name for name in identifiers if name not in known]:
        logger.warning(
            "%s of %s cases stand in no fold of %s (%s): left out of the folds, or added after they were made. They are preprocessed, but "
            "only fold `all` learns from them. Put them into the file, or remove it to make new folds for new trainings.",
            len(new), len(identifiers), path, ", ".join(new[:5]),
        )  # fmt: skip
