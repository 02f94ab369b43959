"""Checkpoints: whole or not there, never unpickled."""

import errno
import json
from pathlib import Path

import pytest
import torch

from masam_auto.core.errors import MasamError, ModelError, OutputError
from masam_auto.core.plan import NetworkPlan
from masam_auto.models import checkpoint as module
from masam_auto.models.checkpoint import (
    BEST,
    LATEST,
    MODEL_FILE,
    PREVIOUS,
    STATE_FILE,
    TRAINING_FILE,
    Checkpoint,
    ModelHeader,
    TrainingState,
    has_checkpoint,
    load_checkpoint,
    plan_digest,
    read_model,
    remove_leftovers,
    save_checkpoint,
)
from tests import tiny_training as tiny


def make_checkpoint(epoch: int = 1, **changes: float) -> Checkpoint:
    weight = torch.full((2, 3), float(epoch))
    header = ModelHeader(
        dataset_name="Dataset001_Toy",
        configuration="axis0",
        fold="0",
        plan_digest="abc",
        epoch=epoch,
        network=NetworkPlan(encoder="vit_t", decoder="multiscale", weights="none", trained="all"),
    )
    return Checkpoint(
        header=header,
        state=TrainingState(epoch=epoch, step=10 * epoch, smoothed_dice=0.5, **changes),
        model={"a.weight": weight, "a.count": torch.tensor(3)},
        weights={"a.weight": weight + 1, "a.count": torch.tensor(3)},
        optimizers=({0: {"exp_avg": weight * 2, "step": torch.tensor(4.0)}}, {1: {"momentum": weight.T}}),
    )


def same(left: dict, right: dict) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    saved = make_checkpoint()
    save_checkpoint(tmp_path, saved, best=True)
    loaded = load_checkpoint(tmp_path)
    assert loaded.header == saved.header
    assert (loaded.state.epoch, loaded.state.step, loaded.state.smoothed_dice) == (1, 10, 0.5)
    assert same(loaded.model, saved.model)
    assert same(loaded.weights, saved.weights)
    assert len(loaded.optimizers) == 2
    assert same(loaded.optimizers[0][0], saved.optimizers[0][0])
    assert same(loaded.optimizers[1][1], saved.optimizers[1][1])
    header, tensors = read_model(tmp_path / BEST)
    assert header == saved.header
    assert same(tensors, saved.model)


def test_the_best_stays_while_the_latest_moves_on(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, make_checkpoint(1), best=True)
    save_checkpoint(tmp_path, make_checkpoint(2), best=False)
    assert read_model(tmp_path / BEST)[0].epoch == 1
    assert load_checkpoint(tmp_path).header.epoch == 2
    save_checkpoint(tmp_path, make_checkpoint(3), best=True)
    assert read_model(tmp_path / BEST)[0].epoch == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == [BEST, LATEST]


@pytest.mark.parametrize("file", [MODEL_FILE, TRAINING_FILE, STATE_FILE])
@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_a_damaged_latest_falls_back_to_the_best(
    tmp_path: Path, file: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    save_checkpoint(tmp_path, make_checkpoint(1), best=True)
    save_checkpoint(tmp_path, make_checkpoint(2), best=False)
    path = tmp_path / LATEST / file
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else content[:-4] + b"\x01\x02\x03\x04")
    with caplog.at_level("WARNING", logger="masam_auto"):
        assert load_checkpoint(tmp_path).header.epoch == 1
    assert "older checkpoint" in caplog.text


def test_when_nothing_can_be_read_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no checkpoint"):
        load_checkpoint(tmp_path)
    assert not has_checkpoint(tmp_path)
    save_checkpoint(tmp_path, make_checkpoint(), best=False)
    (tmp_path / LATEST / TRAINING_FILE).write_bytes(b"")
    with pytest.raises(ModelError, match="`overwrite`"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("best", [True, False])
def test_a_full_disk_keeps_the_old_one(tmp_path: Path, best: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, make_checkpoint(1), best=best)

    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(OutputError, match=r"space.*has been kept.*`resume`"):
        save_checkpoint(tmp_path, make_checkpoint(2), best=best)
    monkeypatch.undo()
    assert load_checkpoint(tmp_path).header.epoch == 1
    assert not list(tmp_path.glob(".partial-*"))


def test_a_full_disk_at_the_first_epoch_does_not_speak_of_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(OutputError, match="no epoch has been saved") as caught:
        save_checkpoint(tmp_path, make_checkpoint(1), best=True)
    assert "--c" not in str(caught.value)


def test_a_best_checkpoint_put_aside_by_a_killed_run_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, make_checkpoint(1), best=True)
    rename = Path.rename

    def killed(self: Path, target: Path) -> Path:
        if Path(target).name == BEST:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, make_checkpoint(2), best=True)
    monkeypatch.undo()
    assert not (tmp_path / BEST).exists()
    remove_leftovers(tmp_path)
    assert read_model(tmp_path / BEST)[0].epoch == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [BEST, LATEST]


def test_a_run_killed_at_any_rename_leaves_a_whole_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, make_checkpoint(1), best=False)
    rename = Path.rename

    def killed(self: Path, target: Path) -> Path:
        if Path(target).name == LATEST:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, make_checkpoint(2), best=False)
    monkeypatch.undo()
    assert not (tmp_path / LATEST).exists()
    assert has_checkpoint(tmp_path)
    remove_leftovers(tmp_path)
    assert load_checkpoint(tmp_path).header.epoch == 1
    save_checkpoint(tmp_path, make_checkpoint(2), best=False)
    assert load_checkpoint(tmp_path).header.epoch == 2


def test_leftovers_go_and_what_is_needed_stays(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, make_checkpoint(), best=False)
    (tmp_path / ".partial-1-ab-checkpoint_latest").mkdir()
    (tmp_path / ".partial-1-ab-metrics.jsonl").write_text("x")
    (tmp_path / PREVIOUS).mkdir()
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [LATEST]


def test_models_of_others_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="missing"):
        read_model(tmp_path / LATEST)
    save_checkpoint(tmp_path, make_checkpoint(), best=False)
    path = tmp_path / LATEST / MODEL_FILE
    module.save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(ModelError, match="header"):
        read_model(tmp_path / LATEST)
    module.save_file({"a": torch.zeros(2)}, path, metadata={"masam_auto": json.dumps({"version": 99})})
    with pytest.raises(ModelError, match="newer"):
        read_model(tmp_path / LATEST)
    module.save_file({"a": torch.zeros(2)}, path, metadata={"masam_auto": json.dumps({"version": 1})})
    with pytest.raises(MasamError, match=r"model\.safetensors"):
        read_model(tmp_path / LATEST)
    path.write_bytes(b"\x80\x04pickle")
    with pytest.raises(ModelError, match="damaged"):
        read_model(tmp_path / LATEST)


def test_everyone_who_may_read_the_state_may_read_the_weights(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, make_checkpoint(), best=False)
    modes = {path.stat().st_mode for path in (tmp_path / LATEST).iterdir()}
    assert len(modes) == 1


def test_the_digest_is_of_what_training_depends_on() -> None:
    plan = tiny.make_plan()
    configuration = plan.configuration(None)
    assert plan_digest(plan, configuration) == plan_digest(tiny.make_plan(), configuration)
    assert plan_digest(plan, configuration) != plan_digest(tiny.make_plan(num_epochs=9), configuration)
    assert plan_digest(plan, configuration) != plan_digest(plan, tiny.make_configuration(window=5))


@pytest.mark.parametrize(
    "header", ["[" * 100_000, "7", "[]", "null", '{"version": []}', '{"version": "x"}', '{"version": 99}', "{"]
)
def test_a_header_of_any_shape_is_one_clear_line(tmp_path: Path, header: str) -> None:
    module.save_file({"a": torch.zeros(1)}, tmp_path / MODEL_FILE, metadata={"masam_auto": header})
    with pytest.raises(MasamError, match=r"model\.safetensors"):
        module.read_model(tmp_path)
