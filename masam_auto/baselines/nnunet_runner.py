"""One job of nnU-Net v2, run by nnU-Net's own Python: `python -I nnunet_runner.py JOB.json`.

A script for `baselines.nnunet`. The package never imports it: it imports nnU-Net and nothing of ours. The job names
its action (`ACTIONS`), nnU-Net's three folders, and a file for the result. The result is what the action returns, or
{"refused": why} if nnU-Net cannot do it. Trainer classes are imported by name: nnU-Net's own search imports every
trainer and fails if the library of any one is broken.
"""

import contextlib
import importlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PLANS = "nnUNetPlans"
WEIGHTS, LATEST, REQUEST = "weights.pth", "checkpoint_latest.pth", "request.json"
USED = "used"  # key in nnU-Net's init_args: the cost of the training so far
SAVE_SECONDS = 600.0
TRAINERS = {
    "nnUNetTrainer": "nnunetv2.training.nnUNetTrainer.nnUNetTrainer",
    "nnUNetTrainerNoMirroring": "nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoMirroring",
}
Job = dict[str, Any]


class Refused(Exception):
    """nnU-Net cannot do what is asked; the text goes to the user."""


class Account:
    """Cost of a training over all sessions: iterations, wall clock, and CPU-seconds of threads and workers."""

    def __init__(self, iterations: int = 0, seconds: float = 0.0, cpu_seconds: float = 0.0) -> None:
        self.iterations = iterations
        self._earlier = (seconds, cpu_seconds)
        self.start()

    def start(self) -> None:
        """Start counting this session."""
        self._started = (time.perf_counter(), _cpu_seconds())

    def seconds(self) -> float:
        return self._earlier[0] + time.perf_counter() - self._started[0]

    def cpu_seconds(self) -> float:
        return self._earlier[1] + _cpu_seconds() - self._started[1]

    def used(self) -> dict[str, Any]:
        return {"iterations": self.iterations, "seconds": self.seconds(), "cpu_seconds": self.cpu_seconds()}


def installed_versions(job: Job) -> dict[str, str]:
    """The installed versions of nnU-Net and torch."""
    from importlib.metadata import version

    import nnunetv2.training.nnUNetTrainer.nnUNetTrainer  # noqa: F401  reports a broken installation at once

    return {name: version(name) for name in ("nnunetv2", "torch")}


def prepare(job: Job) -> dict[str, Any]:
    """Fingerprint, plan and preprocess like `nnUNetv2_plan_and_preprocess` with its defaults."""
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
    from nnunetv2.experiment_planning.plan_and_preprocess_api import (
        extract_fingerprint_dataset,
        plan_experiment_dataset,
        preprocess_dataset,
    )

    started = time.perf_counter()
    number, processes = _number(job["dataset"]), job["processes"]
    extract_fingerprint_dataset(
        number, DatasetFingerprintExtractor, processes, clean=job["anew"], verbose=False, show_progress_bar=False
    )
    plan_experiment_dataset(number, ExperimentPlanner)
    for configuration in job["configurations"]:
        _known(configuration, _read(_preprocessed(job) / f"{PLANS}.json"))
    preprocess_dataset(number, PLANS, job["configurations"], [processes], show_progress_bar=False)
    return {"seconds": time.perf_counter() - started}


def train(job: Job) -> dict[str, Any]:
    """Train one fold, with nnU-Net's own loop or for a budget. An interrupted training is continued."""
    import torch

    trainer, planned_batch = _make_trainer(job, _preprocessed(job) / f"{PLANS}.json")
    account = _take_up(trainer, job["request"])
    _save_with(trainer, account)
    if job["budget"] is None:
        trainer.run_training()
        account.iterations = trainer.num_epochs * trainer.num_iterations_per_epoch
    else:
        trainer.on_train_start()
        account.start()
        _train_within(trainer, account, **job["budget"])
    used = account.used()
    torch.save(trainer.network.state_dict(), Path(trainer.output_folder) / WEIGHTS)
    return {
        **used,
        "batch": trainer.batch_size,
        "planned_batch": planned_batch,
        "patch": [int(side) for side in trainer.configuration_manager.patch_size],
        "parameters": sum(value.numel() for value in trainer.network.parameters() if value.requires_grad),
        "memory_gib": _peak_memory_gib(trainer.device),
    }


def predict(job: Job) -> dict[str, Any]:
    """Segment raw images one by one with the trained fold, like `nnUNetv2_predict`. Returns the time of each."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    model = Path(job["folders"]["results"], job["dataset"], f"{job['trainer']}__{PLANS}__{job['configuration']}")
    trainer, _ = _make_trainer(job, model / "plans.json")
    trainer.initialize()
    trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()  # sets the axes to mirror along
    trainer.set_deep_supervision_enabled(False)
    network = getattr(trainer.network, "_orig_mod", trainer.network)  # unwraps a compiled network
    network.eval()
    weights = torch.load(Path(trainer.output_folder) / WEIGHTS, map_location=trainer.device, weights_only=True)
    predictor = nnUNetPredictor(device=trainer.device, allow_tqdm=False)
    predictor.manual_initialization(
        network,
        trainer.plans_manager,
        trainer.configuration_manager,
        [{name.removeprefix("_orig_mod."): value for name, value in weights.items()}],
        trainer.dataset_json,
        job["trainer"],
        trainer.inference_allowed_mirroring_axes,
    )
    seconds, cpu_seconds = {}, {}
    for name, files in job["images"].items():
        started, started_cpu = time.perf_counter(), time.process_time()
        predictor.predict_from_files_sequential([files], [str(Path(job["output"]) / name)])
        seconds[name], cpu_seconds[name] = time.perf_counter() - started, time.process_time() - started_cpu
    return {"seconds": seconds, "cpu_seconds": cpu_seconds}


def evaluate(job: Job) -> dict[str, Any]:
    """Score a folder of segmentations with the function behind `nnUNetv2_evaluate_folder`."""
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

    # the label files' ending: images may have another format
    description = {**_read(Path(job["dataset_json"])), "file_ending": job["file_ending"]}
    references = Path(job["references"])
    example = next(iter(sorted(references.iterdir())))
    reader = determine_reader_writer_from_dataset_json(description, str(example))()
    labels = [tuple(label) if isinstance(label, list) else label for label in job["labels"]]
    compute_metrics_on_folder(
        str(references),
        job["predictions"],
        job["summary"],
        reader,
        job["file_ending"],
        labels,
        ignore_label=job["ignore"],
        num_processes=job["processes"],
        chill=False,
    )
    return {}


ACTIONS: dict[str, Callable[[Job], dict[str, Any]]] = {
    "start": installed_versions,
    "prepare": prepare,
    "train": train,
    "predict": predict,
    "evaluate": evaluate,
}


def _train_within(trainer: Any, account: Account, *, kind: str, amount: float) -> None:
    """Train until the budget is used. nnU-Net's learning rate schedule runs over the budget instead of its epochs.

    nnU-Net's validation after each epoch is left out, so that the whole budget goes into learning; it does not affect
    the weights that predict. Every `SAVE_SECONDS` a checkpoint is saved.
    """
    losses: list[Any] = []
    clocks: dict[str, Callable[[], float]] = {
        "wall": account.seconds,
        "cpu": account.cpu_seconds,
        "steps": lambda: account.iterations,
    }
    clock = clocks[kind]
    used, saved = clock() / amount, account.seconds()
    while used < 1:
        if not losses:
            trainer.on_train_epoch_start()
        trainer.lr_scheduler.step(used * trainer.num_epochs)
        losses.append(trainer.train_step(next(trainer.dataloader_train)))
        account.iterations += 1
        used = min(clock() / amount, 1.0)
        save = used < 1 and account.seconds() - saved >= SAVE_SECONDS
        if used >= 1 or save or len(losses) == trainer.num_iterations_per_epoch:
            trainer.on_train_epoch_end(losses)
            trainer.print_to_log_file(
                f"train_loss {losses[-1]['loss']:.4f}, iteration {account.iterations}, {used:.0%} of the budget"
            )
            if save:
                trainer.save_checkpoint(str(Path(trainer.output_folder) / LATEST))
                saved = account.seconds()
            trainer.current_epoch += 1
            losses = []
    trainer.on_train_end()


def _take_up(trainer: Any, request: Any) -> Account:
    """Load the checkpoint of an interrupted training with the same request. Files of another request are removed."""
    folder = Path(trainer.output_folder)
    if not (folder / REQUEST).is_file() or _read(folder / REQUEST) != request:
        for checkpoint in folder.glob("*.pth"):
            checkpoint.unlink()
        _write(folder / REQUEST, request)
    if not (folder / LATEST).is_file():
        return Account()
    with _unpickling_numbers_only():
        trainer.load_checkpoint(str(folder / LATEST))
    return Account(**trainer.my_init_kwargs[USED])


@contextlib.contextmanager
def _unpickling_numbers_only() -> Iterator[None]:
    """Let torch unpickle only tensors, plain values and numpy numbers, even though nnU-Net asks for everything."""
    import numpy as np
    from torch.serialization import safe_globals

    restore: Any = np.float64(0).__reduce__()  # a function of numpy's, and its arguments
    kinds = [np.dtype, restore[0], *(type(np.dtype(kind)) for kind in (np.float32, np.float64, np.int64))]
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    with safe_globals(kinds):
        yield


def _save_with(trainer: Any, account: Account) -> None:
    """Make the trainer write checkpoints atomically, with the cost of the training so far."""
    save = trainer.save_checkpoint

    def save_checkpoint(file: str) -> None:
        trainer.my_init_kwargs[USED] = account.used()
        save(f"{file}.partial")
        Path(f"{file}.partial").replace(file)

    trainer.save_checkpoint = save_checkpoint


def _make_trainer(job: Job, plans_file: Path) -> tuple[Any, int]:
    """nnU-Net's trainer, with its batch limited by the job, and the planned batch."""
    import torch

    if job["device"] == "cuda":  # as nnU-Net's own commands do
        torch.backends.cudnn.benchmark = True
        torch.set_num_threads(1)
    plans = _read(plans_file)
    configuration = _known(job["configuration"], plans)
    planned = configuration["batch_size"]
    configuration["batch_size"] = min(planned, job["batch"] or planned)
    kind = getattr(importlib.import_module(TRAINERS[job["trainer"]]), job["trainer"])
    trainer = kind(
        plans={**plans, "continue_training": False},
        configuration=job["configuration"],
        fold=job["fold"],
        dataset_json=_read(plans_file.with_name("dataset.json")),
        device=torch.device(job["device"]),
    )
    return trainer, planned


def _known(configuration: str, plans: dict[str, Any]) -> dict[str, Any]:
    if configuration not in plans["configurations"]:
        raise Refused(f"nnU-Net planned no {configuration} for this data, only {', '.join(plans['configurations'])}")
    return plans["configurations"][configuration]


def _number(dataset: str) -> int:
    return int(dataset.removeprefix("Dataset").partition("_")[0])


def _preprocessed(job: Job) -> Path:
    return Path(job["folders"]["preprocessed"]) / job["dataset"]


def _cpu_seconds() -> float:
    """CPU-seconds of this process and its threads, of ended workers, and (on Linux) of running workers."""
    import resource

    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = time.process_time() + ended.ru_utime + ended.ru_stime
    for worker in multiprocessing.active_children():
        with contextlib.suppress(OSError):  # it has ended, or this is not Linux
            user, system = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
            used += (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    return used


def _peak_memory_gib(device: Any) -> float:
    import resource

    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with contextlib.suppress(OSError):  # on Linux, ru_maxrss includes the parent process
        peak = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _write(path: Path, value: Any) -> None:
    temporary = path.with_name(f".partial-{path.name}")
    temporary.write_text(json.dumps(value), encoding="utf-8")
    temporary.replace(path)


def main(job_file: str) -> None:
    """Set nnU-Net's folders, do the job, and write its result."""
    job = _read(Path(job_file))
    for name, folder in job["folders"].items():
        os.environ[f"nnUNet_{name}"] = folder
    if job.get("device") == "cpu":  # the network needs every core; masam_train uses no workers there either
        os.environ["nnUNet_n_proc_DA"] = "0"  # noqa: SIM112  nnU-Net's spelling
    try:
        result = ACTIONS[job["action"]](job)
    except Refused as refusal:
        result = {"refused": str(refusal)}
    _write(Path(job["result"]), result)


if __name__ == "__main__":
    main(sys.argv[1])
