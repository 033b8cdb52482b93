"""A connection until it is relayed or refused, by a clock of the test's own."""

import errno
import os

import pytest

from sniproxy.proxy import connection
from sniproxy.proxy.connection import FAREWELL_BYTES, PATIENCE, address_text
from sniproxy.proxy.waiting import FOR_A_DESCRIPTOR, LONGEST_RETRY
from tests.end_to_end.harness import reset
from tests.hello import hello
from tests.plane import Descriptors, Plane

HELLO = hello("a.example")


def alert(number: int) -> bytes:
    return bytes([0x15, 3, 3, 0, 2, 2, number])


def test_a_whole_hello_is_relayed_at_once(plane: Plane) -> None:
    backend = plane.backend("a.example")
    client = plane.client(HELLO)
    # Without one look for events: it was there when the client was welcomed.
    stream = backend.accept()
    assert stream.recv(9999) == HELLO
    stream.sendall(b"answer")
    assert plane.read(client, 6) == b"answer"
    assert plane.connections.totals.open == 1


def test_ten_seconds_for_the_hello(plane: Plane) -> None:
    backend = plane.backend("a.example")
    slow, late = plane.client(HELLO[:20]), plane.client(HELLO[:20])
    plane.clock.advance(PATIENCE - 0.2)
    assert len(plane.connections.undecided) == 2
    late.sendall(HELLO[20:])
    plane.until(lambda: len(plane.connections.undecided) == 1)
    assert plane.read(backend.accept(), len(HELLO)) == HELLO
    plane.clock.advance(0.5)
    assert plane.read(slow, 99) == alert(90)
    assert len(plane.connections.undecided) == 0
    plane.clock.advance(60)
    # The sweep is over: nothing wakes a proxy at rest but the report of refusals.
    assert plane.clock.timers == 0
    assert plane.connections.totals.refused == {"hello_too_slow": 1}


def test_nothing_sent_is_no_exception(plane: Plane) -> None:
    silent = plane.client()
    plane.turn()
    plane.clock.advance(PATIENCE + 0.2)
    assert plane.read(silent, 99) == alert(90)


def test_a_full_queue_is_tried_again(plane: Plane) -> None:
    backend = plane.backend("a.example", backlog=0)
    first = plane.client(HELLO)
    waiting = plane.client(HELLO)
    assert plane.clock.timers == 1
    # After 1, 2, 4, 8, 16, 32, 50, 50 … milliseconds.
    tries = []
    begin = plane.clock.now
    while len(tries) < 9:
        plane.clock.advance(plane.clock.next - plane.clock.now)
        tries.append(round((plane.clock.now - begin) * 1000))
    assert tries == [1, 3, 7, 15, 31, 63, 113, 163, 213]
    one = backend.accept()
    plane.clock.advance(0.05)
    other = backend.accept()
    assert one.recv(9999) == other.recv(9999) == HELLO
    for stream, client in ((one, first), (other, waiting)):
        stream.sendall(b"served")
        assert plane.read(client, 6) == b"served"
    assert plane.clock.timers == 0


def test_newcomers_go_to_the_end_of_the_line(plane: Plane) -> None:
    """Who waits has one timer with all others, and gets in before who comes later."""
    backend = plane.backend("a.example", backlog=0)
    clients = [plane.client(HELLO) for _ in range(2)]
    descriptors = len(os.listdir("/proc/self/fd"))
    clients += [plane.client(HELLO) for _ in range(3)]
    assert plane.clock.timers == 1
    # A connection needs its backend's socket only when it is its turn; the test has the other end.
    assert len(os.listdir("/proc/self/fd")) == descriptors + 2 * 3
    streams = [backend.accept()]
    newcomer = plane.client(HELLO)
    for _ in range(5):
        plane.clock.advance(0.05)
        streams.append(backend.accept())
    for index, (stream, client) in enumerate(zip(streams, [*clients, newcomer], strict=True)):
        assert stream.recv(9999) == HELLO
        stream.sendall(bytes([index]))
        assert plane.read(client, 1) == bytes([index])
    plane.clock.advance(0.05)
    assert not plane.connections.lines
    assert plane.clock.timers == 0


def test_who_ends_leaves_the_line(plane: Plane) -> None:
    plane.backend("a.example", backlog=0)
    plane.client(HELLO)
    first = plane.client(HELLO)
    for _ in range(20):
        reset(plane.client(HELLO))
    plane.until(lambda: plane.connections.totals.open == 2)
    reset(first)
    plane.until(lambda: plane.connections.totals.open == 1)
    plane.clock.advance(0.1)
    assert not plane.connections.lines
    assert plane.clock.timers == 0


def test_a_queue_that_stays_full(plane: Plane) -> None:
    plane.backend("a.example", backlog=0)
    plane.client(HELLO)
    waiting = plane.client(HELLO)
    # What the client sends meanwhile is not lost, and not read either.
    waiting.sendall(b"more")
    plane.turn()
    plane.clock.advance(PATIENCE - 0.1)
    assert plane.connections.totals.open == 2
    plane.clock.advance(0.2)
    assert plane.read(waiting, 99) == alert(80)
    assert 'event=backend_fault host=a.example error="accept queue full"' in plane.log
    assert plane.connections.totals.refused == {"queue_full": 1}


def test_without_a_descriptor_for_a_backend(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits in a line of its own, and no healthy host is called broken in the log."""
    plane.backend("a.example")
    Descriptors(monkeypatch, left=0)
    waiting = plane.client(HELLO)
    assert list(plane.connections.lines) == [FOR_A_DESCRIPTOR]
    reset(plane.client(HELLO))
    plane.until(lambda: plane.connections.totals.open == 1)
    plane.clock.advance(PATIENCE + 0.1)
    assert plane.read(waiting, 99) == alert(80)
    assert plane.connections.totals.refused == {"no_descriptor": 1}
    assert "backend_fault" not in plane.log
    plane.clock.advance(LONGEST_RETRY)
    assert not plane.connections.lines


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_what_a_look_up_says_of_descriptors_is_the_backend_s_fault(
    plane: Plane, error: int
) -> None:
    """A file system of somebody's own may say anything: nobody is evicted for it, nobody waits."""
    plane.backend("a.example")
    slow = plane.client(HELLO[:10])

    def strange(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    plane.hosts.connect = strange  # type: ignore[method-assign]
    assert plane.read(plane.client(HELLO), 7) == alert(80)
    assert not plane.connections.lines
    assert plane.connections.totals.refused == {"backend_fault": 1}
    assert "event=backend_fault host=a.example" in plane.log
    slow.close()


def test_a_client_that_resets_while_it_waits(plane: Plane) -> None:
    plane.backend("a.example", backlog=0)
    plane.client(HELLO)
    waiting = plane.client(HELLO)
    assert plane.connections.totals.open == 2
    reset(waiting)
    plane.until(lambda: plane.connections.totals.open == 1)
    plane.clock.advance(PATIENCE + 1)
    assert "end=reset_by_client" in plane.log


def test_a_reset_in_the_hello(plane: Plane) -> None:
    client = plane.client(HELLO[:10])
    reset(client)
    plane.until(lambda: plane.connections.totals.open == 0)
    assert not plane.connections.totals.refused


def test_a_refused_client_that_goes_on_sending(plane: Plane) -> None:
    """At most 64 KiB are read after the alert; then the connection is closed all the same."""
    client = plane.client(b"GET")
    assert plane.read(client, 7) == alert(10)
    client.setblocking(False)
    sent = 0
    while sent < 100 * FAREWELL_BYTES:
        try:
            sent += client.send(bytes(4096))
        except BlockingIOError:
            pass
        except OSError:  # it was closed with unread bytes
            break
        plane.turn()
    assert FAREWELL_BYTES <= sent < 100 * FAREWELL_BYTES
    assert plane.connections.totals.open == 0


def test_a_refused_client_that_says_nothing(plane: Plane) -> None:
    client = plane.client(b"GET")
    assert plane.read(client, 99) == alert(10)
    assert plane.connections.totals.open == 1
    plane.clock.advance(0.9)
    assert plane.connections.totals.open == 1
    plane.clock.advance(0.3)
    assert plane.connections.totals.open == 0


def test_a_refused_client_that_closes(plane: Plane) -> None:
    idle: list[bool] = []
    plane.connections.idle = lambda: idle.append(True)
    client = plane.client(b"GET")
    client.close()
    plane.until(lambda: plane.connections.totals.open == 0)
    assert idle == [True]


def test_the_oldest_is_evicted(plane: Plane) -> None:
    clients = []
    for _ in range(3):
        clients.append(plane.client(HELLO[:10]))
        plane.clock.advance(0.5)
    assert plane.connections.evict_oldest()
    assert plane.read(clients[0], 99) == alert(90)
    assert plane.connections.totals.open == 2
    assert plane.connections.evict_oldest()
    assert plane.read(clients[1], 99) == alert(90)
    assert plane.connections.evict_oldest()
    assert not plane.connections.evict_oldest()
    assert plane.connections.totals.refused == {"evicted": 3}


def test_an_evicted_client_writes_into_no_hello_that_waits(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the evicted one still sent is read on the way, and the queue is full after all."""
    backend = plane.backend("a.example", backlog=0)
    plane.client(HELLO)
    slow = plane.client(HELLO[:10])
    slow.sendall(b"\xee" * 3000)
    descriptors = Descriptors(monkeypatch, left=0)
    evict = plane.connections.evict_oldest

    def evict_oldest() -> bool:
        descriptors.left = 9
        return evict()

    plane.connections.evict_oldest = evict_oldest  # type: ignore[method-assign]
    plane.client(HELLO)
    assert plane.connections.totals.refused == {"evicted": 1}
    assert backend.accept().recv(9999) == HELLO
    plane.clock.advance(0.05)
    assert backend.accept().recv(9999) == HELLO


def test_what_nobody_expected_ends_one_connection(plane: Plane) -> None:
    backend = plane.backend("a.example")
    well = plane.client(HELLO)
    backend.accept()

    def broken(*_: object) -> None:
        raise ZeroDivisionError("out of the blue")

    connect = plane.hosts.connect
    plane.hosts.connect = broken  # type: ignore[method-assign]
    assert plane.read(plane.client(HELLO), 99) == b""
    late = plane.client(HELLO[:9])
    late.sendall(HELLO[9:])
    assert plane.read(late, 99) == b""
    plane.hosts.connect = connect  # type: ignore[method-assign]
    assert plane.connections.totals.open == 1
    # The first went to the log from where it happened, the second by way of the poller.
    assert plane.log.count("event=unexpected_error type=ZeroDivisionError") == 1
    assert [type(fault) for fault in plane.faults] == [ZeroDivisionError]
    plane.faults.clear()
    well.sendall(b"still here")
    assert plane.read(backend.accepted[0], len(HELLO) + 10).endswith(b"still here")


def test_refusals_are_counted_once_a_minute(plane: Plane) -> None:
    for wire in (b"GET", b"GET", hello("no.example")):
        plane.read(plane.client(wire), 99)
    assert plane.reports == []
    plane.clock.advance(61)
    counts = {"count": 3, "not_a_handshake_record": 2, "no_such_host": 1}
    assert plane.reports == [("refused", counts)]
    plane.clock.advance(200)
    assert len(plane.reports) == 1
    plane.read(plane.client(b"GET"), 99)
    plane.clock.advance(61)
    assert plane.reports[1:] == [("refused", {"count": 1, "not_a_handshake_record": 1})]


def test_sums(plane: Plane) -> None:
    backend = plane.backend("a.example")
    for _ in range(2):
        client = plane.client(HELLO)
        stream = backend.accept()
        stream.recv(9999)
        stream.sendall(b"12345")
        assert plane.read(client, 5) == b"12345"
    stream.close()
    client.close()
    plane.until(lambda: plane.connections.totals.open == 1)
    plane.read(plane.client(b"GET"), 99)
    assert plane.connections.sums() == {
        "open": 2,
        "accepted": 3,
        "refused": 1,
        "bytes_up": 2 * len(HELLO),
        "bytes_down": 10,
        "refused_not_a_handshake_record": 1,
    }


def test_all_are_closed(plane: Plane) -> None:
    backend = plane.backend("a.example")
    relayed, undecided, refused = plane.client(HELLO), plane.client(HELLO[:9]), plane.client(b"G")
    backend.accept()
    assert plane.connections.close_all() == 3
    assert plane.connections.totals.open == 0
    assert plane.read(relayed, 99) == b""
    assert plane.read(undecided, 99) == b""
    assert plane.read(refused, 99) == alert(10)
    assert plane.connections.close_all() == 0
    assert plane.log.count("end=stopped") == 2


def test_descriptors_are_given_back(plane: Plane) -> None:
    """However a connection ends, nothing of it stays open."""
    backend = plane.backend("a.example")
    before = os.listdir("/proc/self/fd")
    for wire in (HELLO, HELLO[:9], b"G", hello("no.example"), HELLO + b"more"):
        with plane.client(wire):
            pass
    for stream in [backend.accept() for _ in range(2)]:
        stream.close()
    plane.until(lambda: plane.connections.totals.open == 0)
    assert os.listdir("/proc/self/fd") == before
    assert plane.poller.watchers() == []


def test_addresses_of_clients() -> None:
    assert address_text(("1.2.3.4", 5)) == "1.2.3.4:5"
    assert address_text(("::1", 5, 0, 0)) == "[::1]:5"
    assert address_text("") == "unix"


def test_limits_are_those_of_the_specification() -> None:
    assert (connection.PATIENCE, connection.FAREWELL_PATIENCE) == (10, 1)
    assert connection.FAREWELL_BYTES == 65536


def test_undecided_hellos_have_a_limit_together(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not one of them is large, and the oldest makes room."""
    monkeypatch.setattr(connection, "MAX_KEPT", 1000)
    plane.backend("a.example")
    start = hello("a.example", padding=2000)[:400]
    oldest, second, third = (plane.client(start) for _ in range(3))
    assert plane.read(oldest, 99) == alert(90)
    assert plane.connections.totals.refused == {"evicted": 1}
    # What is decided or over counts no more.
    for client in (second, third):
        client.sendall(hello("a.example", padding=2000)[400:])
    plane.until(lambda: len(plane.connections.undecided) == 0)
    fourth, fifth = plane.client(start), plane.client(start)
    plane.turn()
    assert len(plane.connections.undecided) == 2
    for client in (fourth, fifth):
        client.close()
    plane.until(lambda: len(plane.connections.undecided) == 0)
    plane.client(start)
    plane.client(start)
    plane.turn()
    assert plane.connections.totals.refused["evicted"] == 1
