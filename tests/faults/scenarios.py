"""The commands that faults are put into, each on a tiny data set, and what they need to find there."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from masam_auto.cli import (
    apply_postprocessing,
    compare,
    convert_dataset,
    ensemble,
    evaluate,
    export_model,
    extract_fingerprint,
    find_best_configuration,
    import_checkpoint,
    install_model,
    plan_and_preprocess,
    predict,
    segment,
    train,
)
from masam_auto.cli.common import Main
from masam_auto.training.speed import FILE_NAME, speed_key
from tests import raw_data
from tests.network import plain_masam, reference_folder
from tests.random_weights import write_weights

QUICK = ("--set", "training.num_epochs=2", "training.steps_per_epoch=2", "training.warmup_steps=1")
HERE = ("--workers", "0")
CPU = ("-device", "cpu")
MODEL = "results/Dataset001_Toy/masam__axis0"
SIZES = {
    "dim": 32, "depth": 2, "heads": 2, "global": [1], "prompt_dim": 64, "mlp": 24, "sam_image_size": 48,
    "image_size": 32, "num_classes": 2, "rank": 3, "scale": 1.0, "N": 3, "batch": 1, "seed": 3,
}  # fmt: skip
Arguments = Callable[[Path], Sequence[object]]


@dataclass(frozen=True)
class Scenario:
    """One command. `before` are scenarios whose results it needs; `prepare` adds what no command makes.

    `again` gives the command line for a second run, after a first one that went wrong.
    """

    main: Main
    arguments: Arguments
    again: Arguments
    before: tuple[str, ...] = ()
    prepare: Callable[[Path], None] = lambda root: None


def same(arguments: Arguments, *more: str) -> Arguments:
    return lambda root: (*arguments(root), *more)


def make_raw(root: Path) -> None:
    """A raw data set, and how fast this machine is, which would be measured a little otherwise each time."""
    raw_data.make_raw_dataset(root / "raw", cases=3, shape=(5, 16, 14), test_cases=2)
    (root / "preprocessed").mkdir()
    (root / "preprocessed" / FILE_NAME).write_text(json.dumps({speed_key("vit_t"): {"wall": 1e6, "cpu": 1e6}}))


def make_download(root: Path) -> None:
    """A task of the Medical Segmentation Decathlon, as it is downloaded."""
    source = raw_data.make_raw_dataset(root / "download", number=4, name="Source", cases=2, shape=(5, 16, 14))
    task = root / "download" / "Task04_Toy"
    for folder, kept in (("imagesTr", "_0000"), ("labelsTr", "")):
        (task / folder).mkdir(parents=True)
        for file in (source / folder).iterdir():
            shutil.move(file, task / folder / file.name.replace(kept, "") if kept else task / folder / file.name)
    names = [file.name for file in sorted((task / "labelsTr").iterdir())]
    description = {
        "name": "Toy",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "a", "2": "b"},
        "test": [],
        "training": [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names],
    }
    (task / "dataset.json").write_text(json.dumps(description))
    shutil.rmtree(source)


def make_published(root: Path) -> None:
    folder = reference_folder.make_reference(root / "made", plain_masam, rounded=True, config=SIZES)
    assert Path(folder).is_dir()
    labels = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1, "b": 2}, "file_ending": ".nii.gz"}
    (root / "made" / "labels.json").write_text(json.dumps(labels))


def second_model(root: Path) -> None:
    """A model of another plan's name, whose probabilities are the first one's, turned a little."""
    folder = root / MODEL
    other = folder.with_name("other__axis0")
    shutil.copytree(folder, other)
    plan = json.loads((other / "plan.json").read_text())
    (other / "plan.json").write_text(json.dumps(plan | {"name": "other"}))


def trained_again(root: Path) -> Sequence[object]:
    there = any((root / MODEL / "fold_0").glob("checkpoint_*/checkpoint.json"))
    return (*train_arguments(root), *(["--c"] if there else []))


def train_arguments(root: Path) -> Sequence[object]:
    return (1, "fold0", *QUICK, *CPU, *HERE, "--save_probabilities")


def predict_arguments(root: Path) -> Sequence[object]:
    return (
        "-i",
        root / "raw/Dataset001_Toy/imagesTs",
        "-o",
        root / "segs",
        "-m",
        root / MODEL,
        *CPU,
        "--save_probabilities",
    )


def make_prompts(root: Path) -> None:
    make_raw(root)
    write_weights(root / "made" / "lite_medsam.pth")
    box = {"unit": "voxel", "min": [1, 2, 2], "max": [3, 12, 12]}
    (root / "made" / "boxes.json").write_text(json.dumps({"test_000": box, "test_001": box}))


def segment_arguments(root: Path) -> Sequence[object]:
    images, made = root / "raw/Dataset001_Toy/imagesTs", root / "made"
    weights = ("--sam_checkpoint", made / "lite_medsam.pth", "--canvas", 16)
    return ("-i", images, "-o", root / "segs", "--boxes", made / "boxes.json", *weights, *CPU)


def plan_arguments(root: Path) -> Sequence[object]:
    return ("-d", 1, "-c", "axis0", *HERE, "-gpu_memory_target", 0)


def ensemble_arguments(root: Path) -> Sequence[object]:
    return ("-i", root / "segs", root / "segs", "-o", root / "mean", *HERE, "--save_probabilities")


def post_arguments(root: Path) -> Sequence[object]:
    return ("-i", root / "segs", "-o", root / "cleaned", "-pp", next(root.rglob("postprocessing.json")), *HERE)


def import_arguments(root: Path) -> Sequence[object]:
    said = ("--canvas", 32, "--spacing", 3, 1, 1, "--window", 3, "--dataset_json", root / "made/labels.json")
    return (root / "made/masam_auto.pth", "--sam_checkpoint", root / "made/sam.pth", "-d", "Dataset007_Toy", *said)


SCENARIOS: dict[str, Scenario] = {
    "fingerprint": Scenario(
        main=extract_fingerprint.main,
        arguments=lambda root: ("-d", 1, *HERE),
        again=lambda root: ("-d", 1, *HERE),
        prepare=make_raw,
    ),
    "plan_and_preprocess": Scenario(
        main=plan_and_preprocess.main, arguments=plan_arguments, again=plan_arguments, prepare=make_raw
    ),
    "train": Scenario(main=train.main, arguments=train_arguments, again=trained_again, before=("plan_and_preprocess",)),
    "validate": Scenario(
        main=train.main,
        arguments=lambda root: (*train_arguments(root), "--val"),
        again=lambda root: (*train_arguments(root), "--val"),
        before=("train",),
        prepare=lambda root: shutil.rmtree(root / MODEL / "fold_0" / "validation"),
    ),
    "predict": Scenario(
        main=predict.main,
        arguments=predict_arguments,
        again=same(predict_arguments, "--continue_prediction"),
        before=("train",),
    ),
    "segment": Scenario(
        main=segment.main,
        arguments=segment_arguments,
        again=same(segment_arguments, "--continue_prediction"),
        prepare=make_prompts,
    ),
    "evaluate": Scenario(
        main=evaluate.main,
        arguments=lambda root: (root / "segs", root / "raw/Dataset001_Toy/labelsTr", *HERE),
        again=lambda root: (root / "segs", root / "raw/Dataset001_Toy/labelsTr", *HERE),
        before=("train",),
        prepare=lambda root: shutil.copytree(root / "raw/Dataset001_Toy/labelsTr", root / "segs") and None,
    ),
    "find_best": Scenario(
        main=find_best_configuration.main,
        arguments=lambda root: (1, *HERE),
        again=lambda root: (1, *HERE),
        before=("train",),
        prepare=second_model,
    ),
    "ensemble": Scenario(
        main=ensemble.main,
        arguments=ensemble_arguments,
        again=same(ensemble_arguments, "--overwrite"),
        before=("predict",),
    ),
    "postprocess": Scenario(
        main=apply_postprocessing.main,
        arguments=post_arguments,
        again=same(post_arguments, "--overwrite"),
        before=("predict", "find_best"),
    ),
    "export": Scenario(
        main=export_model.main,
        arguments=lambda root: ("-m", root / MODEL, "-o", root / "out/model.zip"),
        again=lambda root: ("-m", root / MODEL, "-o", root / "out/model.zip", "--overwrite"),
        before=("train",),
    ),
    "install": Scenario(
        main=install_model.main,
        arguments=lambda root: (root / "out/model.zip",),
        again=lambda root: (root / "out/model.zip", "--overwrite"),
        before=("export",),
        prepare=lambda root: shutil.rmtree(root / "results"),
    ),
    "install_over": Scenario(
        main=install_model.main,
        arguments=lambda root: (root / "out/model.zip", "--overwrite"),
        again=lambda root: (root / "out/model.zip", "--overwrite"),
        before=("export",),
    ),
    "import": Scenario(
        main=import_checkpoint.main,
        arguments=import_arguments,
        again=same(import_arguments, "--overwrite"),
        prepare=make_published,
    ),
    "import_over": Scenario(
        main=import_checkpoint.main,
        arguments=same(import_arguments, "--overwrite"),
        again=same(import_arguments, "--overwrite"),
        before=("import",),
    ),
    "convert": Scenario(
        main=convert_dataset.main,
        arguments=lambda root: ("msd", "-i", root / "download/Task04_Toy", *HERE),
        again=lambda root: ("msd", "-i", root / "download/Task04_Toy", *HERE),
        prepare=make_download,
    ),
    "compare": Scenario(
        main=compare.main,
        arguments=lambda root: (1, "fold0", "--with", "decoder_only", "--budget", "2steps", *CPU, *HERE),
        again=lambda root: (1, "fold0", "--with", "decoder_only", "--budget", "2steps", *CPU, *HERE),
        before=("plan_and_preprocess",),
    ),
}


def strings(arguments: Sequence[object]) -> list[str]:
    """As the command line has them."""
    return [str(argument) for argument in arguments]
