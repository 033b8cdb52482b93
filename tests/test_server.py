"""One server from its start to its stop, in the test's own process."""

import contextlib
import errno
import gc
import os
import pathlib
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from sniproxy.dataplane.counts import totals
from sniproxy.log.log import Log
from sniproxy.log.sinks import FileSink
from sniproxy.process.inherited import Listening
from sniproxy.process.parcel import Parcel, take
from sniproxy.process.server import DRAIN, Server
from sniproxy.resolver.hosts import Hosts
from tests.end_to_end.harness import Backend
from tests.hello import hello

HELLO = hello("a.example")
Tell = Callable[[Callable[[], object]], None]
Reports = list[tuple[str, dict[str, object]]]


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


@pytest.fixture
def backend(tmp_path: pathlib.Path) -> Iterator[Backend]:
    """Enter a hosts directory that has one host, and leave it at the end."""
    before = os.open(".", os.O_PATH)
    os.chdir(tmp_path)
    (tmp_path / "a.example").mkdir()
    made = Backend(tmp_path / "a.example")
    yield made
    made.close()
    os.fchdir(before)
    os.close(before)


@pytest.fixture
def reports() -> Reports:
    return []


@pytest.fixture
def server(
    listening: socket.socket, backend: Backend, reports: Reports, tmp_path: pathlib.Path
) -> Iterator[Server]:
    hosts = Hosts()
    with (tmp_path / "log").open("wb", buffering=0) as log:
        made = Server(
            [Listening(listening.dup())],
            hosts,
            Log(FileSink(log.fileno())),
            lambda event, **fields: reports.append((event, fields)),
        )
        yield made
    hosts.close()
    # It takes what is there when it starts out of the collector's sight; the tests' is no such.
    gc.unfreeze()


@pytest.fixture
def tell(server: Server) -> Iterator[Tell]:
    """Have the server's loop call functions of a thread of the test."""
    calls: list[Callable[[], object]] = []
    read, write = os.pipe()

    def call() -> None:
        os.read(read, 1)
        calls.pop(0)()

    def tell(call: Callable[[], object]) -> None:
        calls.append(call)
        os.write(write, b"x")

    server.poller.attend(read, call)
    yield tell
    os.close(read)
    os.close(write)


def run(server: Server, tell: Tell, *steps: Callable[[], object]) -> None:
    """Run the server while a thread of the test takes steps; the server must end by itself."""
    failed: list[BaseException] = []

    def work() -> None:
        try:
            for step in steps:
                step()
        except BaseException as error:
            failed.append(error)
            tell(lambda: server.stop_now("failed"))

    thread = threading.Thread(target=work)
    thread.start()
    server.run()
    thread.join()
    server.close()
    assert not failed


def test_nothing_open_is_an_end_at_once(server: Server, tell: Tell, reports: Reports) -> None:
    run(server, tell, lambda: tell(lambda: server.stop("reason")))
    assert reports == [("stop", {"reason": "reason", "open": 0}), ("exit", {"accepted": 0})]


def test_what_was_accepted_is_finished(
    server: Server, tell: Tell, reports: Reports, listening: socket.socket, backend: Backend
) -> None:
    clients: list[socket.socket] = []

    def connect() -> None:
        clients.append(socket.create_connection(listening.getsockname(), 20))
        clients[0].sendall(HELLO)
        assert backend.accept().recv(9999) == HELLO
        tell(lambda: server.stop("one"))
        tell(lambda: server.stop("another"))

    def finish() -> None:
        stopped = threading.Event()
        tell(stopped.set)
        assert stopped.wait(20)
        assert server.stopping
        backend.accepted[0].sendall(b"bye")
        backend.accepted[0].close()
        assert clients[0].recv(99) == b"bye"
        clients[0].close()

    run(server, tell, connect, finish)
    assert reports == [("stop", {"reason": "one", "open": 1}), ("exit", {"accepted": 1})]
    # Our copy of the listening socket is closed, the socket itself goes on.
    with socket.create_connection(listening.getsockname(), 20):
        listening.accept()[0].close()


def test_now_is_now(
    server: Server, tell: Tell, reports: Reports, listening: socket.socket, backend: Backend
) -> None:
    def connect() -> None:
        with socket.create_connection(listening.getsockname(), 20) as client:
            client.sendall(HELLO)
            backend.accept()
            tell(lambda: server.stop_now("now"))
            assert client.recv(1) == b""

    run(server, tell, connect)
    assert reports == [
        ("connections_closed", {"count": 1, "reason": "now"}),
        ("exit", {"accepted": 1}),
    ]


def test_refusals_are_reported_at_the_end(
    server: Server, tell: Tell, reports: Reports, listening: socket.socket
) -> None:
    def connect() -> None:
        with socket.create_connection(listening.getsockname(), 20) as client:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert client.recv(7) == bytes.fromhex("15 0303 0002 02 0a")
            done = threading.Event()
            tell(lambda: server.refresh(done.set))
            assert done.wait(20)
            sums = totals([server._connections.counts])
            assert (sums["accepted"], sums["refused"], sums["open"]) == (1, 1, 1)
        tell(lambda: server.stop("enough"))

    run(server, tell, connect)
    assert ("refused", {"count": 1, "not_a_handshake_record": 1}) in reports
    assert reports[-1] == ("exit", {"accepted": 1})


def test_only_a_connection_is_ended_for_a_sleep(
    server: Server, tell: Tell, tmp_path: pathlib.Path
) -> None:
    """Not the listener, nor what waits for the service manager."""
    (listener,) = server._listeners
    server._slept(listener)
    assert listener.open
    server.poller.timers.later(0, lambda: server.stop("enough"))
    run(server, tell)
    assert "read_slept" not in (tmp_path / "log").read_text()


def test_what_fails_in_the_loop_is_a_line_and_no_end(
    server: Server, tell: Tell, reports: Reports, tmp_path: pathlib.Path
) -> None:
    def broken() -> None:
        raise ZeroDivisionError

    server.poller.timers.later(0, broken)
    server.poller.timers.later(0.01, lambda: server.stop("enough"))
    run(server, tell)
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log
    assert "event=unexpected_error type=ZeroDivisionError" in log


def test_the_documented_ten_seconds() -> None:
    assert DRAIN == 9.5


# What goes to the next process.


def busy(listening: socket.socket, backend: Backend, count: int) -> list[socket.socket]:
    """Have clients relayed; give them and the backend's ends in turn."""
    pairs = []
    for _ in range(count):
        client = socket.create_connection(listening.getsockname(), 20)
        client.sendall(HELLO)
        stream = backend.accept()
        assert stream.recv(len(HELLO), socket.MSG_WAITALL) == HELLO
        pairs += [client, stream]
    return pairs


def handed_over(reports: Reports) -> dict[str, object]:
    return next(fields for event, fields in reports if event == "handed_over")


def test_what_is_kept_has_gone(
    server: Server, tell: Tell, listening: socket.socket, backend: Backend, reports: Reports
) -> None:
    parcels: list[Parcel] = []

    def keep(parcel: Parcel) -> None:
        parcels.append(Parcel(parcel.socket.dup(), parcel.count))

    pairs = given_away(server, tell, lambda: busy(listening, backend, 20), keep)
    assert handed_over(reports) == {"count": 20, "left": 0}
    assert sum(parcel.count for parcel in parcels) == 20
    assert len(emptied(parcels)) == 20
    all_have_ended(pairs)


def test_no_descriptor_is_left_for_parcels(
    server: Server, tell: Tell, listening: socket.socket, backend: Backend, reports: Reports
) -> None:
    """But those that are held back for newcomers, of whom there are none then."""
    parcels: list[Parcel] = []
    fillers: list[int] = []
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)

    def hand_over() -> None:
        highest = max(map(int, os.listdir("/proc/self/fd")))
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, limits[1]))
        with contextlib.suppress(OSError):
            while True:
                fillers.append(os.dup(0))
        server.hand_over(lambda one: parcels.append(Parcel(one.socket.dup(), one.count)), 1000)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)

    pairs: list[socket.socket] = []
    run(
        server,
        tell,
        lambda: pairs.extend(busy(listening, backend, 3)),
        lambda: tell(hand_over),
    )
    for fd in fillers:
        os.close(fd)
    assert handed_over(reports) == {"count": 3, "left": 0}
    assert len(emptied(parcels)) == 3
    all_have_ended(pairs)


def emptied(parcels: Sequence[Parcel]) -> set[object]:
    """Close what is in parcels; name the clients."""
    clients = set()
    for parcel in parcels:
        while (message := take(parcel.socket, time.monotonic())) is not None:
            for carried in message.connections:
                clients.add(carried.sockets[0].getpeername())
                for one in carried.sockets:
                    one.close()
        parcel.socket.close()
    return clients


def given_away(
    server: Server,
    tell: Tell,
    begin: Callable[[], list[socket.socket]],
    keep: Callable[[Parcel], None],
) -> list[socket.socket]:
    """Have the connections that are begun handed over to ``keep``; give their ends."""
    ends: list[socket.socket] = []
    run(
        server,
        tell,
        lambda: ends.extend(begin()),
        lambda: tell(lambda: server.hand_over(keep, 1000)),
    )
    return ends


def all_have_ended(ends: list[socket.socket]) -> None:
    for one in ends:
        assert one.recv(1) == b""
        one.close()


def all_go_on(pairs: list[socket.socket]) -> None:
    for client, stream in zip(pairs[::2], pairs[1::2], strict=True):
        client.sendall(b"x")
        assert stream.recv(1) == b"x"
        client.close()
        stream.close()


def test_parcels_are_given_as_they_get_full(
    server: Server,
    tell: Tell,
    listening: socket.socket,
    backend: Backend,
    reports: Reports,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a word after each message: who is busy does not hang, and is not to lose all."""
    kept: list[tuple[int, int]] = []
    server._supervised = True

    def keep(parcel: Parcel) -> None:
        kept.append((parcel.count, server.open()))

    def words() -> int:
        return [event for event, _ in reports].count("packing")

    # So small that a few messages make a parcel.
    monkeypatch.setattr("sniproxy.process.parcel._SEND_BUFFER", 0)
    monkeypatch.setattr("sniproxy.process.server.WORD", 0.0)
    streams = given_away(server, tell, lambda: busy(listening, backend, 20), keep)
    for one in streams:
        one.close()
    assert words() == 7, "messages of three"
    assert sum(count for count, _ in kept) == 20
    # One as soon as the next is begun, while others are still here.
    assert kept[0][1] > 0 == kept[-1][1]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "no room"), "no room"),
        (MemoryError(), "MemoryError"),
    ],
    ids=["refused", "fails"],
)
@pytest.mark.parametrize("kept", [0, 1])
def test_what_nobody_keeps_goes_on_here(
    server: Server,
    tell: Tell,
    listening: socket.socket,
    backend: Backend,
    reports: Reports,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    told: str,
    kept: int,
) -> None:
    """Whatever keeps it from being kept: the first parcel's connections have gone, or none."""
    pairs: list[socket.socket] = []
    parcels: list[Parcel] = []

    def keep(parcel: Parcel) -> None:
        if len(parcels) == kept:
            raise error
        parcels.append(Parcel(parcel.socket.dup(), parcel.count))

    def still() -> None:
        done = threading.Event()
        tell(lambda: (server.hand_over(keep, 1000), done.set()))
        assert done.wait(20)
        gone = emptied(parcels)
        assert (len(gone) > 0) == (kept > 0)
        mine = [pairs[i : i + 2] for i in range(0, 40, 2) if pairs[i].getsockname() not in gone]
        assert len(mine) + len(gone) == 20
        assert mine
        all_go_on([one for pair in mine for one in pair])

    # So small that a few messages make a parcel.
    monkeypatch.setattr("sniproxy.process.parcel._SEND_BUFFER", 0)
    run(server, tell, lambda: pairs.extend(busy(listening, backend, 20)), still)
    count = sum(parcel.count for parcel in parcels)
    assert handed_over(reports) == {"count": count, "left": 20 - count}
    log = (tmp_path / "log").read_text()
    assert log.count("event=not_handed_over") == 1
    assert told in log
    assert "connections_lost" not in log


def test_what_is_neither_kept_nor_left_is_told_of(
    server: Server,
    tell: Tell,
    listening: socket.socket,
    backend: Backend,
    reports: Reports,
    tmp_path: pathlib.Path,
) -> None:

    def keep(parcel: Parcel) -> None:
        emptied([Parcel(parcel.socket.dup(), parcel.count)])
        raise MemoryError

    pairs = given_away(server, tell, lambda: busy(listening, backend, 5), keep)
    assert handed_over(reports) == {"count": 0, "left": 0}
    assert "event=connections_lost count=5 error=MemoryError" in (tmp_path / "log").read_text()
    all_have_ended(pairs)


def test_an_unexpected_error_leaves_all_where_it_is(
    server: Server,
    tell: Tell,
    listening: socket.socket,
    backend: Backend,
    reports: Reports,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pairs: list[socket.socket] = []

    def fail(*_words: object) -> None:
        raise MemoryError

    def still() -> None:
        tell(lambda: server.hand_over(fail, 1000))
        all_go_on(pairs)

    monkeypatch.setattr("sniproxy.process.server.Packer.put", fail)
    run(server, tell, lambda: pairs.extend(busy(listening, backend, 5)), still)
    assert handed_over(reports) == {"count": 0, "left": 5}
    assert "MemoryError" in (tmp_path / "log").read_text()


def test_what_does_not_fit_is_closed_at_once(
    server: Server, tell: Tell, listening: socket.socket, backend: Backend, reports: Reports
) -> None:
    """The others wait for us."""
    pairs: list[socket.socket] = []
    run(
        server,
        tell,
        lambda: pairs.extend(busy(listening, backend, 5)),
        lambda: tell(lambda: server.hand_over(lambda _: None, 6)),
    )
    assert handed_over(reports) == {"count": 2, "left": 3}
    assert ("connections_closed", {"count": 3, "reason": "no_room"}) in reports
    for one in pairs:
        one.close()
