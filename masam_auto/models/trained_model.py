"""Find trained models on disk, and the one that the user means."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from masam_auto.core.dataset import DatasetDescription, read_description
from masam_auto.core.errors import ModelError
from masam_auto.core.jsonio import read_json
from masam_auto.core.paths import DATASET_NAME, find_dataset_name
from masam_auto.core.plan import Plan
from masam_auto.core.selection import CHECKPOINTS

FOLD = re.compile(r"fold_(0|[1-9]\d{0,5}|all)")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedModel:
    """One trained configuration.

    `folder` is results/<data set>/<plan>__<configuration>; `folds` are those with a checkpoint.
    """

    folder: Path
    dataset_name: str
    plan_name: str
    configuration: str
    folds: tuple[int | str, ...]

    def __str__(self) -> str:
        folds = ", ".join(map(str, self.folds)) or "none"
        return (
            f"{self.dataset_name}, configuration {self.configuration}, plan {self.plan_name}, folds {folds} "
            f"({self.folder})"
        )


def find_models(results: Path) -> tuple[TrainedModel, ...]:
    """Find all models below the results folder that have a plan and at least one checkpoint.

    Example:
        >>> from masam_auto.models.trained_model import find_models
        >>> [(model.configuration, model.plan_name) for model in find_models(paths.results)]
        [('axis0', 'masam')]
    """
    if not results.is_dir():
        return ()
    datasets = [path for path in sorted(results.iterdir()) if path.is_dir() and DATASET_NAME.fullmatch(path.name)]
    folders = [folder for dataset in datasets for folder in sorted(dataset.iterdir()) if "__" in folder.name]
    models = [describe_model(folder) for folder in folders if (folder / "plan.json").is_file()]
    return tuple(model for model in models if model.folds)


def choose_model(
    results: Path,
    *,
    dataset: str | None = None,
    configuration: str | None = None,
    plan_name: str | None = None,
    folder: Path | None = None,
) -> TrainedModel:
    """Find the one model that matches what the user gave.

    Args:
        results: root of the results.
        dataset: number, name or path of the data set.
        configuration: name of the configuration.
        plan_name: name of the plan.
        folder: the model's folder, with any name; then the other arguments are ignored.

    Raises:
        ModelError: no model matches, or several do; the message lists them.
        DatasetError: the data set is unknown.

    Example:
        >>> from masam_auto.models.trained_model import choose_model
        >>> model = choose_model(paths.results, dataset="1", configuration="axis0")
        >>> model.folder.name, model.dataset_name
        ('masam__axis0', 'Dataset001_Toy')
    """
    if folder is not None:
        return model_in(folder)
    models = find_models(results)
    if not models:
        raise ModelError(
            f"no trained model below {results}. Train one (masam_train), or give `results` or `model=FOLDER`."
        )
    name = find_dataset_name(Path(dataset).name, [results]) if dataset is not None else None
    wanted = {"dataset_name": name, "configuration": configuration, "plan_name": plan_name}
    fitting = [
        model for model in models if all(value in (None, getattr(model, field)) for field, value in wanted.items())
    ]
    if len(fitting) == 1:
        return fitting[0]
    said = ", ".join(f"{field.removesuffix('_name')} {value}" for field, value in wanted.items() if value)
    if fitting:
        listed = "\n".join(f"  - {model}" for model in fitting)
        raise ModelError(
            f"several trained models match; choose with `dataset`, `configuration`, `plan_name` or `model`:\n{listed}"
        )
    listed = "\n".join(f"  - {model}" for model in models)
    raise ModelError(f"no trained model with {said}. Trained models are:\n{listed}")


def model_in(folder: Path) -> TrainedModel:
    """The model in a folder with any name. Raises ModelError if there is none."""
    if not (folder / "plan.json").is_file():
        raise ModelError(
            f"{folder} is not a trained model: it has no plan.json. Give a folder such as "
            "results/DatasetXXX_Name/masam__axis0."
        )
    return describe_model(folder.absolute())


def choose_folds(model: TrainedModel, folds: Sequence[int | str] | None, checkpoint: str) -> tuple[Path, ...]:
    """Find the checkpoints of the folds to average.

    Args:
        model: the model.
        folds: None for all trained folds with a number (or "all", if it is the only one).
        checkpoint: one of `core.selection.CHECKPOINTS`.

    Raises:
        ModelError: unknown kind of checkpoint, or a fold without one; the message names it.
    """
    if checkpoint not in CHECKPOINTS:
        raise ModelError(f"unknown checkpoint {checkpoint!r}. Choose one of {', '.join(CHECKPOINTS)}.")
    if folds is None:
        folds = [fold for fold in model.folds if fold != "all"] or list(model.folds)
    if not folds:
        raise ModelError(f"{model.folder} has no trained fold. Train one: masam_train {model.dataset_name} 0")
    chosen = [checkpoint_path(model.folder / f"fold_{fold}", checkpoint) for fold in dict.fromkeys(folds)]
    for fold, path in zip(dict.fromkeys(folds), chosen, strict=True):
        if not path.exists():
            trained = ", ".join(map(str, model.folds)) or "none"
            raise ModelError(
                f"fold {fold} of {model.folder} has no checkpoint ({path.name} is missing; folds with one: {trained}). "
                f"Train it: `masam_train {model.dataset_name} {fold} configuration={model.configuration} "
                f"plan_name={model.plan_name}`"
            )
    return tuple(chosen)


def checkpoint_path(fold_folder: Path, checkpoint: str) -> Path:
    """The path of one of a fold's `CHECKPOINTS`."""
    return fold_folder / CHECKPOINTS[checkpoint]


def open_model(model: TrainedModel) -> tuple[Plan, DatasetDescription]:
    """Read the plan and data set description that a model was trained with. Raises PlanError or DatasetError."""
    plan = read_json(model.folder / "plan.json", Plan, what="plan")
    return plan, read_description(model.folder / "dataset.json", name=plan.dataset_name)


def describe_model(folder: Path) -> TrainedModel:
    """The model of a folder, which need not exist: its name tells the model, its content the folds."""
    plan_name, _, configuration = folder.name.partition("__")
    found = [FOLD.fullmatch(path.name) for path in sorted(folder.glob("fold_*"))]
    folds = [
        int(match[1]) if match[1].isdigit() else match[1]
        for match in found
        if match and any(checkpoint_path(folder / match[0], kind).exists() for kind in CHECKPOINTS)
    ]
    return TrainedModel(
        folder=folder,
        dataset_name=folder.parent.name,
        plan_name=plan_name,
        configuration=configuration,
        folds=tuple(sorted(folds, key=str)),
    )
