"""A tiny preprocessed data set, its plan, and a network small enough to train in a blink."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from masam_auto.core.encoder_sizes import ConvSpec, EncoderSpec, LevelSpec
from masam_auto.core.encoders import ENCODERS
from masam_auto.core.jsonio import digest, write_json
from masam_auto.core.labels import parse_labels
from masam_auto.core.paths import Paths
from masam_auto.core.plan import Configuration, InferencePlan, NetworkPlan, NormalizationPlan, Plan, TrainingPlan
from masam_auto.formats.storage import find_locations, write_array, write_locations
from masam_auto.network.build import assemble
from masam_auto.network.masam import MaSam
from masam_auto.preprocessing.preprocess import PreprocessingRecord
from masam_auto.training import session, train

# An encoder in SAM's form, to stand for "vit_b" in ENCODERS.
TINY_SAM = EncoderSpec(
    dim=8,
    depth=2,
    heads=2,
    global_blocks=(1,),
    window=2,
    mlp_ratio=2.0,
    token_stride=16,
    embedding=32,
    taps=(0, 1),
    levels=tuple(LevelSpec(channels=8, stride=16, width=2 * target, target=target) for target in (4, 8)),
    conv=ConvSpec(norm="instance", across=False),
    decoder_heads=2,
    decoder_mlp=16,
    adapter_channels=4,
)


def tiny_encoder(norm: str) -> EncoderSpec:
    """An encoder with a stem, as vit_t has one, at the smallest sizes."""
    return EncoderSpec(
        dim=8,
        depth=1,
        heads=2,
        global_blocks=(0,),
        token_stride=4,
        stem=(4, 8),
        neck="norm",
        embedding=8,
        levels=tuple(LevelSpec(channels=c, stride=s, width=c, target=s) for c, s in ((4, 1), (8, 2))),
        conv=ConvSpec(norm=norm, across=True),
        decoder_heads=2,
        decoder_mlp=8,
        adapter_channels=4,
    )


# Plans of these tests name it.
ENCODERS |= {"tiny": tiny_encoder("batch"), "tiny_instance": tiny_encoder("instance")}
DATASET = "Dataset001_Toy"
LABELS = {"background": 0, "organ": 1, "lesion": 2}


def make_configuration(**changes: Any) -> Configuration:
    """Windows of 3 slices of up to 16 x 16 px."""
    fields: dict[str, Any] = {
        "name": "axis0",
        "axis_order": (0, 1, 2),
        "spacing": (3.0, 1.0, 1.0),
        "median_shape": (7, 12, 11),
        "normalization": (NormalizationPlan(scheme="zscore"),),
        "separate_slices": True,
        "window": 3,
        "canvas": (16, 16),
        "magnification": 1.0,
        "mirror_axes": (2,),
        "batch_size": 2,
    }
    return Configuration(**{**fields, **changes})


def make_plan(configuration: Configuration | None = None, **training: Any) -> Plan:
    """A plan of 2 epochs of 3 steps in float32."""
    configuration = configuration or make_configuration()
    fields: dict[str, Any] = {
        "num_epochs": 2,
        "steps_per_epoch": 3,
        "learning_rate": 2e-3,
        "warmup_steps": 1,
        "schedule": "cosine",
        "precision": "float32",
    }
    return Plan(
        name="masam",
        dataset_name=DATASET,
        channel_names=("MR",),
        gpu_memory_gb=0.0,
        default_configuration=configuration.name,
        configurations={configuration.name: configuration},
        network=NetworkPlan(
            encoder="tiny", decoder="multiscale", weights="none", trained="all", increment_rank=2, adapter_channels=4
        ),
        training=TrainingPlan(**{**fields, **training}),
        inference=InferencePlan(),
    )


def make_sam_plan(configuration: Configuration | None = None, **network: Any) -> Plan:
    """`make_plan` of a network that starts from the weights of `write_sam_file`, with the encoder called vit_b."""
    fields: dict[str, Any] = {
        "encoder": "vit_b",
        "decoder": "progressive",
        "weights": "sam",
        "trained": "adapted",
        "increment_rank": 2,
        "adapter_channels": 4,
    }
    return replace(
        make_plan(configuration or make_configuration(canvas=(32, 32))), network=NetworkPlan(**{**fields, **network})
    )


def write_sam_file(path: Path, *, seed: int = 0, spec: EncoderSpec = TINY_SAM) -> Path:
    """A made-up SAM checkpoint, for three channels and a larger canvas, of `TINY_SAM` or another encoder."""
    plan = NetworkPlan(encoder="vit_b", decoder="sam", weights="sam", trained="all", increment="none", adapters="none")
    state = assemble(spec, plan, canvas=(64, 64), in_channels=3, num_outputs=4).state_dict()
    generator = torch.Generator().manual_seed(seed)
    tensors = {name: 0.2 * torch.randn(value.shape, generator=generator) for name, value in state.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path) if path.suffix == ".safetensors" else torch.save(tensors, path)
    return path


def build_tiny(plan: NetworkPlan, *, norm: str = "batch", **sizes: Any) -> MaSam:
    """The network of a plan at the smallest sizes, whatever encoder it names."""
    return assemble(tiny_encoder(norm), plan, **sizes)


def write_preprocessed(
    folder: Path, configuration: Configuration, *, cases: int = 4, size: tuple[int, int] = (12, 11), seed: int = 0
) -> Paths:
    """Write preprocessed cases a, b, c, ... with two classes, dataset.json and splits.json; the last case validates."""
    paths = Paths(
        raw=folder / "raw", preprocessed=folder / "preprocessed", results=folder / "results", weights=folder / "weights"
    )
    root = paths.preprocessed / DATASET
    target = paths.configuration_folder(DATASET, configuration.name)
    labels = parse_labels(LABELS, None)
    generator = np.random.default_rng(seed)
    names = [chr(ord("a") + number) for number in range(cases)]
    for number, name in enumerate(names):
        depth = 7 + number % 2
        volume = np.zeros((depth, *size), np.int8)
        volume[1:5, 2:8, 3:9] = 1
        volume[2:4, 4:6, 4 + number % 2 : 7] = 2
        image = generator.normal(0, 0.3, (1, *volume.shape)).astype(np.float32) + volume
        write_array(target / f"{name}.b2nd", image.astype(np.float32))
        write_array(target / f"{name}_seg.b2nd", volume)
        write_locations(target / f"{name}_locations.npz", find_locations(volume, labels))
        write_json(target / f"{name}.json", {})
    write_json(
        target / "preprocessing.json",
        PreprocessingRecord(
            configuration=configuration.name, digest=configuration.preprocessing_digest, labels_digest=digest(labels)
        ),
    )
    write_json(root / "dataset.json", {"channel_names": {"0": "MR"}, "labels": LABELS, "file_ending": ".nii.gz"})
    write_json(root / "splits.json", [{"train": names[:-1], "val": names[-1:]}])
    return paths


def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have trainings draw nothing: pictures take longer than tiny trainings."""
    monkeypatch.setattr(session, "draw_progress", lambda *arguments, **more: None)
    monkeypatch.setattr(train, "draw_augmented_windows", lambda *arguments, **more: None)


def before_step(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], object]) -> None:
    """Call `act` before the update `number`, from 1, of the trainings that follow."""
    set_rate, made = train.set_rate, []

    def counted(*arguments: Any) -> None:
        made.append(None)
        if len(made) == number:
            act()
        set_rate(*arguments)

    monkeypatch.setattr(train, "set_rate", counted)


def before_look(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], object]) -> None:
    """Call `act` before the look `number`, from 1, at the validation windows."""
    judge_windows, looks = session.judge_windows, []

    def counted(*arguments: Any, **options: Any) -> Any:
        looks.append(None)
        if len(looks) == number:
            act()
        return judge_windows(*arguments, **options)

    monkeypatch.setattr(session, "judge_windows", counted)


def interrupt() -> None:
    """As Ctrl-C that is not waited for."""
    raise KeyboardInterrupt
