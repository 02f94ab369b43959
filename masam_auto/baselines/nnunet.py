"""Run nnU-Net v2 on our raw data and folds, in its own Python environment, through `nnunet_runner.py`."""

import functools
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from masam_auto.baselines.compared_method import Method, PredictionCost, Training, raw_digest
from masam_auto.baselines.external_program import run_program
from masam_auto.core.atomic import scratch_folder
from masam_auto.core.budget import parse_budget
from masam_auto.core.dataset import Case, Dataset
from masam_auto.core.errors import ModelError, OutputError
from masam_auto.core.jsonio import read_plain, write_json
from masam_auto.core.partial import partial_path
from masam_auto.core.plan import TrainingPlan
from masam_auto.formats.io import label_ending

logger = logging.getLogger(__name__)

RUNNER = Path(__file__).with_name("nnunet_runner.py")
ITERATIONS_PER_EPOCH = 250
LAST_LINES = 3
# Variables about the machine that nnU-Net keeps. Its others (folders, wandb) would change what is compared.
KEPT_VARIABLES = ("nnUNet_compile", "nnUNet_n_proc_DA")

# name -> nnU-Net's configuration and trainer
VARIANTS = {
    "nnunet_3d_fullres": ("3d_fullres", "nnUNetTrainer"),
    "nnunet_3d_fullres_nomirror": ("3d_fullres", "nnUNetTrainerNoMirroring"),
    "nnunet_2d": ("2d", "nnUNetTrainer"),
    "nnunet_2d_nomirror": ("2d", "nnUNetTrainerNoMirroring"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class NnUNet:
    """An installed nnU-Net: its Python, its working folder and its environment variables.

    The working folder holds nnU-Net's raw (a link), preprocessed and results folders.
    """

    python: Path
    folder: Path
    environment: Mapping[str, str]
    version: str = ""


def open_nnunet(python: Path, folder: Path, environment: Mapping[str, str]) -> NnUNet:
    """Check that nnU-Net works there, and write its versions to FOLDER/versions.json.

    Args:
        python: Python of nnU-Net's environment.
        folder: folder for everything that nnU-Net writes.
        environment: its environment variables, from `environment_for`.

    Raises:
        ModelError: there is no such Python, or it cannot import nnU-Net.
    """
    remedy = "Make its environment with `make nnunet-env`, or give --nnunet_python PATH."
    if not python.is_file() or not os.access(python, os.X_OK):
        raise ModelError(f"there is no Python for nnU-Net at {python}. {remedy}")
    nnunet = NnUNet(python=python.absolute(), folder=folder.absolute(), environment=environment)
    try:
        versions = _run(nnunet, "start", {})
    except ModelError as error:
        raise ModelError(f"{error} {remedy}") from error
    write_json(nnunet.folder / "versions.json", versions)
    logger.info("nnU-Net %s with torch %s: %s", versions["nnunetv2"], versions["torch"], python)
    return replace(nnunet, version=versions["nnunetv2"])


def environment_for(device: torch.device, environment: Mapping[str, str]) -> dict[str, str]:
    """Environment variables for nnU-Net: ours, without those of other nnU-Net work. It sees only the chosen GPU."""
    kept = {
        name: value for name, value in environment.items() if not name.startswith("nnUNet_") or name in KEPT_VARIABLES
    }
    if device.type == "cuda" and device.index:
        visible = environment.get("CUDA_VISIBLE_DEVICES", "")
        kept["CUDA_VISIBLE_DEVICES"] = visible.split(",")[device.index] if visible else str(device.index)
    return kept


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
        nnunet: the installed nnU-Net.
        name: one of `VARIANTS`.
        dataset: the raw data. Its folder is linked, never changed.
        splits: our splits.json, which becomes nnU-Net's splits_final.json.
        fold: its number.
        budget: as `--budget` of masam_train, with nnU-Net's 250 iterations per epoch; None for its usual 1000 epochs.
        batch: largest batch in patches; None for the planned batch.
        device: cpu or cuda.
        processes: processes for its preprocessing.
    """
    configuration, trainer = VARIANTS[name]
    parsed = parse_budget(budget, replace(TrainingPlan(), steps_per_epoch=ITERATIONS_PER_EPOCH)) if budget else None
    folds = _frames_of(read_plain(splits, what="splits file"), dataset.cases)
    request = {
        "budget": budget,
        "batch": batch,
        "device": device,
        "nnU-Net": nnunet.version,
        "training cases": folds[fold]["train"],
    }
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
        train=functools.partial(_train, nnunet, {**job, "request": request}, dataset, folds, processes),
        predict=functools.partial(_predict, nnunet, job),
        request=request,
    )


def _frames_of(splits: list[dict[str, list[str]]], cases: Sequence[Case]) -> list[dict[str, list[str]]]:
    """Splits with each video replaced by its frames, which nnU-Net treats as cases."""
    frames = {case.identifier: case.frames for case in cases}
    return [
        {side: [frame for name in fold[side] for frame in frames.get(name, (name,))] for side in ("train", "val")}
        for fold in splits
    ]


def evaluate_with_nnunet(
    nnunet: NnUNet, dataset: Dataset, predictions: Path, references: Path, output: Path
) -> dict[str, Any]:
    """Score a folder of segmentations with the function behind nnUNetv2_evaluate_folder.

    Args:
        nnunet: the installed nnU-Net.
        dataset: the raw data.
        predictions: folder of segmentations ID.ext.
        references: folder of references with the same names.
        output: the summary to write, .json.

    Returns:
        Its summary, in the same schema as ours.

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


def _train(
    nnunet: NnUNet, job: dict[str, Any], dataset: Dataset, folds: list[dict[str, list[str]]], processes: int
) -> Training:
    _prepare(nnunet, dataset, job["configuration"], processes)
    write_json(nnunet.folder / "preprocessed" / dataset.name / "splits_final.json", folds)
    result = _run(nnunet, "train", {**job, "request": {**job["request"], "raw data": raw_digest(dataset)}})
    batch, planned = result["batch"], result["planned_batch"]
    remarks = [f"patch {' x '.join(map(str, result.pop('patch')))}"]
    if job["budget"]:
        remarks.append("schedule compressed to the budget")
    if batch < planned:
        remarks.append(f"batch cut from {planned} to {batch}")
    return Training(**result, remarks=tuple(remarks))


def _predict(nnunet: NnUNet, job: dict[str, Any], cases: Sequence[Case], output: Path) -> PredictionCost:
    output.mkdir(parents=True, exist_ok=True)
    images = {
        frame: [str(file.absolute()) for file in files]
        for case in cases
        for frame, files in zip(case.frames, case.images, strict=True)
    }
    result = _run(nnunet, "predict", {**job, "images": images, "output": str(output.absolute())})
    return PredictionCost(
        **{
            kind: {case.identifier: sum(times[frame] for frame in case.frames) for case in cases}
            for kind, times in result.items()
        }
    )


def _prepare(nnunet: NnUNet, dataset: Dataset, configuration: str, processes: int) -> None:
    """Fingerprint, plan and preprocess, unless that is done for the same raw data. A link leads to the raw data."""
    link = nnunet.folder / "raw" / dataset.name
    source = dataset.folder.resolve()
    if link.is_symlink() and link.resolve() != source:
        raise OutputError(f"{link} leads to {link.resolve()}, not to {source}. Remove {nnunet.folder} to start over.")
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink():
        link.symlink_to(source, target_is_directory=True)
    raw, own = raw_digest(dataset), nnunet.folder / f"prepared_{configuration}.json"
    records = {file: read_plain(file, what="record of nnU-Net") for file in nnunet.folder.glob("prepared_*.json")}
    done = {file for file, record in records.items() if record.get("raw data", raw) == raw}  # older records lack it
    if own in done:
        return
    logger.info("nnU-Net plans and preprocesses %s, %s", dataset.name, configuration)
    job = {"dataset": dataset.name, "configurations": [configuration], "processes": processes, "anew": not done}
    write_json(own, {**_run(nnunet, "prepare", job), "raw data": raw})


def _run(nnunet: NnUNet, action: str, job: dict[str, Any]) -> dict[str, Any]:
    """Run a job with nnU-Net's Python. Its output goes to FOLDER/nnunet.log.

    Raises:
        ModelError: that Python cannot be run, it failed, or nnU-Net cannot do the job.
    """
    log = nnunet.folder / "nnunet.log"
    nnunet.folder.mkdir(parents=True, exist_ok=True)
    folders = {name: str(nnunet.folder / name) for name in ("raw", "preprocessed", "results")}
    with scratch_folder(partial_path(nnunet.folder / action)) as own, open(log, "ab") as handle:
        request, result, said = own / "job.json", own / "result.json", handle.tell()
        write_json(request, {**job, "action": action, "folders": folders, "result": str(result)})
        # -I: our package's folder and PYTHONPATH must not hide modules of nnU-Net's environment
        command = [os.fspath(nnunet.python), "-I", os.fspath(RUNNER), os.fspath(request)]
        try:
            code = run_program(command, stdout=handle, stderr=handle, env=nnunet.environment)
        except OSError as error:
            raise ModelError(f"{nnunet.python} cannot be run: {error.strerror}.") from error
        answer = read_plain(result, what="answer of nnU-Net") if result.is_file() else None
    if code != 0 or answer is None:
        lines = log.read_bytes()[said:].decode(errors="replace").splitlines()
        last = " / ".join([line.strip() for line in lines if line.strip()][-LAST_LINES:]).rstrip(".") or "no output"
        memory = code == -9 or "out of memory" in last
        remedy = " Give it a smaller batch: --nnunet_batch CONFIGURATION=N." if memory and action == "train" else ""
        raise ModelError(f"nnU-Net failed to {action} (exit code {code}): {last}. Its full output is in {log}.{remedy}")
    if "refused" in answer:
        raise ModelError(f"{answer['refused']}. Leave it out of --with.")
    found: dict[str, Any] = answer
    return found
