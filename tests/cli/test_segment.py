"""masam_segment: files in, segmentations and a data set out."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from masam_auto.cli import evaluate, segment
from masam_auto.core.dataset import find_training_cases, read_description
from masam_auto.formats.io import read_geometry, read_labels
from tests import raw_data
from tests.cli.in_process import command

BOX = {"unit": "voxel", "min": [1, 2, 2], "max": [3, 12, 12]}


@pytest.fixture(autouse=True)
def no_weights_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASAM_WEIGHTS", str(tmp_path / "weights"))


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """A raw data set of three cases, to be segmented again."""
    return raw_data.make_raw_dataset(tmp_path / "raw", cases=3, shape=(6, 16, 14))


def boxes(folder: Path, content: Any) -> Path:
    (folder / "boxes.json").write_text(json.dumps(content))
    return folder / "boxes.json"


def run(images: Path, output: Path, prompts: Path, weights: Path, *options: object) -> int:
    fixed = ("--sam_checkpoint", weights, "-device", "cpu", "--canvas", 16)
    return command(segment.main, "-i", images, "-o", output, "--boxes", prompts, *fixed, *options)


def test_a_folder_becomes_segmentations_with_their_classes(
    raw: Path, tmp_path: Path, lite_medsam: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    given = {"case_000": [BOX | {"label": "liver"}, BOX | {"label": "spleen"}], "case_002": BOX | {"label": "spleen"}}
    prompts = boxes(tmp_path, given)
    assert run(raw / "imagesTr", out, prompts, lite_medsam) == 0
    said = capsys.readouterr()
    assert "2 segmented" in said.out and "no box or points for case_001: left out" in said.err
    assert sorted(path.name for path in out.iterdir()) == ["case_000.nii.gz", "case_002.nii.gz", "dataset.json"]
    found = json.loads((out / "dataset.json").read_text())
    assert found["labels"] == {"background": 0, "liver": 1, "spleen": 2} and found["numTraining"] == 2
    assert found["file_ending"] == ".nii.gz" and found["channel_names"] == {"0": "image"}
    labels, geometry = read_labels(out / "case_002.nii.gz")
    assert set(np.unique(labels)) <= {0, 2} and not labels[[0, 3, 4, 5]].any()
    assert geometry == read_geometry(raw / "imagesTr" / "case_002_0000.nii.gz")

    before = (out / "case_000.nii.gz").read_bytes()
    assert run(raw / "imagesTr", out, prompts, lite_medsam) == 2
    assert "already holds case_000.nii.gz" in capsys.readouterr().err
    more = boxes(tmp_path, given | {"case_001": BOX | {"label": 2}} | {"case_002": BOX | {"label": 1}})
    assert run(raw / "imagesTr", out, more, lite_medsam, "--continue_prediction") == 2
    assert "--labels" in capsys.readouterr().err
    named = ("--labels", "liver", "spleen")
    more = boxes(tmp_path, given | {"case_001": BOX | {"label": 2}})
    assert run(raw / "imagesTr", out, more, lite_medsam, "--continue_prediction", *named) == 0
    assert "1 segmented, 2 kept" in capsys.readouterr().out
    assert (out / "case_000.nii.gz").read_bytes() == before
    assert json.loads((out / "dataset.json").read_text())["numTraining"] == 3
    more = boxes(tmp_path, {"case_001": BOX | {"label": 2}})
    assert run(raw / "imagesTr", out, more, lite_medsam, "--continue_prediction", "--labels", "kidney", "spleen") == 2
    assert "has other classes (liver, spleen instead of kidney, spleen)" in capsys.readouterr().err
    assert run(raw / "imagesTr", out, more, lite_medsam, "--overwrite", "--labels", "kidney", "spleen") == 0
    assert json.loads((out / "dataset.json").read_text())["labels"]["kidney"] == 1


def test_labels_tr_makes_a_data_set_to_train_on(raw: Path, tmp_path: Path, lite_medsam: Path) -> None:
    new = tmp_path / "raw" / "Dataset007_New"
    new.mkdir()
    (raw / "imagesTr").rename(new / "imagesTr")
    prompts = boxes(tmp_path, {"case_001": BOX})
    assert run(new / "imagesTr", new / "labelsTr", prompts, lite_medsam) == 0
    assert [path.name for path in (new / "labelsTr").iterdir()] == ["case_001.nii.gz"]
    description = read_description(new / "dataset.json", name=new.name)
    assert list(description.labels.foreground) == ["object"]
    assert [case.identifier for case in find_training_cases(new, description) if case.labels] == ["case_001"]


def test_a_dataset_json_says_what_channels_and_classes_are(
    raw: Path, tmp_path: Path, lite_medsam: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (raw / "dataset.json").read_bytes()
    prompts = boxes(tmp_path, {"case_001": BOX | {"label": "organ2"}})
    out = tmp_path / "out"
    assert run(raw / "imagesTr", out, prompts, lite_medsam, "--dataset_json", raw / "dataset.json") == 0
    assert "intensities -160 to 240 are told apart (CT)" in capsys.readouterr().err
    assert sorted(path.name for path in out.iterdir()) == ["case_001.nii.gz", "dataset.json"]
    assert json.loads((out / "dataset.json").read_text()) == json.loads(before)
    assert set(np.unique(read_labels(out / "case_001.nii.gz")[0])) <= {0, 2}
    (raw / "labelsTr").rename(tmp_path / "old")
    assert run(raw / "imagesTr", raw / "labelsTr", prompts, lite_medsam) == 0
    assert (raw / "dataset.json").read_bytes() == before
    unknown = boxes(tmp_path, {"case_002": BOX | {"label": "tumour"}})
    assert run(raw / "imagesTr", raw / "labelsTr", unknown, lite_medsam) == 2
    assert "case case_002: a box or point has the class 'tumour', which is unknown" in capsys.readouterr().err


def test_a_channel_of_several(tmp_path: Path, lite_medsam: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = raw_data.make_raw_dataset(tmp_path / "raw", cases=1, channels=3, shape=(5, 16, 14))
    prompts, out = boxes(tmp_path, {"case_000": BOX}), tmp_path / "out"
    assert run(raw / "imagesTr", out, prompts, lite_medsam, "--channel", 2) == 0
    assert "channel 2 is used; not used: 0, 1" in capsys.readouterr().err
    assert list(json.loads((out / "dataset.json").read_text())["channel_names"]) == ["0", "1", "2"]
    assert run(raw / "imagesTr", out, prompts, lite_medsam, "--channel", 3, "--overwrite") == 2
    assert "so there is no channel 3" in capsys.readouterr().err


@pytest.mark.parametrize("colour", [True, False])
def test_pictures_and_frames_of_a_video(tmp_path: Path, lite_medsam: Path, colour: bool) -> None:
    raw = raw_data.make_video_dataset(tmp_path / "raw", sequences=1, frames=4, colour=colour)
    square = {"unit": "voxel", "min": [0, 2, 2], "max": [1, 20, 18]}
    single, out = boxes(tmp_path, {"clip0_frame001": square}), tmp_path / "out"
    assert run(raw / "imagesTr", out, single, lite_medsam) == 0
    assert sorted(path.name for path in out.iterdir()) == ["clip0_frame001.png", "dataset.json"]
    assert read_labels(out / "clip0_frame001.png")[0].shape == (1, 24, 20)
    names = json.loads((out / "dataset.json").read_text())["channel_names"]
    assert list(names.values()) == (["R", "G", "B"] if colour else ["image"])

    clip, frames = boxes(tmp_path, {"clip0_frame": square}), tmp_path / "frames"
    assert run(raw / "imagesTr", frames, clip, lite_medsam, "--video") == 0
    written = [f"clip0_frame{number:03d}" for number in range(4)]
    assert sorted(path.name for path in frames.iterdir()) == [*(f"{name}.png" for name in written), "dataset.json"]
    found = json.loads((frames / "dataset.json").read_text())
    assert found["sequences"] == {"clip0_frame": written} and found["numTraining"] == 4


def test_one_image_and_weights_in_their_folder(raw: Path, tmp_path: Path, lite_medsam: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "lite_medsam.pth").symlink_to(lite_medsam)
    image, prompts, out = raw / "imagesTr" / "case_001_0000.nii.gz", boxes(tmp_path, {"case_001": BOX}), tmp_path / "o"
    options = ("-device", "cpu", "--canvas", 16, "--output_format", ".nrrd", "--propagate", "all", "--axis", 0)
    assert command(segment.main, "-i", image, "-o", out, "--boxes", prompts, *options) == 0
    assert sorted(path.name for path in out.iterdir()) == ["case_001.nrrd", "dataset.json"]


@pytest.mark.parametrize("protocol", ["tight", "relaxed", "slice"])
def test_boxes_from_labels(raw: Path, tmp_path: Path, lite_medsam: Path, protocol: str) -> None:
    (raw / "labelsTr" / "case_002.nii.gz").unlink()
    options = ["--sam_checkpoint", lite_medsam, "-device", "cpu", "--canvas", 16, "--protocol", protocol]
    out = tmp_path / "out"
    arguments = ["-i", raw / "imagesTr", "-o", out, "--boxes_from_labels", raw / "labelsTr", *options]
    assert command(segment.main, *arguments) == 0
    assert sorted(path.name for path in out.iterdir()) == ["case_000.nii.gz", "case_001.nii.gz", "dataset.json"]
    assert command(evaluate.main, out, raw / "labelsTr", "--workers", 0) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--boxes", "b.json", "--protocol", "tight"], "--protocol needs --boxes_from_labels"),
        (["--boxes_from_labels", "labelsTr", "--relaxation", "0.3"], "--relaxation needs --protocol relaxed"),
        (["--boxes_from_labels", "labelsTr", "--boxes", "b.json"], "not allowed with"),
        ([], "one of the arguments --boxes --boxes_from_labels is required"),
    ],
)
def test_options_that_exclude_each_other(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command(segment.main, "-i", "images", "-o", "out", *options)
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_a_bad_case_does_not_stop_the_others(
    raw: Path, tmp_path: Path, lite_medsam: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outside = {"unit": "voxel", "min": [1, 2, 200], "max": [3, 12, 212]}
    prompts, out = boxes(tmp_path, {"case_000": outside, "case_001": BOX}), tmp_path / "out"
    assert run(raw / "imagesTr", out, prompts, lite_medsam) == 3
    assert re.search(r"1 not segmented:\n  - case case_000: the box .* is outside the image", capsys.readouterr().err)
    assert (out / "case_001.nii.gz").is_file() and not (out / "case_000.nii.gz").exists()


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ({"nobody": BOX}, [], "boxes for nobody, but there are no such images"),
        ({"case_000": []}, [], "has no boxes and no points"),
        ({"case_000": BOX | {"label": True}}, [], "label must be the name or the value of a class"),
        ({"case_000": BOX | {"label": "a"}, "case_001": BOX | {"label": 2}}, [], "with --labels"),
        ({"case_000": BOX | {"label": "a"}}, ["--labels", "b", "c"], "has the class 'a', which is unknown.*b .1., c"),
        ({"case_000": BOX}, ["--labels", "b", "c"], "does not say its class"),
        ({"case_000": BOX | {"label": 3}}, ["--labels", "b"], "has the class 3, which is unknown"),
        ({"case_000": {"unit": "voxel", "points": [[1, 2, 3]]}}, [], "trained with boxes only"),
        ({"case_000": {"unit": "voxel", "points": []}}, [], "points must be a list of at most 1000 points"),
        ({"case_000": {"unit": "px", "points": [[1, 2, 3]]}}, [], 'points are {"unit": "voxel" or "mm"'),
        ({"case_000": BOX}, ["--canvas", "18"], "--canvas 18: the canvas of lite_medsam must be a multiple of 4"),
        ({"case_000": BOX}, ["--intensity", "5", "5"], "--intensity: the lower end must be below"),
        ({"case_000": BOX}, ["--output_format", ".xyz"], "--output_format .xyz: known endings"),
        ({"case_000": BOX}, ["--dataset_json", "no.json"], "no.json is missing"),
        ({"case_000": BOX}, ["-device", "abacus"], "device 'abacus' is unknown"),
    ],
)
def test_mistakes_give_one_line(
    raw: Path,
    tmp_path: Path,
    lite_medsam: Path,
    capsys: pytest.CaptureFixture[str],
    content: Any,
    options: list[str],
    message: str,
) -> None:
    assert run(raw / "imagesTr", tmp_path / "out", boxes(tmp_path, content), lite_medsam, *options) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("error: ", "  - "))]
    assert re.search(message, said[-1]), said
    assert len([line for line in said if line.startswith("error: ")]) == 1
    assert not list((tmp_path / "out").glob("*.nii.gz"))


def test_folders_that_must_not_be_written(
    raw: Path, tmp_path: Path, lite_medsam: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = boxes(tmp_path, {"case_000": BOX})
    before = (raw / "labelsTr" / "case_000.nii.gz").read_bytes()
    for output in (raw / "imagesTr", raw, raw / "labelsTs", raw / "labelsTr"):
        assert run(raw / "imagesTr", output, prompts, lite_medsam) == 2
    said = capsys.readouterr().err
    assert said.count("is the input folder") == 1 and said.count("raw data set") == 2
    assert (raw / "labelsTr" / "case_000.nii.gz").read_bytes() == before
    regions = raw_data.make_raw_dataset(tmp_path / "raw", number=3, cases=1, regions=True)
    assert (
        run(regions / "imagesTr", tmp_path / "o", prompts, lite_medsam, "--dataset_json", regions / "dataset.json") == 2
    )
    both = ("--dataset_json", raw / "dataset.json", "--labels", "a")
    assert run(raw / "imagesTr", tmp_path / "o", prompts, lite_medsam, *both) == 2
    said = capsys.readouterr().err
    assert "has regions, which may overlap" in said and "says what the classes are. Leave out --labels" in said
    assert command(segment.main, "-i", raw / "imagesTr", "-o", tmp_path / "o", "--boxes", prompts) == 2
    assert "Fetch them (masam_fetch_weights lite_medsam)" in capsys.readouterr().err
