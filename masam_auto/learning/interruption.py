"""Stopping a training between two steps when the user or the machine asks for it."""

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator

from masam_auto.core.errors import MasamError

logger = logging.getLogger(__name__)


class Interrupted(MasamError):
    """Training was asked to stop (SIGINT or SIGTERM) and has stopped between two steps."""


@contextlib.contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """An event that SIGINT or SIGTERM sets; a second SIGINT stops at once. Outside the main thread it stays unset."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def request(number: int, frame: object) -> None:
        logger.info("stopping after this step (%s)", signal.Signals(number).name)
        stop.set()
        signal.signal(number, before[signal.Signals(number)])

    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
