"""The validation cases of a fold: predicted from the preprocessed arrays, written on their own grids, evaluated."""

import logging
from pathlib import Path
from typing import Any

import torch

from masam_auto.core.dataset import Case, Dataset, open_dataset
from masam_auto.core.geometry import CaseProperties
from masam_auto.core.jsonio import read_json, read_plain
from masam_auto.core.log import progress
from masam_auto.core.paths import Paths
from masam_auto.core.plan import Configuration, Plan
from masam_auto.core.splits import find_split, read_splits
from masam_auto.imaging.io import label_ending
from masam_auto.imaging.storage import open_array
from masam_auto.imaging.workers import workers_for
from masam_auto.learning.models import TrainedModel, checkpoint_path
from masam_auto.stages.evaluate import BYTES_PER_VOXEL, SUMMARY_NAME, evaluate_files
from masam_auto.stages.predict import Predictor, load_predictor, segment_preprocessed, write_segmentation
from masam_auto.stages.preprocess import check_preprocessed

logger = logging.getLogger(__name__)

RAW_DATA_NAME = "raw_data.json"


def validate_fold(
    paths: Paths,
    dataset_name: str,
    plan: Plan,
    configuration: Configuration,
    fold: int | str,
    *,
    device: torch.device,
    checkpoint: str = "best",
    redo: bool = False,
    workers: int | None = None,
) -> dict[str, Any]:
    """Predict and evaluate the validation cases of a trained fold.

    Predictions that are newer than the checkpoint are kept, so that an interrupted validation goes on where it was.

    Args:
        paths: root folders; the raw data set must still be there for its reference labels.
        dataset_name: DatasetXXX_Name.
        plan, configuration: of the model.
        fold: its number, or "all".
        device: where to compute.
        checkpoint: "best" or "latest".
        redo: predict all cases again.
        workers: processes for the evaluation; 0 works in this one, None lets cores and memory decide.

    Returns:
        The summary, also written to fold_K/validation/summary.json.

    Raises:
        ModelError: the fold has no checkpoint.
        PlanError: the preprocessed data are of another plan, or the fold does not exist.
        DatasetError: the raw data set is gone.
    """
    dataset = open_raw_data(paths, dataset_name)
    model = TrainedModel(
        folder=paths.model_folder(dataset_name, plan.name, configuration.name),
        dataset_name=dataset_name,
        plan_name=plan.name,
        configuration=configuration.name,
        folds=(fold,),
    )
    predictor = load_predictor(model, folds=[fold], checkpoint=checkpoint, device=device)
    preprocessed = paths.configuration_folder(dataset_name, configuration.name)
    check_preprocessed(preprocessed, configuration)
    cases = validation_cases(paths, dataset, fold)
    output = model.folder / f"fold_{fold}" / "validation"
    trained_at = (checkpoint_path(output.parent, checkpoint) / "checkpoint.json").stat().st_mtime
    ending = label_ending(dataset.description.file_ending)
    waiting = [case for case in cases if redo or not _is_done(case, output, ending, trained_at)]
    if len(waiting) < len(cases):
        logger.info("validation: %s of %s cases are done already", len(cases) - len(waiting), len(cases))
    for case in progress(waiting, what="validating"):
        predict_preprocessed(predictor, case, preprocessed, output, ending)
    pairs = [
        (output / f"{frame}{ending}", reference)
        for case in cases
        for frame, reference in zip(case.frames, case.labels or (), strict=True)
    ]
    workers = workers_for([truth for _, truth in pairs], bytes_per_voxel=BYTES_PER_VOXEL, asked=workers)
    return evaluate_files(pairs, dataset.description.labels, output=output / SUMMARY_NAME, workers=workers)


def open_raw_data(paths: Paths, dataset_name: str) -> Dataset:
    """The raw data set among the roots, or else where it was when it was preprocessed (raw_data.json).

    Raises:
        DatasetError: it is at neither place.
    """
    record = paths.preprocessed / dataset_name / RAW_DATA_NAME
    if not (paths.raw / dataset_name).is_dir() and record.is_file():
        return open_dataset(paths, str(read_plain(record, what="record of the raw data")["folder"]))
    return open_dataset(paths, dataset_name)


def validation_cases(paths: Paths, dataset: Dataset, fold: int | str) -> tuple[Case, ...]:
    """The validation cases of a fold, as splits.json says. Raises PlanError for an unknown fold."""
    file = paths.preprocessed / dataset.name / "splits.json"
    split = find_split(read_splits(file, dataset.cases), fold, where=file)
    return tuple(case for case in dataset.cases if case.identifier in split.val)


def predict_preprocessed(predictor: Predictor, case: Case, preprocessed: Path, output: Path, ending: str) -> None:
    """Predict one case from its preprocessed arrays and write it on its original grid."""
    properties = read_json(preprocessed / f"{case.identifier}.json", CaseProperties, what="case properties")
    segmentation = segment_preprocessed(predictor, open_array(preprocessed / f"{case.identifier}.b2nd"), properties)
    write_segmentation(case, segmentation, properties.geometry, output, ending)


def _is_done(case: Case, output: Path, ending: str, trained_at: float) -> bool:
    files = [output / f"{frame}{ending}" for frame in case.frames]
    return all(file.is_file() and file.stat().st_mtime >= trained_at for file in files)
