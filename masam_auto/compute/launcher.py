"""Start several training processes on this machine with torch's elastic agent, the one that torchrun uses."""

import logging
import signal
import sys
from collections.abc import Iterable, MutableMapping, Sequence

import torch
from torch.distributed import PrefixStore
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousStoreInfo

from masam_auto.compute.loopback import HOST, local_store, stay_within
from masam_auto.core.errors import MasamError

# After a signal, the processes have this long to finish their step and save it.
SHUTDOWN_SECONDS = 60
# Exit codes: one for a reported error that users can fix, 128 or more if a signal stopped the process cleanly. A
# negative code means that a signal killed it, and 1 is a bug.
MENDABLE = 2


def check_processes(device: torch.device, processes: int) -> None:
    """Raises MasamError if the machine has fewer GPUs than processes; a CPU may have any number."""
    there = {"cpu": processes, "cuda": torch.cuda.device_count()}.get(device.type, 1)
    if there < processes:
        raise MasamError(
            f"`num_gpus={processes}`: this machine has {there} device{'s' if there != 1 else ''} of the kind "
            f"{device.type}. Give `num_gpus={there}`."
        )


class _Meeting(RendezvousHandler):
    """A meeting point for one machine, over a store that only this machine can reach.

    torch's own handlers listen on every address, and the usual one unpickles the content of the store.
    """

    def __init__(self) -> None:
        self._store, self._round = local_store(), 0

    def get_backend(self) -> str:
        return "loopback"

    @property
    def use_agent_store(self) -> bool:
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        self._round += 1  # do not read what processes before a restart left
        store = PrefixStore(f"agent/{self._round}", self._store)
        return RendezvousInfo(store, 0, 1, RendezvousStoreInfo(HOST, self._store.port))

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        """Nothing to do: no other machine can join."""

    def num_nodes_waiting(self) -> int:
        return 0

    def get_run_id(self) -> str:
        return "masam"

    def shutdown(self) -> bool:
        return True


class _Agent(LocalElasticAgent):
    """Restart the processes when one has died, but not when one ended with a reported error, which would repeat."""

    def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, timeout: int = SHUTDOWN_SECONDS) -> None:
        # Torch 2.11 has no argument for this time: end the processes here, so torch finds them already ended.
        if self._pcontext is not None:
            self._pcontext.close(death_sig, SHUTDOWN_SECONDS)
        super()._shutdown(death_sig)

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        found: RunResult = super()._monitor_workers(worker_group)
        if found.is_failed() and not has_died(failure.exitcode for failure in found.failures.values()):
            self._remaining_restarts = 0
        return found


def has_died(codes: Iterable[int]) -> bool:
    """Whether a process with one of these exit codes was killed or had a bug.

    A killed process is noticed before, or together with, those that end because they lost it.
    """
    return any(code < MENDABLE for code in codes)


def launch(
    module: str, arguments: Sequence[str], environment: MutableMapping[str, str], *, processes: int, restarts: int
) -> int:
    """Run `python -m module arguments` in several processes that can find each other, like torchrun.

    SIGTERM, SIGINT and SIGUSR1 are passed on to them.

    Args:
        module: full name of the module.
        arguments: its command line.
        environment: of this process, inherited by the others. Settings that keep them on this machine are added.
        processes: how many.
        restarts: how often all of them may be restarted when one has died.

    Returns:
        the exit code: 0; 128 + the signal that stopped a process or the launcher; or the code of the first process
            that failed.
    """
    for name in [name for name in logging.root.manager.loggerDict if name.startswith("torch.distributed.elastic")]:
        logging.getLogger(name).setLevel(logging.CRITICAL)  # the processes report errors themselves
    environment["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
    stay_within(environment)
    spec = WorkerSpec(
        role="default_role",
        local_world_size=processes,
        rdzv_handler=_Meeting(),
        entrypoint=sys.executable,
        args=("-m", module, *arguments),
        max_restarts=restarts,
        monitor_interval=0.2,
        local_addr=HOST,
    )
    try:
        result = _Agent(spec, logs_specs=DefaultLogsSpecs()).run()
    except SignalException as error:
        return 128 + error.sigval
    failures = sorted(result.failures.values(), key=lambda failure: failure.timestamp)
    return exit_code([failure.exitcode for failure in failures])


def exit_code(codes: Sequence[int]) -> int:
    """The exit code for processes that failed in this order: a signal comes before the failures that it caused.

    SIGTERM does not count, because the launcher itself sends it to the others when one process has failed.
    """
    shown = [code if code >= 0 else 128 - code for code in codes]
    return next((code for code in shown if code >= 128 and code != 128 + signal.SIGTERM), next(iter(shown), 0))
