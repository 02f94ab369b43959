"""What a training says of its speed while it goes."""

import logging
import re

import pytest

from masam_auto.core.budget import parse_budget
from masam_auto.core.plan import TrainingPlan
from masam_auto.models.checkpoint import EpochSoFar
from masam_auto.training.pace import Pace


class Trial:
    """A training by a clock of its own, whose steps take `seconds` each."""

    def __init__(self, budget: str, *, seconds: float, per_epoch: int = 1000) -> None:
        self.time, self.seconds = 100.0, seconds
        self.budget = parse_budget(budget, TrainingPlan())
        self.pace = Pace(budget=self.budget, per_epoch=per_epoch, now=lambda: self.time)
        self.losses: list[float] = []
        self.made, self.begun = 0, self.time

    def epoch(self, steps: int, *, first: float | None = None) -> None:
        """So many steps, the first of which takes `first` seconds."""
        self.losses = []
        self.pace.begin_epoch(EpochSoFar())
        for number in range(steps):
            self.time += first if first is not None and number == 0 else self.seconds
            self.losses.append(0.5)
            self.made += 1
            wall = self.time - self.begun
            self.pace.step(
                3, EpochSoFar(losses=tuple(self.losses)), self.budget.progress(steps=self.made, wall=wall, cpu=wall)
            )


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger="masam_auto")
    return caplog


def test_the_first_steps_tell_how_long_the_fold_takes(said: pytest.LogCaptureFixture) -> None:
    Trial("20000steps", seconds=1.25).epoch(8, first=20.0)
    assert said.messages == ["0.8 steps/s: the 19994 steps left take about 6.9 h (`budget` makes it shorter)"]


def test_where_nothing_is_left_nothing_is_said(said: pytest.LogCaptureFixture) -> None:
    Trial("6steps", seconds=1.0).epoch(6)
    assert said.messages == []


def test_with_a_budget_of_time_they_tell_how_many_steps_fit_in(said: pytest.LogCaptureFixture) -> None:
    Trial("240cpus", seconds=1.2).epoch(8)
    (line,) = said.messages
    found = re.fullmatch(r"0.833 steps/s: about (\d+) steps in the (.*) left", line)
    assert found is not None and found[2] == "4 min"
    assert abs(int(found[1]) - 194) <= 1


@pytest.mark.parametrize("seconds", [0.02, 1.3, 14.0])
def test_there_is_a_line_within_the_first_minute_and_every_minute_after_it(
    said: pytest.LogCaptureFixture, seconds: float
) -> None:
    trial, times = Trial("100000steps", seconds=seconds), []
    trial.pace._say, say = (lambda *given: (times.append(trial.time), say(*given))), trial.pace._say  # type: ignore[method-assign]
    trial.epoch(round(600 / seconds))
    gaps = [later - earlier for earlier, later in zip([100.0, *times], [*times, trial.time], strict=True)]
    assert max(gaps) <= 60
    assert len(times) <= 14  # and not many more
    assert re.fullmatch(r"epoch 3: step \d+ of 1000, loss 0.5000, [\d.]+ steps/s, .* left", said.messages[-1])


def test_what_lies_between_epochs_slows_no_step_but_counts_for_the_time_left(said: pytest.LogCaptureFixture) -> None:
    trial = Trial("1000steps", seconds=1.0)
    for _ in range(3):
        trial.epoch(100)
        trial.time += 100
    assert "1 steps/s" in said.messages[-1]
    assert said.messages[-1].endswith("22 min left")  # 741 steps, at 458 s for 258


def test_a_slow_look_at_the_validation_windows_is_said(said: pytest.LogCaptureFixture) -> None:
    trial = Trial("1000steps", seconds=1.0)
    trial.epoch(2)
    for done in range(1, 11):
        trial.time += 10
        trial.pace.look(done, 10)
    assert said.messages == [f"looking at the validation windows: {done} of 10 batches" for done in (3, 6, 9)]
