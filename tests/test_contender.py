"""Who is here on a descriptor that was lent."""

import socket

import pytest

from sniproxy.dataplane.contender import AnnouncedContender, Contender
from sniproxy.dataplane.shares import Shares
from sniproxy.parser.proxy_header import version_1
from tests.crowd import Crowd
from tests.hello import hello
from tests.plane import Plane, alert

HELLO = hello("a.example")
HEADER = version_1(("192.0.2.1", 1), ("192.0.2.2", 443))

KINDS = pytest.mark.parametrize(
    ("kind", "header"), [(Contender, b""), (AnnouncedContender, HEADER)], ids=["known", "announced"]
)


def never_back(shares: Shares, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no number be free for what was lent."""
    for name in ("lacking", "restore", "balance"):
        monkeypatch.setattr(shares, name, lambda: 1)


@KINDS
def test_where_numbers_are_free_it_is_like_any_other(
    plane: Plane, kind: type[Contender], header: bytes
) -> None:
    backend = plane.backend("a.example")
    crowd = Crowd(plane, socket.create_server(("127.0.0.1", 0)))
    crowd.lose_spares()
    plane.client(header + HELLO, kind=kind)
    assert backend.accept().recv(9999) == HELLO
    assert not plane.connections.shares.lacking()
    plane.client(header + b"GET /", kind=kind)
    assert plane.connections.totals.open == 2
    crowd.close()


@KINDS
def test_what_was_lent_does_not_linger(
    plane: Plane, kind: type[Contender], header: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    never_back(plane.connections.shares, monkeypatch)
    client = plane.client(header + b"GET /", kind=kind)
    assert not plane.connections.totals.open
    assert plane.read(client, 99) == alert(10)


@KINDS
def test_it_pays_back_before_it_has_its_backend(
    plane: Plane, kind: type[Contender], header: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though a number may be free just then: it would be lost to who comes next."""
    plane.backend("a.example")
    shares = plane.connections.shares
    asked: list[bool] = []

    def backend(one: Contender, _client: socket.socket) -> None:
        asked.append(one.lent)

    never_back(shares, monkeypatch)
    monkeypatch.setattr(shares, "dealing", lambda: True)
    monkeypatch.setattr(shares, "backend", backend)
    client = plane.client((header + HELLO)[:-20], kind=kind)
    client.sendall(HELLO[-20:])
    assert plane.read(client, 99) == alert(80)
    assert asked == [True]
    assert plane.connections.totals.refused == {"no_descriptor": 1}
