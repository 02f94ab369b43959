"""Which cases belong to the same patient: from patients.json, or from case names.

A patient on both sides of a fold makes its Dice too good: the network has seen nearly the same images in training.
"""

import logging
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from masam_auto.core.errors import DatasetError, first_few
from masam_auto.core.jsonio import read_plain
from masam_auto.core.splits import Split

logger = logging.getLogger(__name__)

FILE_NAME = "patients.json"
# Words that distinguish images of one patient, with or without a number: patient001_frame01, sub-03_ses-2, P7_left.
WORDS = (
    "frame|fr|phase|time|timepoint|tp|visit|v|ses|session|scan|series|day|week|month|year|date|baseline|bl|followup|"
    "follow[-_]?up|fu|pre|post|ed|es|left|right|l|r|lesion|nodule|roi|crop|patch|slice|slc"
)
PART = re.compile(rf"^(?P<patient>.*\d.*?)[-_.](?:{WORDS})[-_.]?\d*(?:[-_.]\d+)?$", re.IGNORECASE)


def patients_of(identifiers: Collection[str], folder: Path) -> dict[str, str]:
    """The patient of each case.

    Args:
        identifiers: of the cases.
        folder: the raw data set. `patients.json` in it maps cases to patients and has priority over names.

    Returns:
        case -> patient, for all cases. A case without a known patient is its own patient.

    Raises:
        DatasetError: patients.json does not have this form, or names none of the cases.
        PlanError: it is not JSON.
    """
    file = folder / FILE_NAME
    if not file.is_file():
        return {name: _from_name(name) for name in identifiers}
    known = read_plain(file, what="list of patients")
    if not isinstance(known, dict) or not all(isinstance(patient, str) and patient for patient in known.values()):
        raise DatasetError(f'{file}: expected {{"case": "patient", ...}}, both as text. Correct it or remove it.')
    if known and identifiers and not known.keys() & set(identifiers):
        raise DatasetError(
            f"{file}: names none of the cases (it has {first_few(sorted(known))}; cases are called "
            f"{first_few(sorted(identifiers))}). Write case names without channel number and file ending, or "
            "remove the file."
        )
    if lacking := sorted(set(identifiers) - known.keys()) if known else []:
        logger.warning("warning: %s gives no patient for %s: each counts as its own patient", file, first_few(lacking))
    return {name: known.get(name, name) for name in identifiers}


def divided_patients(splits: Sequence[Split], patients: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Patients on both sides of a fold, each with one training and one validation case as an example.

    Folds that validate on their training cases (a single case) are skipped.
    """
    found: dict[str, tuple[str, str]] = {}
    for split in splits:
        trained = {patients.get(name, name): name for name in split.train}
        for name in split.val:
            patient = patients.get(name, name)
            if patient in trained and name not in split.train:
                found.setdefault(patient, (trained[patient], name))
    return found


def _from_name(identifier: str) -> str:
    match = PART.match(identifier)
    return match["patient"] if match else identifier
