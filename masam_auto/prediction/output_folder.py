"""Checks of an output folder: what must not be replaced, and which model's predictions it already holds."""

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from masam_auto.core.dataset import Case
from masam_auto.core.errors import OutputError, PlanError, first_few
from masam_auto.core.jsonio import read_json, read_plain, write_json
from masam_auto.core.paths import is_in_raw_data
from masam_auto.core.plan import Plan
from masam_auto.formats.io import is_image
from masam_auto.prediction.predict import Predictor

# Files next to a dataset.json and plan.json that must stay: those of a preprocessed data set or a trained model.
OWN_COMPANIONS = ("fingerprint.json", "splits.json", "fold_*")


def record_model(folder: Path, predictor: Predictor) -> None:
    """Write dataset.json and plan.json, with the model's configuration as the default. Raises OutputError."""
    write_json(folder / "dataset.json", predictor.description.raw)
    write_json(folder / "plan.json", _plan_of(predictor))


def is_recorded(folder: Path) -> bool:
    """Whether the files of `record_model` are there."""
    return all((folder / name).exists() for name in ("dataset.json", "plan.json"))


def refuse_another_model(folder: Path, predictor: Predictor) -> None:
    """Raise OutputError if the folder holds another model's predictions. Changed inference settings are fine."""
    file, plan = folder / "plan.json", _plan_of(predictor)
    remedy = "Choose another folder, or give `overwrite` to write there anyway."
    try:
        found = read_json(file, Plan, what="plan") if file.exists() else plan
        raw = read_plain(folder / "dataset.json", what="data set") if (folder / "dataset.json").exists() else None
    except PlanError as error:
        raise OutputError(f"{folder} does not hold this model's predictions: {error} {remedy}") from error
    if replace(found, inference=plan.inference) != plan:
        made_by = f"{found.dataset_name}, plan {found.name}, configuration {found.default_configuration}"
        raise OutputError(f"{folder} holds another model's predictions ({made_by}, says its plan.json). {remedy}")
    if raw not in (None, predictor.description.raw):
        raise OutputError(f"{folder} holds the dataset.json of another data set. {remedy}")


def _plan_of(predictor: Predictor) -> Plan:
    member = predictor.members[0]
    return replace(member.plan, default_configuration=member.configuration.name)


def refuse_to_overwrite(folder: Path, names: Sequence[str]) -> None:
    """Raise OutputError if a folder already has files of these names."""
    present = [name for name in names if (folder / name).exists()]
    if present:
        raise OutputError(
            f"{folder} already holds {first_few(present)}. Give `overwrite` to replace them, choose another folder, or "
            "use `masam_predict continue_prediction` to predict only the others."
        )


def check_output(source: Path, folder: Path, *, making_labels: bool = False) -> None:
    """Check that predictions may be written to a folder. Raises OutputError.

    It must not be the images' folder, a raw or preprocessed data set, or a trained model. With `making_labels`, it is
    the folder of a raw data set's labels.
    """
    images = source if source.is_dir() else source.parent
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; the output must be a folder")
    if not folder.exists() and is_image(folder):
        raise OutputError(
            f"{folder} looks like an image file, but the output must be a folder. Give the folder: "
            f"`output={folder.parent}`"
        )
    if folder.resolve() == images.resolve():
        raise OutputError(f"the output folder is the input folder ({folder}). Choose another one.")
    part = is_in_raw_data(folder) and not making_labels
    if (folder / "imagesTr").is_dir() or part:
        raise OutputError(
            f"the output folder is {'part of ' if part else ''}a raw data set ({folder}). Choose another one."
        )
    if any(next(folder.glob(name), None) for name in OWN_COMPANIONS):
        raise OutputError(
            f"the output folder belongs to a preprocessed data set or a trained model ({folder}), and its plan.json "
            "would be replaced. Choose another one."
        )


def refuse_to_replace_images(folder: Path, names: Mapping[str, Sequence[str]], cases: Collection[Case]) -> None:
    """Raise OutputError if a file to be written is one of the images, which may be links into another folder."""
    images = {file.resolve() for case in cases for files in (*case.images, *case.series) for file in files}
    for name in itertools.chain.from_iterable(names.values()):
        if (folder / name).resolve() in images:
            raise OutputError(f"{folder / name} is one of the images. Choose another output folder.")
