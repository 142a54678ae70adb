"""The slots of one lane: as many as are wanted now."""

import itertools
from collections.abc import Callable

from dreamforge.dispatch.intake import Slot


class Slots:
    """Makes slots by ``make``, which is given a name, and ends them. For one thread at a time, but for ``dead``."""

    def __init__(self, *, name: str, make: Callable[[str], Slot]) -> None:
        self._name = name
        self._make = make
        self._numbers = itertools.count(1)
        self._slots: list[Slot] = []

    def __len__(self) -> int:
        return len(self._slots)

    def resize(self, wanted: int) -> None:
        """Start some, or end some; a step that is in flight goes on."""
        living = [slot for slot in self._slots if not slot.is_ending]
        for slot in living[wanted:]:
            slot.end()
        for _ in range(wanted - len(living)):
            slot = self._make(f"{self._name}-{next(self._numbers)}")
            slot.start()
            self._slots.append(slot)
        self._slots = [slot for slot in self._slots if slot.is_alive or not slot.is_ending]

    def dead(self) -> list[str]:
        """Names of those that have ended without being asked to."""
        return [
            f"{self._name} {index}" for index, slot in enumerate(self._slots) if not (slot.is_alive or slot.is_ending)
        ]

    def end(self) -> None:
        """Claim nothing more."""
        for slot in self._slots:
            slot.end()

    def join(self, timeout: float) -> None:
        """Wait for the end of each, ``timeout`` seconds at most."""
        for slot in self._slots:
            slot.join(timeout)
