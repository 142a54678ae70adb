"""A replica that leaves says so before it drains.

Serve lets the requests of a leaving replica finish before it ends the application (``perform_graceful_shutdown`` in
``ray/serve/_private/replica.py`` of Ray 2.60). A stream, or an answer that waits for a job, would hold
that up until the replica is killed: both have to be told when the leaving begins, for which there is no hook.
"""

import logging
from collections.abc import Callable
from typing import Any

from ray.serve._private import replica

log = logging.getLogger(__name__)

_LEAVE = "perform_graceful_shutdown"


def before_leaving(tell: Callable[[], None]) -> None:
    """Have ``tell`` called when this replica is asked to leave. It may be called more than once, from any thread."""
    kind: Any = getattr(replica, "Replica", None)
    leave: Any = getattr(kind, _LEAVE, None)
    if leave is None:
        log.warning("Serve has changed: streams and waits hold up a replica that leaves")
        return

    async def tell_and_leave(self: Any) -> None:
        tell()
        await leave(self)

    setattr(kind, _LEAVE, tell_and_leave)
