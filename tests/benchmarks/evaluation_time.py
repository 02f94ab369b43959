"""How long one large case takes to be scored: 512 x 512 x 300 voxels, 14 classes, in this process."""

import resource
import time
from pathlib import Path

import numpy as np

from masam_auto.core.labels import Labels
from masam_auto.evaluation.evaluate import Scoring, evaluate_arrays

SHAPE = (300, 512, 512)
SPACING = (2.0, 0.75, 0.75)
CLASSES = 14


def measure(data: Path | None = None) -> dict[str, str]:
    """Seconds for a prediction that is off by some voxels and by a bump, and for one that is far off. `data` is not
    used."""
    labels = Labels(values={"background": (0,)} | {f"organ{n}": (n,) for n in range(1, CLASSES + 1)})
    reference = _organs(shift=(0, 0, 0), bumps=0.0)
    found = {}
    for what, shift, bumps in (("good", (1, 2, -2), 0.05), ("poor", (8, 25, -30), 0.2)):
        prediction = _organs(shift=shift, bumps=bumps)
        started = time.perf_counter(), time.process_time()
        scored = evaluate_arrays(
            prediction, reference, labels, spacing=SPACING, scoring=Scoring(lesions=tuple(labels.foreground))
        )
        wall, cpu = time.perf_counter() - started[0], time.process_time() - started[1]
        dice = float(np.mean([values["Dice"] for values in scored.values()]))
        found[f"{what} prediction, mean Dice {dice:.2f}"] = f"{wall:.1f} s ({cpu:.1f} CPU-s)"
    found["peak memory"] = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB"
    return found


def _organs(*, shift: tuple[int, int, int], bumps: float) -> np.ndarray:
    """Bumpy ellipsoids from the size of a liver to that of a gland, some cut by the image's border."""
    rng = np.random.default_rng(0)
    volume = np.zeros(SHAPE, np.int16)
    for value in range(1, CLASSES + 1):
        radii = np.array(SHAPE) * (0.3 if value == 1 else rng.uniform(0.04, 0.14, 3))
        centre = rng.uniform(0.15, 0.85, 3) * SHAPE + shift
        low = np.maximum(centre - 1.3 * radii, 0).astype(int)
        high = np.minimum(centre + 1.3 * radii + 1, SHAPE).astype(int)
        z, y, x = (
            (np.arange(a, b, dtype=np.float32) - c) / r for a, b, c, r in zip(low, high, centre, radii, strict=True)
        )
        distance = z[:, None, None] ** 2 + y[:, None] ** 2 + x**2
        distance += bumps * np.sin(9 * z)[:, None, None] * np.sin(8 * y)[:, None] * np.sin(7 * x)
        part = volume[low[0] : high[0], low[1] : high[1], low[2] : high[2]]
        part[distance < 1] = value
    return volume
