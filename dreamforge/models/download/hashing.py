"""The thread that hashes a file while it is coming."""

import threading
from concurrent.futures import Future
from typing import Self

from dreamforge.models.download.partial import Partial

_WAIT_SECONDS = 0.1


class Hashing:
    """Hashes in the block whatever is there, as soon as ``news`` says that there is more; then sets ``over``."""

    def __init__(self, partial: Partial, news: threading.Event, over: threading.Event) -> None:
        self._partial = partial
        self._news = news
        self._stop = threading.Event()
        self._over = over
        self._ended: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="hashing", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # It reads from the file, which is about to be closed.
        self._stop.set()
        self._news.set()
        self._thread.join()

    def is_over(self) -> bool:
        """True once the file is whole and hashed. Raises what went wrong."""
        if not self._ended.done():
            return False
        self._ended.result()
        return self._partial.is_hashed

    def _run(self) -> None:
        try:
            while not self._stop.is_set() and not self._partial.is_hashed:
                self._news.clear()
                if not self._partial.digest.advance():
                    self._news.wait(_WAIT_SECONDS)
            self._ended.set_result(None)
        except BaseException as error:  # noqa: BLE001 - the edge of a thread: handed on
            self._ended.set_exception(error)
        finally:
            self._over.set()
