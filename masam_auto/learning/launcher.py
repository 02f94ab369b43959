"""Starting several training processes on this machine, with torch's elastic launcher."""

import logging
import sys
import uuid
from collections.abc import Sequence

import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from masam_auto.core.errors import MasamError

# So long after a signal the processes have time to finish their step and save it.
SHUTDOWN_SECONDS = 60


def check_processes(device: torch.device, processes: int) -> None:
    """Raises MasamError where the machine has fewer GPUs than processes; on a CPU there may be any number."""
    there = {"cpu": processes, "cuda": torch.cuda.device_count()}.get(device.type, 1)
    if there < processes:
        raise MasamError(
            f"-num_gpus {processes}: this machine has {there} device{'s' if there != 1 else ''} of the kind "
            f"{device.type}. Give -num_gpus {there}."
        )


def launch(module: str, arguments: Sequence[str], *, processes: int, restarts: int) -> int:
    """Run `python -m module arguments` in several processes that find one another, as torchrun does.

    SIGTERM, SIGINT and SIGUSR1 are passed on to them.

    Args:
        module: full name of the module.
        arguments: its command line.
        processes: how many.
        restarts: how often all of them may be started again when one has failed.

    Returns:
        the exit code: 0, that of the process which failed first, or 128 + signal.
    """
    for name in [name for name in logging.root.manager.loggerDict if name.startswith("torch.distributed.elastic")]:
        logging.getLogger(name).setLevel(logging.CRITICAL)  # the processes say what is wrong
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=restarts,
        monitor_interval=0.2,
        signals_to_handle="SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",
        shutdown_timeout=SHUTDOWN_SECONDS,
    )
    try:
        elastic_launch(config, sys.executable)("-m", module, *arguments)
    except ChildFailedError as error:
        code = error.get_first_failure()[1].exitcode
        return code if code >= 0 else 128 - code
    except SignalException as error:
        return 128 + error.sigval
    return 0
