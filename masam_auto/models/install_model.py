"""Install an archive of models: check all of it, then put it among the trained models."""

import contextlib
import logging
from pathlib import Path

from masam_auto.core.claims import claimed
from masam_auto.core.errors import MasamError, ModelError, OutputError
from masam_auto.core.jsonio import read_plain
from masam_auto.core.selection import SELECTION_NAME, TEXT_NAME, read_selection
from masam_auto.core.summary import SUMMARY_NAME
from masam_auto.models.checkpoint import BEST, LATEST, ModelHeader, read_state
from masam_auto.models.export_model import read_summary
from masam_auto.models.load_model import read_fitting
from masam_auto.models.model_archive import Manifest, extract_archive, read_manifest
from masam_auto.models.model_exchange import bring_back, new_models
from masam_auto.models.sam_weights import sam_of_model
from masam_auto.models.trained_model import TrainedModel, choose_folds, describe_model, open_model

logger = logging.getLogger(__name__)


def install_model(archive: Path, results: Path, *, weights: Path, overwrite: bool = False) -> tuple[TrainedModel, ...]:
    """Install all models of an archive and its selection, or nothing.

    Args:
        archive: written by `models.export_model`.
        results: root of the results.
        weights: the folder of SAM files; warns if one that a model needs is missing.
        overwrite: replace models of the same names, with all of their folds.

    Raises:
        ModelError: the archive is damaged or has unexpected content, or a model in it cannot be used.
        OutputError: a model of that name exists or is in training, or the folder is not writable.

    Example:
        >>> from masam_auto.models.export_model import ExportedModel, export_model
        >>> from masam_auto.models.install_model import install_model
        >>> from masam_auto.models.trained_model import find_models
        >>> trained = ExportedModel(model=find_models(paths.results)[0], folds=[0])
        >>> manifest = export_model([trained], Path("archive.zip"))
        >>> install_model(Path("archive.zip"), Path("elsewhere"), weights=paths.weights)[0].folder.as_posix()
        'elsewhere/Dataset001_Toy/masam__axis0'
    """
    manifest = read_manifest(archive)
    dataset = results / manifest.dataset_name
    with contextlib.ExitStack() as claims:
        claims.enter_context(claimed(dataset, "models"))
        for fold in sorted(fold for name in manifest.models for fold in (dataset / name).glob("fold_*")):
            claims.enter_context(claimed(fold.parent, fold.name))  # it may be in training
        return _install(archive, manifest, dataset, weights=weights, overwrite=overwrite)


def _install(
    archive: Path, manifest: Manifest, dataset: Path, *, weights: Path, overwrite: bool
) -> tuple[TrainedModel, ...]:
    """Extract the models to a temporary folder, check them, and replace the present ones."""
    bring_back(dataset)
    names = [*manifest.models, *(file.name for file in manifest.files if file.name == SELECTION_NAME)]
    there = [name for name in names if (dataset / name).exists()]
    if there and not overwrite:
        raise OutputError(
            f"{dataset / there[0]} exists already. Give `overwrite` to replace it with all of its folds, or another "
            "folder with `results`."
        )
    with new_models(dataset) as new:
        extract_archive(archive, new)
        headers = _check(new, manifest, archive)
    if SELECTION_NAME in names:
        (dataset / TEXT_NAME).unlink(missing_ok=True)  # it describes the selection that was replaced
    for folder, header in headers.items():
        _look_for_sam(header, dataset / folder, weights)
    return tuple(describe_model(dataset / name) for name in manifest.models)


def _check(folder: Path, manifest: Manifest, archive: Path) -> dict[str, ModelHeader]:
    """Read everything that was extracted. Returns the header of each checkpoint, by its folder. Raises ModelError."""
    headers = {}
    try:
        for name in manifest.models:
            headers.update(_check_model(folder / name, manifest.dataset_name))
        if (folder / SELECTION_NAME).is_file():
            selection = read_selection(folder / SELECTION_NAME)
            missing = {member.folder_name for member in selection.members} - set(manifest.models)
            if selection.dataset_name != manifest.dataset_name or missing:
                raise ModelError(f"{SELECTION_NAME} is for other models")
            for member in selection.members:
                choose_folds(describe_model(folder / member.folder_name), member.folds, member.checkpoint)
    except MasamError as error:
        problem = str(error).replace(f"{folder}/", "")
        raise ModelError(f"{archive} was not installed: its content does not belong together: {problem}") from error
    return {str(path.relative_to(folder)): header for path, header in headers.items()}


def _check_model(folder: Path, dataset_name: str) -> dict[Path, ModelHeader]:
    model = describe_model(folder)
    plan, description = open_model(model)
    if (plan.dataset_name, plan.name) != (dataset_name, model.plan_name):
        raise ModelError(f"{folder}/plan.json is plan {plan.name} of {plan.dataset_name}")
    splits = folder / "splits.json"
    if splits.is_file():
        read_plain(splits, what="splits file")
    for summary in folder.glob(f"fold_*/validation/{SUMMARY_NAME}"):
        read_summary(summary, case_names=True)
    found = [path for kind in (BEST, LATEST) for path in sorted(folder.glob(f"fold_*/{kind}"))]
    if not found:
        raise ModelError(f"{folder} has no checkpoint")
    headers = {path: read_fitting(path, plan, description)[0] for path in found}
    for path, header in headers.items():
        read_state(path)
        if header.configuration != model.configuration:
            raise ModelError(f"{path} is of configuration {header.configuration}, not {model.configuration}")
        if header.sam_file is not None and Path(header.sam_file).name != header.sam_file:
            raise ModelError(f"{path} names a SAM file elsewhere: {header.sam_file!a}")
    return headers


def _look_for_sam(header: ModelHeader, checkpoint: Path, weights: Path) -> None:
    """Warn if the SAM file that a model needs is not there yet."""
    try:
        sam_of_model(header, checkpoint, file=None, folder=weights)
    except ModelError as error:
        logger.warning("still needed: %s", error)
