"""What can go wrong between a client and the service.

ClientError
├── Unreachable         nobody answers, or not in time
├── ApiError            the service answered with an error, which has a code
├── UnexpectedAnswer    something else answered, or the object store refused
├── WaitTimeout         the job is not over yet
└── ChecksumMismatch    what was downloaded is not what was stored
"""

from collections.abc import Mapping
from typing import Any


class ClientError(Exception):
    """Base of all."""

    @property
    def is_passing(self) -> bool:
        """True when the same call may succeed in a moment."""
        return False


class Unreachable(ClientError):
    """Nobody answers at ``url``, or not in time. ``is_store``: it is the object store that does not."""

    def __init__(self, url: str, reason: str, *, is_store: bool = False) -> None:
        super().__init__(f"{url} does not answer: {reason}")
        self.url = url
        self.reason = reason
        self.is_store = is_store

    @property
    def is_passing(self) -> bool:
        """It may be starting."""
        return True


class ApiError(ClientError):
    """The service's own word: its error envelope.

    ``code`` is stable (`unknown_model`, `not_found`, …) and ``details`` belong to it; ``status`` is HTTP's;
    ``request_id`` finds the request in the service's logs; ``retry_after`` are the seconds after which it may be made
    again, where the service names them.
    """

    def __init__(
        self,
        *,
        status: int,
        code: str,
        message: str,
        details: Mapping[str, Any],
        request_id: str | None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.status = status
        self.code = code
        self.message = message
        self.details = dict(details)
        self.request_id = request_id
        self.retry_after = retry_after

    @property
    def is_passing(self) -> bool:
        """A dependency of the service is away, or the service itself, which the edge tells with 500 too."""
        return self.status in {502, 503, 504} or self.code == "service_unavailable"


class UnexpectedAnswer(ClientError):
    """An answer that the API does not give: another program's, or the object store's refusal."""

    def __init__(self, url: str, *, status: int) -> None:
        super().__init__(f"{url} gave an answer that is not Dream Forge's (status {status}).")
        self.url = url
        self.status = status

    @property
    def is_passing(self) -> bool:
        """A store or a proxy that is overloaded or away."""
        return self.status in {502, 503, 504}


class WaitTimeout(ClientError):
    """The job was not over in time; it goes on. ``status`` is what was last heard of it, None when nothing was."""

    def __init__(self, job_id: str, *, status: str | None, seconds: float) -> None:
        so_far = f"is still {status}" if status else "was not heard of"
        super().__init__(f"The job {job_id} {so_far} after {seconds:g} s.")
        self.job_id = job_id
        self.status = status


class ChecksumMismatch(ClientError):
    """What was downloaded is not what was stored. Nothing was kept."""

    def __init__(self, *, expected: str, received: str) -> None:
        super().__init__(f"The download's checksum is {received}, expected {expected}.")
        self.expected = expected
        self.received = received
