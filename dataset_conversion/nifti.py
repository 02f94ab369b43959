"""Convert a NIfTI volume and its labels: split channels, put labels on the image's grid, rename label values."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from nibabel import orientations
from nibabel.arrayproxy import ArrayProxy

from dataset_conversion.conversion import SourceImage, Target
from masam_auto.core.atomic import atomic_path
from masam_auto.core.errors import ImageError, first_few
from masam_auto.core.geometry import Geometry
from masam_auto.formats.io import read_geometry, read_image, read_labels, write_labels
from masam_auto.formats.volumes import LPS_FROM_RAS

ROUNDING = 1e-2
"""Smaller differences of directions and (relative) spacings come from rounding in the header."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VolumeOptions:
    """Options for volumes.

    `ignore_label_geometry`: match labels to images voxel by voxel and ignore the grid in their header. `reorient`: turn
    the voxel axes so that x, y and z point left, back and up (LPS). No value changes.
    """

    ignore_label_geometry: bool = False
    reorient: bool = False


AS_DOWNLOADED = VolumeOptions()

LPS = orientations.axcodes2ornt("LPS")
AS_IS = np.array([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])
"""The turn that changes nothing, in nibabel's form (axis, direction)."""


def write_volume(
    source: SourceImage,
    target: Target,
    *,
    values: Mapping[int, int],
    known: frozenset[int],
    options: VolumeOptions,
) -> tuple[str, ...]:
    """Write the files of one volume.

    Args:
        source: the image, 3D or with its channels as a fourth axis, and its labels.
        target: where they go.
        values: new label values; other values stay.
        known: the values that are allowed afterwards.
        options: options of the user.

    Returns:
        The decisions made.

    Raises:
        ImageError: a file cannot be read, the number of channels is wrong, image and labels differ in shape or (unless
            ignored) by more than rounding, or there are unknown labels.
        OutputError: the folder is not writable or the disk is full.
    """
    image, grid = read_image(source.image, channels=len(target.images))  # reads everything, which finds truncated files
    if image.shape[0] != len(target.images):
        raise ImageError(f"{source.image}: has {image.shape[0]} channels, but {len(target.images)} are expected")
    del image
    turn = (
        orientations.ornt_transform(orientations.io_orientation(LPS_FROM_RAS @ grid.affine), LPS)
        if options.reorient
        else AS_IS
    )
    turned = not np.array_equal(turn, AS_IS)
    notes = [f"turned to LPS from {_axes(grid)}"] if turned else []
    if len(target.images) == 1 and not turned:
        with atomic_path(target.images[0]) as temporary:
            shutil.copyfile(source.image, temporary)
    else:
        _write_channels(source.image, target.images, grid, turn)
    if source.label is None:
        return tuple(notes)
    labels, found = read_labels(source.label)
    notes += _grid_notes(source.label, grid, found, ignore=options.ignore_label_geometry)
    labels, changes = _renamed(labels, values)
    if unknown := sorted(set(np.unique(labels).tolist()) - known):
        raise ImageError(
            f"{source.label}: has labels {first_few(unknown)}, which this data set does not have. Is it "
            "the release that documentation/datasets.md names?"
        )
    if turned:
        labels, grid = orientations.apply_orientation(labels.T, turn).T, read_geometry(target.images[0])
    write_labels(target.label, labels, grid, like=target.images[0])
    return (*notes, *changes)


def _grid_notes(path: Path, image: Geometry, labels: Geometry, *, ignore: bool) -> tuple[str, ...]:
    """Notes on labels whose header differs from the image's. Raises ImageError if the difference is too large."""
    if image.shape != labels.shape:
        raise ImageError(
            f"{path}: {image.difference(labels)} of its labels. Both must have the same shape; replace one of the "
            "files."
        )
    difference = image.difference(labels, tolerance=1e-6)
    if difference is None:
        return ()
    real = image.difference(labels, tolerance=ROUNDING)
    if real and not ignore:
        raise ImageError(
            f"{path}: does not lie on its image's grid: {real}. Correct the header. If a viewer shows that the labels "
            "fit voxel by voxel, use --ignore_label_geometry."
        )
    why = "voxel by voxel as asked" if real else "rounded header"
    return (f"{path.name} put on its image's grid, {why}: {difference}",)


def _renamed(labels: np.ndarray, values: Mapping[int, int]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels with new values, and notes on the changes."""
    renamed = labels.copy()
    notes = []
    for old in np.unique(labels).tolist():
        if old in values and values[old] != old:
            mask = labels == old
            renamed[mask] = values[old]
            notes.append(f"label {old} became {values[old]} in {np.count_nonzero(mask)} voxels")
    return renamed, tuple(notes)


def _write_channels(path: Path, targets: tuple[Path, ...], grid: Geometry, turn: np.ndarray) -> None:
    """Write each volume of a file to a separate file, in the stored type and scale, with turned axes."""
    image = nibabel.load(path)
    assert isinstance(image, nibabel.Nifti1Image) and isinstance(image.dataobj, ArrayProxy)
    stored = np.asanyarray(image.dataobj.get_unscaled())
    affine = LPS_FROM_RAS @ grid.affine @ orientations.inv_ornt_aff(turn, stored.shape[:3])
    for channel, target in enumerate(targets):
        volume = stored if stored.ndim == 3 else stored[..., channel]
        header = image.header.copy()
        header.set_data_shape(volume.shape)
        single = nibabel.Nifti1Image(orientations.apply_orientation(volume, turn), affine, header)
        single.set_sform(affine, code="scanner")
        single.set_qform(affine, code="scanner", strip_shears=True)
        single.header.set_slope_inter(float(image.dataobj.slope), float(image.dataobj.inter))
        with atomic_path(target) as temporary:
            nibabel.save(single, temporary)


def _axes(grid: Geometry) -> str:
    """Where the voxel axes x, y and z point, e.g. "RAS"."""
    return "".join(nibabel.aff2axcodes(LPS_FROM_RAS @ grid.affine))
