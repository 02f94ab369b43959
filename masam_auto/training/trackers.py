"""Follow a training in TensorBoard, Weights & Biases or MLflow, in addition to metrics.jsonl. Off by default.

Each sink is one function in `SINKS`: given the run, it opens the program's own package and returns what records an
epoch and what ends the run. The packages are imported only when they are asked for.
"""

import contextlib
import importlib
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from masam_auto.core.atomic import write_bytes
from masam_auto.core.errors import ModelError
from masam_auto.core.jsonio import to_plain
from masam_auto.core.plan import Plan
from masam_auto.training.progress import EpochMetrics

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What a sink is told: the fold's folder, its data set, a name such as "masam__axis0/fold_0", the plan, and the
    epoch that comes first (above 0 where a training is continued).
    """

    folder: Path
    dataset_name: str
    name: str
    plan: Plan
    first_epoch: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Sink:
    """How to record values by name at an epoch, and how to end the run."""

    record: Callable[[dict[str, float], int], None]
    close: Callable[[], None]


def open_tensorboard(run: Run) -> Sink:
    """Event files in fold_K/tensorboard."""
    writer = _package("tensorboard").SummaryWriter(str(run.folder / "tensorboard"), purge_step=run.first_epoch)

    def record(values: dict[str, float], epoch: int) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, epoch)
        writer.flush()

    return Sink(record=record, close=writer.close)


def open_wandb(run: Run) -> Sink:
    """A run in the project named like the data set. A continued training continues its run."""
    session = _package("wandb").init(
        project=run.dataset_name,
        name=run.name,
        dir=str(run.folder),
        config=to_plain(run.plan),
        id=_known_id(run, "wandb"),
        resume="allow",
    )
    _keep_id(run, "wandb", session.id)
    return Sink(record=lambda values, epoch: session.log(values, step=epoch), close=session.finish)


def open_mlflow(run: Run) -> Sink:
    """A run in the experiment named like the data set. A continued training continues its run."""
    package = _package("mlflow")
    package.set_experiment(run.dataset_name)
    known = _known_id(run, "mlflow")
    started = package.start_run(run_id=known) if known else package.start_run(run_name=run.name)
    if not known:  # MLflow lets nobody change them later
        package.log_params(to_plain(run.plan.training))
    _keep_id(run, "mlflow", started.info.run_id)
    return Sink(record=lambda values, epoch: package.log_metrics(values, step=epoch), close=package.end_run)


SINKS: dict[str, Callable[[Run], Sink]] = {
    "tensorboard": open_tensorboard,
    "wandb": open_wandb,
    "mlflow": open_mlflow,
}
_MODULES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "mlflow": "mlflow"}


def check_sinks(names: Sequence[str]) -> None:
    """Look whether the packages of sinks are there, before anything is done.

    Raises:
        ModelError: an unknown name, or a package that is missing or broken.
    """
    for name in names:
        if name not in SINKS:
            raise ModelError(f"`log_to={name}` is unknown; choose among {', '.join(SINKS)}")
        _package(name)


@contextlib.contextmanager
def open_records(names: Sequence[str], run: Run) -> Iterator[Callable[[EpochMetrics], None]]:
    """Give a function that hands an epoch's metrics to each named sink.

    A sink that fails is left out from then on, with a warning: a lost connection is no reason to stop a training.

    Raises:
        ModelError: as `check_sinks`.
    """
    check_sinks(names)
    opened: dict[str, Sink] = {}
    for name in names:
        with _only_warned(name):
            opened[name] = SINKS[name](run)

    def record(metrics: EpochMetrics) -> None:
        for name, sink in list(opened.items()):
            with _only_warned(name) as failures:
                sink.record(values_of(metrics), metrics.epoch)
            if failures:
                del opened[name]

    try:
        yield record
    finally:
        for name, sink in opened.items():
            with _only_warned(name):
                sink.close()


def values_of(metrics: EpochMetrics) -> dict[str, float]:
    """An epoch's numbers by name, Dice as "dice/CLASS"; those that are not known are left out."""
    plain = to_plain(metrics)
    dice = {f"dice/{re.sub(r'[^A-Za-z0-9_. -]', '_', name)}": value for name, value in plain.pop("dice").items()}
    return {
        name: float(value)
        for name, value in {**plain, **dice}.items()
        if isinstance(value, int | float) and name != "epoch"
    }


def _package(name: str) -> Any:
    """The package of a sink, imported now. Raises ModelError."""
    try:
        return importlib.import_module(_MODULES[name])
    except ImportError as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(
            f"`log_to={name}` needs the package {name}, which cannot be imported here ({reason}). Install it (pip "
            f"install {name}), or leave `log_to` out: metrics.jsonl and progress.png are written in any case."
        ) from error


@contextlib.contextmanager
def _only_warned(name: str) -> Iterator[list[Exception]]:
    """Turn a failure within the block into a warning; it is in the list that is given."""
    failures: list[Exception] = []
    try:
        yield failures
    except Exception as error:
        failures.append(error)
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        logger.warning("`log_to=%s` failed (%s); the training continues, and metrics.jsonl has all", name, reason)


def _known_id(run: Run, name: str) -> str | None:
    """The run that an earlier session of this training recorded to."""
    file = run.folder / f"{name}_run.txt"
    return file.read_text(encoding="utf-8").strip() if file.is_file() else None


def _keep_id(run: Run, name: str, identifier: str) -> None:
    write_bytes(run.folder / f"{name}_run.txt", f"{identifier}\n".encode())
