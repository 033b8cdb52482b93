"""Connections go on in another data plane, whatever they were doing: every byte, once, in order.

Both planes are the test's own, with real sockets; what lies between them are real parcels.
"""

import errno
import os
import pathlib
import socket
from collections.abc import Callable, Iterator, Sequence

import pytest

from sniproxy.dataplane.arrival import Arrival
from sniproxy.dataplane.connections import FAREWELL_PATIENCE, PATIENCE
from sniproxy.dataplane.counts import totals
from sniproxy.dataplane.handover import adopt, hand_over
from sniproxy.dataplane.relay import FINISHED, HALF_CLOSED_IDLE, SEVERED, End
from sniproxy.dataplane.state import (
    MOST,
    Arriving,
    Carried,
    Direction,
    Leaving,
    Relayed,
    State,
)
from sniproxy.process.parcel import take
from tests.end_to_end.harness import Backend, read_exactly
from tests.hello import hello
from tests.plane import Descriptors, Packed, Plane, alert

HELLO = hello("a.example")
EVERYTHING = 1_000_000
BIG = bytes(at * 31 % 251 for at in range(3 * 1024 * 1024))


@pytest.fixture
def before(plane: Plane) -> Plane:
    """The plane that hands over; its clock has run for a while."""
    plane.clock.advance(100)
    return plane


@pytest.fixture
def after(before: Plane, tmp_path: pathlib.Path) -> Iterator[Plane]:
    (tmp_path / "next").mkdir()
    made = Plane(tmp_path / "next")
    made.clock.now = before.clock.now
    yield made
    made.close()
    assert not made.faults


def pass_on(before: Plane, after: Plane, most: int = EVERYTHING) -> int:
    """Hand over from one plane to another; give how many were given away."""
    packer = Packed()
    count = hand_over(before.connections, packer.put, most)
    deliver(packer, after)
    return count


def deliver(packer: Packed, after: Plane) -> None:
    """Have a plane adopt all that was put."""
    packer.close()
    for parcel in packer.parcels:
        with parcel.socket:
            while (message := take(parcel.socket, after.clock.now)) is not None:
                assert not message.lost, message.problem
                for carried in message.connections:
                    assert adopt(after.connections, carried)


def relay(plane: Plane, backend: Backend) -> tuple[socket.socket, socket.socket, End]:
    """Have one connection relayed; give the client, the backend's end, and the client's ``End``."""
    known = set(ends(plane))
    client = plane.client(HELLO)
    stream = backend.accept()
    assert read_exactly(stream, len(HELLO)) == HELLO
    (end,) = set(ends(plane)) - known
    return client, stream, end


def ends(plane: Plane) -> list[End]:
    return [one for one in plane.poller.watchers() if isinstance(one, End) and one.of_client]


def both_ways(plane: Plane, client: socket.socket, stream: socket.socket) -> None:
    client.setblocking(True)
    stream.setblocking(True)
    client.sendall(b"ping")
    assert plane.read(stream, 4) == b"ping"
    stream.setblocking(True)
    stream.sendall(b"pong")
    assert plane.read(client, 4) == b"pong"


def write_until(plane: Plane, stream: socket.socket, stuck: Callable[[], bool]) -> bytes:
    """Write until the plane holds something back; give what was written."""
    stream.setblocking(False)
    written = 0
    for _ in range(2000):
        try:
            written += stream.send(BIG[written % len(BIG) : written % len(BIG) + 500_000])
        except BlockingIOError:
            if stuck():
                return (BIG * (written // len(BIG) + 1))[:written]
        plane.poller.select(0.01)
    raise AssertionError("it is never full")


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


# Relayed connections.


def test_a_relayed_connection_goes_on(before: Plane, after: Plane) -> None:
    backend = before.backend("a.example")
    client, stream, _ = relay(before, backend)
    both_ways(before, client, stream)
    before.clock.advance(20)
    after.clock.now = before.clock.now
    held = open_descriptors()
    assert pass_on(before, after) == 1
    assert open_descriptors() == held
    assert (before.connections.totals.open, after.connections.totals.open) == (0, 1)
    assert before.poller.watchers() == []
    both_ways(after, client, stream)
    after.clock.advance(10)
    client.close()
    stream.close()
    after.until(lambda: not after.connections.totals.open)
    assert "event=connection" not in before.log
    line = after.log
    assert "host=a.example" in line
    assert "seconds=30.0 " in line
    assert f"bytes_up={len(HELLO) + 8} bytes_down=8" in line
    assert "hello_ms=0" in line


def test_bytes_are_counted_by_who_has_moved_them(before: Plane, after: Plane) -> None:
    """Once, be it looked at before or not; what comes back from a parcel that nobody keeps, too."""
    backend = before.backend("a.example")
    client, stream, end = relay(before, backend)
    before.connections.count(end)
    both_ways(before, client, stream)
    pass_on(before, before)
    both_ways(before, client, stream)
    pass_on(before, after)
    assert not before.connections.told
    both_ways(after, client, stream)
    client.close()
    stream.close()
    after.until(lambda: not after.connections.totals.open)
    moved = [totals([plane.connections.counts]) for plane in (before, after)]
    assert [(one["bytes_up"], one["bytes_down"]) for one in moved] == [(len(HELLO) + 8, 8), (4, 4)]


def test_bytes_that_wait_in_the_sockets(before: Plane, after: Plane) -> None:
    backend = before.backend("a.example")
    client, stream, _ = relay(before, backend)
    client.sendall(b"up")
    stream.sendall(b"down")
    pass_on(before, after)
    assert after.read(stream, 2) == b"up"
    assert after.read(client, 4) == b"down"


def test_an_end_that_nobody_has_seen_yet(before: Plane, after: Plane) -> None:
    backend = before.backend("a.example")
    client, stream, _ = relay(before, backend)
    client.sendall(b"last")
    client.close()
    stream.shutdown(socket.SHUT_WR)
    pass_on(before, after)
    assert after.read(stream, 10) == b"last"
    after.until(lambda: not after.connections.totals.open)


@pytest.mark.parametrize("both", [False, True])
def test_what_the_client_has_not_taken(before: Plane, after: Plane, both: bool) -> None:
    backend = before.backend("a.example")
    client, stream, end = relay(before, backend)
    down = write_until(before, stream, lambda: end.peer.unsent is not None)
    up = write_until(before, client, lambda: holds(end)) if both else b""
    held = open_descriptors()
    pass_on(before, after)
    assert open_descriptors() <= held
    (now,) = ends(after)
    assert now.peer.unsent
    assert (now.unsent is not None) == both
    # Until it is taken, no more is read.
    assert not now.peer.reading
    assert after.read(client, len(down)) == down
    assert after.read(stream, len(up)) == up
    both_ways(after, client, stream)


def holds(end: End) -> bool:
    return end.unsent is not None or end.pipe is not None


def test_what_is_in_a_pipe(before: Plane, after: Plane) -> None:
    backend = before.backend("a.example")
    client, stream, end = relay(before, backend)
    # The backend reads a while, so that it counts as a bulk transfer, and then no more.
    sent = 0
    client.setblocking(False)
    taken = b""
    while end.bulk < 2 and sent < 100 * len(BIG):
        sent += push(client, sent)
        before.poller.select(0.01)
        taken += pull(stream)
    while end.pipe is None:
        sent += push(client, sent)
        before.poller.select(0.01)
        if end.unsent is not None:
            taken += pull(stream)
    assert end.pipe.held
    pass_on(before, after)
    (now,) = ends(after)
    assert now.unsent
    # The pipe is back, empty.
    pipes = before.connections.relay.pipes
    assert pipes.count == len(pipes._idle)
    assert taken + after.read(stream, sent - len(taken)) == (BIG * (sent // len(BIG) + 1))[:sent]
    both_ways(after, client, stream)


def push(stream: socket.socket, sent: int) -> int:
    try:
        return stream.send(BIG[sent % len(BIG) : sent % len(BIG) + 400_000])
    except BlockingIOError:
        return 0


def pull(stream: socket.socket) -> bytes:
    try:
        return stream.recv(1 << 20, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return b""


@pytest.mark.parametrize("first", ["client", "backend"])
@pytest.mark.parametrize("waiting", [False, True])
def test_a_direction_that_has_ended(before: Plane, after: Plane, first: str, waiting: bool) -> None:
    backend = before.backend("a.example")
    client, stream, end = relay(before, backend)
    one, other = (client, stream) if first == "client" else (stream, client)
    ended = end if first == "client" else end.peer
    one.sendall(b"last words")
    one.shutdown(socket.SHUT_WR)
    assert before.read(other, 100) == b"last words"
    assert ended.ended == FINISHED
    wrote = write_until(before, other, lambda: holds(ended.peer)) if waiting else b""
    pass_on(before, after)
    (now,) = ends(after)
    assert now.client().ended == (FINISHED if first == "client" else 0)
    assert now in after.connections.relay.leaving
    other.setblocking(True)
    if not waiting:
        other.sendall(b"and yet")
        wrote = b"and yet"
    other.shutdown(socket.SHUT_WR)
    assert after.read(one, len(wrote) + 1) == wrote
    after.until(lambda: not after.connections.totals.open)
    assert "end=closed" in after.log
    assert not after.connections.relay.leaving


def test_a_half_closed_connection_still_idles_out(before: Plane, after: Plane) -> None:
    backend = before.backend("a.example")
    client, stream, _ = relay(before, backend)
    client.shutdown(socket.SHUT_WR)
    assert before.read(stream, 1) == b""
    pass_on(before, after)
    after.clock.advance(2 * HALF_CLOSED_IDLE)
    assert "end=idle" in after.log


def test_a_direction_that_was_given_up(before: Plane, after: Plane) -> None:
    backend = before.backend("a.example")
    client, stream, end = relay(before, backend)
    stream.shutdown(socket.SHUT_RD)
    client.sendall(b"nobody wants it")
    before.until(lambda: end.ended == SEVERED)
    pass_on(before, after)
    stream.sendall(b"answer")
    stream.close()
    assert after.read(client, 100) == b"answer"
    client.close()
    after.until(lambda: not after.connections.totals.open)
    assert "end=reset_by_backend" in after.log


def test_twenty_times_with_bytes_under_way(before: Plane, after: Plane) -> None:
    backend = before.backend("a.example")
    held = None
    client, stream, _ = relay(before, backend)
    planes = [before, after]
    sent = received = 0
    stream.setblocking(False)
    for turn in range(60):
        sent += push(stream, sent)
        plane = planes[turn % 2]
        plane.turn(3)
        data = pull(client)[: 1 << 20]
        assert data == (BIG * 2)[received % len(BIG) :][: len(data)]
        received += len(data)
        pass_on(plane, planes[1 - turn % 2])
        if held is None:
            held = open_descriptors()
        assert open_descriptors() <= held + 2
    last = planes[0]
    rest = last.read(client, sent - received)
    assert rest == (BIG * 20)[received % len(BIG) :][: len(rest)]
    (end,) = ends(last)
    assert end.peer.moved == sent


def test_a_client_whose_address_nobody_noted(before: Plane, after: Plane) -> None:
    backend = before.backend("a.example")
    before.connections.log.connections = False
    client, stream, _ = relay(before, backend)
    address, local = client.getsockname(), client.getpeername()
    pass_on(before, after)
    both_ways(after, client, stream)
    client.close()
    stream.close()
    after.until(lambda: not after.connections.totals.open)
    addresses = f"client={address[0]}:{address[1]} local={local[0]}:{local[1]}"
    assert f"{addresses} host=none" in after.log


# Clients that have no backend yet.


def test_a_hello_that_is_half_there(before: Plane, after: Plane) -> None:
    backend = before.backend("a.example")
    for cut in (0, 1, 5, 60, len(HELLO) - 1):
        client = before.client(*([HELLO[:cut]] if cut else []))
        before.turn(2)
        pass_on(before, after)
        client.sendall(HELLO[cut:])
        after.until(lambda: len(ends(after)) == 1)
        stream = backend.accept()
        assert after.read(stream, len(HELLO)) == HELLO
        both_ways(after, client, stream)
        client.close()
        stream.close()
        after.until(lambda: not after.connections.totals.open)
    assert before.connections._kept == after.connections._kept == 0


def test_a_hello_that_was_complete_before_anybody_looked(before: Plane, after: Plane) -> None:
    backend = before.backend("a.example")
    client = before.client(HELLO[:50])
    client.sendall(HELLO[50:])
    pass_on(before, after)
    after.until(lambda: len(ends(after)) == 1)
    assert after.read(backend.accept(), len(HELLO)) == HELLO


def test_the_time_of_a_hello_runs_on(before: Plane, after: Plane) -> None:
    old = before.client(HELLO[:9])
    before.clock.advance(PATIENCE - 2)
    young = before.client(HELLO[:9])
    after.clock.now = before.clock.now
    pass_on(before, after)
    after.clock.advance(3)
    assert after.read(old, 100) == alert(90)
    assert after.connections.totals.refused == {"hello_too_slow": 1}
    after.clock.advance(PATIENCE - 2)
    assert after.read(young, 100) == alert(90)


def test_the_oldest_comes_first(before: Plane, after: Plane) -> None:
    """In whatever order their descriptors are."""
    spare = [os.dup(0) for _ in range(30)]
    clients = []
    for _ in range(20):
        # Each descriptor is lower than the one before.
        os.close(spare.pop())
        os.close(spare.pop()) if len(spare) > 20 else None
        clients.append(before.client(HELLO[:9]))
        before.clock.advance(0.1)
    for fd in spare:
        os.close(fd)
    after.clock.now = before.clock.now
    pass_on(before, after)
    waiting = [one for one in after.poller.watchers() if isinstance(one, Arrival)]
    assert len(waiting) == 20
    oldest = min(waiting, key=lambda one: one.accepted_at)
    assert after.connections.undecided.oldest() is oldest
    adopted = list(after.connections.undecided._deadlines)
    assert adopted == sorted(waiting, key=lambda one: one.accepted_at)


def test_those_who_wait_for_room_keep_their_order(before: Plane, after: Plane) -> None:
    backend = before.backend("a.example", backlog=0)
    spare = [os.dup(0) for _ in range(20)]
    clients = []
    for number in range(10):
        if spare:
            os.close(spare.pop())
        clients.append(before.client(HELLO + bytes([number])))
        before.clock.now += 0.01
    for fd in spare:
        os.close(fd)
    assert "a.example" in before.connections.lines
    waiting = [one for one in before.poller.watchers() if isinstance(one, Arrival)]
    assert waiting
    after.clock.now = before.clock.now
    # There is room for one before the first is there.
    got = [backend.accept()]
    assert pass_on(before, after) == 10
    for _ in range(9):
        after.clock.advance(0.1)
        got.append(backend.accept())
    order = [after.read(stream, len(HELLO) + 1)[-1] for stream in got]
    assert order == list(range(10))
    both_ways(after, clients[9], got[9])


def test_one_that_waits_for_a_descriptor(
    before: Plane, after: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = before.backend("a.example")
    left = Descriptors(monkeypatch)
    client = before.client(HELLO)
    assert before.connections.lines
    left.left = 1
    pass_on(before, after)
    stream = backend.accept()
    assert after.read(stream, len(HELLO)) == HELLO
    both_ways(after, client, stream)


def test_one_whose_patience_is_over_is_refused(before: Plane, after: Plane) -> None:
    before.backend("a.example", backlog=0)
    before.client(HELLO)
    client = before.client(HELLO)
    before.clock.now += 2 * PATIENCE
    after.clock.now = before.clock.now
    pass_on(before, after)
    assert after.read(client, 100) == alert(80)


# Clients that are on their way out.


def test_a_farewell_goes_on(before: Plane, after: Plane) -> None:
    client = before.client(b"no hello at all")
    assert before.connections.totals.open == 1
    pass_on(before, after)
    assert after.read(client, 100) == alert(10)
    assert after.connections.totals.open == 1
    client.setblocking(True)
    client.sendall(bytes(1000))
    after.turn(3)
    assert after.connections.totals.open == 1
    client.close()
    after.until(lambda: not after.connections.totals.open)


def test_a_farewell_has_its_time_and_no_more(before: Plane, after: Plane) -> None:
    before.client(b"no hello at all")
    pass_on(before, after)
    after.clock.advance(FAREWELL_PATIENCE + 0.2)
    assert after.connections.totals.open == 0


def test_a_farewell_reads_no_more_than_was_left(before: Plane, after: Plane) -> None:
    client = before.client(b"no hello at all")
    client.sendall(bytes(60_000))
    before.turn(3)
    pass_on(before, after)
    client.sendall(bytes(10_000))
    after.until(lambda: not after.connections.totals.open)


# What can go wrong.


class Full:
    """A packer that takes a few messages and no more."""

    def __init__(self, messages: int) -> None:
        self.packer = Packed()
        self.left = messages

    def put(self, carried: Sequence[Carried]) -> None:
        if not self.left:
            raise OSError(errno.ETOOMANYREFS, os.strerror(errno.ETOOMANYREFS))
        self.left -= 1
        self.packer.put(carried)


@pytest.mark.parametrize("messages", [0, 1, 3])
def test_what_was_not_put_goes_on_here(before: Plane, after: Plane, messages: int) -> None:
    backend = before.backend("a.example")
    connections = [relay(before, backend) for _ in range(20)]
    client, stream, end = relay(before, backend)
    down = write_until(before, stream, lambda: end.peer.unsent is not None)
    half = before.client(HELLO[:50])
    full = Full(messages)
    with pytest.raises(OSError, match=os.strerror(errno.ETOOMANYREFS)):
        hand_over(before.connections, full.put, EVERYTHING)
    deliver(full.packer, after)
    gone = 22 - before.connections.totals.open
    assert gone == sum(parcel.count for parcel in full.packer.parcels)
    assert (gone > 0) == (messages > 0)
    here = {one.socket.getpeername() for one in ends(before)}
    for one, other, _ in connections:
        both_ways(before if one.getsockname() in here else after, one, other)
    mine = before if client.getsockname() in here else after
    assert mine.read(client, len(down)) == down
    half.sendall(HELLO[50:])
    for plane in (before, after):
        plane.turn(5)
    assert read_exactly(backend.accept(), len(HELLO)) == HELLO


def test_a_pipe_that_could_not_be_put(before: Plane) -> None:
    """Its bytes are no longer in the pipe, and come all the same."""
    backend = before.backend("a.example")
    client, stream, end = relay(before, backend)
    sent = 0
    client.setblocking(False)
    taken = b""
    while end.pipe is None:
        sent += push(client, sent)
        before.poller.select(0.01)
        if end.bulk < 2:
            taken += pull(stream)
    with pytest.raises(OSError, match=os.strerror(errno.ETOOMANYREFS)):
        hand_over(before.connections, Full(0).put, EVERYTHING)
    assert taken + before.read(stream, sent - len(taken)) == (BIG * (sent // len(BIG) + 1))[:sent]
    both_ways(before, client, stream)


@pytest.mark.parametrize("most", [0, 1, 2, 3, 30, 31, 55, 10_000])
def test_no_more_descriptors_than_there_may_be(before: Plane, after: Plane, most: int) -> None:
    backend = before.backend("a.example", backlog=50)
    connections = [relay(before, backend) for _ in range(20)]
    passed: list[int] = []
    packer = Packed()

    def put(carried: Sequence[Carried]) -> None:
        passed.append(sum(len(one.sockets) for one in carried) + any(one.unsent for one in carried))
        packer.put(carried)

    count = hand_over(before.connections, put, most)
    deliver(packer, after)
    assert sum(passed) <= most
    assert count == sum(parcel.count for parcel in packer.parcels)
    assert count == 20 - before.connections.totals.open
    assert (count == 20) == (most > 50)
    here = {one.socket.getpeername() for one in ends(before)}
    for client, stream, _ in connections:
        both_ways(before if client.getsockname() in here else after, client, stream)


def test_many_fill_messages_and_few_are_shared_out(before: Plane) -> None:
    sizes: list[int] = []
    for count, largest in ((5, 1), (40, 6), (MOST * 10, MOST)):
        while before.connections.totals.open < count:
            before.client()
        sizes.clear()

        def put(carried: Sequence[Carried]) -> None:
            sizes.append(len(carried))

        hand_over(before.connections, put, EVERYTHING)
        assert max(sizes) == largest
        assert sum(sizes) == count


def pair(*, tcp: bool) -> tuple[socket.SocketType, socket.socket]:
    if not tcp:
        one, other = socket.socketpair()
        one.setblocking(False)
    else:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            other = socket.create_connection(listening.getsockname())
            one, _ = listening.accept()
    return socket.SocketType(fileno=one.detach()), other


IDLE = Direction(0, 0, 0)


@pytest.mark.parametrize(
    ("state", "which"),
    [
        (Relayed("", "", 1.0, 0.0, IDLE, IDLE), 0),
        (Relayed("", "", 1.0, 0.0, IDLE, IDLE), 1),
        (Relayed("", "a", 1.0, 2.0, IDLE, Direction(0, 1, 0)), 0),
        (Relayed("", "a", 1.0, 2.0, IDLE, Direction(0, 1, 0)), 1),
        (Arriving("", 1.0, 0), 0),
        (Arriving("", 99.0, 9), 0),
        (Leaving(None), 0),
    ],
)
def test_one_that_can_not_be_watched_ends_and_leaves_nothing(
    after: Plane, state: State, which: int
) -> None:
    client, outer = pair(tcp=True)
    sockets = [client]
    if state.descriptors == 2:
        backend, inner = pair(tcp=False)
        sockets.append(backend)
        inner.close()
    # The kernel says EEXIST to the second registration.
    after.poller._epoll.register(sockets[which].fileno(), 0)
    unsent = HELLO[: state.unsent] if isinstance(state, Arriving) else b""
    assert not adopt(after.connections, Carried(state, sockets, unsent))
    assert after.connections.totals.open == 0
    assert after.connections._kept == 0
    assert len(after.connections.undecided) == len(after.connections.farewells) == 0
    assert all(one.fileno() < 0 for one in sockets)
    assert after.poller.watchers() == []
    assert not after.connections.relay.leaving
    assert after.log.count("event=unexpected_error") + len(after.faults) == 1
    after.faults.clear()
    assert outer.recv(10) == b""
    outer.close()


def test_one_that_fails_when_it_is_watched_already(
    after: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_words: object) -> None:
        raise MemoryError

    client, outer = pair(tcp=True)
    backend, inner = pair(tcp=False)
    state = Relayed("", "", 1.0, 0.0, IDLE, Direction(0, FINISHED, 0))
    with monkeypatch.context() as patch:
        patch.setattr("sniproxy.dataplane.sweep.Leaving.start", fail)
        assert not adopt(after.connections, Carried(state, [client, backend], b""))
    assert type(after.faults.pop()) is MemoryError
    assert inner.recv(10) == b""
    outer.close()
    after.until(lambda: not after.connections.totals.open)
    assert after.poller.watchers() == []
    assert not after.connections.relay.leaving
    inner.close()


def test_a_hello_that_is_none_is_refused_where_it_is_read(after: Plane) -> None:
    """A process that was broken into may say that it has read anything."""
    client, outer = pair(tcp=True)
    assert adopt(after.connections, Carried(Arriving("", 1.0, 5), [client], b"hello"))
    assert after.read(outer, 100) == alert(10)
    outer.close()


def test_a_socket_that_is_not_connected_ends(after: Plane) -> None:
    for state in (Relayed("", "", 1.0, 0.0, IDLE, IDLE), Arriving("", 99.0, 0), Leaving(None)):
        sockets = [socket.SocketType(socket.AF_INET, socket.SOCK_STREAM)]
        if state.descriptors == 2:
            sockets.append(socket.SocketType(socket.AF_UNIX, socket.SOCK_STREAM))
        adopt(after.connections, Carried(state, sockets, b""))
    after.until(lambda: not after.connections.totals.open)
    assert after.poller.watchers() == []
