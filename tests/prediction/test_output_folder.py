"""Folders that predictions may not go to: those of images, data sets and models, and of another model's predictions."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from masam_auto.core.errors import DatasetError, OutputError
from masam_auto.prediction.predict import Predictor
from masam_auto.prediction.predict_folder import PredictionOptions, predict_folder
from tests import intensity_model

Make = Callable[..., Path]


def test_outputs_never_go_among_the_inputs(raw_dataset: Make, tmp_path: Path) -> None:
    raw = raw_dataset(cases=1)
    predictor = intensity_model.make_predictor(raw)
    with pytest.raises(OutputError, match="output folder is the input folder"):
        predict_folder(predictor, raw / "imagesTr", raw / "imagesTr" / ".." / "imagesTr")
    with pytest.raises(OutputError, match="is a file"):
        predict_folder(predictor, raw / "imagesTr", raw / "dataset.json")
    with pytest.raises(OutputError, match=r"looks like an image file.*Give the folder: `output="):
        predict_folder(predictor, raw / "imagesTr", tmp_path / "seg" / "a.nii.gz")
    assert not (tmp_path / "seg").exists()
    with pytest.raises(OutputError, match="the output folder is a raw data set"):
        predict_folder(predictor, raw / "imagesTr", raw)
    for part in ("labelsTr", "imagesTr/predicted", "imagesTs/a/b"):
        with pytest.raises(OutputError, match="the output folder is part of a raw data set"):
            predict_folder(predictor, raw / "imagesTr", raw / part, PredictionOptions(overwrite=True))
    for own in ("fingerprint.json", "splits.json", "fold_0"):
        (tmp_path / own / own).mkdir(parents=True)
        with pytest.raises(OutputError, match=r"its plan\.json would be replaced"):
            predict_folder(predictor, raw / "imagesTr", tmp_path / own, PredictionOptions(overwrite=True))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DatasetError, match="the folder is empty"):
        predict_folder(predictor, empty, tmp_path / "out")


def test_images_are_not_replaced_through_links(raw_dataset: Make, tmp_path: Path) -> None:
    raw = raw_dataset(cases=1)
    real, links = tmp_path / "real", tmp_path / "links"
    real.mkdir()
    links.mkdir()
    image = real / "mine.nii.gz"
    (raw / "imagesTr" / "case_000_0000.nii.gz").rename(image)
    before = image.read_bytes()
    (links / image.name).symlink_to(image)
    with pytest.raises(OutputError, match=r"mine.nii.gz is one of the images. Choose another output folder"):
        predict_folder(intensity_model.make_predictor(raw), links, real, PredictionOptions(overwrite=True))
    linked = tmp_path / "linked"
    linked.symlink_to(real, target_is_directory=True)
    with pytest.raises(OutputError, match="the output folder is the input folder"):
        predict_folder(intensity_model.make_predictor(raw), linked, real, PredictionOptions(overwrite=True))
    assert image.read_bytes() == before and [path.name for path in real.iterdir()] == ["mine.nii.gz"]


def other_configuration(predictor: Predictor) -> Predictor:
    """A model of the same plan."""
    (member,) = predictor.members
    other = replace(member.configuration, name="other")
    plan = replace(member.plan, configurations={**member.plan.configurations, "other": other})
    return replace(predictor, members=(replace(member, plan=plan, configuration=other),))


def other_data_set(predictor: Predictor) -> Predictor:
    """A model of a plan of the same name."""
    description = replace(predictor.description, raw={**predictor.description.raw, "description": "another"})
    return replace(predictor, description=description)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            other_configuration,
            r"another model's predictions \(Dataset001_Toy, plan masam, configuration axis0, says its plan\.json\)\. "
            r"Choose another folder",
        ),
        (other_data_set, r"dataset\.json of another data set\. Choose another folder, or give `overwrite`"),
    ],
)
@pytest.mark.parametrize("options", [{}, {"continue_prediction": True}])
def test_predictions_of_two_models_do_not_mix(
    raw_dataset: Make,
    tmp_path: Path,
    change: Callable[[Predictor], Predictor],
    message: str,
    options: dict[str, bool],
) -> None:
    raw, out = raw_dataset(cases=2), tmp_path / "out"
    first = intensity_model.make_predictor(raw)
    predict_folder(first, raw / "imagesTr", out, only=["case_000"])
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(OutputError, match=message):
        predict_folder(change(first), raw / "imagesTr", out, PredictionOptions(**options), only=["case_001"])
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    predict_folder(change(first), raw / "imagesTr", out, PredictionOptions(overwrite=True))
    with pytest.raises(OutputError, match="another"):
        predict_folder(first, raw / "imagesTr", out, PredictionOptions(continue_prediction=True))


def test_a_model_goes_on_in_its_own_folder(raw_dataset: Make, tmp_path: Path) -> None:
    raw, out = raw_dataset(cases=2), tmp_path / "out"
    predictor = other_configuration(intensity_model.make_predictor(raw))
    predict_folder(predictor, raw / "imagesTr", out, only=["case_000"])
    found = json.loads((out / "plan.json").read_text())
    assert found["default_configuration"] == "other"
    del found["reasons"]  # an older version may have written it
    (out / "plan.json").write_text(json.dumps(found))
    changed = predictor.changed(step_size=0.5, mirror=False)
    assert (
        len(predict_folder(changed, raw / "imagesTr", out, PredictionOptions(continue_prediction=True)).predicted) == 1
    )
    (out / "plan.json").write_text("{}")
    with pytest.raises(OutputError, match=r"does not hold this model's predictions: .*plan\.json"):
        predict_folder(predictor, raw / "imagesTr", out, PredictionOptions(continue_prediction=True))
