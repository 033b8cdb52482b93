"""Waiting for a backend whose accept queue is full.

Such a queue answers EAGAIN, connect(2), and no event ever tells that it has room: it has to be
tried again. Of all who wait for one backend only the first tries, so that thousands cost no more
than one, and nobody who comes later gets in before those who wait.
"""

from bisect import bisect_left, insort
from typing import Protocol

from sniproxy.proxy.sweep import Later

FIRST_RETRY = 0.001
LONGEST_RETRY = 0.050
"""Seconds between two tries at a full queue; each pause is twice the last."""

TRIES_A_TURN = 16
"""Tries in a row, while there is room, before other connections have their turn."""


class Waiter(Protocol):
    """Who waits, since ``accepted_at``."""

    accepted_at: float

    def attempt(self) -> bool:
        """Try once more; say whether the waiting is over, one way or the other."""


class Lines(dict[str, "Line"]):
    """The lines that there are now, by host name."""

    def __init__(self, later: Later) -> None:
        super().__init__()
        self._later = later

    def join(self, host: str, waiter: Waiter) -> None:
        line = self.get(host)
        if line is None:
            line = self[host] = Line(self, host, self._later)
        line.join(waiter)

    def leave(self, host: str, waiter: Waiter) -> None:
        """Take out a waiter, if it is there."""
        line = self.get(host)
        if line is not None:
            line.leave(waiter)


class Line:
    """Those who wait for one host's backend: who was accepted first is first.

    So the first is also the first whose time is up, and it is enough to try the first.
    """

    __slots__ = ("_host", "_later", "_lines", "_pause", "_waiters")

    def __init__(self, lines: Lines, host: str, later: Later) -> None:
        self._lines = lines
        self._host = host
        self._later = later
        self._pause = FIRST_RETRY
        self._waiters: list[Waiter] = []
        self._try_later()

    def join(self, waiter: Waiter) -> None:
        insort(self._waiters, waiter, key=_accepted_at)

    def leave(self, waiter: Waiter) -> None:
        waiters = self._waiters
        place = bisect_left(waiters, waiter.accepted_at, key=_accepted_at)
        while place < len(waiters) and waiters[place].accepted_at == waiter.accepted_at:
            if waiters[place] is waiter:
                del waiters[place]
                return
            place += 1

    def _try(self) -> None:
        for _ in range(TRIES_A_TURN):
            if not self._waiters:
                del self._lines[self._host]
                return
            first = self._waiters[0]
            if not first.attempt():
                self._try_later()
                return
            self.leave(first)
            self._pause = FIRST_RETRY
        self._later(0, self._try)

    def _try_later(self) -> None:
        self._later(self._pause, self._try)
        self._pause = min(2 * self._pause, LONGEST_RETRY)


def _accepted_at(waiter: Waiter) -> float:
    return waiter.accepted_at
