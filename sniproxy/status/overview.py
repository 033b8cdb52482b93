"""An overview: the counts of all processes added up, for every form in which they are shown."""

from collections.abc import Generator, Iterator, Sequence
from itertools import accumulate
from operator import add
from typing import NamedTuple, Protocol

from sniproxy.dataplane.counts import BOUNDS, CONNECTIONS, Counts, Times

HOSTS_A_PIECE = 200
"""Hosts gone through in a row, in less than a millisecond."""


class About(NamedTuple):
    """What does not change: ``started`` is Unix time, in seconds."""

    version: str
    flavour: str
    listen: Sequence[str]
    isolate: bool
    started: float


class Process(NamedTuple):
    """A process that proxies; ``counts`` are the numbers of its part. One that has not ``answered``
    is shown as it was when it last did."""

    number: int
    pid: int
    counts: list[int]
    answered: bool


class Proxy(Protocol):
    """Who can be asked at any time. ``restarts`` counts workers that were started in place of
    others, ``lines_lost`` lines of the log that its workers do not count."""

    about: About
    parts: Sequence[Counts]
    restarts: int

    def processes(self) -> list[Process]: ...

    def lines_lost(self) -> int: ...


class Refresh(NamedTuple):
    """Yielded: have every process look at what it has open, before this goes on."""


class Ask(NamedTuple):
    """Yielded: have a process list its open connections, from the ``first`` descriptor on; gives an
    ``Answered``."""

    worker: int
    first: int
    most: int


class Answered(NamedTuple):
    """JSON of connections, separated by commas, how many they are, and where to go on, or -1."""

    rows: str
    many: int
    following: int


Step = bytes | Refresh | Ask
"""A piece of what is shown, empty for none so far, or what has to be known first."""

Steps = Generator[Step, Answered | None, None]


class Histogram(NamedTuple):
    """``buckets`` are the counts up to each of ``BOUNDS``; ``total`` is in seconds."""

    buckets: list[int]
    observed: int
    total: float


def histogram(times: Sequence[Times]) -> Histogram:
    """Add up what took some time, and what took none."""
    numbers = [sum(column) for column in zip(*(one.numbers for one in times), strict=True)]
    took = numbers[:-1]
    took[0] += sum(one.none for one in times)
    return Histogram([*accumulate(took)][: len(BOUNDS)], sum(took), numbers[-1] / 1_000_000)


class Overview:
    """All counts at one time, filled by ``read``."""

    def __init__(self, proxy: Proxy) -> None:
        self.about = proxy.about
        self.processes = proxy.processes()
        self.restarts = proxy.restarts
        self.numbers = [
            sum(column) for column in zip(*(part.numbers for part in proxy.parts), strict=True)
        ]
        self.lines_lost = proxy.lines_lost()
        self.reasons: dict[str, int] = {}
        self.hosts: dict[str, tuple[int, ...]] = {}
        """Of each its numbers, as ``counts`` has them. The garbage collector looks at no tuples of
        numbers; some thousand lists have it look at all that is open."""
        self.sums = [0] * 5
        """The same of all hosts together."""

    def read(self, parts: Sequence[Counts]) -> Generator[bytes, None, None]:
        """Add up hosts and reasons, a piece at a time."""
        for part in parts:
            for some in part.reasons.read(HOSTS_A_PIECE):
                for reason, (count,) in some:
                    if count:
                        self.reasons[reason] = self.reasons.get(reason, 0) + count
            count = 0
            for rows in part.hosts.read(HOSTS_A_PIECE):
                for host, numbers in rows:
                    count += numbers[CONNECTIONS]
                    if not any(numbers):  # the others, where there are none
                        continue
                    have = self.hosts.get(host)
                    if have is None:
                        self.hosts[host] = tuple(numbers)
                    else:
                        self.hosts[host] = tuple(map(add, have, numbers))
                yield b""
            for times in (part.hello, part.backend):
                times.settle(count)
        self.sums = [sum(column) for column in zip(*self.hosts.values(), strict=True)] or self.sums
        self.hello = histogram([part.hello for part in parts])
        self.backend = histogram([part.backend for part in parts])


def in_pieces(hosts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Give the hosts, as many at a time as are written in one piece."""
    for begin in range(0, len(hosts), HOSTS_A_PIECE):
        yield hosts[begin : begin + HOSTS_A_PIECE]


def overview(proxy: Proxy) -> Generator[Step, Answered | None, Overview]:
    """Have everything looked at, and add it up."""
    yield Refresh()
    made = Overview(proxy)
    yield from made.read(proxy.parts)
    return made
