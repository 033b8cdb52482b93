"""What status sockets say agrees with what clients did, whoever has died meanwhile."""

import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.end_to_end.harness import (
    TIMEOUT,
    Backend,
    Running,
    directory_name,
    in_thread,
    passed,
    read_exactly,
    wait_until,
)
from tests.hello import hello, message, records

HOST = "a.example"
HELLO = hello(HOST)
Pair = tuple[socket.socket, socket.socket]


class World:
    """A proxy with a status socket, its backend, and clients."""

    def __init__(self, running: Running, folder: pathlib.Path, backend: Backend, host: str) -> None:
        self.running = running
        self.folder = folder
        self.backend = backend
        self.host = host

    def visit(self) -> socket.socket:
        visitor = socket.socket(socket.AF_UNIX)
        visitor.settimeout(TIMEOUT)
        visitor.connect(str(self.folder / "status"))
        return visitor

    def answer(self, request: bytes) -> bytes:
        """Give the whole answer to these bytes."""
        with self.visit() as visitor:
            visitor.sendall(request)
            return b"".join(iter(lambda: visitor.recv(65536), b""))

    def get(self, path: str, more: str = "") -> str:
        said = self.answer(f"GET {path} HTTP/1.0\r\n{more}\r\n".encode())
        head, _, body = said.decode().partition("\r\n\r\n")
        assert head.startswith("HTTP/1.1 200 OK\r\n"), said
        return body

    def document(self, query: str = "") -> Any:
        return json.loads(self.get(f"/status.json{query}"))

    def metric(self, name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (\S+)$", self.get("/metrics"), re.MULTILINE)
        return float(found[1]) if found else -1

    def connect(self, wire: bytes = HELLO) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(TIMEOUT)
        client.connect(str(self.folder / "clients"))
        client.sendall(wire)
        return client

    def relayed(self) -> Pair:
        client = self.connect()
        stream = self.backend.accept()
        assert read_exactly(stream, len(HELLO)) == HELLO
        return client, stream

    def talk(self, pair: Pair, up: int, down: int) -> None:
        for one, other, size in ((*pair, up), (*reversed(pair), down)):
            one.sendall(bytes(size))
            read_exactly(other, size)

    def refused(self, name: str = "b.example") -> None:
        with self.connect(hello(name)) as client:
            assert client.recv(7)


isolated_or_not = pytest.mark.parametrize("world", ["0", "1"], ids=["", "isolated"], indirect=True)


@pytest.fixture
def world(
    request: pytest.FixtureRequest,
    command: list[str],
    workers: str,
    hashed: bool,
    tmp_path: pathlib.Path,
    backend_of: Callable[..., Backend],
) -> Iterator[World]:
    host = directory_name(hashed, HOST)
    directory = tmp_path / "hosts" / host
    directory.mkdir(parents=True)
    backend = backend_of(directory, 100)
    sockets = []
    for name in ("status", "clients"):
        made = socket.socket(socket.AF_UNIX)
        made.bind(str(tmp_path / name))
        made.listen(100)
        sockets.append((name, made))
    words = passed(command, sockets)
    variables = {"SNIPROXY_WORKERS": workers, "SNIPROXY_ISOLATE": getattr(request, "param", "0")}
    with Running(tmp_path, *words, **variables) as running:
        for _, made in sockets:
            made.close()
        yield World(running, tmp_path, backend, host)


@isolated_or_not
def test_counts_agree_with_what_clients_did(world: World) -> None:
    pairs = [world.relayed() for _ in range(4)]
    for pair in pairs:
        world.talk(pair, 1000, 70_000)
    for end in pairs.pop():
        end.close()
    world.refused()
    world.refused()
    wait_until(lambda: world.document()["connections"]["open"] == 3)
    said = world.document("?connections=100")
    up, down = 4 * (len(HELLO) + 1000), 4 * 70_000
    assert said["connections"]["accepted"] == 6
    assert said["connections"]["refused"] == {"no_such_host": 2}
    assert (said["bytes_up"], said["bytes_down"]) == (up, down)
    assert said["hosts"] == [
        {
            "host": world.host,
            "open": 3,
            "connections": 4,
            "bytes_up": up,
            "bytes_down": down,
            "backend_faults": 0,
        }
    ]
    rows = said["open_connections"]
    assert [row["state"] for row in rows] == ["relaying"] * 3
    assert {row["host"] for row in rows} == {world.host}
    assert {(row["bytes_up"], row["bytes_down"]) for row in rows} == {(len(HELLO) + 1000, 70_000)}
    assert said["next"] is None
    assert said["hello_seconds"]["count"] == said["backend_seconds"]["count"] == 4
    label = f'{{host="{world.host}"}}'
    assert world.metric(f"sniproxy_host_sent_bytes_total{label}") == down
    assert world.metric("sniproxy_connections_accepted_total") == 6
    # Looked at again, nothing is counted twice; and what ends is counted for the rest only.
    world.talk(pairs[0], 5, 7)
    for pair in pairs:
        for end in pair:
            end.close()
    wait_until(lambda: world.document()["connections"]["open"] == 0)
    assert world.metric("sniproxy_received_bytes_total") == up + 5
    assert world.metric("sniproxy_sent_bytes_total") == down + 7


@isolated_or_not
def test_a_backend_that_is_not_there_is_a_fault_of_its_host(world: World) -> None:
    world.backend.listening.close()
    world.refused(HOST)
    (host,) = world.document()["hosts"]
    assert (host["host"], host["connections"], host["backend_faults"]) == (world.host, 0, 1)


@isolated_or_not
def test_each_host_is_the_directory_that_serves(
    world: World, hashed: bool, backend_of: Callable[..., Backend]
) -> None:
    """Never a name that a client has made up, of which one directory may serve any number."""
    names = {"_.example.com": "x{}.example.com", "_default": "any{}.test", "_nosni": None}
    shown = {}
    for wanted, name in names.items():
        entry = directory_name(hashed, wanted)
        shown[entry] = 3
        directory = world.folder / "hosts" / entry
        directory.mkdir()
        backend = backend_of(directory)
        for number in range(3):
            wire = hello(name.format(number)) if name else records(message(None))
            with world.connect(wire), backend.accept() as stream:
                read_exactly(stream, len(wire))
    wait_until(lambda: world.document()["connections"]["open"] == 0)
    said = world.document()
    assert {one["host"]: one["connections"] for one in said["hosts"]} == shown
    assert said["connections"]["refused"] == {}


@isolated_or_not
def test_who_is_slow_is_seen_in_the_histograms(world: World) -> None:
    """A hello in pieces, and a backend that is waited for."""
    (world.folder / "hosts" / world.host / "wait-for-backend").touch()
    slow = world.connect(HELLO[:9])
    wait_until(lambda: has_been("hello", world))
    slow.sendall(HELLO[9:])
    read_exactly(world.backend.accept(), len(HELLO))
    for end in world.relayed():
        end.close()
    (world.folder / "hosts" / world.host / "tls-socket").rename(world.folder / "away")
    waits = world.connect()

    wait_until(lambda: has_been("waiting", world))
    waiting = world.document("?connections=9")["open_connections"]
    assert world.host in {one["host"] for one in waiting if one["state"] == "waiting"}
    (world.folder / "away").rename(world.folder / "hosts" / world.host / "tls-socket")
    read_exactly(world.backend.accept(), len(HELLO))
    said = world.document()
    for kind, most in (("hello_seconds", 2), ("backend_seconds", 2)):
        buckets = dict(map(tuple, said[kind]["buckets"]))
        assert said[kind]["count"] == 3
        assert buckets[0.001] <= most  # one has taken longer than that
        assert said[kind]["sum"] > 0.001
    for one in (slow, waits, *world.backend.accepted):
        one.close()


def has_been(state: str, world: World) -> bool:
    """Say whether somebody in that state has been here for a tenth of a second."""
    rows = world.document("?connections=9")["open_connections"]
    return any(one["state"] == state and one["age"] > 0.1 for one in rows)


def test_a_question_by_signal_has_the_same_totals(world: World) -> None:
    pair = world.relayed()
    world.talk(pair, 1000, 2000)
    world.refused()
    wait_until(lambda: world.document()["connections"]["refused"] == {"no_such_host": 1})
    world.running.process.send_signal(signal.SIGUSR1)
    wait_until(lambda: "event=totals" in world.running.log)
    line = world.running.log.partition("event=totals ")[2].splitlines()[0]
    words = f"open=1 accepted=2 refused=1 bytes_up={len(HELLO) + 1000} bytes_down=2000"
    assert line == f"{words} refused_no_such_host=1"
    for end in pair:
        end.close()


def test_the_command_shows_it(world: World, listen: pathlib.Path) -> None:
    """In a table, and as the document of more than one page."""
    pairs = [world.relayed() for _ in range(3)]
    world.talk(pairs[0], 5000, 3)
    wait_until(lambda: world.document()["bytes_up"] >= 5000)

    def shown(*words: str) -> str:
        command = [listen.with_name("sniproxy-status"), "--socket", world.folder / "status", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT)
        assert done.stderr == ""
        return done.stdout

    assert re.search(rf"^{world.host} +3 +3 ", shown(), re.MULTILINE)
    assert shown("--connections").count(f"  {world.host}  relaying") == 3
    said = json.loads(shown("--json", "--connections"))
    assert [one["host"] for one in said["open_connections"]] == [world.host] * 3
    for one in (*pairs[0], *pairs[1], *pairs[2]):
        one.close()


def test_connections_are_paged(world: World) -> None:
    pairs = [world.relayed() for _ in range(7)]
    undecided = world.connect(HELLO[:9])
    wait_until(lambda: world.document()["connections"]["open"] == 8)
    rows, after = [], ""
    while after is not None:
        said = world.document(f"?connections=3{after and '&after='}{after}")
        assert len(said["open_connections"]) <= 3
        rows += said["open_connections"]
        after = said["next"]
    assert sorted(row["state"] for row in rows) == ["hello", *["relaying"] * 7]
    undecided.close()
    for pair in pairs:
        for end in pair:
            end.close()


def test_visitors_at_once_see_all_there_is(world: World) -> None:
    """Each, however many others have just asked anew."""
    pairs = [world.relayed() for _ in range(12)]
    said: list[Any] = []

    def ask() -> None:
        said.extend(world.document("?connections=100") for _ in range(5))

    for thread in [in_thread(ask) for _ in range(8)]:
        thread.join()
    assert [len(one["open_connections"]) for one in said] == [12] * 40
    assert all(worker["answered"] for one in said for worker in one["workers"])
    for pair in pairs:
        for end in pair:
            end.close()


def test_no_count_goes_back_when_a_worker_dies(world: World, workers: str) -> None:
    if workers == "1":
        pytest.skip("not applicable: there is no other process")
    pair = world.relayed()
    world.talk(pair, 1000, 2000)
    world.refused()
    wait_until(lambda: len(world.document()["workers"]) == int(workers))
    before = world.document()
    for worker in before["workers"]:
        os.kill(worker["pid"], signal.SIGKILL)
    wait_until(lambda: world.document()["worker_restarts"] == int(workers))
    wait_until(lambda: len(world.document()["workers"]) == int(workers))
    after = world.document()
    assert after["started"] == before["started"]
    assert after["connections"] == {**before["connections"], "open": 0}
    for name in ("bytes_up", "bytes_down"):
        assert after[name] == before[name]
    again = world.relayed()
    (host,) = world.document()["hosts"]
    assert (host["connections"], host["open"]) == (2, 1)
    for end in (*pair, *again):
        end.close()
    world.running.process.terminate()
    world.running.process.wait(TIMEOUT)
    assert "event=exit accepted=3" in world.running.log, world.running.log


def test_no_scrape_sees_a_count_go_back(world: World, workers: str) -> None:
    """Whenever workers are killed meanwhile, with connections open or beginning."""
    if workers == "1":
        pytest.skip("not applicable: there is no other process")
    wait_until(lambda: len(world.document()["workers"]) == int(workers))
    before, killed = world.document(), set()
    while world.document()["worker_restarts"] < 4:
        pair = world.relayed()
        with contextlib.suppress(ConnectionError, AssertionError):  # its worker may be killed
            world.talk(pair, 3000, 4000)
        said = world.document()
        for name in ("bytes_up", "bytes_down", "worker_restarts", "started"):
            assert said[name] >= before[name]
        for name in ("accepted", "adopted"):
            assert said["connections"][name] >= before["connections"][name]
        for kind in ("hello_seconds", "backend_seconds"):
            assert said[kind]["count"] >= before[kind]["count"]
            assert said[kind]["sum"] >= before[kind]["sum"]
        for one in before["hosts"]:
            (same,) = (other for other in said["hosts"] if other["host"] == one["host"])
            assert all(same[name] >= one[name] for name in ("connections", "bytes_up"))
        before = said
        for end in pair:
            end.close()
        alive = {one["pid"] for one in said["workers"]} - killed
        if len(alive) == int(workers):
            killed.add(min(alive))
            os.kill(min(alive), signal.SIGKILL)


def test_workers_have_none_of_the_visitors(world: World, workers: str) -> None:
    """Of whoever was there when they were forked, nor what is held back for one more."""
    if workers == "1":
        pytest.skip("not applicable: there is no other process")
    wait_until(lambda: len(world.document()["workers"]) == int(workers))
    first = world.document()["workers"]
    before = sockets_of(first[0]["pid"])
    visitors = [world.visit() for _ in range(5)]
    for one in first:
        os.kill(one["pid"], signal.SIGKILL)
    wait_until(lambda: world.document()["worker_restarts"] == int(workers))
    wait_until(lambda: len(world.document()["workers"]) == int(workers))
    wait_until(lambda: all(one["answered"] for one in world.document()["workers"]))
    for one in world.document()["workers"]:
        assert sockets_of(one["pid"]) == before
    for visitor in visitors:
        visitor.close()


def sockets_of(pid: int) -> int:
    folder = pathlib.Path(f"/proc/{pid}/fd")
    return len([one for one in folder.iterdir() if os.readlink(one).startswith("socket:")])


def test_a_worker_that_hangs_holds_up_nobody(world: World, workers: str) -> None:
    if workers == "1":
        pytest.skip("not applicable: there is no other process")
    wait_until(lambda: len(world.document()["workers"]) == int(workers))
    hanging = world.document()["workers"][0]["pid"]
    os.kill(hanging, signal.SIGSTOP)
    try:
        said = world.document("?connections=10")
        answered = {one["pid"]: one["answered"] for one in said["workers"]}
        assert answered.pop(hanging) is False
        assert all(answered.values())
    finally:
        os.kill(hanging, signal.SIGCONT)
    wait_until(lambda: all(one["answered"] for one in world.document()["workers"]))


@isolated_or_not
def test_a_renewal_is_a_reset_that_is_seen(world: World) -> None:
    pair = world.relayed()
    world.talk(pair, 1000, 2000)
    before = world.document()
    world.running.process.send_signal(signal.SIGUSR2)
    wait_until(lambda: world.running.log.count("event=start ") == 2)
    world.talk(pair, 10, 20)
    after = world.document()
    assert after["started"] > before["started"]
    assert after["connections"] == {"accepted": 0, "adopted": 1, "open": 1, "refused": {}}
    assert (after["bytes_up"], after["bytes_down"]) == (10, 20)
    assert [(one["host"], one["open"]) for one in after["hosts"]] == [(world.host, 1)]
    for end in pair:
        end.close()


NO_QUESTIONS = (
    (b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n", 404),
    (b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello", 405),
    (b"DELETE / HTTP/1.0\r\n\r\n", 405),
    (b"GET /metrics HTTP/1.1\r\n\r\n", 400),
    (b"GET /metrics\r\n\r\n", 400),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    (b"\x16\x03\x01\x02\x00\n\n", 400),
    (HELLO, 400),
    (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    (b"GET /" + bytes([0xFF]) * 20 + b" HTTP/1.0\r\n\r\n", 404),
    (b"GET /status.json?connections=1001 HTTP/1.0\r\n\r\n", 400),
    (b"GET /status.json?connections=-1 HTTP/1.0\r\n\r\n", 400),
    (b"GET /status.json?connections=1&after=<b> HTTP/1.0\r\n\r\n", 400),
    (b"GET /metrics HTTP/1.0\r\n" + b"a: " + bytes(range(32, 127)) * 200, 431),
)


def test_what_is_no_question_is_told(world: World) -> None:
    for request, status in NO_QUESTIONS:
        said = world.answer(request)
        assert said.startswith(b"HTTP/1.1 %d " % status), said
        assert b"expected" in said
    assert world.document()["connections"]["accepted"] == 0


def test_forms_of_answers(world: World) -> None:
    whole = world.answer(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\n")
    assert b"Transfer-Encoding: chunked\r\n" in whole
    assert whole.endswith(b"# EOF\n\r\n0\r\n\r\n")
    head = world.answer(b"HEAD /status.json HTTP/1.0\r\n\r\n")
    assert head.endswith(b"\r\n\r\n")
    assert "# EOF" not in world.get("/metrics", "Accept: text/plain;version=0.0.4\r\n")
    page = world.answer(b"GET / HTTP/1.0\r\n\r\n")
    assert b"Content-Security-Policy: default-src 'none'; style-src 'sha256-" in page


def test_who_does_not_read_or_never_ends_holds_up_no_client(world: World) -> None:
    """As many as there may be, each in its way."""
    pair = world.relayed()
    visitors = [world.visit() for _ in range(8)]
    for one in visitors[:4]:
        one.sendall(b"GET /status.json?connections=1000 HTTP/1.1\r\nHost: a\r\n\r\n")
    for one in visitors[4:]:
        one.setblocking(False)
    over = False

    def flood() -> None:
        while not over:
            for one in visitors[4:]:
                with contextlib.suppress(OSError):
                    one.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 100)

    thread = in_thread(flood)
    try:
        for _ in range(20):
            world.talk(pair, 1000, 1000)
        assert world.metric("sniproxy_connections_accepted_total") == 1
    finally:
        over = True
        thread.join()
    for one in (*visitors, *pair):
        one.close()


def test_a_hundred_visitors_who_say_nothing_keep_nobody_away(world: World) -> None:
    silent = [world.visit() for _ in range(100)]
    with contextlib.suppress(BrokenPipeError):  # it may have been told to go
        silent[0].sendall(b"GET /metr")
    assert world.metric("sniproxy_connections_accepted_total") == 0
    for one in silent:
        one.close()
    pair = world.relayed()
    assert world.metric("sniproxy_open_connections") == 1
    for end in pair:
        end.close()
