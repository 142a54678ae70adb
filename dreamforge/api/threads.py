"""Threads for calls that block, so many for each server: one that hangs takes none of the others' away."""

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class Threads:
    """At most ``most`` calls at a time; others wait in line."""

    def __init__(self, *, name: str, most: int) -> None:
        self._executor = ThreadPoolExecutor(most, thread_name_prefix=name)

    async def run(self, call: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        """What ``call`` returns or raises. Whoever is cancelled leaves a call behind that has begun."""
        return await asyncio.wrap_future(self._executor.submit(call, *args, **kwargs))

    def leave(self, call: Callable[[], object]) -> None:
        """Call it some time, whatever comes of it; not once the replica leaves."""
        with contextlib.suppress(RuntimeError):
            self._executor.submit(call)

    def close(self) -> None:
        """Begin no more calls. Those that have begun end by their own time limits, and are not waited for."""
        self._executor.shutdown(wait=False, cancel_futures=True)
