"""Cases on a Dask cluster: the same work as in the local pool, by workers that may be on other machines."""

import importlib
import ipaddress
import logging
import socket
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from masam_auto import __version__
from masam_auto.core.errors import MasamError
from masam_auto.core.plugins import plugin_files, use_plugins

logger = logging.getLogger(__name__)

Item = TypeVar("Item")

CONNECTION_SECONDS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """The workers of the Dask scheduler at an address like tcp://host:8786; used in place of a number of processes."""

    scheduler: str

    def __str__(self) -> str:
        return f"those of {self.scheduler}"


def run_on_cluster(
    cluster: Cluster,
    function: Callable[[Item], tuple[Any, str | None]],
    items: Sequence[Item],
    *,
    names: Sequence[str],
    what: str,
    folders: Sequence[Path],
) -> Generator[tuple[int, Any, str | None]]:
    """Apply a function to every item on the cluster. Yields each outcome once, in the order they arrive.

    If a worker dies, its case is given to another one. This repeats until the case has cost as many workers as the
    scheduler allows (`distributed.scheduler.allowed-failures`).

    Args:
        cluster: the cluster.
        function: importable (top-level) function that reports what it raises.
        items, names, what: as in `compute.parallel.map_cases`.
        folders: every worker must see them.

    Yields:
        index of the item, and what the function returned.

    Raises:
        MasamError: the scheduler does not answer or is lost, a case's workers died, or a worker has another version of
            masam_auto or does not see a folder.
    """
    if is_open(cluster.scheduler):
        logger.warning(
            "warning: %s is neither encrypted nor on this machine: anyone who can reach it or its workers can run code "
            "there and here. Use it only within a network that you trust, or use tls:// (documentation/cluster.md)",
            cluster.scheduler,
        )
    client, as_completed = _connect(cluster)
    try:
        _look_at_workers(client, cluster, what)
        places, plugins = tuple(str(folder) for folder in folders), plugin_files()
        # each item gets a new key: results of earlier runs do not count, because files may have changed since
        waiting = {
            client.submit(_work, function, item, places, plugins, __version__, pure=False): i
            for i, item in enumerate(items)
        }
        for future in as_completed(list(waiting), loop=client.loop):
            index = waiting.pop(future)
            outcome = _outcome(future, cluster, what=f"{what} of {names[index]}")
            future.release()  # otherwise it would be computed again if the worker that holds it dies
            yield (index, *outcome)
    finally:
        client.close()


def is_open(address: str) -> bool:
    """Whether a scheduler's address, such as tcp://host:8786, is on another machine and without TLS."""
    parts = urlsplit(address)
    if parts.scheme == "tls":
        return False
    try:
        return not ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return parts.hostname != "localhost"


def check_answers(cluster: Cluster) -> None:
    """Raise MasamError if the scheduler does not answer, before anything is removed for work on the cluster."""
    client, _ = _connect(cluster)
    client.close()


def _connect(cluster: Cluster) -> tuple[Any, Any]:
    """A client of the scheduler, and `distributed.as_completed`."""
    try:
        from distributed import Client, as_completed  # an optional package, and slow to import
    except ImportError as error:
        raise MasamError(
            "`scheduler` needs the package distributed. Install the extra: pip install masam_auto[cluster]"
        ) from error
    for name in ("distributed", "distributed.client"):  # silence their tracebacks; the error below is one line
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        return Client(cluster.scheduler, timeout=CONNECTION_SECONDS, set_as_default=False), as_completed
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise MasamError(
            f"no Dask scheduler answers at {cluster.scheduler} ({reason}). Start one with `dask scheduler`, give the "
            "address that it prints, and let this machine reach its port."
        ) from error


def _look_at_workers(client: Any, cluster: Cluster, what: str) -> None:
    """Log the number of workers. Raises MasamError if one cannot import this module: its first case would kill it."""
    module = __name__

    def find_module() -> None:  # nested, so that it is sent whole and needs nothing of ours
        importlib.import_module(module)

    if not client.nthreads():
        logger.warning("%s: %s has no workers yet; waiting for the first", what, cluster.scheduler)
        client.wait_for_workers(1)
    try:
        workers = len(client.run(find_module))
    except ImportError as error:
        raise MasamError(
            f"{what}: a worker of {cluster.scheduler} cannot import masam_auto ({error}). Install the same version on "
            "all workers."
        ) from error
    logger.info("%s: %d workers of %s", what, workers, cluster.scheduler)


def _work(
    function: Callable[[Item], tuple[Any, str | None]],
    item: Item,
    folders: Sequence[str],
    plugins: Sequence[str],
    version: str,
) -> tuple[Any, str | None]:
    """On a worker: do the work, unless its version or folders do not fit."""
    here = f"the Dask worker on {socket.gethostname()}"
    if version != __version__:
        raise MasamError(
            f"{here} has masam_auto {__version__}, this machine has {version}. Install the same version on all workers."
        )
    for folder in folders:
        if not Path(folder).is_dir():
            raise MasamError(
                f"{here} does not see {folder}. All workers need the same folders under the same paths: mount them "
                "there."
            )
    try:
        if plugins:
            use_plugins(*plugins)
    except MasamError as error:
        raise MasamError(f"{here}: {error}") from error
    return function(item)


def _outcome(future: Any, cluster: Cluster, *, what: str) -> tuple[Any, str | None]:
    from distributed import CancelledError, KilledWorker  # as above

    try:
        outcome: tuple[Any, str | None] = future.result()
        return outcome
    except KilledWorker as error:
        raise MasamError(
            f"{what}: every worker of {cluster.scheduler} that tried it died, most often because memory ran out. Give "
            "the workers more memory, or run it here with `workers=0` to see the error."
        ) from error
    except (CancelledError, OSError) as error:  # OSError: the connection closed while receiving the result
        raise MasamError(
            f"{what}: the scheduler at {cluster.scheduler} is gone. Finished work is kept; start it, and run this "
            "again."
        ) from error
