"""Slots: each takes tickets in a thread of its own, claims the best due step, and runs it outside RQ."""

import logging
import threading
import uuid
from collections.abc import Callable

from dreamforge.dispatch.flight import Flight
from dreamforge.errors import DatabaseUnavailable
from dreamforge.jobs.job import Lane
from dreamforge.queue import Ticket, TicketListener
from dreamforge.store.claims import Claim, ClaimStore

log = logging.getLogger(__name__)


class Slot:
    """One step at a time. A ticket is only the bell: after each step the slot claims again until nothing is due."""

    def __init__(
        self,
        *,
        name: str,
        lane: Lane,
        redis_url: str,
        claims: ClaimStore,
        flight: Flight,
        lease_seconds: float,
        new_token: Callable[[], uuid.UUID],
    ) -> None:
        self._lane = lane
        self._claims = claims
        self._flight = flight
        self._lease_seconds = lease_seconds
        self._new_token = new_token
        self._ending = threading.Event()
        # While nobody rings, work comes in all the same.
        self._listener = TicketListener(
            redis_url=redis_url, lane=lane, on_ticket=self._on_ticket, on_silence=self._run_due_steps
        )
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Claim what is due, then wait for tickets."""
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """False once the thread has ended."""
        return self._thread.is_alive()

    @property
    def is_ending(self) -> bool:
        """True once the slot was asked to end."""
        return self._ending.is_set()

    def end(self) -> None:
        """Claim nothing more; the step in flight goes on."""
        self._ending.set()
        self._listener.end()

    def join(self, timeout: float) -> None:
        """Wait for the end, ``timeout`` seconds at most."""
        self._thread.join(timeout)

    def _run(self) -> None:
        self._run_due_steps()
        self._listener.listen()

    def _on_ticket(self, ticket: Ticket) -> None:
        log.debug("ticket", extra={"step_id": ticket.step_id, "request_id": ticket.request_id})
        self._run_due_steps()

    def _run_due_steps(self) -> None:
        while not self._ending.is_set():
            claim = self._claim()
            if claim is None:
                return
            ids = {"job_id": str(claim.fence.job_id), "step_id": str(claim.fence.step_id)}
            log.info("claimed", extra={**ids, "attempt": claim.fence.attempt, "request_id": claim.request_id})
            self._flight.run(claim)

    def _claim(self) -> Claim | None:
        try:
            return self._claims.claim(lane=self._lane, lease_token=self._new_token(), lease_seconds=self._lease_seconds)
        except DatabaseUnavailable:
            log.warning("nothing can be claimed: the database is away")
            return None
