"""masam_export_model and masam_install_model on the command line, with the network of tests/tiny_training.py."""

from collections.abc import Callable
from pathlib import Path

import pytest

from masam_auto.cli import export_model, install_model
from masam_auto.cli.common import run
from masam_auto.core.jsonio import write_json
from masam_auto.core.postprocessing import Postprocessing
from masam_auto.core.selection import SELECTION_NAME, SelectedModel, Selection
from masam_auto.models.checkpoint import Checkpoint, ModelHeader, TrainingState, plan_digest, save_checkpoint
from tests import tiny_training as tiny

Command = Callable[..., int]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Two configurations of a model, with two folds each and all checkpoints."""
    for name in ("axis0", "2d"):
        plan = tiny.make_plan(tiny.make_configuration(name=name))
        configuration = plan.configuration(name)
        folder = tmp_path / "there" / plan.dataset_name / f"masam__{name}"
        write_json(folder / "plan.json", plan)
        raw = {"channel_names": {"0": "MR"}, "labels": tiny.LABELS, "file_ending": ".nii.gz"}
        write_json(folder / "dataset.json", raw)
        network = tiny.build_tiny(plan.network, canvas=configuration.canvas, in_channels=1, num_outputs=3)
        for fold in (0, 1):
            header = ModelHeader(
                dataset_name=plan.dataset_name,
                configuration=name,
                fold=str(fold),
                epoch=1,
                network=plan.network,
                plan_digest=plan_digest(plan, configuration),
                canvas=(16, 16),
                in_channels=1,
                num_outputs=3,
            )
            state = network.state_dict()
            checkpoint = Checkpoint(header=header, state=TrainingState(), model=state, weights=state, optimizers=())
            save_checkpoint(folder / f"fold_{fold}", checkpoint, best=True)
    return tmp_path / "there"


@pytest.fixture
def call(results: Path, tmp_path: Path) -> Command:
    def run_both(*arguments: object, install: tuple[object, ...] = ()) -> int:
        archive, here = tmp_path / "model.zip", tmp_path / "here"
        given = ["--results", results, "-o", archive, *arguments]
        code = run(export_model.main, [str(argument) for argument in given])
        return code or run(install_model.main, [str(a) for a in (archive, "--results", here, *install)])

    return run_both


def installed(tmp_path: Path) -> set[str]:
    here = tmp_path / "here" / "Dataset001_Toy"
    return {path.parent.relative_to(here).as_posix() for path in here.rglob("checkpoint.json")}


def test_one_model_and_its_folds(call: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("-d", 1, "-c", "2d", "-f", 1, "-chk", "final", "--licence", "CC0") == 0
    assert installed(tmp_path) == {"masam__2d/fold_1/checkpoint_latest"}
    assert "| licence of the model | CC0 |" in (tmp_path / "here/Dataset001_Toy/masam__2d/README.md").read_text()
    out = capsys.readouterr().out
    assert "masam__2d of Dataset001_Toy" in out
    assert f"-m {tmp_path / 'here' / 'Dataset001_Toy' / 'masam__2d'}\n" in out


def test_the_name_of_a_models_folder_does_not_matter(call: Command, results: Path, tmp_path: Path) -> None:
    for name in ("mine", "copy__of_it"):
        folder = (results / "Dataset001_Toy" / "masam__2d").rename(tmp_path / name)
        assert call("-m", folder, "--overwrite", install=("--overwrite",)) == 0
        assert installed(tmp_path) == {f"masam__2d/fold_{fold}/checkpoint_best" for fold in (0, 1)}
        folder.rename(results / "Dataset001_Toy" / "masam__2d")


def test_what_was_selected_goes_where_no_model_is_named(
    call: Command, results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("-d", 1) == 2
    assert "several trained models match" in capsys.readouterr().err
    members = tuple(SelectedModel(plan_name="masam", configuration=name, folds=(0,)) for name in ("axis0", "2d"))
    selection = Selection(
        dataset_name="Dataset001_Toy",
        members=members,
        postprocessing=Postprocessing(),
        dice=0.5,
        dice_by_class={},
        cases=1,
        candidates=(),
        reasons=(),
    )
    write_json(results / "Dataset001_Toy" / SELECTION_NAME, selection)
    assert call() == 0
    assert installed(tmp_path) == {"masam__axis0/fold_0/checkpoint_best", "masam__2d/fold_0/checkpoint_best"}
    assert "-d Dataset001_Toy\n" in capsys.readouterr().out


def test_nothing_is_replaced_unasked(call: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("-c", "2d") == 0
    assert call("-c", "2d") == 2
    assert "model.zip exists already" in capsys.readouterr().err
    assert call("-c", "2d", "--overwrite") == 2
    assert "masam__2d exists already" in capsys.readouterr().err
    assert call("-c", "2d", "--overwrite", install=("--overwrite",)) == 0


def test_what_is_no_archive_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.zip").write_text("PK")
    assert run(install_model.main, [str(tmp_path / "model.zip"), "--results", str(tmp_path / "here")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / 'model.zip'} is damaged") and error.count("\n") == 1
    assert not (tmp_path / "here").exists()
