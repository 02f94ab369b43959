"""SAM weights from random numbers, in the form of published files."""

from pathlib import Path

import torch

from masam_auto.core.encoders import find_encoder
from masam_auto.network.promptable import PromptableSam, usual_pixels


def write_weights(path: Path, encoder: str = "lite_medsam") -> Path:
    """Write a whole SAM, as `masam_segment` needs it; the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        spec = find_encoder(encoder)
        sam = PromptableSam(spec, encoder=encoder, canvas=16 * spec.token_stride, pixels=usual_pixels(spec))
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(sam.state_dict(), path)
    return path
