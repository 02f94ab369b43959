"""Segmenting an image from prompts, with random weights and with real ones where they are at hand."""

from pathlib import Path

import numpy as np
import pytest
import torch

from masam_auto.core.boxes import GivenBox, GivenPoints, Prompt, VoxelBox, WorldBox
from masam_auto.core.errors import DatasetError, ImageError, MasamError, ModelError
from masam_auto.core.geometry import Geometry
from masam_auto.formats.io import read_image, read_labels
from masam_auto.imaging.crop import bounding_box
from masam_auto.network.promptable import PromptableSam
from masam_auto.prediction.segmenter import Segmenter, SegmentSettings, pretrained_file
from tests import raw_data
from tests.bright_inside import BrightInside, bright
from tests.random_weights import write_weights

BOX = VoxelBox(box=((1, 4), (4, 20), (6, 18)))
SPACING = (3.0, 1.0, 0.8)


def volume(shape: tuple[int, int, int] = (6, 24, 24)) -> np.ndarray:
    """(1, Z, Y, X), a bright block from slice 1 to 4."""
    image = np.full((1, *shape), 20.0, np.float32)
    image[0, 1:5, 6:16, 8:16] = 100
    return image


def block(found: np.ndarray) -> list[list[int]]:
    return [list(side) for side in bounding_box(found > 0) or ()]


def test_a_box_gives_a_mask_in_its_slices_and_one_slice_is_followed() -> None:
    image = volume()
    thick = VoxelBox(box=((2, 4), (4, 20), (6, 18)))
    assert block(bright().segment(image, SPACING, [thick]).labels) == [[2, 4], [6, 16], [8, 16]]
    assert block(bright(propagate="all").segment(image, SPACING, [thick]).labels) == [[1, 5], [6, 16], [8, 16]]
    thin = VoxelBox(box=((2, 3), (4, 20), (6, 18)))
    assert block(bright().segment(image, SPACING, [thin]).labels) == [[1, 5], [6, 16], [8, 16]]
    assert block(bright(propagate="none").segment(image, SPACING, [thin]).labels) == [[2, 3], [6, 16], [8, 16]]


def test_a_slice_is_encoded_once_however_many_boxes_it_has() -> None:
    segmenter = bright()
    boxes: list[GivenBox] = [VoxelBox(box=((1, 5), (4, 20), (low, low + 5))) for low in range(3, 18)]
    segmenter.segment(volume(), SPACING, boxes)
    assert segmenter.network.encoded == [1, 1, 1, 1]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_may_run_along_any_axis(axis: int) -> None:
    image = np.moveaxis(volume(), 1, 1 + axis)
    box = tuple(np.insert(np.array([(4, 20), (6, 18)]), axis, (2, 4), axis=0))
    spacing = tuple(np.insert([1.0, 1.0], axis, 3.0))
    found = bright().segment(image, spacing, [VoxelBox(box=box)])
    expected = np.zeros((6, 24, 24), bool)
    expected[2:4, 6:16, 8:16] = True
    assert np.array_equal(np.moveaxis(found.labels, axis, 0) > 0, expected)
    assert ("slices across axis" in " ".join(found.notes)) == (axis > 0)


def test_classes_and_the_higher_logit_where_objects_overlap() -> None:
    image = volume()
    image[0, :, :, 12:16] *= 0.8
    prompts = [
        Prompt(shape=VoxelBox(box=((1, 5), (4, 20), (6, 13)))),
        Prompt(shape=VoxelBox(box=((1, 5), (4, 20), (10, 18))), label=7),
    ]
    found = bright().segment(image, SPACING, prompts).labels
    assert found.dtype == np.uint8 and set(np.unique(found)) == {0, 1, 7}
    assert set(np.unique(found[2, 8, 8:12])) == {1} and set(np.unique(found[2, 8, 13:16])) == {7}
    many = bright().segment(image, SPACING, [Prompt(shape=BOX, label=300)]).labels
    assert many.dtype == np.int16 and many.max() == 300


def test_points_in_one_slice() -> None:
    segmenter = bright(pixels="sam")
    on = GivenPoints(on=((2, 8, 9), (2, 9, 9)), beside=((2, 1, 1),))
    assert block(segmenter.segment(volume(), SPACING, [on]).labels) == [[1, 5], [6, 16], [8, 16]]
    geometry = Geometry(shape=(6, 24, 24), spacing=SPACING, origin=(5.0, 6.0, 7.0))
    millimetres = GivenPoints(on=((5 + 9 * 0.8, 6 + 8.0, 7 + 2 * 3.0),), in_voxels=False)
    assert block(segmenter.segment(volume(), geometry, [millimetres]).labels) == [[1, 5], [6, 16], [8, 16]]


def test_what_a_user_should_know_is_noted() -> None:
    image = np.concatenate([volume(), volume() * 2])
    dark = VoxelBox(box=((1, 5), (17, 22), (17, 22)))
    found = bright(canvas=96).segment(image, SPACING, [BOX, dark])
    assert found.notes == ("channel 0 is used; not used: 1",)
    assert found.left_out == ("prompt 2: nothing was found",)
    wide = VoxelBox(box=((0, 9), (-3, 20), (6, 18)))
    left_out = bright().segment(volume(), SPACING, [wide]).left_out
    assert left_out == (
        "prompt 1: it reaches beyond the image and was cut to it",
        "prompt 1: nothing was found in 2 of its 6 slices",
    )
    ct = bright().segment(volume() - 900, SPACING, [BOX]).notes
    assert "intensities -160 to 240 are told apart (CT)" in ct
    doubtful = bright(is_ct=True).segment(volume(), SPACING, [BOX]).notes
    assert "none is below 0; if they are not, give `intensity`" in doubtful[0] and "(CT)" in doubtful[1]
    given = bright(window=(3.0, 9.0), channels=(1,)).segment(image, SPACING, [BOX]).notes
    assert "intensities 3 to 9 are told apart" in given and "channel 1 is used; not used: 0" in given


def test_a_picture_shows_its_colours() -> None:
    seen: list[torch.Tensor] = []

    class Keeping(BrightInside):
        def encode(self, slices: torch.Tensor) -> torch.Tensor:
            seen.append(slices)
            return slices

    picture = np.random.default_rng(0).integers(0, 256, (3, 12, 10)).astype(np.float32)
    segmenter = Segmenter(network=Keeping(12, "unit"), device=torch.device("cpu"))  # type: ignore[arg-type]
    found = segmenter.segment(picture, (1.0, 1.0), [VoxelBox(box=((0, 1), (2, 9), (1, 8)))])
    assert found.labels.shape == (1, 12, 10)
    np.testing.assert_allclose(seen[0][0, :, :, :10].numpy(), picture / 255, rtol=1e-6)


@pytest.mark.parametrize(
    ("prompts", "settings", "error", "message"),
    [
        ([], {}, DatasetError, "case x has no box and no points"),
        ([VoxelBox(box=((9, 12), (1, 2), (1, 2)))], {}, DatasetError, r"case x: the box .* is outside the image"),
        ([WorldBox(centre=(-50, 0, 0), sides=(1, 1, 1))], {}, DatasetError, "case x: the box .* is outside"),
        ([GivenPoints(on=((2, 3, 50),))], {"pixels": "sam"}, DatasetError, "case x: the point .* is outside the image"),
        ([GivenPoints(on=((2, 3, 5), (3, 3, 5)))], {"pixels": "sam"}, DatasetError, r"several slices \(2, 3\)"),
        (
            [GivenPoints(on=((2, 3, 5),))],
            {},
            ModelError,
            "case x has points, but these weights were trained with boxes",
        ),
        ([BOX, Prompt(shape=BOX, label=0)], {}, ModelError, "case x, prompt 2: its class must be a value from 1 on"),
        ([Prompt(shape=BOX, label="liver")], {}, ModelError, "its class must be a value"),
        ([BOX], {"channels": (1,)}, ImageError, "case x has 1 channels, 0 to 0, so there is no channel 1"),
    ],
)
def test_prompts_that_cannot_be(prompts: list, settings: dict, error: type[MasamError], message: str) -> None:
    with pytest.raises(error, match=message):
        bright(**settings).segment(volume(), SPACING, prompts, identifier="x")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"propagate": "some"}, "`propagate=some`: expected one of single, all, none"),
        ({"axis": 3}, "`axis=3`: the axes of a stored array"),
        ({"window": (5.0, 5.0)}, "`intensity`: the lower end must be below the upper one"),
        ({"channels": (0, 1)}, "one channel or three"),
    ],
)
def test_settings_that_cannot_be(settings: dict, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        SegmentSettings(**settings)


def test_an_image_with_holes_is_refused() -> None:
    image = volume()
    image[0, 2, 3, 4] = np.nan
    with pytest.raises(ImageError, match="case x: 1 of 3456 voxels are not finite"):
        bright().segment(image, SPACING, [BOX], identifier="x")


@pytest.mark.parametrize("encoder", ["lite_medsam", "mobile_sam"])
def test_weights_of_a_file(encoder: str, tmp_path: Path, lite_medsam: Path) -> None:
    file = lite_medsam if encoder == "lite_medsam" else write_weights(tmp_path / "w" / "mobile_sam.pt", encoder)
    side = 16 if encoder == "lite_medsam" else 32
    segmenter = Segmenter.from_weights(file, "cpu", canvas=side)
    assert isinstance(segmenter.network, PromptableSam) and segmenter.network.canvas == side
    assert segmenter.network.pixels == ("unit" if encoder == "lite_medsam" else "sam")
    first, again = (segmenter.segment(volume(), SPACING, [BOX]).labels for _ in range(2))
    assert np.array_equal(first, again) and set(np.unique(first)) <= {0, 1}
    assert not first[[0, 4, 5]].any()
    assert pretrained_file(file.parent, encoder) == file
    with pytest.raises(ModelError, match=r"no weights of vit_b in .* \(there: "):
        pretrained_file(file.parent, "vit_b")


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(3)}, tmp_path / "other.pth")
    for name in ("other.pth", "none.pth"):
        with pytest.raises(ModelError, match=name):
            Segmenter.from_weights(tmp_path / name, "cpu")


@pytest.mark.slow
def test_real_weights_find_a_tumour(shared_data: Path) -> None:
    weights = shared_data.parent / "weights" / "lite_medsam.pth"
    if not weights.is_file():
        pytest.skip(f"no weights at {weights}")
    raw = shared_data / "raw" / "Dataset005_SarcomaCT"
    image, geometry = read_image(raw / "imagesTr" / "STS_002_0000.nii.gz")
    reference = read_labels(raw / "labelsTr" / "STS_002.nii.gz")[0] > 0
    box = bounding_box(reference)
    assert box is not None
    found = Segmenter.from_weights(weights, "cpu", canvas=128).segment(image, geometry, [VoxelBox(box=box)]).labels > 0
    assert 2 * (found & reference).sum() / (found.sum() + reference.sum()) > 0.7


def test_oblique_grids_are_kept() -> None:
    geometry = raw_data.oblique_geometry((6, 24, 24))
    assert bright().segment(volume(), geometry, [BOX]).geometry == geometry
