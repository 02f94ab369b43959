"""masam_train: which plan it trains with, and under which name."""

from pathlib import Path

import pytest
import torch

from masam_auto.cli import train
from masam_auto.core.errors import MasamError, ModelError, PlanError
from masam_auto.core.jsonio import write_json
from masam_auto.core.paths import Paths
from masam_auto.core.plan import Plan
from masam_auto.training.trackers import SINKS
from tests import tiny_training as tiny


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    """A data set with a plan, and a model trained with another learning rate under the name "lora"."""
    roots = {name: tmp_path / name for name in ("raw", "preprocessed", "results", "weights")}
    found = Paths(**roots)
    write_json(found.preprocessed / tiny.DATASET / "plan.json", tiny.make_plan())
    write_json(found.model_folder(tiny.DATASET, "lora", "axis0") / "plan.json", tiny.make_plan(learning_rate=7e-3))
    return found


def read(paths: Paths, *arguments: str) -> Plan:
    parsed = train._make_parser().parse_args(["1", "0", *arguments])
    return train._read_plan(paths, tiny.DATASET, parsed, torch.device("cpu"))


def test_a_variant_has_a_name_of_its_own(paths: Paths) -> None:
    plan = read(paths, "-p", "lora", "--set", "network.increment=lora")
    assert (plan.name, plan.network.increment, plan.training.learning_rate) == ("lora", "lora", 2e-3)
    assert read(paths).name == "masam"


@pytest.mark.parametrize("how", ["--c", "--val"])
def test_going_on_takes_the_plan_kept_under_the_name(paths: Paths, how: str) -> None:
    assert read(paths, "-p", "lora", how).training.learning_rate == 7e-3
    assert read(paths, how).training.learning_rate == 2e-3


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        ((), None),
        (("--val",), None),
        (("--mirror",), True),
        (("--val", "--no-mirror"), False),
        (("--set", "inference.mirror=false"), False),
        (("--set", "inference.mirror=true"), True),
        (("--set", "training.num_epochs=3"), None),
    ],
)
def test_flips_in_validation_are_as_asked_for(paths: Paths, arguments: tuple[str, ...], asked: bool | None) -> None:
    parsed = train._make_parser().parse_args(["1", "0", *arguments])
    assert train._asked_mirroring(parsed, read(paths, *arguments)) is asked


def test_a_name_that_is_no_folder_is_refused(paths: Paths) -> None:
    with pytest.raises(PlanError, match="the plan's name must be made of letters"):
        read(paths, "-p", "../other")


@pytest.mark.parametrize("how", ["--c", "--val"])
def test_pretrained_weights_are_for_the_beginning(how: str) -> None:
    with pytest.raises(ModelError, match="Leave it out with --c and --val"):
        train.main(["1", "0", "-pretrained_weights", "somewhere", how])


def test_the_sinks_to_choose_from_are_those_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert train._make_parser().parse_args(["1", "0", "--log_to", *SINKS]).log_to == list(SINKS)
    assert train._make_parser().parse_args(["1", "0"]).log_to == []
    with pytest.raises(SystemExit):
        train._make_parser().parse_args(["1", "0", "--log_to", "paper"])
    assert "mlflow" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["--c", "--val"])
def test_shots_are_for_the_beginning_and_for_a_fold(how: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelError, match="only works at the start"):
        train.main(["1", "0", "--shots", "5", how])
    with pytest.raises(MasamError, match="fold's number instead of all"):
        train.main(["1", "all", "--shots", "5"])
    with pytest.raises(SystemExit):
        train.main(["1", "0", "--shots", "0"])
    assert "must be a whole number from 1 on" in capsys.readouterr().err
