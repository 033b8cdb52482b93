"""One process that proxies: its loop, its connections, and how it stops.

Whether the process is the only one or a worker among others is not known here: who started the
server says what becomes of its reports, and calls ``stop``.
"""

import functools
import gc
import resource
import sys
import time
from collections.abc import Callable, Sequence

from sniproxy.dataplane.arrival import Arrival
from sniproxy.dataplane.asking import Asking, Desk
from sniproxy.dataplane.connections import Connections, Report
from sniproxy.dataplane.counts import ACCEPTED, Counts
from sniproxy.dataplane.farewell import Farewell, part
from sniproxy.dataplane.handover import adopt, hand_over
from sniproxy.dataplane.listener import Listener
from sniproxy.dataplane.listing import page
from sniproxy.dataplane.look import Look, Then
from sniproxy.dataplane.poller import Poller, Watcher
from sniproxy.dataplane.relay import End
from sniproxy.dataplane.state import Carried
from sniproxy.dataplane.sweep import Sweep
from sniproxy.dataplane.tally import Tally
from sniproxy.dataplane.wary import WaryRelay
from sniproxy.dataplane.watchdog import Step, Watchdog
from sniproxy.log.log import Log
from sniproxy.log.repeats import PERIOD
from sniproxy.process.inherited import Listening
from sniproxy.process.parcel import MOST_DESCRIPTORS, Packer, Parcel, next_needs, take
from sniproxy.resolver.hosts import Hosts
from sniproxy.status.document import connection
from sniproxy.status.overview import Answered, Ask

DRAIN = 9.5
"""Seconds that connections have to end after a graceful stop was asked for: the documented ten,
and sooner than a ``TimeoutStopSec=10s`` kills."""

CROWDED = "crowded"
"""Event: a connection waits that this process can't take."""

BAR = "bar"
"""Event: the owner of a host is refused for a while."""

HANGS = "hangs"
"""Event: a process does not come round any more."""

WORD = 0.2
"""Seconds between two words of one who packs: enough to be heard, and no crowd in the channel."""

PACKING = "packing"
"""Event: some connections have been put into a parcel, and there may be more."""

RESERVE = 64
"""Descriptors of a process that are none of its connections', the spare ones among them."""

FLUSH = 0.1
"""Seconds between two tries at log lines that wait."""


class Server:
    """Serves the listening sockets, which it takes over, until it is stopped.

    ``report`` is told of ``stop``, ``connections_closed``, ``refused`` and ``exit``. ``workers``
    says how many processes share the sockets and what else is shared out between them; with several
    it is also told of ``packing``, and of ``crowded``: then the others are to ``look``, and the
    ``tally`` is what they share. ``alone`` says that nobody but us and the other workers has the
    sockets. Backends are asked for at a ``desk``, if there is one. ``counts`` are those of this
    process.
    """

    def __init__(
        self,
        listening: Sequence[Listening],
        hosts: Hosts,
        log: Log,
        report: Report,
        workers: int = 1,
        tally: Tally | None = None,
        *,
        alone: bool = False,
        desk: Desk | None = None,
        counts: Counts | None = None,
    ) -> None:
        self._log = log
        self._report = report
        self._supervised = workers > 1
        self._alone = alone
        self.stopping = False
        self._reason = ""
        """Why it is stopping, as long as that is still to be acted on."""
        self._over = False
        self.poller = Poller(self._fault)
        later = self.poller.timers.later
        self._connections = Connections(
            self.poller, hosts, log, time.monotonic, later, report, part, workers, counts
        )
        self._look = Look(self._connections, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        if desk is not None:
            self._connections.asking = Asking(desk, self.poller, log, later)
        crowded = functools.partial(report, CROWDED) if self._supervised else None
        self._listeners = [
            Listener(one.socket, self._connections, crowded, tally, announced=one.announced)
            for one in listening
        ]
        self._watchdog = Watchdog(self.poller, self._slept, self._hangs)
        if isinstance(self._connections.relay, WaryRelay):
            self._connections.relay.passed = self._passed
        log.on_backlog = Sweep(later, FLUSH, log.flush).wake
        log.on_repeats = Sweep(later, PERIOD, log.report_repeats).wake

    def run(self) -> None:
        """Serve until it was stopped, and the last connection is over."""
        # What was made up to now lives as long as the process: the collector need not look at it.
        gc.collect()
        gc.freeze()
        try:
            self._watchdog.start()
        except RuntimeError as error:
            self._log.warning("no_watchdog", error=error)
        self.poller.ending = self.stopping
        self.poller.run(self._stopped)

    def close(self) -> None:
        """Give back what a server holds. Signals must not reach the loop any more."""
        self._watchdog.close()
        self._log.report_repeats()
        self._log.flush()
        self._connections.relay.pipes.close()
        self._connections.shares.close()
        self.poller.close()

    def look(self) -> None:
        """Accept what another worker was woken for and can't take."""
        for listener in self._listeners:
            listener.look()

    def bar(self, whom: str) -> None:
        """Refuse the owner of a host for a while, who has had another process sleep."""
        self._connections.bar(whom)

    def refresh(self, then: Then) -> None:
        """Look at what is open, for the counts; call ``then`` a little later."""
        self._look.begin(then)

    def page(self, ask: Ask) -> Answered:
        """List open connections (``listing.page``)."""
        seen, following = page(self._connections, ask.first, ask.most)
        return Answered(",".join(connection(ask.worker, one) for one in seen), len(seen), following)

    def open(self) -> int:
        """Count the connections that are open now."""
        return self._connections.totals.open

    def adopt(self, parcels: Sequence[Parcel], most: int = sys.maxsize) -> int:
        """Go on with about ``most`` connections of who was here before, if there is room for their
        descriptors; say how many they are. A message is taken as a whole, where more than half of
        its connections, each of two descriptors, are still missing."""
        adopted = 0
        room = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - RESERVE - len(parcels)
        # None of what is made for them is garbage; to look for some takes a third of the time.
        gc.disable()
        try:
            for parcel in parcels:
                while adopted < most:
                    now, free = time.monotonic(), room - 2 * self.open()
                    missing = most - adopted
                    if min(free, missing) < MOST_DESCRIPTORS:
                        needs = next_needs(parcel.socket, now)
                        if free < needs or missing <= needs // 4:
                            break
                    message = take(parcel.socket, now)
                    if message is None:
                        break
                    for carried in message.connections:
                        adopted += adopt(self._connections, carried)
                    if message.lost:
                        problem = message.problem
                        self._log.warning("not_adopted", count=message.lost, problem=problem)
        finally:
            gc.enable()
        return adopted

    def hand_over(self, keep: Callable[[Parcel], None], most: int) -> None:
        """Accept no more, and give away what is open and has no more than ``most`` descriptors.
        ``keep`` gets a parcel for the time of the call; what it raises OSError for goes on here and
        is finished within ``DRAIN``."""
        if self.stopping:
            return
        # First, as in ``stop``: should anything fail in between, this is the end all the same.
        self.poller.timers.later(DRAIN, lambda: self._close_connections("out_of_time"))
        self.stopping = self.poller.ending = True
        self._close_listeners()
        # They may be the only ones that are left for parcels.
        self._connections.shares.close()
        problem: Exception | None = None
        count = 0

        def give(parcel: Parcel) -> None:
            nonlocal problem, count
            try:
                keep(parcel)
                count += parcel.count
            except Exception as error:  # whatever it is, these go on here
                problem = error
                lost = parcel.count - self.adopt([parcel])
                if lost:
                    said = getattr(error, "strerror", None) or type(error).__name__
                    self._log.error("connections_lost", count=lost, error=said)

        word = time.monotonic()

        def put(carried: Sequence[Carried]) -> None:
            nonlocal word
            # First: what is put has gone, whatever fails then.
            if self._supervised and time.monotonic() >= word + WORD:
                self._report(PACKING)
                word = time.monotonic()
            packer.put(carried)

        packer = Packer(give)
        try:
            hand_over(self._connections, put, most)
        except Exception as error:  # whatever it is, what was not put goes on here
            problem = error
        packer.close()
        left = self.open()
        self._report("handed_over", count=count, left=left)
        if problem is not None:
            said = getattr(problem, "strerror", None) or f"{type(problem).__name__}: {problem}"
            self._log.warning("not_handed_over", error=said)
        if not left:
            self._over = True
        elif problem is None:
            self._close_connections("no_room")

    def stop(self, reason: str) -> None:
        """Accept no more than what is in the queue and finish what was accepted, within ``DRAIN``;
        ``reason`` is for the log. Asked for again, it changes nothing."""
        if self.stopping:
            return
        self.poller.timers.later(DRAIN, lambda: self._close_connections("out_of_time"))
        # From here on it is asked for: what is still to be done is done by the loop.
        self._reason = reason
        self.stopping = self.poller.ending = True

    def stop_now(self, reason: str) -> None:
        """Close everything."""
        self._close_listeners()
        self._close_connections(reason)
        self._reason = ""
        self.stopping = self.poller.ending = True

    def _stopped(self) -> bool:
        """Do what is to be done about a stop, between two turns; say whether it is the end."""
        if self._reason:
            for listener in self._listeners:
                listener.finish(alone=self._alone)
            self._report("stop", reason=self._reason, open=self._connections.totals.open)
            self._reason = ""
        if not self._over and not (self.stopping and self._idle()):
            return False
        self._close_listeners()
        self._connections.report_refusals()
        self._report("exit", accepted=self._connections.totals.numbers[ACCEPTED])
        return True

    def _idle(self) -> bool:
        """Say whether nobody is here any more, nor waits to be accepted."""
        return not self.open() and not any(listener.open for listener in self._listeners)

    def _close_connections(self, reason: str) -> None:
        closed = self._connections.close_all()
        self._report("connections_closed", count=closed, reason=reason)
        self._over = True

    def _close_listeners(self) -> None:
        while self._listeners:
            self._listeners[-1].close()
            self._listeners.pop()

    def _slept(self, watcher: Watcher) -> None:
        """End a connection whose read has slept, and refuse whose backend passes such things."""
        if not isinstance(watcher, (Arrival, End, Farewell)):
            return  # the service manager was waited for, say
        directory = ""
        if isinstance(watcher, End):
            if not hasattr(watcher, "peer"):
                return  # it is over already: see ``_passed``
            directory = getattr(watcher.client(), "host", "")
        self._log.warning("read_slept", host=directory or "unknown")
        self.poller.guard(watcher, watcher.abandon)
        self._refuse(directory)

    def _passed(self, client: End) -> None:
        """Refuse whose backend has passed descriptors. Its connection is over."""
        directory = getattr(client, "host", "")
        if directory and self._connections.barred.holds(directory):
            return  # one of those that end for it
        self._log.warning("descriptors_passed", host=directory or "unknown")
        self._refuse(directory)

    def _refuse(self, directory: str) -> None:
        if directory:
            whom = self._connections.bar(directory)
            if self._supervised:
                self._report(BAR, host=whom)

    def _hangs(self, step: Step) -> None:
        """Tell that this process sleeps, and nothing wakes it, from another thread: the log is
        not in use meanwhile."""
        if self._supervised:
            self._report(HANGS, host=step.host, at=step.where)
        else:
            self._log.error(HANGS, host=step.host or "none", at=step.where)

    def _fault(self, error: Exception) -> None:
        self._connections.fault(error)
