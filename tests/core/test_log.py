import logging
from pathlib import Path

import pytest

from masam_auto.core.errors import CaseErrors
from masam_auto.core.log import (
    LINE_LIMIT,
    LINES_LIMIT,
    LOGGER_NAME,
    log_to_file,
    progress,
    setup_logging,
    shown,
    stop_logging_to,
)


def test_progress_passes_every_item_on_and_says_when_done(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging()
    assert list(progress(iter("abc"), what="reading", total=3)) == ["a", "b", "c"]
    assert "reading: 3 done" in capsys.readouterr().err


def test_messages_also_go_to_a_file_until_it_is_closed(tmp_path: Path) -> None:
    setup_logging()
    handler = log_to_file(tmp_path / "run" / "training.log")
    logging.getLogger(f"{LOGGER_NAME}.stages").info("epoch 1")
    stop_logging_to(handler)
    logging.getLogger(f"{LOGGER_NAME}.stages").info("epoch 2")
    text = (tmp_path / "run" / "training.log").read_text()
    assert "epoch 1" in text
    assert "epoch 2" not in text


def test_messages_stay_readable_whatever_stood_in_a_file() -> None:
    assert shown("a" * LINE_LIMIT) == "a" * LINE_LIMIT
    long = shown(f"begin{'x' * 100_000}end")
    assert long.startswith("begin") and long.endswith("end") and "characters)" in long and len(long) < LINE_LIMIT + 50
    many = shown("\n".join(map(str, range(10_000)))).split("\n")
    assert len(many) == LINES_LIMIT + 1 and many[-1] == "  ... and 9800 more lines"
    assert str(CaseErrors(["a.nii: is\n  - odd", "b"], what="reading")).count("\n") == 2


def test_names_in_messages_do_not_command_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging()
    handler = log_to_file(tmp_path / "training.log")
    logging.getLogger(LOGGER_NAME).warning("odd: %s\nnext line", "a\x1b[2J\rb")
    stop_logging_to(handler)
    for text in (capsys.readouterr().err, (tmp_path / "training.log").read_text()):
        assert r"odd: a\x1b[2J\rb" in text and "\nnext line" in text and "\x1b" not in text
