"""Learning rate and budgets."""

import pytest

from masam_auto.core.errors import PlanError
from masam_auto.core.plan import TrainingPlan
from masam_auto.learning.schedule import SCHEDULES, parse_budget, rate_share


@pytest.mark.parametrize("name", SCHEDULES)
def test_rates_rise_in_the_warm_up_and_never_after_it(name: str) -> None:
    training = TrainingPlan(schedule=name, num_epochs=10, steps_per_epoch=10, warmup_steps=20)
    shares = [rate_share(training, step / 100) for step in range(101)]
    assert all(0 <= share <= 1 for share in shares)
    assert shares[0] > 0
    assert shares[:20] == sorted(shares[:20])
    assert shares[20] == 1
    assert shares[20:] == sorted(shares[20:], reverse=True)


def test_ends_of_the_schedules() -> None:
    def end(name: str) -> float:
        return rate_share(TrainingPlan(schedule=name), 1.0)

    assert end("poly") == 0
    assert end("cosine") == pytest.approx(0)
    assert end("constant") == 1


def test_without_warm_up_the_first_rate_is_the_full_one() -> None:
    assert rate_share(TrainingPlan(warmup_steps=0), 0.0) == 1


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(PlanError, match="cosine"):
        rate_share(TrainingPlan(schedule="steep"), 0.5)


@pytest.mark.parametrize(
    ("text", "kind", "amount"),
    [
        (None, "steps", 1000),
        ("1000cpus", "cpu", 1000),
        ("600s", "wall", 600),
        ("30min", "wall", 1800),
        ("2h", "wall", 7200),
        ("1.5 h", "wall", 5400),
        ("20epochs", "steps", 200),
        ("1epoch", "steps", 10),
        ("500steps", "steps", 500),
        ("1step", "steps", 1),
    ],
)
def test_budgets(text: str | None, kind: str, amount: float) -> None:
    budget = parse_budget(text, TrainingPlan(num_epochs=100, steps_per_epoch=10))
    assert (budget.kind, budget.amount) == (kind, amount)


@pytest.mark.parametrize("text", ["", "20", "h", "-3h", "0steps", "20 weeks", "1e3s"])
def test_what_is_no_budget_is_refused(text: str) -> None:
    with pytest.raises(PlanError, match="1000cpus"):
        parse_budget(text, TrainingPlan())


def test_progress_counts_what_the_budget_is_of() -> None:
    used = {"steps": 5, "wall": 30.0, "cpu": 90.0}
    training = TrainingPlan()
    assert parse_budget("20steps", training).progress(**used) == 0.25
    assert parse_budget("1min", training).progress(**used) == 0.5
    assert parse_budget("100cpus", training).progress(**used) == 0.9
    assert parse_budget("10s", training).progress(**used) == 1.0
