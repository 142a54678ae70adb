"""The way to a file: where its source says it is, and where that led to."""

import threading
from collections.abc import Callable

from dreamforge.models.remote import Location


class Route:
    """Remembers where redirects have led, so that the source is not asked for every part. Thread-safe."""

    def __init__(self, locate: Callable[[], Location]) -> None:
        self._locate = locate
        self._lock = threading.Lock()
        self._location: Location | None = None

    def location(self) -> Location:
        """Where to ask now. Raises what ``locate`` raises."""
        with self._lock:
            if self._location is None:
                self._location = self._locate()
            return self._location

    def has_led(self, asked: Location, answered: Location) -> None:
        """Whoever was asked has sent on to another, who has the file."""
        with self._lock:
            if self._location is asked:
                self._location = answered

    def forget(self, location: Location) -> None:
        """This address is not good any more: the next one is the source's."""
        with self._lock:
            if self._location is location:
                self._location = None
