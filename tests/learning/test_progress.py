"""metrics.jsonl and the picture."""

from pathlib import Path

from masam_auto.learning.progress import (
    EpochMetrics,
    describe,
    draw_progress,
    mean_dice,
    read_metrics,
    seconds_left,
    smooth_dice,
    write_metrics,
)


def line(epoch: int, organ: float | None = 0.5) -> EpochMetrics:
    return EpochMetrics(
        epoch=epoch, step=10, learning_rate=1e-3, loss=0.4, dice={"organ": organ, "lesion": None}, mean_dice=organ,
        smoothed_dice=organ, windows_per_second=3.0, wait_share=0.012, seconds=7300.0, cpu_seconds=4.0, memory_gib=1.26,
        seconds_left=7200.0,
    )  # fmt: skip


def test_lines_come_back_up_to_the_epoch_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path, epochs=5) == []
    write_metrics(path, [line(0), line(1, None), line(2)])
    assert read_metrics(path, epochs=2) == [line(0), line(1, None)]
    path.write_text(path.read_text() + '{"epoch": 3, "st')
    assert len(read_metrics(path, epochs=9)) == 3


def test_means_leave_out_what_is_unknown() -> None:
    assert mean_dice({"a": 0.5, "b": None, "c": 1.0}) == 0.75
    assert mean_dice({"a": None}) is None
    assert smooth_dice(None, 0.5) == 0.5
    assert smooth_dice(0.5, None) == 0.5
    assert abs(smooth_dice(0.5, 1.0) - 0.55) < 1e-12  # type: ignore[operator]


def test_the_log_line_says_how_it_goes() -> None:
    text = describe(line(4), best=True)
    for part in (
        "epoch 4", "loss 0.4", "organ 0.500", "lesion -", "best", "learning rate 0.001", "3.0 windows/s", "1.2 %",
        "peak memory 1.3 GiB", "2.0 h left",
    ):  # fmt: skip
        assert part in text
    assert "best" not in describe(line(4), best=False)


def test_the_time_left_follows_from_the_share_that_is_done() -> None:
    assert seconds_left(10.0, 0.25) == 30.0
    assert seconds_left(10.0, 1.0) == 0.0
    assert seconds_left(10.0, 0.0) is None


def test_the_picture_is_drawn_even_without_dice(tmp_path: Path) -> None:
    draw_progress(tmp_path / "progress.png", [line(0, None), line(1)], title="Dataset001_Toy, fold 0")
    assert (tmp_path / "progress.png").read_bytes().startswith(b"\x89PNG")
