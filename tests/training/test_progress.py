"""metrics.jsonl and the picture."""

from pathlib import Path

import pytest

from masam_auto.models.checkpoint import EpochSoFar, TrainingState
from masam_auto.training.progress import (
    EpochMetrics,
    advance,
    describe,
    draw_progress,
    mean_of_classes,
    read_metrics,
    seconds_left,
    smooth_dice,
    write_metrics,
)


def line(epoch: int, organ: float | None = 0.5) -> EpochMetrics:
    return EpochMetrics(
        epoch=epoch,
        step=10,
        learning_rate=1e-3,
        loss=0.4,
        dice={"organ": organ, "lesion": None},
        mean_dice=organ,
        smoothed_dice=organ,
        windows_per_second=3.0,
        wait_share=0.012,
        seconds=7300.0,
        cpu_seconds=4.0,
        memory_gib=1.26,
        seconds_left=7200.0,
    )


def test_lines_come_back_up_to_the_epoch_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path, epochs=5) == []
    write_metrics(path, [line(0), line(1, None), line(2)])
    assert read_metrics(path, epochs=2) == [line(0), line(1, None)]
    path.write_text(path.read_text() + '{"epoch": 3, "st')
    assert len(read_metrics(path, epochs=9)) == 3


def test_means_leave_out_what_is_unknown() -> None:
    assert mean_of_classes({"a": 0.5, "b": None, "c": 1.0}) == 0.75
    assert mean_of_classes({"a": None}) is None
    assert smooth_dice(None, 0.5, 1) == 0.5
    assert smooth_dice(0.5, None, 1) == 0.5


def test_the_smoothed_dice_is_a_weighted_mean_from_the_first_epoch_on() -> None:
    values, smoothed = [0.1, 0.6, 0.8, 0.7], None
    for count, value in enumerate(values, start=1):
        smoothed = smooth_dice(smoothed, value, count)
        weights = [0.9 ** (count - 1 - place) for place in range(count)]
        expected = sum(w * v for w, v in zip(weights, values, strict=False)) / sum(weights)
        assert smoothed == pytest.approx(expected)


def test_the_best_epoch_of_a_short_training_need_not_be_its_last() -> None:
    """A start at Dice 0 is forgotten soon enough for a later fall to be seen."""
    state, chosen = TrainingState(), []
    for epoch, value in enumerate([0.0, 0.8, 0.8, 0.8, 0.1]):
        state, best = advance(state, {"organ": value}, wall=1.0, cpu=1.0, finished=False)
        chosen += [epoch] if best else []
    assert chosen == [0, 1, 2, 3] and state.best_epoch == 4


def test_epochs_without_any_class_do_not_count_for_the_mean() -> None:
    state = TrainingState()
    for value in (None, None, 0.4, None, 0.6):
        state, _ = advance(state, {"organ": value}, wall=1.0, cpu=1.0, finished=False)
    assert state.judged == 2
    assert state.smoothed_dice == pytest.approx((0.9 * 0.4 + 0.6) / 1.9)


def test_the_log_line_says_how_it_goes() -> None:
    text = describe(line(4), best=True)
    for part in (
        "epoch 4",
        "loss 0.4",
        "organ 0.500",
        "lesion -",
        "best",
        "learning rate 0.001",
        "3.0 windows/s",
        "1.2 %",
        "peak memory 1.3 GiB",
        "2.0 h left",
    ):
        assert part in text
    assert "best" not in describe(line(4), best=False)


def test_the_time_left_follows_from_the_share_that_is_done() -> None:
    assert seconds_left(10.0, 0.25) == 30.0
    assert seconds_left(10.0, 1.0) == 0.0
    assert seconds_left(10.0, 0.0) is None


def test_the_picture_is_drawn_even_without_dice(tmp_path: Path) -> None:
    draw_progress(tmp_path / "progress.png", [line(0, None), line(1)], title="Dataset001_Toy, fold 0")
    assert (tmp_path / "progress.png").read_bytes().startswith(b"\x89PNG")


def test_an_epoch_moves_the_state_on_and_says_whether_it_is_the_best() -> None:
    before = TrainingState(epoch=3, step=40, unfinished=EpochSoFar(losses=(1.0,)), smoothed_dice=0.5, best_dice=0.5)
    better, best = advance(before, {"organ": 0.6, "lesion": None}, wall=7.0, cpu=9.0, finished=False)
    assert best and (better.epoch, better.step, better.unfinished.steps) == (4, 40, 0)
    assert (better.wall_seconds, better.cpu_seconds, better.best_epoch) == (7.0, 9.0, 4)
    # an older state does not tell how many epochs its Dice is the mean of: taken for all three
    assert better.judged == 4
    assert better.best_dice == better.smoothed_dice == pytest.approx(0.5 + 0.1 / (1 - 0.9**4) * 0.1)
    worse, best = advance(better, {"organ": 0.1}, wall=8.0, cpu=10.0, finished=True)
    assert not best and worse.finished and (worse.epoch, worse.best_epoch, worse.best_dice) == (5, 4, better.best_dice)
