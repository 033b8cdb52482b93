"""The orderly close of a client's socket."""

import socket

import pytest

from sniproxy.dataplane.farewell import FAREWELL_BYTES
from sniproxy.dataplane.relay import SEND_TIMEOUT
from tests.hello import hello
from tests.plane import Plane, alert

ANSWER = bytes(range(256)) * 8_000


def test_a_refused_client_that_goes_on_sending(plane: Plane) -> None:
    """At most 64 KiB are read after the alert; then the connection is closed all the same."""
    client = plane.client(b"GET")
    assert plane.read(client, 7) == alert(10)
    client.setblocking(False)
    sent = 0
    while sent < 100 * FAREWELL_BYTES:
        try:
            sent += client.send(bytes(4096))
        except BlockingIOError:
            pass
        except OSError:  # it was closed with unread bytes
            break
        plane.turn()
    assert FAREWELL_BYTES <= sent < 100 * FAREWELL_BYTES
    assert plane.connections.totals.open == 0


def test_a_refused_client_that_says_nothing(plane: Plane) -> None:
    client = plane.client(b"GET")
    assert plane.read(client, 99) == alert(10)
    assert plane.connections.totals.open == 1
    plane.clock.advance(0.9)
    assert plane.connections.totals.open == 1
    plane.clock.advance(0.3)
    assert plane.connections.totals.open == 0


def test_a_refused_client_that_closes(plane: Plane) -> None:
    client = plane.client(b"GET")
    client.close()
    plane.until(lambda: plane.connections.totals.open == 0)


@pytest.fixture
def client(plane: Plane) -> socket.socket:
    """Have a backend answer and close while its client goes on sending and has read nothing."""
    backend = plane.backend("a.example")
    client = plane.client(hello("a.example"))
    # What its kernel takes is taken.
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
    stream = backend.accept()
    stream.setblocking(False)
    left = memoryview(ANSWER)
    while left:
        try:
            left = left[stream.send(left) :]
        except BlockingIOError:
            plane.turn()
    stream.close()
    client.send(b"goes on")
    return client


def test_a_slow_client_that_goes_on_sending_gets_all(plane: Plane, client: socket.socket) -> None:
    got = b""
    while len(got) < len(ANSWER):
        got += plane.read(client, 100_000)
        plane.clock.advance(SEND_TIMEOUT - 15)
        client.setblocking(True)
        client.send(b"and on")
        plane.turn()
    assert got == ANSWER
    assert plane.read(client, 1) == b""
    client.close()
    plane.until(lambda: plane.connections.totals.open == 0)
    assert "end=reset_by_backend" in plane.log


def test_a_client_that_takes_no_more_has_a_minute(plane: Plane, client: socket.socket) -> None:
    """Taking one byte or a million: a minute from the last one, and its socket is closed."""
    plane.until(lambda: "end=" in plane.log)
    plane.clock.advance(SEND_TIMEOUT - 1)
    assert plane.connections.totals.open == 1
    plane.clock.advance(SEND_TIMEOUT / 2 + 1)
    assert plane.connections.totals.open == 0


def test_who_has_stood_still_for_a_minute_gets_no_second_one(plane: Plane) -> None:
    backend = plane.backend("a.example")
    client = plane.client(hello("a.example"))
    stream = backend.accept()
    assert plane.read(stream, len(hello("a.example"))) == hello("a.example")
    stream.send(b"last words")
    stream.close()
    assert plane.read(client, 99) == b"last words"
    plane.turn(10)
    plane.clock.advance(SEND_TIMEOUT - 1)
    assert plane.connections.totals.open == 1
    plane.clock.advance(SEND_TIMEOUT / 2 + 1)
    assert plane.connections.totals.open == 0
    assert "end=idle" in plane.log
