"""Checkpoints written while training goes on: what is written, in what order, and where failures go."""

import errno
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from masam_auto.core.errors import OutputError
from masam_auto.core.plan import NetworkPlan
from masam_auto.models import checkpoint as checkpoint_module
from masam_auto.models.checkpoint import Checkpoint, ModelHeader, TrainingState, load_checkpoint, save_checkpoint
from masam_auto.training import checkpoint_writer as module
from masam_auto.training.checkpoint_writer import open_writer


def make_checkpoint(epoch: int) -> Checkpoint:
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
        state=TrainingState(epoch=epoch),
        model={"a": torch.full((2, 3), float(epoch))},
        weights={"a": torch.full((2, 3), epoch + 0.5)},
        optimizers=({0: {"exp_avg": torch.full((3, 2), epoch + 0.25).T}},),
    )


def hold(monkeypatch: pytest.MonkeyPatch, wait: Callable[[], object]) -> list[str]:
    """Have every writing wait before it starts; what began and ended."""
    seen: list[str] = []

    def held(folder: Path, checkpoint: Checkpoint, *, best: bool) -> None:
        seen.append(f"begins {checkpoint.state.epoch}")
        wait()
        save_checkpoint(folder, checkpoint, best=best)
        seen.append(f"ends {checkpoint.state.epoch}")

    monkeypatch.setattr(module, "save_checkpoint", held)
    return seen


def fill_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint_module, "save_file", full)


def test_what_is_written_is_what_was_when_it_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    seen = hold(monkeypatch, lambda: go_on.wait(timeout=10))
    saved, expected = make_checkpoint(1), make_checkpoint(1)
    with open_writer(tmp_path) as writer:
        writer.save(saved, best=False)
        for tensor in (saved.model["a"], saved.weights["a"], saved.optimizers[0][0]["exp_avg"]):
            tensor.zero_()
        assert "ends 1" not in seen
        go_on.set()
    loaded = load_checkpoint(tmp_path)
    assert torch.equal(loaded.model["a"], expected.model["a"])
    assert torch.equal(loaded.weights["a"], expected.weights["a"])
    assert torch.equal(loaded.optimizers[0][0]["exp_avg"], expected.optimizers[0][0]["exp_avg"])


def test_one_at_a_time_in_order_and_all_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = hold(monkeypatch, lambda: time.sleep(0.02))
    with open_writer(tmp_path) as writer:
        for epoch in (1, 2, 3):
            writer.save(make_checkpoint(epoch), best=epoch == 2)
    assert seen == ["begins 1", "ends 1", "begins 2", "ends 2", "begins 3", "ends 3"]
    assert load_checkpoint(tmp_path).state.epoch == 3


def test_a_failure_reaches_the_next_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutputError, match=r"space.*has been kept.*`resume`"), open_writer(tmp_path) as writer:
        writer.save(make_checkpoint(1), best=True)
        writer.finish()
        fill_the_disk(monkeypatch)
        writer.save(make_checkpoint(2), best=False)
        writer.save(make_checkpoint(3), best=False)
        raise AssertionError("training went on")
    assert load_checkpoint(tmp_path).state.epoch == 1


def test_a_failure_of_the_last_one_is_raised_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill_the_disk(monkeypatch)
    with pytest.raises(OutputError, match="no epoch has been saved yet"), open_writer(tmp_path) as writer:
        writer.save(make_checkpoint(1), best=False)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_of_the_training_waits_for_what_is_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    hold(monkeypatch, lambda: time.sleep(0.05))
    with pytest.raises(error), open_writer(tmp_path) as writer:
        writer.save(make_checkpoint(1), best=False)
        raise error
    assert load_checkpoint(tmp_path).state.epoch == 1


def test_of_two_errors_the_trainings_is_raised_and_the_writers_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fill_the_disk(monkeypatch)
    with pytest.raises(ValueError, match="astray"), open_writer(tmp_path) as writer:
        writer.save(make_checkpoint(1), best=False)
        raise ValueError("astray")
    assert "no epoch has been saved yet" in caplog.text


def test_within_an_epoch_one_is_due_after_some_time_which_grows_with_its_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_writer(tmp_path) as writer:
        monkeypatch.setattr(module, "SAVE_SECONDS", 3600.0)
        assert not writer.is_due()
        monkeypatch.setattr(module, "SAVE_SECONDS", 0.0)
        assert writer.is_due()
        writer.save(make_checkpoint(1), best=False)
        writer.finish()
        assert writer.cost > 0
        writer.cost = 60.0
        assert not writer.is_due()
        writer.cost = 0.0
        assert writer.is_due()


def test_none_is_due_while_one_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    hold(monkeypatch, lambda: go_on.wait(timeout=10))
    monkeypatch.setattr(module, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(module, "SAVE_SHARE", 1e9)
    with open_writer(tmp_path) as writer:
        writer.save(make_checkpoint(1), best=False)
        assert not writer.is_due()
        go_on.set()
        writer.finish()
        assert writer.is_due()
