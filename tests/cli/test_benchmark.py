"""masam_benchmark: what it prints, and what it refuses."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from masam_auto.cli.benchmark import main
from masam_auto.cli.common import run
from masam_auto.core.jsonio import write_json
from masam_auto.planning.planned_encoders import PLANNED_ENCODERS
from masam_auto.planning.recipes import choose_network
from tests import tiny_training as tiny

pytestmark = pytest.mark.slow

TINY = ["-backbone", "vit_t", "-canvas", "16", "24", "-window", "2", "--rounds", "1", "-device", "cpu"]


def test_prediction_and_training_are_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(TINY) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "device: cpu" in lines[0] and "16 x 24 px, windows of 2 slices" in lines[1]
    assert lines[3].startswith("prediction") and lines[4].startswith("training step")
    assert float(lines[3].split()[1]) > 0


@pytest.mark.parametrize(("option", "row"), [("--predict", "prediction"), ("--train", "training step")])
def test_one_of_them_alone(capsys: pytest.CaptureFixture[str], option: str, row: str) -> None:
    assert main([*TINY, option]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and lines[3].startswith(row)


def test_a_plan_is_measured_and_its_training_estimated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configuration = tiny.make_configuration()
    paths = tiny.write_preprocessed(tmp_path, configuration)
    name = next(folder.name for folder in paths.preprocessed.iterdir())
    plan = tiny.make_plan(configuration)
    network, _ = choose_network(PLANNED_ENCODERS["vit_t"], "")
    write_json(paths.preprocessed / name / "plan.json", replace(plan, network=network))
    arguments = ["-d", name, "--preprocessed", str(paths.preprocessed), "--rounds", "1", "-device", "cpu"]
    assert main([*arguments, "--train", "--set", "training.num_epochs=5"]) == 0
    printed = capsys.readouterr().out
    assert "16 x 16 px, windows of 3 slices" in printed and "float32" in printed
    assert re.search(r"a fold's training, 15 steps, takes about \d", printed)


@pytest.mark.parametrize(
    ("done", "said"),
    [
        ((), r"plan not found: .*plan\.json\. Make it with masam_plan_and_preprocess -d Dataset001_Toy"),
        (
            ("plan.json",),
            r"is not preprocessed: .*dataset\.json is missing\. Run masam_plan_and_preprocess -d Dataset001_Toy",
        ),
    ],
)
def test_what_is_missing_before_preprocessing_is_said_with_what_to_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], done: tuple[str, ...], said: str
) -> None:
    (tmp_path / "raw" / tiny.DATASET).mkdir(parents=True)
    for file in done:
        write_json(tmp_path / "pp" / tiny.DATASET / file, tiny.make_plan())
    assert run(main, ["-d", "1", "--raw", str(tmp_path / "raw"), "--preprocessed", str(tmp_path / "pp")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(said, line)


def test_options_of_a_plan_need_the_data_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(main, ["-c", "axis0"]) == 2
    assert "Give the data set too: -d DATASET" in capsys.readouterr().err


def test_a_canvas_of_broken_tokens_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(main, ["-backbone", "vit_t", "-canvas", "17", "--predict"]) == 2
    assert "multiples of" in capsys.readouterr().err


def test_counts_must_be_counts(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["-window", "0"])
    assert stopped.value.code == 2 and "from 1 on" in capsys.readouterr().err
