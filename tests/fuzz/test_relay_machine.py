"""The relay against a model of both ends, in any order of what ends can do.

Hypothesis writes, reads, half-closes, closes and resets both ends of a few connections that share
one relay, and lets the relay take turns in between. The model knows how much each end wrote; what
is at which offset follows from the connection and the direction, so that a byte that is lost,
changed, out of order or another connection's is seen when it is read.
"""

import os
import select
import socket
from collections.abc import Callable

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from sniproxy.dataplane.handover import carried_by, relay_on
from sniproxy.dataplane.pipes import BULK, PIPE_SIZE
from sniproxy.dataplane.poller import Poller
from sniproxy.dataplane.relay import HALF_CLOSED_IDLE, SEND_TIMEOUT, End, Relay
from sniproxy.dataplane.state import Relayed
from sniproxy.process.parcel import take
from tests.end_to_end.harness import reset
from tests.plane import Packed

PERIOD = 65_521
"""A prime, so that no power of two that is lost or doubled looks right."""

PATTERNS = [
    bytes((at * 31 + at // 251 + 97 * seed) % 256 for at in range(PERIOD)) for seed in range(8)
]

LARGEST = PIPE_SIZE + PIPE_SIZE // 2
MOST = 3
"""Connections at once."""

NUMBERS = st.integers(0, MOST - 1)
ROOMS = st.sampled_from([0, 4096, PIPE_SIZE])
SIZES = st.one_of(
    st.integers(1, 100),
    st.integers(BULK - 2, BULK + 2),
    st.integers(1, LARGEST),
)


def piece(seed: int, start: int, size: int) -> bytes:
    """Give what stands at an offset of a direction."""
    pattern = PATTERNS[seed]
    at = start % PERIOD
    return (pattern[at:] + pattern * (size // PERIOD + 1))[:size]


class Outer:
    """What the model knows of one outer end: the real client or the real backend."""

    def __init__(self, stream: socket.socket, seed: int) -> None:
        self.stream = stream
        self.seed = seed
        self.sent = 0
        self.received = 0
        self.half_closed = False
        self.closed = False
        self.saw_end = False
        self.saw_reset = False
        self.peer: Outer

    def write(self, size: int) -> None:
        try:
            self.sent += self.stream.send(piece(self.seed, self.sent, size), socket.MSG_DONTWAIT)
        except BlockingIOError:
            pass
        except (BrokenPipeError, ConnectionResetError):
            self.saw_reset = True

    def read(self, size: int) -> bool:
        """Read once; say whether anything came."""
        try:
            data = self.stream.recv(size, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except ConnectionResetError:
            self.saw_reset = True
            return False
        if not data:
            self.saw_end = True
            return False
        assert data == piece(self.peer.seed, self.received, len(data))
        self.received += len(data)
        assert self.received <= self.peer.sent
        return True


class Connection:
    """One relayed connection: two outer ends, and the two sockets that the relay has."""

    def __init__(self, number: int, relay: Relay, *, room: int, watched: bool) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            limit(listening, room)
            client = socket.create_connection(listening.getsockname())
            inner, _ = listening.accept()
        # Nobody's delayed acknowledgement shall be taken for the relay's delay.
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        inner.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        backend, inner_backend = socket.socketpair()
        limit(backend, room)
        limit(inner_backend, room)
        limit(client, room)
        self.client = Outer(client, 2 * number % len(PATTERNS))
        self.backend = Outer(backend, (2 * number + 1) % len(PATTERNS))
        self.client.peer, self.backend.peer = self.backend, self.client
        # What the log wants to know (relay.Record).
        self.host = ""
        self.accepted_at, self.decided_at = 0.0, None
        self.how: str | None = None
        self.moved = 0, 0
        self.reset = False
        self.waited = False
        inner_backend.setblocking(False)
        inner_client = socket.SocketType(inner.family, inner.type, 0, inner.detach())
        self.parting: socket.SocketType | None = None
        if watched:
            relay.poller.watch(inner_client.fileno(), Unused())
        other = socket.SocketType(socket.AF_UNIX, inner_backend.type, 0, inner_backend.detach())
        relay.join(inner_client, other, self, watched=watched).pump(True)

    def client_address(self) -> str:
        return ""

    def ends(self) -> tuple[Outer, Outer]:
        return self.client, self.backend


def limit(stream: socket.socket, room: int) -> None:
    """Set both buffers of a socket; 0 leaves them alone."""
    if room:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, room)


class Unused:
    """The watcher of a client before it is relayed."""

    def ready(self, mask: int) -> None:
        raise AssertionError

    resume = abandon = ready  # type: ignore[assignment]


class RelayMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.faults: list[Exception] = []
        self.now = 0.0
        self.timers: list[tuple[float, Callable[[], float | None]]] = []
        self.all: list[Connection] = []
        self.before = descriptors()
        self.poller = Poller(self.faults.append)
        self.relay = Relay(self.poller, self.ended, lambda: self.now, self.later)

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        self.timers.append((self.now + seconds, call))

    def ended(self, end: End, how: str, down: int, sending: bool) -> None:
        """Take over the client's socket as ``Connections`` does, with no limit to its patience."""
        connection = end.record
        assert isinstance(connection, Connection)
        assert connection.how is None, "ended twice"
        connection.how = how
        self.poller.unwatch(end.socket.fileno())
        connection.moved = end.moved, down
        try:
            end.socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        connection.parting = end.socket

    def turn(self, seconds: float = 0) -> None:
        self.poller.select(seconds)

    def one(self, number: int) -> Connection:
        """Choose a connection: one that has an end left, if any has."""
        left = [one for one in self.all if not (one.client.closed and one.backend.closed)]
        return (left or self.all)[number % len(left or self.all)]

    # What can happen.

    @initialize(room=ROOMS)
    def first(self, room: int) -> None:
        self.connect(room, watched=False)

    @precondition(lambda self: len(self.all) < MOST)
    @rule(room=ROOMS, watched=st.booleans())
    def connect(self, room: int, watched: bool) -> None:
        self.all.append(Connection(len(self.all), self.relay, room=room, watched=watched))

    @rule(number=NUMBERS, up=st.booleans(), size=SIZES)
    def write(self, number: int, up: bool, size: int) -> None:
        end = self.one(number).ends()[not up]
        if not end.half_closed and not end.closed:
            end.write(size)

    @rule(number=NUMBERS, up=st.booleans(), size=SIZES)
    def read(self, number: int, up: bool, size: int) -> None:
        end = self.one(number).ends()[up]
        if not end.closed:
            end.read(size)

    @rule(number=NUMBERS, up=st.booleans(), size=SIZES, taken=SIZES)
    def stream(self, number: int, up: bool, size: int, taken: int) -> None:
        """Transfer a lot, as an upload does: this gets the relay to splice."""
        for _ in range(8):
            self.write(number, up=up, size=size)
            self.turn()
            self.read(number, up=up, size=taken)

    @rule(number=NUMBERS, up=st.booleans(), size=st.integers(1, 50_000))
    def sip(self, number: int, up: bool, size: int) -> None:
        """Read slowly what is there, so that the relay gets rid of a little at a time."""
        for _ in range(4):
            self.read(number, up=up, size=size)
            self.turn()

    @rule(number=NUMBERS, up=st.booleans())
    def half_close(self, number: int, up: bool) -> None:
        end = self.one(number).ends()[not up]
        if not end.half_closed and not end.closed:
            end.half_closed = True
            try:
                end.stream.shutdown(socket.SHUT_WR)
            except OSError:
                end.saw_reset = True

    @rule(number=NUMBERS, up=st.booleans())
    def close(self, number: int, up: bool) -> None:
        """Close an end, perhaps with bytes unread."""
        end = self.one(number).ends()[not up]
        if not end.closed:
            end.closed = True
            end.stream.close()

    @rule(number=NUMBERS)
    def reset_by_the_client(self, number: int) -> None:
        connection = self.one(number)
        if not connection.client.closed:
            connection.client.closed = connection.reset = True
            reset(connection.client.stream)

    @rule(turns=st.integers(1, 3))
    def turns(self, turns: int) -> None:
        for _ in range(turns):
            self.turn()

    @rule()
    def ten_minutes(self) -> None:
        """Let nothing happen until a half-closed connection has been idle for too long."""
        self.wait(0, HALF_CLOSED_IDLE / 2, HALF_CLOSED_IDLE)
        if len(self.relay.leaving):
            # On a busy machine TCP takes a byte only now; then the time begins anew.
            self.wait(0, HALF_CLOSED_IDLE / 2, HALF_CLOSED_IDLE)
        assert not len(self.relay.leaving)

    @rule()
    def a_minute(self) -> None:
        """Let nothing happen for as long as bytes may wait when a side has gone."""
        self.turn()
        stuck = [one for one in self.live() if holds(one, one.peer) and gone(one, one.peer)]
        self.wait(0, SEND_TIMEOUT, SEND_TIMEOUT)
        assert not any(one in stuck for one in self.live()), "bytes wait though a side has gone"

    def wait(self, *pauses: float) -> None:
        """Let nothing happen; note whom it may have ended."""
        leaving = {one.record for one in self.live() if one in self.relay.leaving}
        for seconds in pauses:
            self.now += seconds
            due, self.timers = self.timers, []
            for _, call in due:
                again = call()
                if again is not None:
                    self.timers.append((again, call))
        for connection in self.all:
            connection.waited |= connection in leaving
            if connection.how == "idle":
                ends = connection.ends()
                assert any(end.half_closed or end.closed for end in ends)

    @rule(number=NUMBERS)
    def settle(self, number: int) -> None:
        """Read one connection as far as it has come, and compare it with the model."""
        self.finish([self.one(number)])

    @rule(kept=st.booleans())
    def hand_over(self, kept: bool) -> None:
        """Have another data plane go on with all of them; or none, where what is packed is not
        kept."""
        packer = Packed()
        leaving = self.live()
        for end in leaving:
            packer.put([carried_by(end)])
        packer.close()
        if kept:
            old = self.poller, self.relay
            self.poller = Poller(self.faults.append)
            self.relay = Relay(self.poller, self.ended, lambda: self.now, self.later)
            for end in leaving:
                old[1].part(end)
                end.socket.close()
            for connection in self.all:
                if connection.parting is not None:
                    connection.parting.setblocking(False)
            assert not [one for one in old[0].watchers() if isinstance(one, End)]
            assert not old[1].leaving
            old[1].pipes.close()
            assert not old[1].pipes.count
            old[0].close()
        records = iter([end.record for end in leaving])
        for parcel in packer.parcels:
            with parcel.socket:
                while kept and (message := take(parcel.socket, self.now + 1)) is not None:
                    (carried,) = message.connections
                    state, (client, backend) = carried.state, carried.sockets
                    assert isinstance(state, Relayed)
                    end = self.relay.join(client, backend, next(records), watched=False)
                    relay_on(end, state, carried.unsent)

    # What must hold.

    @invariant()
    def no_fault(self) -> None:
        assert not self.faults, self.faults

    @invariant()
    def pipes_are_few(self) -> None:
        assert all(not pipe.held for pipe in self.relay.pipes._idle)

    def finish(self, connections: list[Connection]) -> None:
        """Take turns until nothing moves any more; compare each connection with the model."""
        patience = 500
        while True:
            moved = True
            while moved or self.poller._unfinished:
                moved = any(
                    not end.closed and end.read(LARGEST)
                    for one in connections
                    for end in one.ends()
                )
                seen = self.moved()
                self.turn()
                moved = moved or seen != self.moved()
            try:
                for connection in connections:
                    self.compare(connection)
            except AssertionError:
                # The kernel may still be on it (TCP asks after a full window by a timer that grows
                # to seconds); a lost wake-up stays lost.
                if not patience:
                    raise
                patience -= 1
                self.turn(0.02)
            else:
                return

    def moved(self) -> int:
        return sum(one.moved + one.peer.moved for one in self.live())

    def live(self) -> list[End]:
        return [one for one in self.poller.watchers() if isinstance(one, End) and one.of_client]

    def compare(self, connection: Connection) -> None:
        client, backend = connection.ends()
        how = connection.how
        up, down = connection.moved
        assert up <= client.sent
        assert down <= backend.sent
        if how == "closed" and not client.closed and not backend.closed:
            assert (up, down) == (client.sent, backend.sent)
        assert how in {None, "closed", "idle", "reset_by_client", "reset_by_backend"}
        if connection.reset:
            assert how is not None
        if how == "idle":
            assert connection.waited
            return
        if client.closed:
            if backend.closed:
                assert how is not None, "both ends are gone"
            elif connection.reset or client.received == backend.sent:
                assert backend.saw_end or backend.saw_reset
            return
        # The client is there, so whatever the backend has written must have come, even where the
        # backend closed with bytes unread.
        assert client.received == backend.sent
        assert client.saw_end == (backend.half_closed or backend.closed)
        assert not client.saw_reset
        if backend.closed:
            return
        assert backend.received == client.sent
        assert backend.saw_end == client.half_closed
        assert (how == "closed") == (client.half_closed and backend.half_closed)

    def teardown(self) -> None:
        try:
            self.finish([one for one in self.all if one.how is None])
            for connection in self.all:
                for end in connection.ends():
                    end.closed = True
                    end.stream.close()
            for _ in range(100):
                if all(connection.how is not None for connection in self.all):
                    break
                self.turn(0.01)
            else:
                raise AssertionError("a connection outlives both of its ends")
            assert self.relay.pipes.count == len(self.relay.pipes._idle)
            assert not len(self.relay.leaving)
        finally:
            for connection in self.all:
                for end in connection.ends():
                    end.stream.close()
                if connection.parting is not None:
                    connection.parting.close()
            self.relay.pipes.close()
            self.poller.close()
        assert not self.faults, self.faults
        self.all.clear()
        assert descriptors() == self.before


def holds(*ends: End) -> bool:
    """Say whether the relay holds bytes that one of these is to take."""
    return any(end.unsent is not None or end.pipe is not None for end in ends)


def gone(*ends: End) -> bool:
    """Ask the kernel whether the other side of one of these has closed or half-closed."""
    poll = select.poll()
    for end in ends:
        poll.register(end.socket.fileno(), select.POLLRDHUP)
    return bool(poll.poll(0))


def descriptors() -> set[str]:
    """Name the open descriptors of this process; that of the listing itself is closed again."""
    return {name for name in os.listdir("/proc/self/fd") if is_open(int(name))}


def is_open(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, 0)
    return not any(mask & select.POLLNVAL for _, mask in poll.poll(0))


def test_relay_agrees_with_the_model() -> None:
    examples = int(os.environ.get("FUZZ_EXAMPLES", "300"))
    run_state_machine_as_test(
        RelayMachine,
        settings=settings(max_examples=examples, stateful_step_count=40, deadline=None),
    )
