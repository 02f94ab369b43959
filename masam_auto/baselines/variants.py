"""Baselines inside our own pipeline: other plans, on the same arrays, folds and budget."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Baseline:
    """A plan's name (None: the given plan's), its configuration (None: the given one) and its `--set` changes."""

    plan_name: str | None = None
    configuration: str | None = None
    overrides: tuple[str, ...] = ()


# Source: SAMed (Zhang and Liu, arXiv 2304.13785): LoRA of rank 4 without dropout in the image encoder, SAM's own mask decoder,
# slices one by one.
BASELINES = {
    "samed": Baseline(
        plan_name="samed",
        overrides=(
            "network.increment=lora", "network.increment_rank=4", "network.increment_dropout=0", "network.adapters=none",
            "network.decoder=sam",
        ),
    ),
    "2d": Baseline(configuration="2d"),
    "decoder_only": Baseline(plan_name="decoder_only", overrides=("network.trained=none",)),
}  # fmt: skip
