"""Stop a training between two steps when the user or the machine asks for it."""

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass

logger = logging.getLogger(__name__)

# Batch systems can send SIGUSR1 some time before they end a job; Windows does not have it.
PREEMPTION = getattr(signal, "SIGUSR1", None)
STOP_SIGNALS = tuple(number for number in (signal.SIGINT, signal.SIGTERM, PREEMPTION) if number is not None)


@dataclass
class StopRequest:
    """The signal that asked to stop; None so far if none has arrived."""

    signal_number: int | None = None


@contextlib.contextmanager
def stop_requests(*, repeated: bool = False) -> Iterator[StopRequest]:
    """Record SIGINT, SIGTERM and SIGUSR1. Outside the main thread nothing is recorded.

    A second SIGINT or SIGTERM has its usual effect and stops at once. With `repeated` it has none: under a launcher the
    same signal arrives twice, from the batch system and from the launcher.
    """
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def request(number: int, frame: object) -> None:
        if stop.signal_number is None:
            logger.info("stopping after this step (%s)", signal.Signals(number).name)
            stop.signal_number = number
        if repeated:
            return
        for asked, handler in before.items():
            if asked != PREEMPTION:  # a second one would end the process, and batch systems may repeat it
                signal.signal(asked, handler)

    before = {number: signal.signal(number, request) for number in STOP_SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
