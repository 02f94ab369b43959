"""Learning rate and budgets."""

import pytest

from masam_auto.core.budget import Budget, parse_budget
from masam_auto.core.errors import PlanError
from masam_auto.core.plan import TrainingPlan
from masam_auto.training.schedule import SCHEDULES, rate_share


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


def epochs_of(budget: Budget, *, step: float, between: float) -> list[int]:
    """Steps of the epochs of a training whose steps, and what lies between epochs, take such shares of the budget."""
    used, last, epochs = 0.0, 0.0, [0]
    begun = used
    while used < 1:
        if epochs[-1] and budget.ends_epoch(used, begun=begun, between=last):
            used, last = used + between, between
            begun = used
            epochs.append(0)
        else:
            used, epochs[-1] = used + step, epochs[-1] + 1
    return epochs


def test_a_budget_of_time_has_about_twenty_epochs() -> None:
    budget = parse_budget("240cpus", TrainingPlan())
    epochs = epochs_of(budget, step=1 / 200, between=1 / 800)
    assert 18 <= len(epochs) <= 25
    assert max(epochs) <= 2 * min(epochs)  # the last one is no stump


def test_what_lies_between_epochs_takes_a_tenth_at_most() -> None:
    """From the second epoch on, when it is known how long it takes."""
    between = 1 / 50
    epochs = epochs_of(parse_budget("2h", TrainingPlan()), step=1 / 1000, between=between)
    assert 4 <= len(epochs) <= 7
    assert between * (len(epochs) - 2) <= 0.1 * (1 - epochs[0] / 1000)


def test_slow_steps_make_epochs_of_one_step_each() -> None:
    assert set(epochs_of(parse_budget("30s", TrainingPlan()), step=0.3, between=0.001)) == {1}


def test_budgets_of_steps_keep_the_plans_epochs() -> None:
    for text in (None, "700steps", "3epochs"):
        assert not parse_budget(text, TrainingPlan()).ends_epoch(1.0, begun=0.0, between=0.0)
