"""What lets the processes of one machine meet without anybody else reaching them."""

import socket
from collections.abc import MutableMapping

import psutil
import torch.distributed as dist

HOST = "127.0.0.1"


def local_store() -> dist.TCPStore:
    """A store that only this machine reaches; left to itself, it would listen on all of the machine's addresses."""
    listener = socket.create_server((HOST, 0))
    port = listener.getsockname()[1]
    return dist.TCPStore(HOST, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())


def stay_within(environment: MutableMapping[str, str]) -> None:
    """Have gloo and NCCL, too, listen on loopback alone, unless the user has said where.

    They take anybody for one of the processes who says so, and by default use the address of the machine's name.
    """
    names = [name for name, addresses in psutil.net_if_addrs().items() if HOST in (one.address for one in addresses)]
    for name in names[:1]:
        environment.setdefault("GLOO_SOCKET_IFNAME", name)
        environment.setdefault("NCCL_SOCKET_IFNAME", name)
