"""From pixels to a finished image: encode, embed the parameters, upload, write the row.

Runs in a thread of its own while the runner draws the next item.
"""

import contextlib
import hashlib
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import datetime
from typing import Self

from dreamforge import __version__
from dreamforge.blobs import Blobs
from dreamforge.errors import LeaseLost, StorageUnavailable
from dreamforge.images.encode import encode_png
from dreamforge.images.metadata import GenerationParameters
from dreamforge.jobs.frames import ItemDrawn
from dreamforge.jobs.keys import ImageName
from dreamforge.store.attempts import AttemptStore, NewArtifact, StepCall

MOST_HELD = 2
"""Images in memory that are not stored yet."""
_POLL_SECONDS = 0.5
_LAST_SECONDS = 3.0


@dataclass(frozen=True)
class Origin:
    """Where the images of this attempt come from, for their keys and their metadata."""

    job_id: uuid.UUID
    attempt: int
    call: StepCall
    versions: dict[str, str]
    device_name: str


class ImageSaver:
    """Saves images in order, a bounded number behind the runner.

    ``check`` is called at least twice a second while somebody waits for it, and may raise to end the wait.
    """

    def __init__(
        self,
        *,
        attempt: AttemptStore,
        blobs: Blobs,
        check: Callable[[], None],
        new_id: Callable[[], uuid.UUID],
        now: Callable[[], datetime],
    ) -> None:
        self._attempt = attempt
        self._blobs = blobs
        self._check = check
        self._new_id = new_id
        self._now = now
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="save")
        self._pending: list[Future[None]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # After a trouble the image under way may still be finished; an upload that hangs holds nothing up.
        self._executor.shutdown(wait=False, cancel_futures=True)
        wait(self._pending, timeout=_LAST_SECONDS)

    def save(self, drawn: ItemDrawn, origin: Origin) -> None:
        """Begin to save an image; waits while too many are held. Raises what an earlier one failed with."""
        self._wait_until_held(MOST_HELD - 1)
        self._pending.append(self._executor.submit(self._save, drawn, origin))

    def finish(self) -> None:
        """Return when every image is stored. Raises what the first bad one failed with."""
        self._wait_until_held(0)

    def _wait_until_held(self, most: int) -> None:
        while len(self._pending) > most:
            self._check()
            with contextlib.suppress(TimeoutError):
                self._pending[0].result(timeout=_POLL_SECONDS)
                self._pending.pop(0)

    def _save(self, drawn: ItemDrawn, origin: Origin) -> None:
        began = time.monotonic()
        name = self._name(drawn, origin)
        parameters = parameters_of(drawn, origin)
        data = encode_png(
            drawn.pixels,
            width=drawn.width,
            height=drawn.height,
            text={"parameters": parameters.parameters_text(), "dreamforge": parameters.dreamforge_json()},
        )
        # One that was replaced while it stood still does not know it yet.
        self._attempt.require_lease()
        self._blobs.put(name.key, data, content_type="image/png")
        self._publish(
            NewArtifact(
                id=self._new_id(),
                item_index=drawn.item_index,
                format="png",
                width=drawn.width,
                height=drawn.height,
                seed=drawn.seed,
                s3_key=name.key,
                size_bytes=len(data),
                checksum=hashlib.sha256(data).hexdigest(),
                metadata={"versions": origin.versions, "device": origin.device_name},
                timings={**drawn.timings, "save": round(time.monotonic() - began, 4)},
            )
        )

    def _publish(self, new: NewArtifact) -> None:
        try:
            self._attempt.publish(new)
        except LeaseLost:
            # Nothing will lead to it: its row is not to be.
            with contextlib.suppress(StorageUnavailable):
                self._blobs.remove([new.s3_key])
            raise

    def _name(self, drawn: ItemDrawn, origin: Origin) -> ImageName:
        return ImageName(
            user_id=origin.call.user_id,
            job_id=str(origin.job_id),
            step=origin.call.step,
            taken_at=self._now(),
            item_index=drawn.item_index,
            width=drawn.width,
            height=drawn.height,
            seed=drawn.seed,
            extension="png",
        )


def parameters_of(drawn: ItemDrawn, origin: Origin) -> GenerationParameters:
    """What the file says about how it was made."""
    params, model = origin.call.params, origin.call.model
    return GenerationParameters(
        prompt=params["prompt"],
        negative_prompt=params["negative_prompt"],
        seed=drawn.seed,
        scheduler=params["scheduler"],
        steps=params["steps"],
        guidance_scale=params["guidance_scale"],
        width=drawn.width,
        height=drawn.height,
        model_name=model.name if model else "",
        checkpoint_hash=model.checkpoint_hash if model else None,
        job_id=str(origin.job_id),
        item_index=drawn.item_index,
        version=__version__,
    )
