"""From pixels to a finished image: encode, upload, write the row.

Runs in a thread of its own while the runner draws the next item.
"""

import contextlib
import hashlib
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Self

from dreamforge.blobs import Blobs
from dreamforge.errors import DatabaseUnavailable, LeaseLost, RunnerTimeout, StorageUnavailable, Unavailable
from dreamforge.jobs.events import ItemStarted, RunnerWarning
from dreamforge.jobs.frames import ItemDrawn
from dreamforge.jobs.image_format import IMAGE_FORMATS
from dreamforge.jobs.keys import ImageName
from dreamforge.patience import LONGEST_PAUSE, for_seconds, outlast
from dreamforge.store.attempts import NewArtifact
from dreamforge.store.step_calls import StepCall
from dreamforge.worker.encoding import Origin, encoded
from dreamforge.worker.journal import Journal
from dreamforge.worker.spool import EncodedImage, Spool

MOST_HELD = 2
"""Images in memory that are not stored yet."""
_POLL_SECONDS = 0.5
_LAST_SECONDS = 3.0
_STUCK_SECONDS = 5.0
"""After which an image that is being stored waits for the store."""
_TOO_LATE = "The step's time was up while an image waited to be stored."


@dataclass(frozen=True)
class Shelf:
    """Where a step's images go: the store, which may be away for ``grace`` seconds, and the node's disk meanwhile."""

    blobs: Blobs
    spool: Spool
    job_id: uuid.UUID
    user_id: str
    step: str
    grace: float


class ImageSaver:
    """Saves images in order, a bounded number behind the runner.

    ``check`` is called at least twice a second while somebody waits for it, and may raise to end the wait.
    """

    def __init__(
        self,
        *,
        journal: Journal,
        shelf: Shelf,
        check: Callable[[], None],
        new_id: Callable[[], uuid.UUID],
        now: Callable[[], datetime],
    ) -> None:
        self._journal = journal
        self._shelf = shelf
        self._check = check
        self._new_id = new_id
        self._now = now
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="save")
        self._pending: list[Future[None]] = []
        self._held: dict[int, Callable[[], EncodedImage]] = {}
        self._waits_for: type[Unavailable] = StorageUnavailable
        self._has_failed = False
        self._is_over = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        # After a trouble what is held may still be stored, by one try; an upload that hangs holds nothing up.
        self._is_over.set()
        self._executor.shutdown(wait=False, cancel_futures=isinstance(error, LeaseLost))
        wait(self._pending, timeout=_LAST_SECONDS)
        for image in list(self._held.values()):
            self._shelf.spool.keep(image())

    def save(self, drawn: ItemDrawn, origin: Origin) -> None:
        """Begin to save an image; waits while too many are held. Raises what an earlier one failed with."""
        self._begin(drawn.item_index, lambda: encoded(drawn, origin))

    def save_kept(self, image: EncodedImage, *, is_begun: bool) -> None:
        """The same for one that an earlier attempt had drawn, whether or not it could write that it began it."""
        if not is_begun:
            self._journal.begin_item(ItemStarted(item_index=image.item_index, seed=image.seed))
        self._begin(image.item_index, lambda: image)

    def finish(self) -> None:
        """Return when every image is stored. Raises what the first bad one failed with."""
        self._wait_until_held(0)

    def _begin(self, item_index: int, image: Callable[[], EncodedImage]) -> None:
        self._held[item_index] = image
        self._wait_until_held(MOST_HELD - 1)
        self._pending.append(self._executor.submit(self._save, item_index, image))

    def _save(self, item_index: int, image: Callable[[], EncodedImage]) -> None:
        try:
            self._store(image())
        finally:
            del self._held[item_index]

    def _wait_until_held(self, most: int) -> None:
        began = time.monotonic()
        while len(self._pending) > most:
            try:
                self._check()
            except RunnerTimeout as error:
                self._blame(error, waited=time.monotonic() - began)
                raise
            with contextlib.suppress(TimeoutError):
                self._pending[0].result(timeout=_POLL_SECONDS)
                self._pending.pop(0)

    def _blame(self, error: RunnerTimeout, *, waited: float) -> None:
        """Raise what is away, where a time limit comes while that is waited for: the step is not to blame."""
        if waited >= _STUCK_SECONDS or self._journal.is_away:
            details = {**error.details, "waited_seconds": round(waited, 1)}
            raise self._waits_for(_TOO_LATE, details=details) from error

    def _store(self, image: EncodedImage) -> None:
        try:
            self._upload_and_publish(image)
        except DatabaseUnavailable:
            self._shelf.spool.keep(image)
            raise
        self._shelf.spool.drop(image.item_index)

    def _upload_and_publish(self, image: EncodedImage) -> None:
        began = time.monotonic()
        key = self._name(image).key
        # One that was replaced while it stood still does not know it yet.
        self._waits_for = DatabaseUnavailable
        self._journal.require_lease()
        self._waits_for = StorageUnavailable
        self._upload(key, image)
        self._waits_for = DatabaseUnavailable
        self._publish(
            NewArtifact(
                id=self._new_id(),
                item_index=image.item_index,
                format=image.format,
                width=image.width,
                height=image.height,
                seed=image.seed,
                s3_key=key,
                size_bytes=len(image.data),
                checksum=hashlib.sha256(image.data).hexdigest(),
                metadata=image.metadata,
                timings={**image.timings, "save": round(time.monotonic() - began, 4)},
            )
        )

    def _upload(self, key: str, image: EncodedImage) -> None:
        if self._has_failed:
            self._shelf.spool.keep(image)
            raise StorageUnavailable
        tries = 0
        may_wait = for_seconds(self._shelf.grace)

        def put() -> None:
            nonlocal tries
            tries += 1
            try:
                self._shelf.blobs.put(key, image.data, content_type=IMAGE_FORMATS[image.format].content_type)
            except StorageUnavailable as error:
                if tries == 1:
                    # At once: who knows how this ends.
                    self._shelf.spool.keep(image)
                    self._tell(error, image)
                raise

        began = time.monotonic()
        try:
            outlast(
                put,
                trouble=StorageUnavailable,
                may_wait=lambda: may_wait() and not self._is_over.is_set(),
                longest_pause=LONGEST_PAUSE,
                sleep=self._is_over.wait,
            )
        except StorageUnavailable as error:
            self._has_failed = True
            waited = {"seconds": round(time.monotonic() - began, 1), "tries": tries}
            raise StorageUnavailable(error.message, details={**error.details, **waited}) from error

    def _tell(self, error: StorageUnavailable, image: EncodedImage) -> None:
        details = {"item_index": image.item_index, "size_bytes": len(image.data), **error.details}
        self._journal.record(RunnerWarning(message=f"An image waits: {error.message}", details=details))

    def _publish(self, new: NewArtifact) -> None:
        try:
            self._journal.publish(new)
        except LeaseLost:
            # Nothing will lead to it: its row is not to be. Unless the row was written and the answer to that was lost.
            if not self._journal.has_repeated:
                with contextlib.suppress(StorageUnavailable):
                    self._shelf.blobs.remove([new.s3_key])
            raise

    def _name(self, image: EncodedImage) -> ImageName:
        return ImageName(
            user_id=self._shelf.user_id,
            job_id=str(self._shelf.job_id),
            step=self._shelf.step,
            taken_at=self._now(),
            item_index=image.item_index,
            width=image.width,
            height=image.height,
            seed=image.seed,
            extension=IMAGE_FORMATS[image.format].extension,
        )


def save_kept(call: StepCall, spool: Spool, saver: Callable[[], ImageSaver]) -> bool:
    """Save the images that an earlier attempt had to leave on this node; True when there were any."""
    spool.sweep()
    seeds = {item.index: item.seed for item in call.items}
    kept = spool.kept(seeds)
    if not kept:
        return False
    with saver() as saving:
        for image in kept:
            saving.save_kept(image, is_begun=seeds[image.item_index] is not None)
        saving.finish()
    return True
