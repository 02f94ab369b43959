"""The models to predict a data set with: what `masam_find_best_configuration` chose, and why."""

from dataclasses import dataclass
from pathlib import Path

from masam_auto.core.checks import check, check_name
from masam_auto.core.jsonio import read_json
from masam_auto.core.postprocessing import Postprocessing

SELECTION_NAME = "inference_instructions.json"
TEXT_NAME = "inference_instructions.txt"  # the same content for readers
# Checkpoints that a fold can be predicted with, and their folders. The latest one of an ended training is "final".
CHECKPOINTS = {"best": "checkpoint_best", "latest": "checkpoint_latest", "final": "checkpoint_latest"}


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectedModel:
    """One trained configuration below results/<data set>, with the folds and checkpoint ("best", ...) to use."""

    plan_name: str
    configuration: str
    folds: tuple[int, ...]
    checkpoint: str = "best"

    def __post_init__(self) -> None:
        check_name("plan_name", self.plan_name)
        check_name("configuration", self.configuration)
        check(len(self.folds) > 0, f"{self.folder_name} must have a fold")
        check(
            self.checkpoint in CHECKPOINTS,
            f"checkpoint must be one of {', '.join(CHECKPOINTS)}, got {self.checkpoint!r}",
        )

    @property
    def folder_name(self) -> str:
        """Name of its folder below results/<data set>."""
        return f"{self.plan_name}__{self.configuration}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One model or ensemble that was compared.

    `members` are folder names. `dice` is the foreground mean over the cases that all candidates have, without
    postprocessing.
    """

    members: tuple[str, ...]
    dice: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """inference_instructions.json: the chosen model, or the models whose probabilities are averaged.

    `dice` is the cross-validated foreground mean of the choice, with its postprocessing. `dice_by_class` is the mean of
    each class or region by name, and `cases` the number of cases used. `candidates` are sorted from best to worst.
    """

    version: int = 1
    dataset_name: str
    members: tuple[SelectedModel, ...]
    postprocessing: Postprocessing
    dice: float
    dice_by_class: dict[str, float]
    cases: int
    candidates: tuple[Candidate, ...]
    reasons: tuple[str, ...]

    def __post_init__(self) -> None:
        check(len(self.members) > 0, "a selection must have a member")

    @property
    def name(self) -> str:
        """The members' folders, for readers."""
        return " + ".join(member.folder_name for member in self.members)


def read_selection(path: Path) -> Selection:
    """Read inference_instructions.json. Raises PlanError if it is missing, damaged or of a newer version."""
    return read_json(path, Selection, what="selection")
