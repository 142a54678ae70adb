"""Tickets for steps that have none: after Redis was away, after it lost everything, and for retries that came due."""

from dreamforge.jobs.job import Lane
from dreamforge.queue import Ticket, TicketQueue
from dreamforge.store.claims import ClaimStore

_BATCH = 100


class Outbox:
    """Looks whether work is due while the lane's queue is empty, and rings the bell."""

    def __init__(self, *, claims: ClaimStore, queue: TicketQueue, lane: Lane) -> None:
        self._claims = claims
        self._queue = queue
        self._lane = lane

    def once(self) -> None:
        """Push a ticket for each due step, a bounded number, when no ticket waits."""
        due = self._claims.due(lane=self._lane, limit=_BATCH)
        if not due or not self._queue.is_empty():
            return
        for step in due:
            self._queue.push(
                Ticket(
                    step_id=str(step.step_id),
                    job_id=str(step.job_id),
                    step=step.name,
                    attempt=step.attempt,
                    request_id=step.request_id,
                )
            )
