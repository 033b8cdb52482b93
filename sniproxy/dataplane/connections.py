"""What all connections of a process share, and the only place where they are counted.

A connection is an ``Arrival`` until it has its backend, then two ``End`` objects of the relay, and
at its end a ``Farewell``; each of them holds a ``Connections``, which knows none of them.
"""

import functools
from collections import Counter
from collections.abc import Callable
from socket import SocketType
from typing import Protocol

from sniproxy.dataplane.asking import Asking
from sniproxy.dataplane.barred import Barred, word
from sniproxy.dataplane.counts import ACCEPTED, DOWN, UP, Counts, Numbers
from sniproxy.dataplane.hourly import Hourly
from sniproxy.dataplane.loops import Loops
from sniproxy.dataplane.poller import Poller, Watcher
from sniproxy.dataplane.refusals import Refusals
from sniproxy.dataplane.relay import End, Relay
from sniproxy.dataplane.shares import Shares, Undecided
from sniproxy.dataplane.sweep import Countdown, Sweep
from sniproxy.dataplane.timers import Later
from sniproxy.dataplane.waiting import Lines
from sniproxy.dataplane.wary import WaryRelay
from sniproxy.log.log import Log
from sniproxy.resolver.hosts import Hosts

PATIENCE = 10.0
"""Seconds from the accept for the hello, and for the backend to take the connection."""

FAREWELL_PATIENCE = 1.0
"""Seconds that a client has to read what it was sent last and to close."""

MAX_KEPT = 32 * 1024 * 1024
"""Bytes of memory of all undecided hellos together in a process, the parser's copies included: room
for 700 of the largest that occur (20 kB), where each alone might have a megabyte, twice."""

_SWEEP = 0.1

REFUSALS_REPORT = 60.0
"""Seconds from a refusal to the report that counts it and all that came meanwhile."""

_NOTHING = (0, 0)

Report = Callable[..., None]
"""Tell of an event and its fields, as a line of the log has them, whoever is to know of it."""


class Totals:
    """Counts of this process since its start. Connections that are open are counted by their
    clients' sockets, so that none can be counted twice or left over."""

    __slots__ = ("_before", "clients", "numbers", "refused")

    def __init__(self, numbers: Numbers) -> None:
        self.numbers = numbers
        """Those of this process, and of one before it (``counts.ACCEPTED``)."""
        self._before = numbers[ACCEPTED]
        self.clients: set[SocketType] = set()
        self.refused: Counter[str] = Counter()

    @property
    def accepted(self) -> int:
        return self.numbers[ACCEPTED] - self._before

    @property
    def open(self) -> int:
        return len(self.clients)

    def came(self) -> int:
        """Count whom there was a descriptor for."""
        return self.accepted - self.refused["no_descriptor"]


class Closing(Watcher, Protocol):
    """A client that has been sent its last byte."""

    def close(self) -> None: ...


Part = Callable[["Connections", End, str, int, bool], None]
"""Take the client of a relayed connection that is over: ``Relay``'s ``ended``."""


class Connections:
    """All connections of a process."""

    def __init__(
        self,
        poller: Poller,
        hosts: Hosts,
        log: Log,
        clock: Callable[[], float],
        later: Later,
        report: Report,
        part: Part,
        workers: int = 1,
        counts: Counts | None = None,
    ) -> None:
        self.poller = poller
        self.counts = counts or Counts()
        self.told: dict[End, tuple[int, int]] = {}
        """Bytes each way of open connections that have been counted already, where any have."""
        self.hosts = hosts
        self.asking: Asking | None = None
        """Whom to ask for backends, where this process is to look up nothing itself."""
        self.log = log
        self.clock = clock
        self.later = later
        kind = Relay if hosts.refuses_descriptors else WaryRelay
        self.relay = kind(poller, functools.partial(part, self), clock, later, workers)
        self.totals = Totals(self.counts.numbers)
        self.undecided: Countdown[Undecided] = Countdown(
            PATIENCE, lambda one: poller.guard(one, one.expire)
        )
        self.shares = Shares(
            poller, self.totals.clients, self.totals.came, self.undecided, log, clock, later
        )
        self.lines = Lines(later)
        self.barred = Barred(self.account, clock)
        self.loops = Loops(self.account)
        self.farewells: Countdown[Closing] = Countdown(
            FAREWELL_PATIENCE, lambda one: poller.guard(one, one.close)
        )
        self.hourly = Hourly(later, clock)
        """Who is told of each hour, where connections are told of at all."""
        self._sweep = Sweep(later, _SWEEP, self.sweep)
        self._kept = 0
        self._refused_lately = Refusals()
        self._report = report
        self._refusals = Sweep(later, REFUSALS_REPORT, self.report_refusals)

    def account(self, directory: str) -> str | int:
        """Say on whose account a host goes (``Hosts.account``): of what was answered, where this
        process looks up nothing."""
        if self.asking is None:
            return self.hosts.account(directory)
        known = self.asking.reached.get(directory, 0)
        return self.hosts.account_of(directory, self.asking.owners.get(directory, known))

    def row(self, directory: str, owner: Callable[[], int]) -> Numbers:
        """Give what a host is counted in. Whose it is (uid) is asked for the first time only."""
        row = self.counts.hosts.get(directory)
        if row is None:
            uid = owner()
            row = self.counts.host(directory, self.hosts.account_of(directory, uid))
            if self.asking is not None and row is self.counts.hosts.first:
                self.asking.note(directory, uid)
            elif self.asking is not None:
                self.asking.reached[directory] = uid
        return row

    def count(self, client: End) -> None:
        """Count what a relayed connection has moved up to now, by its client's end."""
        row, moved = client.row, (client.moved, client.peer.moved)
        before = self.told.get(client, _NOTHING)
        if moved != before:
            up, down = row[UP] + moved[0] - before[0], row[DOWN] + moved[1] - before[1]
            self.told[client] = moved
            # Where memory fails, it does so before this.
            row[UP], row[DOWN] = up, down

    def fault(self, error: Exception) -> None:
        """Log an exception that nobody expected; what caused it has been ended."""
        where = error.__traceback__
        while where is not None and where.tb_next is not None:
            where = where.tb_next
        # Not a traceback: printing one opens files named like our modules, in the hosts directory.
        place = f"{where.tb_frame.f_code.co_qualname}:{where.tb_lineno}" if where else "unknown"
        self.log.error("unexpected_error", type=type(error).__name__, error=error, at=place)

    def evict_oldest(self) -> bool:
        """End the connection that has owed us its hello for longest; say whether there was one.

        Its descriptor is free on return.
        """
        oldest = self.undecided.oldest()
        if oldest is None:
            return False
        self.poller.guard(oldest, oldest.evict)
        return True

    def keep(self, arrival: Undecided, size: int) -> None:
        """Count the ``size`` bytes kept for an undecided hello so far; end the oldest of too
        many."""
        more = size - arrival.kept
        kept = self._kept + more
        # Both or neither: only to add them up can fail.
        self._kept = kept
        arrival.kept = size
        # Not within the end of one of them: they would end each other, deeper and deeper.
        while more > 0 and self._kept > MAX_KEPT and self.evict_oldest():
            pass

    def wait(self, arrival: Undecided) -> None:
        """Start an undecided arrival's time."""
        self._sweep.wake()
        self.undecided.start(arrival, arrival.accepted_at)

    def part(self, farewell: Closing) -> None:
        """Start a farewell's time."""
        self._sweep.wake()
        self.farewells.start(farewell, self.clock())

    def sweep(self) -> bool:
        """End what took too long; say whether anything is left to watch."""
        now = self.clock()
        undecided, farewells = self.undecided.sweep(now), self.farewells.sweep(now)
        return undecided or farewells

    def refused(self, reason: str, name: str) -> None:
        """Count a refusal of a host name, or of an empty one, for the totals and for the line once
        a minute."""
        self._refusals.wake()
        self.totals.refused[reason] += 1
        self.counts.reasons.row(reason)[0] += 1
        self._refused_lately.count(reason, name)

    def report_refusals(self) -> bool:
        """Report the refusals since the last report, if there were any. Never wants to be called
        again: the next refusal sees to that."""
        fields = self._refused_lately.fields()
        if fields:
            self._report("refused", **fields)
            self._refused_lately.clear()
        return False

    def bar(self, whom: str) -> str:
        """Refuse the owner of a host for a while, and end what is open to hosts of his; say to
        others whom to bar."""
        account = self.barred.bar(whom)
        if self.asking is not None:
            self.asking.bar(self.barred, account)
        accounts = {whom: account}
        for watcher in self.poller.watchers():
            host = getattr(watcher, "host", "")
            if isinstance(watcher, End) and host:
                if host not in accounts:
                    accounts[host] = self.barred.account(host)
                if accounts[host] == account:
                    end = functools.partial(self.relay.end, watcher, "barred")
                    self.poller.guard(watcher, end)
        return word(account)

    def close_all(self) -> int:
        """End all connections now; say how many there were."""
        return sum(watcher.stop() for watcher in self.poller.watchers())

    def close(self, client: SocketType) -> None:
        """Close a client's socket: the end of its connection. Done again, it changes nothing."""
        self.poller.forget(client.fileno())
        client.close()
        self.totals.clients.discard(client)
