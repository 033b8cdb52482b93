"""Sockets for balancers: which they are, and that it stays so."""

import pathlib
import select
import signal
import socket
from collections.abc import Callable, Iterator

import pytest

from sniproxy.parser.proxy_header import version_1, version_2
from tests.end_to_end.harness import (
    TIMEOUT,
    Backend,
    Proxy,
    Running,
    directory_name,
    passed,
    read_exactly,
    wait_until,
)
from tests.hello import hello

HELLO = hello("a.example")
FROM, TO = ("192.0.2.1", 40000), ("198.51.100.2", 443)
V1, V2 = version_1(FROM, TO), version_2(FROM, TO, "")
Start = Callable[..., Proxy]
Make = Callable[..., Backend]


@pytest.fixture
def host(tmp_path: pathlib.Path, hashed: bool) -> Iterator[Backend]:
    """Have a host that asks for a header of version 1."""
    directory = tmp_path / "hosts" / directory_name(hashed, "a.example")
    directory.mkdir(parents=True)
    (directory / "send-proxy-v1").touch()
    made = Backend(directory)
    yield made
    made.close()


def who(address: tuple[str, int], first: bytes, backend: Backend) -> bytes:
    """Say whom the backend is told of when a connection begins so, or what the client gets."""
    with socket.create_connection(address, TIMEOUT) as client:
        client.sendall(first + HELLO)
        ready, _, _ = select.select([client, backend.listening], [], [], TIMEOUT)
        if client in ready:
            return client.recv(99)
        with backend.accept() as stream:
            line = b""
            while not line.endswith(b"\r\n"):
                line += read_exactly(stream, 1)
            assert read_exactly(stream, len(HELLO)) == HELLO
            if line == version_1(client.getsockname(), client.getpeername()):
                return b"itself"
            return line


def for_balancers(address: tuple[str, int], backend: Backend) -> bool:
    """Say whether a socket is for balancers; it must be one or the other."""
    said = [who(address, first, backend) for first in (b"", V1, V2)]
    assert said in ([b"", V1, V1], [b"itself", NO_TLS, NO_TLS])
    return said[0] == b""


NO_TLS = bytes([0x15, 3, 3, 0, 2, 2, 10])


@pytest.mark.parametrize(("value", "expected"), [("1", True), ("0", False), ("", False)])
def test_standard_input(start: Start, backend_of: Make, value: str, expected: bool) -> None:
    proxy = start(SNIPROXY_ACCEPT_PROXY=value)
    directory = proxy.directory("a.example")
    (directory / "send-proxy-v1").touch()
    address = proxy.listening.getsockname()
    assert for_balancers(address, backend_of(directory)) == expected
    shown = f" listen=127.0.0.1:{address[1]} accept_proxy=127.0.0.1:{address[1]} "
    assert (shown in proxy.log) == expected
    assert "bad_setting" not in proxy.log
    proxy.stop(signal.SIGTERM)
    reason = "no_proxy_header=1" if expected else "not_a_handshake_record=2"
    assert reason in proxy.log


@pytest.mark.parametrize("value", ["yes", "2", "true", "1 "])
def test_a_bad_setting(start: Start, backend_of: Make, value: str) -> None:
    proxy = start(SNIPROXY_ACCEPT_PROXY=value)
    directory = proxy.directory("a.example")
    (directory / "send-proxy-v1").touch()
    assert not for_balancers(proxy.listening.getsockname(), backend_of(directory))
    assert proxy.log.count("event=bad_setting") == 1
    assert f"SNIPROXY_ACCEPT_PROXY={value}: expected 1 or 0" in proxy.log


NAMES = ["proxy", "proxy-443", "proxy.socket", "web", "Proxy", ""]


@pytest.fixture
def listening() -> Iterator[list[socket.socket]]:
    made = [socket.create_server(("127.0.0.1", 0)) for _ in NAMES]
    yield made
    for one in made:
        one.close()


@pytest.mark.parametrize("anew", [False, True], ids=["started", "renewed"])
def test_names(
    command: list[str],
    workers: str,
    host: Backend,
    tmp_path: pathlib.Path,
    listening: list[socket.socket],
    anew: bool,
) -> None:
    """In one process some are for balancers, and others are not; also in the next program."""
    words = passed(command, list(zip(NAMES, listening, strict=True)))
    with Running(tmp_path, *words, SNIPROXY_WORKERS=workers) as running:
        if anew:
            running.process.send_signal(signal.SIGUSR2)
            wait_until(lambda: running.log.count("event=start ") == 2)
        found = [for_balancers(one.getsockname(), host) for one in listening]
        assert found == [True, True, False, False, False, False]
        shown = ",".join(f"127.0.0.1:{one.getsockname()[1]}" for one in listening[:2])
        assert f" accept_proxy={shown} " in running.log


def test_a_setting_that_is_for_standard_input(
    command: list[str], host: Backend, tmp_path: pathlib.Path, listening: list[socket.socket]
) -> None:
    words = passed(command, list(zip(NAMES, listening, strict=True)))
    with Running(tmp_path, *words, SNIPROXY_ACCEPT_PROXY="1") as running:
        assert "SNIPROXY_ACCEPT_PROXY=1: is for a socket on standard input" in running.log
        assert not for_balancers(listening[3].getsockname(), host)


def test_standard_input_after_a_renewal(start: Start, backend_of: Make) -> None:
    proxy = start(SNIPROXY_ACCEPT_PROXY="1")
    directory = proxy.directory("a.example")
    (directory / "send-proxy-v1").touch()
    wait_until(lambda: "event=start" in proxy.log)
    half = proxy.connect()
    half.sendall(V1[:20])
    proxy.process.send_signal(signal.SIGUSR2)
    wait_until(lambda: proxy.log.count("event=start ") == 2)
    backend = backend_of(directory)
    assert for_balancers(proxy.listening.getsockname(), backend)
    # Half a header was there before.
    with half:
        half.sendall(V1[20:] + HELLO)
        with backend.accept() as stream:
            assert read_exactly(stream, len(V1 + HELLO)) == V1 + HELLO


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("option", [True, False])
def test_sniproxy_listen(
    command: list[str],
    listen: pathlib.Path,
    host: Backend,
    tmp_path: pathlib.Path,
    count: int,
    option: bool,
) -> None:
    """For each of its addresses, and for none of a caller's names."""
    options = ["--proxy"] if option else []
    paths = [tmp_path / f"listen-{number}" for number in range(count)]
    addresses = [f"unix:{path}" for path in paths]
    stale = {"LISTEN_FDNAMES": ":".join(["proxy"] * count)}
    with Running(tmp_path, listen, *options, *addresses, "--", *command, **stale) as running:
        shown = " accept_proxy=" + ",".join(addresses)
        assert (shown in running.log) == option
        for path in paths:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(TIMEOUT)
                client.connect(str(path))
                client.sendall(V1 + HELLO)
                if option:
                    with host.accept() as stream:
                        assert read_exactly(stream, len(V1 + HELLO)) == V1 + HELLO
                else:
                    assert client.recv(99) == NO_TLS
