"""A look at what is open: the bytes of connections that go on, and how many a host has.

Nothing of that is counted while nobody wants to know it. Then all descriptors are gone through, a
slice at a time, between which others have their turn.
"""

from collections import Counter
from collections.abc import Callable
from fcntl import F_GETFD, fcntl

from sniproxy.dataplane.connections import Connections
from sniproxy.dataplane.counts import (
    DESCRIPTORS,
    HAS_OPEN,
    LINES_DROPPED,
    MOST_DESCRIPTORS,
    OPEN,
    OTHERS,
)
from sniproxy.dataplane.relay import End

SLICE = 700
"""Descriptors gone through in a turn, in a millisecond at most."""

PAUSE = 0.001
"""Seconds from one slice to the next. Without, a look is work without a pause, beside which whoever
else wants this processor waits for as long as the kernel lets it go on."""

ABOVE = 64
"""Numbers above the last watched one that pipes and the like may have."""

Then = Callable[[], object]


class Look:
    """Looks when somebody asks, and tells ``limit`` (descriptors that the process may have)."""

    def __init__(self, connections: Connections, limit: int) -> None:
        self._connections = connections
        self._limit = limit
        self._next: list[Then] = []
        self._waiting: list[Then] = []
        self._open: Counter[str] = Counter()
        self._used = self._at = self._lost = 0
        self._turn = -1

    def begin(self, then: Then) -> None:
        """Look, from the first descriptor on, and call ``then`` behind the last, once."""
        if then not in self._next:
            self._connections.later(0, self._go_on)
            self._next.append(then)

    def _go_on(self) -> float | None:
        if not self._waiting:
            if not self._next:  # it was a look for several
                return None
            self._waiting, self._next = self._next, []
            self._open.clear()
            self._used = self._at = 0
        connections = self._connections
        if self._turn == connections.poller.turn:
            return 0  # what has happened since the last slice comes first
        self._turn = connections.poller.turn
        slice_ = connections.poller.some(self._at, SLICE)
        for fd, watcher in enumerate(slice_ or [None] * ABOVE, self._at):
            if watcher is None:
                self._used += _is_open(fd)
                continue
            self._used += 1
            if isinstance(watcher, End) and watcher.of_client and hasattr(watcher, "peer"):
                connections.count(watcher)
                self._open[getattr(watcher, "host", OTHERS)] += 1
        self._at += len(slice_)
        if slice_:
            return PAUSE
        self._end()
        return 0 if self._next else None

    def _end(self) -> None:
        connections = self._connections
        counts = connections.counts
        counts.hosts.clear(HAS_OPEN)
        for host, count in self._open.items():
            row = counts.hosts.get(host) or counts.hosts.first
            row[HAS_OPEN] += count
        numbers = counts.numbers
        numbers[OPEN] = connections.totals.open
        numbers[DESCRIPTORS], numbers[MOST_DESCRIPTORS] = self._used, self._limit
        # Added: who has counted here before may have lost some, too.
        lost, self._lost = self._lost, connections.log.lost
        numbers[LINES_DROPPED] += self._lost - lost
        while self._waiting:  # each stays until it was told: where memory fails, this is done again
            self._waiting[0]()
            del self._waiting[0]


def _is_open(fd: int) -> bool:
    """Say whether it is a descriptor: of a pipe, of what is held back, of anything unwatched."""
    try:
        fcntl(fd, F_GETFD)
    except OSError:
        return False
    return True
