"""Whether to try again, and when: decided apart from doing it."""

from dreamforge.errors import DownloadCorrupt, SourceError
from dreamforge.models.download.limits import CHANGES, TOO_LONG, Retries

_MOST_REFUSALS = 2
"""A remembered address, and a fresh one."""
_MOST_CHANGES = 4


class Attempts:
    """The tries of one download since it last gained a byte."""

    def __init__(self, retries: Retries) -> None:
        self._retries = retries
        self._failed = 0
        self._refused = 0
        self._changed = 0

    def gained(self) -> None:
        """Bytes have come."""
        self._failed = self._refused = 0

    def failed(self, error: SourceError) -> float:
        """Seconds until the next try. Raises the error when there is none."""
        self._failed += 1
        told: float = error.details.get("retry_after", 0.0)
        is_vain = error.details.get("reason") == TOO_LONG
        if is_vain or self._failed >= self._retries.most or told > self._retries.longest_retry_after:
            raise error
        return max(told, self._retries.pause(self._failed))

    def refused(self, error: SourceError) -> None:
        """An address was not good. Raises the error when a fresh one was not either."""
        self._refused += 1
        if self._refused >= _MOST_REFUSALS:
            raise error

    def changed(self, path: str) -> None:
        """The file is another now. Raises ``DownloadCorrupt`` when it does not stay one for long enough."""
        self._changed += 1
        if self._changed > _MOST_CHANGES:
            raise DownloadCorrupt(
                f"{path} changes at its source while it is downloaded.", details={"file": path, "reason": CHANGES}
            )

    @property
    def trusts_marks(self) -> bool:
        """False once they have changed again and again: servers behind one name may each have their own."""
        return self._changed < _MOST_CHANGES // 2
