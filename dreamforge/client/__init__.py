"""The Python client of the HTTP API, in a blocking and an async form.

Usage::

    from dreamforge.client import Client

    with Client("http://127.0.0.1:8700") as client:
        job = client.submit("a lighthouse at dawn", count=2, params={"seed": 7})
        job = client.wait(job.id)
        for artifact in client.artifacts(job.id):
            client.download(artifact, Path(f"lighthouse-{artifact.seed}.png"))

``AsyncClient`` has the same methods; those that return an iterator return an async one. What can go wrong is a
``ClientError``; see ``dreamforge.client.errors``. It needs pydantic and httpx2, and nothing else of the service.
"""

from dreamforge.client.async_client import AsyncClient
from dreamforge.client.blocking_client import Client
from dreamforge.client.errors import (
    ApiError,
    ChecksumMismatch,
    ClientError,
    UnexpectedAnswer,
    Unreachable,
    WaitTimeout,
)

__all__ = [
    "ApiError",
    "AsyncClient",
    "ChecksumMismatch",
    "Client",
    "ClientError",
    "UnexpectedAnswer",
    "Unreachable",
    "WaitTimeout",
]
