"""Why a training ends before its budget is used: nothing better for long, or a file that asks for it."""

from pathlib import Path

from masam_auto.core.plan import TrainingPlan
from masam_auto.models.checkpoint import TrainingState

STOP_FILE = "stop"


def stop_file_is_there(fold_folder: Path) -> bool:
    """Whether somebody has asked the training of a fold to end after its epoch."""
    return (fold_folder / STOP_FILE).is_file()


def remove_stop_file(fold_folder: Path) -> None:
    """Remove the file, once the training that it ended is saved."""
    (fold_folder / STOP_FILE).unlink(missing_ok=True)


def reason_to_end(state: TrainingState, training: TrainingPlan, *, asked: bool) -> str | None:
    """Why the training is to end after the epoch that `state` counts last; None where it is not.

    Args:
        state: after that epoch and its validation.
        training: its patience.
        asked: whether the stop file was there.
    """
    if asked:
        return f"the file {STOP_FILE} asked for it"
    without = state.epoch - state.best_epoch
    if training.patience and without >= training.patience:
        return f"no better validation Dice for {without} epochs (training.patience={training.patience})"
    return None
