"""The root folders: found once on the command line, then passed down."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from masam_auto.core.errors import DatasetError

DATASET_NAME = re.compile(r"Dataset(\d{3,})_(.+)")
RAW_FOLDERS = ("imagesTr", "labelsTr", "imagesTs", "labelsTs")
MISNAMED = re.compile(r"(dataset|task)_?\d", re.IGNORECASE)
"""Folders probably meant as data sets; nnU-Net v1 called them TaskXXX_Name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Paths:
    """Root folders of raw data, preprocessed data, results and SAM weights, and nnU-Net's preprocessed data for folds.

    Example:
        >>> from masam_auto import Paths
        >>> paths = Paths.below("masam_data")  # masam_data/raw, masam_data/preprocessed, ...
        >>> paths.model_folder("Dataset001_Toy", "masam", "axis0").relative_to(paths.results).as_posix()
        'Dataset001_Toy/masam__axis0'
    """

    raw: Path
    preprocessed: Path
    results: Path
    weights: Path
    nnunet_preprocessed: Path | None = None

    @classmethod
    def below(cls, folder: Path | str) -> "Paths":
        """raw/, preprocessed/, results/ and weights/ in one folder."""
        root = Path(folder).absolute()
        return cls(
            raw=root / "raw", preprocessed=root / "preprocessed", results=root / "results", weights=root / "weights"
        )

    def configuration_folder(self, dataset_name: str, configuration: str) -> Path:
        """Folder of the preprocessed arrays of one configuration."""
        return self.preprocessed / dataset_name / configuration

    def model_folder(self, dataset_name: str, plan_name: str, configuration: str) -> Path:
        """Folder of one trained configuration: plan.json, dataset.json, fold_K/."""
        return self.results / dataset_name / f"{plan_name}__{configuration}"


def resolve_paths(given: Mapping[str, str | None], environment: Mapping[str, str], working_folder: Path) -> Paths:
    """Decide the root folders.

    Args:
        given: "raw", "preprocessed", "results", "weights" from the command line, or None.
        environment: MASAM_RAW, MASAM_PREPROCESSED, MASAM_RESULTS, MASAM_WEIGHTS. nnUNet_raw is used as raw if needed,
            and nnUNet_preprocessed is where nnU-Net's folds are.
        working_folder: without any of these, its `masam_data/` is used.
    """

    def root(name: str) -> Path:
        value = given.get(name) or environment.get(f"MASAM_{name.upper()}")
        if not value and name == "raw":
            value = environment.get("nnUNet_raw")
        return Path(value).expanduser().absolute() if value else working_folder / "masam_data" / name

    nnunet = environment.get("nnUNet_preprocessed")
    return Paths(
        raw=root("raw"),
        preprocessed=root("preprocessed"),
        results=root("results"),
        weights=root("weights"),
        nnunet_preprocessed=Path(nnunet).expanduser().absolute() if nnunet else None,
    )


def find_dataset_name(identifier: str, roots: list[Path]) -> str:
    """Full name of a data set from `1`, `001` or `Dataset001_Name`, searched in the root folders.

    Raises:
        DatasetError: no data set or several match; the message lists those found.
    """
    folders = sorted({p.name for root in roots if root.is_dir() for p in root.iterdir() if p.is_dir()})
    present = [name for name in folders if DATASET_NAME.fullmatch(name)]
    if identifier in present:
        return identifier
    number = int(identifier) if identifier.isdecimal() else None
    fitting = [name for name in present if number is not None and int(DATASET_NAME.fullmatch(name)[1]) == number]  # type: ignore[index]
    if len(fitting) == 1:
        return fitting[0]
    places = ", ".join(str(root) for root in roots)
    if fitting:
        raise DatasetError(f"data set {identifier} is ambiguous: {', '.join(fitting)}. Give the full name.")
    listed = ", ".join(present) if present else "none"
    if misnamed := [name for name in folders if MISNAMED.match(name) and name not in present]:
        listed += f"; not called DatasetXXX_Name, with three digits: {', '.join(misnamed)}"
    raise DatasetError(
        f"data set {identifier!r} not found in {places} (there: {listed}). Choose one that "
        "is there, or give its folder with `raw`, `preprocessed` or `results`."
    )


def is_in_raw_data(folder: Path) -> bool:
    """Whether a folder is inside a raw data set, or is a folder of its images or labels such as labelsTr."""
    whole = folder.resolve()
    return any(
        place.name in RAW_FOLDERS and (place.parent / "dataset.json").is_file() for place in (whole, *whole.parents)
    )
