"""Planning rules about learning: which parts of the network learn, and the training recipe of each encoder."""

import dataclasses

from masam_auto.core.plan import AugmentationPlan, NetworkPlan, TrainingPlan
from masam_auto.planning.planned_encoders import PlannedEncoder

Reasons = dict[str, str]

# How SAM's encoders are adapted. Source: the reference MA-SAM and its logs (best checkpoint at epoch 160 of about 126
# steps); no decay on norms and biases and gradient clipping: Primus.
ADAPTED = TrainingPlan()
ADAPTED_CHANNELS = 384  # of the adapters

# How a small pretrained encoder is adapted, in the minutes to an hour that a CPU has. Source: ours, measured on ACDC
# with five cases (documentation/log.md).
ADAPTED_SMALL = dataclasses.replace(
    ADAPTED,
    num_epochs=30,
    steps_per_epoch=100,
    pretrained_rate=0.1,
    adam_beta2=0.99,
    warmup_steps=50,
    schedule="cosine",
    schedule_exponent=1.0,
    foreground_fraction=2 / 3,
    weight_average=0.98,
)

# How vit_t is trained from scratch. Source: ours, measured on Hippocampus (documentation/log.md).
SCRATCH = TrainingPlan(
    num_epochs=100,
    steps_per_epoch=100,
    optimizer="muon",
    learning_rate=2e-3,
    weight_decay=0.01,
    warmup_steps=300,
    schedule="cosine",
    schedule_exponent=1.0,
    loss_weights=(0.5, 0.5),
    foreground_fraction=1 / 3,
    weight_average=0.995,
    augmentation=AugmentationPlan(
        spatial_probability=0.5,
        rotation=(-15.0, 15.0),
        shear=(-5.0, 5.0),
        scaling=(0.86, 1.16),
        translation=(-0.06, 0.06),
    ),
)

SAMS_UPSCALING = 4  # SAM's decoder makes its masks 4 times as fine as its tokens
_MEASURED_SMALL = "measured on ACDC, see documentation/log.md"
_MEASURED = "measured on Hippocampus, see documentation/log.md"
_FOREGROUND = "a third of the windows on a slice with a random class (nnU-Net)"


def choose_network(
    shape: PlannedEncoder, encoder_reason: str, *, from_scratch: bool = False
) -> tuple[NetworkPlan, Reasons]:
    """Choose the MA-SAM variant for an encoder, with a reason for each chosen field.

    With `from_scratch`, a SAM encoder starts without SAM's weights, and all of it learns.

    Source: the paper's Tables 6, 8, 9 and 10, and its reference code; vit_t: ours.
    """
    if shape.sam:
        whose = shape.whose.partition(" ")[0]
        neck = ", and the neck, which its weights do not have" if shape.only_encoder else ""
        sams_upscaling = shape.decoder == "progressive" and shape.spec.token_stride == SAMS_UPSCALING
        whole_decoder = sams_upscaling and not from_scratch and not shape.only_encoder
        network = NetworkPlan(
            encoder=shape.name,
            decoder=shape.decoder,
            weights="none" if from_scratch else "sam",
            trained="all" if from_scratch else "adapted",
            adapter_channels=shape.spec.adapter_channels,
            masks_start="sam" if whole_decoder else "new",
        )
        masks = {"masks_start": "every class starts as SAM's mask: this decoder is SAM's own as it is (measured)"}
        return network, {
            **(masks if whole_decoder else {}),
            "encoder": encoder_reason,
            "decoder": "progressive upsampling to the canvas (paper, Table 6)",
            "weights": f"from scratch, as asked: {whose} weights are not used" if from_scratch else shape.whose,
            "trained": "from scratch: everything learns"
            if from_scratch
            else f"{whose} encoder stays frozen; increments, adapters and decoder learn{neck}",
            "increment": "FacT on queries and values of all blocks (paper)",
            "increment_rank": "rank 32 (paper, Table 8)",
            "increment_scale": "1 (paper)",
            "adapters": "before and after attention (paper, Tables 9 and 10)",
            "adapter_channels": "384 (reference code)"
            if network.adapter_channels == ADAPTED_CHANNELS
            else f"{network.adapter_channels}, which suits the encoder's width (reference code: {ADAPTED_CHANNELS})",
        }
    network = NetworkPlan(
        encoder=shape.name,
        decoder=shape.decoder,
        weights="none",
        trained="all",
        increment="none",
        adapter_channels=shape.spec.adapter_channels,
    )
    return network, {
        "encoder": encoder_reason,
        "decoder": "fuses all resolutions of the stem; learned fastest from scratch",
        "weights": "from scratch, because there are no SAM weights of this size",
        "trained": "from scratch: everything learns",
        "increment": "nothing is frozen, so there is nothing to adapt with increments",
        "adapters": "before and after attention: they connect the slices of a window",
    }


def recipe_of(shape: PlannedEncoder) -> TrainingPlan:
    """The training recipe of an encoder."""
    if not shape.sam:
        return SCRATCH
    return ADAPTED if shape.without_gpu is None else ADAPTED_SMALL


def choose_training(
    shape: PlannedEncoder, *, checkpointing: bool, checkpointing_reason: str
) -> tuple[TrainingPlan, Reasons]:
    """Choose the training recipe of an encoder, with a reason for each chosen field."""
    recipe = recipe_of(shape)
    steps = recipe.num_epochs * recipe.steps_per_epoch
    if recipe is ADAPTED_SMALL:
        reasons = {
            "num_epochs": f"{steps} steps, about an hour without a GPU",
            "optimizer": "AdamW (reference code)",
            "learning_rate": "8e-4 (reference code)",
            "pretrained_rate": f"at the whole rate, SAM's decoder lost what it knew at once ({_MEASURED_SMALL})",
            "adam_beta2": f"short, because the trainings are ({_MEASURED_SMALL})",
            "weight_decay": "0.1, not on norms and biases (reference code; Primus)",
            "warmup_steps": "short, because the trainings are",
            "schedule": "falls to zero by the end of any budget",
            "loss_weights": "cross-entropy and Dice, at canvas resolution (reference code)",
            "foreground_fraction": "two thirds of the windows around a random class: a step sees few windows",
            "weight_average": "over about 50 steps, because the trainings are short",
            "precision": "bf16 where the device computes in it",
        }
    elif shape.sam:
        reasons = {
            "num_epochs": f"{steps} steps: the paper's best checkpoint is at its epoch 160 of about 126 steps",
            "optimizer": "AdamW (reference code)",
            "learning_rate": "8e-4 (reference code)",
            "weight_decay": "0.1, not on norms and biases (reference code; Primus)",
            "warmup_steps": "250 (reference code)",
            "schedule": f"polynomial decay with exponent {recipe.schedule_exponent:g} (reference code)",
            "loss_weights": "cross-entropy and Dice, at canvas resolution (reference code)",
            "foreground_fraction": _FOREGROUND,
            "precision": "bf16 where the device computes in it",
        }
    else:
        reasons = {
            "num_epochs": f"{steps} steps; shorter with a budget ({_MEASURED})",
            "optimizer": f"learns fastest from scratch ({_MEASURED})",
            "learning_rate": _MEASURED,
            "weight_decay": _MEASURED,
            "warmup_steps": _MEASURED,
            "schedule": _MEASURED,
            "loss_weights": f"cross-entropy and Dice ({_MEASURED})",
            "foreground_fraction": _FOREGROUND,
            "weight_average": _MEASURED,
            "precision": "bf16 where the device computes in it",
        }
    reasons["activation_checkpointing"] = checkpointing_reason
    return dataclasses.replace(recipe, activation_checkpointing=checkpointing), reasons


def channels_reason(count: int, shape: PlannedEncoder, *, from_scratch: bool = False) -> str:
    """How the input channels reach the encoder. Source: ours."""
    if shape.sam and from_scratch:
        return f"{count} input {'channel' if count == 1 else 'channels'}; the patch embedding is built for {count}"
    if not shape.sam:
        return f"{count} input {'channel' if count == 1 else 'channels'}; the stem is built for {count}"
    whose = shape.whose.partition(" ")[0]
    maker = whose.removesuffix("'s")
    if count == 1 and shape.pixels == "unit":
        return "1 channel, shown to the encoder as three equal ones"
    if count == 1:
        return "1 channel: SAM's patch-embedding weights are summed over its three channels, as if it were replicated"
    if count == 3:
        return f"3 channels, as {maker} has them"
    return f"{count} channels: {whose} patch embedding is inflated (same response to equal channels) and trained"
