"""Each alert as bytes on the wire, then an orderly end."""

import ctypes
import os
import select
import socket
from collections.abc import Callable

import pytest

from tests.end_to_end.harness import TIMEOUT, Backend, Proxy, read_all, read_exactly
from tests.hello import extension, hello, message, records

PR_CAPBSET_DROP = 24
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2


def alert(number: int) -> bytes:
    return bytes([0x15, 3, 3, 0, 2, 2, number])


@pytest.mark.parametrize(
    ("wire", "number"),
    [
        (b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n", 10),
        (b"\x16\3\1\0\1\2", 10),
        (b"\x16\3\1\x40\1", 22),
        (b"\x16\3\1\0\0", 50),
        (records(message(extension(0, b"\0\4\0\0\1"))), 50),
        (records(message(None)), 112),
        (hello("no_such.example"), 112),
        (hello("nobody.example"), 112),
    ],
)
def test_refused(proxy: Proxy, wire: bytes, number: int) -> None:
    assert proxy.ask(wire) == alert(number)
    assert proxy.ask(wire + bytes(50_000)) == alert(number)


def test_end_of_stream_in_the_hello(proxy: Proxy) -> None:
    assert proxy.ask(hello("a.example")[:20], end=True) == alert(50)
    assert proxy.ask(b"", end=True) == alert(50)


def test_connect_errors(proxy: Proxy, backend_of: Callable[..., Backend]) -> None:
    backend_of(proxy.directory("dead.example")).close()
    assert proxy.ask(hello("dead.example")) == alert(112)
    directory = proxy.directory("loop.example")
    (directory / "tls-socket").symlink_to("tls-socket")
    assert proxy.ask(hello("loop.example")) == alert(112)
    directory = proxy.directory("file.example")
    directory.rmdir()
    directory.touch()
    assert proxy.ask(hello("file.example")) == alert(112)


def test_a_fault_of_the_backend(proxy: Proxy) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as wrong:
        wrong.bind(str(proxy.directory("wrong.example") / "tls-socket"))
        assert proxy.ask(hello("wrong.example")) == alert(80)
    assert "level=warning event=backend_fault host=wrong.example" in proxy.log


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to somebody else")
def test_permission_denied(start: Callable[..., Proxy], backend_of: Callable[..., Backend]) -> None:
    prctl = ctypes.CDLL(None).prctl

    def obey_permissions() -> None:
        for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
            prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)

    proxy = start(preexec=obey_permissions)
    directory = proxy.directory("closed.example")
    backend = backend_of(directory)
    os.chown(directory, 65534, 65534)
    os.chown(directory / "tls-socket", 65534, 65534)
    directory.chmod(0o700)
    assert proxy.ask(hello("closed.example")) == alert(112)
    directory.chmod(0o755)
    (directory / "tls-socket").chmod(0o600)
    assert proxy.ask(hello("closed.example")) == alert(112)

    # Servers bind a socket first and give it its mode then: who waits for one does so meanwhile.
    (directory / "wait-for-backend").touch()
    for _ in range(2):
        with proxy.connect() as client:
            client.sendall(hello("closed.example"))
            assert proxy.ask(hello("nobody.example")) == alert(112)
            (directory / "tls-socket").chmod(0o666)
            assert read_exactly(backend.accept(), len(hello("closed.example")))
        (directory / "tls-socket").chmod(0o600)


@pytest.mark.parametrize("workers", ["1"], indirect=True)
def test_too_slow_and_full_queue(proxy: Proxy, backend_of: Callable[..., Backend]) -> None:
    """Two things that take ten seconds, at once."""
    backend = backend_of(proxy.directory("full.example"), backlog=0)
    with proxy.connect() as slow, proxy.connect() as first, proxy.connect() as waiting:
        slow.sendall(hello("a.example")[:30])
        first.sendall(hello("full.example"))
        stream = backend.accept()
        with proxy.connect() as second:
            # One of them waits in the queue, which is full with it, the other before it.
            second.sendall(hello("full.example"))
            waiting.sendall(hello("full.example"))
            assert read_all(slow) == alert(90)
            (refused, *_), _, _ = select.select([second, waiting], [], [], TIMEOUT)
            assert read_all(refused) == alert(80)
        stream.close()
    assert 'event=backend_fault host=full.example error="accept queue full"' in proxy.log
