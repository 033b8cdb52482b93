"""One process that proxies: its loop, its connections, and how it stops.

asyncio keeps the loop, the signals and the timers; connections live in its selector (``Poller``)
and never meet it. Whether the process is the only one or a worker among others is not known here:
who started the server says what becomes of its reports, and calls ``stop``.
"""

import asyncio
import functools
import gc
import time
from collections.abc import Mapping, Sequence
from socket import socket

from sniproxy.dataplane.connections import Connections, Report
from sniproxy.dataplane.farewell import part
from sniproxy.dataplane.listener import Listener
from sniproxy.dataplane.poller import Poller
from sniproxy.dataplane.sweep import Sweep
from sniproxy.log.log import Log
from sniproxy.resolver.hosts import Hosts

DRAIN = 9.5
"""Seconds that connections have to end after a graceful stop was asked for: the documented ten,
and sooner than a ``TimeoutStopSec=10s`` kills."""

CROWDED = "crowded"
"""Event: a connection waits that this process can't take."""

FLUSH = 0.1
"""Seconds between two tries at log lines that wait."""


class Server:
    """Serves the listening sockets, which it takes over, until it is stopped.

    ``report`` is told of ``stop``, ``connections_closed``, ``refused`` and ``exit``. ``workers``
    says how many processes share the sockets and what else is shared out between them; with several
    it is also told of ``crowded``: then the others are to ``look``. ``alone`` says that nobody but
    us and the other workers has the sockets.
    """

    def __init__(
        self,
        listening: Sequence[socket],
        hosts: Hosts,
        log: Log,
        report: Report,
        workers: int = 1,
        *,
        alone: bool = False,
    ) -> None:
        self._log = log
        self._report = report
        self._alone = alone
        self.stopping = False
        self._poller = Poller(self._fault)
        self.loop = asyncio.SelectorEventLoop(self._poller)
        self.loop.set_exception_handler(self._loop_fault)
        self._connections = Connections(
            self._poller, hosts, log, time.monotonic, self.loop.call_later, report, part, workers
        )
        self._connections.idle = self._idle
        crowded = functools.partial(report, CROWDED) if workers > 1 else None
        self._listeners = [Listener(one, self._connections, crowded) for one in listening]
        log.on_backlog = Sweep(self.loop.call_later, FLUSH, log.flush).wake

    def run(self) -> None:
        """Serve until the loop has been stopped: by ``stop``, when the last connection is over."""
        # What was made up to now lives as long as the process: the collector need not look at it.
        gc.collect()
        gc.freeze()
        self.loop.run_forever()

    def close(self) -> None:
        """Report the last things. Signals must not reach the loop any more."""
        self._close_listeners()
        self._connections.report_refusals()
        self._report("exit", accepted=self._connections.totals.accepted)
        self._log.flush()
        self.loop.close()

    def look(self) -> None:
        """Accept what another worker was woken for and can't take."""
        for listener in self._listeners:
            listener.look()

    def sums(self) -> dict[str, int]:
        """Count everything since the start."""
        return self._connections.sums()

    def stop(self, reason: str) -> None:
        """Accept no more than what is in the queue and finish what was accepted, within ``DRAIN``;
        ``reason`` is for the log. Asked for again, it changes nothing."""
        if self.stopping:
            return
        self.stopping = True
        for listener in self._listeners:
            listener.finish(alone=self._alone)
        left = self._connections.totals.open
        self._report("stop", reason=reason, open=left)
        self.loop.call_later(DRAIN, self._close_connections, "out_of_time")
        if not left:
            self._idle()

    def stop_now(self, reason: str) -> None:
        """Close everything."""
        self.stopping = True
        self._close_listeners()
        self._close_connections(reason)

    def _close_connections(self, reason: str) -> None:
        closed = self._connections.close_all()
        self._report("connections_closed", count=closed, reason=reason)
        self.loop.stop()

    def _idle(self) -> None:
        if self.stopping and not any(listener.open for listener in self._listeners):
            self.loop.stop()

    def _close_listeners(self) -> None:
        while self._listeners:
            self._listeners.pop().close()

    def _fault(self, error: Exception) -> None:
        self._connections.fault(error)

    def _loop_fault(self, _loop: asyncio.AbstractEventLoop, context: Mapping[str, object]) -> None:
        """Log what asyncio would print with a traceback."""
        error = context.get("exception")
        if isinstance(error, Exception):
            self._fault(error)
        else:
            self._log.error("unexpected_error", error=context.get("message"))
