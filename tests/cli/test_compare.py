"""masam_compare on a tiny data set: our training is taken over, baselines are trained by masam_train, folds and budgets
match."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from masam_auto.baselines import ours
from masam_auto.cli import compare, plan_and_preprocess, train
from masam_auto.cli.common import run
from tests import raw_data

pytestmark = pytest.mark.slow

Command = Callable[..., int]
MODEL = Path("results/Dataset001_Toy/masam__axis0")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Roots with a preprocessed data set and a fold trained for two steps."""
    folder = tmp_path_factory.mktemp("house")
    raw_data.make_raw_dataset(folder / "raw", cases=4, shape=(4, 16, 14))
    arguments = ["-d", "1", "-c", "axis0", "--workers", "0", "-gpu_memory_target", "0"]
    assert run(plan_and_preprocess.main, [*arguments, *roots(folder)]) == 0
    assert run(train.main, ["1", "0", "--budget", "2steps", "-device", "cpu", "--workers", "0", *roots(folder)]) == 0
    return folder


@pytest.fixture
def command(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """masam_compare there, fold 0 on the CPU, without nnU-Net; masam_train runs in this process."""

    def run_here(words: list[str]) -> int:
        assert words[1:3] == ["-m", "masam_auto.cli.train"]
        return run(train.main, [*words[3:], "--workers", "0"])

    monkeypatch.delenv("MASAM_NNUNET_PYTHON", raising=False)
    monkeypatch.chdir(trained)
    monkeypatch.setattr(ours, "run_program", run_here)
    options = ["-device", "cpu", "--workers", "0", *roots(trained)]
    return lambda *words: run(compare.main, ["1", "fold0", *words, *options])


def roots(folder: Path) -> list[str]:
    return [
        word for name in ("raw", "preprocessed", "results", "weights") for word in (f"--{name}", str(folder / name))
    ]


def test_a_baseline_beside_ours(command: Command, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (trained / MODEL / "fold_0/checkpoint_latest/checkpoint.json").read_bytes()
    assert command("--with", "samed", "--budget", "2steps") == 0
    assert "comparison.md" in capsys.readouterr().out
    assert (trained / MODEL / "fold_0/checkpoint_latest/checkpoint.json").read_bytes() == before, "trained again"
    plan = json.loads((trained / MODEL.with_name("samed__axis0") / "plan.json").read_text())
    assert (plan["network"]["increment"], plan["network"]["decoder"]) == ("lora", "sam")
    methods = json.loads((trained / "results/Dataset001_Toy/comparison/fold_0/comparison.json").read_text())["methods"]
    assert [method["name"] for method in methods] == ["ours", "samed"]
    own = json.loads((trained / MODEL / "fold_0/validation/summary.json").read_text())["metric_per_case"]
    dice = {Path(entry["prediction_file"]).name: entry["metrics"]["1"]["Dice"] for entry in own}
    assert {f"{name}.nii.gz": by_class["organ1"]["Dice"] for name, by_class in methods[0]["scores"].items()} == dice
    for method in methods:
        training = method["training"]
        assert training["iterations"] == 2
        assert training["memory_gib"] > 0 < training["parameters"]
        assert "no SAM weights: its encoder learns from scratch" in training["remarks"]
        assert set(method["prediction"]["seconds"]) == set(method["scores"])


@pytest.mark.parametrize(
    ("done", "said"),
    [
        ((), r"plan not found: .*Make it with masam_plan_and_preprocess -d Dataset001_Toy"),
        (
            ("plan.json",),
            r"is not preprocessed: .*splits\.json is missing\. Run masam_plan_and_preprocess -d Dataset001_Toy",
        ),
    ],
)
def test_what_is_missing_before_preprocessing_is_said_with_what_to_run(
    command: Command,
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    done: tuple[str, ...],
    said: str,
) -> None:
    for file in done:
        (tmp_path / "pp/Dataset001_Toy").mkdir(parents=True)
        shutil.copyfile(trained / "preprocessed/Dataset001_Toy" / file, tmp_path / "pp/Dataset001_Toy" / file)
    options = [*roots(trained), "--preprocessed", str(tmp_path / "pp")]
    assert run(compare.main, ["1", "fold0", "--with", "samed", *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(said, line)


def test_a_model_that_was_trained_anew_is_compared_anew(command: Command, trained: Path) -> None:
    """With the same budget: its state and its predictions, which are those of its last weights, are other ones."""
    record = trained / "results/Dataset001_Toy/comparison/fold_0/ours/run.json"
    assert command("--with", "samed", "--budget", "2steps") == 0
    first = json.loads(record.read_text())
    arguments = ["1", "0", "--budget", "2steps", "--overwrite", "-device", "cpu", "--workers", "0"]
    assert run(train.main, [*arguments, *roots(trained)]) == 0
    shutil.rmtree(trained / MODEL / "fold_0/checkpoint_best")
    assert command("--with", "samed", "--budget", "2steps") == 0
    second = json.loads(record.read_text())
    assert second["training"]["seconds"] != first["training"]["seconds"]
    assert second["prediction"] != first["prediction"]
    kept = record.read_bytes()
    assert command("--with", "samed", "--budget", "2steps") == 0
    assert record.read_bytes() == kept


def test_a_slip_in_the_budget_is_told_before_anything_runs(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--with", "2d", "--budget", "lots") == 2
    assert "budget 'lots' is not valid" in capsys.readouterr().err


def test_an_nnunet_that_does_not_work_is_left_out(
    command: Command, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where it is only at hand, to score; where it is asked for, its error ends the command."""
    python = trained / ".nnunet_env/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\necho broken\nexit 1\n")
    python.chmod(0o755)
    assert command("--with", "samed", "--budget", "2steps") == 0
    assert "Without nnU-Net's evaluation: nnU-Net failed to start (exit code 1): broken" in capsys.readouterr().err
    assert command("--with", "nnunet_2d", "--budget", "2steps") == 2
    shutil.rmtree(trained / ".nnunet_env")


def test_another_budget_is_not_compared(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--with", "decoder_only", "--budget", "3steps") == 2
    assert "budget" in capsys.readouterr().err


def test_what_cannot_be_compared_is_said_at_once(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(compare.main, ["1", "all", "--with", "samed"]) == 2
    assert "Give the number of a fold instead of all" in capsys.readouterr().err
    assert command("--with", "nnunet_2d") == 2
    assert "there is no Python for nnU-Net at .nnunet_env/bin/python. Make its environment" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["3d_lowres=2", "2d=0", "2d=many", "2d"])
def test_a_batch_that_makes_no_sense(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        compare.main(["1", "0", "--with", "nnunet_2d", "--nnunet_batch", text])
    assert "must be 3d_fullres=N or 2d=N with N from 1 on" in capsys.readouterr().err
