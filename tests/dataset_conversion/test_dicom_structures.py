"""Contours become the voxels whose middles they go around, whatever way the image lies."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.path import Path as Outline

from dataset_conversion.dicom_structures import Contour, fill_contours, fill_polygons, read_contours
from masam_auto.core.errors import ImageError
from masam_auto.core.geometry import Geometry
from tests import dicom_files, raw_data

SHAPE = (7, 12, 15)
GRIDS = {
    "axial": Geometry(shape=SHAPE, spacing=(2.5, 0.7, 0.9), origin=(-10.0, 20.0, 30.5)),
    "sagittal": Geometry(shape=SHAPE, spacing=(5.0, 0.5, 0.5), direction=(0, 0, -1.0, 1.0, 0, 0, 0, -1.0, 0)),
    "tilted gantry": Geometry(
        shape=SHAPE, spacing=(2.5, 0.7, 0.9), direction=(1.0, 0, 0, 0, 1.0, 0.2588190451, 0, 0, 0.9659258263)
    ),
}


@pytest.fixture(params=[*GRIDS, "oblique"])
def grid(request: pytest.FixtureRequest) -> Geometry:
    oblique = Geometry(
        shape=SHAPE, spacing=(3.0, 0.7, 0.9), origin=(5.0, 6.0, 7.0), direction=raw_data.oblique_direction()
    )
    return GRIDS.get(request.param, oblique)


def contour(grid: Geometry, z: float, corners: list[tuple[float, float]], kind: str = "CLOSED_PLANAR") -> Contour:
    """A contour by its corners (x, y) in voxels, with three decimals in mm, as files have them."""
    voxels = np.array([(x, y, z) for x, y in corners])
    return Contour(kind=kind, points=np.round(voxels @ grid.affine[:3, :3].T + grid.affine[:3, 3], 3))


def box(x0: float, y0: float, x1: float, y1: float) -> list[tuple[float, float]]:
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def circle(radius: float, x: float = 7.2, y: float = 5.9) -> list[tuple[float, float]]:
    angles = np.linspace(0, 2 * np.pi, 180, endpoint=False)
    return [(x + radius * float(np.cos(a)), y + radius * float(np.sin(a))) for a in angles]


def test_sphere_with_a_hollow(grid: Geometry) -> None:
    slices, hollow = {1: 2.2, 2: 4.1, 3: 5.3, 4: 3.9, 5: 1.7}, {2: 1.3, 3: 2.6}
    contours = [contour(grid, z, circle(r)) for part in (slices, hollow) for z, r in part.items()]
    mask, notes = fill_contours(contours, grid, where="x")
    z, y, x = np.indices(SHAPE)
    distance = np.hypot(x - 7.2, y - 5.9)
    outer, inner = (np.array([radii.get(index, 0.0) for index in range(7)])[z] for radii in (slices, hollow))
    clear = np.minimum(np.abs(distance - outer), np.abs(distance - inner)) > 0.02  # not on the line, within rounding
    assert clear.mean() > 0.98
    assert np.array_equal(mask[clear], ((distance < outer) & (distance > inner))[clear])
    assert 100 < mask.sum() < 300
    assert notes == ()


def test_box_through_the_middles_of_voxels(grid: Geometry) -> None:
    """Neighbours share no voxel and leave none out, in spite of the rounding in world coordinates."""
    left, _ = fill_contours([contour(grid, 3, box(2, 1, 6, 5))], grid, where="x")
    right, _ = fill_contours([contour(grid, 3, box(6, 1, 9, 5)[::-1])], grid, where="x")
    expected = np.zeros(SHAPE, bool)
    expected[3, 1:5, 2:6] = True
    assert np.array_equal(left, expected)
    assert not (left & right).any()
    assert np.array_equal(left | right, fill_contours([contour(grid, 3, box(2, 1, 9, 5))], grid, where="x")[0])


def test_keyhole_is_a_hole(grid: Geometry) -> None:
    channel = [(1.0, 1.0), (10.0, 1.0), (10.0, 9.0), (1.0, 9.0), (1.0, 1.0), (3.0, 4.0)]
    keyhole = [*channel, (3.0, 7.0), (6.0, 7.0), (6.0, 4.0), (3.0, 4.0), (1.0, 1.0)]
    mask, _ = fill_contours([contour(grid, 2, keyhole)], grid, where="x")
    apart, _ = fill_contours([contour(grid, 2, box(1, 1, 10, 9)), contour(grid, 2, box(3, 4, 6, 7))], grid, where="x")
    assert np.array_equal(mask, apart)
    assert not mask[2, 4:7, 3:6].any()
    assert mask.sum() == 9 * 8 - 3 * 3


@pytest.mark.parametrize("seed", range(20))
def test_even_odd_rule_against_matplotlib(seed: int) -> None:
    """Random polygons that cross themselves and reach out of the picture."""
    corners = np.random.default_rng(seed).uniform(-6, 22, (7, 2))
    x, y = np.meshgrid(np.arange(15), np.arange(12))
    points = np.stack([x.ravel(), y.ravel()], axis=1)
    winding = np.zeros(points.shape[0], bool)
    for a, b in zip(
        corners, np.roll(corners, -1, axis=0), strict=True
    ):  # triangles about the origin, one after another
        winding ^= Outline(np.array([(100.3, 77.7), a, b, (100.3, 77.7)])).contains_points(points)
    assert np.array_equal(fill_polygons([corners], (12, 15)), winding.reshape(12, 15))


def test_contours_between_slices(grid: Geometry) -> None:
    """The nearest plane counts, and planes drawn more densely than the slices do not cancel each other."""
    dense = [contour(grid, z, box(1, 1, 5, 4)) for z in (1.6, 2.01, 2.3, 2.7, 3.0)]
    mask, notes = fill_contours(dense, grid, where="x")
    assert mask.sum(axis=(1, 2)).tolist() == [0, 0, 12, 12, 0, 0, 0]
    assert notes == ("3 contours left out; others are nearer to the same slice",)
    mask, notes = fill_contours([contour(grid, 2.3, box(1, 1, 5, 4))], grid, where="x")
    assert mask[2].sum() == 12
    assert notes == (f"contours up to {0.3 * grid.spacing[0]:.2g} mm off their slices",)


def test_contours_on_some_slices_and_beyond(grid: Geometry) -> None:
    sparse = [contour(grid, z, box(1, 1, 5, 4)) for z in (0, 3, 6, 9, -0.7)]
    mask, notes = fill_contours(sparse, grid, where="x")
    assert np.flatnonzero(mask.any(axis=(1, 2))).tolist() == [0, 3, 6]
    assert notes == (
        "2 contours outside the image's slices left out",
        "contours 3 slices apart; slices between them stay empty",
    )


def test_points_and_lines_enclose_nothing(grid: Geometry) -> None:
    drawn = [contour(grid, 1, box(1, 1, 5, 4), kind) for kind in ("POINT", "OPEN_PLANAR", "OPEN_NONPLANAR")]
    mask, notes = fill_contours([*drawn, contour(grid, 1, [(1, 1), (4, 4)])], grid, where="x")
    assert not mask.any()
    assert notes == ("4 points or open lines left out",)


def test_contours_of_another_series(grid: Geometry) -> None:
    across = contour(grid, 3, box(1, 1, 5, 4))
    across = Contour(kind=across.kind, points=across.points + np.outer([0, 1, 2, 3], grid.affine[:3, 2]))
    with pytest.raises(ImageError, match=r'^a: ROI "b": a contour near \(.*\) mm is not parallel to the slices'):
        fill_contours([across], grid, where='a: ROI "b"')
    with pytest.raises(ImageError, match=r'^a: ROI "b": all its contours are outside the slices'):
        fill_contours([contour(grid, 8, box(1, 1, 5, 4))], grid, where='a: ROI "b"')


def test_read(tmp_path: Path) -> None:
    points = np.array([(0, 0, 1.5), (3, 0, 1.5), (3, -2.25, 1.5)])
    file = dicom_files.write_structures(tmp_path / "rs.dcm", {"Liver": [points, points + 1], "empty": []})
    contours = read_contours(file)
    assert [len(drawn) for drawn in contours.values()] == [2, 0]
    assert np.array_equal(contours[1][1].points, points + 1)


def test_damaged_contour_is_told(tmp_path: Path) -> None:
    file = dicom_files.write_structures(tmp_path / "rs.dcm", {"Liver": [np.array([(0.0, 0, 1), (1, 1, 1), (2, 0, 1)])]})
    content = file.read_bytes()
    file.write_bytes(content.replace(rb"0\0\1\1", rb"0\x\1\1"))
    assert file.read_bytes() != content
    with pytest.raises(ImageError, match=r"rs\.dcm: this DICOM file is damaged"):
        read_contours(file)


def test_a_roi_in_several_items_is_whole(tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    triangle = np.array([[0.0, 0, 0], [4, 0, 0], [0, 4, 0]])
    file = dicom_files.write_structures(tmp_path / "rs", {"a": [triangle], "b": [triangle + 1, triangle + 2]})
    tags = pydicom.dcmread(file)
    tags.ROIContourSequence[1].ReferencedROINumber = 1
    tags.save_as(file)
    assert {number: len(contours) for number, contours in read_contours(file).items()} == {1: 3}
