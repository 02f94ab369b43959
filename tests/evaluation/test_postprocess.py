"""What postprocessing is found for, and a folder of label files postprocessed."""

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from masam_auto.core.errors import CaseErrors, DatasetError, OutputError, PlanError
from masam_auto.core.geometry import Geometry
from masam_auto.core.jsonio import write_json
from masam_auto.core.labels import Labels, parse_labels
from masam_auto.core.postprocessing import Postprocessing, PostprocessingStep, read_postprocessing
from masam_auto.evaluation.postprocess import Findings, determine_postprocessing, postprocess_folder
from masam_auto.formats.io import read_labels, write_labels
from masam_auto.imaging.components import apply_postprocessing
from masam_auto.imaging.confusion import class_dice, count_confusion

SHAPE = (3, 16, 16)
GEOMETRY = Geometry(shape=SHAPE, spacing=(2.0, 1.0, 1.0))
CLASSES = parse_labels({"background": 0, "organ": 1, "lesion": 2}, None)
REGIONS = parse_labels({"background": 0, "whole": [1, 2], "core": 2}, [1, 2])

Paint = Callable[[np.ndarray, np.ndarray], None]


def write_cases(folder: Path, paint: Paint, *, count: int = 3) -> list[tuple[Path, Path]]:
    """Cases with an organ and a lesion in it, and what `paint` adds to segmentation and reference."""
    pairs = []
    for number in range(count):
        reference = np.zeros(SHAPE, np.int16)
        reference[0:2, 2:9, 2:8] = 1
        reference[0:2, 4:6, 4:6] = 2
        prediction = reference.copy()
        prediction[0, 2, 2] = 0
        paint(prediction, reference)
        pairs.append((folder / "predicted" / f"{number}.nii.gz", folder / "true" / f"{number}.nii.gz"))
        for path, labels in zip(pairs[-1], (prediction, reference), strict=True):
            write_labels(path, labels, GEOMETRY)
    return pairs


def rules(findings: Findings) -> list[tuple[str, str]]:
    return [(step.target, step.rule) for step in findings.postprocessing.steps]


def dice_of(pairs: list[tuple[Path, Path]], labels: Labels, postprocessing: Postprocessing) -> np.ndarray:
    """By doing it, file by file."""
    tables = []
    for prediction, reference in pairs:
        done = apply_postprocessing(read_labels(prediction)[0], postprocessing, voxel_volume=GEOMETRY.voxel_volume)
        tables.append(count_confusion(done, read_labels(reference)[0], labels))
    return class_dice(tables, labels)


def false_specks(prediction: np.ndarray, reference: np.ndarray) -> None:
    prediction[2, 12:15, 12] = 1
    prediction[2, 12, 2] = 2


def two_real_organs(prediction: np.ndarray, reference: np.ndarray) -> None:
    """The second organ is real in one class; specks of the lesion are false."""
    for array in (prediction, reference):
        array[2, 11:15, 10:14] = 1
    prediction[2, 12, 2] = 2


def small_real_lesions(prediction: np.ndarray, reference: np.ndarray) -> None:
    """Two real lesions of 2 voxels (4 cubic mm), a false one of 1, and a real organ of 8 voxels beside a false one of
    3."""
    for array in (prediction, reference):
        array[2, 0, 14:16] = 2
        array[2, 4, 14:16] = 2
        array[2, 12:14, 0:4] = 1
    prediction[2, 15, 15] = 2
    prediction[2, 9:12, 12] = 1


def nothing(prediction: np.ndarray, reference: np.ndarray) -> None:
    pass


def test_all_foreground_together_comes_first(tmp_path: Path) -> None:
    findings = determine_postprocessing(write_cases(tmp_path, false_specks), CLASSES, workers=0)
    assert rules(findings) == [("foreground", "keep_largest")]
    assert (findings.after > findings.before).all()


def test_a_class_with_two_real_parts_keeps_them(tmp_path: Path) -> None:
    findings = determine_postprocessing(write_cases(tmp_path, two_real_organs), CLASSES, workers=0)
    assert [target for target, _ in rules(findings)] == ["lesion"]
    assert findings.after[0] == findings.before[0]
    assert findings.after[1] > findings.before[1]


def test_small_components_go_but_none_that_may_be_real(tmp_path: Path) -> None:
    findings = determine_postprocessing(write_cases(tmp_path, small_real_lesions), CLASSES, workers=0)
    assert rules(findings) == [("organ", "remove_small"), ("lesion", "remove_small")]
    organ, lesion = findings.postprocessing.steps
    assert 6.0 < organ.volume <= 16.0  # the false one has 3 voxels of 2 cubic mm, the smallest real one 8
    assert 2.0 < lesion.volume <= 4.0


def test_where_nothing_helps_there_is_none(tmp_path: Path) -> None:
    findings = determine_postprocessing(write_cases(tmp_path, nothing), CLASSES, each_slice=True, workers=0)
    assert findings.postprocessing == Postprocessing(each_slice=True)
    assert np.array_equal(findings.before, findings.after)


@pytest.mark.parametrize("labels", [CLASSES, REGIONS])
@pytest.mark.parametrize("seed", range(4))
def test_the_mean_never_falls_nor_any_class_and_the_figures_are_those_of_doing_it(
    tmp_path: Path, labels: Labels, seed: int
) -> None:
    generator = np.random.default_rng(seed)

    def noise(prediction: np.ndarray, reference: np.ndarray) -> None:
        for array, share in ((prediction, 0.04), (reference, 0.01 * (seed % 2))):
            spots = generator.random(SHAPE) < share
            array[spots] = generator.integers(0, 3, spots.sum())

    pairs = write_cases(tmp_path, noise)
    findings = determine_postprocessing(pairs, labels, workers=0)
    assert (findings.after >= findings.before).all()
    assert np.array_equal(findings.before, dice_of(pairs, labels, Postprocessing()))
    assert np.array_equal(findings.after, dice_of(pairs, labels, findings.postprocessing))
    if seed % 2 == 0:
        assert findings.postprocessing.steps


def test_a_class_that_only_false_positives_have_may_vanish(tmp_path: Path) -> None:
    def absent(prediction: np.ndarray, reference: np.ndarray) -> None:
        for array in (prediction, reference):
            array[array == 2] = 1
        prediction[2, 15, 15] = 2

    findings = determine_postprocessing(write_cases(tmp_path, absent), CLASSES, workers=0)
    assert rules(findings) == [("foreground", "keep_largest")]
    assert np.isnan(findings.after[1])


def test_files_that_do_not_fit_are_reported_together(tmp_path: Path) -> None:
    pairs = write_cases(tmp_path, nothing)
    write_labels(pairs[0][0], np.zeros((1, 2, 2), np.int16), Geometry(shape=(1, 2, 2), spacing=(1.0, 1.0, 1.0)))
    pairs[1][0].write_bytes(b"damaged")
    with pytest.raises(CaseErrors, match=r"(?s)0\.nii\.gz has shape \(1, 2, 2\).*1\.nii\.gz: is not a NIfTI"):
        determine_postprocessing(pairs, CLASSES, workers=0)


LARGEST = Postprocessing(steps=(PostprocessingStep(target="organ", values=(1,), rule="keep_largest"),))


def test_a_folder_is_postprocessed_and_bad_files_are_reported(tmp_path: Path) -> None:
    pairs = write_cases(tmp_path, false_specks)
    source, folder = tmp_path / "predicted", tmp_path / "out"
    write_json(source / "dataset.json", {"a": 1})
    pairs[1][0].write_bytes(b"damaged")
    image = nibabel.load(pairs[2][0])
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine), pairs[2][0])  # an s-form, no q-form
    outcome = postprocess_folder(source, folder, LARGEST, workers=0)
    assert outcome.predicted == ("0.nii.gz", "2.nii.gz")
    assert len(outcome.problems) == 1
    assert "1.nii.gz: is not a NIfTI" in outcome.problems[0]
    assert sorted(path.name for path in folder.iterdir()) == ["0.nii.gz", "2.nii.gz", "dataset.json"]
    done, geometry = read_labels(folder / "2.nii.gz")
    assert geometry == GEOMETRY and int(nibabel.load(folder / "2.nii.gz").header["qform_code"]) == 0
    assert np.array_equal(done, apply_postprocessing(read_labels(pairs[2][0])[0], LARGEST, voxel_volume=2.0))


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    write_cases(tmp_path, false_specks)
    source, folder = tmp_path / "predicted", tmp_path / "out"
    folder.mkdir()
    (folder / "1.nii.gz").write_text("mine")
    with pytest.raises(OutputError, match=r"already holds 1\.nii\.gz.*`overwrite`"):
        postprocess_folder(source, folder, LARGEST, workers=0)
    assert [path.name for path in folder.iterdir()] == ["1.nii.gz"]
    assert postprocess_folder(source, folder, LARGEST, overwrite=True, workers=0).problems == ()
    with pytest.raises(OutputError, match="the output folder is the input folder"):
        postprocess_folder(source, source, LARGEST, overwrite=True, workers=0)


def test_the_plan_of_another_model_is_kept(tmp_path: Path) -> None:
    write_cases(tmp_path, false_specks)
    source, folder = tmp_path / "predicted", tmp_path / "out"
    write_json(source / "dataset.json", {"a": 1})
    write_json(source / "plan.json", {"a": 1})
    write_json(folder / "dataset.json", {"a": 1})
    write_json(folder / "plan.json", {"a": 2})
    with pytest.raises(OutputError, match=r"already holds plan\.json\. Give `overwrite`"):
        postprocess_folder(source, folder, LARGEST, workers=0)
    assert sorted(path.name for path in folder.iterdir()) == ["dataset.json", "plan.json"]
    assert postprocess_folder(source, folder, LARGEST, overwrite=True, workers=0).problems == ()
    assert (folder / "plan.json").read_bytes() == (source / "plan.json").read_bytes()


def test_a_folder_without_label_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="folder not found"):
        postprocess_folder(tmp_path / "missing", tmp_path / "out", LARGEST)
    (tmp_path / "in").mkdir()
    with pytest.raises(DatasetError, match="no segmentations"):
        postprocess_folder(tmp_path / "in", tmp_path / "out", LARGEST)


def test_postprocessing_of_other_classes_is_refused(tmp_path: Path) -> None:
    write_cases(tmp_path, nothing)
    source = tmp_path / "predicted"
    raw = {"channel_names": {"0": "CT"}, "file_ending": ".nii.gz"}
    for labels, fits in (({"organ": 1, "other": 2}, True), ({"organ": 2, "other": 1}, False), ({"disc": 1}, False)):
        write_json(source / "dataset.json", {**raw, "labels": {"background": 0, **labels}})
        step = PostprocessingStep(target="organ", values=(1,), rule="keep_largest")
        folder = tmp_path / "_".join(labels) / str(labels.get("organ"))
        if fits:
            assert postprocess_folder(source, folder, Postprocessing(steps=(step,)), workers=0).predicted
            continue
        with pytest.raises(DatasetError, match="for other classes: it has organ as 1, but these segmentations have"):
            postprocess_folder(source, folder, Postprocessing(steps=(step,)), workers=0)
        assert not folder.exists()


def test_another_json_is_no_postprocessing(tmp_path: Path) -> None:
    write_json(tmp_path / "plan.json", {"name": "masam"})
    with pytest.raises(PlanError, match=r"plan\.json is not a postprocessing\.json"):
        read_postprocessing(tmp_path / "plan.json")
