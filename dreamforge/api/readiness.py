"""Is everything there that jobs need? One time-limited check for each dependency, side by side."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Literal

from dreamforge.api.schemas import Check, Readiness
from dreamforge.api.state import ApiState
from dreamforge.errors import DreamForgeError
from dreamforge.jobs.job import Lane
from dreamforge.store.heartbeats import Heartbeat, read_heartbeats

log = logging.getLogger(__name__)

CHECK_SECONDS = 2.0


class ReadinessChecks:
    """The checks of one replica. However many ask, and however long one of them hangs, each is asked once at a time."""

    def __init__(self, state: ApiState) -> None:
        self._probes = {
            "postgres": _Probe(state.jobs.ping, required=True),
            "redis": _Probe(
                lambda: state.redis_threads.run(state.tickets[Lane.GPU].ping),
                required=state.rules.redis_outage == "reject",
            ),
            "s3": _Probe(lambda: state.blob_threads.run(state.blobs.ping), required=False),
            "dispatcher": _Probe(
                lambda: _expect_heartbeat(state, "dispatcher", "No dispatcher is running."), required=False
            ),
            "gpu_nodes": _Probe(lambda: _expect_heartbeat(state, "node", "No GPU node is up."), required=False),
        }

    async def check(self) -> Readiness:
        """The state of every dependency, within ``CHECK_SECONDS``."""
        results = await asyncio.gather(*(probe.check() for probe in self._probes.values()))
        checks = dict(zip(self._probes, results, strict=True))
        return Readiness(status=_status(list(checks.values())), checks=checks)


def _status(checks: list[Check]) -> Literal["ok", "degraded", "unavailable"]:
    if any(check.required and not check.ok for check in checks):
        return "unavailable"
    return "ok" if all(check.ok for check in checks) else "degraded"


class _Probe:
    def __init__(self, ask: Callable[[], Coroutine[None, None, None]], *, required: bool) -> None:
        self._ask = ask
        self._required = required
        self._asking: asyncio.Task[None] | None = None

    async def check(self) -> Check:
        began = time.monotonic()
        message = await self._message()
        took = round((time.monotonic() - began) * 1000)
        return Check(ok=message is None, required=self._required, ms=took, message=message)

    async def _message(self) -> str | None:
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
            # One that ends after everybody has gone is nobody's error.
            self._asking.add_done_callback(lambda task: task.cancelled() or task.exception())
        # Not cancelled when the time is over: a thread cannot be, and a second one would hang beside it.
        asking = self._asking
        done, _ = await asyncio.wait({asking}, timeout=CHECK_SECONDS)
        if not done:
            return f"No answer within {CHECK_SECONDS:g} s."
        error = asking.exception()
        if error is None or isinstance(error, DreamForgeError):
            return error.message if error else None
        log.error("a readiness check failed", exc_info=error)
        return "The check failed."


async def _expect_heartbeat(state: ApiState, kind: str, missing: str) -> None:
    oldest = state.rules.node_silence
    beats: list[Heartbeat] = await read_heartbeats(state.engine)
    ages = [beat.age_seconds for beat in beats if beat.kind == kind]
    if not ages:
        raise DreamForgeError(missing)
    if min(ages) > oldest:
        raise DreamForgeError(f"{missing} The last one was seen {min(ages):.0f} s ago.")
