"""Summaries: nnU-Net's schema, means, and what is refused."""

import dataclasses
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from masam_auto.core.dataset import parse_description
from masam_auto.core.errors import CaseErrors, DatasetError, OutputError
from masam_auto.core.geometry import Geometry
from masam_auto.core.labels import Labels
from masam_auto.core.summary import summary_key
from masam_auto.evaluation.evaluate import Scoring, evaluate_arrays, evaluate_files, evaluate_folder, subsets_of
from masam_auto.formats.io import write_labels
from masam_auto.imaging.metrics import compare_masks, measure

LABELS = Labels(values={"background": (0,), "a": (1,), "b": (2,), "c": (3,)})
NNUNET = ["Dice", "IoU", "FN", "FP", "TN", "TP", "n_pred", "n_ref"]
Folders = tuple[Path, Path]


def picture(*columns: int) -> np.ndarray:
    """(2, 3, n) labels, one value a column."""
    return np.tile(np.array(columns, np.int16), (2, 3, 1))


def write(folder: Path, name: str, array: np.ndarray, spacing: tuple[float, float, float] = (3.0, 1.0, 2.0)) -> None:
    folder.mkdir(exist_ok=True)
    write_labels(folder / f"{name}.nii.gz", array, Geometry(shape=array.shape, spacing=spacing))  # type: ignore[arg-type]


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    predictions, references = tmp_path / "pred", tmp_path / "ref"
    write(references, "x", picture(0, 1, 1, 2))
    write(predictions, "x", picture(0, 0, 1, 2))
    write(references, "y", picture(0, 0, 1, 1))
    write(predictions, "y", picture(0, 0, 1, 1))
    return predictions, references


def test_summary_has_nnunets_schema_and_more(folders: Folders) -> None:
    summary = evaluate_folder(*folders, LABELS, ".nii.gz")
    assert set(summary) == {
        "foreground_mean",
        "mean",
        "metric_per_case",
        "mIoU",
        "mIoU_with_background",
        "scoring",
    }
    assert list(summary["mean"]) == ["1", "2", "3"]
    assert [Path(e["prediction_file"]).name for e in summary["metric_per_case"]] == ["x.nii.gz", "y.nii.gz"]
    assert all(e["reference_file"].startswith(str(folders[1])) for e in summary["metric_per_case"])
    for values in (
        summary["foreground_mean"],
        *summary["mean"].values(),
        summary["metric_per_case"][0]["metrics"]["1"],
    ):
        assert list(values)[:8] == NNUNET
        assert {"HD95_mm", "HD95_voxels", "NSD", "volume_pred_ml", "volume_ref_ml"} <= set(values)
    first = summary["metric_per_case"][0]["metrics"]["1"]
    assert (first["TP"], first["FN"], first["FP"], first["n_ref"]) == (6, 6, 0, 12)
    assert first["Dice"] == pytest.approx(2 / 3)
    assert (first["HD95_mm"], first["HD95_voxels"]) == (2.0, 1.0)
    assert first["volume_ref_ml"] == pytest.approx(12 * 6 / 1000)
    stored = json.loads((folders[0] / "summary.json").read_text())
    assert json.dumps(stored) == json.dumps(summary)  # as text, because NaN is not equal to itself


def test_means_leave_out_what_is_absent(folders: Folders) -> None:
    summary = evaluate_folder(*folders, LABELS, ".nii.gz")
    assert math.isnan(summary["metric_per_case"][1]["metrics"]["2"]["Dice"])
    assert summary["mean"]["1"]["Dice"] == pytest.approx((2 / 3 + 1) / 2)
    assert summary["mean"]["2"]["Dice"] == 1
    assert math.isnan(summary["mean"]["3"]["Dice"])
    assert summary["foreground_mean"]["Dice"] == pytest.approx(((2 / 3 + 1) / 2 + 1) / 2)


def test_worker_processes_find_the_same(folders: Folders) -> None:
    alone = evaluate_folder(*folders, LABELS, ".nii.gz")
    together = evaluate_folder(*folders, LABELS, ".nii.gz", workers=1)
    assert json.dumps(alone) == json.dumps(together)


def test_regions_are_named_as_nnunet_does() -> None:
    regions = Labels(
        values={"background": (0,), "whole": (1, 2), "core": (2,)}, has_regions=True, regions_class_order=(1, 2)
    )
    found = evaluate_arrays(picture(0, 2, 2, 0), picture(0, 1, 2, 0), regions, spacing=(1.0, 1.0, 1.0))
    assert list(found) == ["(1, 2)", "2"]
    assert found["(1, 2)"]["Dice"] == 1
    assert found["2"]["Dice"] == pytest.approx(2 / 3)
    assert summary_key((1, 2, 3)) == "(1, 2, 3)"


def test_voxels_to_be_ignored_do_not_count() -> None:
    labels = Labels(values={"background": (0,), "a": (1,), "ignore": (2,)}, ignore=2)
    found = evaluate_arrays(picture(1, 1, 0, 1), picture(1, 2, 0, 2), labels, spacing=(1.0, 1.0, 1.0))["1"]
    assert [found[k] for k in ("TP", "FP", "FN", "TN")] == [6, 0, 0, 6]


def test_tolerance_is_in_mm(folders: Folders) -> None:
    strict = evaluate_folder(*folders, LABELS, ".nii.gz", scoring=Scoring(tolerance=1.0))["mean"]["1"]["NSD"]
    assert (
        strict < evaluate_folder(*folders, LABELS, ".nii.gz", scoring=Scoring(tolerance=2.0))["mean"]["1"]["NSD"] == 1
    )


def test_pairs_of_any_name_can_be_compared(folders: Folders, tmp_path: Path) -> None:
    pairs = [(folders[0] / "x.nii.gz", folders[1] / "y.nii.gz")]
    summary = evaluate_files(pairs, LABELS, output=tmp_path / "out" / "summary.json")
    assert (tmp_path / "out" / "summary.json").is_file()
    assert summary["metric_per_case"][0]["metrics"]["1"]["TP"] == 6


def test_missing_segmentations_are_listed(folders: Folders) -> None:
    for name in "abcdefg":
        write(folders[1], name, picture(0, 1))
    with pytest.raises(DatasetError, match=r"7 of 9 segmentations are missing: a.nii.gz, .* and 2 more"):
        evaluate_folder(*folders, LABELS, ".nii.gz")


def test_more_segmentations_than_references_are_fine(folders: Folders, caplog: pytest.LogCaptureFixture) -> None:
    write(folders[0], "extra", picture(0, 1))
    with caplog.at_level(logging.WARNING, logger="masam_auto"):
        summary = evaluate_folder(*folders, LABELS, ".nii.gz")
    assert len(summary["metric_per_case"]) == 2
    assert "no reference for extra.nii.gz" in caplog.text


def test_other_shapes_and_unreadable_files_are_reported_together(folders: Folders) -> None:
    write(folders[0], "x", picture(0, 1, 1))
    (folders[0] / "y.nii.gz").write_bytes(b"junk")
    with pytest.raises(CaseErrors) as raised:
        evaluate_folder(*folders, LABELS, ".nii.gz")
    assert "x.nii.gz has shape (2, 3, 3), but its reference (2, 3, 4)" in raised.value.problems[0]
    assert "y.nii.gz" in raised.value.problems[1]
    assert not (folders[0] / "summary.json").exists()


def test_values_above_the_labels_are_warned_about(folders: Folders, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="masam_auto"):
        before = evaluate_folder(*folders, LABELS, ".nii.gz")
        assert not caplog.text
        write(folders[0], "x", picture(0, 255, 1, 2))
        after = evaluate_folder(*folders, LABELS, ".nii.gz")
    assert "x.nii.gz: has the value 255, which is no label and counts as background" in caplog.text
    assert [after["mean"][label]["Dice"] for label in "12"] == [before["mean"][label]["Dice"] for label in "12"]


def test_values_below_the_labels_are_warned_about_in_references_too(
    folders: Folders, caplog: pytest.LogCaptureFixture
) -> None:
    write(folders[1], "x", picture(0, -1, 1, 2, 9))
    write(folders[0], "x", picture(0, 1, 1, 2, 0))
    with caplog.at_level(logging.WARNING, logger="masam_auto"):
        evaluate_folder(*folders, LABELS, ".nii.gz")
    assert (
        f"{folders[1] / 'x.nii.gz'}: has the values -1, 9, which are no labels and count as background" in caplog.text
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"spacing": (1.0, 1.0, 1.0)}, "spacing (3.0, 1.0, 2.0) against (1.0, 1.0, 1.0) mm"),
        ({"origin": (0.0, 0.0, 1.6)}, "up to 0.533 voxels apart"),
        ({"direction": (0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0)}, "has shape (2, 4, 3)"),
    ],
)
def test_another_grid_is_refused_but_for_a_data_sets_own_labels(
    folders: Folders, tmp_path: Path, changes: dict, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A label file whose origin is off was warned of when its image was verified, and goes on being used."""
    grid = dataclasses.replace(Geometry(shape=(2, 3, 4), spacing=(3.0, 1.0, 2.0)), **changes)
    write_labels(folders[0] / "x.nii.gz", picture(0, 0, 1, 2), grid)
    with pytest.raises(CaseErrors) as raised:
        evaluate_folder(*folders, LABELS, ".nii.gz")
    assert words in str(raised.value) and str(folders[0] / "x.nii.gz") in str(raised.value)
    if "shape" not in words:
        pairs = [(folders[0] / "x.nii.gz", folders[1] / "x.nii.gz")]
        summary = evaluate_files(pairs, LABELS, output=tmp_path / "summary.json", checked=True)
        assert "grid differs from the reference's" in caplog.text
        assert summary["metric_per_case"][0]["metrics"]["1"]["HD95_mm"] == 2.0  # the reference's spacing


def test_half_a_voxel_is_the_same_place(folders: Folders, caplog: pytest.LogCaptureFixture) -> None:
    grid = Geometry(shape=(2, 3, 4), spacing=(3.0, 1.0, 2.0), origin=(0.9, 0.0, 1.4))
    write_labels(folders[0] / "x.nii.gz", picture(0, 0, 1, 2), grid)
    evaluate_folder(*folders, LABELS, ".nii.gz")
    assert "grid differs from the reference's: origin" in caplog.text


def test_missing_and_empty_folders(folders: Folders, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="folder of segmentations not found"):
        evaluate_folder(tmp_path / "none", folders[1], LABELS, ".nii.gz")
    with pytest.raises(DatasetError, match="folder of references not found"):
        evaluate_folder(folders[0], tmp_path / "none", LABELS, ".nii.gz")
    with pytest.raises(DatasetError, match=r"no references that end in .png"):
        evaluate_folder(*folders, LABELS, ".png")


def test_an_unwritable_summary_is_an_output_error(folders: Folders, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    pairs = [(folders[0] / "x.nii.gz", folders[1] / "x.nii.gz")]
    with pytest.raises(OutputError, match="cannot write"):
        evaluate_files(pairs, LABELS, output=tmp_path / "file" / "summary.json")


def test_raw_data_evaluated_against_itself_is_perfect(raw_dataset: Callable[..., Path]) -> None:
    folder = raw_dataset(cases=2) / "labelsTr"
    summary = evaluate_folder(folder, folder, Labels(values={"background": (0,), "a": (1,), "b": (2,)}), ".nii.gz")
    assert summary["foreground_mean"]["Dice"] == summary["foreground_mean"]["NSD"] == 1


def test_classes_have_tolerances_and_lesions_of_their_own(folders: Folders) -> None:
    scoring = Scoring(tolerance=1.0, tolerances={"a": 2.0}, lesions=("b",))
    summary = evaluate_folder(*folders, LABELS, ".nii.gz", scoring=scoring)
    assert summary["mean"]["1"]["NSD"] == 1
    assert evaluate_folder(*folders, LABELS, ".nii.gz", scoring=Scoring(tolerance=1.0))["mean"]["1"]["NSD"] < 1
    x, y = (entry["metrics"] for entry in summary["metric_per_case"])
    assert [x["2"][f"lesion_{name}"] for name in ("TP", "FP", "FN", "F1")] == [1, 0, 0, 1]
    assert math.isnan(y["2"]["lesion_F1"])
    assert summary["mean"]["2"]["lesion_F1"] == summary["foreground_mean"]["lesion_F1"] == 1
    assert "lesion_F1" not in summary["mean"]["1"]
    assert summary["scoring"]["tolerances"] == {"a": 2.0}
    with pytest.raises(DatasetError, match=r"of liver: there is no such class.*are a, b, c"):
        evaluate_folder(*folders, LABELS, ".nii.gz", scoring=Scoring(lesions=("liver",)))


def test_label_values_of_two_data_sets_are_brought_together(folders: Folders) -> None:
    one = Labels(values={"background": (0,), "all": (1,)})
    scoring = Scoring(prediction_values={2: 1}, reference_values={2: 0})
    summary = evaluate_folder(*folders, one, ".nii.gz", scoring=scoring)
    x, y = (entry["metrics"]["1"] for entry in summary["metric_per_case"])
    assert (x["TP"], x["FP"], x["FN"], x["n_ref"]) == (6, 6, 6, 12)
    assert (y["TP"], y["FP"], y["FN"]) == (12, 0, 0)


def test_sites_and_videos_have_means_of_their_own(folders: Folders) -> None:
    description = parse_description(
        {
            "channel_names": {"0": "MR"},
            "labels": {"background": 0, "a": 1},
            "file_ending": ".nii.gz",
            "sequences": {"clip": ["y"], "other": ["not_here"]},
            "groups": {"A": ["x"], "B": ["clip", "elsewhere"]},
        },
        name="Dataset001_Toy",
    )
    subsets = subsets_of(description, ".nii.gz")
    assert subsets["groups"]["B"] == ["y.nii.gz", "elsewhere.nii.gz"]
    summary = evaluate_folder(*folders, LABELS, ".nii.gz", subsets=subsets)
    assert {kind: list(summary[kind]) for kind in subsets} == {"groups": ["A", "B"], "sequences": ["clip"]}
    site = summary["groups"]["A"]
    assert (site["cases"], site["mean"]["1"]["Dice"]) == (1, pytest.approx(2 / 3))
    assert summary["groups"]["B"]["foreground_mean"] == summary["sequences"]["clip"]["foreground_mean"]
    plain = evaluate_folder(*folders, LABELS, ".nii.gz", subsets={"groups": {"C": ["elsewhere.nii.gz"]}})
    assert "groups" not in plain


def test_miou_counts_the_classes_of_each_reference(folders: Folders) -> None:
    write(folders[0], "x", picture(3, 0, 1, 2))  # class c is made up where there is background
    summary = evaluate_folder(*folders, LABELS, ".nii.gz")
    x, y = summary["metric_per_case"]
    assert x["mIoU"] == pytest.approx((1 / 2 + 1) / 2)
    assert x["mIoU_with_background"] == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert y["mIoU"] == y["mIoU_with_background"] == 1
    assert summary["mIoU"] == pytest.approx((0.75 + 1) / 2)
    write(folders[1], "y", picture(0, 0, 0, 0))
    empty = evaluate_folder(*folders, LABELS, ".nii.gz")
    assert math.isnan(empty["metric_per_case"][1]["mIoU"])
    assert empty["metric_per_case"][1]["mIoU_with_background"] == 0.5
    assert empty["mIoU"] == pytest.approx(0.75)


@pytest.mark.parametrize("depth", [1, 4])
def test_classes_are_measured_within_their_boxes_as_in_the_whole_image(depth: int) -> None:
    rng = np.random.default_rng(depth)
    prediction, reference = (rng.integers(0, 6, (depth, 7, 8)).astype(np.int16) for _ in range(2))
    for array in (prediction, reference):
        array[array == 4] = 0
        array[:, :2] = 0
    labels = Labels(values={"background": (0,), "a": (1,), "b": (2,), "c": (3,), "d": (4,), "ignore": (5,)}, ignore=5)
    found = evaluate_arrays(prediction, reference, labels, spacing=(3.0, 1.0, 2.0), scoring=Scoring(lesions=("a",)))
    for name, (value,) in labels.foreground.items():
        whole = compare_masks(
            prediction == value, reference == value, spacing=(3.0, 1.0, 2.0), valid=reference != 5, lesions=name == "a"
        )
        assert found[str(value)] == pytest.approx(measure(whole), nan_ok=True)
