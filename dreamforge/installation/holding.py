"""A lease that is held for the length of a block: renewed from behind, and looked at before each write."""

import logging
import threading
import time
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager

from dreamforge.errors import DatabaseUnavailable, LeaseLost
from dreamforge.patience import for_seconds, outlast
from dreamforge.store.downloads import DownloadLease, DownloadLeases, Holder

log = logging.getLogger(__name__)

_RENEWALS = 4
"""Signs of life in the time of a lease: three may fail."""
_POLL_SECONDS = 0.3
_PATIENCE = 60.0
"""Seconds that the database may be away before what waits for a lease gives up."""


def lease_clock() -> float:
    """Seconds, by the clock that leases are held by."""
    # Unlike that of `time.monotonic` it goes on while the machine sleeps.
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class HeldLease:
    """A lease that this process holds. ``check`` says whether it still does, by this machine's clock."""

    def __init__(self, leases: DownloadLeases, lease: DownloadLease, *, taken_at: float, size: int | None) -> None:
        self._leases = leases
        self._lease = lease
        self._good_until = taken_at + leases.seconds
        self._is_over = False
        self._ending = threading.Event()
        self._done, self._size = 0, size

    @property
    def is_good(self) -> bool:
        """False once its time has run out, and from then on: somebody else may write by now."""
        # What was told that it is over must not find it good again, when a renewal comes late.
        self._is_over = self._is_over or lease_clock() >= self._good_until
        return not self._is_over

    def check(self) -> None:
        """Raise ``LeaseLost`` when it is good no more: whoever downloads then leaves everything as it is."""
        if not self.is_good:
            raise LeaseLost(f"The lease on {self._lease.key} has run out.")

    def tell(self, done: int, size: int | None) -> None:
        """How far its holder has come, for those who wait for it."""
        self._done, self._size = done, size

    def renew_until_ended(self) -> None:
        """Renew the lease until ``end`` or until it is lost; the body of a thread."""
        while not self._ending.wait(self._leases.seconds / _RENEWALS):
            asked_at = lease_clock()
            try:
                self._leases.renew(self._lease, bytes_done=self._done, size=self._size)
            except LeaseLost:
                self._good_until = 0.0
                return
            except DatabaseUnavailable:
                log.warning("a lease could not be renewed: the database is away")
            else:
                self._good_until = asked_at + self._leases.seconds

    def end(self) -> None:
        """Renew no more."""
        self._ending.set()


@contextmanager
def holding(
    leases: DownloadLeases, lease: DownloadLease, *, taken_at: float, size: int | None = None
) -> Generator[HeldLease]:
    """Hold the lease, which was asked for at ``taken_at``, and give it back at the end."""
    held = HeldLease(leases, lease, taken_at=taken_at, size=size)
    renewing = threading.Thread(target=held.renew_until_ended, name="lease", daemon=True)
    renewing.start()
    try:
        yield held
    finally:
        held.end()
        renewing.join()
        try:
            leases.give_back(lease)
        except DatabaseUnavailable:
            log.warning("a lease could not be given back: it ends by itself")


@contextmanager
def waited_for(
    leases: DownloadLeases,
    place: uuid.UUID,
    key: str,
    *,
    owner: str,
    check: Callable[[], None],
    on_wait: Callable[[Holder], None],
    size: int | None = None,
) -> Generator[HeldLease]:
    """Hold the lease on ``key``, once nobody else does.

    Meanwhile ``on_wait`` is told who does, and ``check`` may end it. A database that is away for a while is waited for;
    then ``DatabaseUnavailable`` is raised.
    """

    def take() -> tuple[DownloadLease | Holder, float]:
        check()
        asked_at = lease_clock()
        return leases.take(place, key, owner=owner, size=size), asked_at

    while True:
        taken, asked_at = outlast(take, may_wait=for_seconds(_PATIENCE))
        if isinstance(taken, DownloadLease):
            break
        on_wait(taken)
        time.sleep(_POLL_SECONDS)
    with holding(leases, taken, taken_at=asked_at, size=size) as held:
        yield held
