"""Waiting for what no event tells of: room in a backend's accept queue, or a free descriptor.

A full queue answers EAGAIN, connect(2), and has to be tried again. Of all who wait in one process
for the backend of one name only the first tries, so that thousands cost no more than one, and
nobody who comes later gets in before those who wait. Of the lines for hosts of one owner, the more
there are the more seldom each is tried: names are had for the making. Who lacks a descriptor waits
in a line of its own, whatever the name, and who lacks one that is lent in another.
"""

from bisect import bisect_left, insort
from collections import Counter
from typing import Protocol

from sniproxy.dataplane.timers import Later

FIRST_RETRY = 0.001
LONGEST_RETRY = 0.050
"""Seconds between two tries at a full queue; each pause is twice the last."""

FEW_LINES = 16
"""Lines for one owner's hosts that are tried as often; of more, all together are, ..."""

MOST_SELDOM = 2.0
"""... but each after so many seconds: clients wait for ten."""

MAX_KEPT = 32 * 1024 * 1024
"""Bytes of hellos that are kept for the hosts of one owner, in each process: thousands of clients
may wait for a backend, and each might have sent a megabyte."""

FOR_A_DESCRIPTOR = ""
"""The line of those who have no descriptor for their backend: no host has such a name."""

FOR_A_SPARE = "/"
"""The line of those who lack one that is lent to others for a moment (``shares``); likewise."""

OF_NO_HOST = FOR_A_DESCRIPTOR, FOR_A_SPARE

TRIES_A_TURN = 16
"""Tries in a row, while there is room, before other connections have their turn."""


class Waiter(Protocol):
    """Who waits, since ``accepted_at``, with ``kept`` bytes."""

    accepted_at: float
    kept: int

    def owner(self) -> int:
        """Give the uid of who owns the host that it waits for."""

    def attempt(self) -> str | None:
        """Try once more; name the line to wait in, or None if the waiting is over, one way or the
        other."""

    def crowd_out(self, name: str) -> None:
        """End it: there is no room in that line."""


class Lines(dict[str, "Line"]):
    """The lines that there are now, by the host's name or one ``OF_NO_HOST``."""

    def __init__(self, later: Later) -> None:
        super().__init__()
        self._later = later
        self._of_owner: Counter[int | None] = Counter()
        self._kept: Counter[int | None] = Counter()

    def join(self, name: str, waiter: Waiter) -> None:
        """Have it wait in that line, if there is room for what it keeps."""
        line = self.get(name)
        if line is None:
            # Its timer first: without one nobody would ever be tried.
            line = Line(self, name, None if name in OF_NO_HOST else waiter.owner())
            self._later(FIRST_RETRY, line.run)
            self[name] = line
            self._of_owner[line.owner] += 1
        kept = self._kept[line.owner] + waiter.kept
        if kept > MAX_KEPT:
            waiter.crowd_out(name)
        else:
            line.join(waiter)
            self._kept[line.owner] = kept

    def leave(self, name: str, waiter: Waiter) -> None:
        """Take out a waiter, if it is there."""
        line = self.get(name)
        if line is not None and line.leave(waiter):
            self._kept[line.owner] -= waiter.kept

    def waits(self, name: str) -> bool:
        """Say whether anybody is in a line."""
        line = self.get(name)
        return line is not None and line.waits()

    def end(self, name: str) -> None:
        """Take out a line in which nobody is left."""
        line = self.pop(name, None)
        if line is not None:
            self._of_owner[line.owner] -= 1
            if not self._of_owner[line.owner]:
                del self._of_owner[line.owner], self._kept[line.owner]

    def longest(self, owner: int | None) -> float:
        """Give the seconds between two tries at a full queue of an owner's."""
        return min(LONGEST_RETRY * max(1, self._of_owner[owner] / FEW_LINES), MOST_SELDOM)

    def go_on(self, name: str) -> None:
        """Have the first in a line, if there is one, try at once: somebody has just got in."""
        line = self.get(name)
        if line is not None:
            line.go_on()


class Line:
    """Those who wait for the same: who was accepted first is first.

    So the first is also the first whose time is up, and it is enough to try the first.
    """

    __slots__ = ("_lines", "_name", "_pause", "_waiters", "owner")

    def __init__(self, lines: Lines, name: str, owner: int | None) -> None:
        self.owner = owner
        self._lines = lines
        self._name = name
        self._pause = 2 * FIRST_RETRY
        self._waiters: list[Waiter] = []

    def waits(self) -> bool:
        return bool(self._waiters)

    def join(self, waiter: Waiter) -> None:
        insort(self._waiters, waiter, key=_accepted_at)

    def leave(self, waiter: Waiter) -> bool:
        waiters = self._waiters
        place = bisect_left(waiters, waiter.accepted_at, key=_accepted_at)
        while place < len(waiters) and waiters[place].accepted_at == waiter.accepted_at:
            if waiters[place] is waiter:
                del waiters[place]
                return True
            place += 1
        return False

    def go_on(self) -> None:
        self._pause = FIRST_RETRY
        if self._waiters:
            self._waiters[0].attempt()

    def run(self) -> float | None:
        """Try those that wait; give the seconds to the next try, None where nobody is left."""
        for _ in range(TRIES_A_TURN):
            if not self._waiters:
                self._lines.end(self._name)
                return None
            first = self._waiters[0]
            name = first.attempt()
            if name == self._name:
                pause = self._pause
                self._pause = min(2 * pause, self._lines.longest(self.owner))
                return pause
            self._lines.leave(self._name, first)
            if name is None:
                self._pause = FIRST_RETRY
            else:
                self._lines.join(name, first)
        return 0


def _accepted_at(waiter: Waiter) -> float:
    return waiter.accepted_at
