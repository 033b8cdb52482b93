"""Where a host name leads, and the PROXY header that it gets."""

import os
import pathlib
import socket
import struct
from collections.abc import Callable

import pytest

from tests.end_to_end.harness import Backend, Proxy, read_exactly
from tests.hello import hello

Start = Callable[..., Proxy]
Make = Callable[..., Backend]


def reached(proxy: Proxy, backend: Backend, host: str) -> bool:
    wire = hello(host)
    with proxy.connect() as client:
        client.sendall(wire)
        return read_exactly(backend.accept(), len(wire)) == wire


@pytest.mark.parametrize(
    "host", ["a" * 63 + ".example", ".".join(["b" * 60] * 4), "c." * 126 + "dd"]
)
def test_long_names(proxy: Proxy, backend_of: Make, host: str) -> None:
    backend = backend_of(proxy.directory(host))
    other = backend_of(proxy.directory("a.example"))
    assert reached(proxy, backend, host.upper())
    # The hosts directory is the working directory again.
    assert reached(proxy, other, "a.example")


def test_links_are_followed_and_swapped(
    proxy: Proxy, backend_of: Make, tmp_path: pathlib.Path
) -> None:
    one, other = backend_of(proxy.directory("one.example")), None
    other = backend_of(proxy.directory("other.example"))
    directory = proxy.directory("a.example")
    for name, backend in (("one.example", one), ("other.example", other)):
        target = os.path.relpath(proxy.directory(name) / "tls-socket", directory)
        (directory / "new").symlink_to(target)
        (directory / "new").rename(directory / "tls-socket")
        assert reached(proxy, backend, "a.example")


def header_for(proxy: Proxy, backend: Backend) -> tuple[bytes, tuple[str, int]]:
    """Give what comes before the hello, and the client's own address."""
    wire = hello("a.example")
    with proxy.connect() as client:
        client.sendall(wire)
        stream = backend.accept()
        data = b""
        while not data.endswith(wire):
            data += stream.recv(65536)
        name = client.getsockname()
        return data[: -len(wire)], name[:2] if isinstance(name, tuple) else ("", 0)


def listener(kind: str, tmp_path: pathlib.Path) -> socket.socket:
    if kind == "ipv4":
        return socket.create_server(("127.0.0.1", 0))
    if kind == "ipv6":
        return socket.create_server(("::1", 0), family=socket.AF_INET6)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "listen"))
    listening.listen()
    return listening


@pytest.mark.parametrize("kind", ["ipv4", "ipv6", "unix"])
@pytest.mark.parametrize("version", [1, 2])
def test_proxy_header(
    start: Start, backend_of: Make, tmp_path: pathlib.Path, kind: str, version: int
) -> None:
    proxy = start(listener(kind, tmp_path))
    directory = proxy.directory("a.example")
    backend = backend_of(directory)
    # Both files: version 2 wins.
    (directory / "send-proxy-v1").touch()
    if version == 2:
        (directory / "send-proxy-v2").mkdir()
    header, client = header_for(proxy, backend)
    server = proxy.listening.getsockname()
    if version == 1:
        expected = "UNKNOWN"
        if kind != "unix":
            family = {"ipv4": "TCP4", "ipv6": "TCP6"}[kind]
            expected = f"{family} {client[0]} {server[0]} {client[1]} {server[1]}"
        assert header == f"PROXY {expected}\r\n".encode()
        return
    authority = b"\2\0\x09a.example"
    addresses = b""
    command, family_byte = 0x20, 0
    if kind != "unix":
        family = socket.AF_INET if kind == "ipv4" else socket.AF_INET6
        command, family_byte = 0x21, 0x11 if kind == "ipv4" else 0x21
        addresses = socket.inet_pton(family, client[0]) + socket.inet_pton(family, server[0])
        addresses += struct.pack("!HH", client[1], server[1])
    block = addresses + authority
    signature = bytes.fromhex("0d0a0d0a000d0a515549540a")
    assert header == signature + struct.pack("!BBH", command, family_byte, len(block)) + block


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("client_address", ["127.0.0.1", "::1"])
def test_clients_of_a_dual_stack_listener(
    start: Start, backend_of: Make, client_address: str, version: int
) -> None:
    """What is IPv4-mapped at both ends is written as IPv4, anything else as it is."""
    listening = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    proxy = start(listening)
    directory = proxy.directory("a.example")
    (directory / f"send-proxy-v{version}").touch()
    backend = backend_of(directory)
    port = listening.getsockname()[1]
    with socket.create_connection((client_address, port), 20) as client:
        client.sendall(hello("a.example"))
        own = client.getsockname()[1]
        if version == 1:
            family = "TCP4" if client_address == "127.0.0.1" else "TCP6"
            line = f"PROXY {family} {client_address} {client_address} {own} {port}\r\n"
            expected = line.encode()
        else:
            ip = socket.AF_INET if client_address == "127.0.0.1" else socket.AF_INET6
            block = 2 * socket.inet_pton(ip, client_address) + struct.pack("!HH", own, port)
            block += b"\2\0\x09a.example"
            kind = 0x11 if ip == socket.AF_INET else 0x21
            expected = b"\r\n\r\n\0\r\nQUIT\n" + struct.pack("!BBH", 0x21, kind, len(block)) + block
        assert read_exactly(backend.accept(), len(expected)) == expected
