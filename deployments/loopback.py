"""Serve's replicas kept to loopback on a cluster of one machine.

Each replica listens for other replicas on every interface (`[::]:0`, ``Replica._on_initialized`` in
``ray/serve/_private/replica.py`` of Ray 2.60), and unpickles what it is sent: whoever reaches that port runs code. No
setting changes the address. User code runs before the port is opened, so the function that opens it can be wrapped.
"""

import logging
from typing import Any

import ray
from ray.serve._private import replica

log = logging.getLogger(__name__)

_LOOPBACK = "127.0.0.1"
_OPENER = "add_port_to_grpc_server"


def keep_to_loopback() -> None:
    """Have this replica's port opened on loopback, when that is the node's own address."""
    if ray.util.get_node_ip_address() != _LOOPBACK:
        return
    open_port: Any = getattr(replica, _OPENER, None)
    if open_port is None:
        log.warning("Serve has changed: replicas listen on every interface")
        return

    def open_on_loopback(server: Any, address: str) -> int:
        return open_port(server, address.replace("[::]", _LOOPBACK))

    setattr(replica, _OPENER, open_on_loopback)
