"""What all servers of the stack have in common."""

from typing import Protocol

from dreamforge.embedded.process import ServerProcess


class Part(Protocol):
    """A server of the stack. After its process has ended it can be started again."""

    @property
    def process(self) -> ServerProcess | None:
        """Its process once it was started."""
        ...

    @property
    def address(self) -> str:
        """Where it listens."""
        ...

    def start(self) -> None:
        """Start it."""
        ...

    def wait_ready(self) -> str:
        """Its version once it answers."""
        ...

    def stop(self) -> None:
        """End it."""
        ...


TITLES = {"postgres": "PostgreSQL", "valkey": "Valkey", "s3": "S3", "ray": "Ray"}
"""What people call the parts, in the order in which they are ended last to first."""
