"""Is everything there that jobs need? One time-limited check for each dependency, side by side."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Literal

from dreamforge.api.schemas import Check, Readiness
from dreamforge.api.state import ApiState
from dreamforge.errors import DreamForgeError
from dreamforge.jobs.job import Lane
from dreamforge.store.heartbeats import Heartbeat, read_heartbeats

CHECK_SECONDS = 2.0
BEATS_MISSED = 3
"""Heartbeats that what is alive may miss."""


async def check_readiness(state: ApiState) -> Readiness:
    """The state of every dependency."""
    probes: dict[str, tuple[bool, Callable[[], Awaitable[None]]]] = {
        "postgres": (True, state.jobs.ping),
        "redis": (
            state.rules.redis_outage == "reject",
            lambda: asyncio.to_thread(state.tickets[Lane.GPU].ping),
        ),
        "s3": (False, lambda: asyncio.to_thread(state.blobs.ping)),
        "dispatcher": (False, lambda: _expect_heartbeat(state, "dispatcher", "No dispatcher is running.")),
        "gpu_nodes": (False, lambda: _expect_heartbeat(state, "node", "No GPU node is up.")),
    }
    results = await asyncio.gather(*(_run(required, probe) for required, probe in probes.values()))
    checks = dict(zip(probes, results, strict=True))
    return Readiness(status=_status(list(checks.values())), checks=checks)


def _status(checks: list[Check]) -> Literal["ok", "degraded", "unavailable"]:
    if any(check.required and not check.ok for check in checks):
        return "unavailable"
    return "ok" if all(check.ok for check in checks) else "degraded"


async def _run(required: bool, probe: Callable[[], Awaitable[None]]) -> Check:
    began = time.monotonic()
    message = None
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            await probe()
    except TimeoutError:
        message = f"No answer within {CHECK_SECONDS:g} s."
    except DreamForgeError as error:
        message = error.message
    return Check(ok=message is None, required=required, ms=round((time.monotonic() - began) * 1000), message=message)


async def _expect_heartbeat(state: ApiState, kind: str, missing: str) -> None:
    oldest = state.rules.heartbeat_seconds * BEATS_MISSED
    beats: list[Heartbeat] = await read_heartbeats(state.engine)
    ages = [beat.age_seconds for beat in beats if beat.kind == kind]
    if not ages:
        raise DreamForgeError(missing)
    if min(ages) > oldest:
        raise DreamForgeError(f"{missing} The last one was seen {min(ages):.0f} s ago.")
