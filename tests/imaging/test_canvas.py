"""Slices on the canvas and back."""

import numpy as np
import pytest
import torch

from masam_auto.imaging.canvas import CanvasMap, canvas_box, canvas_map, collect, place, tiles_of


def lay_out(size: tuple[int, int], canvas: tuple[int, int], magnification: float) -> tuple[CanvasMap, ...]:
    return tiles_of(canvas_map(size, canvas, magnification), 0.5)


def there_and_back(window: torch.Tensor, tiles: tuple[CanvasMap, ...]) -> torch.Tensor:
    return torch.stack(list(collect((place(window, tile) for tile in tiles), tiles)))


@pytest.mark.parametrize("size", [(5, 7), (16, 16), (11, 16), (40, 23), (16, 35)])
def test_without_magnification_the_round_trip_is_exact(size: tuple[int, int]) -> None:
    window = torch.randn(3, 2, *size)
    tiles = lay_out(size, (16, 16), 1.0)
    back = there_and_back(window, tiles)
    assert back.shape == window.shape
    torch.testing.assert_close(back, window, rtol=0, atol=0 if len(tiles) == 1 else 1e-6)


@pytest.mark.parametrize("size", [(16, 24), (40, 50), (12, 50)])
def test_the_canvas_is_laid_out_in_memory_as_a_tensor_of_its_shape(size: tuple[int, int]) -> None:
    """Convolutions in bf16 round otherwise where it is a view: predictions differed in a few voxels."""
    for tile in tiles_of(canvas_map(size, (16, 24), 1.0), 0.5):
        assert place(torch.randn(3, 1, *size), tile).is_contiguous()


def test_a_small_slice_is_centred_and_zero_padded() -> None:
    canvas = place(torch.ones(1, 1, 4, 6), canvas_map((4, 6), (16, 16), 1.0))
    expected = torch.zeros(16, 16)
    expected[6:10, 5:11] = 1
    assert torch.equal(canvas[0, 0], expected)


@pytest.mark.parametrize(("magnification", "size"), [(2.0, (8, 7)), (3.7, (5, 6)), (0.75, (20, 21))])
def test_canvas_pixels_show_the_coordinates_of_the_convention(magnification: float, size: tuple[int, int]) -> None:
    rows, columns = np.meshgrid(np.arange(size[0]), np.arange(size[1]), indexing="ij")
    window = torch.as_tensor(np.stack([rows, columns])[None], dtype=torch.float64)
    (only,) = lay_out(size, (32, 32), magnification)
    canvas = place(window, only)
    for axis in (0, 1):
        coordinates = (np.arange(32) - 31 / 2) / magnification + (size[axis] - 1) / 2
        inside = (coordinates >= 0) & (coordinates <= size[axis] - 1)
        middle = canvas[0, axis, :, 16] if axis == 0 else canvas[0, axis, 16, :]
        np.testing.assert_allclose(middle.numpy()[inside], coordinates[inside], atol=1e-9)


@pytest.mark.parametrize("magnification", [0.75, 1.5, 2.0, 3.3, 8.0])
@pytest.mark.parametrize("size", [(12, 9), (40, 33)])
def test_smooth_slices_come_back(magnification: float, size: tuple[int, int]) -> None:
    rows = np.linspace(-1, 1, size[0])[:, None]
    columns = np.linspace(-1, 1, size[1])[None]
    window = torch.as_tensor((3 * rows + 2 * columns)[None, None], dtype=torch.float32)
    back = there_and_back(window, lay_out(size, (32, 48), magnification))
    assert back.shape == window.shape
    torch.testing.assert_close(back[..., 2:-2, 2:-2], window[..., 2:-2, 2:-2], rtol=0, atol=0.02)


def test_tiles_cover_what_exceeds_the_canvas() -> None:
    tiles = tiles_of(canvas_map((50, 20), (16, 32), 1.5), 0.25)
    assert tiles[0].extent == (75, 30)
    covered = np.zeros(tiles[0].extent, dtype=int)
    for top, left in (tile.start for tile in tiles):
        covered[max(0, top) : top + 16, max(0, left) : left + 32] += 1
    assert covered.min() >= 1
    starts = sorted({tile.start[0] for tile in tiles})
    assert max(np.diff(starts)) <= 12
    assert starts[0] == 0
    assert starts[-1] == 75 - 16


def test_layout_does_not_shift_a_symmetric_slice() -> None:
    window = torch.zeros(1, 1, 7, 7)
    window[0, 0, 3, 3] = 1
    canvas = place(window, canvas_map((7, 7), (32, 32), 2.5))
    torch.testing.assert_close(canvas, canvas.flip(-1))
    torch.testing.assert_close(canvas, canvas.flip(-2))


def test_a_box_is_cut_to_the_canvas_and_absent_where_it_does_not_touch_it() -> None:
    tiles = lay_out((12, 40), (16, 16), 1.0)
    found = [canvas_box((3.0, 9.0), (10.0, 20.0), tile) for tile in tiles]
    top = -tiles[0].start[0]
    for left, box in zip((tile.start[1] for tile in tiles), found, strict=True):
        x0, x1 = max(0, 10 - left), min(16, 20 - left)
        assert box == (None if x0 >= x1 else (x0, top + 3, x1, top + 9))
    assert None in found


def test_a_magnified_slice_fills_its_extent() -> None:
    box = canvas_box((0.0, 5.0), (0.0, 7.0), canvas_map((5, 7), (32, 32), 3.0))
    assert box is not None
    x0, y0, x1, y1 = box
    assert (x1 - x0, y1 - y0) == (21, 15)
    assert ((x0 + x1) / 2, (y0 + y1) / 2) == (16, 16)


@pytest.mark.parametrize("magnification", [0.75, 1.0, 2.5])
@pytest.mark.parametrize("size", [(5, 7), (40, 23)])
def test_the_map_and_its_inverse(size: tuple[int, int], magnification: float) -> None:
    for tile in lay_out(size, (16, 16), magnification):
        for axis in (0, 1):
            places = np.arange(-3.0, 20.0)
            np.testing.assert_allclose(tile.to_canvas(tile.to_slice(places, axis), axis), places, atol=1e-12)
            assert tile.to_slice(7.5, axis) == tile.centre[axis]
            if magnification == 1:  # pixels lie on pixels
                assert float(tile.to_slice(0.0, axis)).is_integer()
