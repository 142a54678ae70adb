"""The supervisor's hold on its step: a thread that renews the lease and notices when it is lost."""

import logging
import threading
from typing import Self

from dreamforge.errors import DatabaseUnavailable, LeaseLost
from dreamforge.store.attempts import AttemptStore

log = logging.getLogger(__name__)


class LeaseKeeper:
    """Renews the lease from ``with`` to the end of the block. A renewal with the right token counts even when late."""

    def __init__(self, *, attempt: AttemptStore, lease_seconds: float, renew_seconds: float) -> None:
        self._attempt = attempt
        self._lease_seconds = lease_seconds
        self._renew_seconds = renew_seconds
        self._ending = threading.Event()
        self._lost = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def check(self) -> None:
        """Raise ``LeaseLost`` once the attempt has been replaced."""
        if self._lost.is_set():
            raise LeaseLost

    def __enter__(self) -> Self:
        self._renew()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()

    def _keep(self) -> None:
        while not self._ending.wait(self._renew_seconds):
            self._renew()

    def _renew(self) -> None:
        try:
            self._attempt.renew(lease_seconds=self._lease_seconds)
        except LeaseLost:
            self._lost.set()
            self._ending.set()
        except DatabaseUnavailable:
            log.warning("the lease could not be renewed: the database is away")
