"""A connection from its accept until it is relayed or refused.

An ``Arrival`` reads the hello, asks the resolver for the backend and hands both sockets to the
relay; in the usual case all of this happens within one call, right after the accept, and the
arrival is gone again. Otherwise it waits: for the rest of the hello, or in line for room in the
backend's accept queue or for a descriptor, all within ``PATIENCE``. A ``Farewell`` closes a
client's socket so that what was sent to it arrives. ``Connections`` is what they share, and the
only owner of clients' sockets outside the relay.
"""

from collections import Counter
from collections.abc import Callable
from socket import (
    AF_UNIX,
    MSG_DONTWAIT,
    SHUT_WR,
    SO_ERROR,
    SOCK_NONBLOCK,
    SOCK_STREAM,
    SOL_SOCKET,
    SocketType,
)

from sniproxy.parser.alert import Alert, Refusal, alert_record
from sniproxy.parser.client_hello import ClientHelloParser
from sniproxy.proxy.log import Log
from sniproxy.proxy.poller import ERROR, Poller
from sniproxy.proxy.relay import BUFFER_SIZE, End, Relay
from sniproxy.proxy.sweep import Countdown, Later, Sweep
from sniproxy.proxy.waiting import FOR_A_DESCRIPTOR, Lines
from sniproxy.resolver import proxy_header
from sniproxy.resolver.hosts import DESCRIPTORS_EXHAUSTED, Hosts, refusal
from sniproxy.resolver.naming import directory_name
from sniproxy.resolver.proxy_header import SocketAddress

PATIENCE = 10.0
"""Seconds from the accept for the hello, and for the backend to take the connection."""

FAREWELL_PATIENCE = 1.0
"""Seconds that a client has to read what it was sent last and to close."""

FAREWELL_BYTES = 64 * 1024
"""Bytes of a refused client that are read and thrown away before we close all the same."""

# Plain numbers, since the operators of the enumerations take longer than what they are for.
_UNIX = int(AF_UNIX)
_STREAM_NONBLOCK = SOCK_STREAM.value | SOCK_NONBLOCK.value

MAX_KEPT = 32 * 1024 * 1024
"""Bytes of all undecided hellos together that a process keeps: room for more than a thousand of the
largest that occur (20 kB), where each alone might have a megabyte."""

_READS_A_TURN = 8
_SWEEP = 0.1

REFUSALS_REPORT = 60.0
"""Seconds from a refusal to the report that counts it and all that came meanwhile."""

Report = Callable[..., None]
"""Tell of an event and its fields, as a line of the log has them, whoever is to know of it."""


class Totals:
    """Counts since the start. ``up`` is bytes from clients, ``down`` bytes to them, both only of
    connections that have ended."""

    __slots__ = ("accepted", "down", "open", "refused", "up")

    def __init__(self) -> None:
        self.accepted = 0
        self.open = 0
        self.refused: Counter[str] = Counter()
        self.up = 0
        self.down = 0


class Connections:
    """All connections of a process.

    ``idle`` is called each time that the last open connection has ended.
    """

    def __init__(
        self,
        poller: Poller,
        hosts: Hosts,
        log: Log,
        clock: Callable[[], float],
        later: Later,
        report: Report,
        workers: int = 1,
    ) -> None:
        self.poller = poller
        self.hosts = hosts
        self.log = log
        self.clock = clock
        self.later = later
        self.relay = Relay(poller, self._relayed, clock, later, workers)
        self.totals = Totals()
        self.idle: Callable[[], None] = lambda: None
        self.undecided: Countdown[Arrival] = Countdown(PATIENCE, Arrival.expire)
        self.lines = Lines(later)
        self.farewells: Countdown[Farewell] = Countdown(FAREWELL_PATIENCE, Farewell.close)
        self._sweep = Sweep(later, _SWEEP, self.sweep)
        self._kept = 0
        self._refused_lately: Counter[str] = Counter()
        self._report = report
        self._refusals = Sweep(later, REFUSALS_REPORT, self.report_refusals)

    def welcome(self, client: SocketType, address: SocketAddress) -> None:
        """Take over a socket that was just accepted, in blocking mode or not."""
        totals = self.totals
        totals.accepted += 1
        totals.open += 1
        arrival = Arrival(self, client, address)
        try:
            arrival.begin()
        except Exception as error:  # one connection ends here, no more
            self.fault(error)
            arrival.abandon()

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

        Its descriptor is free on return, so the alert may be lost where more bytes arrive.
        """
        oldest = self.undecided.oldest()
        if oldest is None:
            return False
        oldest.refuse(Refusal(Alert.USER_CANCELED, "evicted"), linger=False)
        return True

    def keep(self, size: int) -> None:
        """Count ``size`` more bytes of undecided hellos; end the oldest of too many."""
        self._kept += size
        while self._kept > MAX_KEPT and self.evict_oldest():
            pass

    def release(self, size: int) -> None:
        """Count ``size`` fewer bytes of undecided hellos."""
        self._kept -= size

    def wait(self, arrival: "Arrival") -> None:
        """Start an undecided arrival's time."""
        self.undecided.start(arrival, arrival.accepted_at)
        self._sweep.wake()

    def part(self, farewell: "Farewell") -> None:
        """Start a farewell's time."""
        self.farewells.start(farewell, self.clock())
        self._sweep.wake()

    def sweep(self) -> bool:
        """End what took too long; say whether anything is left to watch."""
        now = self.clock()
        undecided, farewells = self.undecided.sweep(now), self.farewells.sweep(now)
        return undecided or farewells

    def refused(self, reason: str) -> None:
        """Count a refusal, for the totals and for the line once a minute."""
        self.totals.refused[reason] += 1
        self._refused_lately[reason] += 1
        self._refusals.wake()

    def report_refusals(self) -> bool:
        """Report the refusals since the last report, if there were any. Never wants to be called
        again: the next refusal sees to that."""
        if self._refused_lately:
            count = self._refused_lately.total()
            self._report("refused", count=count, **self._refused_lately)
            self._refused_lately.clear()
        return False

    def sums(self) -> dict[str, int]:
        """Give what SIGUSR1 asks for, the bytes of open connections included."""
        totals = self.totals
        up, down = totals.up, totals.down
        for watcher in self.poller.watchers():
            if isinstance(watcher, End) and watcher.of_client:
                up += watcher.moved
                down += watcher.peer.moved
        refused = {f"refused_{reason}": count for reason, count in sorted(totals.refused.items())}
        return {
            "open": totals.open,
            "accepted": totals.accepted,
            "refused": totals.refused.total(),
            "bytes_up": up,
            "bytes_down": down,
            **refused,
        }

    def close_all(self) -> int:
        """End all connections now; say how many there were."""
        count = 0
        for watcher in self.poller.watchers():
            if isinstance(watcher, Arrival):
                watcher.end("stopped")
            elif isinstance(watcher, Farewell):
                watcher.close()
            elif isinstance(watcher, End) and watcher.of_client:
                self.relay.end(watcher, "stopped")
            else:
                continue
            count += 1
        return count

    def gone(self) -> None:
        """Count a connection whose client's socket has been closed."""
        totals = self.totals
        totals.open -= 1
        if not totals.open:
            self.idle()

    def _relayed(self, end: End, how: str, down: int, sending: bool) -> None:
        """Close the client's socket of a relayed connection: ``Relay``'s ``ended``."""
        self.totals.up += end.moved
        self.totals.down += down
        if isinstance(end.record, Arrival):
            end.record.log_end(how, end.moved, down)
        if sending and how != "stopped":
            Farewell(self, end.socket, limit=None, watched=True).begin()
            return
        self.poller.forget(end.socket.fileno())
        end.socket.close()
        self.gone()


class Arrival:
    """A client whose connection has no backend yet.

    Undecided while it has a parser; after that it waits for its backend, or is over.
    """

    __slots__ = (
        "_backend",
        "_connections",
        "_parser",
        "_received",
        "_socket",
        "_watched",
        "accepted_at",
        "address",
        "decided_at",
        "host",
    )

    def __init__(
        self, connections: Connections, client: SocketType, address: SocketAddress
    ) -> None:
        self._connections = connections
        self._socket = client
        self._watched = False
        self._parser: ClientHelloParser | None = ClientHelloParser()
        self._received: bytearray | None = None
        self._backend: SocketType | None = None
        self.address = address
        self.accepted_at = connections.clock()
        self.decided_at: float | None = None
        self.host = ""

    # What the poller and the countdown call.

    def begin(self) -> None:
        """Read what is there already: usually the whole hello."""
        self._read()
        if self._parser is not None:
            self._watch()
            self._connections.wait(self)

    def ready(self, mask: int) -> None:
        if self._parser is not None:
            while self._read():
                pass
        elif mask & ERROR and self._socket.getsockopt(SOL_SOCKET, SO_ERROR):
            self.end("reset_by_client")

    def resume(self) -> None:
        """Never called: an arrival leaves nothing undone."""

    def abandon(self) -> None:
        if self._socket.fileno() >= 0:
            self.end("fault")

    def expire(self) -> None:
        """End an arrival whose hello has not come in time."""
        self.refuse(Refusal(Alert.USER_CANCELED, "hello_too_slow"))

    # The hello.

    def _watch(self) -> None:
        if not self._watched:
            self._connections.poller.watch(self._socket.fileno(), self)
            self._watched = True

    def _read(self) -> bool:
        """Read once; say whether to read on: something came, and it did not decide."""
        relay = self._connections.relay
        parser = self._parser
        if parser is None:
            return False
        try:
            size = self._socket.recv_into(relay.buffer, 0, MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            self.end("reset_by_client")
            return False
        data = relay.view[:size]
        try:
            if not size:
                raise parser.finish()
            host = parser.feed(data)
        except Refusal as refused:
            self.refuse(refused)
            return False
        if host is None:
            if self._received is None:
                self._received = bytearray()
            self._received += data
            self._connections.keep(size)
            return True
        self._settle()
        self.host = host
        connections = self._connections
        if connections.log.connections:
            self.decided_at = connections.clock()
        received = self._received + data if self._received else data
        if host in connections.lines:  # not before those who wait already
            self._received = bytearray(received)
            line: str | None = host
        else:
            line = self._connect(received)
        if line is not None:
            self._watch()
            connections.lines.join(line, self)
        return False

    def _settle(self) -> None:
        """Note that the hello is no longer waited for."""
        if self._parser is None:
            return
        self._parser = None
        if self._watched:
            self._connections.undecided.stop(self)
        if self._received:
            self._connections.release(len(self._received))

    # The backend.

    def _connect(self, received: bytearray | memoryview) -> str | None:
        """Try to reach the backend; name the line to wait in, or None where that is over, one way
        or the other. ``received`` is every byte that the client has sent, kept where it fails."""
        connections = self._connections
        while self._backend is None:
            try:
                self._backend = SocketType(_UNIX, _STREAM_NONBLOCK)
            except OSError as error:
                if error.errno not in DESCRIPTORS_EXHAUSTED:
                    raise
                # Before another client is ended: that is to read what it still sends.
                received = self._keep(received)
                if connections.evict_oldest():
                    continue
                if self._may_wait():
                    return FOR_A_DESCRIPTOR
                # Who accepts has said it, once for all.
                self.refuse(Refusal(Alert.INTERNAL_ERROR, "no_descriptor"))
                return None
        directory = directory_name(self.host)
        try:
            connections.hosts.connect(directory, self._backend)
        except OSError as error:
            if isinstance(error, BlockingIOError) and self._may_wait():
                self._keep(received)
                return self.host
            self._not_reached(error)
            return None
        self._forward(self._backend, directory, received)
        return None

    def _keep(self, received: bytearray | memoryview) -> bytearray:
        """Keep what the client has sent, out of the shared buffer."""
        if self._received is not received:
            self._received = bytearray(received)
        return self._received

    def _may_wait(self) -> bool:
        return self._connections.clock() < self.accepted_at + PATIENCE

    def attempt(self) -> str | None:
        """Try again to reach the backend (``waiting.Waiter``)."""
        try:
            return self._connect(self._received or bytearray())
        except Exception as error:  # one connection ends here, no more
            self._connections.fault(error)
            self.abandon()
            return None

    def _not_reached(self, error: OSError) -> None:
        refused = refusal(error)
        if refused.alert == Alert.INTERNAL_ERROR:
            # The system's words for a full queue would say that a resource is unavailable.
            full = isinstance(error, BlockingIOError)
            said = "accept queue full" if full else error.strerror or error
            self._connections.log.warning("backend_fault", host=self.host, error=said)
        self.refuse(refused)

    def _forward(
        self, backend: SocketType, directory: str, received: bytearray | memoryview
    ) -> None:
        """Send the backend the PROXY header it wants and what came so far; start the relay."""
        connections = self._connections
        self._backend = None
        version = connections.hosts.proxy_version(directory)
        header = self._header(version) if version else b""
        first = header + received if header else received
        gone = False
        try:
            sent = backend.send(first)
        except BlockingIOError:
            sent = 0
        except OSError:
            sent, gone = 0, True
        record = self if connections.log.connections else None
        self._received = None
        end = connections.relay.join(self._socket, backend, record, watched=self._watched)
        end.moved = sent - len(header) if sent > len(header) else 0
        if gone:
            end.sever()
        elif sent < len(first):
            end.hold(bytes(first[sent:]))
        elif self._watched:
            # The events up to now were ours, not the relay's.
            end.pump(True)

    def _header(self, version: int) -> bytes:
        source, destination = self.address, self._socket.getsockname()
        if version == 1:
            return proxy_header.version_1(source, destination)
        return proxy_header.version_2(source, destination, self.host)

    # The end.

    def refuse(self, refused: Refusal, *, linger: bool = True) -> None:
        """Send the alert and close, at once if not ``linger``."""
        connections = self._connections
        self._settle()
        self._let_go()
        connections.refused(refused.reason)
        self.log_end(f"refused:{refused.reason}", 0, 0)
        farewell = Farewell(connections, self._socket, limit=FAREWELL_BYTES, watched=self._watched)
        try:
            self._socket.send(alert_record(refused.alert), MSG_DONTWAIT)
        except OSError:
            farewell.close()
            return
        farewell.begin(linger=linger)

    def end(self, how: str) -> None:
        """Close without a word: the client is gone, or we are."""
        self._settle()
        self._let_go()
        self.log_end(how, 0, 0)
        Farewell(self._connections, self._socket, limit=0, watched=self._watched).close()

    def _let_go(self) -> None:
        """Give up what was kept for the backend, and the place in its line."""
        self._received = None
        if self._backend is not None:
            self._backend.close()
            self._backend = None
        lines = self._connections.lines
        if lines:
            lines.leave(self.host, self)
            lines.leave(FOR_A_DESCRIPTOR, self)

    def log_end(self, how: str, up: int, down: int) -> None:
        """Log the end of this connection, where such lines are wanted."""
        log = self._connections.log
        if not log.connections:
            return
        now = self._connections.clock()
        decided = self.decided_at
        hello = "none" if decided is None else round((decided - self.accepted_at) * 1000)
        log.connection(
            client=address_text(self.address),
            host=self.host or "none",
            end=how,
            hello_ms=hello,
            seconds=round(now - self.accepted_at, 3),
            bytes_up=up,
            bytes_down=down,
        )


class Farewell:
    """The orderly close of a client's socket.

    A close with unread bytes would reset the connection (RFC 2525 section 2.17), and the client
    might lose what was sent to it last. So: shut down writing, read and discard at most ``limit``
    bytes (None: any number) until the client has closed or its time is up, close.
    """

    __slots__ = ("_connections", "_left", "_socket", "_watched")

    def __init__(
        self, connections: Connections, client: SocketType, *, limit: int | None, watched: bool
    ) -> None:
        self._connections = connections
        self._socket = client
        self._left = limit
        self._watched = watched

    def begin(self, *, linger: bool = True) -> None:
        """Shut down writing; wait for the client to close, unless not to ``linger``."""
        try:
            self._socket.shutdown(SHUT_WR)
        except OSError:
            self.close()
            return
        connections = self._connections
        if self._discard() or not linger:
            self.close()
            return
        if self._watched:
            connections.poller.replace(self._socket.fileno(), self)
        else:
            connections.poller.watch(self._socket.fileno(), self)
            self._watched = True
        connections.part(self)

    def ready(self, mask: int) -> None:  # noqa: ARG002 - a read tells all
        if self._discard():
            self.close()

    def resume(self) -> None:
        if self._socket.fileno() >= 0 and self._discard():
            self.close()

    def abandon(self) -> None:
        self.close()

    def _discard(self) -> bool:
        """Read what is there; say whether that was the end."""
        relay = self._connections.relay
        for _ in range(_READS_A_TURN):
            room = BUFFER_SIZE if self._left is None else self._left
            if not room:
                return True
            try:
                size = self._socket.recv_into(relay.buffer, min(room, BUFFER_SIZE), MSG_DONTWAIT)
            except BlockingIOError:
                return False
            except OSError:
                return True
            if not size:
                return True
            if self._left is not None:
                self._left -= size
        self._connections.poller.again(self)
        return False

    def close(self) -> None:
        """Close the client's socket, whatever it still sends."""
        if self._socket.fileno() < 0:
            return
        connections = self._connections
        connections.farewells.stop(self)
        if self._watched:
            connections.poller.forget(self._socket.fileno())
        self._socket.close()
        connections.gone()


def address_text(address: SocketAddress) -> str:
    """Write a client's address for the log: IPv6 in brackets, a Unix client as such."""
    if not isinstance(address, tuple):
        return "unix"
    host, port = address[0], address[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
