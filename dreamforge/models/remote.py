"""A model at its source, pinned: which files it has there, and what they must turn out to be."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dreamforge.models.weights import Kind


@dataclass(frozen=True)
class RemoteFile:
    """One file of a model that is to be downloaded.

    ``path``: where it goes, relative to the model's folder, with ``/`` between; see ``file_names.safe_path``. ``url``:
    where it is, without credentials. ``size`` in bytes; ``sha256`` of its bytes in hex; ``git_sha1``: of a blob of git,
    which small files of Hugging Face carry in place of a sha256. What a source does not tell is None.
    """

    path: str
    url: str
    size: int | None = None
    sha256: str | None = None
    git_sha1: str | None = None

    @property
    def key(self) -> str:
        """What the file is known by while it is being downloaded: by its content, where that is known."""
        if self.sha256 is not None:
            return f"sha256-{self.sha256}"
        return f"git-{self.git_sha1}" if self.git_sha1 is not None else f"url-{_digest(self.url)}"


@dataclass(frozen=True)
class Location:
    """Where a file can be read just now. ``headers`` hold credentials: they go to this URL's host and no further."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)


@dataclass(frozen=True)
class RemoteModel:
    """What a reference has been resolved to.

    ``source_uri``: the reference, pinned to a revision that never moves, such as `hf:org/repo@<commit>`. ``name`` and
    ``version``: what to call it when nobody says. ``main``: the path of the one file that is the model; None when the
    folder is. ``kind``: what the source calls it, None where it does not say. ``metadata``: for the registry.
    """

    source_uri: str
    name: str
    version: str
    files: tuple[RemoteFile, ...]
    main: str | None = None
    kind: Kind | None = None
    metadata: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def size_bytes(self) -> int | None:
        """All files together; None where the source does not tell of each."""
        sizes = [file.size for file in self.files]
        return None if None in sizes else sum(size or 0 for size in sizes)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
