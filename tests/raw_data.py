"""Tiny synthetic raw data sets in nnU-Net's format."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from PIL import Image

from masam_auto.core.geometry import Geometry

OBLIQUE = (0.9, -0.3, 0.1, 0.35, 0.88, -0.2, -0.05, 0.25, 0.95)
ORIGIN = (-31.5, 12.25, 40.75)
# By the value of the tag Orientation: what a camera stores of the (Y, X, ...) picture that is to be seen.
HELD: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: np.swapaxes(a, 0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(np.swapaxes(a, 0, 1), 2),
    8: lambda a: np.rot90(a, -1),
}


def oblique_direction() -> tuple[float, ...]:
    """Nine direction cosines (rows of an orthonormal 3 x 3 matrix) along no axis of the world."""
    left, _, right = np.linalg.svd(np.reshape(OBLIQUE, (3, 3)))
    return tuple(float(v) for v in (left @ right).ravel())


def oblique_geometry(shape: tuple[int, int, int]) -> Geometry:
    """The grid of `write_volume`, along no axis of the world."""
    return Geometry(shape=shape, spacing=(3.0, 1.0, 0.8), origin=ORIGIN, direction=oblique_direction())


def make_case(
    shape: tuple[int, int, int], *, channels: int, labels: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """An image float32 (C, Z, Y, X) and its labels uint8 (Z, Y, X).

    Zero outside an ellipsoid; inside, noise around 100 and, for class k, around 100 + 60 k in the first channel.
    Classes lie side by side along X, at a place that moves a little from case to case.
    """
    axes = [np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in shape]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    body = (z * 0.8) ** 2 + y**2 + x**2 < 0.95
    segmentation = np.zeros(shape, np.uint8)
    shift = generator.uniform(-0.08, 0.08, 3)
    for k in range(1, labels + 1):
        centre = -0.5 + (k - 0.5) / labels
        distance = ((z - shift[0]) / 0.8) ** 2 + ((y - shift[1]) / 0.45) ** 2 + ((x - centre - shift[2]) * labels) ** 2
        segmentation[(distance < 1) & body] = k
    image = np.zeros((channels, *shape), np.float32)
    for channel in range(channels):
        sign = 1 if channel % 2 == 0 else -1
        values = 100 + sign * 60 * segmentation.astype(np.float32) + generator.normal(0, 5, shape)
        image[channel] = np.where(body, values, 0)
    return image, segmentation


def make_raw_dataset(
    folder: Path,
    number: int = 1,
    name: str = "Toy",
    *,
    cases: int = 5,
    channels: int = 1,
    shape: tuple[int, int, int] = (6, 16, 14),
    spacing: tuple[float, float, float] = (3.0, 1.0, 0.8),
    labels: int = 2,
    regions: bool = False,
    ignore: bool = False,
    oblique: bool = True,
    channel_names: tuple[str, ...] | None = None,
    file_ending: str = ".nii.gz",
    test_cases: int = 0,
    seed: int = 0,
) -> Path:
    """Write DatasetXXX_Name into `folder` and return its path.

    Cases are called case_000, case_001, ...; every second one has one slice more, so that shapes differ.

    Args:
        folder: the root of raw data sets.
        number, name: of the data set.
        cases, test_cases: how many in imagesTr and imagesTs.
        channels: files a case (CT, MR, MR, ... unless `channel_names`).
        shape, spacing: (Z, Y, X), mm.
        labels: number of foreground classes.
        regions: declare nested regions ("whole" = all values, then one region for each value but the first).
        ignore: declare the value after the last class as ignore and mark the last slice with it.
        oblique: an oblique direction and an origin away from zero, else identity.
        channel_names: names in channel order.
        file_ending: of images and labels: .nii.gz, .nii, .nrrd, .mha.
        seed: of the content.
    """
    root = Path(folder) / f"Dataset{number:03d}_{name}"
    generator = np.random.default_rng(seed)
    for sub in ("imagesTr", "labelsTr", *(["imagesTs"] if test_cases else [])):
        (root / sub).mkdir(parents=True, exist_ok=True)
    for index in range(cases + test_cases):
        size = (shape[0] + index % 2, *shape[1:])
        image, segmentation = make_case(size, channels=channels, labels=labels, generator=generator)
        if ignore:
            segmentation[-1] = labels + 1
        training = index < cases
        identifier = f"case_{index:03d}" if training else f"test_{index - cases:03d}"
        for channel in range(channels):
            file = root / ("imagesTr" if training else "imagesTs") / f"{identifier}_{channel:04d}{file_ending}"
            write_volume(file, image[channel], spacing=spacing, oblique=oblique)
        if training:
            file = root / "labelsTr" / f"{identifier}{file_ending}"
            write_volume(file, segmentation, spacing=spacing, oblique=oblique)
    names = channel_names or ("CT", *["MR"] * (channels - 1))
    description: dict[str, Any] = {
        "channel_names": {str(i): text for i, text in enumerate(names)},
        "labels": _label_entry(labels, regions=regions, ignore=ignore),
        "numTraining": cases,
        "file_ending": file_ending,
    }
    if regions:
        description["regions_class_order"] = list(range(1, labels + 1))
    write_description(root, description)
    return root


def make_video_dataset(
    folder: Path,
    number: int = 2,
    name: str = "Clips",
    *,
    sequences: int = 2,
    frames: int = 4,
    shape: tuple[int, int] = (24, 20),
    colour: bool = True,
    seed: int = 0,
) -> Path:
    """Write a data set of PNG frames with a "sequences" entry, and return its path.

    Frames are called clip0_frame000, ...; a bright square wanders over a dark noisy ground.
    """
    root = Path(folder) / f"Dataset{number:03d}_{name}"
    generator = np.random.default_rng(seed)
    for sub in ("imagesTr", "labelsTr"):
        (root / sub).mkdir(parents=True, exist_ok=True)
    order: dict[str, list[str]] = {}
    for sequence in range(sequences):
        start = generator.integers(2, 6, 2)
        for frame in range(frames):
            identifier = f"clip{sequence}_frame{frame:03d}"
            order.setdefault(f"clip{sequence}", []).append(identifier)
            row, column = start + frame
            segmentation = np.zeros(shape, np.uint8)
            segmentation[row : row + 8, column : column + 7] = 1
            picture = generator.integers(0, 60, (*shape, 3)).astype(np.uint8)
            picture[segmentation == 1] += np.array([150, 100, 50], np.uint8)
            Image.fromarray(picture if colour else picture[..., 0]).save(root / "imagesTr" / f"{identifier}_0000.png")
            Image.fromarray(segmentation).save(root / "labelsTr" / f"{identifier}.png")
    names = ("R", "G", "B") if colour else ("ultrasound",)
    description = {
        "channel_names": {str(i): text for i, text in enumerate(names)},
        "labels": {"background": 0, "object": 1},
        "numTraining": sequences * frames,
        "file_ending": ".png",
        "sequences": order,
    }
    write_description(root, description)
    return root


def write_volume(
    path: Path,
    array: np.ndarray,
    *,
    spacing: tuple[float, float, float] = (3.0, 1.0, 0.8),
    oblique: bool = True,
    origin: tuple[float, float, float] | None = None,
) -> None:
    """Write (Z, Y, X) with SimpleITK; `spacing` is (Z, Y, X) in mm, `origin` is ITK's (x, y, z)."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing[::-1])
    if oblique:
        image.SetDirection(oblique_direction())
        image.SetOrigin(ORIGIN)
    if origin is not None:
        image.SetOrigin(origin)
    sitk.WriteImage(image, str(path), useCompression=True)


def write_description(root: Path, description: dict[str, Any]) -> None:
    """Write dataset.json."""
    (root / "dataset.json").write_text(json.dumps(description, indent=1))


def change_description(root: Path, **changes: Any) -> None:
    """Change entries of dataset.json; None removes one."""
    description = json.loads((root / "dataset.json").read_text()) | changes
    write_description(root, {key: value for key, value in description.items() if value is not None})


def _label_entry(labels: int, *, regions: bool, ignore: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {"background": 0}
    if regions:
        entry["whole"] = list(range(1, labels + 1))
        entry |= {f"part{k}": k if k == labels else list(range(k, labels + 1)) for k in range(2, labels + 1)}
    else:
        entry |= {f"organ{k}": k for k in range(1, labels + 1)}
    return entry | ({"ignore": labels + 1} if ignore else {})
