"""Asking a hub again that did not answer the first time."""

import random
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from typing import TypeVar

from dreamforge.errors import SourceUnavailable

_Answer = TypeVar("_Answer")
_PAUSES = (0.5, 2.0)
LONGEST_WAIT = 10.0
"""Seconds that a hub may ask for and is given, between two tries; who asks for more is away."""


def ask(question: Callable[[], _Answer], *, sleep: Callable[[float], object] = time.sleep) -> _Answer:
    """The answer, of three tries at most. Raises ``SourceUnavailable`` when none came.

    An error's `details.retry_after`, in seconds, is how long to wait before the next try.
    """
    for pause in _PAUSES:
        try:
            return question()
        except SourceUnavailable as error:
            wait = error.details.get("retry_after", pause * random.uniform(0.8, 1.2))  # noqa: S311 - jitter
            if wait > LONGEST_WAIT:
                raise
            sleep(wait)
    return question()


def in_time(question: Callable[[], _Answer], *, seconds: float, late: Callable[[], SourceUnavailable]) -> _Answer:
    """The answer, or ``late`` is raised: a library's own limit may be one for each read, of a byte or more.

    The question is asked by a thread of its own, which is left behind when it takes longer.
    """
    answer: Future[_Answer] = Future()

    def ask_it() -> None:
        try:
            answer.set_result(question())
        except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
            answer.set_exception(error)

    threading.Thread(target=ask_it, name="hub", daemon=True).start()
    if not wait([answer], timeout=seconds).done:
        raise late()
    return answer.result()


def retry_after(headers: Mapping[str, str]) -> dict[str, float]:
    """The seconds that a hub asks to wait, as details of an error; empty where it asks for none.

    A date (RFC 9110, section 10.2.3) is as good as none: the pauses here are shorter than clocks differ.
    """
    said = headers.get("retry-after", "").strip()
    return {"retry_after": float(said)} if said.isdecimal() and len(said) < 10 else {}
