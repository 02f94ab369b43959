"""Files of boxes: what is read from them, and what is refused."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from masam_auto.core.boxes import GivenPoints, Prompt, VoxelBox, WorldBox, voxels_of
from masam_auto.core.errors import DatasetError
from masam_auto.core.geometry import Geometry
from masam_auto.formats.box_files import read_boxes, read_prompts

CASES = ("a", "b", "c")
VOXELS = {"unit": "voxel", "min": [1, 2, 3], "max": [4, 5, 6]}
ROI: dict[str, Any] = {
    "type": "ROI",
    "roiType": "Box",
    "name": "R",
    "coordinateSystem": "LPS",
    "coordinateUnits": "mm",
    "center": [10.0, 20.0, 30.0],
    "orientation": [-1.0, -0.0, 0.0, -0.0, -1.0, 0.0, 0.0, 0.0, 1.0],
    "size": [4.0, 6.0, 8.0],
}
GRID = Geometry(shape=(60, 60, 60), spacing=(1.0, 1.0, 1.0))


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_one_box_or_a_list_a_case(tmp_path: Path) -> None:
    mm = {"unit": "mm", "min": [0, 1, 2], "max": [4, 6, 8]}
    boxes = read_boxes(write(tmp_path / "boxes.json", {"a": VOXELS, "b": [mm, VOXELS], "c": []}), CASES)
    assert boxes == {
        "a": (VoxelBox(box=((1, 4), (2, 5), (3, 6))),),
        "b": (
            WorldBox(centre=(2.0, 3.5, 5.0), sides=(4.0, 5.0, 6.0)),
            VoxelBox(box=((1, 4), (2, 5), (3, 6))),
        ),
    }


def test_ras_and_lps_say_the_same_box(tmp_path: Path) -> None:
    lps = {"unit": "mm", "coordinates": "LPS", "min": [10, 20, 30], "max": [14, 26, 38]}
    ras = {"unit": "mm", "coordinates": "RAS", "min": [-14, -26, 30], "max": [-10, -20, 38]}
    boxes = read_boxes(write(tmp_path / "boxes.json", {"a": lps, "b": ras}), CASES)
    assert boxes["a"] == boxes["b"]
    assert voxels_of(boxes["a"][0], GRID, where="a") == ((30, 39), (20, 27), (10, 15))  # pixel centres are at whole mm


def test_slicers_roi_in_either_coordinates_and_with_its_centre_as_a_point(tmp_path: Path) -> None:
    ras = ROI | {"coordinateSystem": "RAS", "center": [-10.0, -20.0, 30.0], "orientation": [1, 0, 0, 0, 1, 0, 0, 0, 1]}
    point = {key: value for key, value in ROI.items() if key != "center"}
    point |= {"controlPoints": [{"position": [10.0, 20.0, 30.0]}], "coordinateUnits": ["mm"] * 3}
    found = {}
    for name, roi in {"a": ROI, "b": ras, "c": point}.items():
        write(tmp_path / "rois" / f"{name}.mrk.json", {"markups": [{"type": "Line"}, roi]})
    for name, (box,) in read_boxes(tmp_path / "rois", CASES).items():
        found[name] = voxels_of(box, GRID, where=name)
    assert found == dict.fromkeys("abc", ((26, 35), (17, 24), (8, 13)))


def test_the_columns_of_slicers_orientation_are_the_axes(tmp_path: Path) -> None:
    angle = math.radians(30)
    axes = np.array([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]])
    long = ROI | {"size": [20.0, 1e-3, 1e-3], "orientation": axes.ravel().tolist()}
    (box,) = read_boxes(write(tmp_path / "a.mrk.json", {"markups": [long]}), CASES)["a"]
    _, (y0, y1), (x0, x1) = voxels_of(box, GRID, where="a")
    end = np.array([10.0, 20.0]) + 10 * axes[:2, 0]
    assert x0 <= end[0] + 0.5 <= x1 and y0 <= end[1] + 0.5 <= y1
    assert x1 - x0 > y1 - y0


def test_a_single_markup_is_for_the_case_of_its_name_or_for_the_only_one(tmp_path: Path) -> None:
    path = write(tmp_path / "b.mrk.json", {"markups": [ROI, ROI]})
    assert list(read_boxes(path, CASES)) == ["b"]
    assert len(read_boxes(path, CASES)["b"]) == 2
    assert list(read_boxes(path, ["patient"])) == ["patient"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{damaged", "is not valid JSON"),
        ([], 'expected {"CASE"'),
        ({}, 'expected {"CASE"'),
        ({"a": 3}, "case a: a box is"),
        ({"a": VOXELS | {"minimum": 1}}, "case a: a box is"),
        ({"a": [VOXELS, {"unit": "mm", "min": [0, 0, 0]}]}, "case a, box 2: a box is"),
        ({"a": VOXELS | {"min": [1, 2]}}, "case a: min must be three numbers, none beyond 1e\\+09, got \\[1, 2\\]"),
        ({"a": VOXELS | {"max": [1, 2, None]}}, "case a: max must be three numbers"),
        ({"a": VOXELS | {"max": [1, 2, float("nan")]}}, "case a: max must be three numbers"),
        ({"a": VOXELS | {"max": [1, 2, 10**400]}}, "case a: max must be three numbers"),
        ({"a": VOXELS | {"unit": "mm", "max": [1, 2, 1e308]}}, "case a: max must be three numbers"),
        ({"a": VOXELS | {"min": [4, 2, 3]}}, "min must be below max along every axis"),
        ({"a": VOXELS | {"min": [1.5, 2, 3]}}, "voxel indices must be whole numbers"),
        ({"a": VOXELS | {"unit": "cm"}}, 'unit must be "voxel" or "mm", got \'cm\''),
        ({"a": VOXELS | {"coordinates": "RAS"}}, '"coordinates" goes with "mm"'),
        ({"a": VOXELS | {"unit": "mm", "coordinates": ["LPS"]}}, "coordinates must be LPS or RAS"),
        ({"a": VOXELS, "z": VOXELS}, "boxes for z, but there are no such images. The cases are a, b, c;"),
        ({"markups": 3}, "not a markup file of 3D Slicer"),
        ({"markups": [{"type": "Fiducial"}]}, "has no ROI, but Fiducial"),
        ({"markups": [ROI | {"coordinateUnits": "inch"}]}, "ROI R: coordinateUnits must be mm"),
        ({"markups": [ROI | {"coordinateSystem": 0}]}, "ROI R: coordinates must be LPS or RAS"),
        ({"markups": [ROI | {"size": [1, 0, 2]}]}, "ROI R: size must be above 0"),
        ({"markups": [ROI | {"size": None}]}, "ROI R: size must be three numbers"),
        ({"markups": [ROI | {"center": None}]}, "ROI R: center must be three numbers"),
        ({"markups": [ROI | {"center": None, "controlPoints": 5}]}, "ROI R: center must be three numbers"),
        ({"markups": [ROI | {"center": None, "controlPoints": {"a": 1}}]}, "ROI R: center must be three numbers"),
        ({"markups": [ROI | {"orientation": [1, 0]}]}, "orientation must be nine numbers"),
        ({"markups": [ROI | {"orientation": [0.0] * 9}]}, "orientation must be a rotation"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(tmp_path: Path, content: Any, message: str) -> None:
    path = write(tmp_path / "a.json", content)
    with pytest.raises(DatasetError, match=message) as caught:
        read_boxes(path, CASES)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_prompts_have_classes_and_may_be_points(tmp_path: Path) -> None:
    points = {"unit": "mm", "coordinates": "RAS", "points": [[1, 2, 3]], "beside": [[-4, 5, 6], [0, 0, 1]]}
    path = write(
        tmp_path / "boxes.json",
        {
            "a": VOXELS | {"label": "liver"},
            "b": [VOXELS, {"unit": "voxel", "points": [[0, 2, 3], [0, 2.5, 4]], "label": 3}],
            "c": points,
        },
    )
    found = read_prompts(path, CASES)
    box = read_boxes(write(tmp_path / "plain.json", {"a": VOXELS}), CASES)["a"][0]
    assert found["a"] == (Prompt(shape=box, label="liver"),)
    assert found["b"] == (Prompt(shape=box), Prompt(shape=GivenPoints(on=((0, 2, 3), (0, 2.5, 4))), label=3))
    (lps,) = found["c"]
    assert lps.shape == GivenPoints(on=((-1, -2, 3),), beside=((4, -5, 6), (0, 0, 1)), in_voxels=False)
    with pytest.raises(DatasetError, match='case a has "label", which only masam_segment uses'):
        read_boxes(path, CASES)
    with pytest.raises(DatasetError, match="case c has points, which only masam_segment uses"):
        read_boxes(write(tmp_path / "points.json", {"c": points}), CASES)


def test_the_name_of_a_roi_may_be_a_class(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mrk.json", {"markups": [ROI | {"name": "liver"}]})
    (prompt,) = read_prompts(path, CASES)["a"]
    assert (prompt.title, prompt.label, (prompt.shape,)) == ("liver", None, read_boxes(path, CASES)["a"])


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"unit": "voxel", "points": 3}, "points must be a list of at most 1000 points"),
        ({"unit": "voxel", "points": [[1, 2]]}, "each of points must be three numbers"),
        ({"unit": "voxel", "points": [[1, 2, 3]], "beside": [1, 2, 3]}, "each of beside must be three numbers"),
        ({"unit": "voxel", "points": [[1, 2, 3]], "min": [1, 2, 3]}, "points are {"),
        ({"unit": ["mm"], "points": [[1, 2, 3]]}, "points are {"),
        ({"unit": "voxel", "points": [[1, 2, 3]], "coordinates": "LPS"}, '"coordinates" goes with "mm"'),
        ({"unit": "mm", "points": [[1, 2, 3]], "coordinates": "XYZ"}, "coordinates must be LPS or RAS"),
        (VOXELS | {"label": 1.5}, "label must be the name or the value of a class, got 1.5"),
        (VOXELS | {"label": ["a"]}, "label must be the name or the value of a class"),
    ],
)
def test_prompts_that_make_no_sense_are_refused_in_one_line(tmp_path: Path, entry: Any, message: str) -> None:
    path = write(tmp_path / "a.json", {"a": entry})
    with pytest.raises(DatasetError, match=message) as caught:
        read_prompts(path, CASES)
    assert f"{path}: case a: " in str(caught.value) and "\n" not in str(caught.value)


def test_missing_files_and_empty_folders_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="file of boxes not found"):
        read_boxes(tmp_path / "absent.json", CASES)
    with pytest.raises(DatasetError, match=r"no ID.mrk.json files"):
        read_boxes(tmp_path, CASES)
    write(tmp_path / "z.mrk.json", {"markups": [ROI]})
    with pytest.raises(DatasetError, match="boxes for z"):
        read_boxes(tmp_path, CASES)
