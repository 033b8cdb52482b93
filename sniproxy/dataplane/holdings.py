"""Holdings: which sockets of clients are whose, and who has the most of them.

They are as they were when they were counted, but for what was taken or added since. So a socket is
seen to be open when it is taken, and the count of who seems to have the most is then put right.
"""

import heapq
import struct
from collections.abc import Callable
from socket import SO_PEERCRED, SOL_SOCKET, SocketType

SAMPLE = 512
"""Sockets of one that are looked at in a row."""

_CREDENTIALS = struct.Struct("iII")

Last = Callable[[SocketType], tuple[int, float]]
"""Give the order of sockets: the last are taken first."""


def listener(backend: SocketType) -> str:
    """Name what a socket has connected to: the process that listens, and the path that it has
    bound, which may mean something to that process only."""
    credentials = backend.getsockopt(SOL_SOCKET, SO_PEERCRED, _CREDENTIALS.size)
    return f"{_CREDENTIALS.unpack(credentials)[0]} {backend.getpeername()!a}"


class Holdings:
    """The sockets of each, by a name of whose they are."""

    __slots__ = ("_by_count", "_held", "_in_order")

    def __init__(self) -> None:
        self._held: dict[str, list[SocketType]] = {}
        self._by_count: list[tuple[int, str]] = []
        """A heap of those who have more than one: by minus the count that is so, or was once."""
        self._in_order: dict[str, int] = {}
        """How many at the end of a list are in order."""

    def __len__(self) -> int:
        return len(self._held)

    def count(self, whose: str, without: SocketType | None = None) -> int:
        """Count what one has, ``without`` a socket that may have been counted: of many nobody looks
        for it."""
        held = self._held.get(whose, [])
        return len(held) - (without is not None and len(held) <= SAMPLE and without in held)

    def put(self, whose: str, one: SocketType) -> None:
        """Count one; after the last of them ``compare`` is to be called."""
        self._held.setdefault(whose, []).append(one)

    def compare(self) -> None:
        self._by_count = [(-len(held), whose) for whose, held in self._held.items() if held[1:]]
        heapq.heapify(self._by_count)

    def add(self, whose: str, one: SocketType) -> None:
        """Count one more, unless it has been."""
        held = self._held.setdefault(whose, [])
        if one not in held[:SAMPLE]:
            held.insert(0, one)
            heapq.heappush(self._by_count, (-len(held), whose))

    def greatest(self) -> tuple[int, str]:
        """Say how many the greatest has, and who that is; nobody where none has more than one."""
        heap = self._by_count
        while heap:
            count, whose = heap[0]
            now = len(self._held[whose])
            if now == -count > 1:
                return now, whose
            if now > 1:
                heapq.heapreplace(heap, (-now, whose))
            else:
                heapq.heappop(heap)
        return 1, ""

    def take(self, own: int, last: Last) -> SocketType | None:
        """Take an open one of the greatest, if who has ``own`` has still fewer than that one when
        both have changed by one."""
        while True:
            count, whose = self.greatest()
            if own + 1 >= count:
                return None
            held = self._held[whose]
            if self._in_order.get(whose):
                self._in_order[whose] -= 1
                one = held.pop()
                if one.fileno() >= 0:
                    return one
            else:
                some = sorted((one for one in held[-SAMPLE:] if one.fileno() >= 0), key=last)
                held[-SAMPLE:] = some
                # What is last among some may not be among all: only the first few are taken.
                self._in_order[whose] = len(some) if len(some) == len(held) else -(-len(some) // 16)
