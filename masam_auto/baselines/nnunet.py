"""nnU-Net v2 on our raw data and folds, in its own Python environment, through `nnunet_runner.py`."""

import functools
import logging
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from masam_auto.baselines.method import Method, Prediction, Training
from masam_auto.core.dataset import Case, Dataset
from masam_auto.core.errors import ModelError, OutputError
from masam_auto.core.jsonio import read_plain, write_bytes, write_json
from masam_auto.core.plan import TrainingPlan
from masam_auto.imaging.io import label_ending
from masam_auto.learning.schedule import parse_budget

logger = logging.getLogger(__name__)

RUNNER = Path(__file__).with_name("nnunet_runner.py")
ITERATIONS_PER_EPOCH = 250
LAST_LINES = 3

# name -> nnU-Net's configuration and trainer
VARIANTS = {
    "nnunet_3d_fullres": ("3d_fullres", "nnUNetTrainer"),
    "nnunet_3d_fullres_nomirror": ("3d_fullres", "nnUNetTrainerNoMirroring"),
    "nnunet_2d": ("2d", "nnUNetTrainer"),
    "nnunet_2d_nomirror": ("2d", "nnUNetTrainerNoMirroring"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class NnUNet:
    """nnU-Net beside us: its Python, and the folder for its raw (a link), preprocessed and results folders."""

    python: Path
    folder: Path


def open_nnunet(python: Path, folder: Path) -> NnUNet:
    """Look whether nnU-Net works there, and note its versions in FOLDER/versions.json.

    Raises:
        ModelError: no such Python, or it cannot import nnU-Net.
    """
    if not python.is_file():
        raise ModelError(
            f"nnU-Net's Python is not at {python}. Make its environment with `make nnunet-env`, or give --nnunet_python PATH."
        )
    nnunet = NnUNet(python=python.absolute(), folder=folder.absolute())
    versions = _run(nnunet, "versions", {})
    write_json(nnunet.folder / "versions.json", versions)
    logger.info("nnU-Net %s with torch %s: %s", versions["nnunetv2"], versions["torch"], python)
    return nnunet


def nnunet_method(
    nnunet: NnUNet,
    name: str,
    dataset: Dataset,
    splits: Path,
    fold: int,
    *,
    budget: str | None,
    batch: int | None,
    device: str,
    processes: int,
) -> Method:
    """One of nnU-Net's `VARIANTS` on a fold.

    Args:
        nnunet: where it is.
        name: of `VARIANTS`.
        dataset: the raw data; its folder is linked, never changed.
        splits: our splits.json, which becomes nnU-Net's splits_final.json.
        fold: its number.
        budget: as `--budget` of masam_train, an epoch being nnU-Net's 250 iterations; None for its own 1000 epochs.
        batch: at most so many patches; None for as many as it plans.
        device: cpu or cuda.
        processes: for its preprocessing.
    """
    configuration, trainer = VARIANTS[name]
    parsed = parse_budget(budget, replace(TrainingPlan(), steps_per_epoch=ITERATIONS_PER_EPOCH)) if budget else None
    job = {
        "dataset": dataset.name,
        "configuration": configuration,
        "trainer": trainer,
        "fold": fold,
        "device": device,
        "batch": batch,
        "budget": parsed and {"kind": parsed.kind, "amount": parsed.amount},
    }
    return Method(
        name=name,
        train=functools.partial(_train, nnunet, job, dataset, splits, processes),
        predict=functools.partial(_predict, nnunet, job),
        request={"budget": budget, "batch": batch, "device": device},
    )


def evaluate_with_nnunet(
    nnunet: NnUNet, dataset: Dataset, predictions: Path, references: Path, output: Path
) -> dict[str, Any]:
    """Score a folder of segmentations with the function behind nnUNetv2_evaluate_folder.

    Args:
        nnunet: where it is.
        dataset: the raw data.
        predictions: segmentations ID.ext.
        references: the same names.
        output: the summary to write, .json.

    Returns:
        Its summary, in the schema of ours.

    Raises:
        ModelError: nnU-Net failed.
    """
    labels = dataset.description.labels
    values = labels.foreground.values()
    job = {
        "predictions": str(predictions.absolute()),
        "references": str(references.absolute()),
        "dataset_json": str(dataset.folder.absolute() / "dataset.json"),
        "labels": [value[0] if len(value) == 1 else list(value) for value in values],
        "ignore": labels.ignore,
        "file_ending": label_ending(dataset.description.file_ending),
        "summary": str(output.absolute()),
        "processes": 1,
    }
    _run(nnunet, "evaluate", job)
    return read_plain(output, what="summary of nnU-Net")


def _train(nnunet: NnUNet, job: dict[str, Any], dataset: Dataset, splits: Path, processes: int) -> Training:
    _prepare(nnunet, dataset, job["configuration"], processes)
    write_bytes(nnunet.folder / "preprocessed" / dataset.name / "splits_final.json", splits.read_bytes())
    result = _run(nnunet, "train", job)
    batch, planned = result["batch"], result["planned_batch"]
    remarks = [f"patch {' x '.join(map(str, result.pop('patch')))}"]
    if job["budget"]:
        remarks.append("its schedule compressed to the budget")
    if batch < planned:
        remarks.append(f"batch cut from {planned} to {batch}")
    return Training(**result, remarks=tuple(remarks))


def _predict(nnunet: NnUNet, job: dict[str, Any], cases: Sequence[Case], output: Path) -> Prediction:
    output.mkdir(parents=True, exist_ok=True)
    images = {
        frame: [str(file.absolute()) for file in files]
        for case in cases
        for frame, files in zip(case.frames, case.images, strict=True)
    }
    result = _run(nnunet, "predict", {**job, "images": images, "output": str(output.absolute())})
    return Prediction(
        **{
            kind: {case.identifier: sum(times[frame] for frame in case.frames) for case in cases}
            for kind, times in result.items()
        }
    )


def _prepare(nnunet: NnUNet, dataset: Dataset, configuration: str, processes: int) -> None:
    """Fingerprint, plan and preprocess, unless that is done; the raw folder is reached through a link."""
    done = nnunet.folder / f"prepared_{configuration}.json"
    link = nnunet.folder / "raw" / dataset.name
    source = dataset.folder.resolve()
    if link.is_symlink() and link.resolve() != source:
        raise OutputError(f"{link} leads to {link.resolve()}, not to {source}. Remove {nnunet.folder} to prepare anew.")
    if done.is_file():
        return
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink():
        link.symlink_to(source, target_is_directory=True)
    logger.info("nnU-Net plans and preprocesses %s, %s", dataset.name, configuration)
    job = {"dataset": dataset.name, "configurations": [configuration], "processes": processes}
    write_json(done, _run(nnunet, "prepare", job))


def _run(nnunet: NnUNet, action: str, job: dict[str, Any]) -> dict[str, Any]:
    """Have nnU-Net's Python do a job; what it prints goes to FOLDER/nnunet.log.

    Raises:
        ModelError: it failed, or nnU-Net cannot do it.
    """
    log = nnunet.folder / "nnunet.log"
    nnunet.folder.mkdir(parents=True, exist_ok=True)
    folders = {name: str(nnunet.folder / name) for name in ("raw", "preprocessed", "results")}
    with tempfile.TemporaryDirectory(prefix=f"{action}-", dir=nnunet.folder) as own, open(log, "ab") as handle:
        request, result = Path(own, "job.json"), Path(own, "result.json")
        write_json(request, {**job, "action": action, "folders": folders, "result": str(result)})
        # -I: neither our package's folder nor PYTHONPATH may hide modules of nnU-Net's environment
        command = [os.fspath(nnunet.python), "-I", os.fspath(RUNNER), os.fspath(request)]
        code = subprocess.run(command, stdout=handle, stderr=handle, stdin=subprocess.DEVNULL, check=False).returncode
        answer = read_plain(result, what="answer of nnU-Net") if result.is_file() else None
    if code != 0 or answer is None:
        last = " / ".join(log.read_text(errors="replace").splitlines()[-LAST_LINES:])
        raise ModelError(f"nnU-Net failed to {action} (exit code {code}): {last}. All it said is in {log}.")
    if "refused" in answer:
        raise ModelError(f"{answer['refused']}. Leave it out of --with.")
    found: dict[str, Any] = answer
    return found
