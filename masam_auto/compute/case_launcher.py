"""Start several processes on this machine that share cases. A killed process is started again.

torch's elastic launcher (`compute.launcher`) ends all processes when one fails, as training needs. Here each process
works on its own, so the others continue.
"""

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import torch.distributed as dist

from masam_auto.compute.loopback import HOST, local_store
from masam_auto.compute.shared_cases import PREFIX, REPORT
from masam_auto.core.errors import MasamError

POLL_SECONDS = 0.1
RESTARTS_EACH = 3
SHUTDOWN_SECONDS = 60  # enough to finish a file that is being written


def launch_for_cases(module: str, arguments: Sequence[str], environment: Mapping[str, str], *, processes: int) -> int:
    """Run `python -m module arguments` in several processes that can find each other, as under torchrun.

    Args:
        module: full name of the module; it uses `compute.shared_cases.shared_cases`.
        arguments: its command line.
        environment: of this process.
        processes: how many.

    Returns:
        the exit code of the first process, which reports at the end, or of another that failed before.

    Raises:
        MasamError: processes were killed repeatedly.
    """
    store = local_store()
    shared = dict(environment) | {
        "MASTER_ADDR": HOST,
        "MASTER_PORT": str(store.port),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }

    def start(rank: int) -> subprocess.Popen[bytes]:
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        # in its own session: only this process gets the terminal's Ctrl-C, and reports it once
        return subprocess.Popen([sys.executable, "-m", module, *arguments], env=shared | own, start_new_session=True)

    running: dict[int, subprocess.Popen[bytes]] = {}
    try:
        running |= {rank: start(rank) for rank in range(processes)}
        return _watch(running, start, restarts=RESTARTS_EACH * processes)
    finally:
        with contextlib.suppress(dist.DistError):
            dist.PrefixStore(PREFIX, store).add(f"claim/{REPORT}/0", 1)  # only this process reports
        _end(list(running.values()))


def _watch(
    running: dict[int, subprocess.Popen[bytes]], start: Callable[[int], subprocess.Popen[bytes]], *, restarts: int
) -> int:
    """Wait for the processes, restart killed ones, and return the exit code."""
    while running:
        time.sleep(POLL_SECONDS)
        for rank, process in list(running.items()):
            code = process.poll()
            if code is None:
                continue
            if code < 0 and restarts == 0:
                raise MasamError(
                    f"processes were killed (signal {-code}) repeatedly, most often because memory ran out. Finished "
                    "files are kept: resume with `continue_prediction` and fewer processes."
                )
            if code < 0:
                restarts -= 1
                running[rank] = start(rank)
                continue
            del running[rank]
            if code or rank == 0:  # the first process ends when all cases are done
                return code
    return 0


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask the processes to end, and kill those that do not."""
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + SHUTDOWN_SECONDS
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
