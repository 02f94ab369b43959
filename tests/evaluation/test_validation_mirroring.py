"""Whether validation cases are predicted with flips: by cost, and alike in all folds of a model."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from masam_auto.core.jsonio import write_json
from masam_auto.evaluation import validation_mirroring as module
from masam_auto.evaluation.validation_mirroring import choose_validation_mirroring
from masam_auto.models.checkpoint import TrainingState
from tests import tiny_training as tiny

SIZES = {"a": 100, "b": 300, "c": 200}


class House:
    """A fold that was trained, and a clock by which a prediction takes as long as it is said to."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.model, self.time, self.seconds, self.predicted = folder / "model", 0.0, 1.0, []
        self.plan = tiny.make_plan(tiny.make_configuration(mirror_axes=(1, 2)))
        monkeypatch.setattr(module.time, "perf_counter", lambda: self.time)
        self.train("240cpus", seconds=200.0)

    def train(self, budget: str | None, *, seconds: float, epoch: int = 3) -> None:
        state = TrainingState(epoch=epoch, wall_seconds=seconds, budget=budget, finished=True)
        for name in ("checkpoint_latest", "checkpoint_best"):
            write_json(self.model / "fold_0" / name / "checkpoint.json", state)

    def record(self, fold: str = "fold_0", **values: Any) -> None:
        write_json(self.model / fold / "validation" / "predicted_with.json", values)

    def predict(self, name: str) -> None:
        self.predicted.append(name)
        self.time += self.seconds

    def choose(self, asked: bool | None = None, **options: Any) -> tuple[bool, str]:
        fold = self.model / "fold_0"
        return choose_validation_mirroring(
            self.plan,
            self.plan.configuration(None),
            fold / "validation",
            fold / "checkpoint_best" / "checkpoint.json",
            SIZES,
            asked=asked,
            predict=self.predict,
            **options,
        )


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    return House(tmp_path, monkeypatch)


def test_after_a_training_by_time_the_cost_of_all_cases_in_all_flips_decides(house: House) -> None:
    """The case of median size stands for all; 600 voxels in four flips cost 12 times its time."""
    assert house.choose() == (
        True,
        "3 cases in 4 flips each take about 12 s, 6% of the training's 3 min; up to 20% is fine",
    )
    assert house.predicted == ["c"]
    house.seconds = 4.0
    chosen, why = house.choose()
    assert not chosen
    assert why == (
        "3 cases in 4 flips each take about 48 s, 24% of the training's 3 min, which is more than 20%; `validate "
        "mirror` "
        "uses them anyway"
    )
    assert house.choose(processes=2)[0]


@pytest.mark.parametrize("budget", [None, "700steps", "3epochs"])
def test_after_a_training_by_steps_it_is_as_planned_and_reproducible(house: House, budget: str | None) -> None:
    house.train(budget, seconds=1.0)
    house.record("fold_1", checkpoint="checkpoint_best", epoch=2, mirror=False)
    house.seconds = 100.0
    assert house.choose() == (True, "as planned")
    assert house.predicted == []


def test_nothing_is_timed_where_nothing_is_to_decide(house: House) -> None:
    house.seconds = 100.0
    assert house.choose(asked=True) == (True, "as asked for")
    assert house.choose(asked=False) == (False, "as asked for")
    house.plan = replace(house.plan, inference=replace(house.plan.inference, mirror=False))
    assert house.choose() == (False, "as planned")
    house.plan = tiny.make_plan(tiny.make_configuration(mirror_axes=()))
    assert house.choose() == (True, "as planned")
    house.plan = tiny.make_plan(tiny.make_configuration(mirror_axes=(0,), window=1))  # a single slice has no other side
    assert house.choose() == (True, "as planned")
    assert house.predicted == []


def test_a_checkpoint_is_validated_again_as_before(house: House) -> None:
    house.record(checkpoint="checkpoint_best", epoch=3, mirror=False, why="slow that day")
    assert house.choose() == (False, "slow that day")
    house.record(checkpoint="checkpoint_best", epoch=3, digest="of an older version, which always did as planned")
    assert house.choose() == (True, "as before")
    assert house.predicted == []
    house.train("2h", seconds=7000.0, epoch=30)  # trained on since
    house.record(checkpoint="checkpoint_best", epoch=3, mirror=False)
    assert house.choose()[0]
    assert house.predicted == ["c"]


def test_the_folds_of_a_model_follow_each_other(house: House) -> None:
    house.record("fold_1", checkpoint="checkpoint_best", epoch=2, mirror=False)
    house.record("fold_2", checkpoint="checkpoint_best", epoch=9, mirror=False)
    assert house.choose() == (False, "as fold_1, fold_2, so that the folds' scores can be compared")
    assert house.predicted == []
    house.record("fold_2", checkpoint="checkpoint_best", epoch=9, mirror=True)  # as somebody asked for
    assert house.choose()[0]
    assert house.predicted == ["c"]
