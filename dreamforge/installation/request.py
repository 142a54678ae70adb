"""What is to be installed, and what came of it."""

from dataclasses import dataclass
from pathlib import Path

from dreamforge.models.descriptor import ModelDescriptor
from dreamforge.models.weights import Kind
from dreamforge.store.models import Registered


@dataclass(frozen=True)
class InstallRequest:
    """What to install, and as what.

    ``name`` and ``version``: the source's when they are None. ``kind`` and ``config``: see ``inspection.inspect``.
    ``as_default``: see ``ModelRegistry.register``. ``is_local_only``: its files are not sent to the object store.
    """

    reference: str
    name: str | None = None
    version: str | None = None
    kind: Kind | None = None
    config: Path | None = None
    as_default: bool | None = None
    is_local_only: bool = False


@dataclass(frozen=True)
class Installation:
    """A model that the service knows from now on.

    ``folder``: where it lies. ``is_published``: nodes find it in the object store. ``downloaded_bytes``: those that
    were not here already. ``was_there``: it was installed before, just so. ``warnings`` are for a person.
    """

    descriptor: ModelDescriptor
    registered: Registered
    folder: Path
    is_published: bool
    downloaded_bytes: int
    warnings: tuple[str, ...] = ()
    was_there: bool = False
