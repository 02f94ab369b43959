"""What each kind of file is given to. A target may return anything, or raise what a user can mend."""

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path

from dataset_conversion.dicom_structures import fill_contours, read_contours
from masam_auto.core.dataset import parse_description, read_description
from masam_auto.core.errors import MasamError
from masam_auto.core.fingerprint import Fingerprint
from masam_auto.core.geometry import Geometry
from masam_auto.core.jsonio import read_json
from masam_auto.core.label_map import read_label_map
from masam_auto.core.plan import Plan
from masam_auto.core.postprocessing import read_postprocessing
from masam_auto.formats.box_files import read_boxes, read_prompts
from masam_auto.formats.dicom import read_series
from masam_auto.formats.dicom_series import find_dicom_files, find_series
from masam_auto.formats.io import read_geometry, read_image, read_labels
from masam_auto.formats.probability_files import open_probabilities, read_probabilities, values_bytes
from masam_auto.formats.storage import open_array, read_locations
from masam_auto.formats.videos import read_video
from masam_auto.models.checkpoint import load_checkpoint, read_model
from masam_auto.models.install_model import install_model
from masam_auto.network.published import infer_encoder, read_variant
from masam_auto.network.weight_files import load_sam_checkpoint
from masam_auto.planning.make_plan import make_plan
from masam_auto.training.fold_folder import fold_cases

GRID = Geometry(shape=(4, 9, 11), spacing=(2.5, 0.7, 0.9))
PLAIN = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "organ": 1}, "file_ending": ".nii.gz"}


def image(path: Path) -> None:
    for read in (read_geometry, read_image, read_labels):
        one_after_the_other(read, path)


def video(path: Path) -> None:
    read_video(path, 3)


def series(folder: Path) -> None:
    found, _ = find_series(find_dicom_files(folder))
    for one in found:
        read_series(one.files)
    read_series(sorted(folder.iterdir()))


def structures(path: Path) -> None:
    for number, contours in read_contours(path).items():
        fill_contours(contours, GRID, where=f"{path}: {number}")


def dataset(path: Path) -> None:
    read_description(path, name="Dataset001_Toy")


def fingerprint(path: Path) -> None:
    make_plan(read_json(path, Fingerprint, what="fingerprint"), gpu_memory_gb=8.0)


def plan(path: Path) -> None:
    found = read_json(path, Plan, what="plan")
    for configuration in found.configurations.values():
        dataclasses.replace(configuration)


def splits(path: Path) -> None:
    fold_cases(path, 0, parse_description(PLAIN, name="Dataset001_Toy"), path.parent)


def boxes(path: Path) -> None:
    read_prompts(path, ["a", "b"])
    read_boxes(path, ["a", "b"])


def array(path: Path) -> None:
    stored = open_array(path)
    stored[0, 0]


def probabilities(path: Path) -> None:
    values_bytes(path)
    one_after_the_other(read_probabilities, path)
    with open_probabilities(path) as found:
        found.values.sum()


def checkpoint(folder: Path) -> None:
    fold = folder.parent / "fold_0"
    fold.mkdir()
    folder.rename(fold / "checkpoint_latest")
    try:
        one_after_the_other(read_model, fold / "checkpoint_latest")
        load_checkpoint(fold)
    finally:
        (fold / "checkpoint_latest").rename(folder)
        fold.rmdir()


def archive(path: Path) -> None:
    install_model(path, path.parent / "results", weights=path.parent, overwrite=True)


def weights(path: Path) -> None:
    state = load_sam_checkpoint(path)
    for read in (read_variant, lambda state, origin: infer_encoder(state, canvas=(64, 64), origin=origin)):
        one_after_the_other(lambda _, read=read: read(state, origin=str(path)), path)


def one_after_the_other(read: Callable[[Path], object], path: Path) -> None:
    """What one refuses, the next may take."""
    with contextlib.suppress(MasamError):
        read(path)


TARGETS: dict[str, Callable[[Path], None]] = {
    "image": image,
    "video": video,
    "series": series,
    "structures": structures,
    "dataset": dataset,
    "fingerprint": fingerprint,
    "plan": plan,
    "splits": splits,
    "boxes": boxes,
    "labelmap": lambda path: read_label_map(path) and None,
    "postprocessing": lambda path: read_postprocessing(path) and None,
    "array": array,
    "locations": lambda path: read_locations(path) and None,
    "probabilities": probabilities,
    "checkpoint": checkpoint,
    "archive": archive,
    "weights": weights,
}
