"""The same volume as NIfTI, DICOM and video gives the same segmentation, however it is stored and written."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from masam_auto.core.errors import OutputError
from masam_auto.core.geometry import Geometry
from masam_auto.formats.io import read_labels, write_labels
from masam_auto.prediction.predict import Predictor
from masam_auto.prediction.predict_folder import PredictionOptions, predict_folder
from tests import dicom_files, intensity_model, raw_data

LABELS = {"background": 0, "organ": 1, "lesion": 2}


@pytest.fixture
def predictor_for(tmp_path: Path) -> Callable[..., Predictor]:
    """Factory: `predictor_for(".png", spacing)` reads classes off the grey values of files of this ending."""

    def make(ending: str, spacing: tuple[float, float, float]) -> Predictor:
        root = tmp_path / "Dataset001_Toy"
        root.mkdir()
        raw_data.write_description(root, {"channel_names": {"0": "c"}, "labels": LABELS, "file_ending": ending})
        return intensity_model.make_predictor(root, spacing=spacing)

    return make


def make_classes(shape: tuple[int, int, int]) -> np.ndarray:
    """0, 1 and 2, with every slice, row and column different."""
    classes = np.zeros(shape, np.int16)
    for z in range(shape[0]):
        classes[z, 2 : 6 + z % 4, 1 : 5 + z // 2] = 1
        classes[z, 3 : 4 + z % 3, 6:9] = 2
    return classes


def paint(classes: np.ndarray) -> np.ndarray:
    """The values that the network knows classes by."""
    return np.array([0, 160, 220], np.int16)[classes]


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4, 5, 6), (6, 5, 4, 3, 2, 1, 0), (3, 0, 6, 1, 5, 2, 4)])
def test_dicom_is_segmented_as_nifti(
    tmp_path: Path,
    predictor_for: Callable[..., Predictor],
    order: tuple[int, ...],
) -> None:
    matrix = np.reshape(raw_data.oblique_direction(), (3, 3))
    matrix[:, 2] = np.cross(matrix[:, 0], matrix[:, 1])  # slices ascend along their normal
    direction = tuple(float(v) for v in matrix.ravel())
    grid = Geometry(shape=(7, 12, 11), spacing=(3.1, 0.8, 0.9), origin=(-31.5, 12.25, 40.75), direction=direction)
    predictor = predictor_for(".nii.gz", (3.0, 1.0, 1.0))
    (tmp_path / "nifti").mkdir()
    write_labels(tmp_path / "nifti" / "case.nii.gz", paint(make_classes(grid.shape)), grid)
    dicom_files.write_series(
        tmp_path / "dicom" / "case", paint(make_classes(grid.shape)) + 1000, grid, order=order, intercept=-1000
    )
    assert predict_folder(predictor, tmp_path / "nifti", tmp_path / "a").predicted == ("case",)
    outcome = predict_folder(predictor, tmp_path / "dicom", tmp_path / "b", PredictionOptions(output_format=".nii.gz"))
    assert outcome.predicted == ("case",) and not outcome.problems
    expected, expected_grid = read_labels(tmp_path / "a" / "case.nii.gz")
    found, found_grid = read_labels(tmp_path / "b" / "case.nii.gz")
    assert set(np.unique(expected)) == {0, 1, 2}
    np.testing.assert_array_equal(found, expected)
    assert found_grid.difference(expected_grid, tolerance=1e-5) is None


def test_seg_by_default_and_a_bad_series_among_good(
    tmp_path: Path, predictor_for: Callable[..., Predictor], caplog: pytest.LogCaptureFixture
) -> None:
    highdicom = pytest.importorskip("highdicom", reason="the optional library highdicom is not installed")
    grid = Geometry(shape=(7, 12, 11), spacing=(3.0, 1.0, 1.0))
    files = dicom_files.write_series(tmp_path / "in" / "good", paint(make_classes(grid.shape)), grid, name="good")
    dicom_files.write_series(
        tmp_path / "in" / "gap", paint(make_classes(grid.shape)), grid, name="gap", order=[0, 1, 2, 3, 5, 6]
    )
    dicom_files.write_series(tmp_path / "in" / "scout", paint(make_classes(grid.shape)), grid, name="scout", order=[0])
    predictor = predictor_for(".nii.gz", grid.spacing)
    outcome = predict_folder(predictor, tmp_path / "in", tmp_path / "out")
    assert outcome.predicted == ("good",)
    assert len(outcome.problems) == 1 and "gap/IM0003 and IM0004: 1 slice is missing" in outcome.problems[0]
    assert "1 slice only" in caplog.text
    segmentation = highdicom.seg.segread(tmp_path / "out" / "good.dcm")
    assert [str(one.SegmentLabel) for one in segmentation.SegmentSequence] == ["organ", "lesion"]
    found = segmentation.get_pixels_by_source_instance(
        [highdicom.imread(file).SOPInstanceUID for file in files],
        combine_segments=True,
        assert_missing_frames_are_empty=True,
    )
    np.testing.assert_array_equal(found, make_classes(grid.shape))
    with pytest.raises(OutputError, match=r"already holds good\.dcm"):
        predict_folder(predictor, tmp_path / "in" / "good", tmp_path / "out")
    again = predict_folder(
        predictor, tmp_path / "in" / "good", tmp_path / "out", PredictionOptions(continue_prediction=True)
    )
    assert again.skipped == ("good",)


def test_video_files(tmp_path: Path, predictor_for: Callable[..., Predictor]) -> None:
    av = pytest.importorskip("av", reason="the optional library PyAV (extra `video`) is not installed")
    classes = make_classes((7, 12, 11))
    (tmp_path / "in").mkdir()
    with av.open(tmp_path / "in" / "film.avi", "w") as file:
        stream = file.add_stream("ffv1", rate=10)
        stream.height, stream.width, stream.pix_fmt = 12, 11, "bgr0"
        for frame in paint(classes).astype(np.uint8):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.stack([frame] * 3, -1), format="rgb24")))
        file.mux(stream.encode())
    (tmp_path / "in" / "broken.mp4").write_bytes(b"nothing")
    predictor = predictor_for(".png", (1.0, 1.0, 1.0))
    outcome = predict_folder(predictor, tmp_path / "in", tmp_path / "out")
    assert outcome.predicted == ("film",)
    assert len(outcome.problems) == 1 and "broken.mp4: is not a readable kind of video" in outcome.problems[0]
    masks = [read_labels(path)[0][0] for path in sorted((tmp_path / "out" / "film").iterdir())]
    np.testing.assert_array_equal(masks, classes)
    assert (tmp_path / "out" / "film_overlay.mp4").stat().st_size > 0
    again = predict_folder(predictor, tmp_path / "in", tmp_path / "out", PredictionOptions(continue_prediction=True))
    assert again.skipped == ("film",)
