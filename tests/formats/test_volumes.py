"""formats.volumes: orientation, scaling, shear, and files that ITK misreads."""

import gzip
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from masam_auto.core.dataset import Case, parse_description
from masam_auto.core.errors import ImageError
from masam_auto.core.geometry import Geometry
from masam_auto.formats.io import (
    read_case,
    read_geometry,
    read_image,
    read_labels,
    write_labels,
)
from tests import raw_data

SHAPE = (4, 6, 5)
SHEAR = np.array([[0.8, 0.2, 0.0, -7.0], [0.0, 1.0, 0.5, 3.0], [0.0, 0.0, 3.0, 11.0], [0.0, 0.0, 0.0, 1.0]])


def numbers(shape: tuple[int, ...] = SHAPE, kind: Any = np.float32) -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(kind)


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd"])
def test_volumes_are_oriented_as_simpleitk_gives_them(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a{ending}"
    raw_data.write_volume(path, numbers(kind=np.int16))
    image, geometry = read_image(path)
    expected = sitk.ReadImage(str(path))
    assert image.dtype == np.float32 and image.flags.c_contiguous and image.flags.writeable
    np.testing.assert_array_equal(image[0], sitk.GetArrayFromImage(expected))
    assert geometry.spacing == expected.GetSpacing()[::-1]
    assert geometry.direction == expected.GetDirection() and geometry.origin == expected.GetOrigin()
    assert read_geometry(path) == geometry


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".mgz", ".mgh"])
def test_written_labels_come_back_with_their_geometry(tmp_path: Path, ending: str) -> None:
    labels = numbers(kind=np.int64) % 4
    geometry = raw_data.oblique_geometry(SHAPE)
    write_labels(tmp_path / f"a{ending}", labels, geometry)
    found, where = read_labels(tmp_path / f"a{ending}")
    assert found.dtype == np.int16
    np.testing.assert_array_equal(found, labels)
    np.testing.assert_allclose(where.affine, geometry.affine, atol=1e-5)
    assert where.difference(geometry) is None
    assert [path.name for path in tmp_path.iterdir()] == [f"a{ending}"], "one file, nothing temporary"


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha", ".mgz"])
def test_shear_survives_writing_and_reading(tmp_path: Path, ending: str) -> None:
    nibabel.save(nibabel.Nifti1Image(numbers().T, SHEAR), tmp_path / "image.nii.gz")
    image, geometry = read_image(tmp_path / "image.nii.gz")
    np.testing.assert_array_equal(image[0], numbers())
    np.testing.assert_allclose(np.diag([-1, -1, 1, 1]) @ geometry.affine, SHEAR, atol=1e-6)
    assert read_geometry(tmp_path / "image.nii.gz") == geometry
    write_labels(tmp_path / f"labels{ending}", np.ones(SHAPE, np.uint8), geometry)
    np.testing.assert_allclose(read_geometry(tmp_path / f"labels{ending}").affine, geometry.affine, atol=1e-5)


def test_sheared_s_form_wins_over_the_q_form(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(numbers().T, SHEAR)
    image.set_qform(SHEAR, code="scanner", strip_shears=True)
    nibabel.save(image, tmp_path / "a.nii.gz")
    assert sitk.ReadImage(str(tmp_path / "a.nii.gz")).GetSize() == SHAPE[::-1], "ITK reads it, without the shear"
    np.testing.assert_allclose(np.diag([-1, -1, 1, 1]) @ read_geometry(tmp_path / "a.nii.gz").affine, SHEAR, atol=1e-6)


def test_written_nifti_has_both_forms_and_the_smallest_type(tmp_path: Path) -> None:
    for highest, kind in ((255, np.uint8), (256, np.uint16)):
        labels = np.zeros(SHAPE, np.int16)
        labels[0, 0, 0] = highest
        write_labels(tmp_path / "a.nii.gz", labels, raw_data.oblique_geometry(SHAPE))
        image = nibabel.Nifti1Image.from_filename(tmp_path / "a.nii.gz")
        assert image.get_data_dtype() == kind
        assert int(image.header["sform_code"]) > 0 and int(image.header["qform_code"]) > 0
        np.testing.assert_allclose(image.get_sform(), image.get_qform(), atol=1e-5)
        assert read_labels(tmp_path / "a.nii.gz")[0].max() == highest


def headers() -> dict[str, nibabel.Nifti1Image]:
    """NIfTI images that say in different ways where they lie."""
    turned = np.array([[0, 0, 3.0, 7], [0.8, 0, 0, 3], [0, 1.0, 0, 11], [0, 0, 0, 1]])
    made = {}
    for name, affine, sform, qform in (
        ("both", turned, 4, 1),
        ("s-form only", turned, 2, 0),
        ("q-form only", turned, 0, 3),
        ("none", np.diag([0.8, 1.0, 3.0, 1.0]), 0, 0),
        ("shear", SHEAR, 1, 1),
    ):
        image = nibabel.Nifti1Image(numbers().T, affine)
        image.set_sform(affine if sform else None, code=sform)
        image.set_qform(affine if qform else None, code=qform, strip_shears=True)
        image.header["descrip"] = f"made for {name}".encode()
        made[name] = image
    two = made["NIfTI-2"] = nibabel.Nifti2Image(numbers().T, turned)
    two.set_qform(turned, code=2)
    microns = made["micrometres"] = nibabel.Nifti1Image(numbers().T, turned @ np.diag([1e3, 1e3, 1e3, 1]))
    microns.header.set_xyzt_units("micron", "msec")
    negative = made["negative sizes"] = nibabel.Nifti1Image(numbers().T, None)
    negative.header["pixdim"][:4] = 1, -0.8, 1.0, 3.0
    return made


@pytest.mark.parametrize("name", headers())
def test_labels_say_where_they_lie_as_their_image_does(tmp_path: Path, name: str) -> None:
    nibabel.save(headers()[name], tmp_path / "a.nii")
    geometry = read_geometry(tmp_path / "a.nii")
    labels = numbers(kind=np.uint8) % 3
    write_labels(tmp_path / "b.nii.gz", labels, geometry, like=tmp_path / "a.nii")
    found, where = read_labels(tmp_path / "b.nii.gz")
    np.testing.assert_array_equal(found, labels)
    assert where.oriented == geometry.oriented and where.difference(geometry, tolerance=1e-6) is None
    stored = ((tmp_path / "a.nii").read_bytes(), gzip.decompress((tmp_path / "b.nii.gz").read_bytes()))
    kinds = (type(headers()[name].header), nibabel.Nifti1Header)
    before, after = (kind(data[: kind.sizeof_hdr], check=False) for kind, data in zip(kinds, stored, strict=True))
    assert after["magic"] == b"n+1" and after.get_data_dtype() == np.uint8 and after.get_slope_inter() == (1, 0)
    np.testing.assert_array_equal(after["pixdim"][:4], before["pixdim"][:4].astype(np.float32))
    for form in ("sform", "qform"):
        assert after[f"{form}_code"] == before[f"{form}_code"]
    np.testing.assert_allclose(after.get_sform(), before.get_sform(), rtol=1e-6)
    for field in ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"):
        assert after[field] == pytest.approx(before[field])
    assert after.get_xyzt_units() == before.get_xyzt_units() and after["descrip"] == before["descrip"]


def test_a_picture_of_two_dimensions_stays_one(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(numbers((6, 5)).T, np.diag([0.5, 0.7, 1, 1])), tmp_path / "a.nii.gz")
    _, geometry = read_image(tmp_path / "a.nii.gz")
    write_labels(tmp_path / "b.nii.gz", np.ones((1, 6, 5), np.uint8), geometry, like=tmp_path / "a.nii.gz")
    assert read_labels(tmp_path / "b.nii.gz")[1] == geometry
    assert nibabel.load(tmp_path / "b.nii.gz").shape == (5, 6)


def test_where_nothing_is_known_no_forms_are_made_up(tmp_path: Path) -> None:
    geometry = Geometry(shape=SHAPE, spacing=(3.0, 1.0, 0.8), oriented=False)
    write_labels(tmp_path / "a.nii.gz", np.ones(SHAPE, np.uint8), geometry)
    header = nibabel.load(tmp_path / "a.nii.gz").header
    assert (int(header["sform_code"]), int(header["qform_code"])) == (0, 0)
    found = read_geometry(tmp_path / "a.nii.gz")
    assert not found.oriented and found.difference(geometry, tolerance=1e-6) is None


@pytest.mark.parametrize("other", ["gone.nii.gz", "image.mha"])
def test_forms_are_made_where_there_is_no_nifti_image(tmp_path: Path, other: str) -> None:
    geometry = raw_data.oblique_geometry(SHAPE)
    (tmp_path / "image.mha").touch()
    write_labels(tmp_path / "b.nii.gz", np.ones(SHAPE, np.uint8), geometry, like=tmp_path / other)
    assert read_labels(tmp_path / "b.nii.gz")[1].difference(geometry, tolerance=1e-5) is None
    assert nibabel.load(tmp_path / "b.nii.gz").header["sform_code"] == 1


@pytest.mark.parametrize(("stored", "named"), [("a.nii", "b.nii.gz"), ("a.nii.gz", "b.nii")])
def test_compression_that_the_name_denies(tmp_path: Path, stored: str, named: str) -> None:
    nibabel.save(headers()["both"], tmp_path / stored)
    (tmp_path / stored).rename(tmp_path / named)
    array, geometry = read_image(tmp_path / named)
    np.testing.assert_array_equal(array[0], numbers())
    assert read_geometry(tmp_path / named) == geometry
    write_labels(tmp_path / "c.nii.gz", np.ones(SHAPE, np.uint8), geometry, like=tmp_path / named)
    assert read_geometry(tmp_path / "c.nii.gz").difference(geometry, tolerance=1e-6) is None


def test_equal_labels_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "b.nii.gz"):
        write_labels(tmp_path / name, np.ones(SHAPE, np.uint8), raw_data.oblique_geometry(SHAPE))
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_scale_slope_and_intercept_are_applied_as_itk_does(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(numbers(kind=np.int16).T, np.eye(4))
    image.header.set_slope_inter(0.37, -1024)
    nibabel.save(image, tmp_path / "a.nii")
    found = read_image(tmp_path / "a.nii")[0][0]
    np.testing.assert_array_equal(found, sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "a.nii"))))
    assert found[0, 0, 1] != found[0, 0, 0]


def test_nifti2_and_a_header_without_forms(tmp_path: Path) -> None:
    affine = np.diag([0.8, 1.0, 3.0, 1.0])
    nibabel.save(nibabel.Nifti2Image(numbers().T, affine), tmp_path / "two.nii.gz")
    image, geometry = read_image(tmp_path / "two.nii.gz")
    np.testing.assert_array_equal(image[0], numbers())
    np.testing.assert_allclose(geometry.spacing, (3.0, 1.0, 0.8))
    bare = nibabel.Nifti1Image(numbers().T, affine)
    bare.set_sform(None, code=0)
    bare.set_qform(None, code=0)
    nibabel.save(bare, tmp_path / "bare.nii.gz")
    assert read_image(tmp_path / "bare.nii.gz")[1].direction == (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_vector_images_become_channels(tmp_path: Path, ending: str) -> None:
    image = sitk.GetImageFromArray(numbers((*SHAPE, 3), np.float32), isVector=True)
    sitk.WriteImage(image, str(tmp_path / f"a{ending}"))
    found, geometry = read_image(tmp_path / f"a{ending}")
    np.testing.assert_array_equal(found, np.moveaxis(numbers((*SHAPE, 3)), -1, 0))
    assert geometry.shape == SHAPE


def test_rgb_nifti_becomes_three_channels(tmp_path: Path) -> None:
    colours = numbers((*SHAPE[::-1], 3), np.uint8).view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    nibabel.save(nibabel.Nifti1Image(colours, np.eye(4)), tmp_path / "rgb.nii.gz")
    found, _ = read_image(tmp_path / "rgb.nii.gz")
    expected = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "rgb.nii.gz")))
    np.testing.assert_array_equal(found, np.moveaxis(expected, -1, 0))


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_two_dimensional_files(tmp_path: Path, ending: str) -> None:
    image = sitk.GetImageFromArray(numbers((6, 5)))
    image.SetSpacing((0.5, 0.7))
    image.SetOrigin((3.0, -4.0))
    sitk.WriteImage(image, str(tmp_path / f"a{ending}"))
    found, geometry = read_image(tmp_path / f"a{ending}")
    np.testing.assert_array_equal(found, numbers((1, 1, 6, 5)))
    assert geometry.dimensions == 2 and read_geometry(tmp_path / f"a{ending}") == geometry
    np.testing.assert_allclose(geometry.spacing, (1.0, 0.7, 0.5), atol=1e-6)
    write_labels(tmp_path / f"l{ending}", np.ones((1, 6, 5), np.uint8), geometry)
    assert read_geometry(tmp_path / f"l{ending}").difference(geometry) is None
    assert sitk.ReadImage(str(tmp_path / f"l{ending}")).GetDimension() == 2


def test_four_dimensions(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(numbers((2, *SHAPE)).T, np.eye(4)), tmp_path / "two.nii.gz")
    nibabel.save(nibabel.Nifti1Image(numbers((1, *SHAPE)).T, np.eye(4)), tmp_path / "one.nii.gz")
    np.testing.assert_array_equal(read_image(tmp_path / "one.nii.gz")[0], numbers((1, *SHAPE)))
    for read in (read_image, read_labels):
        with pytest.raises(ImageError, match=r"two.nii.gz: is 4D, 2 volumes of 5 x 6 x 4 .*ID_0000, ID_0001"):
            read(tmp_path / "two.nii.gz")
    case = Case(identifier="a", frames=("a",), images=((tmp_path / "two.nii.gz",),))
    plain = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "organ": 1}, "file_ending": ".nii.gz"}
    image, geometry = read_case(case, parse_description(plain, name="D"))
    np.testing.assert_array_equal(image, numbers((2, *SHAPE)))
    assert geometry.shape == SHAPE
    sitk.WriteImage(sitk.GetImageFromArray(numbers((2, *SHAPE)), isVector=False), str(tmp_path / "two.nrrd"))
    with pytest.raises(ImageError, match=r"two.nrrd: is 4D"):
        read_image(tmp_path / "two.nrrd")
    nibabel.save(nibabel.Nifti1Image(np.zeros((2, 3, 4, 5, 6)), np.eye(4)), tmp_path / "five.nii.gz")
    with pytest.raises(ImageError, match=r"has 5 axes \(2 x 3 x 4 x 5 x 6\)"):
        read_image(tmp_path / "five.nii.gz")


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd"])
def test_complex_voxels_are_refused(tmp_path: Path, ending: str) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(numbers(kind=np.complex64)), str(tmp_path / f"a{ending}"))
    with pytest.raises(ImageError, match=r"complex voxels. Save the magnitude"):
        read_image(tmp_path / f"a{ending}")


def test_not_a_number_is_read_as_it_is(tmp_path: Path) -> None:
    array = numbers()
    array[0, 0, :2] = (np.nan, np.inf)
    raw_data.write_volume(tmp_path / "a.nii.gz", array)
    np.testing.assert_array_equal(read_image(tmp_path / "a.nii.gz")[0][0], array)


def test_a_gzip_name_on_uncompressed_content_is_read(tmp_path: Path) -> None:
    raw_data.write_volume(tmp_path / "a.nii.gz", numbers())
    content = gzip.decompress((tmp_path / "a.nii.gz").read_bytes())
    (tmp_path / "a.nii.gz").write_bytes(content)
    np.testing.assert_array_equal(read_image(tmp_path / "a.nii.gz")[0][0], numbers())


def write_gipl(path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(numbers(kind=np.int16)), str(path))


def write_spaceless_nrrd(path: Path) -> None:
    header = "NRRD0004\ntype: short\ndimension: 3\nsizes: 5 6 4\nspacings: 0.8 1 3\nencoding: raw\nendian: little\n\n"
    path.write_bytes(header.encode() + numbers(kind="<i2").tobytes())


def write_mgh_without_directions(path: Path) -> None:
    image = nibabel.MGHImage(numbers(kind=np.int16).T, np.diag([1.0, 1.0, 3.0, 1.0]))
    image.header["goodRASFlag"] = 0
    image.to_filename(path)


def write_nifti_without_forms(path: Path, kind: type = nibabel.Nifti1Image) -> None:
    header = kind.header_class()
    header["pixdim"][1:4] = (0.8, 1.0, 3.0)
    nibabel.save(kind(numbers(kind=np.int16).T, None, header), path)


def write_nifti2_without_forms(path: Path) -> None:
    write_nifti_without_forms(path, nibabel.Nifti2Image)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.gipl", write_gipl),
        ("a.nrrd", write_spaceless_nrrd),
        ("a.mgz", write_mgh_without_directions),
        ("a.nii", write_nifti_without_forms),
        ("b.nii.gz", write_nifti2_without_forms),
    ],
)
def test_files_that_do_not_say_where_their_axes_point(tmp_path: Path, name: str, write: Any) -> None:
    write(tmp_path / name)
    image, geometry = read_image(tmp_path / name)
    assert image.shape == (1, *SHAPE)
    assert not geometry.oriented and geometry.axes is None
    assert read_geometry(tmp_path / name) == geometry


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha", ".mgz"])
def test_files_that_say_where_their_axes_point(tmp_path: Path, ending: str) -> None:
    geometry = raw_data.oblique_geometry(SHAPE)
    write_labels(tmp_path / f"a{ending}", numbers(kind=np.int16), geometry)
    assert read_geometry(tmp_path / f"a{ending}").axes == geometry.axes == "LPS"


@pytest.mark.parametrize("slope", [1.00001526, 0.5 / 32767 * 3])
def test_labels_that_were_stored_with_a_scale_are_labels(tmp_path: Path, slope: float) -> None:
    """nibabel scales float labels into integers; 1 comes back as 1.00001526."""
    labels = np.arange(24).reshape(2, 3, 4) % 4
    image = nibabel.Nifti1Image(np.rint(labels.T / slope).astype(np.int32), np.eye(4))
    image.header.set_slope_inter(slope, 0)
    nibabel.save(image, tmp_path / "x.nii.gz")
    assert np.array_equal(read_labels(tmp_path / "x.nii.gz")[0], labels)


def test_fractions_are_no_labels_and_are_printed_as_they_are(tmp_path: Path) -> None:
    labels = np.full((2, 3, 4), 1.002, np.float32)
    nibabel.save(nibabel.Nifti1Image(labels.T, np.eye(4)), tmp_path / "x.nii.gz")
    with pytest.raises(ImageError, match=r"there is 1\.002"):
        read_labels(tmp_path / "x.nii.gz")


@pytest.mark.parametrize("unit, factor", [("mm", 1.0), ("micron", 1e-3), ("meter", 1e3), ("unknown", 1.0)])
@pytest.mark.parametrize("sheared", [False, True])
def test_units_of_length_count_on_every_grid(tmp_path: Path, unit: str, factor: float, sheared: bool) -> None:
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    affine[0, 2] = 0.5 * sheared
    image = nibabel.Nifti1Image(np.zeros((4, 3, 2), np.uint8), affine)
    image.header.set_xyzt_units(unit)
    nibabel.save(image, tmp_path / "x.nii.gz")
    assert read_geometry(tmp_path / "x.nii.gz").spacing[1:] == pytest.approx((3.0 * factor, 2.0 * factor))


def test_negative_voxel_sizes_turn_an_axis_round(tmp_path: Path) -> None:
    content = bytearray(nibabel.Nifti1Image(np.zeros((4, 3, 2), np.uint8), None).to_bytes())
    content[76:92] = np.array([1, -2, 3, 4], "<f4").tobytes()
    content[252:256] = bytes(4)
    (tmp_path / "x.nii").write_bytes(bytes(content))
    geometry = read_geometry(tmp_path / "x.nii")
    assert geometry.spacing == (4.0, 3.0, 2.0) and not geometry.oriented
    itk = sitk.ReadImage(str(tmp_path / "x.nii"))
    ends = itk.TransformIndexToPhysicalPoint((3, 2, 1))
    assert np.allclose((geometry.affine @ (3, 2, 1, 1))[:3], ends)
