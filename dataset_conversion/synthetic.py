"""A made-up, CT-like data set in the raw format, for the demo and for tests without real data.

Each scan shows a torso of about 6 cm with liver, spleen, two kidneys, aorta and a small liver lesion, and unlabelled
structures (spine, vena cava, stomach with its gas). Shapes are formulas in patient coordinates, bent by a smooth random
displacement. A voxel's label is the structure at its centre, so the reference is exact on any grid. Scans differ in
contrast, noise and slice direction, and one in four in spacing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from masam_auto.core.atomic import atomic_path
from masam_auto.core.geometry import Geometry, Triple
from masam_auto.core.jsonio import write_json

LABELS = {"background": 0, "liver": 1, "spleen": 2, "kidney_left": 3, "kidney_right": 4, "aorta": 5, "lesion": 6}
FILE_ENDING = ".nii.gz"
FIELD_OF_VIEW: Triple = (69.0, 58.0, 64.0)
USUAL_SPACING: Triple = (3.0, 0.9, 0.9)
OTHER_SPACINGS: tuple[Triple, ...] = ((2.5, 0.8, 0.8), (4.0, 1.0, 1.0))


@dataclass(frozen=True, kw_only=True, slots=True)
class SyntheticCase:
    """One scan: `image` int16 (Z, Y, X) in HU, `labels` uint8 (Z, Y, X), and the grid of both."""

    image: np.ndarray
    labels: np.ndarray
    geometry: Geometry


@dataclass(frozen=True, kw_only=True, slots=True)
class _Anatomy:
    """Random properties of one patient. Coordinates are mm in LPS: x to the left, y to the back, z to the head."""

    size: float
    bend: np.ndarray
    liver: np.ndarray
    spleen: np.ndarray
    kidneys: np.ndarray
    aorta: np.ndarray
    lesion: np.ndarray
    lesion_radii: np.ndarray
    has_lesion: bool


def write_synthetic_dataset(
    raw_folder: Path, *, number: int = 999, name: str = "Demo", cases: int = 20, test_cases: int = 5, seed: int = 1
) -> Path:
    """Write a data set: imagesTr, labelsTr, imagesTs, labelsTs (for evaluation) and, last, dataset.json.

    A case depends only on the seed and its number, not on the number of cases. Every sixth training case has no lesion;
    all test cases have one.

    Args:
        raw_folder: the root of raw data sets.
        number: number of the data set.
        name: name of the data set.
        cases: training cases.
        test_cases: held-out cases.
        seed: random seed.

    Returns:
        The folder of the data set, raw_folder/DatasetXXX_Name.

    Raises:
        OutputError: the folder is not writable or the disk is full.

    Example:
        >>> from dataset_conversion.synthetic import write_synthetic_dataset
        >>> folder = write_synthetic_dataset(Path("made_up"), cases=1, test_cases=0)
        >>> folder.name, sorted(path.name for path in folder.iterdir())
        ('Dataset999_Demo', ['dataset.json', 'imagesTr', 'labelsTr'])
    """
    folder = Path(raw_folder) / f"Dataset{number:03d}_{name}"
    for split, count in (("Tr", cases), ("Ts", test_cases)):
        for index in range(count):
            generator = np.random.default_rng([seed, split == "Ts", index])
            spacing = OTHER_SPACINGS[index // 4 % len(OTHER_SPACINGS)] if index % 4 == 3 else USUAL_SPACING
            case = make_case(generator, spacing=spacing, has_lesion=split == "Ts" or index % 6 != 5)
            identifier = f"{name.lower()}_{'t' if split == 'Ts' else ''}{index:03d}"
            _write(folder / f"images{split}" / f"{identifier}_0000{FILE_ENDING}", case.image, case.geometry)
            _write(folder / f"labels{split}" / f"{identifier}{FILE_ENDING}", case.labels, case.geometry)
    description = {
        "channel_names": {"0": "CT"},
        "labels": LABELS,
        "numTraining": cases,
        "file_ending": FILE_ENDING,
        "name": name,
        "description": f"made up by masam_auto, seed {seed}",
        "licence": "CC0",
    }
    write_json(folder / "dataset.json", description)
    return folder


def make_case(
    generator: np.random.Generator, *, spacing: Triple = USUAL_SPACING, has_lesion: bool = True
) -> SyntheticCase:
    """Scan a new patient.

    Args:
        generator: source of every random draw.
        spacing: grid spacing in mm (Z, Y, X). The field of view stays the same.
        has_lesion: whether the liver has a lesion.
    """
    anatomy = _draw_anatomy(generator, has_lesion=has_lesion)
    geometry = _draw_geometry(generator, spacing)
    labels, densities = _fill(anatomy, _patient_coordinates(geometry), generator)
    return SyntheticCase(image=_scan(densities, spacing, generator), labels=labels, geometry=geometry)


def _draw_anatomy(generator: np.random.Generator, *, has_lesion: bool) -> _Anatomy:
    def jitter(centre: Triple, amount: float) -> np.ndarray:
        return np.asarray(centre) + generator.uniform(-amount, amount, 3)

    liver = jitter((-11.0, -2.0, 9.0), 1.5)
    direction = generator.normal(size=3)
    depth = generator.uniform(0.2, 0.5) / np.linalg.norm(direction)
    return _Anatomy(
        size=generator.uniform(0.93, 1.07),
        bend=np.stack([generator.uniform(-1, 1, (6, 3)), generator.uniform(0, 2 * np.pi, (6, 3))]),
        liver=liver,
        spleen=jitter((16.0, 7.0, 11.0), 1.5),
        kidneys=np.stack([jitter((11.5, 8.5, -10.0), 1.3), jitter((-11.5, 8.5, -14.0), 1.3)]),
        aorta=np.array([*generator.uniform(-0.8, 0.8, 2), generator.uniform(2.9, 3.6)]),
        lesion=liver + direction * depth * np.array([11.0, 10.0, 11.0]),
        lesion_radii=generator.uniform(4.2, 5.6) * generator.uniform(0.9, 1.1, 3),
        has_lesion=has_lesion,
    )


def _draw_geometry(generator: np.random.Generator, spacing: Triple) -> Geometry:
    """A grid over the field of view, tilted by a few degrees like an oblique scan."""
    shape = tuple(round(extent / step) for extent, step in zip(FIELD_OF_VIEW, spacing, strict=True))
    direction = _rotation(np.deg2rad(generator.uniform(-8, 8, 3)))
    reach = (np.array(shape[::-1]) - 1) * np.array(spacing[::-1])
    origin = generator.uniform(-1.5, 1.5, 3) - direction @ (reach / 2)
    return Geometry(
        shape=(shape[0], shape[1], shape[2]),
        spacing=spacing,
        origin=(float(origin[0]), float(origin[1]), float(origin[2])),
        direction=tuple(direction.ravel().tolist()),
    )


def _rotation(angles: np.ndarray) -> np.ndarray:
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def _patient_coordinates(geometry: Geometry) -> np.ndarray:
    """(3, Z, Y, X) float64 x, y, z in mm of every voxel's centre."""
    z, y, x = np.indices(geometry.shape, dtype=np.float64)
    affine = geometry.affine
    return np.einsum("ij,jzyx->izyx", affine[:3, :3], np.stack([x, y, z])) + affine[:3, 3, None, None, None]


def _bent(points: np.ndarray, anatomy: _Anatomy) -> np.ndarray:
    """Move points by a smooth displacement of about 1.5 mm, so that no organ is a plain ellipsoid."""
    moved = points / anatomy.size
    waves = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1], [1, 0, 1]]) * (2 * np.pi / 32.0)
    shift = np.zeros_like(moved)
    for wave, amplitude, phase in zip(waves, *anatomy.bend, strict=True):
        angle = np.tensordot(wave, moved, axes=1)
        shift += amplitude[:, None, None, None] * np.sin(angle[None] + phase[:, None, None, None])
    return moved + shift


def _fill(anatomy: _Anatomy, points: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Labels uint8 and mean densities in HU, both (Z, Y, X). Later structures lie on top of earlier ones."""
    p = _bent(points, anatomy)
    labels = np.zeros(p.shape[1:], dtype=np.uint8)
    densities = np.full(p.shape[1:], -1000.0)
    contrast = generator.uniform(0.85, 1.15)

    def paint(inside: np.ndarray, density: float, spread: float, label: str = "background") -> None:
        densities[inside] = density + generator.normal(0, spread)
        labels[inside] = LABELS[label]

    body = _ellipsoid(p, (0, 0, 0), (28.5, 23.5, 1e3))
    paint(body < 1, -95, 6)
    paint(_ellipsoid(p, (0, 0, 0), (26.0, 21.0, 1e3)) < 1, 42, 4)
    paint(_ellipsoid(p, (9, -9, 8), (8, 6, 9)) < 1, 18, 5)  # stomach ...
    paint((_ellipsoid(p, (9, -9, 8), (8, 6, 9)) < 0.9) & (p[1] < -11), -820, 30)  # ... its gas rises to the front
    spine = _ellipsoid(p, (0, 14, 0), (5, 4.5, 1e3)) < 1
    paint(spine, 330, 25)
    paint(spine & (np.abs((p[2] % 10.0) - 5.0) > 4.0), 95, 8)  # discs
    paint(_ellipsoid(p, (-4.2, 7, 0), (2.6, 2.2, 1e3)) < 1, 125 * contrast, 6)  # vena cava
    for paint_organ in (_paint_liver, _paint_spleen, _paint_kidneys, _paint_aorta):
        paint_organ(anatomy, p, contrast, paint)
    return labels, densities


Paint = Callable[..., None]


def _paint_liver(anatomy: _Anatomy, p: np.ndarray, contrast: float, paint: Paint) -> None:
    right = _ellipsoid(p, anatomy.liver, (12.5, 12.5, 13.5))
    left = _ellipsoid(p, anatomy.liver + np.array([10.0, -8.0, 3.0]), (10.0, 6.0, 7.5))
    liver = np.minimum(right, left)
    paint(liver < 1, 105 * contrast, 5, "liver")
    if anatomy.has_lesion:
        # Kept inside the liver: outside it, a lesion would have no visible border.
        lesion = _ellipsoid(p, anatomy.lesion, anatomy.lesion_radii)
        paint((lesion < 1) & (liver < 0.95), 5, 5, "lesion")


def _paint_spleen(anatomy: _Anatomy, p: np.ndarray, contrast: float, paint: Paint) -> None:
    dent = _ellipsoid(p, anatomy.spleen + np.array([-7.0, -4.0, 0.0]), (6.5, 6.0, 12.0))
    paint((_ellipsoid(p, anatomy.spleen, (6.5, 9.0, 9.5)) < 1) & (dent > 1), 118 * contrast, 5, "spleen")


def _paint_kidneys(anatomy: _Anatomy, p: np.ndarray, contrast: float, paint: Paint) -> None:
    for centre, inward, label in zip(anatomy.kidneys, (-1, 1), ("kidney_left", "kidney_right"), strict=True):
        kidney = _ellipsoid(p, centre, (6.0, 6.5, 11.0))
        hilum = _ellipsoid(p, centre + np.array([6.0 * inward, -1.0, 0.0]), (3.5, 3.0, 4.5))
        paint((kidney < 1) & (hilum > 1), 175 * contrast, 8, label)
        paint((kidney < 0.3) & (hilum > 1), 130 * contrast, 6, label)  # medulla: darker, part of the kidney


def _paint_aorta(anatomy: _Anatomy, p: np.ndarray, contrast: float, paint: Paint) -> None:
    x, y, radius = anatomy.aorta
    sway = 1.5 * np.sin(p[2] / 14.0 + 4.0 * x)
    paint((p[0] - 2.0 - x - sway) ** 2 + (p[1] - 6.5 - y) ** 2 < radius**2, 215 * contrast, 10, "aorta")


def _ellipsoid(p: np.ndarray, centre: np.ndarray | tuple, radii: np.ndarray | tuple) -> np.ndarray:
    """Below 1 inside an ellipsoid, growing with the squared distance from its centre."""
    offset = (p - np.reshape(np.asarray(centre, dtype=float), (3, 1, 1, 1))) / np.reshape(
        np.asarray(radii), (3, 1, 1, 1)
    )
    return np.einsum("izyx,izyx->zyx", offset, offset)


def _scan(densities: np.ndarray, spacing: Triple, generator: np.random.Generator) -> np.ndarray:
    """int16 HU: blur of the scanner and of partial volume, tissue texture, beam streaks, and quantum noise."""
    blurred = ndimage.gaussian_filter(densities, (0.35, 0.6 / spacing[1], 0.6 / spacing[2]))
    tissue = np.clip((blurred + 300) / 300, 0, 1)
    texture = ndimage.gaussian_filter(generator.normal(size=densities.shape), (0.6, 1.5, 1.5))
    noise = ndimage.gaussian_filter(generator.normal(size=densities.shape), (0, 0.5, 0.5))
    streaks = _streaks(densities.shape[1:], generator)
    level = generator.uniform(14, 24)
    noisy = blurred + tissue * (12 * texture / texture.std() + streaks) + level * noise / noise.std()
    return np.clip(np.rint(noisy), -1024, 3071).astype(np.int16)


def _streaks(shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    """(Y, X) HU: a few fine bands through the middle, as photon starvation draws them, and a cupping of the centre."""
    y, x = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    bands = np.zeros(shape)
    for angle in generator.uniform(0, np.pi, 4):
        across = x * np.cos(angle) + y * np.sin(angle)
        bands += generator.normal(0, 6) * np.exp(-((across / 0.06) ** 2))
    return bands + 8 * (x**2 + y**2)


def _write(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(geometry.spacing[::-1])
    image.SetOrigin(geometry.origin)
    image.SetDirection(geometry.direction)
    with atomic_path(path) as temporary:
        sitk.WriteImage(image, str(temporary), useCompression=True)
