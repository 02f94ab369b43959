"""Training from SAM weights: what is frozen stays SAM's, and the SAM file is found, compared and asked for."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from masam_auto.core.dataset import read_description
from masam_auto.core.encoder_sizes import sam_encoder
from masam_auto.core.encoders import ENCODERS
from masam_auto.core.errors import MasamError, ModelError
from masam_auto.core.jsonio import read_plain, to_plain, write_json
from masam_auto.core.plan import Plan
from masam_auto.core.raw_files import file_sha256
from masam_auto.models.checkpoint import BEST, LATEST, load_checkpoint, read_model
from masam_auto.models.load_model import load_member
from masam_auto.network.masam import MaSam
from masam_auto.network.weight_files import load_sam_checkpoint
from masam_auto.planning.overrides import override
from masam_auto.training.train import train_fold
from masam_auto.training.training_job import TrainingOptions
from tests import tiny_training as tiny

CPU = torch.device("cpu")
Train = Callable[..., Path]


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The weights folder, with a made-up SAM file of a tiny encoder that is called vit_b."""
    monkeypatch.setitem(ENCODERS, "vit_b", tiny.TINY_SAM)
    return tiny.write_sam_file(tmp_path / "data" / "weights" / "vit_b.safetensors").parent


@pytest.fixture
def train(tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """Train fold 0 of a tiny data set in tmp_path/data, with the results in the folder `where`."""
    tiny.without_pictures(monkeypatch)

    def run(where: str = "results", *, plan: Plan | None = None, fold: int | str = 0, **options: Any) -> Path:
        plan = plan or tiny.make_sam_plan()
        configuration = plan.configuration(None)
        paths = tiny.write_preprocessed(tmp_path / "data", configuration)
        paths = replace(paths, results=tmp_path / where)
        options = {"device": CPU, "workers": 0, "threads": 1, **options}
        return train_fold(paths, tiny.DATASET, plan, configuration, fold, TrainingOptions(**options))

    return run


def load(folder: Path, plan: Plan, *, folds: int = 1, **options: Any) -> tuple[MaSam, ...]:
    """The networks of a model's folds, by `load_member`."""
    description = read_description(folder.parent / "dataset.json", name=plan.dataset_name)
    checkpoints = sorted(folder.parent.glob(f"fold_*/{BEST}"))[:folds]
    return load_member(checkpoints, plan, description, device=CPU, **options).networks


def interrupted_training(
    train: Train, monkeypatch: pytest.MonkeyPatch, where: str, plan: Plan | None = None, **options: Any
) -> Path:
    """Train one epoch of two, then stop."""
    plan = plan or tiny.make_sam_plan()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        tiny.before_step(patch, plan.training.steps_per_epoch + 1, tiny.interrupt)
        train(where, plan=plan, **options)


def same_files(left: Path, right: Path) -> bool:
    for name in ("model.safetensors", "training.safetensors"):
        one, other = (load_file(folder / LATEST / name) for folder in (left, right))
        if one.keys() != other.keys() or any(not torch.equal(one[key], other[key]) for key in one):
            return False
    return True


def test_what_is_frozen_stays_sams_and_the_rest_learns(train: Train, weights: Path) -> None:
    folder = train()
    header, model = read_model(folder / BEST)
    path = weights / "vit_b.safetensors"
    assert (header.sam_file, header.sam_sha256) == (str(path), file_sha256(path))
    assert (header.canvas, header.in_channels, header.num_outputs) == ((32, 32), 1, 3)
    assert not any(name.startswith("image_encoder.blocks") and "adapter" not in name for name in model)
    state = load_sam_checkpoint(path)
    (network,) = load(folder, tiny.make_sam_plan(), weights=weights)
    own = network.state_dict()
    assert own.keys() - model.keys() == {name for name, p in network.named_parameters() if name not in model}
    assert torch.equal(own["image_encoder.blocks.0.attn.qkv.weight"], state["image_encoder.blocks.0.attn.qkv.weight"])
    assert own["image_encoder.increments.v.weight"].abs().sum() > 0
    started = state["mask_decoder.transformer.norm_final_attn.weight"]
    assert not torch.equal(own["mask_decoder.transformer.norm_final_attn.weight"], started)
    assert network(torch.zeros(1, 3, 1, 32, 32)).isfinite().all()


def test_resumed_equals_uninterrupted(
    train: Train, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train("whole")
    interrupted_training(train, monkeypatch, "parts")
    (weights / "vit_b.safetensors").rename(weights / "moved_and_renamed.safetensors")
    tiny.write_sam_file(weights / "vit_b.safetensors", seed=1)
    parts = train("parts", resume=True)
    assert same_files(whole, parts)
    assert load_checkpoint(parts).header.sam_file == str(weights / "moved_and_renamed.safetensors")


def test_a_changed_file_is_noticed(
    train: Train, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted_training(train, monkeypatch, "results")
    path = weights / "vit_b.safetensors"
    before, then = path.read_bytes(), file_sha256(path)
    tiny.write_sam_file(path, seed=1)
    message = (
        rf"SHA-256 begins with {then[:12]}, but .*has changed: its SHA-256 now begins with {file_sha256(path)[:12]}\."
    )
    with pytest.raises(ModelError, match=message):
        train(resume=True)
    folder = tmp_path / "results" / tiny.DATASET / "masam__axis0" / "fold_0"
    with pytest.raises(ModelError, match=message):
        load(folder, tiny.make_sam_plan(), weights=weights)
    elsewhere = tmp_path / "elsewhere.safetensors"
    elsewhere.write_bytes(before)
    assert len(load(folder, tiny.make_sam_plan(), sam_checkpoint=elsewhere)) == 1
    assert load_checkpoint(train(resume=True, sam_checkpoint=elsewhere)).state.finished
    path.unlink()
    elsewhere.unlink()
    with pytest.raises(ModelError, match=r"vit_b\.safetensors is gone, and .* holds no SAM checkpoint"):
        load(folder, tiny.make_sam_plan(), weights=weights)


def test_a_random_encoder_that_was_trained_in_bf16_is_used_without_bf16(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("masam_auto.training.learner.computes_in_bf16", lambda device: True)
    monkeypatch.setattr("masam_auto.compute.device.computes_in_bf16", lambda device: True)
    plan = tiny.make_sam_plan(weights="none")
    plan = replace(plan, training=replace(plan.training, precision="bf16"))
    folder = train(plan=plan, budget="1steps")
    assert read_model(folder / BEST)[1]["image_encoder.blocks.0.attn.qkv.weight"].dtype == torch.bfloat16
    (network,) = load(folder, plan)
    assert network(torch.zeros(1, 3, 1, 32, 32)).isfinite().all()


def test_folds_share_what_is_frozen(train: Train, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(budget="1steps")
    folder = train(fold="all", budget="1steps")
    read = []
    monkeypatch.setattr(
        "masam_auto.models.load_model.load_sam_checkpoint",
        lambda path: read.append(path) or load_sam_checkpoint(path),
    )
    first, second = load(folder, tiny.make_sam_plan(), folds=2, weights=weights)
    assert len(read) == 1
    learned = read_model(folder / BEST)[1].keys()
    for (name, one), other in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert (one.data_ptr() == other.data_ptr()) == (name not in learned), name
    assert not first.training and not second.training


def test_full_fine_tuning_needs_its_sam_file_no_more(
    train: Train, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = tiny.make_sam_plan(trained="all")
    sha256 = file_sha256(weights / "vit_b.safetensors")
    whole = train("whole", plan=plan)
    interrupted_training(train, monkeypatch, "parts", plan)
    (weights / "vit_b.safetensors").unlink()
    parts = train("parts", plan=plan, resume=True)
    assert same_files(whole, parts)
    assert load_checkpoint(parts).header.sam_sha256 == sha256
    load(parts, plan)
    load(parts, plan, sam_checkpoint=weights / "vit_b.safetensors")  # it started from it, so it may be named


def test_without_weights_it_says_how_to_get_them_or_to_go_without(train: Train, weights: Path) -> None:
    (weights / "vit_b.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no SAM weights of vit_b in .*masam_fetch_weights vit_b.*`from_scratch`"):
        train()
    plan = override(tiny.make_sam_plan(), ["network.weights=none", "network.trained=all"])
    folder = train(plan=plan)
    header, model = read_model(folder / BEST)
    assert header.sam_file is None and header.sam_sha256 is None
    (network,) = load(folder, plan)
    assert model.keys() == network.state_dict().keys()
    with pytest.raises(ModelError, match=r"has all of its weights, so it does not use `sam_checkpoint`"):
        load(folder, plan, sam_checkpoint=weights / "vit_b.safetensors")


def test_weights_of_another_encoder_leave_the_earlier_training(train: Train, tmp_path: Path) -> None:
    folder = train()
    levels = tuple(replace(level, channels=16) for level in tiny.TINY_SAM.levels)
    wider = tiny.write_sam_file(tmp_path / "wider.pth", spec=replace(tiny.TINY_SAM, dim=16, levels=levels))
    with pytest.raises(ModelError, match=r"wider\.pth: .* has shape \(16,.*but vit_b needs \(8,") as caught:
        train(overwrite=True, sam_checkpoint=wider)
    assert "\n" not in str(caught.value)
    assert load_checkpoint(folder).state.finished
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(wider.read_bytes()[:5000])
    with pytest.raises(ModelError, match=r"damaged\.pth: cannot be read as weights"):
        train(overwrite=True, sam_checkpoint=damaged)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"increment_rank": 3}, r"network\.increment_rank was 2, the plan has 3"),
        ({"decoder": "sam", "adapters": "none"}, r"network\.decoder was progressive.*; network\.adapters was both"),
        ({"encoder": "custom", "custom_encoder": None}, r"network\.custom_encoder differ"),
    ],
)
def test_a_plan_of_another_network_says_what_differs(train: Train, changes: dict[str, Any], message: str) -> None:
    folder = train(budget="1steps")
    if "custom_encoder" in changes:
        own = sam_encoder(dim=8, depth=2, heads=2, global_blocks=(1,), embedding=32)
        changes = {**changes, "custom_encoder": own}
    with pytest.raises(ModelError, match=rf"fold_0/{BEST} does not fit .*plan\.json: .*{message}"):
        load(folder, tiny.make_sam_plan(**changes))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("labels", {"background": 0, "a": 1, "b": 2, "c": 3, "d": 4}, r"for 3 outputs \(classes\), the data set has 5"),
        ("channel_names", {"0": "T1", "1": "T2"}, r"with 1 input channels, the data set has 2"),
        ("canvas", (48, 32), r"on a canvas of 32 x 32 px, the plan's is 48 x 32 px"),
    ],
)
def test_data_of_other_sizes_say_what_differs(train: Train, field: str, value: Any, message: str) -> None:
    folder, plan = train(budget="1steps"), tiny.make_sam_plan()
    if field == "canvas":
        plan = tiny.make_sam_plan(tiny.make_configuration(canvas=value))
    else:
        plain = read_plain(folder.parent / "dataset.json", what="dataset.json")
        write_json(folder.parent / "dataset.json", {**plain, field: value})
    with pytest.raises(ModelError, match=rf"fold_0/{BEST} does not fit .*plan\.json: it was trained {message}"):
        load(folder, plan)


def test_resuming_with_other_classes_or_network_says_what_differs(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(budget="1steps")
    with pytest.raises(ModelError, match=r"another plan \(network\.increment_rank was 2, the plan has 4\)"):
        train(resume=True, plan=tiny.make_sam_plan(increment_rank=4))
    monkeypatch.setattr(tiny, "LABELS", {"background": 0, "organ": 1, "lesion": 2, "other": 3})
    with pytest.raises(ModelError, match=r"trained for 3 outputs \(classes\), the data set has 4"):
        train(resume=True)


def test_a_model_that_names_no_sam_file_is_refused(train: Train, weights: Path) -> None:
    folder = train(budget="1steps")
    file = folder / BEST / "model.safetensors"
    header = read_model(folder / BEST)[0]
    text = json.dumps({**to_plain(header), "sam_sha256": None})
    save_file(load_file(file), file, metadata={"masam_auto": text})
    with pytest.raises(MasamError, match=r"model\.safetensors: .*its header names no SAM file"):
        read_model(folder / BEST)


def test_models_of_an_older_version_predict_but_cannot_be_continued(
    train: Train, weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan = tiny.make_sam_plan(trained="all")
    folder = train(budget="1steps", plan=plan)
    for name in (BEST, LATEST):
        file = folder / name / "model.safetensors"
        header = read_model(folder / name)[0]
        text = json.dumps({**to_plain(header), "version": 1, "plan_digest": "made in another way"})
        tensors = load_file(file)
        file.unlink()  # the two checkpoints may be one file
        save_file(tensors, file, metadata={"masam_auto": text})
        state = read_plain(folder / name / "checkpoint.json", what="checkpoint")
        write_json(folder / name / "checkpoint.json", {**state, "checksums": {}})
    load(folder, plan)
    assert "another plan" not in caplog.text
    with pytest.raises(ModelError, match="older version of masam_auto, whose trainings cannot be continued"):
        train(resume=True, budget="2steps", plan=plan)
