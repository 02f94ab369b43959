"""When a training ends before its budget is used."""

import pytest

from masam_auto.core.plan import TrainingPlan
from masam_auto.models.checkpoint import TrainingState
from masam_auto.training.session import reason_to_end


@pytest.mark.parametrize(("epoch", "ends"), [(5, False), (6, False), (7, True), (9, True)])
def test_patience_counts_epochs_since_the_best(epoch: int, ends: bool) -> None:
    state = TrainingState(epoch=epoch, best_epoch=4)
    reason = reason_to_end(state, TrainingPlan(patience=3), asked=False)
    assert (reason is not None) == ends
    if reason:
        assert f"{epoch - 4} epochs" in reason
    assert reason_to_end(state, TrainingPlan(), asked=False) is None


def test_a_file_ends_it_whatever_the_patience() -> None:
    reason = reason_to_end(TrainingState(epoch=1, best_epoch=1), TrainingPlan(), asked=True)
    assert reason == "the file stop asked for it"
