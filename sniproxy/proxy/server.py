"""The life cycle of the proxy: start, signals, graceful stop.

asyncio keeps the loop, the signals and the timers; connections live in its selector (``Poller``)
and never meet it. Everything is built here, once, and handed to who needs it.
"""

import asyncio
import gc
import os
import resource
import signal
import socket
from collections.abc import Mapping, MutableMapping, Sequence

from sniproxy import __version__, flavour
from sniproxy.proxy import log as logs
from sniproxy.proxy.connection import Connections
from sniproxy.proxy.inherited import (
    listening_sockets,
    replace_standard_descriptors,
    same_file,
)
from sniproxy.proxy.listener import Listener
from sniproxy.proxy.notify import notify
from sniproxy.proxy.poller import Poller
from sniproxy.proxy.settings import Settings, settings
from sniproxy.proxy.sweep import Sweep
from sniproxy.resolver.hosts import Hosts

DRAIN = 9.5
"""Seconds that connections have to end after a graceful stop was asked for: the documented ten,
and sooner than a ``TimeoutStopSec=10s`` kills."""

_FLUSH = 0.1
"""Seconds between two tries at log lines that wait."""

_STANDARD_ERROR = 2

_SIGNALS = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Server:
    """One process that proxies."""

    def __init__(
        self,
        listening: Sequence[socket.socket],
        hosts: Hosts,
        log: logs.Log,
        environment: Mapping[str, str],
    ) -> None:
        self._log = log
        self._environment = environment
        self._stopping = False
        self._poller = Poller(self._fault)
        self._loop = asyncio.SelectorEventLoop(self._poller)
        self._loop.set_exception_handler(self._loop_fault)
        self._connections = Connections(
            self._poller, hosts, log, self._loop.time, self._loop.call_later
        )
        self._connections.idle = self._idle
        self._listeners = [Listener(one, self._connections) for one in listening]
        log.on_backlog = Sweep(self._loop.call_later, _FLUSH, log.flush).wake

    def run(self) -> None:
        """Serve until a signal has ended it and the last connection is closed."""
        loop = self._loop
        for number in (signal.SIGHUP, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop, number)
        loop.add_signal_handler(signal.SIGINT, self._stop_now, signal.SIGINT)
        loop.add_signal_handler(signal.SIGUSR1, self._connections.log_totals)
        # What was made up to now lives as long as the process: the collector need not look at it.
        gc.collect()
        gc.freeze()
        notify("READY=1", self._environment)
        try:
            loop.run_forever()
        finally:
            # One more signal must not find the loop half closed: it would print a traceback.
            signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
            self._close_listeners()
            self._connections.report_refusals()
            self._log.info("exit", accepted=self._connections.totals.accepted)
            self._log.flush()
            loop.close()

    def _stop(self, number: signal.Signals) -> None:
        """Accept no more, finish what was accepted; at the second signal, stop now."""
        if self._stopping:
            self._stop_now(number)
            return
        self._stopping = True
        self._close_listeners()
        notify("STOPPING=1", self._environment)
        left = self._connections.totals.open
        self._log.info("stop", signal=number.name, open=left)
        if left:
            self._loop.call_later(DRAIN, self._out_of_time)
        else:
            self._loop.stop()

    def _out_of_time(self) -> None:
        closed = self._connections.close_all()
        self._log.info("connections_closed", count=closed, reason="out_of_time", seconds=DRAIN)
        self._loop.stop()

    def _stop_now(self, number: signal.Signals) -> None:
        self._stopping = True
        self._close_listeners()
        closed = self._connections.close_all()
        self._log.info("connections_closed", count=closed, reason=number.name)
        self._loop.stop()

    def _idle(self) -> None:
        if self._stopping:
            self._loop.stop()

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


def _open_log(
    wanted: Settings, listening: Sequence[socket.socket], environment: Mapping[str, str]
) -> logs.Log:
    """Log to standard error, or to syslog where that is the listening socket (inetd)."""
    if any(same_file(_STANDARD_ERROR, one.fileno()) for one in listening):
        return logs.Log(logs.SyslogSink(), wanted.level, prefixed=True)
    journal = logs.is_journal(_STANDARD_ERROR, environment)
    return logs.Log(logs.sink_of(_STANDARD_ERROR), wanted.level, prefixed=journal)


def _raise_descriptor_limit() -> int:
    """Raise the soft RLIMIT_NOFILE to the hard one, where that is allowed; give what holds."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        return soft
    return hard


def _address(listening: socket.socket) -> str:
    name = listening.getsockname()
    if isinstance(name, tuple):
        host, port = name[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return f"unix:{os.fsdecode(name)}"


def serve(environment: MutableMapping[str, str]) -> None:
    """Run the proxy in the working directory until it is stopped.

    Raises ``NoListeningSocket``, and OSError where the hosts directory can't be entered.
    """
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    wanted = settings(environment)
    listening = listening_sockets(environment)
    log = _open_log(wanted, listening, environment)
    hosts = Hosts()
    for one in listening:
        replace_standard_descriptors(one, hosts.fileno())
    for complaint in wanted.complaints:
        log.warning("bad_setting", problem=complaint)
    limit = _raise_descriptor_limit()
    server = Server(listening, hosts, log, environment)
    log.info(
        "start",
        version=__version__,
        flavour="hashed" if flavour.HASHED else "plain",
        pid=os.getpid(),
        listen=",".join(_address(one) for one in listening),
        descriptors=limit,
    )
    server.run()
