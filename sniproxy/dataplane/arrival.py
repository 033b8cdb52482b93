"""An arrival: a client from its accept until it has its backend or is refused.

It reads the hello, asks the resolver for the backend and hands both sockets to the relay; in the
usual case all of this happens within one call, right after the accept, and the arrival is gone
again. Otherwise it waits: for the rest of the hello, or in line for room in the backend's accept
queue or for a descriptor, all within ``PATIENCE``.
"""

from socket import AF_UNIX, MSG_DONTWAIT, SOCK_NONBLOCK, SOCK_STREAM, SocketType
from sys import intern

from sniproxy.dataplane.connections import PATIENCE, Connections
from sniproxy.dataplane.counts import CONNECTIONS, FAULTS
from sniproxy.dataplane.ending import lost, pending, words
from sniproxy.dataplane.farewell import FAREWELL_BYTES, Farewell
from sniproxy.dataplane.poller import ERROR
from sniproxy.dataplane.record import log_connection
from sniproxy.dataplane.relay import End
from sniproxy.dataplane.shares import Spare
from sniproxy.dataplane.state import Arriving, Carried
from sniproxy.dataplane.waiting import FOR_A_DESCRIPTOR, OF_NO_HOST
from sniproxy.parser import proxy_header
from sniproxy.parser.alert import Alert, Nameless, Refusal, alert_record
from sniproxy.parser.client_hello import ClientHelloParser, WholeHelloParser, usual_host_name
from sniproxy.parser.host_name import shown
from sniproxy.parser.proxy_header import SocketAddress
from sniproxy.resolver.hosts import DESCRIPTORS_EXHAUSTED, NO_SUCH_HOST
from sniproxy.resolver.naming import ACME_SOCKET, SOCKET, directory_name

# Plain numbers, since the operators of the enumerations take longer than what they are for.
_UNIX = int(AF_UNIX)
_STREAM_NONBLOCK = SOCK_STREAM.value | SOCK_NONBLOCK.value

Received = bytes | bytearray | memoryview


class Arrival:
    """A client whose connection has no backend yet.

    Undecided until the host is known; after that it waits for its backend, or is over.
    """

    __slots__ = (
        "_backend",
        "_connections",
        "_line",
        "_parser",
        "_received",
        "_relayed",
        "_repeated",
        "_socket",
        "_validates",
        "_watched",
        "accepted_at",
        "address",
        "decided_at",
        "entry",
        "host",
        "kept",
        "undecided",
    )

    announced = False
    """Whether somebody else says who it is; then that is remembered as long as it is here."""
    lent = False
    _told = True
    """Whether what has come since it is watched may be unread."""

    def __init__(
        self,
        connections: Connections,
        client: SocketType,
        address: SocketAddress,
        accepted_at: float,
    ) -> None:
        self._connections = connections
        self._socket = client
        self._watched = False
        self.undecided = True
        self._parser: ClientHelloParser | None = None
        self._received: bytearray | None = None
        self._backend: SocketType | None = None
        self._relayed: End | None = None
        self._repeated = False
        self.kept = 0
        self.address = address
        self.accepted_at = accepted_at
        self.decided_at: float | None = None
        self.host = ""  # what was asked for; empty where nothing was
        self._line = ""  # the line to wait in for the backend, once that is known

    def client_address(self) -> SocketAddress:
        """Give the client's address: here that of the connection."""
        return self.address

    def local_address(self) -> SocketAddress:
        """Give the address that the client connected to: here that of the connection."""
        address: SocketAddress = self._socket.getsockname()
        return address

    # From one process to the next.

    def carried(self) -> Carried:
        """Give what another process needs to go on with it: the hello is read anew there."""
        received = self._received or b""
        state = Arriving(self.address, self.accepted_at, len(received))
        return Carried(state, [self._socket], bytes(received))

    def part(self) -> None:
        """Give the socket up without ending the connection: another process has a copy."""
        self._let_go()
        self._connections.poller.unwatch(self._socket.fileno())
        self._connections.close(self._socket)

    def go_on(self, received: bytes) -> None:
        """Begin with what another process has read."""
        if received:
            self._take(received)
        if self.undecided:
            self._watch()
            self._connections.wait(self)

    # What the poller and the countdown call.

    def begin(self) -> None:
        """Read what is there already: usually the whole hello."""
        self._read()
        if self.undecided:
            self._watch()
            self._connections.wait(self)

    def ready(self, mask: int) -> None:
        if self.undecided:
            while self._read():
                pass
        elif mask & ERROR:
            error = pending(self._socket)
            if error:
                self.end(lost("client", error))

    def resume(self) -> None:
        """Never called: an arrival leaves nothing undone."""

    def abandon(self) -> None:
        if self._relayed is not None:
            self._relayed.abandon()
        elif self._socket in self._connections.totals.clients:
            self.end("fault")

    def stop(self) -> bool:
        self.end("stopped")
        return True

    def expire(self) -> None:
        """End an arrival whose hello has not come in time."""
        self.refuse(Refusal(Alert.USER_CANCELED, "hello_too_slow"))

    def evict(self) -> None:
        """End an arrival whose descriptor is needed, so the alert may be lost where more bytes
        arrive."""
        self.refuse(Refusal(Alert.USER_CANCELED, "evicted"), linger=False)

    # The hello.

    def _watch(self) -> None:
        if not self._watched:
            self._connections.poller.watch(self._socket.fileno(), self)
            self._watched = True

    def _read(self) -> bool:
        """Read once; say whether to read on: something came, and it did not decide."""
        if not self.undecided:
            return False
        relay = self._connections.relay
        try:
            size = self._socket.recv_into(relay.buffer, 0, MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError as error:
            self.end(lost("client", error.errno))
            return False
        if self._parser is None:
            host = usual_host_name(relay.buffer, size)
            if host is not None:
                self._decide(host, host, False, relay.view[:size])
                return False
        return self._take(relay.view[:size])

    def _take(self, data: bytes | memoryview) -> bool:
        """Act on what was read, nothing at the end of the stream; say whether to read on."""
        connections = self._connections
        parser = self._parser
        if parser is None:
            parser = self._parser = ClientHelloParser()
        entry: str | None
        try:
            if not len(data):
                reason = "end_of_stream_in_hello" if self._received else "no_hello"
                raise Refusal(Alert.DECODE_ERROR, reason)
            entry = host = parser.feed(data)
        except Nameless as refused:
            host, entry = "", self._nameless_entry()
            if entry is None:
                self.refuse(refused)
                return False
        except Refusal as refused:
            if not isinstance(parser, WholeHelloParser):
                self.host = shown(refused.name)
                self.refuse(refused)
                return False
            # What follows the name is the backend's to judge.
            entry = host = self.host
        if host is None or entry is None:
            if self._received is None:
                self._received = bytearray()
            self._received += data
            # It is here twice: as it came, for the backend, and as the parser reads it.
            connections.keep(self, self._received.__sizeof__() + parser.kept())
            return True
        received = self._received + data if self._received else data
        validates = parser.validates() if host else False
        if (
            validates is None
            and not isinstance(parser, WholeHelloParser)
            and self._awaits_validation(host)
        ):
            return self._read_whole(host, received)
        self._decide(host, entry, bool(validates), received)
        return False

    def _nameless_entry(self) -> str | None:
        return self._connections.hosts.fallback("")

    def _awaits_validation(self, host: str) -> bool:
        return self._connections.hosts.awaits_validation(host)

    def _read_whole(self, host: str, received: Received) -> bool:
        """Read on, though the host is known: what follows its name matters."""
        self.host, self._parser, self._received = host, WholeHelloParser(), None
        return self._take(bytes(received))

    def _decide(self, host: str, entry: str, validates: bool, received: Received) -> None:
        """Go on with a host name, and the entry that is to serve it."""
        self.host, self.entry, self._validates = host, entry, validates
        self._settle()
        connections = self._connections
        if self._watched or connections.log.connections:  # else it was here when it was accepted
            self.decided_at = connections.clock()
            if connections.log.connections:
                connections.hourly.start(self)
        self._repeated = connections.loops.again(received)
        line = self._connect(received)
        if line is not None:
            self._watch()
            connections.lines.join(line, self)

    def _settle(self) -> None:
        """Note that the hello is no longer waited for."""
        if not self.undecided:
            return
        if self._watched:
            self._connections.undecided.stop(self)
        if self.kept:
            self._connections.keep(self, 0)
        self.undecided = False
        self._parser = None

    # The backend.

    def _connect(self, received: Received) -> str | None:
        """Try to reach the backend; name the line to wait in, or None where that is over, one way
        or the other. ``received`` is every byte that the client has sent, kept where it fails."""
        connections = self._connections
        hosts, loops = connections.hosts, connections.loops
        mine = self._line
        while True:
            directory, socket_name, line = directory_name(self.entry), SOCKET, self.entry
            if self._validates and hosts.has(directory, ACME_SOCKET):
                socket_name, line = ACME_SOCKET, f"{line}/{ACME_SOCKET}"
            if line != self._line:
                self._line = line
                if line in connections.lines and line != mine:  # not before those who wait
                    self._keep(received)
                    if self._may_wait():
                        return line
                    self.turn_away()
                    return None
            if connections.barred and connections.barred.holds(directory):
                self.refuse(Refusal(Alert.INTERNAL_ERROR, "owner_barred"))
                return None
            if self._repeated and loops.full(directory):
                return self._go_round(directory, received)
            backend = self._backend
            if backend is None:
                try:
                    backend = self._backend = SocketType(_UNIX, _STREAM_NONBLOCK)
                except OSError as error:
                    if error.errno not in DESCRIPTORS_EXHAUSTED:
                        raise
                    # Before another client is ended: that is to read what it still sends.
                    received = self._keep(received)
                    backend = self._contend()
                    if backend is None:
                        return FOR_A_DESCRIPTOR if self._received else None
            try:
                hosts.connect(directory, backend, socket_name)
            except Refusal as denied:
                self.refuse(denied, linger=False)
                return None
            except OSError as error:
                refused = hosts.refusal(directory, error)
                if refused.reason == NO_SUCH_HOST and self.entry == self.host:
                    entry = hosts.fallback(self.host)
                    if entry is not None:
                        self.entry = entry
                        continue
                if self._may_wait() and hosts.may_pass(directory, refused, error):
                    self._keep(received)
                    return line
                self._not_reached(refused, error)
                return None
            self._forward(backend, directory, hosts.proxy_version(directory), received)
            return None

    def _go_round(self, directory: str, received: Received) -> str | None:
        """Wait in its line where a host leads back to us, or be refused."""
        loops, log = self._connections.loops, self._connections.log
        if self._may_wait() and not loops.found(directory):
            self._keep(received)
            return self._line
        if loops.find(directory):
            log.warning("loop", host=self._line, connections=loops.most)
        self.refuse(Refusal(Alert.INTERNAL_ERROR, "loop"))
        return None

    def _keep(self, received: Received) -> bytearray:
        """Keep what the client has sent, out of the shared buffer."""
        if self._received is None or self._received is not received:
            self._received = bytearray(received)
            self.kept = len(received)
        return self._received

    def bid(self) -> bool | None:
        return self._connections.shares.make_room(self._socket, self.client_address())

    def _contend(self) -> SocketType | None:
        """Get a socket for the backend at another's cost; else wait if that could help, or be
        turned away."""
        shares = self._connections.shares
        self._backend = shares.backend(self, self._socket)
        if self._backend is None and (shares.dealing() or not self._may_wait()):
            self.turn_away()  # who accepts has said it in the log, once for all
        return self._backend

    def _may_wait(self) -> bool:
        on_time = self._connections.clock() < self.accepted_at + PATIENCE
        return on_time and not isinstance(self._backend, Spare)  # it is needed for the next one

    def owner(self) -> int:
        """Give the uid of who owns the entry that is to serve it (``waiting.Waiter``)."""
        return self._connections.hosts.owner(directory_name(self.entry))

    def attempt(self) -> str | None:
        """Try again to reach the backend (``waiting.Waiter``)."""
        line: str | None = None

        def connect() -> None:
            nonlocal line
            if self._received is None:  # it is over
                return
            # Whom an entry serves may be somebody else's by now.
            entry = self.host or self._connections.hosts.fallback("")
            if entry is None:
                self.refuse(Nameless("no_server_name"))
                return
            self.entry = entry
            line = self._connect(self._received)

        self._connections.poller.guard(self, connect)
        return line

    def crowd_out(self, name: str) -> None:
        """Refuse it, since too much is kept for those who wait already (``waiting.Waiter``)."""
        reason = "no_descriptor" if name in OF_NO_HOST else "queue_full"
        self.refuse(Refusal(Alert.INTERNAL_ERROR, reason))

    def _not_reached(self, refused: Refusal, error: OSError) -> None:
        connections = self._connections
        directory = directory_name(self.entry)
        if refused.reason != NO_SUCH_HOST:
            connections.row(directory, self.owner)[FAULTS] += 1
        if refused.alert == Alert.INTERNAL_ERROR:
            account, said = connections.account(directory), words(error)
            connections.log.warning("backend_fault", account=account, host=self._line, error=said)
        self.refuse(refused, linger=not isinstance(self._backend, Spare))

    def _forward(
        self, backend: SocketType, directory: str, version: int, received: Received
    ) -> None:
        """Send the backend the PROXY header it wants (0: none) and what came so far; relay."""
        connections = self._connections
        first, ahead = received, 0
        if version:
            header = self._header(version)
            first, ahead = header + received, len(header)
        gone = False
        try:
            sent = backend.send(first)
        except BlockingIOError:
            sent = 0
        except OSError:
            sent, gone = 0, True
        record = self if self.announced or connections.log.connections else None
        moved = sent - ahead if sent > ahead else 0
        unsent = bytes(first[sent:]) if sent < len(first) else None
        row = connections.counts.hosts.get(directory) or connections.row(directory, self.owner)
        # From here on both sockets are the relay's; should anything fail, it is to end them.
        end = self._relayed = connections.relay.join(
            self._socket, backend, record, watched=self._watched
        )
        self._received = self._backend = None
        end.moved = moved
        end.host = intern(directory)
        end.row, end.accepted_at = row, self.accepted_at
        row[CONNECTIONS] += 1
        if self._watched:
            connections.counts.arrived(self.accepted_at, self.decided_at, connections.clock())
        if self._repeated:
            connections.loops.note(directory, end)
        if gone:
            end.sever()
        elif unsent is not None:
            end.hold(unsent)
            if self._watched:
                end.notice()
        elif self._watched and self._told:
            # The events up to now were ours, not the relay's.
            end.pump(True)
        self._relayed = None

    def _header(self, version: int, tlvs: bytes = b"") -> bytes:
        client, local = self.client_address(), self.local_address()
        return proxy_header.encoded(version, client, local, self.host, tlvs)

    # The end.

    def refuse(self, refused: Refusal, *, linger: bool = True) -> None:
        """Send the alert and close, at once if not to ``linger``: then what was lent is back."""
        connections = self._connections
        farewell = Farewell(connections, self._socket, limit=FAREWELL_BYTES, watched=self._watched)
        record = b"" if refused.alert is None else alert_record(refused.alert)
        self._let_go()
        if refused.reason != "no_hello":  # so balancers see whether we are there
            connections.refused(refused.reason, "" if refused.name else self.host)
        self.log_end(f"refused:{refused.reason}", 0, 0)
        try:
            self._socket.send(record, MSG_DONTWAIT)
        except OSError:
            farewell.close()
        else:
            farewell.begin(linger=linger)
        if not linger:
            connections.shares.restore()

    def turn_away(self) -> None:
        """Refuse for want of a descriptor."""
        self.refuse(Refusal(Alert.INTERNAL_ERROR, "no_descriptor"), linger=False)

    def end(self, how: str) -> None:
        """Close without a word: the client is gone, or we are."""
        self._let_go()
        self.log_end(how, 0, 0)
        self._connections.close(self._socket)

    def _let_go(self) -> None:
        """Wait no more: give up what was kept for the backend, and the place in its line."""
        self._settle()
        self._received = None
        if self._backend is not None:
            self._backend.close()
            self._backend = None
        lines = self._connections.lines
        if lines:
            lines.leave(self._line, self)
            lines.leave(FOR_A_DESCRIPTOR, self)

    def log_end(self, how: str, up: int, down: int) -> None:
        """Log the end of this connection, where such lines are wanted."""
        connections = self._connections
        if connections.log.connections:
            connections.hourly.stop(self)
            log_connection(connections.log, self, connections.clock(), how, up, down)

    def log_open(self) -> None:
        """Log that it goes on (``hourly.Lasting``), if it is relayed."""
        connections = self._connections
        end = connections.poller.watcher(self._socket.fileno())
        if isinstance(end, End) and end.record is self:
            up, down = end.moved, end.peer.moved
            log_connection(connections.log, self, connections.clock(), "open", up, down)
