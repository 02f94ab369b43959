"""Finding and choosing trained models."""

from pathlib import Path

import pytest

from masam_auto.core.errors import DatasetError, ModelError
from masam_auto.models.trained_model import checkpoint_path, choose_folds, choose_model, describe_model, find_models


def make_model(results: Path, dataset: str, name: str, folds: tuple[str, ...], checkpoint: str = "best") -> Path:
    folder = results / dataset / name
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text("{}")
    for fold in folds:
        (folder / f"fold_{fold}" / f"checkpoint_{checkpoint}").mkdir(parents=True)
    return folder


def test_the_only_model_is_chosen(tmp_path: Path) -> None:
    folder = make_model(tmp_path, "Dataset001_Toy", "masam__axis0", ("0", "1", "10"))
    make_model(tmp_path, "Dataset001_Toy", "masam__2d", ())  # no checkpoint: no model
    (tmp_path / "Dataset002_Empty").mkdir()
    (tmp_path / "notes").mkdir()
    model = choose_model(tmp_path)
    assert model.folder == folder
    assert (model.dataset_name, model.plan_name, model.configuration) == ("Dataset001_Toy", "masam", "axis0")
    assert model.folds == (0, 1, 10)
    assert find_models(tmp_path) == (model,)


def test_several_models_are_listed(tmp_path: Path) -> None:
    for dataset in ("Dataset001_Toy", "Dataset002_Other"):
        for name in ("masam__axis0", "masam__2d"):
            make_model(tmp_path, dataset, name, ("0",))
    with pytest.raises(
        ModelError, match="several trained models match; choose with `dataset`, `configuration`, `plan_name` or `model`"
    ) as caught:
        choose_model(tmp_path)
    assert str(caught.value).count("\n  - ") == 4
    with pytest.raises(ModelError, match="several"):
        choose_model(tmp_path, dataset="1")
    assert choose_model(tmp_path, dataset="2", configuration="2d").folder.name == "masam__2d"
    assert choose_model(tmp_path, dataset="Dataset002_Other", configuration="2d").dataset_name == "Dataset002_Other"


def test_a_folder_says_it_all(tmp_path: Path) -> None:
    folder = make_model(tmp_path, "Dataset001_Toy", "masam__axis0", ("all",))
    assert choose_model(tmp_path / "elsewhere", folder=folder).folds == ("all",)
    with pytest.raises(ModelError, match="is not a trained model"):
        choose_model(tmp_path, folder=tmp_path)


def test_nothing_that_fits(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no trained model below"):
        choose_model(tmp_path / "nowhere")
    make_model(tmp_path, "Dataset001_Toy", "masam__axis0", ("0",))
    with pytest.raises(ModelError, match="no trained model with configuration 2d"):
        choose_model(tmp_path, configuration="2d")
    with pytest.raises(DatasetError, match="'7' not found"):
        choose_model(tmp_path, dataset="7")


def test_all_trained_folds_are_averaged_by_default(tmp_path: Path) -> None:
    make_model(tmp_path, "Dataset001_Toy", "masam__axis0", ("0", "3", "all"))
    model = choose_model(tmp_path)
    assert [path.parent.name for path in choose_folds(model, None, "best")] == ["fold_0", "fold_3"]
    assert [path.parent.name for path in choose_folds(model, ["all"], "best")] == ["fold_all"]
    assert [path.parent.name for path in choose_folds(model, [3, 3], "best")] == ["fold_3"]


def test_folds_without_checkpoint_are_named(tmp_path: Path) -> None:
    make_model(tmp_path, "Dataset001_Toy", "masam__axis0", ("0", "1"))
    model = choose_model(tmp_path)
    with pytest.raises(ModelError, match=r"fold 2 of .* has no checkpoint.*folds with one: 0, 1.*masam_train"):
        choose_folds(model, [0, 2], "best")
    with pytest.raises(ModelError, match="checkpoint_latest is missing"):
        choose_folds(model, [0], "latest")
    with pytest.raises(ModelError, match=r"unknown checkpoint 'foo'. Choose one of best, latest, final\."):
        choose_folds(model, [0], "foo")


def test_the_final_weights_are_the_latest(tmp_path: Path) -> None:
    assert checkpoint_path(tmp_path, "final") == checkpoint_path(tmp_path, "latest")


def test_a_model_trained_on_all_cases_alone(tmp_path: Path) -> None:
    make_model(tmp_path, "Dataset001_Toy", "masam__axis0", ("all",))
    assert [path.parent.name for path in choose_folds(choose_model(tmp_path), None, "best")] == ["fold_all"]


def test_a_model_that_is_not_there_has_no_folds(tmp_path: Path) -> None:
    model = describe_model(tmp_path / "Dataset001_Toy" / "masam__axis0")
    assert (model.dataset_name, model.configuration, model.folds) == ("Dataset001_Toy", "axis0", ())
    with pytest.raises(
        ModelError, match=r"folds with one: none.*Train it: `masam_train Dataset001_Toy 0 configuration=axis0"
    ):
        choose_folds(model, [0], "best")
