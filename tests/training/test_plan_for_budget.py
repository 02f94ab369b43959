"""A training's step size follows its budget, and that of the model's other folds."""

import logging
from pathlib import Path

import pytest
import torch

from masam_auto.core.errors import PlanError
from masam_auto.core.jsonio import write_json
from masam_auto.core.plan import Plan, Speed
from masam_auto.planning.make_plan import make_plan
from masam_auto.planning.overrides import override
from masam_auto.training.training_job import plan_for_budget
from tests import fingerprints

CPU = torch.device("cpu")
SPEED = Speed(wall=300_000.0, cpu=200_000.0)


@pytest.fixture
def plan() -> Plan:
    fingerprint = fingerprints.make_fingerprint(shape=(10, 256, 256), spacing=(10.0, 1.5, 1.5), diameter=42.0)
    return make_plan(fingerprint, gpu_memory_gb=0, speeds={"vit_t": SPEED})


def test_a_short_budget_takes_smaller_steps_and_says_so(
    plan: Plan, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        short = plan_for_budget(plan, "axis0", "240cpus", tmp_path / "fold_0", CPU)
    before, after = plan.configuration("axis0").size, short.configuration("axis0").size
    assert after.pixels < before.pixels and f"see {after.pixels} px instead of {before.pixels}" in caplog.text
    assert plan_for_budget(plan, "axis0", "90h", tmp_path / "fold_0", CPU).configuration("axis0").magnification == 1.0


@pytest.mark.parametrize("budget", [None, "700steps", "3epochs"])
def test_steps_and_epochs_leave_the_plan_alone(plan: Plan, tmp_path: Path, budget: str | None) -> None:
    assert plan_for_budget(plan, "axis0", budget, tmp_path / "fold_0", CPU) is plan


def test_folds_of_a_model_share_a_size_and_it_is_said_why(
    plan: Plan, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = plan_for_budget(plan, "axis0", "240cpus", tmp_path / "fold_0", CPU)
    write_json(tmp_path / "plan.json", first)
    again = plan_for_budget(plan, "axis0", "10h", tmp_path / "fold_0", CPU)
    assert again != first, "no other fold is trained yet"
    checkpoint = tmp_path / "fold_0" / "checkpoint_latest"
    checkpoint.mkdir(parents=True)
    (checkpoint / "checkpoint.json").write_text("{}")
    with caplog.at_level(logging.INFO):
        second = plan_for_budget(plan, "axis0", None, tmp_path / "fold_1", CPU)
    assert f"as fold_0 of {tmp_path.name} was trained" in caplog.text and "`plan_name=NAME`" in caplog.text
    assert second.configurations == first.configurations and second.inference == first.inference


def test_what_is_no_budget_is_refused(plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="budget 'soon'"):
        plan_for_budget(plan, "axis0", "soon", tmp_path / "fold_0", CPU)


def test_a_gpu_and_another_encoder_keep_the_plan(plan: Plan, tmp_path: Path) -> None:
    assert plan_for_budget(plan, "axis0", "240cpus", tmp_path / "fold_0", torch.device("cuda")) is plan
    sam = override(plan, ["network.encoder=vit_b", "network.decoder=progressive"])
    assert plan_for_budget(sam, "axis0", "240cpus", tmp_path / "fold_0", CPU) is sam
