"""Exported and installed models: the same weights come out, names of cases and places do not, and nothing is lost."""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from masam_auto.core.claims import claimed
from masam_auto.core.encoders import ENCODERS
from masam_auto.core.errors import MasamError, ModelError, OutputError, PlanError
from masam_auto.core.jsonio import read_plain, write_json
from masam_auto.core.labels import parse_labels
from masam_auto.core.plan import Plan
from masam_auto.core.postprocessing import Postprocessing
from masam_auto.core.raw_files import file_sha256
from masam_auto.core.selection import SELECTION_NAME, TEXT_NAME, SelectedModel, Selection, read_selection
from masam_auto.core.summary import summarise_cases
from masam_auto.evaluation.evaluate import evaluate_arrays
from masam_auto.models.checkpoint import (
    MODEL_FILE,
    Checkpoint,
    ModelHeader,
    TrainingState,
    load_checkpoint,
    plan_digest,
    read_model,
    save_checkpoint,
)
from masam_auto.models.checkpoint import write_model as write_model_file
from masam_auto.models.export_model import ExportedModel, export_model
from masam_auto.models.install_model import install_model
from masam_auto.models.load_model import load_member
from masam_auto.models.model_archive import extract_archive, write_archive
from masam_auto.models.model_exchange import EXCHANGE, bring_back
from masam_auto.models.trained_model import describe_model, open_model
from tests import tiny_training as tiny

SECRET = "mueller_hans_1950"
PLACE = "/home/mueller"


def write_model(results: Path, *, folds: Sequence[int] = (0, 1), plan: Plan | None = None, **header: Any) -> Path:
    """A trained model, whose cases and places have names that must not get out."""
    plan = plan or tiny.make_plan()
    configuration = plan.configuration(None)
    folder = results / plan.dataset_name / f"{plan.name}__{configuration.name}"
    write_json(folder / "plan.json", plan)
    raw = {
        "channel_names": {"0": "MR"},
        "labels": tiny.LABELS,
        "file_ending": ".nii.gz",
        "description": "toys | and\nmore",
    }
    raw |= {"sequences": {SECRET: [f"{SECRET}_1"]}, "training": [f"{PLACE}/{SECRET}.nii.gz"]}
    write_json(folder / "dataset.json", raw)
    write_json(folder / "splits.json", [{"train": [SECRET], "val": ["b"]}])
    network = tiny.build_tiny(plan.network, canvas=configuration.canvas, in_channels=1, num_outputs=3)
    labels, truth = parse_labels(tiny.LABELS, None), np.ones((2, 4, 4), np.uint8)
    for fold in folds:
        given: dict[str, Any] = {
            "dataset_name": plan.dataset_name,
            "configuration": configuration.name,
            "fold": str(fold),
            "epoch": 2,
            "network": plan.network,
            "plan_digest": plan_digest(plan, configuration),
            "canvas": configuration.canvas,
            "in_channels": 1,
            "num_outputs": 3,
            "pretrained_weights": f"{PLACE}/results/Dataset009_First/masam__2d/fold_0/checkpoint_best",
        }
        state = {name: tensor + fold for name, tensor in network.state_dict().items()}
        checkpoint = Checkpoint(
            header=ModelHeader(**given | header),
            state=TrainingState(epoch=2, step=6, best_dice=0.5, wall_seconds=3600.0),
            model=state,
            weights=state,
            optimizers=(),
        )
        save_checkpoint(folder / f"fold_{fold}", checkpoint, best=True)
        metrics = evaluate_arrays(truth, truth, labels, spacing=(1.0, 1.0, 1.0))
        files = {"prediction_file": f"{PLACE}/{SECRET}.nii.gz", "reference_file": f"{PLACE}/x.nii.gz"}
        cases = [{"metrics": metrics, "mIoU": 1.0, "mIoU_with_background": 1.0, **files}]
        write_json(folder / f"fold_{fold}" / "validation" / "summary.json", summarise_cases(cases))
        (folder / f"fold_{fold}" / "training.log").write_text(PLACE)
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "there")


def export(folder: Path, output: Path, **options: Any) -> Path:
    export_model([ExportedModel(model=describe_model(folder))], output, **options)
    return output


def install(archive: Path, tmp_path: Path, **options: Any) -> Path:
    (installed,) = install_model(archive, tmp_path / "here", weights=tmp_path / "weights", **options)
    return installed.folder


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_networks_come_out(model: Path, tmp_path: Path) -> None:
    folder = install(export(model, tmp_path / "model.zip"), tmp_path)
    assert folder == tmp_path / "here" / "Dataset001_Toy" / "masam__axis0"
    assert describe_model(folder).folds == (0, 1)
    plan, description = open_model(describe_model(folder))
    assert plan == open_model(describe_model(model))[0]
    assert description.is_video  # although the videos' names are left out
    before, after = (
        load_member(
            [place / f"fold_{fold}" / "checkpoint_best" for fold in (0, 1)],
            plan,
            description,
            device=torch.device("cpu"),
        ).networks
        for place in (model, folder)
    )
    for one, other in zip(before, after, strict=True):
        assert all(
            torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
        )


def test_nothing_tells_who_the_cases_are_or_where_it_was_made(model: Path, tmp_path: Path) -> None:
    files = content(install(export(model, tmp_path / "model.zip"), tmp_path))
    assert not [name for name, data in files.items() if SECRET.encode() in data or b"/home" in data]
    assert {Path(name).name for name in files} == {
        "plan.json",
        "dataset.json",
        "README.md",
        "model.safetensors",
        "checkpoint.json",
        "summary.json",
    }


def test_the_card_says_which_folds_were_validated_without_flips(model: Path, tmp_path: Path) -> None:
    card = content(install(export(model, tmp_path / "1.zip"), tmp_path))["README.md"].decode()
    assert "flips" not in card
    file = model / "fold_1" / "validation" / "summary.json"
    write_json(file, {**json.loads(file.read_text()), "protocol": {"checkpoint": "best", "mirror": False}})
    shutil.rmtree(tmp_path / "here")
    folder = install(export(model, tmp_path / "2.zip"), tmp_path)
    said = "Predicted without averaging over flips: fold 1."
    assert said in (folder / "README.md").read_text()
    again = install(export(folder, tmp_path / "3.zip"), tmp_path / "elsewhere")
    assert said in (again / "README.md").read_text()


def test_names_of_cases_go_along_when_asked_but_places_never(model: Path, tmp_path: Path) -> None:
    files = content(install(export(model, tmp_path / "model.zip", case_names=True), tmp_path))
    assert files["splits.json"] == (model / "splits.json").read_bytes()
    (entry,) = json.loads(files["fold_0/validation/summary.json"])["metric_per_case"]
    assert (entry["prediction_file"], entry["reference_file"]) == (f"{SECRET}.nii.gz", "x.nii.gz")
    assert not [name for name, data in files.items() if b"/home" in data]


def test_the_same_model_makes_the_same_bytes_also_when_it_was_installed(model: Path, tmp_path: Path) -> None:
    first = export(model, tmp_path / "1.zip", licence="CC0").read_bytes()
    assert export(model, tmp_path / "2.zip", licence="CC0").read_bytes() == first
    installed = install(tmp_path / "1.zip", tmp_path)
    for file in installed.rglob("*"):
        os.utime(file, (0, 0))  # on another day
    assert export(installed, tmp_path / "3.zip", licence="CC0").read_bytes() == first


@pytest.mark.parametrize(
    "summary", [{}, [], {"metric_per_case": 3}, {"metric_per_case": [], "foreground_mean": 1, "mean": {}}]
)
def test_a_damaged_summary_is_named(model: Path, tmp_path: Path, summary: Any) -> None:
    write_json(model / "fold_1" / "validation" / "summary.json", summary)
    with pytest.raises(PlanError, match=r"fold_1/validation/summary\.json"):
        export(model, tmp_path / "model.zip")


def test_the_card_says_what_it_is_and_how_good(model: Path, tmp_path: Path) -> None:
    card = content(install(export(model, tmp_path / "model.zip", licence="CC-BY-4.0"), tmp_path))["README.md"].decode()
    assert card.startswith("# masam__axis0 of Dataset001_Toy\n")
    for text in (
        "| licence of the model | CC-BY-4.0 |",
        "| description | toys \\| and more |",
        "| segments (label values) | organ (1), lesion (2) |",
        "| class | metric | fold 0 (1 cases) | fold 1 (1 cases) | mean of folds |",
        "| organ | Dice | 1.0000 | 1.0000 | 1.0000 |",
        "| lesion | Dice | - | - | - |",
        "| 2 | 6 | as planned | 1.00 | 0.5000 |",
        "Dataset009_First/masam__2d/fold_0/checkpoint_best",
        "Nothing: the model holds all of its weights.",
        "-d Dataset001_Toy -c axis0 -p masam",
    ):
        assert text in card, text


def test_fold_all_is_not_called_validated(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "there", folds=(0,))
    (folder / "fold_0").rename(folder / "fold_all")
    card = content(install(export(folder, tmp_path / "model.zip"), tmp_path))["README.md"].decode()
    assert "its accuracy is not known" in card
    assert "ask its author before you use or share it" in card


def test_a_training_does_not_go_on_from_an_installed_model(model: Path, tmp_path: Path) -> None:
    folder = install(export(model, tmp_path / "model.zip"), tmp_path)
    with pytest.raises(ModelError, match=r"imported or installed.*`pretrained_weights=.*new training"):
        load_checkpoint(folder / "fold_0")


def test_needed_sam_weights_are_named_until_they_are_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ENCODERS, "vit_b", ENCODERS["tiny"])
    sam = tiny.write_sam_file(tmp_path / "there" / "sam_vit_b_x.safetensors")
    digest = file_sha256(sam)
    folder = write_model(
        tmp_path / "there",
        plan=tiny.make_sam_plan(tiny.make_configuration()),
        sam_file=str(sam),
        sam_sha256=digest,
    )
    archive = export(folder, tmp_path / "model.zip")
    installed = install(archive, tmp_path)
    assert f"needs SAM weights whose SHA-256 begins with {digest[:12]}" in caplog.text
    assert f"* `{sam.name}`, SHA-256 `{digest}`: not an official file" in (installed / "README.md").read_text()
    assert read_model(installed / "fold_0" / "checkpoint_best")[0].sam_file == sam.name
    caplog.clear()
    (tmp_path / "weights").mkdir()
    shutil.copy(sam, tmp_path / "weights")
    install(archive, tmp_path, overwrite=True)
    assert "SAM weights" not in caplog.text


def test_a_selection_goes_with_all_of_its_models(model: Path, tmp_path: Path) -> None:
    other = tiny.make_plan(tiny.make_configuration(name="2d"))
    folders = [model, write_model(tmp_path / "there", plan=other, folds=(0,))]
    chosen = Selection(
        dataset_name="Dataset001_Toy",
        members=tuple(SelectedModel(plan_name="masam", configuration=name, folds=(0,)) for name in ("axis0", "2d")),
        postprocessing=Postprocessing(),
        dice=0.8765,
        dice_by_class={},
        cases=9,
        candidates=(),
        reasons=("1 of 9 cases is not covered: john_doe.",),
    )
    members = [ExportedModel(model=describe_model(folder), folds=(0,)) for folder in folders]
    export_model(members, tmp_path / "both.zip", selection=chosen)
    installed = install_model(tmp_path / "both.zip", tmp_path / "here", weights=tmp_path)
    assert [(found.configuration, found.folds) for found in installed] == [("2d", (0,)), ("axis0", (0,))]
    assert read_selection(tmp_path / "here" / "Dataset001_Toy" / SELECTION_NAME) == dataclasses.replace(
        chosen, reasons=()
    )
    card = (installed[0].folder / "README.md").read_text()
    (installed[0].folder.parent / TEXT_NAME).write_text("of an earlier selection")
    install_model(tmp_path / "both.zip", tmp_path / "here", weights=tmp_path, overwrite=True)
    assert not (installed[0].folder.parent / TEXT_NAME).exists()
    assert (
        "uses masam__axis0 and masam__2d, whose probabilities are averaged" in card and "0.8765, over 9 cases" in card
    )


def test_what_is_there_is_kept_unless_told_otherwise(model: Path, tmp_path: Path) -> None:
    archive = export(model, tmp_path / "model.zip")
    with pytest.raises(OutputError, match=r"folder: the archive needs a name that ends in \.zip, such as folder\.zip"):
        export(model, tmp_path / "folder")
    with pytest.raises(OutputError, match=r"model\.zip exists already\. Give `overwrite`"):
        export(model, archive)
    export(model, archive, overwrite=True)
    folder = install(archive, tmp_path)
    (folder / "fold_7").mkdir()
    with pytest.raises(OutputError, match=r"masam__axis0 exists already\. Give `overwrite`"):
        install(archive, tmp_path)
    assert (folder / "fold_7").exists()
    install(archive, tmp_path, overwrite=True)
    assert not (folder / "fold_7").exists()
    assert not list((tmp_path / "here").rglob(".partial-*"))


def test_a_model_that_does_not_fit_its_plan_is_not_exported(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "there", num_outputs=5)
    with pytest.raises(ModelError, match=r"does not fit .*masam__axis0/plan\.json: it was trained for 5"):
        export(folder, tmp_path / "model.zip")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there"]


def tampered(archive: Path, tmp_path: Path, change: Callable[[Path], None]) -> Path:
    """An archive whose sums are right, but whose content was changed."""
    inside = tmp_path / "inside"
    inside.mkdir()
    extract_archive(archive, inside)
    change(inside)
    write_archive(tmp_path / "bad.zip", inside, dataset_name="Dataset001_Toy", masam_auto="1")
    return tmp_path / "bad.zip"


def rename_plan(inside: Path) -> None:
    write_json(
        inside / "masam__axis0" / "plan.json",
        read_plain(inside / "masam__axis0" / "plan.json", what="") | {"name": "x"},
    )


def no_plan(inside: Path) -> None:
    (inside / "masam__axis0" / "plan.json").unlink()


def other_labels(inside: Path) -> None:
    file = inside / "masam__axis0" / "dataset.json"
    write_json(file, read_plain(file, what="") | {"labels": {"background": 0, "organ": 1}})


def ending_beyond_the_folder(inside: Path) -> None:
    file = inside / "masam__axis0" / "dataset.json"
    write_json(file, read_plain(file, what="") | {"file_ending": ".x/../../victim.nii.gz"})


def frames_beyond_the_folder(inside: Path) -> None:
    file = inside / "masam__axis0" / "dataset.json"
    write_json(file, read_plain(file, what="") | {"sequences": {"clip": ["../victim"]}})


def no_weights(inside: Path) -> None:
    for fold in (0, 1):
        shutil.rmtree(inside / "masam__axis0" / f"fold_{fold}" / "checkpoint_best")


def no_tensors(inside: Path) -> None:
    (inside / "masam__axis0" / "fold_1" / "checkpoint_best" / "model.safetensors").write_bytes(b"\x80\x04pickle")


def change_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def rewrite(inside: Path) -> None:
        folder = inside / "masam__axis0" / "fold_1" / "checkpoint_best"
        header, tensors = read_model(folder)
        change(tensors)
        write_model_file(folder / MODEL_FILE, header, tensors)

    return rewrite


NAME = "mask_decoder.head.weight"
other_shape = change_weights(lambda tensors: tensors.update({NAME: tensors[NAME][:, :-1].clone()}))
whole_numbers = change_weights(lambda tensors: tensors.update({NAME: tensors[NAME].to(torch.int32)}))
not_finite = change_weights(lambda tensors: tensors[NAME].view(-1)[-1:].fill_(float("nan")))
one_less = change_weights(lambda tensors: tensors.pop(NAME))
one_more = change_weights(lambda tensors: tensors.update({"image_encoder.blocks.999999999.norm": torch.ones(1)}))


def other_json(name: str, text: str) -> Callable[[Path], None]:
    def rewrite(inside: Path) -> None:
        file = inside / "masam__axis0" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    return rewrite


def endless_window(inside: Path) -> None:
    file = inside / "masam__axis0" / "plan.json"
    plan = read_plain(file, what="")
    plan["configurations"]["axis0"]["window"] = 10**12 + 1
    write_json(file, plan)


def sam_file_elsewhere(inside: Path) -> None:
    folder = inside / "masam__axis0" / "fold_1" / "checkpoint_best"
    header, tensors = read_model(folder)
    write_model_file(folder / MODEL_FILE, dataclasses.replace(header, sam_file="/etc/passwd", sam_sha256="0"), tensors)


def selection_of_a_fold_that_is_not_there(inside: Path) -> None:
    write_selection(inside, SelectedModel(plan_name="masam", configuration="axis0", folds=(0, 7)))


def foreign_selection(inside: Path) -> None:
    write_selection(inside, SelectedModel(plan_name="masam", configuration="axis9", folds=(0,)))


def write_selection(inside: Path, member: SelectedModel) -> None:
    chosen = Selection(
        dataset_name="Dataset001_Toy",
        members=(member,),
        postprocessing=Postprocessing(),
        dice=0.0,
        dice_by_class={},
        cases=1,
        candidates=(),
        reasons=(),
    )
    write_json(inside / SELECTION_NAME, chosen)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (rename_plan, "is plan x of Dataset001_Toy"),
        (no_plan, "plan not found"),
        (other_labels, "it was trained for 3 outputs"),
        (ending_beyond_the_folder, r'"file_ending" must be one of'),
        (frames_beyond_the_folder, r"'\.\./victim': cannot name a case"),
        (no_weights, "has no checkpoint"),
        (no_tensors, "model.safetensors is damaged"),
        (other_shape, rf"fold_1/checkpoint_best: {NAME} has shape"),
        (whole_numbers, rf"{NAME} has values of type torch\.int32, not torch\.float32"),
        (not_finite, rf"{NAME} has values that are not finite"),
        (one_less, rf"{NAME} is missing"),
        (one_more, "it holds an encoder of 1000000000 blocks of width 8"),
        (
            other_json("fold_0/checkpoint_best/checkpoint.json", "{"),
            r"fold_0/checkpoint_best/checkpoint\.json is not valid",
        ),
        (other_json("fold_0/validation/summary.json", "[]"), r"fold_0/validation/summary\.json is no summary"),
        (other_json("splits.json", "["), r"splits\.json is not valid"),
        (endless_window, "window must be at least 1 and at most 1023, got 1000000000001"),
        (sam_file_elsewhere, "names a SAM file elsewhere: '/etc/passwd'"),
        (foreign_selection, "is for other models"),
        (selection_of_a_fold_that_is_not_there, "fold 7 of .* has no checkpoint"),
    ],
)
def test_content_that_does_not_belong_together_is_refused_and_leaves_nothing(
    change: Callable[[Path], None], problem: str, model: Path, tmp_path: Path
) -> None:
    archive = tampered(export(model, tmp_path / "model.zip"), tmp_path, change)
    with pytest.raises(
        ModelError, match=f"bad.zip was not installed: its content does not belong together: .*{problem}"
    ):
        install(archive, tmp_path)
    assert not (tmp_path / "here").exists()


def test_a_refused_archive_leaves_what_was_there(model: Path, tmp_path: Path) -> None:
    archive = export(model, tmp_path / "model.zip")
    before = content(install(archive, tmp_path))
    with pytest.raises(MasamError):
        install(tampered(archive, tmp_path, no_tensors), tmp_path, overwrite=True)
    assert content(tmp_path / "here" / "Dataset001_Toy" / "masam__axis0") == before


@pytest.mark.parametrize("place", [EXCHANGE, ".partial-1-ab"])
def test_a_model_that_a_killed_installation_moved_aside_comes_back(place: str, model: Path, tmp_path: Path) -> None:
    archive = export(model, tmp_path / "model.zip")
    folder = install(archive, tmp_path)
    before = content(folder)
    aside = folder.parent / place / "old"
    aside.mkdir(parents=True)
    folder.rename(aside / folder.name)
    bring_back(folder.parent)
    assert content(folder) == before
    with pytest.raises(OutputError, match="exists already"):
        install(archive, tmp_path)


def test_a_header_of_later_versions_is_copied_whole(model: Path, tmp_path: Path) -> None:
    """Everything a model says of itself goes along but the places."""
    folder = install(export(model, tmp_path / "model.zip"), tmp_path)
    before, after = (read_model(place / "fold_1" / "checkpoint_best")[0] for place in (model, folder))
    for field in dataclasses.fields(ModelHeader):
        if field.name != "pretrained_weights":
            assert getattr(before, field.name) == getattr(after, field.name)


def test_a_model_in_training_is_not_replaced(model: Path, tmp_path: Path) -> None:
    archive = export(model, tmp_path / "model.zip")
    installed = install(archive, tmp_path)
    before = content(installed)
    for folder, what in ((installed, "fold_0"), (installed.parent, "models")):
        with claimed(folder, what), pytest.raises(OutputError, match=f"another process works on {what} there"):
            install(archive, tmp_path, overwrite=True)
    assert content(installed) == before
