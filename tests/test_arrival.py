"""An arrival until it is relayed or refused, by a clock of the test's own."""

import errno
import os
import pathlib
import socket

import pytest

from sniproxy.dataplane import waiting
from sniproxy.dataplane.connections import PATIENCE
from sniproxy.dataplane.waiting import FOR_A_DESCRIPTOR, LONGEST_RETRY
from tests.end_to_end.harness import Backend, reset
from tests.hello import hello, message, records
from tests.plane import Descriptors, Plane, alert

HELLO = hello("a.example")


@pytest.fixture
def unlogged(plane: Plane) -> None:
    """Have no lines of connections, so that no timer looks at the hours of those that are open."""
    plane.connections.log.connections = False


def test_a_whole_hello_is_relayed_at_once(plane: Plane) -> None:
    backend = plane.backend("a.example")
    client = plane.client(HELLO)
    # Without one look for events: it was there when the client was welcomed.
    stream = backend.accept()
    assert stream.recv(9999) == HELLO
    stream.sendall(b"answer")
    assert plane.read(client, 6) == b"answer"
    assert plane.connections.totals.open == 1


@pytest.mark.usefixtures("unlogged")
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


@pytest.mark.usefixtures("unlogged")
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


@pytest.mark.usefixtures("unlogged")
def test_who_is_served_by_one_entry_waits_in_one_line(plane: Plane) -> None:
    """However many names they make up: there is one try at a time, and the first is first."""
    backend = plane.backend("_default", backlog=0)
    clients = [plane.client(hello(f"{number}.example")) for number in range(30)]
    assert list(plane.connections.lines) == ["_default"]
    assert plane.clock.timers == 1
    for number, client in enumerate(clients):
        stream = backend.accept()
        assert stream.recv(9999) == hello(f"{number}.example")
        stream.sendall(b"served")
        assert plane.read(client, 6) == b"served"
        plane.clock.advance(0.05)
    assert not plane.connections.lines


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give directories to somebody else")
def test_lines_know_whose_host_they_are_for(plane: Plane) -> None:
    for owner, name in enumerate(("a.example", "b.example"), 4321):
        os.mkdir(name)
        pathlib.Path(name, "wait-for-backend").touch()
        os.chown(name, owner, -1)
        plane.client(hello(name))
    owners = {name: line.owner for name, line in plane.connections.lines.items()}
    assert owners == {"a.example": 4321, "b.example": 4322}


def test_the_hellos_of_those_who_wait_are_bounded(
    plane: Plane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "MAX_KEPT", 3 * len(HELLO))
    os.mkdir("a.example")
    pathlib.Path("a.example/wait-for-backend").touch()
    clients = [plane.client(HELLO) for _ in range(3)]
    assert plane.read(plane.client(HELLO), 99) == alert(80)
    assert plane.connections.totals.refused == {"queue_full": 1}
    backend = Backend(pathlib.Path("a.example"))
    plane.clock.advance(1)
    for client in clients:
        stream = backend.accept()
        assert stream.recv(9999) == HELLO
        stream.sendall(b"served")
        assert plane.read(client, 6) == b"served"
    backend.close()
    # Nothing is kept any more.
    pathlib.Path("a.example/tls-socket").unlink()
    for _ in range(3):
        plane.client(HELLO)
    assert plane.connections.totals.refused == {"queue_full": 1}


def test_a_line_is_left_when_its_backend_is_given_up(plane: Plane) -> None:
    """While one waits for its backend, the directory may go: then the next entry serves it."""
    os.mkdir("a.example")
    pathlib.Path("a.example/wait-for-backend").touch()
    client, other = plane.client(HELLO), plane.client(HELLO)
    assert list(plane.connections.lines) == ["a.example"]
    backend = plane.backend("_.example")
    plane.clock.advance(0.05)
    assert list(plane.connections.lines) == ["a.example"]
    os.unlink("a.example/wait-for-backend")
    os.rmdir("a.example")
    plane.clock.advance(0.1)
    for one in (client, other):
        stream = backend.accept()
        assert stream.recv(9999) == HELLO
        stream.sendall(b"served")
        assert plane.read(one, 6) == b"served"
    assert not plane.connections.lines


def test_who_waits_is_looked_for_anew_at_each_try(plane: Plane) -> None:
    """By then a host of the name may be there, or an entry that somebody may catch names by."""
    for entry in ("_default", "_nosni"):
        os.mkdir(entry)
        pathlib.Path(f"{entry}/wait-for-backend").touch()
    client, caught = plane.client(HELLO), plane.client(hello("b.example"))
    nameless = plane.client(records(message(None)))
    assert set(plane.connections.lines) == {"_default", "_nosni"}
    own = plane.backend("a.example")
    for entry in ("_default", "_nosni"):
        (pathlib.Path(entry) / "wait-for-backend").unlink()
        os.rmdir(entry)
        plane.backend(entry)
        os.chmod(entry, 0o777)
    plane.clock.advance(0.2)
    assert own.accept().recv(9999) == HELLO
    for one in (caught, nameless):
        assert plane.read(one, 99) == alert(112)
    assert not plane.connections.lines
    client.close()


@pytest.mark.parametrize("entry", ["a.example", "_.example", "_default"])
def test_ten_seconds_for_a_backend_that_is_down(plane: Plane, entry: str) -> None:
    os.mkdir(entry)
    assert plane.read(plane.client(HELLO), 99) == alert(112)
    pathlib.Path(f"{entry}/wait-for-backend").touch()
    clients = [plane.client(HELLO) for _ in range(20)]
    # Only the first of them tries, after 1, 2, 4 … 50 milliseconds.
    assert plane.clock.timers >= 1
    plane.clock.advance(PATIENCE - 0.1)
    assert plane.connections.totals.open >= 20
    plane.clock.advance(0.2)
    for client in clients:
        assert plane.read(client, 99) == alert(112)
    assert plane.connections.totals.refused == {"no_socket": 21}
    assert not plane.connections.lines


def test_nobody_waits_where_it_is_not_the_backend_that_is_missing(plane: Plane) -> None:
    os.mkdir("a.example")
    os.symlink("tls-socket", "a.example/tls-socket")
    pathlib.Path("a.example/wait-for-backend").touch()
    assert plane.read(plane.client(HELLO), 99) == alert(112)
    assert plane.connections.totals.refused == {"link_loop": 1}


@pytest.mark.usefixtures("unlogged")
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


@pytest.mark.usefixtures("unlogged")
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


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("_b.example", "_b.example"),
        ('-\x1b[31m" x=1\n', r'"-\u001b[31m\" x=1\n"'),
        ("b\xfccher.example", r'"b\u00fccher.example"'),
        ("a" * 255, "a" * 254 + "..."),
        ("\0" * 60_000, '"' + r"\u0000" * 254 + '..."'),
        ("", "none"),
    ],
)
def test_a_name_that_is_none_is_shown_escaped_and_cut(plane: Plane, name: str, shown: str) -> None:
    assert plane.read(plane.client(hello(name)), 99) == alert(112)
    (line,) = plane.log.splitlines()
    assert f" host={shown} end=refused:not_a_host_name " in line


def test_a_client_that_left_before_its_backend_was_reached(plane: Plane) -> None:
    """The event that told of it was the arrival's; the relay knows it all the same."""
    plane.backend("a.example")
    wire = hello("a.example", record=1, padding=60_000)
    client = plane.client(wire[:1000])
    client.setblocking(False)
    left = memoryview(wire)[1000:]
    while len(left) > 1:
        try:
            left = left[client.send(left[:-1]) :]
        except BlockingIOError:
            plane.turn()
    plane.turn(10)
    # The last byte and the end come with one event; the backend takes less than all.
    client.send(left)
    client.shutdown(socket.SHUT_WR)
    plane.turn(10)
    assert plane.connections.totals.open == 1
    plane.clock.advance(90)
    assert plane.connections.totals.open == 0
    assert "host=a.example end=idle" in plane.log
