"""What whoever installs a model wants to be told meanwhile."""

from enum import StrEnum
from typing import Protocol

from dreamforge.models.remote import RemoteModel


class Phase(StrEnum):
    """What an installation does, in this order."""

    RESOLVE = "resolve"
    DOWNLOAD = "download"
    INSPECT = "inspect"
    PUBLISH = "publish"
    REGISTER = "register"


class Observer(Protocol):
    """Told by several threads; ``on_bytes`` a few times a second for each file."""

    def on_phase(self, phase: Phase) -> None:
        """A phase begins."""
        ...

    def on_resolved(self, model: RemoteModel) -> None:
        """What is going to be downloaded."""
        ...

    def on_bytes(self, phase: Phase, path: str, done: int, total: int | None) -> None:
        """How much of a file of the model has been downloaded, or published."""
        ...

    def on_wait(self, path: str, owner: str, done: int, total: int | None) -> None:
        """Somebody else downloads this file: ``owner``, who has come this far."""
        ...
