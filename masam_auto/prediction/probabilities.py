"""Where the probabilities of a case go: an array in memory, or a file."""

from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np

from masam_auto.core.geometry import CaseProperties
from masam_auto.core.labels import Labels
from masam_auto.formats.probability_files import Probabilities, new_probabilities


def output_names(labels: Labels) -> tuple[str, ...]:
    """Names of the K outputs: "background" and the classes, or the regions."""
    return tuple(labels.foreground) if labels.has_regions else ("background", *labels.foreground)


def new_case_probabilities(
    path: Path, properties: CaseProperties, labels: Labels
) -> AbstractContextManager[np.ndarray]:
    """The array for `prediction.restore.restore_case` to fill in, written to the .npz file `path` when the block ends.

    Only the box is kept that preprocessing cropped to; outside there is background. The array lies in a temporary file
    beside `path`.

    Raises:
        OutputError: no space or no permission.
    """
    return new_probabilities(
        path,
        crop=properties.crop,
        geometry=properties.geometry,
        outputs=output_names(labels),
        has_regions=labels.has_regions,
    )


def empty_probabilities(properties: CaseProperties, labels: Labels) -> Probabilities:
    """The same in memory, zeros."""
    return Probabilities(
        values=np.zeros((labels.num_outputs, *properties.cropped_shape), dtype=np.float16),
        crop=properties.crop,
        geometry=properties.geometry,
        outputs=output_names(labels),
        has_regions=labels.has_regions,
    )
