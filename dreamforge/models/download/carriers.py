"""Who brings the bytes of one file: a thread that leads, and others that help where the server lets them."""

import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial as bound
from typing import Self

from dreamforge.errors import DownloadCorrupt, SourceError, SourceUnavailable
from dreamforge.models.download.answers import Head, Known, Mark, Meaning, refusal, understand
from dreamforge.models.download.attempts import Attempts
from dreamforge.models.download.ledger import Piece
from dreamforge.models.download.limits import MIB, Retries
from dreamforge.models.download.line import Dismissed, Line
from dreamforge.models.download.partial import Partial, too_long
from dreamforge.models.download.route import Route
from dreamforge.models.download.transport import Answer, Transport

_NO_SUCH_PART = 416
_READ = 512 * 1024
_LARGEST_PIECE = 64 * MIB
_REST_SECONDS = 0.02
_WAIT_SECONDS = 0.2
_HELP_AGAIN_SECONDS = 5.0


class _Refused(Exception):
    """The address is not good; ``error`` is to be said if no other is."""

    def __init__(self, error: SourceError) -> None:
        super().__init__(str(error))
        self.error = error


class _Changed(Exception):
    """What was begun is worth nothing."""


class Carriers:
    """Bring what is missing of a file. ``news`` is set when there is more of it, ``over`` when they are.

    The leader alone decides: a helper in trouble gives its piece back and goes, and the leader comes upon the trouble
    itself, or upon none. ``permits``: helpers that all downloads may have together.
    """

    def __init__(
        self,
        *,
        partial: Partial,
        route: Route,
        transport: Transport,
        retries: Retries,
        connections: int,
        permits: threading.Semaphore,
        check: Callable[[], None],
        news: threading.Event,
        over: threading.Event,
    ) -> None:
        self._ended: Future[None] = Future()
        self._partial = partial
        self._file = partial.file
        self._ledger = partial.ledger
        self._route = route
        self._transport = transport
        self._attempts = Attempts(retries)
        self._connections = connections
        self._permits = permits
        self._check = check
        self._news = news
        self._over = over
        self._asks_for_parts = True
        self._leader = Line()
        self._helpers: set[Line] = set()
        self._lock = threading.Lock()
        self._help_again_at = 0.0

    def __enter__(self) -> Self:
        self._start(self._lead)
        return self

    def __exit__(self, *_: object) -> None:
        """When this returns none of them writes any more.

        A thread may still wait for an answer, or for a name to be looked up: nothing ends that. It goes afterwards.
        """
        self._leader.dismiss()
        self._dismiss_helpers()

    def are_over(self) -> bool:
        """True once all bytes are there. Raises what went wrong."""
        if not self._ended.done():
            return False
        self._ended.result()
        return True

    def watch(self, stall_seconds: float) -> None:
        """Break off connections by which nothing comes. Raises ``SourceUnavailable`` where that cannot be done."""
        with self._lock:
            lines = (self._leader, *self._helpers)
        if any(line.is_overdue(self._transport.longest_wait) for line in lines):
            raise self._stalled()
        for line in lines:
            line.watch(stall_seconds)

    def _start(self, work: Callable[[], None]) -> None:
        threading.Thread(target=self._guard, args=(work,), name="download", daemon=True).start()

    def _guard(self, work: Callable[[], None]) -> None:
        """The outermost of a thread: what goes wrong is for whoever waits."""
        try:
            work()
        except Dismissed:
            pass
        except BaseException as error:  # noqa: BLE001 - handed on
            self._fail(error)
        finally:
            self._news.set()

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            if not self._ended.done():
                self._ended.set_exception(error)
        self._over.set()

    def _lead(self) -> None:
        while not self._ledger.is_whole:
            piece = self._ledger.take(self._most_at_once())
            if piece is None:
                # The helpers have the rest.
                self._leader.rest(_REST_SECONDS)
                continue
            try:
                self._bring_or_wait(piece)
            finally:
                self._ledger.give_back(piece)
        with self._lock:
            if not self._ended.done():
                self._ended.set_result(None)
        self._over.set()

    def _bring_or_wait(self, piece: Piece) -> None:
        try:
            self._bring(self._leader, piece)
            self._note_gain()
        except _Changed:
            self._attempts.changed(self._file.path)
            self._begin_anew()
        except _Refused as refused:
            self._note_gain()
            self._attempts.refused(refused.error)
        except (SourceUnavailable, DownloadCorrupt) as error:
            if not self._leader.has_stalled:
                self._note_gain()
            pause = self._attempts.failed(self._stalled() if self._leader.has_stalled else error)
            self._wait(pause)

    def _wait(self, seconds: float) -> None:
        """Until it is time to try again, or the helpers have brought the rest."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not self._ledger.is_whole:
            self._check()
            self._leader.rest(min(left, _WAIT_SECONDS))

    def _note_gain(self) -> None:
        if self._ledger.has_gained():
            self._attempts.gained()

    def _help(self, line: Line) -> None:
        try:
            while (piece := self._ledger.take(self._most_at_once())) is not None:
                try:
                    self._bring(line, piece)
                finally:
                    self._ledger.give_back(piece)
        except (SourceError, _Refused, _Changed):
            self._help_again_at = time.monotonic() + _HELP_AGAIN_SECONDS
        finally:
            with self._lock:
                self._helpers.discard(line)
            self._permits.release()

    def _call_helpers(self) -> None:
        """As many as there are pieces, connections and permits for."""
        if not self._partial.may_be_pieced or time.monotonic() < self._help_again_at:
            return
        while len(self._helpers) < self._connections - 1 and self._ledger.is_missing_more:
            if not self._permits.acquire(blocking=False):
                return
            line = Line()
            with self._lock:
                self._helpers.add(line)
            self._start(bound(self._help, line))

    def _dismiss_helpers(self) -> None:
        with self._lock:
            lines = tuple(self._helpers)
        for line in lines:
            line.dismiss()

    def _bring(self, line: Line, piece: Piece) -> None:
        """Ask for a piece and read what comes. Raises what stands against it."""
        line.has_stalled = False
        line.rest(0)
        self._check()
        location = self._route.location()
        with line.asking():
            answer = self._transport.get(location, self._asked(piece))
        with line.reading(answer):
            head = self._understood(answer, piece)
            if head.meaning is Meaning.REFUSED:
                self._route.forget(location)
                raise _Refused(refusal(answer.status, answer.headers, host=answer.host, file=self._file))
            self._route.has_led(location, answer.location)
            if line is not self._leader and head.meaning is not Meaning.PART:
                raise _Changed
            accepted = self._accept(answer, head, piece) if line is self._leader else piece
            if accepted is None:
                return
            try:
                self._read(line, answer, head, accepted)
            finally:
                self._ledger.give_back(accepted)

    def _asked(self, piece: Piece) -> dict[str, str]:
        if not self._asks_for_parts:
            return {}
        last = "" if self._is_open(piece) else piece.end - 1
        asked = {"Range": f"bytes={piece.at}-{last}"}
        condition = self._mark().condition()
        return asked if condition is None else {**asked, "If-Range": condition}

    def _is_open(self, piece: Piece) -> bool:
        """True when nobody knows where the piece ends."""
        return self._ledger.size is None and piece.end >= self._partial.limits.most

    def _mark(self) -> Mark:
        """Of what is there, if anything is, and if it says something."""
        trusts = self._attempts.trusts_marks or not self._partial.has_hash
        return self._partial.mark if trusts and self._ledger.is_begun else Mark()

    def _understood(self, answer: Answer, piece: Piece) -> Head:
        return understand(
            answer.status,
            answer.headers,
            host=answer.host,
            file=self._file,
            begin=piece.at,
            end=sys.maxsize if self._is_open(piece) else piece.end,
            known=Known(size=self._ledger.size, mark=self._mark()),
        )

    def _accept(self, answer: Answer, head: Head, piece: Piece) -> Piece | None:
        """The piece that the answer is: what was asked for, or all of the file; None for nothing. For the leader."""
        if head.meaning is Meaning.CHANGED:
            if head.size == 0 and self._file.size is None:
                # An empty file has no part that could be asked for.
                self._partial.learn_size(0)
                return None
            if answer.status == _NO_SUCH_PART:
                self._asks_for_parts = False
            raise _Changed
        if head.meaning is Meaning.WHOLE:
            return self._accept_whole(head)
        if not self._ledger.is_begun:
            self._partial.mark = head.mark
        if head.size is not None and self._ledger.size is None:
            self._partial.learn_size(head.size)
        if self._ledger.size is None or not (self._partial.may_be_pieced or self._is_all(piece)):
            # Neither how long the file is nor which file it is can be told from parts of it.
            self._asks_for_parts = False
            raise _Changed
        self._call_helpers()
        return piece

    def _is_all(self, piece: Piece) -> bool:
        return piece.at == 0 and piece.end == self._ledger.size

    def _accept_whole(self, head: Head) -> Piece:
        if self._mark().is_other(head.mark):
            self._attempts.changed(self._file.path)
        self._begin_anew()
        self._partial.mark = head.mark
        if head.size is not None:
            self._partial.learn_size(head.size)
        piece = self._ledger.take(self._partial.limits.most if self._ledger.size is None else self._ledger.size)
        return piece or Piece(0, 0)

    def _begin_anew(self) -> None:
        self._dismiss_helpers()
        # The answer may have come long after it was asked for: by now the file may be another's, whole and in use.
        with self._leader.writing(0):
            self._check()
            self._partial.begin_anew()

    def _read(self, line: Line, answer: Answer, head: Head, piece: Piece) -> None:
        left = piece.end - piece.at if head.length is None else min(head.length, piece.end - piece.at)
        while left:
            data = answer.read(min(_READ, left))
            if not data:
                break
            with line.writing(len(data)):
                self._check()
                self._partial.write(piece, data)
            left -= len(data)
            self._news.set()
        if head.length is None:
            self._require_end(answer, piece)
        elif left:
            raise SourceUnavailable(f"{answer.host} has broken off; try again later.", details={"host": answer.host})

    def _require_end(self, answer: Answer, piece: Piece) -> None:
        """An answer that has not told its length has ended: where the file does, if that is known."""
        if piece.at == piece.end and answer.read(1):
            raise too_long(self._file, piece.end)
        if self._ledger.size is None:
            self._partial.learn_size(piece.at)
        elif piece.at < piece.end:
            raise SourceUnavailable(f"{answer.host} has broken off; try again later.", details={"host": answer.host})

    def _stalled(self) -> SourceUnavailable:
        return SourceUnavailable(
            f"{self._file.path} comes too slowly, or not at all; try again later.",
            details={"file": self._file.path, "reason": "stalled"},
        )

    def _most_at_once(self) -> int:
        size = self._ledger.size
        if self._connections == 1 or not self._asks_for_parts:
            return self._partial.limits.most if size is None else size
        least = self._partial.limits.piece
        return least if size is None else max(least, min(_LARGEST_PIECE, size // (4 * self._connections)))
