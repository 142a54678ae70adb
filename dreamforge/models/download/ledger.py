"""Which bytes of a file are there, which are on their way, and who brings what next."""

import threading
from collections.abc import Iterable

Span = tuple[int, int]
"""From its begin to before its end."""


class Piece:
    """What one connection brings: the bytes from ``at`` to before ``end``. ``at`` moves as they are written."""

    def __init__(self, begin: int, end: int) -> None:
        self.at = begin
        self.end = end


class Ledger:
    """Thread-safe. Until a file's size is known it is taken to be as long as one may be, ``most`` bytes."""

    def __init__(self, *, size: int | None, most: int, done: Iterable[Span] = ()) -> None:
        self._lock = threading.Lock()
        self._most = most
        self._size = size
        self._taken: set[Piece] = set()
        self._missing: list[Span] = []
        self._set_done(done)

    def _set_done(self, done: Iterable[Span]) -> None:
        end = self._most if self._size is None else self._size
        at, self._missing = 0, []
        for begin, stop in done:
            self._missing += [(at, begin)] if begin > at else []
            at = max(at, stop)
        self._missing += [(at, end)] if end > at else []
        self._best = self._done_bytes()

    @property
    def size(self) -> int | None:
        """Of the whole file; None while nobody knows."""
        return self._size

    @property
    def done_bytes(self) -> int:
        """How many bytes are there."""
        with self._lock:
            return self._done_bytes()

    @property
    def is_whole(self) -> bool:
        """True once every byte is there."""
        with self._lock:
            return self._size is not None and not self._missing and not self._taken

    @property
    def is_begun(self) -> bool:
        """True when any byte is there."""
        return self.done_bytes > 0

    @property
    def is_missing_more(self) -> bool:
        """True when there is something to bring that nobody brings."""
        return bool(self._missing)

    @property
    def frontier(self) -> int:
        """All bytes before this one are there."""
        with self._lock:
            holes = self._holes()
            return holes[0][0] if holes else self._size or 0

    @property
    def done(self) -> tuple[Span, ...]:
        """All that is there."""
        with self._lock:
            spans: list[Span] = []
            at = 0
            for begin, end in self._holes():
                spans += [(at, begin)] if begin > at else []
                at = end
            if self._size is not None and self._size > at:
                spans.append((at, self._size))
            return tuple(spans)

    def has_gained(self) -> bool:
        """True when more bytes are there than ever when this was asked before: those of a fresh start count late."""
        with self._lock:
            done = self._done_bytes()
            if done <= self._best:
                return False
            self._best = done
            return True

    def take(self, most: int) -> Piece | None:
        """What to bring next, ``most`` bytes of it, from the front; None when nothing is left."""
        with self._lock:
            if not self._missing:
                return None
            begin, end = self._missing.pop(0)
            if end - begin > most:
                self._missing.insert(0, (begin + most, end))
                end = begin + most
            piece = Piece(begin, end)
            self._taken.add(piece)
            return piece

    def wrote(self, piece: Piece, count: int) -> None:
        """So many bytes more of a piece are there."""
        with self._lock:
            piece.at += count

    def give_back(self, piece: Piece) -> None:
        """Whoever took this piece brings no more of it."""
        with self._lock:
            if piece in self._taken:
                self._taken.discard(piece)
                if piece.at < piece.end:
                    self._missing = sorted([*self._missing, (piece.at, piece.end)])

    def learn_size(self, size: int) -> None:
        """The file is so long: nothing behind that is missing."""
        with self._lock:
            self._size = size
            self._missing = [(begin, min(end, size)) for begin, end in self._missing if begin < size]
            for piece in self._taken:
                piece.end = min(piece.end, size)

    def begin_anew(self, *, size: int | None) -> None:
        """Nothing is there, and nobody brings anything."""
        with self._lock:
            best = self._best
            self._size = size
            self._taken.clear()
            self._set_done(())
            self._best = best

    def _holes(self) -> list[Span]:
        return sorted([*self._missing, *((piece.at, piece.end) for piece in self._taken if piece.at < piece.end)])

    def _done_bytes(self) -> int:
        end = self._most if self._size is None else self._size
        return end - sum(end - begin for begin, end in self._holes())
