"""The supervisor's hold on its step: a thread that renews the lease, and notices its loss and the job's cancel."""

import logging
import math
import threading
import time
from typing import Self

from dreamforge.errors import DatabaseUnavailable, LeaseLost
from dreamforge.store.attempts import AttemptStore

log = logging.getLogger(__name__)


CANCEL_POLL_SECONDS = 0.5
"""Seconds between two looks at the cancel flag."""


class LeaseKeeper:
    """Renews the lease from ``with`` to the end of the block. A renewal with the right token counts even when late.

    ``at_most`` is how many seconds it does so: whoever is in a call that never comes back does not keep its step. They
    count anew from each ``prolong``.
    """

    def __init__(self, *, attempt: AttemptStore, lease_seconds: float, renew_seconds: float, at_most: float) -> None:
        self._attempt = attempt
        self._lease_seconds = lease_seconds
        self._renew_seconds = renew_seconds
        self._renewed_at = -math.inf
        self._at_most = at_most
        self.prolong()
        self._ending = threading.Event()
        self._lost = threading.Event()
        self._cancelled = threading.Event()
        self._bug: Exception | None = None
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def check(self) -> None:
        """Raise ``LeaseLost`` once the attempt has been replaced."""
        if self._lost.is_set():
            raise LeaseLost
        if self._bug is not None:
            raise self._bug

    def prolong(self) -> None:
        """Count the time anew: what is done now gets on."""
        self._ends_at = time.monotonic() + self._at_most

    @property
    def is_cancelled(self) -> bool:
        """True once the job is to be cancelled."""
        return self._cancelled.is_set()

    def __enter__(self) -> Self:
        self._look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()

    def _keep(self) -> None:
        try:
            while not self._ending.wait(min(CANCEL_POLL_SECONDS, self._renew_seconds)):
                if time.monotonic() >= self._ends_at:
                    log.error("the step is given up: it is far past its time limit")
                    return
                self._look()
        except Exception as error:  # noqa: BLE001 - raised by check() where it is seen
            self._bug = error

    def _look(self) -> None:
        try:
            if self._is_cancel_requested() and not self._cancelled.is_set():
                self._cancelled.set()
                self._attempt.note_cancel_seen()
        except LeaseLost:
            self._lost.set()
            self._ending.set()
        except DatabaseUnavailable:
            log.warning("the lease could not be renewed: the database is away")

    def _is_cancel_requested(self) -> bool:
        now = time.monotonic()
        if now - self._renewed_at < self._renew_seconds:
            return self._attempt.is_cancel_requested()
        cancel_requested = self._attempt.renew(lease_seconds=self._lease_seconds)
        self._renewed_at = now
        return cancel_requested
