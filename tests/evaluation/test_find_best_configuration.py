"""The selection by cross-validation: what is compared, what is chosen, what is said, and what is written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from masam_auto.cli.wording import worded
from masam_auto.core.claims import claimed
from masam_auto.core.dataset import open_dataset
from masam_auto.core.errors import CaseErrors, ModelError, OutputError, PlanError
from masam_auto.core.jsonio import write_json
from masam_auto.core.paths import Paths
from masam_auto.core.postprocessing import Postprocessing, read_postprocessing
from masam_auto.core.selection import SELECTION_NAME, SelectedModel, Selection, read_selection
from masam_auto.evaluation.ensemble import average_files
from masam_auto.evaluation.evaluate import evaluate_folder
from masam_auto.evaluation.find_best_configuration import find_best_configuration, instructions
from masam_auto.formats.io import read_labels, write_labels
from tests import cross_validated
from tests import tiny_training as tiny

A, B, C = "masam__axis0", "masam__axis1", "other__2d"


class House:
    """A raw data set and models that look trained."""

    def __init__(self, raw: Path) -> None:
        self.raw, self.made, self.plan = raw, cross_validated, tiny.make_plan()
        self.paths: Paths = cross_validated.make_paths(raw)

    def models(self, *models: dict[str, Any]) -> None:
        fields = [{"error": 0.35, "seed": number, **model} for number, model in enumerate(models)]
        self.made.write_models(self.raw, [self.made.MadeUp(**model) for model in fields], self.plan)

    def find(self, **options: Any) -> Selection:
        return find_best_configuration(self.paths, self.raw.name, workers=0, **options)

    @property
    def results(self) -> Path:
        return self.paths.results / self.raw.name

    def validation(self, model: str, fold: int) -> Path:
        return self.results / model / f"fold_{fold}" / "validation"


@pytest.fixture
def house(raw_dataset: Callable[..., Path]) -> House:
    return House(raw_dataset(cases=4))


def dice_of(selection: Selection) -> dict[tuple[str, ...], float]:
    return {candidate.members: candidate.dice for candidate in selection.candidates}


def text_of(selection: Selection) -> str:
    return " ".join(selection.reasons)


def test_a_pair_that_is_better_than_both_is_chosen(house: House) -> None:
    house.models({"name": A}, {"name": B})
    selection = house.find()
    assert [member.folder_name for member in selection.members] == [A, B]
    assert selection.members[0] == SelectedModel(plan_name="masam", configuration="axis0", folds=(0, 1))
    found = dice_of(selection)
    assert found[(A, B)] > max(found[(A,)], found[(B,)])
    assert "averaging changes its Dice by +" in text_of(selection)
    assert read_selection(house.results / SELECTION_NAME) == selection


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("errors", [(0.2, 0.5, 0.5), (0.3, 0.35, 0.9), (0.6, 0.6, 0.6), (0.0, 0.4, 0.0)])
def test_the_choice_is_never_worse_than_any_candidate(house: House, seed: int, errors: tuple[float, ...]) -> None:
    house.models(
        *(
            {"name": name, "error": error, "seed": 10 * seed + number}
            for number, (name, error) in enumerate(zip((A, B, C), errors, strict=True))
        )
    )
    selection = house.find()
    found = dice_of(selection)
    assert set(found) == {(A,), (B,), (C,), (A, B), (A, C), (B, C)}
    chosen = tuple(member.folder_name for member in selection.members)
    assert found[chosen] == max(found.values())
    assert selection.dice >= found[chosen]  # with its postprocessing
    if len(chosen) > 1:
        assert all(found[chosen] > found[(name,)] for name in chosen)


def test_a_pair_that_brings_nothing_is_not_chosen(house: House) -> None:
    house.models({"name": A, "seed": 7}, {"name": B, "seed": 7})
    selection = house.find()
    assert len(set(dice_of(selection).values())) == 1
    assert [member.folder_name for member in selection.members] == [A]


def test_the_figures_are_those_of_the_files_that_are_written(house: House) -> None:
    house.models({"name": A}, {"name": B})
    selection = house.find()
    (folder,) = (house.results / "crossval_results").iterdir()
    description = open_dataset(house.paths, house.raw.name).description
    (single, *_) = sorted(path.name for path in house.validation(A, 0).glob("*.nii.gz"))
    files = [house.validation(name, 0) / single.replace(".nii.gz", ".npz") for name in (A, B)]
    assert np.array_equal(read_labels(folder / single)[0], average_files(files, description.labels)[0])
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["foreground_mean"]["Dice"] == pytest.approx(dice_of(selection)[(A, B)], abs=1e-12)
    assert len(summary["metric_per_case"]) == selection.cases == 4
    assert read_postprocessing(folder / "postprocessing.json") == selection.postprocessing
    assert selection.postprocessing.steps  # noise everywhere
    done = evaluate_folder(folder / "postprocessed", house.raw / "labelsTr", description.labels, ".nii.gz")
    assert done["foreground_mean"]["Dice"] == pytest.approx(selection.dice, abs=1e-12)
    for (name, dice), values in zip(
        selection.dice_by_class.items(), description.labels.foreground.values(), strict=True
    ):
        assert done["mean"][str(values[0])]["Dice"] == pytest.approx(dice, abs=1e-12), name


def test_one_model_alone_needs_no_probabilities(house: House) -> None:
    house.models({"name": A, "without": (0, 1), "error": 0.0})
    selection = house.find()
    assert (selection.name, selection.dice) == (A, 1.0)
    assert selection.postprocessing == Postprocessing()
    assert "probabilities" not in text_of(selection)
    assert "There is no postprocessing" in text_of(selection)
    (folder,) = (house.results / "crossval_results").iterdir()
    assert not (folder / "postprocessed").exists()


def test_missing_probabilities_are_asked_for_and_the_others_paired(house: House) -> None:
    house.models({"name": A}, {"name": B, "without": (1,), "checkpoint": "checkpoint_latest"}, {"name": C})
    selection = house.find()
    assert set(dice_of(selection)) == {(A,), (B,), (C,), (A, C)}
    options = "configuration=axis1 plan_name=masam checkpoint=latest validate save_probabilities"
    command = f"`masam_train {house.raw.name} 1 {options}`"
    assert f"{B} is in no pair because its probabilities are missing; write them with: {command}" in text_of(selection)


def test_missing_folds_and_cases_are_named_and_only_common_cases_compared(house: House) -> None:
    house.models({"name": A}, {"name": B, "folds": (0,)})
    selection = house.find()
    assert selection.cases == 2
    assert f"2 cases are left out because {B} (fold 0) did not predict all of them: case_001, case_003" in text_of(
        selection
    )
    only = house.find(folds=[0])
    assert dice_of(only) == dice_of(selection)
    assert "2 of 4 cases are in no validated fold: case_001, case_003" in text_of(only)
    assert only.members[0].folds == (0,)
    (file, *_) = house.validation(A, 0).glob("*.nii.gz")
    file.unlink()
    assert house.find(folds=[0]).cases == 1


def test_a_fold_that_is_not_validated_is_said_how_to(house: House) -> None:
    house.models({"name": A, "validated": (0,)})
    selection = house.find()
    assert selection.members[0].folds == (0,)
    assert (
        f"fold 1 is left out because it is not validated; run `masam_train {house.raw.name} 1 "
        "configuration=axis0 plan_name=masam validate`" in text_of(selection)
    )


@pytest.mark.parametrize("epoch", [5, 7])
def test_a_fold_that_was_trained_on_since_is_left_out(house: House, epoch: int) -> None:
    """Its held-out predictions are not by the checkpoint that would be used."""
    house.models({"name": A})
    write_json(house.validation(A, 1) / "predicted_with.json", {"checkpoint": "checkpoint_best", "epoch": 5})
    write_json(house.validation(A, 1).parent / "checkpoint_best" / "checkpoint.json", {"epoch": epoch})
    selection = house.find()
    assert selection.members[0].folds == ((0, 1) if epoch == 5 else (0,))
    assert ("fold 1 is left out because its training continued after the validation" in text_of(selection)) == (
        epoch == 7
    )


def test_fold_all_is_explained(house: House) -> None:
    house.models({"name": A, "folds": ("all",)}, {"name": B, "folds": (0, 1, "all")})
    selection = house.find()
    assert {member for candidate in selection.candidates for member in candidate.members} == {B}
    assert "it is validated on the cases that it was trained on" in text_of(selection)
    with pytest.raises(
        ModelError, match=r"no cross-validated model.*fold all is left out.*the cases that it was trained on"
    ):
        house.find(configurations=["axis0"])
    with pytest.raises(ModelError, match=r"Fold all cannot be cross-validated.*Leave it out of `folds`"):
        house.find(folds=["all"])


def test_some_models_only(house: House) -> None:
    house.models({"name": A}, {"name": B}, {"name": C})
    assert set(dice_of(house.find(configurations=["axis0", "2d"]))) == {(A,), (C,), (A, C)}
    assert set(dice_of(house.find(plan_names=["other"]))) == {(C,)}
    with pytest.raises(ModelError, match="no trained model matches these options"):
        house.find(configurations=["nowhere"])


def test_predictions_of_cases_that_are_gone_do_not_count(house: House) -> None:
    house.models({"name": A})
    for number in (1, 3):
        (house.raw / "labelsTr" / f"case_00{number}.nii.gz").unlink()
        (house.raw / "imagesTr" / f"case_00{number}_0000.nii.gz").unlink()
    assert house.find().cases == 2
    with pytest.raises(ModelError, match=f"{A}: none of its validated cases is in .* segmentations are missing"):
        house.find(folds=[1])


def test_models_without_a_common_case_are_refused(house: House) -> None:
    house.models({"name": A, "folds": (0,)}, {"name": B, "folds": (1,)})
    with pytest.raises(ModelError, match=r"no held-out case in common.*fold 0.*fold 1"):
        house.find()


def test_models_of_other_labels_or_mixed_checkpoints_are_refused(house: House) -> None:
    house.models({"name": A})
    write_json(house.validation(A, 1) / "predicted_with.json", {"checkpoint": "checkpoint_latest"})
    with pytest.raises(ModelError, match=r"different checkpoints \(fold 0: best, fold 1: latest\).*checkpoint=best`"):
        house.find()
    description = json.loads((house.results / A / "dataset.json").read_text())
    description["labels"] = {"background": 0, "one": 1}
    write_json(house.results / A / "dataset.json", description)
    with pytest.raises(ModelError, match="trained with other labels"):
        house.find()


def test_folds_validated_with_and_without_flips_are_not_mixed(house: House) -> None:
    house.models({"name": A})
    write_json(house.validation(A, 1) / "predicted_with.json", {"checkpoint": "checkpoint_best", "mirror": False})
    with pytest.raises(ModelError, match=r"fold 0: with, fold 1: without.*axis0 plan_name=masam validate mirror`"):
        house.find()


def test_models_validated_without_flips_are_named(house: House, caplog: pytest.LogCaptureFixture) -> None:
    house.models({"name": A}, {"name": B})
    for fold in (0, 1):
        write_json(
            house.validation(A, fold) / "predicted_with.json", {"checkpoint": "checkpoint_best", "mirror": False}
        )
    text = text_of(house.find())
    assert f"{A}: validated without flips, but masam_predict uses them. This lowers their scores here" in text
    assert f"`masam_train {house.raw.name} 1 configuration=axis0 plan_name=masam validate mirror`" in text
    assert "This lowers their scores" in caplog.text
    only = text_of(house.find(configurations=["axis0"]))
    assert f"{A}: validated without flips, but masam_predict uses them. The Dice of new images" in only
    file = house.results / A / "plan.json"
    plan = json.loads(file.read_text())
    plan["configurations"]["axis0"]["mirror_axes"] = []
    file.write_text(json.dumps(plan))
    assert "flips" not in text_of(house.find())  # there are none that could be left out


def test_damaged_files_are_reported(house: House) -> None:
    house.models({"name": A}, {"name": B})
    (npz, *_) = house.validation(B, 0).glob("*.npz")
    npz.write_bytes(b"PK")
    (file, *_) = sorted(house.validation(A, 1).glob("*.nii.gz"))
    labels, geometry = read_labels(file)
    write_labels(file, labels[:1], type(geometry)(shape=(1, *geometry.shape[1:]), spacing=geometry.spacing))
    with pytest.raises(
        CaseErrors, match=r"(?s)cannot be read as probabilities.*and the current reference have different shapes"
    ):
        house.find()
    (house.validation(A, 0) / "summary.json").write_text("{}")
    with pytest.raises(PlanError, match="no summary of a validation"):
        house.find()


def test_the_text_says_what_to_run(house: House) -> None:
    house.models({"name": A}, {"name": B})
    selection = house.find()
    text = worded(instructions(selection, house.paths))
    folder = house.results / "crossval_results" / f"{A}___{B}"
    for line in (
        f"masam_predict -i IMAGES -o SEGMENTATIONS -d {house.raw.name}\n",
        f"masam_predict -i IMAGES -o OUT_2 -d {house.raw.name} -c axis1 -p masam -f 0 1 -chk best --save_probabilities",
        "masam_ensemble -i OUT_1 OUT_2 -o OUT\n",
        f"masam_apply_postprocessing -i OUT -o SEGMENTATIONS -pp {folder / 'postprocessing.json'}",
        f"{A} + {B}  0.",
    ):
        assert line in text
    selection = house.find(configurations=["axis0"])
    text = worded(instructions(selection, house.paths))
    assert "masam_ensemble" not in text
    assert "--save_probabilities" not in text
    assert selection.name == A


def test_regions_ignore_and_videos_are_compared_too(
    raw_dataset: Callable[..., Path], video_dataset: Callable[..., Path]
) -> None:
    for raw in (
        raw_dataset(cases=4, regions=True),
        raw_dataset(number=3, cases=4, ignore=True),
        video_dataset(sequences=2),
    ):
        house = House(raw)
        house.models({"name": A, "error": 0.4}, {"name": B, "error": 0.4})
        selection = house.find()
        assert [member.folder_name for member in selection.members] == [A, B]
        assert selection.postprocessing.each_slice == (raw.name == "Dataset002_Clips")
        (folder,) = (house.results / "crossval_results").iterdir()
        summary = json.loads((folder / "summary.json").read_text())
        assert summary["foreground_mean"]["Dice"] == pytest.approx(dice_of(selection)[(A, B)], abs=1e-12)


def test_one_command_at_a_time_selects(house: House) -> None:
    house.models({"name": A})
    with (
        claimed(house.results, "selection"),
        pytest.raises(OutputError, match="another process works on selection there"),
    ):
        house.find()
    assert house.find().members
