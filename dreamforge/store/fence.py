"""The fence: a write of an attempt counts only while that attempt holds the step's lease."""

import uuid
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, text

from dreamforge.errors import LeaseLost

# The job row first, then the step: the order of every transaction that touches both.
_HOLD = text(
    """
    SELECT steps.id FROM jobs JOIN steps ON steps.job_id = jobs.id
    WHERE jobs.id = :job_id AND steps.id = :step_id AND steps.attempt = :attempt
      AND steps.lease_token = :lease_token AND steps.status = 'running'
    FOR UPDATE OF jobs, steps
    """
)


@dataclass(frozen=True)
class Fence:
    """Which attempt is speaking."""

    job_id: uuid.UUID
    step_id: uuid.UUID
    attempt: int
    lease_token: uuid.UUID

    def values(self) -> dict[str, Any]:
        """Bind values of the same names."""
        return {
            "job_id": self.job_id,
            "step_id": self.step_id,
            "attempt": self.attempt,
            "lease_token": self.lease_token,
        }


def hold(connection: Connection, fence: Fence) -> None:
    """Lock the job and its step for this transaction. Raises ``LeaseLost`` when the attempt has been replaced."""
    if connection.execute(_HOLD, fence.values()).first() is None:
        raise LeaseLost(f"attempt {fence.attempt} of step {fence.step_id} no longer holds its lease")
