"""The sockets for balancers, as the manual sets them up."""

import pathlib
import socket
from collections.abc import Iterator

import pytest
from manual import block
from support import (
    BLOG,
    DROP_INS,
    SHOP,
    TIMEOUT,
    Backend,
    Client,
    first_message,
    follow,
    journal,
    make_host,
    run,
)

ADDRESS = "198.51.100.11"
HEADER = b"PROXY TCP4 203.0.113.77 203.0.113.10 40000 443\r\n"

pytestmark = pytest.mark.usefixtures("proxy")


@pytest.fixture
def blog(proxy: None) -> Iterator[socket.socket]:
    """Have a backend that is told who its clients are."""
    directory = make_host(BLOG)
    (directory / "send-proxy-v1").touch()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.settimeout(TIMEOUT)
        path = directory / "tls-socket"
        path.unlink(missing_ok=True)
        listening.bind(str(path))
        path.chmod(0o777)
        listening.listen()
        yield listening


@pytest.fixture
def second(proxy: None) -> Iterator[pathlib.Path]:
    """Give where the second unit goes, which is away at the end."""
    unit = DROP_INS / "sniproxy-proxy.socket"
    run("ip", "address", "add", f"{ADDRESS}/32", "dev", "lo")
    yield unit
    run("systemctl", "disable", "--now", unit.name, check=False)
    unit.unlink(missing_ok=True)
    run("ip", "address", "del", f"{ADDRESS}/32", "dev", "lo")


def announced(address: str, port: int, blog: socket.socket) -> bytes:
    """Announce a client; give what the backend is told of it."""
    with socket.create_connection((address, port), TIMEOUT) as balancer:
        balancer.sendall(HEADER + first_message(BLOG))
        stream, _ = blog.accept()
        with stream:
            return stream.recv(len(HEADER), socket.MSG_WAITALL)


def is_refused(address: str, port: int, first: bytes) -> bool:
    with socket.create_connection((address, port), TIMEOUT) as client:
        client.sendall(first + first_message(BLOG))
        answer = client.recv(99)
    # An alert, or nothing to who is no TLS client.
    return answer[:1] in (b"\x15", b"")


def test_a_header_for_all_clients(blog: socket.socket) -> None:
    follow(block("how-to/balancers.md", "The header for all clients"))
    assert announced("127.0.0.1", 443, blog) == HEADER
    assert is_refused("127.0.0.1", 443, b"")


def test_a_port_for_the_balancer_beside_the_other(
    blog: socket.socket, second: pathlib.Path
) -> None:
    backend = Backend(make_host(SHOP) / "tls-socket", "the shop")
    try:
        with Client(SHOP) as client:
            assert client.ask() == "the shop"
            follow(block("how-to/balancers.md", "The header beside clients without"))
            assert client.ask() == "the shop"
        assert f" accept_proxy={ADDRESS}:8443 " in journal("--unit=sniproxy.service")
        for _ in range(2):
            assert announced(ADDRESS, 8443, blog) == HEADER
            assert is_refused(ADDRESS, 8443, b"")
            assert is_refused("127.0.0.1", 443, HEADER)
            # As after any restart.
            run("systemctl", "restart", "sniproxy.service")
    finally:
        backend.close()
