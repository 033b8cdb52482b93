"""The service: how the proxy starts, in one process or in several, and what comes after it.

Everything that is taken from outside is taken here, once: the environment, the listening sockets,
parcels of the process before us, standard error, the working directory. One process serves by
itself; of several the first becomes the supervisor and each of the others, forked from it, a
worker.
"""

import functools
import gc
import os
import resource
import signal
import sys
import time
from collections.abc import MutableMapping
from socket import socket
from typing import TYPE_CHECKING

from sniproxy import __version__, flavour
from sniproxy.dataplane.address import host_and_port
from sniproxy.dataplane.counts import Counts
from sniproxy.dataplane.poller import Poller
from sniproxy.dataplane.refusals import readable
from sniproxy.dataplane.tally import Tally
from sniproxy.dataplane.timers import NO_MEMORY
from sniproxy.log.log import Log, is_journal
from sniproxy.log.sinks import SyslogSink, sink_of
from sniproxy.process import supervisor
from sniproxy.process.alone import Alone
from sniproxy.process.channel import Channel
from sniproxy.process.inherited import (
    BOUND_BY,
    bound_by_us,
    listening_sockets,
    pass_on,
    replace_standard_descriptors,
    same_file,
    stored_parcels,
)
from sniproxy.process.inquiries import PAGE, REFRESH
from sniproxy.process.notify import notify
from sniproxy.process.parcel import Parcel
from sniproxy.process.processors import usable
from sniproxy.process.program import own_command
from sniproxy.process.renewal import Renewal
from sniproxy.process.resolvers import Resolvers, reap
from sniproxy.process.server import BAR, CROWDED, Server
from sniproxy.process.settings import settings
from sniproxy.process.signals import SIGNALS, SignalHandlers
from sniproxy.process.source import Source, tell_totals
from sniproxy.process.supervisor import Supervisor
from sniproxy.process.worker import NOBODY
from sniproxy.resolver.hosts import Hosts
from sniproxy.status.overview import About, Ask

if TYPE_CHECKING:
    from sniproxy.process.status import Status

_STANDARD_ERROR = 2

RENEW = 75
"""Exit status that asks the service manager for a start (RestartForceExitStatus=; EX_TEMPFAIL)."""


def serve(environment: MutableMapping[str, str]) -> int:
    """Run the proxy in the working directory until it is stopped; give the exit status.

    Raises ``NoListeningSocket``, and OSError where the hosts directory can't be entered.
    """
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    # Where whoever started us ignored it, nobody could wait for a process of ours.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    while True:
        service = _Service(environment)
        status = service.run()
        if status is not None:
            return status
        service.run_anew()


class _Service:
    """The proxy from its start to its end, in each of its processes."""

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        wanted = settings(environment)
        self._environment = environment
        self._level, self._clients = wanted.level, wanted.clients
        self._parcels = stored_parcels(environment)
        passed = listening_sockets(environment, announced=wanted.accept_proxy)
        self._listening = [one for one in passed if not one.status]
        self._status_sockets = [one for one in passed if one.status]
        self._bound_by_us = bound_by_us(environment)
        self._addresses = [_address(one.socket) for one in self._listening]
        of_balancers = [_address(one.socket) for one in self._listening if one.announced]
        self._announced = {"accept_proxy": ",".join(of_balancers)} if of_balancers else {}
        shown_at = [_address(one.socket) for one in self._status_sockets]
        self._shown = {"status": ",".join(shown_at)} if shown_at else {}
        # Where standard error is the listening socket (inetd), nothing may be written to it.
        self._to_syslog = any(same_file(_STANDARD_ERROR, one.socket.fileno()) for one in passed)
        self._journal = is_journal(_STANDARD_ERROR, environment)
        self._log = self._open_log()
        self._hosts = Hosts()
        self._standard: list[int] = []
        for one in passed:
            self._standard += replace_standard_descriptors(one.socket, self._hosts.fileno())
        complaints = wanted.complaints
        if wanted.accept_proxy and not all(one.announced for one in self._listening):
            complaints.append(
                "SNIPROXY_ACCEPT_PROXY=1: is for a socket on standard input; others are to be "
                "called proxy (FileDescriptorName=proxy)"
            )
        for complaint in complaints:
            self._log.warning("bad_setting", problem=complaint)
        self._limit = _raise_descriptor_limit()
        self._count = wanted.workers or usable(self._hosts.fileno())
        self._program = own_command()
        self._renewal = Renewal(environment, self._program)
        isolate = self._hosts.shared if wanted.isolate is None else wanted.isolate
        self._resolvers = Resolvers(self._hosts, self._count) if isolate else None
        self._isolated = {"isolate": "yes"} if isolate else {}
        flavour_name = "hashed" if flavour.HASHED else "plain"
        self._about = About(__version__, flavour_name, self._addresses, isolate, time.time())
        # One that hangs keeps its own while another takes its place.
        self._parts = [Counts() for _ in range(1 if self._count == 1 else 2 * self._count)]

    def run(self) -> int | None:
        """Serve; give the exit status, or None where the program is to be run anew."""
        if self._resolvers is not None:
            reap()
            self._resolvers.start()
        handed_over = self._run_alone() if self._count == 1 else self._run_workers()
        if self._resolvers is not None:
            self._resolvers.end()
        self._renewal.close()
        if not handed_over:
            return 0
        if self._renewal.store.managed:
            self._renewal.store.settle()
            return RENEW
        return None

    def run_anew(self) -> None:
        """Run the program in this process. Returns where that fails: then all is as at a start."""
        self._log.close()
        # What was closed at our start, too: no Python starts with a directory there.
        ours = self._hosts.fileno()
        closed = [fd for fd in (0, 1, 2) if fd != ours and same_file(fd, ours)]
        self._hosts.close()
        for fd in closed:
            os.close(fd)
        parcels = self._renewal.parcels
        passed = [*self._listening, *self._status_sockets]
        pass_on(self._environment, passed, self._standard, parcels)
        if self._bound_by_us:
            self._environment[BOUND_BY] = str(os.getpid())
        program = self._program or []
        try:
            os.execve(program[0], program, dict(self._environment))  # noqa: S606 - it is our own
        except OSError as error:
            log = self._open_log()
            log.error("not_renewed", problem=f"{program[0]}: {error.strerror}")
            log.close()

    def _open_log(self) -> Log:
        sink = SyslogSink() if self._to_syslog else sink_of(_STANDARD_ERROR)
        prefixed = self._to_syslog or self._journal
        log = Log(sink, self._level, prefixed=prefixed, clients=self._clients)
        _log_unraisable(log)
        return log

    def _tell(self, event: str, **fields: int | str) -> None:
        """Log what a server reports."""
        self._log.info(event, **readable(fields))

    def _log_start(self, **adopted: int | str) -> None:
        """Tell that a signal is now taken as we promise; where there are connections of the process
        before us, only together with what became of them."""
        if self._parcels and not adopted:
            return
        self._log.info(
            "start",
            version=__version__,
            flavour=self._about.flavour,
            pid=os.getpid(),
            workers=self._count,
            listen=",".join(self._addresses),
            **self._announced,
            **self._shown,
            **self._isolated,
            descriptors=self._limit,
            **adopted,
        )

    def _ready(self, adopted: int, known: bool = True) -> None:
        """Tell that we serve, ``adopted`` connections of the process before us among others; where
        that is not ``known`` of all workers, nobody can say what is lost."""
        if self._parcels:
            lost = max(0, sum(parcel.count for parcel in self._parcels) - adopted)
            self._close_parcels()
            self._log_start(adopted=adopted, lost=lost if known or not lost else "unknown")
        self._renewal.store.remove({parcel.name for parcel in self._parcels})
        self._parcels = []
        notify("READY=1", self._environment)

    def _close_parcels(self) -> None:
        for parcel in self._parcels:
            parcel.socket.close()

    def _stopping(self) -> None:
        """Tell that we accept no more, and give up our copies of the listening sockets."""
        notify("STOPPING=1", self._environment)
        for one in (*self._listening, *self._status_sockets):
            one.socket.close()

    def _serve_status(self, source: Source, poller: Poller) -> "Status | None":
        """Serve the status sockets in the loop of the first process, if there are any: others start
        without what that takes."""
        if not self._status_sockets:
            return None
        from sniproxy.process.status import Status  # noqa: PLC0415

        return Status(self._status_sockets, source, poller)

    # One process.

    def _run_alone(self) -> bool:
        """Serve in the only process; say whether its connections have been given away."""
        log = self._log
        # Copies, since it closes them, and the program that is run anew needs them.
        copies = [one._replace(socket=one.socket.dup()) for one in self._listening]
        resolvers = self._resolvers
        desk = None if resolvers is None else resolvers.desk(0)
        server = Server(
            copies,
            self._hosts,
            log,
            self._tell,
            alone=self._bound_by_us,
            desk=desk,
            counts=self._parts[0],
        )
        if resolvers is not None:
            resolvers.attend(server.poller, log)
        handlers = SignalHandlers(server.poller)
        alone = Alone(server, self._about, self._parts, self._stopping)
        status = self._serve_status(alone, server.poller)
        handlers.handle_stops(alone, in_place=not self._renewal.store.managed)
        handlers.handle(signal.SIGUSR1, tell_totals(alone, log))
        renew = functools.partial(self._renewal.ask, server.poller, alone, log)
        handlers.handle(signal.SIGUSR2, renew)
        # Also those that whoever started us had blocked.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        self._log_start()
        self._ready(server.adopt(self._parcels))
        server.run()
        # What can't be given back for want of memory, the kernel takes: this is the end. (To make a
        # contextlib.suppress takes some.)
        try:
            handlers.end()
            if status is not None:
                status.close()
            server.close()
        except NO_MEMORY:
            pass
        return alone.handed_over

    # Several.

    def _run_workers(self) -> bool:
        """Supervise, or be a worker; say whether the connections have been given away."""
        # What was made up to now is shared by all workers, as long as nobody looks for garbage in
        # it.
        gc.collect()
        gc.freeze()
        tally = Tally(self._count)
        first = Supervisor(
            self._count,
            self._log,
            self._ready,
            self._stopping,
            self._renewal,
            self._parts,
            self._about,
            parcels=bool(self._parcels),
        )
        first.show(self._serve_status)
        if self._resolvers is not None:
            first.attend(self._resolvers)
        self._log_start()
        status = 1
        try:
            channel = first.run()
            if channel is None:
                return first.handed_over
            self._log = self._open_log()
            tally.join(first.number)
            self._work(channel, first.number, tally, self._parts[first.part])
            status = 0
        except NO_MEMORY:  # at a worker's start: the supervisor says so, and tries again later
            if first.number == NOBODY:
                raise
        # The interpreter's own end of a worker could fail for want of memory, too.
        os._exit(status)

    def _work(self, channel: Channel, number: int, tally: Tally, counts: Counts) -> None:
        """Serve as one worker, as the supervisor says."""
        log = self._log
        counts.rejoin()
        for one in self._status_sockets:
            one.socket.close()

        def report(event: str, **fields: int | str) -> None:
            try:
                gone = not channel.send(event, **fields)
            except BlockingIOError:
                return  # it hangs; what is said meanwhile is not worth to wait for
            if gone and event != CROWDED:
                # There is nobody any more to make one line of all workers'.
                self._tell(event, **fields)

        desk = None
        if self._resolvers is not None:
            self._resolvers.forsake(number)
            desk = self._resolvers.desk(number)
        server = Server(
            self._listening,
            self._hosts,
            log,
            report,
            self._count,
            tally,
            alone=self._bound_by_us,
            desk=desk,
            counts=counts,
        )

        def give(parcel: Parcel) -> None:
            channel.send_descriptor(supervisor.PARCEL, parcel.socket.fileno(), count=parcel.count)

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
            if event == REFRESH:
                server.refresh(functools.partial(report, REFRESH))
            elif event == PAGE:
                ask = Ask(number, int(fields["first"]), int(fields["most"]))
                report(event, number=fields["number"], **server.page(ask)._asdict())
            elif event == supervisor.LOOK:
                server.look()
            elif event == BAR:
                server.bar(str(fields["host"]))
            elif event == supervisor.COUNT:
                report(event, open=server.open())
            elif event == supervisor.ADOPT:
                adopted = server.adopt(self._parcels)
                self._close_parcels()
                report(event, adopted=adopted)
            elif event == supervisor.HAND_OVER:
                server.hand_over(give, int(fields["most"]))
            elif event == supervisor.STOP:
                server.stop(str(fields["reason"]))
            else:
                server.stop_now(str(fields["reason"]))
            channel.done()

        server.poller.attend(channel.fileno(), receive)
        parcels = self._parcels
        share = -(-sum(parcel.count for parcel in parcels) // self._count)
        first = number * len(parcels) // self._count
        adopted = server.adopt([*parcels[first:], *parcels[:first]], share)
        report(supervisor.READY, adopted=adopted)
        server.run()
        try:
            server.close()
            channel.close()
        except NO_MEMORY:
            pass


def _log_unraisable(log: Log) -> None:
    """Log an exception that has nobody to be raised to, as in a destructor, where Python would
    print a traceback past the log."""

    def tell(what: "sys.UnraisableHookArgs") -> None:
        error = what.exc_value
        log.error("unexpected_error", type=what.exc_type.__name__, error=error, at="destructor")

    sys.unraisablehook = tell


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
        return host_and_port(*name[:2])
    return f"unix:{os.fsdecode(name)}"
