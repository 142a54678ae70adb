"""Passwords and keys, made on first use and kept in files that only their owner can read."""

import contextlib
import os
import secrets
import tempfile
from pathlib import Path

from dreamforge.embedded.trouble import StackError


def secret_file(path: Path) -> str:
    """The secret in ``path``, made when there is none: 43 characters of [A-Za-z0-9_-].

    Whoever asks first makes it, also when several ask at once. Raises ``StackError`` for an empty file.
    """
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _make(path)
    secret = path.read_text().strip()
    if not secret:
        raise StackError(f"{path} is empty: put back the secret that was in it, or remove the data that it opens.")
    return secret


def _make(path: Path) -> None:
    descriptor, unfinished = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w") as stream:
            stream.write(secrets.token_urlsafe(32))
            stream.flush()
            os.fsync(descriptor)
        # A link, unlike a rename, does not replace what somebody else has made meanwhile.
        with contextlib.suppress(FileExistsError):
            os.link(unfinished, path)
    finally:
        Path(unfinished).unlink()
