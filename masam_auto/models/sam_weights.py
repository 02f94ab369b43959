"""Which SAM checkpoint a training starts from, and which one a trained model needs."""

import logging
from pathlib import Path

from masam_auto.core.encoder_sizes import EncoderSpec
from masam_auto.core.encoders import ENCODERS, find_encoder, sams_own
from masam_auto.core.errors import ModelError
from masam_auto.core.plan import NetworkPlan
from masam_auto.core.plugins import known_names
from masam_auto.models.checkpoint import ModelHeader
from masam_auto.models.sam_files import SAM_FILES, SamWeights, weights_of_model, weights_to_start_from
from masam_auto.network.build import WHOLE_CANVAS, has_encoder
from masam_auto.network.encoder_kinds import kind_in, with_our_names
from masam_auto.network.published import infer_encoder
from masam_auto.network.weight_files import load_sam_checkpoint

logger = logging.getLogger(__name__)


def encoder_of_file(path: Path) -> str:
    """Name of the encoder in a SAM checkpoint.

    Raises:
        ModelError: not a SAM checkpoint, or an encoder without a name.
    """
    state = with_our_names(load_sam_checkpoint(path))
    form = kind_in(state)
    if form not in (None, EncoderSpec):
        named = [name for name in known_names("encoders", ENCODERS) if type(find_encoder(name)) is form]
        if found := next((name for name in named if has_encoder(name, state)), None):
            return found
        raise ModelError(f"{path}: its encoder is like {' or '.join(named)}, but of other sizes, or incomplete.")
    spec = infer_encoder(state, canvas=WHOLE_CANVAS, origin=str(path))
    for name in known_names("encoders", ENCODERS):
        if find_encoder(name) == spec:
            return name
    sizes = ", ".join(f"{name} ({known.dim}, {known.depth})" for name, known in sams_own().items())
    raise ModelError(
        f"{path}: its encoder is {spec.dim} wide and has {spec.depth} blocks. Known encoders (width, blocks): {sizes}."
    )


def sam_to_start_from(network: NetworkPlan, *, file: Path | None, folder: Path) -> SamWeights | None:
    """Find the SAM checkpoint that a training starts from; None if its plan starts from scratch.

    Args:
        network: of the plan.
        file: the user's checkpoint, or None.
        folder: the weights folder, searched if `file` is None.

    Raises:
        ModelError: it is missing, or the user gave one that the plan does not use.
    """
    if network.weights == "none":
        if file is not None:
            raise ModelError(
                "this plan trains from scratch (network.weights=none), so it does not use `sam_checkpoint`. Leave it "
                "out, or plan again with a SAM encoder, e.g. `backbone=vit_b`."
            )
        return None
    found = weights_to_start_from(network.encoder, file=file, folder=folder)
    logger.info("pretrained weights: %s (SHA-256 %s...)", found.path, found.sha256[:12])
    for name, published in SAM_FILES.items():
        if found.path.name == published.name and published.sha256 not in ("", found.sha256):
            logger.warning(
                "%s is not the official file of that name. To replace it: `masam_fetch_weights %s overwrite`",
                found.path,
                name,
            )
    return found


def sam_of_model(header: ModelHeader, model: Path, *, file: Path | None, folder: Path | None) -> SamWeights | None:
    """Find the SAM checkpoint of a model's frozen weights, even if it was moved; None if the model needs none.

    Args:
        header: of the model.
        model: its path, for messages.
        file: the user's checkpoint, or None.
        folder: the weights folder, or None.

    Raises:
        ModelError: it is missing or has changed, or the user gave one to a model that never had one.
    """
    if not header.network.stands_on_sam:
        if file is not None and header.network.weights == "none":  # a training may have started from the file
            raise ModelError(f"{model} has all of its weights, so it does not use `sam_checkpoint`. Leave it out.")
        return None
    assert header.sam_sha256 is not None and header.sam_file is not None
    return weights_of_model(
        header.sam_sha256,
        recorded=Path(header.sam_file),
        encoder=header.network.encoder,
        file=file,
        folder=folder,
        model=str(model),
    )
