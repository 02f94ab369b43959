import logging
from pathlib import Path

import pytest

from masam_auto.core.log import LOGGER_NAME, log_to_file, progress, setup_logging, stop_logging_to


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


def test_names_in_messages_do_not_command_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging()
    handler = log_to_file(tmp_path / "training.log")
    logging.getLogger(LOGGER_NAME).warning("odd: %s\nnext line", "a\x1b[2J\rb")
    stop_logging_to(handler)
    for text in (capsys.readouterr().err, (tmp_path / "training.log").read_text()):
        assert r"odd: a\x1b[2J\rb" in text and "\nnext line" in text and "\x1b" not in text
