"""Starting several training processes on this machine, with torch's elastic agent, which is what torchrun runs."""

import inspect
import logging
import os
import signal
import sys
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from masam_auto.core.errors import MasamError

# So long after a signal the processes have time to finish their step and save it. torch before 2.13 gives them 30 seconds
# and does not take another number.
SHUTDOWN_SECONDS = 60
SHUTDOWN: dict[str, Any] = (
    {"shutdown_timeout": SHUTDOWN_SECONDS}
    if "shutdown_timeout" in inspect.signature(LocalElasticAgent).parameters
    else {}
)
ADDRESS = "127.0.0.1"
# What a process ends with that has said what its user can mend, and what one ends with that a signal has stopped in
# good order is from 128 on. One that a signal has killed has a negative code, and a bug's is 1.
MENDABLE = 2


def check_processes(device: torch.device, processes: int) -> None:
    """Raises MasamError where the machine has fewer GPUs than processes; on a CPU there may be any number."""
    there = {"cpu": processes, "cuda": torch.cuda.device_count()}.get(device.type, 1)
    if there < processes:
        raise MasamError(
            f"-num_gpus {processes}: this machine has {there} device{'s' if there != 1 else ''} of the kind "
            f"{device.type}. Give -num_gpus {there}."
        )


class _Agent(LocalElasticAgent):
    """Starts the processes again when one has died, but not when one has said why it ends: it would say it again."""

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        found: RunResult = super()._monitor_workers(worker_group)
        if found.is_failed() and not has_died(failure.exitcode for failure in found.failures.values()):
            self._remaining_restarts = 0
        return found


def has_died(codes: Iterable[int]) -> bool:
    """Whether one of the processes with these exit codes was killed, or met a bug.

    A killed process is seen before those that end, saying that they lost it, or together with them.
    """
    return any(code < MENDABLE for code in codes)


def launch(module: str, arguments: Sequence[str], *, processes: int, restarts: int) -> int:
    """Run `python -m module arguments` in several processes that find one another, as torchrun does.

    SIGTERM, SIGINT and SIGUSR1 are passed on to them.

    Args:
        module: full name of the module.
        arguments: its command line.
        processes: how many.
        restarts: how often all of them may be started again when one has died.

    Returns:
        the exit code: 0, 128 + the signal that stopped one of them or the launcher, or that of the one which failed first.
    """
    for name in [name for name in logging.root.manager.loggerDict if name.startswith("torch.distributed.elastic")]:
        logging.getLogger(name).setLevel(logging.CRITICAL)  # the processes say what is wrong
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
    meeting = get_rendezvous_handler(
        RendezvousParameters(
            backend="c10d",
            endpoint=f"{ADDRESS}:0",
            run_id=uuid.uuid4().hex,
            min_nodes=1,
            max_nodes=1,
            local_addr=ADDRESS,
        )
    )
    spec = WorkerSpec(
        role="default_role",
        local_world_size=processes,
        rdzv_handler=meeting,
        entrypoint=sys.executable,
        args=("-m", module, *arguments),
        max_restarts=restarts,
        monitor_interval=0.2,
        local_addr=ADDRESS,
    )
    try:
        result = _Agent(spec, logs_specs=DefaultLogsSpecs(), **SHUTDOWN).run()
    except SignalException as error:
        return 128 + error.sigval
    finally:
        meeting.shutdown()
    failures = sorted(result.failures.values(), key=lambda failure: failure.timestamp)
    return exit_code([failure.exitcode for failure in failures])


def exit_code(codes: Sequence[int]) -> int:
    """Of processes that failed in this order, as `launch` returns it: a signal goes before what it did to the others.

    SIGTERM is no such signal: the launcher itself sends it to the others when one process has failed.
    """
    shown = [code if code >= 0 else 128 - code for code in codes]
    return next((code for code in shown if code >= 128 and code != 128 + signal.SIGTERM), next(iter(shown), 0))
