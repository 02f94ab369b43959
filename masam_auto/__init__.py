"""masam_auto: self-configuring medical image segmentation with MA-SAM.

The names below are imported when they are first asked for, so that importing the package takes no time.

Examples in docstrings use the names of documentation/python.md (`paths`, `dataset`, `fingerprint`, `plan`,
`configuration`, `folder`, `predictor`, `predictions`), `segmenter` of random weights, and `np`, `torch` and `Path`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from masam_auto.compute.device import choose_device
    from masam_auto.core.dataset import open_dataset
    from masam_auto.core.paths import Paths
    from masam_auto.core.plugins import use_plugins
    from masam_auto.evaluation.evaluate import evaluate_folder as evaluate
    from masam_auto.evaluation.validate import ValidationOptions
    from masam_auto.evaluation.validate import validate_fold as validate
    from masam_auto.planning.make_plan import make_plan
    from masam_auto.prediction.predict import Predictor
    from masam_auto.prediction.segmenter import Segmenter
    from masam_auto.preprocessing.fingerprint import extract_fingerprint
    from masam_auto.preprocessing.preprocess import preprocess_dataset as preprocess
    from masam_auto.training.train import train_fold as train
    from masam_auto.training.training_job import TrainingOptions

__version__ = "0.1.0"
__all__ = (
    "Paths",
    "Predictor",
    "Segmenter",
    "TrainingOptions",
    "ValidationOptions",
    "choose_device",
    "evaluate",
    "extract_fingerprint",
    "make_plan",
    "open_dataset",
    "preprocess",
    "train",
    "use_plugins",
    "validate",
)
_PLACES = {
    "Paths": "core.paths:Paths",
    "Predictor": "prediction.predict:Predictor",
    "Segmenter": "prediction.segmenter:Segmenter",
    "TrainingOptions": "training.training_job:TrainingOptions",
    "ValidationOptions": "evaluation.validate:ValidationOptions",
    "choose_device": "compute.device:choose_device",
    "evaluate": "evaluation.evaluate:evaluate_folder",
    "extract_fingerprint": "preprocessing.fingerprint:extract_fingerprint",
    "make_plan": "planning.make_plan:make_plan",
    "open_dataset": "core.dataset:open_dataset",
    "preprocess": "preprocessing.preprocess:preprocess_dataset",
    "train": "training.train:train_fold",
    "use_plugins": "core.plugins:use_plugins",
    "validate": "evaluation.validate:validate_fold",
}


def __getattr__(name: str) -> Any:
    """Import a public name. Raises AttributeError for any other."""
    if name not in _PLACES:
        raise AttributeError(f"masam_auto has no {name!r}; it has {', '.join(__all__)}")
    module, _, attribute = _PLACES[name].partition(":")
    return getattr(importlib.import_module(f"masam_auto.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
