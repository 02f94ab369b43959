"""Turning volumes: every value stays where it is in the world."""

from pathlib import Path

import nibabel
import numpy as np
import pytest

from dataset_conversion.conversion import SourceImage, Target
from dataset_conversion.nifti import VolumeOptions, write_volume
from masam_auto.formats.io import read_image, read_labels
from tests.dataset_conversion.downloads import make_image, make_labels, write_nifti


def values_in_the_world(array: np.ndarray, affine: np.ndarray) -> dict[tuple[float, ...], float]:
    """Value at each voxel's centre; array (Z, Y, X), affine from (x, y, z)."""
    places = {}
    for index in np.ndindex(array.shape):
        centre = affine @ [*index[::-1], 1.0]
        places[tuple(np.round(centre[:3], 3).tolist())] = float(array[index])
    return places


@pytest.mark.parametrize("axes", ["LPS", "RAS", "LAS", "PIR", "SLA"])
@pytest.mark.parametrize("channels", [1, 2])
def test_turned_volumes_keep_every_value_in_its_place(tmp_path: Path, axes: str, channels: int) -> None:
    turn = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt("LPS"), nibabel.orientations.axcodes2ornt(axes)
    )
    affine = np.diag([-0.75, -0.5, 2.0, 1.0]) @ nibabel.orientations.inv_ornt_aff(turn, (6, 5, 4))
    affine[:3, 3] += (10, 20, 30)
    assert "".join(nibabel.aff2axcodes(affine)) == axes
    volume = nibabel.orientations.apply_orientation(make_image(3, channels=channels if channels > 1 else 0), turn)
    mask = nibabel.orientations.apply_orientation(make_labels([1, 2, 3]), turn)
    write_nifti(tmp_path / "image.nii.gz", volume, affine=affine)
    write_nifti(tmp_path / "label.nii.gz", mask, affine=affine)
    source = SourceImage(identifier="x", image=tmp_path / "image.nii.gz", label=tmp_path / "label.nii.gz")
    target = Target(
        images=tuple(tmp_path / "out" / f"x_{n:04d}.nii.gz" for n in range(channels)),
        label=tmp_path / "out" / "x.nii.gz",
    )
    notes = write_volume(source, target, values={}, known=frozenset(range(4)), options=VolumeOptions(reorient=True))
    assert notes == (() if axes == "LPS" else (f"turned to LPS from {axes}",))
    before, grid = read_image(source.image, channels=channels)
    for channel, path in enumerate(target.images):
        after, turned = read_image(path)
        assert nibabel.aff2axcodes(nibabel.load(path).affine) == ("L", "P", "S")
        assert nibabel.load(path).get_data_dtype() == np.int16
        assert values_in_the_world(after[0], turned.affine) == values_in_the_world(before[channel], grid.affine)
    written, turned = read_labels(target.label)
    original, grid = read_labels(tmp_path / "label.nii.gz")
    assert turned.difference(read_image(target.images[0])[1]) is None
    assert values_in_the_world(written, turned.affine) == values_in_the_world(original, grid.affine)
