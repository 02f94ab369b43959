"""Let the processes of one machine connect without being reachable from outside."""

import socket
from collections.abc import MutableMapping

import psutil
import torch.distributed as dist

HOST = "127.0.0.1"


def local_store() -> dist.TCPStore:
    """A store that only this machine can reach; by default it would listen on all of the machine's addresses."""
    listener = socket.create_server((HOST, 0))
    port = listener.getsockname()[1]
    return dist.TCPStore(HOST, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())


def stay_within(environment: MutableMapping[str, str]) -> None:
    """Make gloo and NCCL also listen on loopback only, unless the user has chosen an address.

    They accept anyone who claims to be one of the processes, and by default use the address of the machine's name.
    """
    names = [name for name, addresses in psutil.net_if_addrs().items() if HOST in (one.address for one in addresses)]
    for name in names[:1]:
        environment.setdefault("GLOO_SOCKET_IFNAME", name)
        environment.setdefault("NCCL_SOCKET_IFNAME", name)
