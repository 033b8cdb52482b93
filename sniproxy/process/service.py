"""The service: how the proxy starts, in one process or in several.

Everything that is taken from outside is taken here, once: the environment, the listening sockets,
standard error, the working directory. One process serves by itself; of several the first becomes
the supervisor and each of the others, forked from it, a worker.
"""

import contextlib
import functools
import gc
import os
import resource
import signal
import sys
from collections.abc import Callable, MutableMapping, Sequence
from socket import socket

from sniproxy import __version__, flavour
from sniproxy.log.log import Log, is_journal
from sniproxy.log.sinks import SyslogSink, sink_of
from sniproxy.process import processors, supervisor
from sniproxy.process.channel import Channel
from sniproxy.process.inherited import (
    listening_sockets,
    replace_standard_descriptors,
    same_file,
)
from sniproxy.process.notify import notify
from sniproxy.process.server import CROWDED, Server
from sniproxy.process.settings import settings
from sniproxy.process.signals import SIGNALS, SignalHandlers
from sniproxy.process.supervisor import Supervisor
from sniproxy.resolver.hosts import Hosts

_STANDARD_ERROR = 2


def serve(environment: MutableMapping[str, str]) -> None:
    """Run the proxy in the working directory until it is stopped.

    Raises ``NoListeningSocket``, and OSError where the hosts directory can't be entered.
    """
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    wanted = settings(environment)
    listening = listening_sockets(environment)
    # Where standard error is the listening socket (inetd), nothing may be written to it.
    to_syslog = any(same_file(_STANDARD_ERROR, one.fileno()) for one in listening)
    journal = is_journal(_STANDARD_ERROR, environment)

    def open_log() -> Log:
        if to_syslog:
            return Log(SyslogSink(), wanted.level, prefixed=True)
        return Log(sink_of(_STANDARD_ERROR), wanted.level, prefixed=journal)

    log = open_log()
    _log_unraisable(log)
    hosts = Hosts()
    for one in listening:
        replace_standard_descriptors(one, hosts.fileno())
    for complaint in wanted.complaints:
        log.warning("bad_setting", problem=complaint)
    limit = _raise_descriptor_limit()
    count = wanted.workers or _workers(hosts)
    addresses = ",".join(_address(one) for one in listening)

    def log_start() -> None:
        """Tell that a signal is now taken as we promise."""
        log.info(
            "start",
            version=__version__,
            flavour="hashed" if flavour.HASHED else "plain",
            pid=os.getpid(),
            workers=count,
            listen=addresses,
            descriptors=limit,
        )

    def ready() -> None:
        notify("READY=1", environment)

    def stopping() -> None:
        notify("STOPPING=1", environment)

    if count == 1:
        server = Server(listening, hosts, log, log.info)
        handlers = _handle_signals(server, log, stopping)
        log_start()
        ready()
        _run_alone(server, handlers)
        return

    def close_listening() -> None:
        stopping()
        for one in listening:
            one.close()

    # What was made up to now is shared by all workers, as long as nobody looks for garbage in it.
    gc.collect()
    gc.freeze()
    first = Supervisor(count, log, ready, close_listening)
    log_start()
    channel = first.run()
    if channel is not None:
        try:
            _work(channel, listening, hosts, open_log(), count)
        except MemoryError:  # at its start: the supervisor says so, and tries again later
            sys.exit(1)


def _log_unraisable(log: Log) -> None:
    """Log an exception that has nobody to be raised to, as in a destructor, where Python would
    print a traceback past the log."""

    def tell(what: "sys.UnraisableHookArgs") -> None:
        error = what.exc_value
        log.error("unexpected_error", type=what.exc_type.__name__, error=error, at="destructor")

    sys.unraisablehook = tell


def _workers(hosts: Hosts) -> int:
    """Count the workers where nobody says how many."""
    # In a jail the hosts directory is the root itself, and what is called /proc and /sys there
    # may be anybody's.
    if os.path.samestat(os.stat("/"), os.fstat(hosts.fileno())):
        return len(os.sched_getaffinity(0))
    return processors.usable()


def _handle_signals(server: Server, log: Log, stopping: Callable[[], None]) -> SignalHandlers:
    """Have the only process act on signals, also on those that whoever started us had blocked."""
    handlers = SignalHandlers(server.poller)

    def stop(number: signal.Signals) -> None:
        if server.stopping:
            server.stop_now(number.name)
            return
        stopping()
        server.stop(number.name)

    for number in (signal.SIGHUP, signal.SIGTERM):
        handlers.handle(number, functools.partial(stop, number))
    handlers.handle(signal.SIGINT, lambda: server.stop_now(signal.SIGINT.name))
    handlers.handle(signal.SIGUSR1, lambda: log.reply("totals", **server.sums()))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    return handlers


def _run_alone(server: Server, handlers: SignalHandlers) -> None:
    """Serve in the only process."""
    server.run()
    # What can't be given back for want of memory, the kernel takes: this is the end.
    with contextlib.suppress(MemoryError):
        # One more signal must not find the loop half closed.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        handlers.close()
        server.close()


def _work(
    channel: Channel, listening: Sequence[socket], hosts: Hosts, log: Log, count: int
) -> None:
    """Serve as one worker of ``count``, as the supervisor says."""

    def report(event: str, **fields: int | str) -> None:
        try:
            gone = not channel.send(event, **fields)
        except BlockingIOError:
            return  # it hangs; what is said meanwhile is not worth to wait for
        if gone and event != CROWDED:
            # There is nobody any more to make one line of all workers'.
            log.info(event, **fields)

    _log_unraisable(log)
    server = Server(listening, hosts, log, report, count)

    def receive() -> None:
        try:
            message = channel.receive()
        except BlockingIOError:
            return
        if message is None:
            server.stop("supervisor_gone")
            server.poller.unwatch(channel.fileno())
            log.warning("supervisor_gone", pid=os.getpid())
            return
        event, fields = message
        if event == supervisor.SUMS:
            report(event, **server.sums())
        elif event == supervisor.LOOK:
            server.look()
        elif event == supervisor.STOP:
            server.stop(str(fields["reason"]))
        else:
            server.stop_now(str(fields["reason"]))
        channel.done()

    server.poller.attend(channel.fileno(), receive)
    report(supervisor.READY)
    server.run()
    with contextlib.suppress(MemoryError):  # as above
        server.close()
        channel.close()


def _raise_descriptor_limit() -> int:
    """Raise the soft RLIMIT_NOFILE to the hard one, where that is allowed; give what holds."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        return soft
    return hard


def _address(listening: socket) -> str:
    name = listening.getsockname()
    if isinstance(name, tuple):
        host, port = name[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return f"unix:{os.fsdecode(name)}"
