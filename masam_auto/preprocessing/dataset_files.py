"""The files next to a data set's preprocessed arrays: its description, its raw folder, its folds and its plan."""

import contextlib
import itertools
import logging
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from masam_auto.core.atomic import write_bytes
from masam_auto.core.dataset import Case, Dataset
from masam_auto.core.errors import PlanError, first_few
from masam_auto.core.jsonio import read_json, read_plain, write_json
from masam_auto.core.paths import Paths
from masam_auto.core.patients import divided_patients, patients_of
from masam_auto.core.plan import Plan
from masam_auto.core.splits import make_splits, read_splits, write_splits

logger = logging.getLogger(__name__)

RAW_DATA_NAME = "raw_data.json"
SPLITS_NAME = "splits.json"
NNUNET_SPLITS_NAME = "splits_final.json"


def write_companions(dataset: Dataset, folder: Path, *, nnunet_preprocessed: Path | None = None) -> None:
    """Write dataset.json, raw_data.json and, if it does not exist yet, splits.json.

    An existing splits.json is kept, because trained models depend on it. Otherwise folds are copied from the first file
    found: splits.json or nnU-Net's splits_final.json in the raw folder, then splits_final.json in `folder` or in
    nnU-Net's preprocessed folder. Without such a file, new folds are made. Warns of files with other folds, of cases in
    no fold, and of patients with cases on both sides of a fold.

    Args:
        dataset: the raw data set.
        folder: preprocessed/DatasetXXX_Name.
        nnunet_preprocessed: nnU-Net's folder of preprocessed data sets, if there is one.

    Raises:
        PlanError: the existing folds, or those to be copied, do not fit the data set.
        DatasetError: patients.json has the wrong form.
        OutputError: the folder is not writable or the disk is full.
    """
    write_json(folder / "dataset.json", dataset.description.raw)
    write_json(folder / RAW_DATA_NAME, {"folder": str(dataset.folder.absolute())})
    path = folder / SPLITS_NAME
    identifiers = [case.identifier for case in dataset.cases]
    patients = patients_of(identifiers, dataset.folder)
    given = given_splits(dataset.folder, folder, nnunet_preprocessed)
    if path.is_file():
        warn_of_other_splits(path, given)
    elif fitting := _fitting(given, dataset):
        write_bytes(path, fitting[0].read_bytes())
        logger.info("folds: taken from %s", fitting[0])
        warn_of_other_splits(path, fitting[1:])
    else:
        write_splits(path, make_splits(identifiers, patients=patients), dataset.cases)
        if (number := len(set(patients.values()))) not in (1, len(identifiers)):
            logger.info(
                "folds: %d cases of %d patients (%s); the cases of a patient stay on one side of each fold",
                len(identifiers),
                number,
                _said(patients),
            )
    _warn_of_folds(path, dataset.cases, patients)


def _warn_of_folds(path: Path, cases: Sequence[Case], patients: Mapping[str, str]) -> None:
    """Warn if folds have a patient on both sides, and if cases are in no fold."""
    splits, identifiers = read_splits(path, cases), [case.identifier for case in cases]
    if divided := divided_patients(splits, patients):
        patient, (trained, validated) = next(iter(divided.items()))
        logger.warning(
            "warning: the folds of %s have %d of %d patients both in training and validation (%s: %s is trained on, %s "
            "is validated). Their Dice will be too high. Remove the file to make folds by patient.",
            path,
            len(divided),
            len(set(patients.values())),
            patient,
            trained,
            validated,
        )
    known = {name for split in splits for name in (*split.train, *split.val)}
    if new := [name for name in identifiers if name not in known]:
        logger.warning(
            "%s of %s cases are in no fold of %s (%s): they were left out, or added after the folds were made. They "
            "are preprocessed, but only fold `all` trains on them. Add them to the file, or remove it to make new "
            "folds for new trainings.",
            len(new),
            len(identifiers),
            path,
            first_few(new),
        )


def given_splits(raw: Path, preprocessed: Path, nnunet_preprocessed: Path | None) -> list[Path]:
    """Find the files with folds that a user has provided; the first one is used.

    Args:
        raw: the raw data set's folder.
        preprocessed: its folder of preprocessed data.
        nnunet_preprocessed: nnU-Net's root folder, or None.
    """
    there = [raw / SPLITS_NAME, raw / NNUNET_SPLITS_NAME, preprocessed / NNUNET_SPLITS_NAME]
    if nnunet_preprocessed is not None:
        there.append(nnunet_preprocessed / preprocessed.name / NNUNET_SPLITS_NAME)
    return [file for file in there if file.is_file()]


def warn_of_other_splits(path: Path, given: Sequence[Path]) -> None:
    """Warn of given files whose folds differ from splits.json, which is kept."""
    for file in given:
        with _only_told(file):
            if read_plain(path, what="splits file") != read_plain(file, what="splits file"):
                logger.warning(
                    "warning: the folds in %s differ from those in %s and are not used. To use them, remove the second "
                    "file and preprocess again (arrays that exist are kept).",
                    file,
                    path,
                )


def _fitting(given: Sequence[Path], dataset: Dataset) -> list[Path]:
    """The given files that fit the data set. Raises PlanError if one in the raw folder does not fit: it was put there
    for this data set.
    """
    fitting = []
    for file in given:
        with contextlib.nullcontext() if file.parent == dataset.folder else _only_told(file):
            read_splits(file, dataset.cases)
            fitting.append(file)
    return fitting


@contextlib.contextmanager
def _only_told(file: Path) -> Iterator[None]:
    """Turn errors in a file that will not be used into warnings."""
    try:
        yield
    except PlanError as error:
        logger.warning("warning: %s is not used: %s", file, error)


def _said(patients: Mapping[str, str]) -> str:
    """An example of two cases of one patient, in words."""
    for first, second in itertools.combinations(sorted(patients), 2):
        if patients[first] == patients[second]:
            return f"{first} and {second} are of {patients[first]}"
    return ""


def read_dataset_plan(paths: Paths, dataset_name: str) -> Plan:
    """Read the plan of a data set from its preprocessed folder.

    Raises:
        PlanError: there is no plan, or it is for another data set.
    """
    path = paths.preprocessed / dataset_name / "plan.json"
    if not path.is_file():
        raise PlanError(
            f"plan not found: {path}. Make it with `masam_plan_and_preprocess dataset={shlex.quote(dataset_name)}`, or "
            "name the folder of preprocessed data with `preprocessed`."
        )
    plan = read_json(path, Plan, what="plan")
    if plan.dataset_name != dataset_name:
        raise PlanError(
            f"{path} is the plan for {plan.dataset_name}, not for {dataset_name}. Plan this data set with masam_plan."
        )
    return plan


def check_is_preprocessed(paths: Paths, dataset_name: str, file: str) -> None:
    """Raise PlanError if a file that preprocessing writes is missing from a data set's folder."""
    path = paths.preprocessed / dataset_name / file
    if not path.is_file():
        raise PlanError(
            f"{dataset_name} is not preprocessed: {path} is missing. Run `masam_plan_and_preprocess "
            f"dataset={shlex.quote(dataset_name)}` (or masam_preprocess, which keeps the plan), or name the "
            "folder of preprocessed data with `preprocessed`."
        )
