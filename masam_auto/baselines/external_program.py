"""Another program run to its end, or ended together with this one."""

import contextlib
import signal
import subprocess
from collections.abc import Sequence
from typing import Any

import psutil

# masam_train saves its step on it, however often it comes; SIGTERM a second time, after the batch system's, would not
# let it
ENDING = getattr(signal, "SIGUSR1", signal.SIGTERM)
GRACE_SECONDS = 60.0


def run_program(command: Sequence[str], **options: Any) -> int:
    """Run a program and wait for it.

    Where the waiting ends otherwise (Ctrl-C, SIGTERM), the program has `GRACE_SECONDS` to end; then it is killed, with
    the processes that it has started.

    Args:
        command: the program and its arguments.
        options: of subprocess.Popen.

    Returns:
        Its exit code.
    """
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, **options) as program:
        try:
            return program.wait()
        finally:
            if program.poll() is None:
                _end(program)


def _end(program: subprocess.Popen[Any]) -> None:
    family: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        family = psutil.Process(program.pid).children(recursive=True)
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            program.send_signal(ENDING)
            program.wait(GRACE_SECONDS)
    finally:
        program.kill()
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
