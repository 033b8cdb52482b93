"""The orderly close of a client's socket."""

from sniproxy.dataplane.farewell import FAREWELL_BYTES
from tests.plane import Plane, alert


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
