"""What the connections of a proxy are counted in: memory that all of its processes share.

Each process that proxies has a part and writes no other; whoever is asked what there is reads all
of them, and asks nobody. What a process has counted outlives it, so that no count ever goes back
before the proxy itself begins anew. A number is read and written as a whole (it has 64 bits,
aligned).

Of hosts only those have a row whose directory was found, and those of one owner have so many at
most; what there is no row for is counted together.
"""

import mmap
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

MOST_ROWS = 8192
"""Hosts that are counted each for itself."""

MOST_OF_ONE = 1024
"""Of them, those of one owner who is neither root nor the owner of the hosts directory. A name that
takes the room of several counts as so many."""

MOST_REASONS = 64

OTHERS = "_others"
"""The row of hosts that have none. No client can ask for it, nor does a directory serve by it."""

ACCEPTED, ADOPTED, OPEN, DESCRIPTORS, MOST_DESCRIPTORS, LINES_DROPPED = range(6)
"""Numbers of a process; the last four are of its last look (``Look``)."""

CONNECTIONS, UP, DOWN, FAULTS, HAS_OPEN = range(5)
"""Numbers of a host: connections that have reached its backend, bytes from its clients and to them,
clients that its backend has cost, and at the last look its open connections."""

BOUNDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Seconds: the upper bounds of a histogram's buckets; there is one more for what took longer."""

_OF_A_HOST = 5
_OF_A_REASON = 1
_OF_A_TIME = len(BOUNDS) + 2  # the last one is the sum, in microseconds
_NAME = 48
"""Bytes of a name's share of the room for all: many are shorter."""

Numbers = memoryview
"""Of 64 bits each, unsigned."""


class Rows:
    """Rows of ``fields`` numbers that have names, without spaces: ``most``, and the first of them
    from the beginning."""

    def __init__(self, most: int, fields: int, first: str) -> None:
        self._memory = mmap.mmap(-1, 8 + most * (8 * fields + _NAME))
        numbers = memoryview(self._memory).cast("Q")
        self._used = numbers[:1]
        self._numbers = numbers[1 : 1 + most * fields]
        self._names = memoryview(self._memory)[8 + most * 8 * fields :]
        self._most, self._fields = most, fields
        self._own: dict[str, Numbers] = {}
        """The rows, in the process that writes them."""
        self.get = self._own.get
        self.first = self.row(first)

    def row(self, name: str) -> Numbers:
        """Give the row of a name, a new one if need be; the first one where there is no room."""
        row = self._own.get(name)
        if row is None:
            place, used, written = len(self._own), self._used[0], f"{name}\n".encode("ascii")
            end = used + len(written)
            if place == self._most or end > len(self._names):
                return self.first
            row = self._numbers[place * self._fields : (place + 1) * self._fields]
            self._names[used:end] = written
            self._own[name] = row
            self._used[0] = end  # last: from here on others see it
        return row

    def rejoin(self) -> None:
        """Know the rows of who has written here before."""
        for place, name in enumerate(self.names()):
            self._own[name] = self._numbers[place * self._fields : (place + 1) * self._fields]

    def names(self) -> list[str]:
        return bytes(self._names[: self._used[0]]).decode("ascii").split()

    def read(self, some: int) -> Iterator[Iterable[tuple[str, list[int]]]]:
        """Give names and their numbers, so many at a time."""
        names, fields = self.names(), self._fields
        for begin in range(0, len(names), some):
            part = names[begin : begin + some]
            numbers = self._numbers[begin * fields : (begin + len(part)) * fields].tolist()
            yield [
                (name, numbers[place * fields : (place + 1) * fields])
                for place, name in enumerate(part)
            ]

    def clear(self, field: int) -> None:
        """Set one field of all rows to nothing."""
        for place in range(field, len(self.names()) * self._fields, self._fields):
            self._numbers[place] = 0


class Times:
    """How long something took, as a histogram, of those where it took any time."""

    def __init__(self) -> None:
        self.numbers = memoryview(mmap.mmap(-1, 8 * _OF_A_TIME)).cast("Q")
        self.none = 0
        """How many took none, as who reads this has found last: a bucket, which never falls."""

    def settle(self, count: int) -> None:
        """Find how many took none, of the ``count`` that there were at least."""
        self.none = max(self.none, count - sum(self.numbers[:-1]))

    def took(self, seconds: float) -> None:
        numbers = self.numbers
        numbers[-1] += int(seconds * 1_000_000)
        numbers[bisect_left(BOUNDS, seconds)] += 1


class Counts:
    """The counts of one process."""

    def __init__(self) -> None:
        self.numbers = memoryview(mmap.mmap(-1, 8 * (LINES_DROPPED + 1))).cast("Q")
        self.hosts = Rows(MOST_ROWS, _OF_A_HOST, OTHERS)
        self.reasons = Rows(MOST_REASONS, _OF_A_REASON, "other")
        self.hello = Times()
        """From the accept to the complete hello."""
        self.backend = Times()
        """From there until the backend has the connection."""
        self._of_one: dict[int, int] = {}

    def host(self, directory: str, account: str | int) -> Numbers:
        """Give a host's row, on somebody's account (``Hosts.account``)."""
        row = self.hosts.get(directory)
        if row is not None:
            return row
        if isinstance(account, int):
            count = self._of_one.get(account, 0)
            if count >= MOST_OF_ONE:
                return self.hosts.first
            self._of_one[account] = count + 1 + len(directory) // _NAME
        return self.hosts.row(directory)

    def arrived(self, accepted_at: float, decided_at: float | None, now: float) -> None:
        """Count how long it took until a backend has a connection: not all of it was done at its
        accept. Where no time is noted, the hello was there then."""
        if decided_at is not None:
            self.hello.took(decided_at - accepted_at)
        self.backend.took(now - (accepted_at if decided_at is None else decided_at))

    def rejoin(self) -> None:
        """Go on where another process, which has ended, has counted. Its owners' rows are not known
        as theirs any more."""
        self.hosts.rejoin()
        self.reasons.rejoin()

    def leave(self) -> None:
        """Note that the process has ended, and what it had with it."""
        self.numbers[OPEN] = self.numbers[DESCRIPTORS] = 0
        self.hosts.clear(HAS_OPEN)


def totals(parts: Iterable[Counts]) -> dict[str, int]:
    """Add up everything, as the log has it."""
    sums = {"open": 0, "accepted": 0, "refused": 0, "bytes_up": 0, "bytes_down": 0}
    refused: Counter[str] = Counter()
    for part in parts:
        sums["open"] += part.numbers[OPEN]
        sums["accepted"] += part.numbers[ACCEPTED]
        for rows in part.reasons.read(MOST_REASONS):
            refused.update({f"refused_{reason}": count for reason, (count,) in rows if count})
        for some in part.hosts.read(MOST_ROWS):
            for _, numbers in some:
                sums["bytes_up"] += numbers[UP]
                sums["bytes_down"] += numbers[DOWN]
    sums["refused"] = refused.total()
    return {**sums, **dict(sorted(refused.items()))}
