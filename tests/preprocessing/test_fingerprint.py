"""The fingerprint: nnU-Net's fields on the same data, and where each class lies."""

import dataclasses
import json

import numpy as np
import pytest

from masam_auto.core.dataset import open_dataset
from masam_auto.core.errors import CaseErrors, DatasetError, PlanError
from masam_auto.core.geometry import Geometry
from masam_auto.core.paths import Paths
from masam_auto.formats.io import read_case, read_case_labels
from masam_auto.preprocessing.fingerprint import extract_fingerprint, measure_case, read_fingerprint, write_fingerprint
from tests import raw_data


def opened(folder):
    root = folder.parent
    return open_dataset(Paths(raw=root, preprocessed=root, results=root, weights=root), folder.name)


def test_fields_are_nnunets(raw_dataset):
    dataset = opened(raw_dataset(cases=4, channels=2))
    fingerprint = extract_fingerprint(dataset, workers=0)
    pooled = []
    for case, measured in zip(dataset.cases, fingerprint.cases, strict=True):
        image, geometry = read_case(case, dataset.description)
        labels, _ = read_case_labels(case, dataset.description)
        voxels = np.argwhere((image != 0).any(axis=0))
        assert measured.spacing == geometry.spacing and measured.shape == image.shape[1:]
        assert measured.shape_after_cropping == tuple(voxels.max(0) + 1 - voxels.min(0))
        inside = image[:, labels > 0]
        pooled.append(inside[:, np.random.RandomState(1).choice(inside.shape[1], 50_000)])  # nnU-Net's way
    values = np.concatenate(pooled, axis=1)
    for channel, found in zip(values, fingerprint.intensities, strict=True):
        tolerance = 0.01 * float(channel.max() - channel.min())
        assert found.mean == pytest.approx(channel.mean(), abs=tolerance)
        assert found.std == pytest.approx(channel.std(), abs=tolerance)
        assert found.median == pytest.approx(np.median(channel), abs=tolerance)
        assert (found.min, found.max) == (channel.min(), channel.max())
        assert found.percentile_00_5 == pytest.approx(np.percentile(channel, 0.5), abs=tolerance)
        assert found.percentile_99_5 == pytest.approx(np.percentile(channel, 99.5), abs=tolerance)
    kept = [np.prod(c.shape_after_cropping) / np.prod(c.shape) for c in fingerprint.cases]
    assert fingerprint.median_relative_size_after_cropping == pytest.approx(np.median(kept))
    assert fingerprint.num_outputs == 3 and fingerprint.dimensions == 3 and not fingerprint.is_video


def test_workers_change_nothing(raw_dataset):
    dataset = opened(raw_dataset(cases=2))
    assert extract_fingerprint(dataset, workers=2) == extract_fingerprint(dataset, workers=0)


def test_file_round_trip_and_refusals(raw_dataset, tmp_path):
    fingerprint = extract_fingerprint(opened(raw_dataset(cases=2)), workers=0)
    path = tmp_path / "fingerprint.json"
    write_fingerprint(path, fingerprint)
    assert read_fingerprint(path) == fingerprint
    for changes, message in (({"version": 9}, "version 9"), ({"cases": []}, "no cases"), ({"cases": 3}, "cases")):
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        with pytest.raises(PlanError, match=message):
            read_fingerprint(path)
        write_fingerprint(path, fingerprint)


def box_case(shape=(6, 10, 12)):
    """A box of class 1 in slices 1-3, rows 2-5, columns 4-9, a voxel of class 2; zeros around the first slice."""
    image = np.ones((1, *shape), np.float32)
    image[:, :, :, 0] = 0
    labels = np.zeros(shape, np.int16)
    labels[1:4, 2:6, 4:10] = 1
    labels[5, 0, 11] = 2
    image[0, labels == 1] = 7
    return image, labels


GEOMETRY = Geometry(shape=(6, 10, 12), spacing=(3.0, 1.0, 0.5))


def test_where_a_class_lies():
    image, labels = box_case()
    classes = {"box": (1,), "dot": (2,), "both": (1, 2), "absent": (3,)}
    case = measure_case(image, labels, GEOMETRY, identifier="x", classes=classes).case
    box, both = case.classes["box"], case.classes["both"]
    assert case.shape == (6, 10, 12) and case.shape_after_cropping == (6, 10, 11)
    assert box.volume == pytest.approx(3 * 4 * 6 * 1.5)
    assert box.centroid == pytest.approx((2.5 * 3.0, 4.0, 6.0 * 0.5)), "from the corner of the cropped image"
    assert box.extent == (9.0, 4.0, 3.0) and box.slices == (3, 4, 6)
    areas = (4 * 6 * 0.5, 3 * 6 * 1.5, 3 * 4 * 3.0)
    assert box.diameters == pytest.approx(tuple(2 * np.sqrt(area / np.pi) for area in areas))
    assert box.mean == (7.0,) and box.std == (0.0,)
    assert both.volume == pytest.approx(box.volume + case.classes["dot"].volume) and both.slices[0] == 4
    assert "absent" not in case.classes


def test_ignore_is_no_foreground():
    image, labels = box_case()
    labels[0] = 3
    image[0, 0] = 99
    measured = measure_case(image, labels, GEOMETRY, identifier="x", classes={"box": (1,)}, ignore=3)
    assert measured.highest[0] == 7 and set(np.unique(measured.samples)) == {1.0, 7.0}
    counted = measure_case(image, labels, GEOMETRY, identifier="x", classes={"box": (1,)})
    assert counted.highest[0] == 99


def test_regions_and_ignore_of_a_data_set(raw_dataset):
    fingerprint = extract_fingerprint(opened(raw_dataset(cases=3, regions=True, ignore=True, labels=3)), workers=0)
    assert fingerprint.class_names[0] == "whole" and set(fingerprint.classes) == set(fingerprint.class_names)
    assert fingerprint.num_outputs == len(fingerprint.class_names)
    for case in fingerprint.cases:
        parts = [case.classes[name].volume for name in fingerprint.class_names[1:]]
        assert case.classes["whole"].volume > max(parts)


def test_histograms_tell_classes_apart_and_are_blind_to_a_cases_scale(raw_dataset):
    folder = raw_dataset(cases=3, labels=2)
    fingerprint = extract_fingerprint(opened(folder), workers=0)
    first, second = (np.array(fingerprint.classes[name].histograms[0]) for name in fingerprint.class_names)
    assert first.sum() == pytest.approx(1) and second.sum() == pytest.approx(1)
    assert np.minimum(first, second).sum() < 0.2, "160 against 220 with a deviation of 5"
    assert len(fingerprint.histogram_edges[0]) == len(first) + 1
    image, labels = box_case()
    once, scaled = (
        measure_case(image * factor, labels, GEOMETRY, identifier="x", classes={"box": (1,)}) for factor in (1, 50)
    )
    assert np.allclose(once.class_samples["box"], scaled.class_samples["box"], atol=1e-4)


def test_every_voxel_is_drawn_before_any_comes_again():
    image, labels = box_case()
    image[0, labels > 0] = np.arange((labels > 0).sum())
    measured = measure_case(image, labels, GEOMETRY, identifier="x", classes={"box": (1,)}, samples=146)
    values, counts = np.unique(measured.samples, return_counts=True)
    assert len(values) == 73 and set(counts) == {2}


def test_video_is_one_case_a_sequence(video_dataset):
    fingerprint = extract_fingerprint(opened(video_dataset(sequences=2, frames=4)), workers=0)
    assert fingerprint.is_video and fingerprint.dimensions == 3 and len(fingerprint.cases) == 2
    assert {case.shape for case in fingerprint.cases} == {(4, 24, 20)}
    assert len(fingerprint.intensities) == len(fingerprint.channel_names) == 3


def test_cases_without_foreground_add_no_intensities_but_none_at_all_is_refused(raw_dataset):
    image, labels = box_case()
    empty = measure_case(image, np.zeros_like(labels), GEOMETRY, identifier="x", classes={"box": (1,)})
    assert empty.samples.shape == (1, 0) and empty.case.classes == {}
    dataset = opened(raw_dataset(cases=2, labels=1))
    unlabelled = dataclasses.replace(
        dataset, cases=tuple(dataclasses.replace(case, labels=None) for case in dataset.cases)
    )
    with pytest.raises(CaseErrors, match="case_001"):
        extract_fingerprint(unlabelled, workers=0)


def test_a_class_that_no_case_holds_is_named(raw_dataset, caplog):
    folder = raw_dataset(cases=2, labels=1)
    labels = {"background": 0, "tumour": 1, "vessel": 2}
    raw_data.change_description(folder, labels=labels)
    fingerprint = extract_fingerprint(opened(folder), workers=0)
    assert 'no case of Dataset001_Toy has "vessel"' in caplog.text and "tumour" not in caplog.text
    assert fingerprint.class_names == ("tumour", "vessel") and set(fingerprint.classes) == {"tumour"}


def test_a_data_set_of_empty_labels_is_refused(raw_dataset):
    folder = raw_dataset(cases=2, labels=1, oblique=False, spacing=(3.0, 1.0, 0.8))
    for path in sorted((folder / "labelsTr").iterdir()):
        size = (6 + int(path.name[5:8]) % 2, 16, 14)
        raw_data.write_volume(path, np.zeros(size, np.uint8), spacing=(3.0, 1.0, 0.8), oblique=False)
    with pytest.raises(DatasetError, match="none of the 2 training cases has a labelled foreground voxel"):
        extract_fingerprint(opened(folder), workers=0)


def test_labels_of_another_shape_are_refused_by_name(raw_dataset):
    folder = raw_dataset(cases=2, oblique=False, spacing=(3.0, 1.0, 0.8))
    wrong = np.ones((6, 9, 14), np.uint8)
    raw_data.write_volume(folder / "labelsTr" / "case_000.nii.gz", wrong, spacing=(3.0, 1.0, 0.8), oblique=False)
    with pytest.raises(CaseErrors, match=r"case_000: image has shape \(6, 16, 14\), but labels \(6, 9, 14\)"):
        extract_fingerprint(opened(folder), workers=0)


def test_voxels_that_are_no_numbers_are_refused_by_name(raw_dataset):
    folder = raw_dataset(cases=2, oblique=False, spacing=(3.0, 1.0, 0.8))
    image = np.ones((7, 16, 14), np.float32)
    image[3, 4, 5], image[0, 0, 0] = np.nan, np.inf
    raw_data.write_volume(folder / "imagesTr" / "case_001_0000.nii.gz", image, spacing=(3.0, 1.0, 0.8), oblique=False)
    with pytest.raises(CaseErrors, match=r"case_001: 2 of \d+ voxels are not finite"):
        extract_fingerprint(opened(folder), workers=0)


@pytest.fixture(scope="module")
def hippocampus(shared_data):
    folder = shared_data / "raw" / "Dataset004_Hippocampus"
    dataset = opened(folder)
    return dataclasses.replace(dataset, cases=dataset.cases[::8])


def test_real_data(hippocampus):
    fingerprint = extract_fingerprint(hippocampus, workers=0)
    assert len(fingerprint.cases) == 25 and set(fingerprint.classes) == {"Anterior", "Posterior"}
    assert {case.spacing for case in fingerprint.cases} == {(1.0, 1.0, 1.0)}
    summary = fingerprint.classes["Anterior"]
    assert summary.cases == 25 and 500 < summary.median_volume < 3000


def component_sizes(mask: np.ndarray) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Median diameters of the class as a whole and of its components, mm."""
    image = np.ones((1, *mask.shape), np.float32)
    geometry = dataclasses.replace(GEOMETRY, shape=mask.shape, spacing=(1.0, 1.0, 1.0))
    found = measure_case(image, mask.astype(np.int16), geometry, identifier="x", classes={"it": (1,)}).case.classes[
        "it"
    ]
    return found.diameters, found.components


def test_a_class_of_many_specks_is_as_small_as_they_are():
    specks = np.zeros((12, 40, 40), bool)
    specks[::2, 2::8, 2::8] = specks[::2, 3::8, 2::8] = specks[::2, 2::8, 3::8] = specks[::2, 3::8, 3::8] = True
    whole, parts = component_sizes(specks)
    assert parts[0] == pytest.approx(2 * (4 / np.pi) ** 0.5) and whole[0] > 4 * parts[0]


def test_stray_voxels_do_not_make_an_organ_small():
    organ = np.zeros((12, 40, 40), bool)
    organ[2:10, 8:28, 8:28] = True
    organ[2:10, 32:38:2, ::4] = True
    whole, parts = component_sizes(organ)
    assert parts[0] == pytest.approx(2 * (400 / np.pi) ** 0.5) and whole[0] == pytest.approx(parts[0], rel=0.05)


@pytest.mark.parametrize("code", ["LPS", "RAS", "PIR", "SLA"])
def test_a_turned_measurement_is_that_of_the_turned_image(code):
    image, labels = box_case()
    labels[1, 2:4, 1] = labels[4, 8, 10] = 1  # specks, so that components differ by axis
    plain = measure_case(image, labels, GEOMETRY, identifier="x", classes={"it": (1,)}).case
    turn = GEOMETRY.turn_to(code)
    arrays, grid = (np.ascontiguousarray(turn.array(array)) for array in (image, labels)), GEOMETRY.turned(turn)
    turned = measure_case(*arrays, grid, identifier="x", classes={"it": (1,)}).case
    for name in ("volume", "centroid", "extent", "diameters", "slices", "components", "mean", "std"):
        found, expected = (getattr(case.classes["it"], name) for case in (plain.turned(turn), turned))
        assert found == pytest.approx(expected, rel=1e-5), name
    assert plain.turned(turn).shape_after_cropping == turned.shape_after_cropping
