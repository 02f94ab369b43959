"""Slices on a square canvas."""

import pytest
import torch

from masam_auto.imaging.square import from_square, onto_square, square_fit


@pytest.mark.parametrize(
    ("size", "spacing", "inside"),
    [
        ((50, 50), (1, 1), (32, 32)),
        ((64, 32), (0.5, 0.5), (32, 16)),
        ((20, 40), (2, 1), (32, 32)),
        ((1, 99), (1, 1), (1, 32)),
    ],
)
def test_the_longer_side_in_mm_fills_the_canvas(size, spacing, inside) -> None:
    assert square_fit(size, spacing, 32).inside == inside


def test_slices_lie_in_the_corner_and_come_back() -> None:
    fit = square_fit((16, 12), (1.0, 1.0), 32)
    assert fit.inside == (32, 24)
    rows, columns = torch.meshgrid(torch.linspace(0, 1, 16), torch.linspace(0, 1, 12), indexing="ij")
    slices = torch.stack([rows, columns, rows + columns])[None]
    canvas = onto_square(slices, fit, (5.0, 6.0, 7.0))
    assert canvas.shape == (1, 3, 32, 32)
    assert canvas[0, :, 0, 24:].unique(dim=1).tolist() == [[5.0], [6.0], [7.0]]
    torch.testing.assert_close(from_square(canvas[0], fit), slices[0], atol=0.03, rtol=0)


def test_a_canvas_of_the_slice_itself_changes_nothing() -> None:
    fit, slices = square_fit((8, 8), (3.0, 3.0), 8), torch.rand(2, 1, 8, 8)
    assert torch.equal(onto_square(slices, fit, (0.0,)), slices)
    assert torch.equal(from_square(slices[:, 0], fit), slices[:, 0])


def test_places_go_there_and_back() -> None:
    fit = square_fit((30, 20), (1.0, 2.0), 64)
    for axis, place in ((0, 7.25), (1, 19.0)):
        assert fit.to_slice(fit.to_square(place, axis), axis) == pytest.approx(place)
    assert (fit.to_square(30, 0), fit.to_square(20, 1)) == (fit.inside[0], fit.inside[1])
