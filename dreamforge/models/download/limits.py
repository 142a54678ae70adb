"""How long a download is tried, and how much it may take."""

import random
from dataclasses import dataclass

MIB = 1024 * 1024

SPARE_BYTES = 256 * MIB
"""Bytes that stay free on a disk: databases may be on the same one."""

TOO_LONG = "too_long"
CHANGES = "changes"
WRONG_HASH = "hash"
WORTHLESS = frozenset({TOO_LONG, CHANGES, WRONG_HASH})
"""Reasons of ``DownloadCorrupt``, in its details, after which nothing of what came is kept."""


@dataclass(frozen=True)
class Retries:
    """How often what is away is asked again, with no byte gained in between, and when. Times in seconds.

    ``longest_retry_after``: who is told to come back later than that gives up, and says so.
    """

    most: int = 6
    first_pause: float = 0.5
    longest_pause: float = 30.0
    longest_retry_after: float = 300.0

    def pause(self, tried: int, *, jitter: float | None = None) -> float:
        """Seconds before the next try, after ``tried`` in vain: twice as many each time, and half of them by chance."""
        chance = random.random() if jitter is None else jitter  # noqa: S311 - jitter
        return min(self.longest_pause, self.first_pause * 2 ** (tried - 1)) * (0.5 + chance / 2)


@dataclass(frozen=True)
class Limits:
    """Bytes. ``spare``: left free on the disk. ``most``: of a file whose size its source does not tell.

    ``piece``: what one request asks for at least, where the file is read over several connections.
    """

    spare: int = SPARE_BYTES
    most: int = 64 * 1024 * MIB
    piece: int = 8 * MIB
