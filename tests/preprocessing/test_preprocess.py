"""Preprocessing and its inverse, single cases and whole data sets, interrupted and resumed."""

import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from masam_auto.compute import parallel
from masam_auto.core.claims import claimed
from masam_auto.core.dataset import Dataset, open_dataset
from masam_auto.core.errors import CaseErrors, DatasetError, ImageError, ModelError, OutputError, PlanError
from masam_auto.core.geometry import CaseProperties, Geometry
from masam_auto.core.jsonio import read_json, write_json
from masam_auto.core.labels import Labels
from masam_auto.core.partial import partial_prefix
from masam_auto.core.paths import Paths
from masam_auto.core.plan import Configuration, InferencePlan, NetworkPlan, NormalizationPlan, Plan, TrainingPlan
from masam_auto.formats.storage import open_array, read_locations
from masam_auto.prediction.restore import MemberLogits, restore_case
from masam_auto.preprocessing import preprocess
from masam_auto.preprocessing.preprocess import check_preprocessed, preprocess_case, preprocess_dataset

LABELS = Labels(values={"background": (0,), "a": (1,), "b": (2,)})
REGIONS = Labels(
    values={"background": (0,), "whole": (1, 2), "core": (2,)}, has_regions=True, regions_class_order=(1, 2)
)
CASES = ["case_000", "case_001", "case_002"]


def configure(name: str = "axis0", *, channels: int = 1, **changes: object) -> Configuration:
    fields = {
        "axis_order": (0, 1, 2),
        "spacing": (3.0, 1.0, 0.8),
        "median_shape": (6, 16, 14),
        "separate_slices": False,
        "normalization": (NormalizationPlan(scheme="zscore"),) * channels,
        "window": 3,
        "canvas": (32, 32),
        "magnification": 1.0,
        "mirror_axes": (),
        "batch_size": 2,
    }
    return Configuration(**({"name": name} | fields | changes))  # type: ignore[arg-type]


def make_plan(*configurations: Configuration) -> Plan:
    return Plan(
        name="masam",
        dataset_name="Dataset001_Toy",
        channel_names=("CT",) * len(configurations[0].normalization),
        gpu_memory_gb=0,
        default_configuration=configurations[0].name,
        configurations={c.name: c for c in configurations},
        network=NetworkPlan(encoder="vit_t", decoder="multiscale", weights="none", trained="all"),
        training=TrainingPlan(),
        inference=InferencePlan(),
    )


def ellipsoids(shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    """An image (1, Z, Y, X), zero near some borders, and smooth labels 0, 1, 2, defined in mm."""
    z, y, x = (
        ((np.arange(n) + 0.5) * s - n * s / 2)[tuple(slice(None) if a == axis else None for a in range(3))]
        for axis, (n, s) in enumerate(zip(shape, spacing, strict=True))
    )
    half = [n * s / 2 for n, s in zip(shape, spacing, strict=True)]
    radius = np.sqrt((z / half[0]) ** 2 + (y / half[1]) ** 2 + (x / half[2]) ** 2)
    labels = np.where(radius < 0.75, np.where(x > 0, 1, 2), 0).astype(np.int16)
    body = (np.abs(y) < 0.9 * half[1]) & (np.abs(x) < 0.8 * half[2]) & (radius >= 0)
    return (np.where(body, 50.0 + 100 * labels, 0))[None].astype(np.float32), labels


def one_hot(labels: np.ndarray, count: int) -> np.ndarray:
    return np.stack([labels == value for value in range(count)]).astype(np.float32) * 2 - 1


def restore(
    logits: np.ndarray | torch.Tensor, properties: CaseProperties, labels: Labels, configuration: Configuration
) -> np.ndarray:
    """Restore (K, Z, Y, X) logits of one model."""
    slices = enumerate(torch.as_tensor(logits).unbind(1))
    return restore_case([MemberLogits(slices=slices, properties=properties, configuration=configuration)], labels)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_without_resampling_labels_come_back_exactly(order: tuple[int, int, int], dtype: str) -> None:
    spacing = (3.0, 1.0, 0.8)
    image, labels = ellipsoids((7, 20, 18), spacing)
    geometry = Geometry(shape=(7, 20, 18), spacing=spacing, origin=(5.0, -3.0, 9.0))
    configuration = configure(axis_order=order, spacing=tuple(spacing[a] for a in order))
    done = preprocess_case(image, geometry, labels, configuration, identifier="case")
    assert done.labels is not None
    assert done.properties.crop != ((0, 7), (0, 20), (0, 18))
    assert done.image.shape[1:] == done.labels.shape == done.properties.permuted_shape
    logits = one_hot(done.labels, 3).astype(dtype)
    for given in (logits, torch.from_numpy(logits)):
        restored = restore(given, done.properties, LABELS, configuration)
        assert restored.dtype == np.uint8
        np.testing.assert_array_equal(restored, labels)


def test_order_of_the_steps() -> None:
    """Normalisation sees the cropped volume before it is resampled."""
    image, labels = ellipsoids((7, 20, 18), (3.0, 1.0, 0.8))
    geometry = Geometry(shape=(7, 20, 18), spacing=(3.0, 1.0, 0.8))
    done = preprocess_case(image, geometry, labels, configure(spacing=(3.0, 2.0, 1.6)), identifier="case")
    (z0, z1), (y0, y1), (x0, x1) = done.properties.crop
    cropped = image[0, z0:z1, y0:y1, x0:x1]
    assert done.image.min() >= (cropped.min() - cropped.mean()) / cropped.std() - 1e-4
    assert done.image.max() == pytest.approx((cropped.max() - cropped.mean()) / cropped.std(), rel=1e-3)
    assert done.image.dtype == np.float32
    assert done.labels is not None
    assert done.labels.dtype == np.int8
    assert done.properties.resampled_shape == done.image.shape[1:]


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_a_smooth_object_survives_anisotropic_resampling(order: tuple[int, int, int], separate: bool) -> None:
    shape, spacing = (12, 60, 50), (5.0, 1.0, 0.8)
    image, labels = ellipsoids(shape, spacing)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    geometry = Geometry(shape=shape, spacing=spacing, direction=tuple(turn.ravel()), origin=(1.0, 2.0, 3.0))
    target = tuple((4.0, 1.3, 1.1)[axis] for axis in order)
    configuration = configure(axis_order=order, spacing=target, separate_slices=separate)
    done = preprocess_case(image, geometry, labels, configuration, identifier="case")
    assert done.labels is not None
    restored = restore(one_hot(done.labels, 3), done.properties, LABELS, configuration)
    assert restored.shape == shape
    assert done.properties.geometry == geometry
    for value in (1, 2):
        assert dice(restored == value, labels == value) > (0.9 if separate else 0.95)


def test_regions_are_painted_in_their_order() -> None:
    image, labels = ellipsoids((7, 20, 18), (3.0, 1.0, 0.8))
    geometry = Geometry(shape=(7, 20, 18), spacing=(3.0, 1.0, 0.8))
    done = preprocess_case(image, geometry, labels, configure(), identifier="case")
    assert done.labels is not None
    logits = np.stack([done.labels >= 1, done.labels == 2]).astype(np.float32) - 0.5
    np.testing.assert_array_equal(restore(logits, done.properties, REGIONS, configure()), labels)
    nothing = restore(np.zeros_like(logits), done.properties, REGIONS, configure())
    assert not nothing.any()  # a probability of exactly 1/2 is not more than 1/2


def test_outside_the_crop_is_background() -> None:
    image = np.zeros((1, 4, 6, 6), np.float32)
    image[0, 1:3, 2:5, 1:4] = 9
    geometry = Geometry(shape=(4, 6, 6), spacing=(1.0, 1.0, 1.0))
    configuration = configure(spacing=(0.5, 0.5, 0.5))
    done = preprocess_case(image, geometry, None, configuration, identifier="case")
    assert done.labels is None
    logits = np.zeros((3, *done.image.shape[1:]), np.float16)
    logits[2] = 1
    restored = restore(logits, done.properties, LABELS, configuration)
    np.testing.assert_array_equal(restored == 2, image[0] != 0)


def test_many_labels_need_a_wider_type() -> None:
    values: dict[str, tuple[int, ...]] = {"background": (0,), **{f"c{v}": (v,) for v in range(1, 301)}}
    labels = Labels(values=values)
    image = np.ones((1, 1, 2, 2), np.float32)
    volume = np.array([[[0, 127], [128, 300]]], np.int16)
    geometry = Geometry(shape=(1, 2, 2), spacing=(3.0, 1.0, 0.8))
    done = preprocess_case(image, geometry, volume, configure(), identifier="case")
    assert done.labels is not None
    assert done.labels.dtype == np.int16
    restored = restore(one_hot(done.labels, 301), done.properties, labels, configure())
    np.testing.assert_array_equal(restored, volume)


def test_an_empty_image_is_kept_whole() -> None:
    geometry = Geometry(shape=(3, 4, 5), spacing=(3.0, 1.0, 0.8))
    done = preprocess_case(np.zeros((1, 3, 4, 5), np.float32), geometry, None, configure(), identifier="case")
    assert done.image.shape == (1, 3, 4, 5)
    assert np.isfinite(done.image).all()


@pytest.mark.parametrize("spacing", [1e-3, 1e-6])
def test_a_spacing_that_no_memory_holds_is_told_before_it_is_tried(spacing: float) -> None:
    image, geometry = np.ones((1, 3, 40, 50), np.float32), Geometry(shape=(3, 40, 50), spacing=(3.0, 1.0, 0.8))
    fine = configure(spacing=(spacing,) * 3)
    with pytest.raises(MemoryError, match=r"case_7: resampled from .* mm, it needs .* GiB, and .* are free"):
        preprocess_case(image, geometry, None, fine, identifier="case_7")


def test_what_does_not_fit_is_refused() -> None:
    geometry = Geometry(shape=(3, 4, 5), spacing=(3.0, 1.0, 0.8))
    image = np.ones((2, 3, 4, 5), np.float32)
    with pytest.raises(ImageError, match="case_7: image has 2 channels, but the plan normalises 1"):
        preprocess_case(image, geometry, None, configure(), identifier="case_7")
    with pytest.raises(DatasetError, match=r"case_7: image has shape \(3, 4, 5\), but labels \(3, 4, 4\)"):
        preprocess_case(image, geometry, np.zeros((3, 4, 4), np.int16), configure(channels=2), identifier="case_7")
    done = preprocess_case(image[:1], geometry, None, configure(), identifier="case_7")
    with pytest.raises(
        ModelError, match=r"case_7: slice 0 of the logits has shape \(5, 4, 5\); expected 3 slices of \(3, 4, 5\)"
    ):
        restore(np.zeros((5, 3, 4, 5), np.float32), done.properties, LABELS, configure())


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(**{name: tmp_path / name for name in ("raw", "preprocessed", "results", "weights")})


@pytest.fixture
def dataset(raw_dataset: Callable[..., Path], paths: Paths) -> Dataset:
    raw_dataset(cases=3)
    return open_dataset(paths, "1")


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_dataset_is_written_for_every_configuration(dataset: Dataset, paths: Paths) -> None:
    plan = make_plan(configure(), configure("axis2", axis_order=(2, 0, 1), spacing=(1.0, 3.0, 1.0)))
    preprocess_dataset(dataset, plan, paths, workers=0)
    for name, configuration in plan.configurations.items():
        folder = paths.configuration_folder(dataset.name, name)
        check_preprocessed(folder, configuration, CASES)
        for case in CASES:
            image, labels = open_array(folder / f"{case}.b2nd"), open_array(folder / f"{case}_seg.b2nd")
            properties = read_json(folder / f"{case}.json", CaseProperties, what="properties")
            assert image.shape[1:] == labels.shape == properties.resampled_shape
            locations = read_locations(folder / f"{case}_locations.npz")
            assert list(locations) == ["organ1", "organ2"]
            for value, entry in enumerate(locations.values(), start=1):
                assert (labels[:][tuple(entry.voxels.T)] == value).all()
            assert properties.files[0].endswith(f"{case}_0000.nii.gz")
    assert len(list(folder.iterdir())) == 4 * len(CASES) + 1


def test_a_name_too_long_is_told_before_anything_is_made(dataset: Dataset, paths: Paths) -> None:
    first, *others = dataset.cases
    long = dataclasses.replace(dataset, cases=(dataclasses.replace(first, identifier="a" * 242), *others))
    with pytest.raises(DatasetError, match="this name is too long"):
        preprocess_dataset(long, make_plan(configure()), paths, workers=0)
    assert not paths.configuration_folder(dataset.name, "axis0").exists()


def test_worker_processes_write_the_same(dataset: Dataset, paths: Paths, tmp_path: Path) -> None:
    plan = make_plan(configure())
    other = dataclasses.replace(paths, preprocessed=tmp_path / "other")
    preprocess_dataset(dataset, plan, paths, workers=0)
    preprocess_dataset(dataset, plan, other, workers=1)
    for path in paths.configuration_folder(dataset.name, "axis0").iterdir():
        if path.suffix != ".npz":  # zip entries carry the time
            assert path.read_bytes() == (other.configuration_folder(dataset.name, "axis0") / path.name).read_bytes()


def test_only_what_is_missing_is_made_again(dataset: Dataset, paths: Paths, caplog: pytest.LogCaptureFixture) -> None:
    plan = make_plan(configure())
    preprocess_dataset(dataset, plan, paths, workers=0)
    folder = paths.configuration_folder(dataset.name, "axis0")
    (folder / "case_001_seg.b2nd").unlink()
    killed = folder / f"{partial_prefix(999999999)}ab-case_001.b2nd"
    alive = folder / f"{partial_prefix(os.getpid())}ab-case_001.b2nd"
    elsewhere = folder / ".partial-01234567-999999999-7-ab-case_001.b2nd"
    for unfinished in (killed, alive, elsewhere):
        unfinished.write_text("half")
    before = times(folder)
    preprocess_dataset(dataset, plan, paths, workers=0)
    after = times(folder)
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {f"case_001{e}" for e in (".b2nd", "_seg.b2nd", "_locations.npz", ".json")}
    assert {name for name in after if name.startswith(".partial")} == {alive.name, elsewhere.name}
    with caplog.at_level(logging.INFO, logger="masam_auto"):
        preprocess_dataset(dataset, plan, paths)
    assert "nothing to do" in caplog.text


def remade(folder: Path, before: dict[str, int]) -> set[str]:
    """Cases whose label arrays are not those of before."""
    return {name for name, at in times(folder).items() if at != before[name] and name.endswith("_seg.b2nd")}


def test_a_changed_raw_file_is_noticed_whatever_its_date(dataset: Dataset, paths: Paths) -> None:
    """As rsync, unzip and restored backups leave files: corrected, and older than the arrays."""
    plan = make_plan(configure())
    preprocess_dataset(dataset, plan, paths, workers=0)
    folder = paths.configuration_folder(dataset.name, "axis0")
    before = times(folder)
    labels = [case.labels[0] for case in dataset.cases if case.labels is not None]
    old = nib.load(labels[1])
    nib.save(nib.Nifti1Image(np.ascontiguousarray(np.asarray(old.dataobj)[::-1]), old.affine, old.header), labels[1])
    os.utime(labels[1], ns=(10**9, 10**9))
    os.utime(labels[2], ns=(time.time_ns() + 10**9,) * 2)  # touched only
    preprocess_dataset(dataset, plan, paths, workers=0)
    assert remade(folder, before) == {"case_001_seg.b2nd"}


def test_data_of_earlier_versions_are_compared_by_their_dates(dataset: Dataset, paths: Paths) -> None:
    plan = make_plan(configure())
    preprocess_dataset(dataset, plan, paths, workers=0)
    folder = paths.configuration_folder(dataset.name, "axis0")
    for case in dataset.cases:
        file = folder / f"{case.identifier}.json"
        plain = json.loads(file.read_text())
        del plain["raw"]
        file.write_text(json.dumps(plain))
    before = times(folder)
    assert dataset.cases[2].labels is not None
    os.utime(dataset.cases[2].labels[0], ns=(time.time_ns() + 10**9,) * 2)
    preprocess_dataset(dataset, plan, paths, workers=0)
    assert remade(folder, before) == {"case_002_seg.b2nd"}


def test_another_plan_or_other_labels_start_anew(dataset: Dataset, paths: Paths) -> None:
    folder = paths.configuration_folder(dataset.name, "axis0")
    old, new = configure(), configure(spacing=(3.0, 2.0, 2.0))
    preprocess_dataset(dataset, make_plan(old), paths, workers=0)
    (folder / "gone_case.b2nd").write_text("of a case that is no more")
    with pytest.raises(PlanError, match="preprocessed with another plan"):
        check_preprocessed(folder, new)
    preprocess_dataset(dataset, make_plan(new), paths, workers=0)
    check_preprocessed(folder, new, CASES, labels=dataset.description.labels)
    assert not (folder / "gone_case.b2nd").exists()
    before = times(folder)
    renamed = dataclasses.replace(dataset.description.labels, values={"background": (0,), "x": (1,), "y": (2,)})
    changed = dataclasses.replace(dataset, description=dataclasses.replace(dataset.description, labels=renamed))
    with pytest.raises(PlanError, match="other labels"):
        check_preprocessed(folder, new, CASES, labels=renamed)
    preprocess_dataset(changed, make_plan(new), paths, workers=0)
    check_preprocessed(folder, new, CASES, labels=renamed)
    assert list(read_locations(folder / "case_000_locations.npz")) == ["x", "y"]
    assert all(at != before[name] for name, at in times(folder).items())


def test_fields_that_arrays_do_not_depend_on_change_nothing(dataset: Dataset, paths: Paths) -> None:
    folder = paths.configuration_folder(dataset.name, "axis0")
    preprocess_dataset(dataset, make_plan(configure()), paths, workers=0)
    before = times(folder)
    preprocess_dataset(dataset, make_plan(configure(window=5, batch_size=7)), paths, workers=0)
    assert times(folder) == before


def test_missing_arrays_are_reported(dataset: Dataset, paths: Paths) -> None:
    folder = paths.configuration_folder(dataset.name, "axis0")
    with pytest.raises(PlanError, match="no preprocessed data in"):
        check_preprocessed(folder, configure())
    preprocess_dataset(dataset, make_plan(configure()), paths, workers=0)
    (folder / "case_001.json").unlink()
    check_preprocessed(folder, configure())
    with pytest.raises(PlanError, match=r"1 of 3 cases are not preprocessed \(case_001\)"):
        check_preprocessed(folder, configure(), CASES)


def test_a_record_of_a_newer_version_is_left_alone(dataset: Dataset, paths: Paths) -> None:
    folder = paths.configuration_folder(dataset.name, "axis0")
    write_json(folder / "preprocessing.json", {"version": 99})
    with pytest.raises(PlanError, match="version 99"):
        preprocess_dataset(dataset, make_plan(configure()), paths, workers=0)
    assert list(times(folder)) == ["preprocessing.json"]


def test_bad_cases_are_reported_together_and_the_rest_is_done(dataset: Dataset, paths: Paths) -> None:
    dataset.cases[0].images[0][0].write_bytes(b"junk")
    cases = (*dataset.cases[:2], dataclasses.replace(dataset.cases[2], labels=None))
    with pytest.raises(CaseErrors) as raised:
        preprocess_dataset(dataclasses.replace(dataset, cases=cases), make_plan(configure()), paths)
    assert len(raised.value.problems) == 2
    assert "case_000_0000.nii.gz" in raised.value.problems[0]
    assert "case_002: has no label file" in raised.value.problems[1]
    check_preprocessed(paths.configuration_folder(dataset.name, "axis0"), configure(), ["case_001"])


def test_unknown_configuration_and_unwritable_folder(dataset: Dataset, paths: Paths) -> None:
    with pytest.raises(PlanError, match="'3d' is not in the plan"):
        preprocess_dataset(dataset, make_plan(configure()), paths, configurations=["3d"])
    paths.preprocessed.write_text("a file where the folder should be")
    with pytest.raises(OutputError, match="cannot write"):
        preprocess_dataset(dataset, make_plan(configure()), paths)


def test_a_full_disk_leaves_nothing_half_written(
    dataset: Dataset, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, array: np.ndarray) -> None:
        raise OutputError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr(preprocess, "write_array", full)
    with pytest.raises(OutputError, match="No space left"):
        preprocess_dataset(dataset, make_plan(configure()), paths, workers=0)
    folder = paths.configuration_folder(dataset.name, "axis0")
    assert list(times(folder)) == ["preprocessing.json"]


KILLED = """
import signal
import sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
import test_case_module as t
from masam_auto.core.dataset import open_dataset
from masam_auto.preprocessing import preprocess
real = preprocess.write_array
def announce(path, array):
    real(path, array)
    print(path.name, flush=True)
    if path.name == "case_001.b2nd":
        sys.stdin.read()
preprocess.write_array = announce
paths = t.Paths(**{n: Path(sys.argv[1]) / n for n in ("raw", "preprocessed", "results", "weights")})
t.preprocess_dataset(open_dataset(paths, "1"), t.make_plan(t.configure()), paths, workers=0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_in_the_middle_it_is_completed(
    dataset: Dataset, paths: Paths, tmp_path: Path, how: signal.Signals
) -> None:
    (tmp_path / "test_case_module.py").write_text(Path(__file__).read_text())
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])}
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        env=environment,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    while process.stdout.readline().strip() != "case_001.b2nd":
        assert process.poll() is None
    process.send_signal(how)
    process.communicate()
    assert process.returncode != 0
    folder = paths.configuration_folder(dataset.name, "axis0")
    check_preprocessed(folder, configure(), ["case_000"])
    with pytest.raises(PlanError, match="2 of 3 cases are not preprocessed"):
        check_preprocessed(folder, configure(), CASES)
    before = times(folder)
    preprocess_dataset(dataset, make_plan(configure()), paths, workers=0)
    check_preprocessed(folder, configure(), CASES)
    assert times(folder)["case_000.b2nd"] == before["case_000.b2nd"]


def test_videos_are_one_case(video_dataset: Callable[..., Path], paths: Paths) -> None:
    video_dataset(sequences=2, frames=4)
    dataset = open_dataset(paths, "2")
    configuration = configure(channels=3, spacing=(1.0, 1.0, 1.0))
    preprocess_dataset(dataset, make_plan(configuration), paths)
    folder = paths.configuration_folder(dataset.name, "axis0")
    assert open_array(folder / "clip0.b2nd").shape == (3, 4, 24, 20)
    assert open_array(folder / "clip1_seg.b2nd").shape == (4, 24, 20)


def test_workers_follow_memory_and_work(dataset: Dataset, paths: Paths, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = []
    monkeypatch.setattr(preprocess, "map_cases", lambda *arguments, workers, **options: chosen.append(workers))

    def workers() -> int:
        preprocess_dataset(dataset, make_plan(configure()), paths, workers=None)
        return chosen.pop()

    assert workers() == 0  # a few thousand voxels
    with monkeypatch.context() as patch:
        patch.setattr(preprocess, "read_geometry", lambda _: Geometry(shape=(300, 512, 512), spacing=(3.0, 1.0, 0.8)))
        patch.setattr(parallel, "free_memory", lambda: 4e9)
        assert workers() == 1
    dataset.cases[0].images[0][0].write_bytes(b"junk")
    assert workers() == 0


def test_a_second_preprocessing_of_a_configuration_waits(dataset: Dataset, paths: Paths) -> None:
    plan = make_plan(configure(), configure("axis2", axis_order=(2, 0, 1), spacing=(1.0, 3.0, 1.0)))
    with claimed(paths.preprocessed / dataset.name, "axis2"):
        with pytest.raises(OutputError, match="another process works on axis2 there"):
            preprocess_dataset(dataset, plan, paths, workers=0)
        assert not (paths.preprocessed / dataset.name / "axis0").exists()
        preprocess_dataset(dataset, plan, paths, workers=0, configurations=["axis0"])
