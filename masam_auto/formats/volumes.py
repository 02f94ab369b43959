"""Volumes: NIfTI, NRRD, MetaImage, GIPL and MGH files as arrays with their geometry, and label files of these kinds.

The geometry of a NIfTI file is ITK's (as in ITK-SNAP, 3D Slicer and nnU-Net). nibabel's is used only for sheared grids
and files that ITK refuses. NIfTI voxels are decompressed here, because ITK silently fills the missing part of a
truncated file with zeros.
"""

import contextlib
import gzip
import io
import math
import re
import zlib
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK as sitk
from nibabel.arrayproxy import ArrayProxy
from nibabel.spatialimages import SpatialImage

from masam_auto.core.atomic import atomic_path, write_bytes
from masam_auto.core.errors import ImageError, OutputError
from masam_auto.core.file_names import utf8_name
from masam_auto.core.geometry import Geometry
from masam_auto.formats.apart import read_apart
from masam_auto.formats.headers import CHECKS, check_file
from masam_auto.formats.raw_image import RawImage, check_room

sitk.ProcessObject.SetGlobalWarningDisplay(False)

LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
SHEAR_TOLERANCE = 1e-3
LARGEST_STEP = 0.1  # of a scale slope that rounding can explain; labels with larger steps were chosen on purpose
GZIP = b"\x1f\x8b"
GZIP_LEVEL = 5
"""Label volumes compress to within a few per cent of level 9's size in a fraction of the time."""

MILLIMETRES = {"meter": 1e3, "micron": 1e-3}
"""By a NIfTI file's unit of length; without one it is millimetres."""

PLACE_FIELDS = (
    *("qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("sform_code", "srow_x", "srow_y", "srow_z", "xyzt_units", "descrip"),
)
"""Fields of a NIfTI header that give, with the voxel sizes, the position of an image, and its description."""

TRAILING_BYTES = 1 << 20
"""At most this much is read after the voxels: some programs append data."""

MGH_HEADER_BYTES = 284
MGH_DIRECTIONS = slice(28, 30)
"""The bytes of an MGH file (goodRASFlag) that say whether it has directions."""

DETACHED_HEADERS = {".mhd": ".mha", ".nhdr": ".nrrd"}
"""Endings of separate headers, and the single-file form of the same format, whose readers take both."""


def read_itk(path: Path) -> RawImage:
    """Read a file with SimpleITK. Raises ImageError for complex voxels, more than four axes, damage."""
    if path.suffix.lower() in CHECKS:
        check_file(path)
    return read_apart("itk", path)


def decode_itk(path: Path) -> RawImage:
    """Like `read_itk`, in this process, for a file with a checked header."""
    image = sitk.ReadImage(utf8_name(path))
    if "complex" in image.GetPixelIDTypeAsString():
        raise complex_error(path)
    array = sitk.GetArrayFromImage(image)
    components = image.GetNumberOfComponentsPerPixel() > 1
    dimensions = image.GetDimension()
    if dimensions > (3 if components else 4):
        raise axes_error(path, image.GetSize())
    if components:
        array = np.moveaxis(array, -1, 0)
    elif dimensions < 4:
        array = array[None]
    if dimensions == 2:
        array = array[:, None]
    series = dimensions == 4 and array.shape[0] > 1
    return RawImage(array=array, geometry=_from_itk(path, image), is_series=series)


def read_itk_geometry(path: Path) -> Geometry:
    """Read only the header with SimpleITK. Raises like `read_itk`."""
    if path.suffix.lower() in CHECKS:
        CHECKS[path.suffix.lower()](path)
    return read_apart("itk_header", path).geometry


def decode_itk_header(path: Path) -> RawImage:
    """Only the geometry, without voxels, in this process, for a file with a checked header."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(utf8_name(path))
    reader.ReadImageInformation()
    return RawImage(array=np.zeros(0, np.uint8), geometry=_from_itk(path, reader))


def read_nifti(path: Path) -> RawImage:
    """Read NIfTI-1 or NIfTI-2, compressed or not.

    RGB and vector files become channels. Raises ImageError for truncated or damaged data and complex voxels.
    """
    header = _nifti_header(path, check=True)
    content = _read_whole(path, int(header["vox_offset"]) + _data_bytes(path, header))
    image = _nifti_class(path, content).from_bytes(content)
    proxy = image.dataobj
    assert isinstance(proxy, ArrayProxy)
    stored = np.asanyarray(proxy.get_unscaled())
    if stored.dtype.kind == "c":
        raise complex_error(path)
    array, series = _channels_first(path, stored)
    scale = (float(proxy.slope), float(proxy.inter))
    if scale != (1.0, 0.0):
        array = _scaled(array, *scale)
    step = 0.0 if scale == (1.0, 0.0) else min(abs(scale[0]), LARGEST_STEP)
    return RawImage(array=array, geometry=_nifti_geometry(path, image.header), is_series=series, step=step)


def read_nifti_geometry(path: Path) -> Geometry:
    """Read only the header of a NIfTI file."""
    return _nifti_geometry(path, _nifti_header(path, check=True))


def read_mgh(path: Path) -> RawImage:
    """Read FreeSurfer's .mgh or .mgz."""
    with nibabel.openers.ImageOpener(str(path)) as file:
        header = nibabel.freesurfer.mghformat.MGHHeader(file.read(MGH_HEADER_BYTES), check=False)
    content = _read_whole(path, MGH_HEADER_BYTES + _data_bytes(path, header))
    image = nibabel.MGHImage.from_bytes(content)
    array, series = _channels_first(path, np.asanyarray(image.dataobj))
    return RawImage(array=array, geometry=_mgh_geometry(image, content), is_series=series)


def read_mgh_geometry(path: Path) -> Geometry:
    """Read only the header of a .mgh or .mgz file."""
    with nibabel.openers.ImageOpener(str(path)) as file:
        return _mgh_geometry(_header(path), file.read(MGH_DIRECTIONS.stop))


def write_nifti(path: Path, labels: np.ndarray, geometry: Geometry, like: Path | None = None) -> None:
    """Write labels (Z, Y, X) as NIfTI-1, atomically.

    Both forms, their codes, the units and the description are copied from the NIfTI file `like`, whose grid must be
    that of the labels. Without it, both forms describe `geometry`, or neither if it is unknown; shear is kept.
    """
    array = labels[0].T if geometry.dimensions == 2 else labels.T
    image = nibabel.Nifti1Image(array, None)
    header = image.header
    if like is None:
        header.set_xyzt_units("mm")
        header["pixdim"][:4] = 1, *geometry.spacing[::-1]
        somewhere = geometry.oriented or not np.array_equal(geometry.affine, np.diag([*geometry.spacing[::-1], 1.0]))
        affine = LPS_FROM_RAS @ geometry.affine if somewhere else None
        header.set_sform(affine, code="scanner" if somewhere else "unknown")
        header.set_qform(affine, code="scanner" if somewhere else "unknown", strip_shears=True)
    else:
        source = _nifti_header(like, check=False)  # unchanged: nibabel would correct what it considers mistakes
        header["pixdim"][:4] = source["pixdim"][:4]
        for name in PLACE_FIELDS:
            header[name] = source[name]
    write_bytes(path, _compressed(path, image.to_bytes(), ".gz"))


def write_mgh(path: Path, labels: np.ndarray, geometry: Geometry) -> None:
    """Write labels (Z, Y, X) as .mgh or .mgz, atomically."""
    array = labels if labels.dtype == np.uint8 else labels.astype(np.int32)
    image = nibabel.MGHImage(array.T, LPS_FROM_RAS @ geometry.affine)
    write_bytes(path, _compressed(path, image.to_bytes(), ".mgz"))


def write_itk(path: Path, labels: np.ndarray, geometry: Geometry) -> None:
    """Write labels (Z, Y, X) compressed with SimpleITK, atomically; .mhd and .nhdr contain their data themselves.

    Raises:
        OutputError: the disk is full.
    """
    flat = geometry.dimensions == 2
    image = sitk.GetImageFromArray(labels[0] if flat else labels)
    direction = np.reshape(geometry.direction, (3, 3))
    image.SetSpacing(geometry.spacing[:0:-1] if flat else geometry.spacing[::-1])
    image.SetOrigin(geometry.origin[:2] if flat else geometry.origin)
    image.SetDirection(direction[:2, :2].ravel().tolist() if flat else geometry.direction)
    with atomic_path(path) as temporary:
        written = temporary.with_suffix(DETACHED_HEADERS.get(path.suffix.lower(), path.suffix))
        try:
            sitk.WriteImage(image, utf8_name(written), useCompression=True)
            written.replace(temporary)
        except RuntimeError as error:
            raise OutputError(
                f"cannot write {path}: {itk_cause(error)}. Is the disk full? An existing file has not been changed."
            ) from error
        finally:
            if written != temporary:
                written.unlink(missing_ok=True)


def _read_whole(path: Path, size: int) -> bytes:
    """The first bytes of a file, decompressed if it is gzip, and a little of what follows.

    Raises:
        ImageError: the gzip data is damaged, or cannot be so large.
        MemoryError: the data does not fit in memory.
    """
    check_room(path, size)
    try:
        with _opened(path) as file:
            content: bytes = file.read(size + TRAILING_BYTES)  # up to the end, where gzip has its checksum
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _damaged(path, error) from error
    return content


def _opened(path: Path) -> gzip.GzipFile | io.BufferedReader:
    """Open the file, decompressed if its content is gzip, whatever its name."""
    with path.open("rb") as plain:
        packed = plain.read(2) == GZIP
    return gzip.open(path) if packed else path.open("rb")


def _data_bytes(path: Path, header: nibabel.Nifti1Header | nibabel.freesurfer.mghformat.MGHHeader) -> int:
    shape = [int(length) for length in header.get_data_shape()]
    if min(shape, default=0) < 0:
        raise ImageError(f"{path}: its header has a negative size ({shape}). It is damaged; copy or download it again.")
    return math.prod(shape) * header.get_data_dtype().itemsize


def _damaged(path: Path, error: Exception) -> ImageError:
    return ImageError(
        f"{path}: the compressed data is truncated or damaged ({error}). Copy or download the file again."
    )


def complex_error(path: Path) -> ImageError:
    """The error for a file with complex voxels."""
    return ImageError(f"{path}: has complex voxels. Save the magnitude (or the phase) as real numbers.")


def axes_error(path: Path, size: tuple[int, ...]) -> ImageError:
    """The error for a file with too many axes; `size` is in the file's order."""
    shape = " x ".join(str(n) for n in size)
    return ImageError(
        f"{path}: has {len(size)} axes ({shape}), but one volume is expected. Split it into one file per channel "
        "(ID_0000, ID_0001, ...) or per time point."
    )


def itk_cause(error: RuntimeError) -> str:
    """The useful part of an ITK message, in one line."""
    text = re.sub(r"\w+\(0x[0-9a-f]+\): ", "", str(error).rpartition("ERROR:")[2])  # an object's address
    line = " ".join(part.strip() for part in text.splitlines() if part.strip())
    return line if len(line) <= 200 else line[:197] + "..."


def _header(path: Path) -> SpatialImage:
    image = nibabel.load(path)  # does not read the voxels
    assert isinstance(image, SpatialImage)
    return image


def _nifti_header(path: Path, *, check: bool) -> nibabel.Nifti1Header:
    """The header, compressed or not, whatever the file's name. Raises ImageError."""
    try:
        with _opened(path) as file:
            start = file.read(nibabel.Nifti2Header.sizeof_hdr)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _damaged(path, error) from error
    kind = _nifti_class(path, start).header_class
    return kind(start[: kind.sizeof_hdr], check=check)


def _nifti_class(path: Path, content: bytes) -> type[nibabel.Nifti1Image]:
    start = content[:4]
    for size, kind in ((348, nibabel.Nifti1Image), (540, nibabel.Nifti2Image)):
        if start in (size.to_bytes(4, "little"), size.to_bytes(4, "big")):
            return kind
    raise ImageError(f"{path}: is not a NIfTI file despite its name. Replace it, or correct the file's ending.")


def _channels_first(path: Path, stored: np.ndarray) -> tuple[np.ndarray, bool]:
    """Turn nibabel's (X, Y, Z, T, C), or fewer axes, into (C, Z, Y, X); also whether C counts a 4D file's volumes."""
    size = stored.shape
    if stored.dtype.fields is not None:  # RGB and RGBA voxels
        names = [name for name in stored.dtype.names or () if name != "A"]
        stored = np.stack([stored[name] for name in names], axis=-1).reshape(*size, *[1] * (4 - len(size)), len(names))
    while stored.ndim > 3 and stored.shape[-1] == 1:
        stored = stored[..., 0]
    array = stored.T
    if array.ndim in (2, 3):
        return array.reshape(1, *[1] * (3 - array.ndim), *array.shape), False
    if array.ndim == 4:
        return array, True
    if array.ndim == 5 and array.shape[1] == 1:
        return array[:, 0], False
    raise axes_error(path, size)


def _scaled(array: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    """float32 of slope * array + intercept, computed in float64 like ITK, one slice at a time to save memory."""
    result = np.empty(array.shape, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for index in np.ndindex(array.shape[:2]):
            result[index] = array[index].astype(np.float64) * slope + intercept
    return result


def _nifti_geometry(path: Path, header: nibabel.Nifti1Header) -> Geometry:
    oriented = int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0
    sheared = int(header["sform_code"]) > 0 and _is_sheared(header.get_sform())
    if not sheared and not isinstance(header, nibabel.Nifti2Header):  # ITK does not read NIfTI-2
        with contextlib.suppress(RuntimeError):  # a q-form that ITK cannot make orthonormal
            reader = sitk.ImageFileReader()
            reader.SetImageIO("NiftiImageIO")
            reader.SetFileName(utf8_name(path))
            reader.ReadImageInformation()
            return replace(_from_itk(path, reader), oriented=oriented)
    # ITK always gives millimetres, whatever the file's unit
    to_mm = MILLIMETRES.get(header.get_xyzt_units()[0], 1.0)
    affine = np.diag([to_mm, to_mm, to_mm, 1.0]) @ header.get_best_affine()
    return replace(_from_affine(affine, header.get_data_shape()), oriented=oriented)


def _mgh_geometry(image: SpatialImage, start: bytes) -> Geometry:
    """nibabel ignores the flag in the file's first bytes that says that it has no directions."""
    return replace(_from_affine(image.affine, image.shape), oriented=any(start[MGH_DIRECTIONS]))


def _is_sheared(affine: np.ndarray) -> bool:
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not lengths.all():
        return False
    unit = affine[:3, :3] / lengths
    return bool(np.abs(unit.T @ unit - np.eye(3)).max() > SHEAR_TOLERANCE)


def _from_affine(affine: np.ndarray, size: tuple[int, ...]) -> Geometry:
    """Geometry from nibabel's voxel-to-RAS matrix; `size` starts (X, Y, Z)."""
    matrix = LPS_FROM_RAS @ affine
    lengths = np.linalg.norm(matrix[:3, :3], axis=0)
    if not lengths.all():
        raise ImageError("the header's orientation matrix has a zero column; correct the header")
    x, y, z = (*(int(n) for n in size[:3]), 1)[:3]
    return Geometry(
        shape=(z, y, x),
        spacing=(float(lengths[2]), float(lengths[1]), float(lengths[0])),
        origin=(float(matrix[0, 3]), float(matrix[1, 3]), float(matrix[2, 3])),
        direction=tuple((matrix[:3, :3] / lengths).ravel().tolist()),
        dimensions=2 if len(size) == 2 else 3,
    )


def _from_itk(path: Path, source: sitk.Image | sitk.ImageFileReader) -> Geometry:
    """Geometry from ITK's header; a picture's third axis gets spacing 1."""
    dimensions = source.GetDimension()
    flat = dimensions == 2
    x, y, z = (*source.GetSize(), 1)[:3]
    spacing = (*source.GetSpacing(), 1.0)[:3]
    direction = np.eye(3)
    kept = min(dimensions, 3)
    direction[:kept, :kept] = np.reshape(source.GetDirection(), (dimensions, dimensions))[:kept, :kept]
    # Analyze and SPM wrote negative voxel sizes for reversed axes
    direction = direction * np.where(np.less(spacing, 0), -1.0, 1.0)
    spacing = tuple(abs(length) for length in spacing)
    return Geometry(
        shape=(z, y, x),
        spacing=(spacing[2], spacing[1], spacing[0]),
        origin=(*source.GetOrigin()[:2], 0.0) if flat else source.GetOrigin()[:3],
        direction=tuple(direction.ravel().tolist()),
        dimensions=2 if flat else 3,
        oriented=_says_where_axes_point(path, source),
    )


def _says_where_axes_point(path: Path, source: sitk.Image | sitk.ImageFileReader) -> bool:
    """ITK returns the identity for a NRRD file without a space, and for GIPL, whose directions it does not read."""
    if path.suffix.lower() in (".nrrd", ".nhdr"):
        return "NRRD_space" in source.GetMetaDataKeys()
    return path.suffix.lower() != ".gipl"


def _compressed(path: Path, content: bytes, ending: str) -> bytes:
    if not path.name.lower().endswith(ending):
        return content
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=GZIP_LEVEL, filename="", mtime=0) as stream:
        stream.write(content)
    return packed.getvalue()
