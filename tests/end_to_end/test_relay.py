"""Bytes from client to backend and back."""

import functools
import hashlib
import os
import pathlib
import signal
import socket
import threading
from collections.abc import Callable

import pytest

from tests.end_to_end.harness import (
    Backend,
    Proxy,
    children,
    in_thread,
    memory,
    read_all,
    read_exactly,
    reset,
)
from tests.hello import hello
from tests.processes import in_child

HELLO = hello("a.example")
Make = Callable[..., Backend]


@pytest.fixture
def pair(proxy: Proxy, backend_of: Make) -> tuple[socket.socket, socket.socket]:
    """Relay one connection; give the client's and the backend's end of it."""
    backend = backend_of(proxy.directory("a.example"))
    client = proxy.connect()
    client.sendall(HELLO)
    stream = backend.accept()
    assert read_exactly(stream, len(HELLO)) == HELLO
    backend.accepted.append(client)
    return client, stream


@pytest.mark.parametrize("record", [1, 7, 16384])
def test_every_byte_of_the_client_reaches_the_backend(
    proxy: Proxy, backend_of: Make, record: int
) -> None:
    backend = backend_of(proxy.directory("a.example"))
    wire = hello("A.Example", record=record, padding=20_000) + b"early data"
    with proxy.connect() as client:
        client.sendall(wire)
        client.shutdown(socket.SHUT_WR)
        assert read_all(backend.accept()) == wire


def test_byte_by_byte(proxy: Proxy, backend_of: Make) -> None:
    backend = backend_of(proxy.directory("a.example"))
    with proxy.connect() as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(len(HELLO)):
            client.send(HELLO[at : at + 1])
        assert read_exactly(backend.accept(), len(HELLO)) == HELLO


def test_decided_before_the_hello_is_complete(proxy: Proxy, backend_of: Make) -> None:
    backend = backend_of(proxy.directory("a.example"))
    with proxy.connect() as client:
        client.sendall(HELLO)
        start = HELLO[:-1]
        assert read_exactly(backend.accept(), len(start)) == start


def test_half_close_by_the_client(pair: tuple[socket.socket, socket.socket]) -> None:
    client, stream = pair
    client.sendall(b"request")
    client.shutdown(socket.SHUT_WR)
    assert read_all(stream) == b"request"
    stream.sendall(b"late answer")
    stream.close()
    assert read_all(client) == b"late answer"


def test_half_close_by_the_backend(pair: tuple[socket.socket, socket.socket]) -> None:
    client, stream = pair
    stream.sendall(b"greeting")
    stream.shutdown(socket.SHUT_WR)
    assert read_all(client) == b"greeting"
    client.sendall(b"late request")
    client.close()
    assert read_all(stream) == b"late request"


@pytest.mark.parametrize("size", [1_000, 300_000, 40_000_000])
def test_both_directions_at_once(pair: tuple[socket.socket, socket.socket], size: int) -> None:
    client, stream = pair
    up, down = os.urandom(size), os.urandom(size)

    def send(one: socket.socket, data: bytes) -> None:
        one.sendall(data)
        one.shutdown(socket.SHUT_WR)

    got: dict[str, bytes] = {}
    work = [
        in_thread(lambda: send(client, up)),
        in_thread(lambda: send(stream, down)),
        in_thread(lambda: got.update(up=read_all(stream))),
    ]
    got["down"] = read_all(client)
    for thread in work:
        thread.join()
    assert hashlib.sha256(got["up"]).digest() == hashlib.sha256(up).digest()
    assert hashlib.sha256(got["down"]).digest() == hashlib.sha256(down).digest()


def test_backend_speaks_first(proxy: Proxy, backend_of: Make) -> None:
    backend = backend_of(proxy.directory("a.example"))
    with proxy.connect() as client:
        client.sendall(HELLO)
        backend.accept().sendall(b"banner")
        assert read_exactly(client, 6) == b"banner"


def test_reset_by_the_client(pair: tuple[socket.socket, socket.socket]) -> None:
    client, stream = pair
    reset(client)
    assert read_all(stream) == b""


def test_answer_arrives_though_the_backend_left_bytes_unread(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    client, stream = pair
    client.sendall(b"x" * 100_000)
    # Some of it has come, and most will never be read.
    read_exactly(stream, 10)
    stream.sendall(b"answer" * 10_000)
    stream.close()
    assert read_all(client) == b"answer" * 10_000


# With several workers, memory also grows by what one of them has still to make at its start.
@pytest.mark.parametrize("workers", ["1"], indirect=True)
def test_back_pressure(proxy: Proxy, pair: tuple[socket.socket, socket.socket]) -> None:
    """A client that does not read stops the backend, at bounded memory, and loses nothing."""
    client, stream = pair
    before = memory(proxy)
    chunk = bytes(range(256)) * 4096
    stream.settimeout(1)
    sent = 0
    try:
        while sent < 1 << 30:
            sent += stream.send(chunk[sent % len(chunk) :])
    except TimeoutError:
        pass
    assert sent < 1 << 28
    assert memory(proxy) - before < 800_000
    stream.close()
    received = 0
    while data := client.recv(1 << 20):
        at = received % len(chunk)
        assert data == (chunk + chunk)[at : at + len(data)]
        received += len(data)
    assert received == sent


def test_burst_onto_a_full_queue(proxy: Proxy, backend_of: Make) -> None:
    backend = backend_of(proxy.directory("a.example"), backlog=5)
    clients = [proxy.connect() for _ in range(300)]
    for client in clients:
        client.sendall(HELLO)

    def serve() -> None:
        for _ in clients:
            stream = backend.accept()
            read_exactly(stream, len(HELLO))
            stream.sendall(b"served")
            stream.close()

    thread = threading.Thread(target=serve)
    thread.start()
    answers = [read_all(client) for client in clients]
    thread.join()
    for client in clients:
        client.close()
    assert answers == [b"served"] * 300


@pytest.mark.parametrize("split", [0, 20, len(HELLO)])
def test_several_processes_on_a_listener_with_credentials(
    start: Callable[..., Proxy], backend_of: Make, tmp_path: pathlib.Path, split: int
) -> None:
    """A read stops where the sender changes, and each process of a client is one of its own."""
    listening = socket.socket(socket.AF_UNIX)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    listening.bind(str(tmp_path / "listen"))
    listening.listen()
    proxy = start(listening)
    backend = backend_of(proxy.directory("a.example"))
    client = proxy.connect()

    def stopped(*parts: bytes) -> None:
        """Send parts from a process each, so that they reach the proxy at once."""
        pids = [proxy.process.pid, *children(proxy.process.pid)]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        for part in parts:
            in_child(functools.partial(client.sendall, part))
        for pid in reversed(pids):
            os.kill(pid, signal.SIGCONT)

    stopped(HELLO[:split], HELLO[split:], b"and ", b"more") if split else client.sendall(HELLO)
    stream = backend.accept()
    assert read_exactly(stream, len(HELLO)) == HELLO
    if split:
        assert read_exactly(stream, 8) == b"and more"
    for _ in range(3):
        stopped(b"one, ", b"two, ", b"three")
        assert read_exactly(stream, 15) == b"one, two, three"
    client.close()
    assert read_all(stream) == b""
