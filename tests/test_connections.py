"""What all connections of a process share."""

import os
import socket

import pytest

from sniproxy.dataplane import connections, farewell
from sniproxy.dataplane.asking import Asking
from tests.desk import Counter
from tests.end_to_end.harness import reset
from tests.hello import hello, message, records, server_name
from tests.plane import Plane, alert

HELLO = hello("a.example")


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


def test_refusals_are_counted_once_a_minute(plane: Plane) -> None:
    for wire in (b"GET", b"GET", hello("no.example")):
        plane.read(plane.client(wire), 99)
    assert plane.reports == []
    plane.clock.advance(61)
    counts = {"count": 3, "not_a_handshake_record": 2, "no_such_host": 1, "name:no.example": 1}
    assert plane.reports == [("refused", counts)]
    plane.clock.advance(200)
    assert len(plane.reports) == 1
    plane.read(plane.client(b"GET"), 99)
    plane.clock.advance(61)
    assert plane.reports[1:] == [("refused", {"count": 1, "not_a_handshake_record": 1})]


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


def test_undecided_hellos_have_a_limit_together(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not one of them is large, and the oldest makes room."""
    monkeypatch.setattr(connections, "MAX_KEPT", 2000)
    plane.backend("a.example")
    start = hello("a.example", padding=2000)[:400]  # kept twice, as it came and out of its records
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


def test_who_is_barred_is_told_to_others_by_what_they_know(plane: Plane) -> None:
    """A process that looks up nothing itself knows whose a host is from when it was first reached,
    or from what was answered about it since."""
    shared = plane.connections
    log, later = shared.log, plane.clock.later
    counter = Counter(0)
    shared.asking = Asking(counter.desk, plane.poller, log, later)
    rows = {host: shared.row(host, lambda: 54_001) for host in ("a.example", "b.example")}
    assert shared.row("a.example", lambda: 1 // 0) is rows["a.example"]
    assert shared.account("a.example") == shared.account("b.example") == 54_001
    shared.asking.note("b.example", 54_002)
    assert shared.account("b.example") == 54_002
    assert shared.bar("a.example") == "uid=54001"
    assert shared.barred.holds("a.example")
    assert not shared.barred.holds("b.example")
    assert shared.bar("uid=54002") == "uid=54002"
    assert shared.barred.holds("b.example")
    plane.poller.forget(counter.desk.answers.fileno())
    for one in counter.sockets:
        one.close()


def test_what_is_open_to_a_barred_host_ends(plane: Plane) -> None:
    names = ("a.example", "b.example")
    for name in names:
        plane.backend(name)
    barred, other = (plane.client(hello(name)) for name in names)
    plane.until(lambda: plane.connections.totals.open == 2)
    assert plane.connections.bar("a.example") == "a.example"  # root's, whom everybody trusts
    assert plane.read(barred, 9) == b""
    other.setblocking(False)
    with pytest.raises(BlockingIOError):
        other.recv(9)


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
    assert [type(fault) for fault in plane.faults] == [ZeroDivisionError] * 2
    plane.connections.fault(plane.faults.pop())
    assert plane.log.count("event=unexpected_error type=ZeroDivisionError") == 1
    plane.faults.clear()
    well.sendall(b"still here")
    assert plane.read(backend.accepted[0], len(HELLO) + 10).endswith(b"still here")


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


def test_tables_of_connections_are_empty_without_connections(plane: Plane) -> None:
    """What is kept for each is bounded by their number, which descriptors bound."""
    backend, full = plane.backend("a.example"), plane.backend("full.example", backlog=0)
    first = plane.client(hello("full.example"))
    waiting = plane.client(hello("full.example"))
    undecided, refused = plane.client(HELLO[:99]), plane.client(b"G")
    half_closed = plane.client(HELLO)
    backend.accept()
    half_closed.shutdown(socket.SHUT_WR)
    shared = plane.connections
    plane.until(lambda: len(shared.relay.leaving) == 1)
    assert (len(shared.undecided), len(shared.farewells), len(shared.lines)) == (1, 1, 1)
    assert len(shared.hourly) == 3  # those that have a host
    assert shared._kept > 0
    plane.read(refused, 99)
    for client in (first, waiting, undecided, refused, half_closed):
        reset(client)
    for stream in (*backend.accepted, full.accept()):
        stream.close()
    plane.until(lambda: shared.totals.open == 0)
    plane.clock.advance(1)
    assert shared._kept == 0
    tables = (
        shared.undecided,
        shared.farewells,
        shared.lines,
        shared.relay.leaving,
        shared.hourly,
    )
    assert not any(map(len, tables))
    assert plane.poller.watchers() == []


def test_refusals_are_counted_by_few_words(plane: Plane) -> None:
    """Nothing of what a client sends is a reason of its own."""
    for number in range(100):
        for wire in (
            hello(f"{number}.example"),
            hello(f"-{number}"),
            records(message(server_name((number + 1, b"a")))),
            hello(f"{number}.example")[:9] + bytes([number]) * 400,
        ):
            client = plane.client(wire)
            client.shutdown(socket.SHUT_WR)
            plane.read(client, 99)
    assert plane.connections.totals.refused.total() == 400
    assert len(plane.connections.totals.refused) < 10


def test_limits_are_those_of_the_specification() -> None:
    assert (connections.PATIENCE, connections.FAREWELL_PATIENCE) == (10, 1)
    assert farewell.FAREWELL_BYTES == 65536
