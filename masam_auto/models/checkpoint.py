"""Checkpoints: folders of safetensors and JSON files, written atomically and never unpickled.

    checkpoint_latest/  model.safetensors     the learned tensors, averaged; the header names the plan
                        training.safetensors  the weights in training and the optimisers' state
                        checkpoint.json       how far training is, and the checksums of the two files
    checkpoint_best/    the same, of the epoch with the best validation

No random generator's state is saved. Every draw has its own seed (see `training.sampling`), and torch's generator is
seeded again for every step.
"""

import contextlib
import errno
import logging
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from masam_auto.core.atomic import atomic_folder, told_if_unwritable
from masam_auto.core.checks import check
from masam_auto.core.dataset import DatasetDescription
from masam_auto.core.errors import MasamError, ModelError
from masam_auto.core.jsonio import decode, digest, parse_json, read_json, to_plain, write_json
from masam_auto.core.plan import Configuration, NetworkPlan, Plan
from masam_auto.core.selection import CHECKPOINTS

logger = logging.getLogger(__name__)

LATEST, PREVIOUS, BEST = CHECKPOINTS["latest"], "checkpoint_previous", CHECKPOINTS["best"]
# Name of the old best checkpoint between the two renames that replace it. For the latest, the name is PREVIOUS.
ASIDE = f".partial-old-{BEST}"
MODEL_FILE, TRAINING_FILE, STATE_FILE = "model.safetensors", "training.safetensors", "checkpoint.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelHeader:
    """What a model file says about itself.

    `sam_file` and `sam_sha256` (of the file) name the SAM checkpoint that the model started from, and whose frozen
    weights it may need; None from scratch. `pretrained_weights` is the checkpoint folder of another model that the
    training started from, or None. `canvas` (height, width), `in_channels` and `num_outputs` describe the network; None
    in models of version 1.
    """

    version: int = 2
    dataset_name: str
    configuration: str
    fold: str
    plan_digest: str
    sam_file: str | None = None
    sam_sha256: str | None = None
    pretrained_weights: str | None = None
    epoch: int
    network: NetworkPlan
    canvas: tuple[int, int] | None = None
    in_channels: int | None = None
    num_outputs: int | None = None

    def __post_init__(self) -> None:
        check(
            not self.network.stands_on_sam or None not in (self.sam_file, self.sam_sha256),
            "the model's frozen weights are SAM's, but its header names no SAM file",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochSoFar:
    """The steps of an epoch so far.

    `losses` has one entry per step. `learning_rate` is that of the last step. `waited` is the time spent waiting for
    windows, in seconds. `skipped` counts the most recent steps in a row whose update was left out. `rescued` is from
    older versions and not used.
    """

    losses: tuple[float, ...] = ()
    learning_rate: float = 0.0
    seconds: float = 0.0
    waited: float = 0.0
    rescued: int = 0
    skipped: int = 0

    @property
    def steps(self) -> int:
        """Updates made in this epoch."""
        return len(self.losses)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingState:
    """How far a training is: finished epochs, all steps, time used, and validation so far.

    `unfinished` holds the steps of an epoch that was stopped before its end. `left_out` is how many planned steps were
    not made because a time budget ended their epochs; draws are numbered without them. `best_epoch` is the number of
    epochs after which `best_dice` was reached. `judged` is the number of epochs that `smoothed_dice` averages; None in
    states of older versions. `look_steps` is the length, in steps, of the epochs after which the validation windows
    are checked; None for the plan's. `ended` says why a training ended before its budget was used.
    """

    version: int = 1
    epoch: int = 0
    step: int = 0
    unfinished: EpochSoFar = EpochSoFar()
    left_out: int = 0
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    budget: str | None = None
    finished: bool = False
    smoothed_dice: float | None = None
    judged: int | None = None
    look_steps: int | None = None
    best_dice: float | None = None
    best_epoch: int = 0
    ended: str | None = None
    checksums: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A whole checkpoint. `model` holds the averaged weights, `weights` those in training.

    `optimizers` holds each optimiser's `state_dict()["state"]`: parameter number -> name -> tensor.
    """

    header: ModelHeader
    state: TrainingState
    model: dict[str, torch.Tensor]
    weights: dict[str, torch.Tensor]
    optimizers: tuple[dict[int, dict[str, torch.Tensor]], ...]


def plan_digest(plan: Plan, configuration: Configuration) -> str:
    """Digest of everything that a training depends on: configuration, network, training and channels.

    Fields at their default are left out. So a field that a later version adds does not change the digest of old plans.
    """
    parts = (configuration, plan.network, plan.training, plan.channel_names)
    return digest([_without_defaults(part) for part in parts])


def _without_defaults(value: Any) -> Any:
    """JSON-like values; dataclasses become their fields that are not at the default."""
    if not is_dataclass(value):
        return to_plain(value)
    kept = {}
    for entry in fields(value):
        given = getattr(value, entry.name)
        default = entry.default_factory() if entry.default_factory is not MISSING else entry.default
        if given != default:
            kept[entry.name] = _without_defaults(given)
    return kept


def header_differences(
    header: ModelHeader, plan: Plan, configuration: Configuration, description: DatasetDescription
) -> list[str]:
    """What in a model does not fit a plan, its configuration and a data set, in words; empty if all fits."""
    found = []
    channels, outputs, canvas = description.num_channels, description.labels.num_outputs, configuration.canvas
    if header.num_outputs not in (None, outputs):
        found.append(f"it was trained for {header.num_outputs} outputs (classes), the data set has {outputs}")
    if header.in_channels not in (None, channels):
        found.append(f"it was trained with {header.in_channels} input channels, the data set has {channels}")
    if header.canvas not in (None, canvas):
        found.append(f"it was trained on a canvas of {_sides(header.canvas)} px, the plan's is {_sides(canvas)} px")
    for name in (entry.name for entry in fields(NetworkPlan)):
        then, now = getattr(header.network, name), getattr(plan.network, name)
        if then != now:
            values = "differ" if is_dataclass(then) or is_dataclass(now) else f"was {then}, the plan has {now}"
            found.append(f"network.{name} {values}")
    return found


def _sides(canvas: tuple[int, int] | None) -> str:
    return " x ".join(map(str, canvas or ()))


def save_checkpoint(fold_folder: Path, checkpoint: Checkpoint, *, best: bool) -> None:
    """Write the latest checkpoint, and also the best if it is. At any time, the old or the new one is complete.

    A new checkpoint is written next to the old one and then renamed. Between the two renames, the old one is called
    checkpoint_previous, where `load_checkpoint` finds it. The best is written first, so that it is never older than
    the latest says.

    Raises:
        OutputError: no space or no permission; the old checkpoint has been kept.
    """
    with _new_folder(fold_folder / (BEST if best else LATEST)) as new:
        write_model(new / MODEL_FILE, checkpoint.header, checkpoint.model)
        training = {f"weights/{name}": tensor for name, tensor in checkpoint.weights.items()}
        for number, states in enumerate(checkpoint.optimizers):
            for index, entry in states.items():
                training |= {f"optimizer/{number}/{index}/{name}": tensor for name, tensor in entry.items()}
        _save(training, new / TRAINING_FILE)
        checksums = {name: _checksum(new / name) for name in (MODEL_FILE, TRAINING_FILE)}
        write_json(new / STATE_FILE, replace(checkpoint.state, checksums=checksums))
        for name in (MODEL_FILE, TRAINING_FILE):
            shutil.copymode(new / STATE_FILE, new / name)  # safetensors lets only the owner read
    if best:
        with _new_folder(fold_folder / LATEST) as new:
            for name in (MODEL_FILE, TRAINING_FILE, STATE_FILE):
                _link(fold_folder / BEST / name, new / name)


def has_checkpoint(fold_folder: Path) -> bool:
    """Whether a fold's folder has a checkpoint."""
    return any((fold_folder / name / STATE_FILE).is_file() for name in (LATEST, PREVIOUS, BEST))


def load_checkpoint(fold_folder: Path) -> Checkpoint:
    """Load the most recent intact checkpoint: the latest, the one before it, or the best.

    Raises:
        ModelError: there is no checkpoint, or all are damaged.
    """
    problems = []
    for name in (LATEST, PREVIOUS, BEST):
        folder = fold_folder / name
        if not folder.is_dir():
            continue
        try:
            return _load(folder)
        except MasamError as error:
            problems.append(str(error))
            logger.warning("%s Trying an older checkpoint.", error)
    if problems:
        raise ModelError(
            f"{fold_folder}: no checkpoint can be continued: {problems[-1]} To replace it with a new training, give "
            "`overwrite` instead of `resume`."
        )
    raise ModelError(f"{fold_folder} holds no checkpoint to continue from. Leave out `resume` to start the training.")


def read_model(folder: Path) -> tuple[ModelHeader, dict[str, torch.Tensor]]:
    """Read the model of one checkpoint folder, e.g. fold_0/checkpoint_latest: header and tensors, on the CPU.

    Raises:
        ModelError: missing, damaged or written by a newer version.

    Example:
        >>> from masam_auto.models.checkpoint import read_model
        >>> header, tensors = read_model(folder / "checkpoint_best")
        >>> header.configuration, header.fold, header.canvas
        ('axis0', '0', (16, 16))
        >>> len(tensors) > 10
        True
    """
    path = folder / MODEL_FILE
    if not path.is_file():
        raise ModelError(f"{path} is missing. Train the fold first.")
    try:
        with safe_open(path, framework="pt") as handle:
            header = _header_of(handle.metadata() or {}, path)
            return header, {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is damaged ({error}).") from error


def _header_of(metadata: Mapping[str, str], path: Path) -> ModelHeader:
    if "masam_auto" not in metadata:
        raise ModelError(f"{path} is not a model of masam_auto: its header is missing.")
    try:
        plain = parse_json(metadata["masam_auto"])
    except ValueError as error:
        raise ModelError(f"{path} is damaged (its header is not valid JSON: {error}).") from error
    version: Any = plain.get("version") if isinstance(plain, dict) else None
    newest: Any = ModelHeader.__dataclass_fields__["version"].default
    if isinstance(version, int) and version > newest:
        raise ModelError(f"{path} was written by a newer version of masam_auto. Update masam_auto.")
    return decode(plain, ModelHeader, where=str(path))


def read_state(folder: Path) -> TrainingState:
    """Read how far the training of a checkpoint folder was. Raises PlanError if the file is missing or damaged."""
    return read_json(folder / STATE_FILE, TrainingState, what="checkpoint")


def write_model(path: Path, header: ModelHeader, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a model file for `read_model`. Raises OSError."""
    _save(tensors, path, {"masam_auto": msgspec.json.encode(header).decode()})


def remove_leftovers(fold_folder: Path) -> None:
    """Remove half-written checkpoints of a killed run, and the previous one if the latest is complete.

    If the best checkpoint was moved aside but its replacement was never put in place, it is moved back.
    """
    aside = fold_folder / ASIDE
    if aside.is_dir() and not (fold_folder / BEST).exists():
        aside.rename(fold_folder / BEST)
    for path in fold_folder.glob(".partial-*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    if (fold_folder / LATEST).is_dir():
        shutil.rmtree(fold_folder / PREVIOUS, ignore_errors=True)


def _load(folder: Path) -> Checkpoint:
    state = read_state(folder)
    for name, checksum in state.checksums.items():
        if not (folder / name).is_file() or _checksum(folder / name) != checksum:
            raise ModelError(f"{folder / name} is damaged: its checksum is not that of the file that was written.")
    if not (folder / TRAINING_FILE).is_file():
        raise ModelError(
            f"{folder} was imported or installed without the state of its training, so it cannot be continued. Start a "
            f"new training from it: `pretrained_weights={folder}`."
        )
    header, model = read_model(folder)
    weights: dict[str, torch.Tensor] = {}
    optimizers: dict[int, dict[int, dict[str, torch.Tensor]]] = {}
    for key, tensor in load_file(folder / TRAINING_FILE).items():
        kind, _, rest = key.partition("/")
        if kind == "weights":
            weights[rest] = tensor
        else:
            number, index, name = rest.split("/", 2)
            optimizers.setdefault(int(number), {}).setdefault(int(index), {})[name] = tensor
    ordered = tuple(optimizers[number] for number in sorted(optimizers))
    return Checkpoint(header=header, state=state, model=model, weights=weights, optimizers=ordered)


@contextlib.contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that replaces `folder` when the block ends without an error."""
    there = has_checkpoint(folder.parent)
    kept = "the last checkpoint has been kept. Then continue with `resume`."
    lost = "no epoch has been saved yet. Then start again."
    aside = folder.with_name(PREVIOUS if folder.name == LATEST else ASIDE)
    with told_if_unwritable(folder, kept if there else lost), atomic_folder(folder, aside=aside) as new:
        yield new


def _save(tensors: Mapping[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file. Raises OSError."""
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path, metadata)
    except SafetensorError as error:
        raise OSError(errno.EIO, str(error)) from error


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _checksum(path: Path) -> int:
    total = 0
    with path.open("rb") as handle:
        while block := handle.read(1 << 22):
            total = zlib.crc32(block, total)
    return total
