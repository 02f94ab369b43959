"""The examples in docstrings run as written, and every public entry point has one."""

import ast
import doctest
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import masam_auto
from masam_auto.evaluation.validate import ValidationOptions, validate_fold
from masam_auto.planning.make_plan import make_plan
from masam_auto.prediction.predict import Predictor
from masam_auto.prediction.predict_folder import PredictionOptions, predict_folder
from masam_auto.prediction.segmenter import Segmenter
from masam_auto.preprocessing.fingerprint import extract_fingerprint
from masam_auto.preprocessing.preprocess import preprocess_dataset
from masam_auto.training.train import train_fold
from masam_auto.training.training_job import TrainingOptions
from tests.random_weights import write_weights
from tests.raw_data import make_raw_dataset
from tests.tiny_training import without_pictures

ROOT = Path(__file__).resolve().parents[1]
# What a newcomer calls from Python, besides what masam_auto/__init__.py lists.
MAIN = {
    "compute.parallel": ("map_cases",),
    "core.budget": ("parse_budget",),
    "core.geometry": ("Geometry",),
    "core.jsonio": ("read_json", "write_json"),
    "core.labels": ("parse_labels",),
    "core.splits": ("make_splits", "read_splits"),
    "core.turning": ("turn_between",),
    "dataset_conversion.synthetic": ("write_synthetic_dataset",),
    "evaluation.ensemble": ("average_files", "ensemble_folders"),
    "evaluation.evaluate": ("evaluate_arrays",),
    "evaluation.find_best_configuration": ("find_best_configuration",),
    "evaluation.postprocess": ("determine_postprocessing", "postprocess_folder"),
    "formats.box_files": ("read_boxes", "read_prompts"),
    "formats.inputs": ("find_inputs",),
    "formats.io": ("read_case", "read_image", "read_labels", "write_labels"),
    "formats.probability_files": ("read_probabilities",),
    "formats.storage": ("open_array",),
    "imaging.canvas": ("canvas_map", "collect", "place", "tiles_of"),
    "imaging.components": ("apply_postprocessing",),
    "imaging.crop": ("crop_to", "nonzero_box"),
    "imaging.metrics": ("compare_masks",),
    "imaging.normalize": ("normalize",),
    "imaging.resample": ("resample_image", "resample_labels", "resampled_shape"),
    "models.checkpoint": ("read_model",),
    "models.export_model": ("export_model",),
    "models.install_model": ("install_model",),
    "models.trained_model": ("choose_model", "find_models"),
    "network.build": ("build_network", "count_parameters"),
    "planning.plan_table": ("plan_table",),
    "prediction.predict": (
        "Predictor.changed",
        "Predictor.from_folder",
        "Predictor.predict_all",
        "Predictor.predict_array",
        "Predictor.predict_files",
    ),
    "prediction.predict_folder": ("predict_folder",),
    "prediction.segment_folder": ("segment_folder",),
    "prediction.segmenter": ("Segmenter.from_weights", "Segmenter.segment"),
    "preprocessing.fingerprint": ("read_fingerprint",),
    "preprocessing.preprocess": ("preprocess_case",),
    "preprocessing.verify": ("verify_dataset",),
    "training.augmentation": ("apply_augmentation",),
    "training.loss": ("ce_dice", "choose_loss"),
    "training.schedule": ("rate_share",),
}


def docstrings() -> Iterator[tuple[str, str, Path, int]]:
    """Of all classes and functions: name (core.labels:parse_labels), docstring, file and the line before it."""
    for package in ("masam_auto", "dataset_conversion"):
        for path in sorted((ROOT / package).rglob("*.py")):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removeprefix("masam_auto.")
            yield from _docstrings(ast.parse(path.read_text(encoding="utf-8")), f"{module}:", path)


def _docstrings(node: ast.AST, name: str, path: Path) -> Iterator[tuple[str, str, Path, int]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef):
            if text := ast.get_docstring(child):
                yield f"{name}{child.name}", text, path, child.body[0].lineno - 1
            yield from _docstrings(child, f"{name}{child.name}.", path)


def prepare(folder: Path) -> dict[str, Any]:
    """A tiny data set in folder/masam_data with a trained fold, and its predictions; the names that examples use."""
    paths = masam_auto.Paths.below("masam_data")
    make_raw_dataset(folder / "masam_data" / "raw", cases=3, shape=(5, 16, 14), spacing=(3.0, 1.0, 0.75))
    dataset = masam_auto.open_dataset(paths, "1")
    fingerprint = extract_fingerprint(dataset, workers=0)
    small = ["network.encoder=tiny", "training.num_epochs=1", "training.steps_per_epoch=2", "inference.mirror=false"]
    plan = make_plan(fingerprint, gpu_memory_gb=0, overrides=small)
    configuration = plan.configuration(None)
    preprocess_dataset(dataset, plan, paths, configurations=[configuration.name], workers=0)
    cpu = torch.device("cpu")
    fold = train_fold(paths, dataset.name, plan, configuration, 0, TrainingOptions(device=cpu, workers=0))
    how = ValidationOptions(device=cpu, workers=0)
    validate_fold(paths, dataset.name, plan, configuration, 0, how)
    predictor = Predictor.from_folder(fold.parent, cpu)
    predictions = Path("predictions")
    predict_folder(predictor, dataset.folder / "imagesTr", predictions, PredictionOptions(save_probabilities=True))
    shutil.copytree(predictions, "predictions_2")
    segmenter = Segmenter.from_weights(write_weights(paths.weights / "lite_medsam.pth"), cpu, canvas=64)
    return {
        "np": np,
        "torch": torch,
        "Path": Path,
        "paths": paths,
        "dataset": dataset,
        "fingerprint": fingerprint,
        "plan": plan,
        "configuration": configuration,
        "folder": fold,
        "predictor": predictor,
        "predictions": predictions,
        "segmenter": segmenter,
    }


@pytest.mark.slow
def test_every_example_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    without_pictures(monkeypatch)
    names = prepare(tmp_path)
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
    said: list[str] = []
    for name, text, path, line in docstrings():
        if example := doctest.DocTestParser().get_doctest(text, dict(names), name, str(path), line):
            runner.run(example, out=said.append)
    assert not said, "".join(said)
    assert runner.summarize(verbose=False).attempted > 2 * len(MAIN)


def test_every_public_entry_point_has_an_example() -> None:
    objects = [getattr(masam_auto, name) for name in masam_auto.__all__]
    public = {f"{entry.__module__.removeprefix('masam_auto.')}:{entry.__qualname__}" for entry in objects}
    public |= {f"{module}:{name}" for module, names in MAIN.items() for name in names}
    found = {name: text for name, text, *_ in docstrings()}
    assert public - found.keys() == set()
    assert {name for name in public if "Example:\n    >>> " not in found[name]} == set()
    lines = {name: len(doctest.DocTestParser().get_examples(found[name])) for name in public}
    assert {name: count for name, count in lines.items() if not 2 <= count <= 6} == {}


def test_an_example_that_is_wrong_is_found() -> None:
    example = doctest.DocTestParser().get_doctest("Example:\n    >>> 1 + 1\n    3\n", {}, "wrong", None, 0)
    assert doctest.DocTestRunner(verbose=False).run(example, out=lambda text: None).failed == 1
