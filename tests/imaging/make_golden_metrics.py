"""Write golden_metrics.json: what MONAI 1.6.1 says of random, empty, touching-border and single-voxel masks.

Run once, where MONAI is installed (it is no dependency of the tests): python -m tests.imaging.make_golden_metrics
"""

import json
from pathlib import Path

import numpy as np
import torch
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from monai.metrics.surface_dice import compute_surface_dice
from monai.metrics.surface_distance import compute_average_surface_distance
from scipy import ndimage

FILE = Path(__file__).with_name("golden_metrics.json")
TOLERANCE = 1.3


def main() -> None:
    """Write the file."""
    cases = [_case(name, *masks) for name, masks in _masks().items()]
    FILE.write_text(json.dumps({"by": "MONAI 1.6.1", "tolerance": TOLERANCE, "cases": cases}, indent=1) + "\n")


def _masks() -> dict[str, tuple[np.ndarray, np.ndarray, tuple[float, float, float]]]:
    rng = np.random.default_rng(0)
    anisotropic, cubes = (3.0, 0.8, 0.5), (1.5, 1.5, 1.5)

    def blob(shape: tuple[int, int, int]) -> np.ndarray:
        return ndimage.gaussian_filter(rng.normal(size=shape), 1.5) > 0.05

    def box(*sides: slice, shape: tuple[int, int, int] = (6, 9, 11)) -> np.ndarray:
        mask = np.zeros(shape, bool)
        mask[sides] = True
        return mask

    empty = np.zeros((6, 9, 11), bool)
    one, far = box(slice(2, 3), slice(4, 5), slice(4, 5)), box(slice(5, 6), slice(8, 9), slice(10, 11))
    whole, corner = ~empty, box(slice(0, 3), slice(0, 4), slice(6, 11))
    return {
        **{f"blobs {i}": (blob((6, 9, 11)), blob((6, 9, 11)), anisotropic) for i in range(4)},
        "blobs, cubic voxels": (blob((7, 8, 9)), blob((7, 8, 9)), cubes),
        "noise": (rng.random((6, 9, 11)) < 0.3, rng.random((6, 9, 11)) < 0.3, anisotropic),
        "touching the border": (corner, box(slice(0, 6), slice(2, 9), slice(0, 8)), anisotropic),
        "whole image": (whole, corner, anisotropic),
        "a voxel and another": (one, far, anisotropic),
        "a voxel and a blob": (one, blob((6, 9, 11)), anisotropic),
        "the same": (corner, corner, anisotropic),
        "no prediction": (empty, corner, anisotropic),
        "no reference": (corner, empty, anisotropic),
        "nothing": (empty, empty, anisotropic),
        "picture": (blob((1, 16, 18)), blob((1, 16, 18)), (1.0, 0.7, 0.9)),
    }


def _case(name: str, a: np.ndarray, b: np.ndarray, spacing: tuple[float, float, float]) -> dict[str, object]:
    flat = a.shape[0] == 1
    masks = [torch.from_numpy(mask[0] if flat else mask)[None, None].float() for mask in (a, b)]
    measured = {}
    for unit, used in (("mm", spacing), ("voxels", (1.0, 1.0, 1.0))):
        options = {"include_background": True, "spacing": used[1:] if flat else used}
        measured[f"HD_{unit}"] = compute_hausdorff_distance(*masks, **options)
        measured[f"HD95_{unit}"] = compute_hausdorff_distance(*masks, percentile=95, **options)
        measured[f"ASSD_{unit}"] = compute_average_surface_distance(*masks, symmetric=True, **options)
        if unit == "mm":
            measured["NSD"] = compute_surface_dice(*masks, class_thresholds=[TOLERANCE], **options)
    return {
        "name": name,
        "shape": a.shape,
        "spacing": spacing,
        "masks": [np.packbits(mask).tobytes().hex() for mask in (a, b)],
        "expected": {key: float(value) for key, value in measured.items()},
    }


if __name__ == "__main__":
    main()
