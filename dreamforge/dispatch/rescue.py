"""The loop that takes steps back from those who were lost."""

import logging
import time
import uuid
from collections.abc import Callable

from dreamforge.errors import Unavailable
from dreamforge.store.rescues import RescueStore, UnendableStep

log = logging.getLogger(__name__)


class Rescue:
    """Judges nobody before it has itself reached Postgres, without a break, for a whole lease.

    Whoever was cut off together with it, or stood still with it, has had the time to renew by then. To be called
    more often than twice a lease.
    """

    def __init__(
        self, *, store: RescueStore, lease_seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = store
        self._lease_seconds = lease_seconds
        self._clock = clock
        self._since: float | None = None
        self._seen = (0.0, 0.0)

    def once(self) -> None:
        """Look whether Postgres answers, and rescue what is there to be rescued once it has for long enough."""
        try:
            self._look()
        except Unavailable:
            self._since = None
            raise

    def _look(self) -> None:
        there, here = self._store.now(), self._clock()
        if self._since is None or self._has_jumped(here, there):
            self._since = here
        self._seen = (here, there)
        if here - self._since >= self._lease_seconds:
            self._rescue_all()

    def _has_jumped(self, here: float, there: float) -> bool:
        """True when a clock shows much more, or less, than the time between two looks.

        A process that was stopped has had no error; nor has one on a machine that slept, where our clock slept too, or
        whose database was given another time: leases run by that.
        """
        most = self._lease_seconds / 2
        return here - self._seen[0] > most or abs(there - self._seen[1]) > most

    def _rescue_all(self) -> None:
        unendable: set[uuid.UUID] = set()
        while True:
            try:
                rescued = self._store.rescue_one(skip=unendable)
            except UnendableStep as error:
                # It must not stand in the others' way.
                log.exception("a step cannot be rescued", extra={"step_id": str(error.step_id)})
                unendable.add(error.step_id)
                continue
            if rescued is None:
                return
            fence, verdict = rescued
            log.warning(
                "rescued a step",
                extra={"job_id": str(fence.job_id), "step_id": str(fence.step_id), "status": verdict.status},
            )
