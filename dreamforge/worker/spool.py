"""Images whose upload was given up, kept on the node's disk: the next attempt there need not draw them again."""

import contextlib
import errno
import hashlib
import json
import logging
import shutil
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dreamforge.jobs.image_format import PNG

log = logging.getLogger(__name__)

_LEAST_FREE = 256 * 1024 * 1024
"""Bytes of the disk that are left to others."""
_CHECKSUM = "sha256"
_KEPT_SECONDS = 86_400.0
"""After that whoever would have wanted them has given up."""


@dataclass(frozen=True)
class EncodedImage:
    """A finished image that has no place yet: the bytes of its file, and what its row says.

    ``timings`` are seconds by stage; ``metadata`` are the artifact's. One that was kept before there were several
    formats says none.
    """

    item_index: int
    seed: int
    width: int
    height: int
    timings: dict[str, float]
    metadata: dict[str, Any]
    data: bytes
    format: str = PNG


class Spool:
    """One step's images in a folder of the node. A disk that is full or broken keeps none, which is no trouble."""

    def __init__(self, folder: Path, *, step_id: uuid.UUID) -> None:
        self._root = folder
        self._folder = folder / str(step_id)

    def keep(self, image: EncodedImage) -> None:
        """Keep an image."""
        if (there := self._read(image.item_index)) is not None and there.data == image.data:
            return
        description = {name: value for name, value in asdict(image).items() if name != "data"}
        # By which an image is known that was not written to its end.
        description[_CHECKSUM] = hashlib.sha256(image.data).hexdigest()
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if shutil.disk_usage(self._folder).free < _LEAST_FREE:
                raise OSError(errno.ENOSPC, "others need what is left")
            self._write(self._path(image.item_index, "image"), image.data)
            self._write(self._path(image.item_index, "json"), json.dumps(description).encode())
        except OSError as error:
            log.warning("an image could not be kept", extra={"error": type(error).__name__})

    def kept(self, seeds: Mapping[int, int | None]) -> list[EncodedImage]:
        """The images that are here of those wanted: items, and the seed of each, None for one that nobody has begun."""
        images = [(seed, self._read(index)) for index, seed in seeds.items()]
        return [image for seed, image in images if image is not None and seed in {None, image.seed}]

    def drop(self, item_index: int) -> None:
        """Forget an image."""
        with contextlib.suppress(OSError):
            for kind in ("json", "image"):
                self._path(item_index, kind).unlink(missing_ok=True)

    def sweep(self) -> None:
        """Remove what is a day old of other steps."""
        oldest = time.time() - _KEPT_SECONDS
        for folder in self._root.glob("*"):
            # Others on the node do the same.
            with contextlib.suppress(OSError):
                is_over = not any(folder.iterdir()) if folder == self._folder else folder.stat().st_mtime < oldest
                if is_over:
                    shutil.rmtree(folder, ignore_errors=True)

    def _write(self, path: Path, data: bytes) -> None:
        partial = path.with_suffix(f"{path.suffix}.partial")
        try:
            partial.write_bytes(data)
            partial.rename(path)
        finally:
            partial.unlink(missing_ok=True)

    def _path(self, item_index: int, kind: str) -> Path:
        return self._folder / f"{item_index}.{kind}"

    def _read(self, item_index: int) -> EncodedImage | None:
        try:
            description = json.loads(self._path(item_index, "json").read_text())
            data = self._path(item_index, "image").read_bytes()
            is_whole = description.pop(_CHECKSUM) == hashlib.sha256(data).hexdigest()
            image = EncodedImage(**description, data=data)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None
        return image if is_whole and image.item_index == item_index else None
