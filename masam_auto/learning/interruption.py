"""Stopping a training between two steps when the user or the machine asks for it."""

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass

logger = logging.getLogger(__name__)


@dataclass
class StopRequest:
    """The signal that asked to stop, or None while none has come."""

    signal_number: int | None = None


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Notes SIGINT and SIGTERM; a second one stops at once. Outside the main thread nothing is noted."""
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def request(number: int, frame: object) -> None:
        logger.info("stopping after this step (%s)", signal.Signals(number).name)
        stop.signal_number = number
        signal.signal(number, before[signal.Signals(number)])

    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
