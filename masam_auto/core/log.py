"""Logging and progress: bars on a terminal, plain lines elsewhere."""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from masam_auto.core.file_names import visible

T = TypeVar("T")
LOGGER_NAME = "masam_auto"
SECONDS_BETWEEN_LINES = 10.0
LINE_LIMIT, LINES_LIMIT = 1200, 200  # more does not fit on a screen


class _Formatter(logging.Formatter):
    """Escape control characters, which file names may contain. `word` writes options the way the user types them."""

    word: Callable[[str], str] = staticmethod(str)

    def formatMessage(self, record: logging.LogRecord) -> str:
        return shown(self.word(super().formatMessage(record)))


def shown(message: str) -> str:
    """A message that is safe to print and of readable length, even if it quotes text from files."""
    lines = message.split("\n")
    if len(lines) > LINES_LIMIT:
        lines = [*lines[:LINES_LIMIT], f"  ... and {len(lines) - LINES_LIMIT} more lines"]
    return "\n".join(map(_line, lines))


def _line(text: str) -> str:
    if len(text) > LINE_LIMIT:
        text = f"{text[: LINE_LIMIT // 2]} ... ({len(text) - LINE_LIMIT} characters) ... {text[-LINE_LIMIT // 2 :]}"
    return visible(text)


class _BarSafeHandler(logging.Handler):
    """Write to the current standard error through tqdm, so that a message does not break a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def setup_logging(*, verbose: bool = False, word: Callable[[str], str] = str) -> None:
    """Send the package's messages to standard error, reworded by `word`. Only `cli/` calls this."""
    _Formatter.word = staticmethod(word)
    logger = logging.getLogger(LOGGER_NAME)
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    logger.propagate = False
    logger.handlers.clear()
    handler = _BarSafeHandler()
    handler.setFormatter(_Formatter("%(message)s"))
    logger.addHandler(handler)


def log_to_file(path: Path) -> logging.Handler:
    """Also append the package's messages, with times, to a file. Undo with `stop_logging_to`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger(LOGGER_NAME).addHandler(handler)
    return handler


def stop_logging_to(handler: logging.Handler) -> None:
    """Undo `log_to_file`."""
    logging.getLogger(LOGGER_NAME).removeHandler(handler)
    handler.close()


def progress(items: Iterable[T], *, what: str, total: int | None = None, unit: str = "case") -> Iterator[T]:
    """Iterate with a progress bar on a terminal. Elsewhere, log a line every ten seconds and at the end.

    Args:
        items: what to iterate over.
        what: a few words for the bar ("preprocessing").
        total: number of items, if `items` has no length.
        unit: word for one item.
    """
    total = len(items) if total is None and isinstance(items, Sized) else total
    if sys.stderr.isatty():
        yield from tqdm(items, desc=what, total=total, unit=unit, dynamic_ncols=True, leave=False)
        return
    logger = logging.getLogger(LOGGER_NAME)
    started = last = time.monotonic()
    done = 0
    for item in items:
        yield item
        done += 1
        if time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            logger.info("%s: %s of %s, %.0f s", what, done, total if total is not None else "?", last - started)
    logger.info("%s: %s done in %.1f s", what, done, time.monotonic() - started)
