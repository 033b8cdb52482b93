"""Backends that are killed, stopped, replaced, rude, deaf, early or overrun."""

import array
import contextlib
import os
import signal
import socket
import struct
import threading
from collections.abc import Callable

import pytest

from sniproxy.resolver.hosts import can_refuse_descriptors
from tests.end_to_end.harness import Backend as EndToEndBackend
from tests.end_to_end.harness import Proxy, in_thread, read_all, read_exactly
from tests.faults.harness import HELLO, SERVED, Backend, ask, crowd
from tests.hello import hello

Start = Callable[..., Proxy]
Serve = Callable[..., Backend]
OTHER = "b.example"
OTHER_HELLO = hello(OTHER)
UNRECOGNIZED_NAME = b"\x15\3\3\0\2\2\x70"


def test_killed_and_replaced(unharmed: Start, serve: Serve) -> None:
    """Its connections end, new ones are refused, and the next backend serves at once."""
    proxy = unharmed()
    directory = proxy.directory(OTHER)
    for _ in range(3):
        backend = serve(directory)
        clients = list(crowd(proxy, 50, OTHER_HELLO))
        for client in clients:
            assert read_exactly(client, len(SERVED)) == SERVED
            client.sendall(b"x" * 1000)
        backend.signal(signal.SIGKILL)
        backend.process.wait()
        for client in clients:
            read_all(client)
            client.close()
        assert proxy.ask(OTHER_HELLO) == UNRECOGNIZED_NAME
        ask(proxy)


def test_replaced_without_a_gap(unharmed: Start, serve: Serve) -> None:
    """A socket renamed over the last one: not one of the clients in between is refused."""
    proxy = unharmed()
    directory = proxy.directory(OTHER)
    backends = [serve(directory)]
    over = threading.Event()
    served = 0

    def knock() -> None:
        nonlocal served
        while not over.is_set():
            ask(proxy, OTHER_HELLO)
            served += 1

    thread = in_thread(knock)
    backends += [serve(directory) for _ in range(5)]
    over.set()
    thread.join()
    assert served
    ask(proxy, OTHER_HELLO)


def test_stopped(unharmed: Start, serve: Serve) -> None:
    """Who waits for a backend that sleeps keeps nobody else waiting, and is served later."""
    proxy = unharmed()
    backend = serve(proxy.directory(OTHER), "--backlog", "5")
    backend.signal(signal.SIGSTOP)
    waiting = list(crowd(proxy, 100, OTHER_HELLO))
    for _ in range(50):
        ask(proxy)
    backend.signal(signal.SIGCONT)
    for client in waiting:
        assert read_exactly(client, len(SERVED)) == SERVED
        client.close()


def test_reset_in_the_middle(unharmed: Start, serve: Serve) -> None:
    proxy = unharmed()
    serve(proxy.directory(OTHER), "--reset")
    for client in crowd(proxy, 100, OTHER_HELLO):
        assert read_exactly(client, len(SERVED)) == SERVED
        client.sendall(bytes(300_000))
        read_all(client)
        client.close()


def test_first_to_speak_and_to_half_close(unharmed: Start, serve: Serve) -> None:
    """The word that a backend says before it has read anything arrives, and so does its end."""
    proxy = unharmed()
    serve(proxy.directory(OTHER), "--first")
    for client in crowd(proxy, 100, OTHER_HELLO):
        assert read_all(client) == SERVED
        client.sendall(b"still heard")
        client.close()


def test_never_reads(unharmed: Start, serve: Serve) -> None:
    """A client is stopped when the buffers before a deaf backend are full; the rest goes on."""
    proxy = unharmed(growth=24 << 20)
    backend = serve(proxy.directory(OTHER), "--deaf")
    clients = []
    for client in crowd(proxy, 20, OTHER_HELLO):
        client.settimeout(0.3)
        sent = 0
        try:
            while sent < 1 << 27:
                sent += client.send(bytes(1 << 18))
        except TimeoutError:
            pass
        assert sent < 1 << 27
        clients.append(client)
    for _ in range(20):
        ask(proxy)
    # While the backend sleeps nobody can tell the proxy that the client has gone: its end of
    # stream is queued behind what was not read. The end of the backend ends them all.
    for client in clients:
        client.close()
    backend.close()


def test_a_thousand_at_once_onto_a_queue_of_five(unharmed: Start, serve: Serve) -> None:
    proxy = unharmed(growth=32 << 20)
    backend = serve(proxy.directory(OTHER), "--backlog", "5")
    backend.signal(signal.SIGSTOP)
    clients = list(crowd(proxy, 1000, OTHER_HELLO))
    backend.signal(signal.SIGCONT)
    for client in clients:
        assert read_exactly(client, len(SERVED)) == SERVED
        client.close()


@pytest.mark.skipif(
    not can_refuse_descriptors(),
    reason="not applicable: this kernel refuses no descriptors, see test_watchdog.py",
)
def test_descriptors_that_a_backend_passes_are_not_kept(
    unharmed: Start, backend_of: Callable[..., object]
) -> None:
    """SCM_RIGHTS on the backend's socket: nothing of it gets into the proxy's table."""
    proxy = unharmed()
    backend = backend_of(proxy.directory(OTHER))
    client = proxy.connect()
    client.sendall(OTHER_HELLO)
    stream = backend.accept()  # type: ignore[attr-defined]
    read_exactly(stream, len(OTHER_HELLO))
    read, write = os.pipe()
    for _ in range(50):
        passed = array.array("i", [write] * 20)
        try:
            stream.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)])
        except PermissionError:  # the kernel refuses them, since Linux 6.16
            stream.send(b"x")
        assert read_exactly(client, 1) == b"x"
    os.close(write)
    # The end of the pipe is told only when nobody holds its other end.
    assert os.read(read, 1) == b""
    os.close(read)
    stream.close()
    assert read_all(client) == b""
    client.close()


@pytest.mark.skipif(
    not can_refuse_descriptors(), reason="not applicable: this kernel refuses no descriptors"
)
def test_a_descriptor_whose_close_lasts(
    unharmed: Start, backend_of: Callable[..., EndToEndBackend]
) -> None:
    """A socket that lingers for an hour, passed as its last owner leaves it: who reads the message
    would sleep in the close of it. The sender keeps it."""
    proxy = unharmed()
    backend = backend_of(proxy.directory(OTHER))
    for _ in range(3):
        with proxy.connect() as client, socket.create_server(("127.0.0.1", 0)) as listening:
            client.sendall(OTHER_HELLO)
            stream = backend.accept()
            read_exactly(stream, len(OTHER_HELLO))
            lingering = socket.create_connection(listening.getsockname())
            peer, _ = listening.accept()
            lingering.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    lingering.send(bytes(65536))
            lingering.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 3600))
            passed = array.array("i", [lingering.fileno()])
            with pytest.raises(PermissionError):
                stream.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)])
            ask(proxy)
            # So that the close does not last here, either.
            peer.close()
            lingering.close()
            stream.close()
            assert read_all(client) == b""


def test_who_floods_gets_no_more_than_the_others(unharmed: Start, serve: Serve) -> None:
    """While bulk streams run, small requests are served."""
    proxy = unharmed(growth=32 << 20)
    over = threading.Event()

    def flood() -> None:
        with proxy.connect() as client:
            client.sendall(HELLO)
            read_exactly(client, len(SERVED))
            reader = in_thread(lambda: read_all(client))
            while not over.is_set():
                client.sendall(bytes(1 << 20))
            client.shutdown(socket.SHUT_WR)
            reader.join()

    threads = [in_thread(flood) for _ in range(3)]
    for _ in range(100):
        ask(proxy)
    over.set()
    for thread in threads:
        thread.join()


def test_the_host_disappears_under_a_connection(unharmed: Start, serve: Serve) -> None:
    """What is connected stays so when its directory is removed; new clients are refused."""
    proxy = unharmed()
    directory = proxy.directory(OTHER)
    serve(directory)
    with proxy.connect() as client:
        client.sendall(OTHER_HELLO)
        assert read_exactly(client, len(SERVED)) == SERVED
        (directory / "tls-socket").unlink()
        directory.rmdir()
        assert proxy.ask(OTHER_HELLO) == UNRECOGNIZED_NAME
        client.sendall(b"still here")
        assert read_exactly(client, 10) == b"still here"
