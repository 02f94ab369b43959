"""When a training ends before its budget is used."""

from pathlib import Path

import pytest

from masam_auto.core.plan import TrainingPlan
from masam_auto.models.checkpoint import TrainingState
from masam_auto.training.early_stop import reason_to_end, remove_stop_file, stop_file_is_there


@pytest.mark.parametrize(("epoch", "ends"), [(5, False), (6, False), (7, True), (9, True)])
def test_patience_counts_epochs_since_the_best(epoch: int, ends: bool) -> None:
    state = TrainingState(epoch=epoch, best_epoch=4)
    reason = reason_to_end(state, TrainingPlan(patience=3), asked=False)
    assert (reason is not None) == ends
    if reason:
        assert f"{epoch - 4} epochs" in reason
    assert reason_to_end(state, TrainingPlan(), asked=False) is None


def test_a_file_ends_it_whatever_the_patience(tmp_path: Path) -> None:
    remove_stop_file(tmp_path)
    assert not stop_file_is_there(tmp_path)
    (tmp_path / "stop").touch()
    assert stop_file_is_there(tmp_path)
    assert "stop" in (reason_to_end(TrainingState(epoch=1, best_epoch=1), TrainingPlan(), asked=True) or "")
    remove_stop_file(tmp_path)
    assert not stop_file_is_there(tmp_path)
