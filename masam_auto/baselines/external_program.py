"""Run another program to its end, or stop it together with this one."""

import contextlib
import signal
import subprocess
from collections.abc import Sequence
from typing import Any

import psutil

# masam_train saves its state on SIGUSR1, even if it comes twice. A second SIGTERM, after the batch system's, would stop
# it from saving.
ENDING = getattr(signal, "SIGUSR1", signal.SIGTERM)
GRACE_SECONDS = 60.0


def run_program(command: Sequence[str], **options: Any) -> int:
    """Run a program and wait for it.

    If the wait is interrupted (Ctrl-C, SIGTERM), the program gets `GRACE_SECONDS` to end. Then it and its child
    processes are killed.

    Args:
        command: the program and its arguments.
        options: options of subprocess.Popen.

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
