"""Passwords and keys, made on first use and kept in files that only their owner can read."""

import os
import secrets
from pathlib import Path


def secret_file(path: Path) -> str:
    """The secret in ``path``, made when there is none: 43 characters of [A-Za-z0-9_-]."""
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        unfinished = path.with_name(f"{path.name}.{os.getpid()}")
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(secrets.token_urlsafe(32))
        unfinished.rename(path)
    return path.read_text().strip()
