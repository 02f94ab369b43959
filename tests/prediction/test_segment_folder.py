"""Folders of DICOM series and videos, and cases that fail, segmented by what is bright inside boxes."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from masam_auto.core.errors import OutputError
from masam_auto.core.geometry import Geometry
from masam_auto.formats.io import read_labels
from masam_auto.prediction.segment_folder import SegmentOptions, segment_folder
from masam_auto.prediction.segmenter import Segmenter
from tests import dicom_files, raw_data
from tests.bright_inside import bright

GRID = Geometry(shape=(7, 24, 22), spacing=(3.0, 1.0, 1.0))


def block() -> np.ndarray:
    """(Z, Y, X) bool."""
    found = np.zeros(GRID.shape, bool)
    found[1:6, 5:15, 6:17] = True
    return found


def markup(name: str) -> dict:
    """An ROI of 3D Slicer around the block's middle slice."""
    centre, size = [11.0, 9.5, 9.0], [13.0, 12.0, 3.0]
    roi = {"type": "ROI", "name": name, "coordinateSystem": "LPS", "center": centre, "size": size}
    return {"markups": [roi]}


def test_dicom_with_a_slicer_roi_becomes_a_seg_with_its_class(tmp_path: Path) -> None:
    highdicom = pytest.importorskip("highdicom", reason="the optional library highdicom is not installed")
    image = np.where(block(), 900, 100)
    files = dicom_files.write_series(tmp_path / "in" / "good", image, GRID, name="good")
    (tmp_path / "rois").mkdir()
    (tmp_path / "rois" / "good.mrk.json").write_text(json.dumps(markup("lesion")))
    options = SegmentOptions(labels=("organ", "lesion"))
    outcome = segment_folder(bright(), tmp_path / "in", tmp_path / "out", tmp_path / "rois", options)
    assert outcome.predicted == ("good",) and not outcome.problems
    segmentation = highdicom.seg.segread(tmp_path / "out" / "good.dcm")
    found = segmentation.get_pixels_by_source_instance(
        [highdicom.imread(file).SOPInstanceUID for file in files],
        combine_segments=True,
        assert_missing_frames_are_empty=True,
    )
    np.testing.assert_array_equal(found, 2 * block())


def test_a_video_file_is_followed_from_one_frame(tmp_path: Path) -> None:
    av = pytest.importorskip("av", reason="the optional library PyAV (extra `video`) is not installed")
    (tmp_path / "in").mkdir()
    with av.open(tmp_path / "in" / "film.avi", "w") as file:
        stream = file.add_stream("ffv1", rate=10)
        stream.height, stream.width, stream.pix_fmt = *GRID.shape[1:], "bgr0"
        for frame in np.where(block(), 220, 30).astype(np.uint8):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.stack([frame] * 3, -1), format="rgb24")))
        file.mux(stream.encode())
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps({"film": {"unit": "voxel", "min": [3, 3, 4], "max": [4, 17, 19]}}))
    outcome = segment_folder(bright(), tmp_path / "in", tmp_path / "out", boxes)
    assert outcome.predicted == ("film",) and not outcome.problems
    masks = [read_labels(path)[0][0] for path in sorted((tmp_path / "out" / "film").iterdir())]
    np.testing.assert_array_equal(masks, block())
    assert (tmp_path / "out" / "film_overlay.mp4").stat().st_size > 0
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["file_ending"] == ".png"


def make_images(folder: Path) -> Path:
    folder.mkdir()
    for name in ("a", "b"):
        raw_data.write_volume(folder / f"{name}_0000.nii.gz", np.where(block(), 90.0, 10.0).astype(np.float32))
    return folder


def boxes_of(folder: Path) -> Path:
    box = {"unit": "voxel", "min": [1, 3, 4], "max": [6, 17, 19]}
    (folder / "boxes.json").write_text(json.dumps({"a": box, "b": {**box, "max": [9, 17, 19]}}))
    return folder / "boxes.json"


def test_what_is_left_out_is_said_for_each_case(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    outcome = segment_folder(bright(), make_images(tmp_path / "in"), tmp_path / "out", boxes_of(tmp_path))
    assert outcome.predicted == ("a", "b")
    assert "b: prompt 1: it reaches beyond the image and was cut to it" in caplog.text
    assert "a: prompt 1" not in caplog.text


def test_a_case_without_enough_memory_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    segment = Segmenter.segment

    def refuse(self: Segmenter, *given: object, identifier: str) -> object:
        if identifier == "a":
            raise MemoryError
        return segment(self, *given, identifier=identifier)  # type: ignore[arg-type]

    monkeypatch.setattr(Segmenter, "segment", refuse)
    outcome = segment_folder(bright(), make_images(tmp_path / "in"), tmp_path / "out", boxes_of(tmp_path))
    assert outcome.predicted == ("b",)
    assert outcome.problems == ("case a: not enough memory. Segment it alone, or on another machine.",)


def test_a_folder_that_cannot_be_written_ends_it(tmp_path: Path) -> None:
    images, boxes = make_images(tmp_path / "in"), boxes_of(tmp_path)
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OutputError, match="is a file; the output must be a folder"):
        segment_folder(bright(), images, tmp_path / "out", boxes)


def test_a_bug_keeps_its_traceback_and_names_the_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Segmenter, "segment", lambda *given, **named: 1 / 0)
    with pytest.raises(ZeroDivisionError) as caught:
        segment_folder(bright(), make_images(tmp_path / "in"), tmp_path / "out", boxes_of(tmp_path))
    assert caught.value.__notes__ == ["This happened with case a."]
