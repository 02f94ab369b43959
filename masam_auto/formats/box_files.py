"""Files of boxes and points: boxes.json, 3D Slicer's ROI markup (.mrk.json), and folders of such markups."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from masam_auto.core.boxes import GivenBox, GivenPoints, Prompt, VoxelBox, WorldBox
from masam_auto.core.errors import DatasetError, PlanError, first_few
from masam_auto.core.file_names import visible
from masam_auto.core.geometry import Triple
from masam_auto.core.jsonio import read_plain

MARKUP_ENDING = ".mrk.json"
LARGEST_COUNT = 1000  # points of one object
LARGEST = 1e9  # millimetres or voxels; larger values are not positions
BOX_FIELDS = {"unit", "coordinates", "min", "max"}
POINT_FIELDS = {"unit", "coordinates", "points", "beside"}
# From each coordinate system to LPS.
TO_LPS = {"LPS": (1.0, 1.0, 1.0), "RAS": (-1.0, -1.0, 1.0)}

Boxes = dict[str, tuple[GivenBox, ...]]
Prompts = dict[str, tuple[Prompt, ...]]


def read_boxes(path: Path, identifiers: Sequence[str]) -> Boxes:
    """Read the boxes of cases.

    Args:
        path: a boxes.json (case -> box or list of boxes), one ROI markup of 3D Slicer, or a folder of ID.mrk.json
            files. A single markup belongs to the case with its name, or to the only case.
        identifiers: the cases that may have boxes.

    Returns:
        The boxes of each case that has any.

    Raises:
        DatasetError: no such file, damaged JSON, an unknown case, or an impossible box; one line.

    Example:
        >>> from masam_auto.core.jsonio import write_json
        >>> from masam_auto.formats.box_files import read_boxes
        >>> write_json(Path("boxes.json"), {"case_000": {"unit": "voxel", "min": [1, 2, 3], "max": [4, 9, 8]}})
        >>> read_boxes(Path("boxes.json"), ["case_000", "case_001"])
        {'case_000': (VoxelBox(box=((1, 4), (2, 9), (3, 8))),)}
    """
    found = _read_all(path, identifiers)
    boxes: Boxes = {}
    for case, prompts in found.items():
        if odd := [prompt for prompt in prompts if prompt.label is not None or isinstance(prompt.shape, GivenPoints)]:
            what = "points" if isinstance(odd[0].shape, GivenPoints) else '"label"'
            raise DatasetError(
                f"{path}: case {case} has {what}, which only masam_segment uses. Leave them out, or segment with it."
            )
        boxes[case] = tuple(prompt.shape for prompt in prompts if not isinstance(prompt.shape, GivenPoints))
    return boxes


def read_prompts(path: Path, identifiers: Sequence[str]) -> Prompts:
    """Read the prompts of cases: boxes, and points, each with its class if the file says it.

    Arguments and errors are those of `read_boxes`. An entry of boxes.json may also have a "label", and "points" (and
    points "beside" the object) instead of "min" and "max".

    Example:
        >>> from masam_auto.core.jsonio import write_json
        >>> from masam_auto.formats.box_files import read_prompts
        >>> write_json(Path("points.json"), {"case_000": {"unit": "voxel", "points": [[1, 2, 3]], "label": "organ1"}})
        >>> read_prompts(Path("points.json"), ["case_000"])["case_000"][0].label
        'organ1'
    """
    return _read_all(path, identifiers)


def _read_all(path: Path, identifiers: Sequence[str]) -> Prompts:
    if path.is_dir():
        files = sorted(file for file in path.glob(f"*{MARKUP_ENDING}") if not file.name.startswith("."))
        if not files:
            raise DatasetError(f"{path}: no ID{MARKUP_ENDING} files; expected one ROI markup of 3D Slicer a case")
        boxes = {_case_of(file): _read_markup(_read(file), file) for file in files}
    else:
        content = _read(path)
        if isinstance(content, dict) and "markups" in content:
            name = identifiers[0] if len(identifiers) == 1 else _case_of(path)
            boxes = {name: _read_markup(content, path)}
        else:
            boxes = _read_table(content, path)
    if unknown := sorted(set(boxes) - set(identifiers)):
        raise DatasetError(
            f"{path}: boxes for {first_few(unknown)}, but there are no such images. The cases are "
            f"{first_few(identifiers)}; name boxes after them."
        )
    return boxes


def _case_of(path: Path) -> str:
    return path.name.removesuffix(".json").removesuffix(".mrk")


def _read(path: Path) -> Any:
    try:
        return read_plain(path, what="file of boxes")
    except PlanError as error:
        raise DatasetError(str(error)) from error


def _read_table(content: Any, path: Path) -> Prompts:
    if not isinstance(content, dict) or not content:
        raise DatasetError(
            f'{path}: expected {{"CASE": {{"unit": "voxel", "min": [z, y, x], "max": [z, y, x]}}, ...}} or 3D '
            "Slicer's ROI markup"
        )
    boxes = {}
    for case, given in content.items():
        if visible(case) != case:
            raise DatasetError(f"{path}: {case!a} is not a case name. Name boxes after the images.")
        entries = given if isinstance(given, list) else [given]
        boxes[case] = tuple(
            _parse_entry(entry, f"{path}: case {case}" + (f", box {number}" if len(entries) > 1 else ""))
            for number, entry in enumerate(entries, 1)
        )
    return {case: found for case, found in boxes.items() if found}


def _parse_entry(entry: Any, where: str) -> Prompt:
    given = {name: value for name, value in entry.items() if name != "label"} if isinstance(entry, dict) else entry
    shape = _parse_points(given, where) if isinstance(given, dict) and "points" in given else _parse_box(given, where)
    label = entry.get("label")
    if label is not None and (isinstance(label, bool) or not isinstance(label, (str, int))):
        raise DatasetError(f"{where}: label must be the name or the value of a class, got {label!r:.80}")
    return Prompt(shape=shape, label=label)


def _parse_points(entry: dict[str, Any], where: str) -> GivenPoints:
    if not {"unit", "points"} <= set(entry) <= POINT_FIELDS or entry["unit"] not in ("voxel", "mm"):
        raise DatasetError(
            f'{where}: points are {{"unit": "voxel" or "mm", "points": [[...], ...]}}, also "beside": [[...], ...], '
            f'for mm also "coordinates": "LPS" or "RAS"; got {entry!r:.120}'
        )
    in_voxels = entry["unit"] == "voxel"
    if in_voxels and "coordinates" in entry:
        raise DatasetError(f'{where}: "coordinates" goes with "mm"; voxels are array indices (Z, Y, X)')
    signs = (1.0, 1.0, 1.0) if in_voxels else _signs(entry.get("coordinates", "LPS"), where)
    lists = []
    for name in ("points", "beside"):
        points = entry.get(name, [])
        if not isinstance(points, list) or len(points) > LARGEST_COUNT or (name == "points" and not points):
            raise DatasetError(f"{where}: {name} must be a list of at most {LARGEST_COUNT} points, got {points!r:.80}")
        places = [_three_numbers(point, f"{where}: each of {name}") for point in points]
        lists.append(tuple(_triple([a * b for a, b in zip(signs, place, strict=True)]) for place in places))
    return GivenPoints(on=lists[0], beside=lists[1], in_voxels=in_voxels)


def _parse_box(entry: Any, where: str) -> GivenBox:
    if not isinstance(entry, dict) or not {"unit", "min", "max"} <= set(entry) <= BOX_FIELDS:
        raise DatasetError(
            f'{where}: a box is {{"unit": "voxel" or "mm", "min": [...], "max": [...]}}, for mm also "coordinates": '
            f'"LPS" or "RAS"; got {entry!r:.120}'
        )
    low, high = (_three_numbers(entry[name], f"{where}: {name}") for name in ("min", "max"))
    if any(a >= b for a, b in zip(low, high, strict=True)):
        raise DatasetError(f"{where}: min must be below max along every axis, got {entry['min']} and {entry['max']}")
    if entry["unit"] == "voxel":
        if "coordinates" in entry:
            raise DatasetError(f'{where}: "coordinates" goes with "mm"; voxels are array indices (Z, Y, X)')
        if not all(value.is_integer() for value in (*low, *high)):
            raise DatasetError(f"{where}: voxel indices must be whole numbers, got {entry['min']} and {entry['max']}")
        (z0, y0, x0), (z1, y1, x1) = (tuple(map(int, corner)) for corner in (low, high))
        return VoxelBox(box=((z0, z1), (y0, y1), (x0, x1)))
    if entry["unit"] != "mm":
        raise DatasetError(f'{where}: unit must be "voxel" or "mm", got {entry["unit"]!r}')
    signs = _signs(entry.get("coordinates", "LPS"), where)
    centre = [sign * (a + b) / 2 for sign, a, b in zip(signs, low, high, strict=True)]
    return WorldBox(centre=_triple(centre), sides=_triple([b - a for a, b in zip(low, high, strict=True)]))


def _read_markup(content: Any, path: Path) -> tuple[Prompt, ...]:
    """ROIs of a markup file.

    Source: 3D Slicer's markups schema: `orientation` is a matrix by rows whose columns are the ROI's axes. In files
    without `center`, the only control point is the centre.
    """
    markups = content.get("markups") if isinstance(content, dict) else None
    if not isinstance(markups, list) or not all(isinstance(markup, dict) for markup in markups):
        raise DatasetError(f'{path}: not a markup file of 3D Slicer; expected {{"markups": [...]}}')
    rois = [markup for markup in markups if markup.get("type") == "ROI"]
    if not rois:
        kinds = ", ".join(sorted({str(markup.get("type")) for markup in markups})) or "nothing"
        raise DatasetError(f"{path}: has no ROI, but {kinds}. Draw a box with 3D Slicer's Markups > ROI.")
    return tuple(
        Prompt(
            shape=_parse_roi(roi, f"{path}: ROI {roi.get('name', number)}"),
            title=str(roi.get("name", "")),
        )
        for number, roi in enumerate(rois, 1)
    )


def _parse_roi(roi: dict[str, Any], where: str) -> GivenBox:
    if (unit := roi.get("coordinateUnits", "mm")) not in ("mm", ["mm", "mm", "mm"]):
        raise DatasetError(f"{where}: coordinateUnits must be mm, got {unit!r}")
    signs = np.asarray(_signs(roi.get("coordinateSystem", "LPS"), where))
    points = roi.get("controlPoints")
    point = points[0] if isinstance(points, list) and points else None
    centre = roi.get("center") or (point.get("position") if isinstance(point, dict) else None)
    centre = _three_numbers(centre, f"{where}: center")
    sides = _three_numbers(roi.get("size"), f"{where}: size")
    if min(sides) <= 0:
        raise DatasetError(f"{where}: size must be above 0 along every axis, got {roi['size']}")
    rows = roi.get("orientation", [1, 0, 0, 0, 1, 0, 0, 0, 1])
    if not isinstance(rows, list) or len(rows) != 9 or not all(map(_is_number, rows)):
        raise DatasetError(f"{where}: orientation must be nine numbers, got {rows!r:.80}")
    axes = signs[:, None] * np.reshape(rows, (3, 3))
    if abs(abs(np.linalg.det(axes)) - 1) > 0.01:
        raise DatasetError(f"{where}: orientation must be a rotation, got {rows}")
    return WorldBox(centre=_triple(signs * centre), sides=sides, axes=tuple(float(value) for value in axes.ravel()))


def _signs(coordinates: Any, where: str) -> Triple:
    if not isinstance(coordinates, str) or coordinates not in TO_LPS:
        raise DatasetError(f"{where}: coordinates must be LPS or RAS, got {coordinates!r}")
    return TO_LPS[coordinates]


def _three_numbers(value: Any, what: str) -> Triple:
    if not isinstance(value, list) or len(value) != 3 or not all(map(_is_number, value)):
        raise DatasetError(f"{what} must be three numbers, none beyond {LARGEST:g}, got {value!r:.80}")
    return _triple(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= LARGEST


def _triple(values: Any) -> Triple:
    first, second, third = (float(value) for value in values)
    return (first, second, third)
